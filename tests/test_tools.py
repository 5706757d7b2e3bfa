"""The notebook tools: what is cleaned, what is reported, how a failure reads."""

from __future__ import annotations

import base64
import random
from pathlib import Path
from typing import Any

import install
import notebooks as nbtool
import pytest
import readme
import soak
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

PNG = base64.b64encode(b"\x89PNG not really").decode()


def code(source: str, *outputs: Any, tags: tuple[str, ...] = ()) -> Any:
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)} if tags else {})


def stream(text: str, name: str = "stdout") -> Any:
    return new_output("stream", name=name, text=text)


def shown(data: dict[str, str], **metadata: Any) -> Any:
    return new_output("display_data", data=data, metadata=metadata)


def notebook(*cells: Any) -> Any:
    return new_notebook(cells=[new_markdown_cell("# Title"), *cells])


def texts(nb: Any) -> list[str]:
    return [nbtool.output_text(o) for c in nb.cells if c.cell_type == "code" for o in c.outputs]


# ------------------------------------------------------------------------------------------------------ cleaning


def test_progress_is_dropped_and_warnings_stay() -> None:
    bar = "\repoch:  40%|####      | 2/5 [00:00<00:00, 19.9it/s]\repoch: 100%|#####| 5/5 [00:00<00:00, 20.0it/s]\n"
    nb = nbtool.clean_notebook(notebook(code("x", stream(bar, "stderr"), stream("UserWarning: mind\n", "stderr"))))
    assert texts(nb) == ["UserWarning: mind\n"]


def test_carriage_returns_settle() -> None:
    assert texts(nbtool.clean_notebook(notebook(code("x", stream("1%\r50%\rdone\nnext\n"))))) == ["done\nnext\n"]


@pytest.mark.parametrize(("plain", "kept"), [("  0%|          | 0/5 [00:00<?, ?it/s]", 0), ("FileUpload(value=())", 1)])
def test_widget_views(plain: str, kept: int) -> None:
    view = shown({nbtool.WIDGET: {"model_id": "a"}, "text/plain": plain})  # type: ignore[dict-item]
    cell = nbtool.clean_notebook(notebook(code("x", view))).cells[1]
    assert len(cell.outputs) == kept
    assert all(nbtool.WIDGET not in o.data for o in cell.outputs)


def test_places_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "kit"))
    text = f"{Path.home()}/x {nbtool.ROOT}/nbs {tmp_path}/kit/data /opt/ipykernel_12/345.py:1: Warn <A at 0x7f00aabb>"
    nb = nbtool.clean_notebook(notebook(code("x", stream(text))), paths=[(str(tmp_path), "here")])
    assert texts(nb) == ["~/x ./nbs ~/.coursekit/data <cell>:1: Warn <A at 0x…>"]


def test_metadata_counts_and_ids() -> None:
    nb = notebook(code("x", tags=("results",)), code("x"))
    nb.metadata["widgets"] = {"state": {}}
    nb.cells[1].update(execution_count=7)
    nb.cells[1].metadata["execution"] = {"iopub.status.busy": "2026"}
    nb.cells[2]["id"] = nb.cells[1]["id"]
    nb = nbtool.clean_notebook(nb)
    assert nb.metadata == {"kernelspec": nbtool.KERNELSPEC}
    assert nb.cells[1].metadata == {"tags": ["results"]}
    assert nb.cells[1].execution_count is None
    assert len({c.id for c in nb.cells}) == 3


def test_cleaning_twice_changes_nothing(tmp_path: Path) -> None:
    nb = notebook(code("x", stream("a\rb\n"), shown({"image/png": PNG + "\n"}, **{"image/png": {"alt": "a cat"}})))
    nbtool.write(nbtool.clean_notebook(nb), tmp_path / "a.ipynb")
    nbtool.write(nbtool.clean_notebook(nbtool.read(tmp_path / "a.ipynb")), tmp_path / "b.ipynb")
    assert (tmp_path / "a.ipynb").read_bytes() == (tmp_path / "b.ipynb").read_bytes()


# ------------------------------------------------------------------------------------------------------ checking


@pytest.mark.parametrize(("cell", "problem"), [
    (code("x", shown({"image/png": PNG})), "without alternative text"),
    (code("x", shown({"text/html": "<img src='a'>"})), "without alternative text"),
    (code("x", new_output("error", ename="E", evalue="", traceback=[])), "raises-exception"),
    (code("open('/home/ann/x')"), "a place of one machine"),
    (code("x", stream("/tmp/kit/x\n")), "a place of one machine"),
    (new_markdown_cell("### Deep"), "skips from heading level 1 to 3"),
    (new_markdown_cell("# Again"), "second heading of level 1"),
    (new_markdown_cell("![](a.png)"), "without alternative text"),
])  # fmt: skip
def test_problems_are_found(cell: Any, problem: str, tmp_path: Path) -> None:
    nbtool.write(notebook(cell), tmp_path / "n.ipynb")
    assert problem in "\n".join(nbtool.check_notebook(tmp_path / "n.ipynb"))


def test_sound_notebooks_pass(tmp_path: Path) -> None:
    picture = shown({"image/png": PNG}, **{"image/png": {"alt": "a cat"}})
    failing = code("1/0", new_output("error", ename="E", evalue="", traceback=[]), tags=("raises-exception",))
    fenced = new_markdown_cell("```\n# no heading\n```")
    nbtool.write(notebook(code("x", picture), failing, fenced), tmp_path / "n.ipynb")
    assert nbtool.check_notebook(tmp_path / "n.ipynb", "lesson") == []


def test_lessons_show_outputs(tmp_path: Path) -> None:
    nbtool.write(notebook(code("x")), tmp_path / "n.ipynb")
    assert "without outputs" in "\n".join(nbtool.check_notebook(tmp_path / "n.ipynb", "lesson"))


# ------------------------------------------------------------------------------------------------------- running


def test_a_notebook_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [code("#| eval: false\n1/0", stream("kept\n")), code("import warnings\nwarnings.warn('mind this')"),
             code("# a comment\nopen('made', 'w').close()"), code("print('error_rate 0.1')", tags=("results",))]
    nbtool.write(notebook(*cells), tmp_path / "n.ipynb")
    assert nbtool.main(["run", "--out", str(tmp_path / "out"), str(tmp_path / "n.ipynb")]) == 0
    said = capsys.readouterr().out
    assert "1/0" not in said
    assert "[3/4] open('made', 'w').close()" in said
    assert "\n  error_rate 0.1\n" in said
    assert (tmp_path / "out" / "made").exists()
    done = nbtool.read(tmp_path / "out" / "n.ipynb")
    assert "mind this" in "".join(texts(done))
    assert texts(done)[0] == "kept\n"
    assert nbtool.read(tmp_path / "n.ipynb").cells[4].outputs == [], "the source was changed"


def test_a_folder_is_run_with_its_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("nbs/a/n.ipynb", "nbs/b/c/n.ipynb", "nbs/b/_draft.ipynb", "nbs/.ipynb_checkpoints/n.ipynb"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        nbtool.write(notebook(), tmp_path / name)
    assert nbtool.main(["run", "--out", str(tmp_path / "out"), str(tmp_path / "nbs")]) == 0
    assert sorted(str(p.relative_to(tmp_path)) for p in (tmp_path / "out").rglob("*.ipynb")) == ["out/nbs/a/n.ipynb", "out/nbs/b/c/n.ipynb"]
    assert nbtool.main(["check", str(tmp_path / "nbs")]) == 0 and "2 notebooks, 0 problems" in capsys.readouterr().out


def test_a_failure_reads_well(tmp_path: Path) -> None:
    nbtool.write(notebook(code("x = 1"), code("y = x / 0"), code("z = 2")), tmp_path / "n.ipynb")
    with pytest.raises(nbtool.NotebookFailed, match=r"code cell 2 of 3") as failure:
        nbtool.run_notebook(tmp_path / "n.ipynb")
    said = str(failure.value)
    assert "    | y = x / 0" in said
    assert "ZeroDivisionError: division by zero" in said
    assert "\x1b" not in said


def test_time_runs_out(tmp_path: Path) -> None:
    nbtool.write(notebook(code("import time\ntime.sleep(60)")), tmp_path / "n.ipynb")
    with pytest.raises(nbtool.NotebookFailed, match="CellTimeoutError"):
        nbtool.run_notebook(tmp_path / "n.ipynb", timeout=2)


def test_a_missing_notebook_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        nbtool.main(["run", "nowhere.ipynb"])
    assert "nowhere.ipynb" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------- installing


def test_uv_gets_what_pip_is_told() -> None:
    config = """:env:.cert='/etc/ssl/all.crt'
:env:.disable-pip-version-check='1'
global.constraint='/etc/pip/limits.txt'
global.extra-index-url='file:///a https://b.org/simple'
site.find-links='/wheels /more'
user.index-url='https://mirror.org/simple'
"""
    assert install.as_uv(config) == {
        "SSL_CERT_FILE": "/etc/ssl/all.crt", "UV_CONSTRAINT": "/etc/pip/limits.txt", "UV_INDEX": "file:///a https://b.org/simple",
        "UV_FIND_LINKS": "/wheels,/more", "UV_DEFAULT_INDEX": "https://mirror.org/simple",
    }  # fmt: skip


@pytest.mark.parametrize(("works", "asked"), [("uv", ["uv"]), ("pip", ["uv", "pip"]), ("", ["uv", "pip"])])
def test_pip_installs_what_uv_cannot(works: str, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def succeeds(command: list[str], **env: str) -> bool:
        if command[-2:] != install.WHAT:
            return True  # uv itself
        calls.append("uv" if Path(command[0]).stem == "uv" else "pip")
        return calls[-1] == works

    monkeypatch.setattr(install, "succeeds", succeeds)
    assert install.main() == (0 if works else 1) and calls == asked


def test_installing_gets_the_scripts_of_pages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """After the package; without a network, the installation succeeds all the same and says what is missing."""
    calls = []
    monkeypatch.setattr(install, "succeeds", lambda command, **env: calls.append(command) or command != install.FETCH)
    assert install.main() == 0 and calls[-1] == install.FETCH
    said = capsys.readouterr().out
    assert "network" in said and "make docs" in said


# -------------------------------------------------------------------------------------------------------- README


def test_readme_rendering() -> None:
    picture = shown({"image/png": PNG}, **{"image/png": {"alt": "six cats"}})
    nb = notebook(code("print(1)", stream("1\n")), code("show()", picture, tags=("hide-input",)),
                  code("no", tags=("hide",)), code("print(2)", stream("2\n"), tags=("remove-stdout",)),
                  new_markdown_cell("[one](lessons/01.ipynb) [two](https://x.org) [up](../CONTRIBUTING.md)"))
    text, images = readme.render(nb)
    (name,) = images
    assert "# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n" in text
    assert f"![six cats]({name})" in text
    assert "show()" not in text and "print(2)" in text and "\n2\n" not in text
    assert "[one](nbs/lessons/01.ipynb) [two](https://x.org) [up](CONTRIBUTING.md)" in text


# ---------------------------------------------------------------------------------------------------------- soak


def soaked(grow: dict[str, float], n: int = 240) -> dict[str, Any]:
    """The verdict on two hours, in which memory jumps by up to 30 MB and the named figures grow by so much per hour."""
    noise = random.Random(0)
    about = {"rss": 1000.0, "objects": 400_000, "handles": 70, "threads": 16, "widgets": 0}
    samples = [{"seconds": 30.0 * i, **{k: v + int(grow.get(k, 0) * i / 120) for k, v in about.items()}} for i in range(n)]
    for s in samples:
        s["rss"] += 30 * noise.random() + (400 * s["seconds"] / 600 if s["seconds"] < 600 else 400)  # at first it grows
    return soak.verdict(samples, 600)


def test_the_long_run_is_judged() -> None:
    assert soaked({})["problems"] == [] and soaked({"rss": 5})["problems"] == []
    assert "memory grew by" in soaked({"rss": 60})["problems"][0] and len(soaked({"rss": 60})["problems"]) == 1
    assert soaked({"objects": 3000})["problems"] == []
    for name, grow in {**dict.fromkeys(soak.COUNTS, 2), "objects": 30_000}.items():
        (problem,) = soaked({name: grow})["problems"]
        assert name in problem and "grew from" in problem
    assert soak.verdict([{"seconds": 1.0, "rss": 1.0, "handles": 1, "threads": 1, "widgets": 0}], 0)["problems"]
