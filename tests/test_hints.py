"""What somebody reads who writes a name of fastai's: every entry of coursekit/hints.yaml is provoked, and the code that it names runs."""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import pydoc
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
import yaml
from helpers import PACKAGE
from PIL import Image

import coursekit.vision.all as vision
from coursekit import hints
from coursekit.training.callback import EVENTS
from coursekit.training.learner import synthetic_learner

PLACES = yaml.safe_load((PACKAGE / "hints.yaml").read_text(encoding="utf-8"))["places"]
ROWS = [(place, names, row) for place, part in PLACES.items() for names, row in part["names"].items()]
HUBS = [f"coursekit.{hub}.all" for hub in ("vision", "tabular", "text")]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the code of the hints may use: the names of the hub, small data and a small learner, already fitted."""
    path = tmp_path_factory.mktemp("hints")
    for i in range(16):
        (path / ("red", "blue")[i % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (40, 40), ((200, 30, i), (30, 30, 200))[i % 2]).save(path / ("red", "blue")[i % 2] / f"{i}.png")
    found: dict[str, Any] = {n: getattr(vision, n) for n in vision.__all__}
    files = vision.get_image_files(path)
    dls = vision.ImageDataLoaders.from_folder(path, valid_pct=0.5, seed=1, item_tfms=vision.Resize(32), bs=4, device="cpu")
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(3600, 2))
    learn = vision.Learner(dls, model, lr=1e-4, path=path, precision="fp32", seed=0)
    learn.progress = False
    learn.fit(1)
    import pandas as pd

    df = pd.DataFrame({"name": [str(f.relative_to(path)) for f in files], "label": [f.parent.name for f in files]})
    img = Image.open(files[0])
    found |= {"path": path, "files": files, "items": [3, 1, 3], "df": df, "img": img, "dls": dls, "data": dls, "model": model, "learn": learn,
              "x": torch.zeros(2, 3, 32, 32), "a": 1, "b": 2, "self": SimpleNamespace(), "ThreadPoolExecutor": ThreadPoolExecutor,
              "uploader": SimpleNamespace(value=[SimpleNamespace(content=b"")])}
    return found


@pytest.fixture
def shell() -> Any:
    from IPython.core.interactiveshell import InteractiveShell

    return InteractiveShell()


# ------------------------------------------------------------------------------------------------------------------ every entry


def caught(action: Any, *kinds: type[BaseException]) -> BaseException:
    with pytest.raises(kinds) as e:
        action()
    return e.value


def provoke_hub(name: str, hint: str, module: str) -> None:
    there = importlib.import_module(module)
    said = caught(lambda: exec(f"from {module} import {name}"), ImportError)
    assert name in str(said) and str(said).endswith(hint)
    assert str(caught(lambda: getattr(there, name), AttributeError)) == str(said) and not hasattr(there, name)


def provoke_attribute(name: str, hint: str, owner: object) -> None:
    said = caught(lambda: getattr(owner, name), AttributeError)
    assert repr(name) in str(said) and str(said).endswith(hint) and not hasattr(owner, name)


def provoke(place: str, name: str, hint: str, names: dict[str, Any]) -> None:
    """Do what the entry is about and check that its hint is shown."""
    learn, dls = names["learn"], names["dls"]
    if place == "hub":
        left_out = [hub for hub in HUBS if name not in importlib.import_module(hub).__all__]
        assert left_out, f"{name} is there now: take it out of hints.yaml"
        for hub in left_out:
            provoke_hub(name, hint, hub)
        assert hints.late_hint(caught(lambda: eval(name, {}), NameError)) == hint
    elif place == "v1":
        provoke_hub(name, hint, "coursekit.v1")
    elif place == "star":
        said = caught(lambda: exec(f"from {name} import *", {}), ImportError)
        assert name in str(said) and str(said).endswith(hint) and not hasattr(importlib.import_module(name), "__all__")
    elif place == "module" and "names" not in PLACES[place]["names"].get(name, hints.fastai_names()[place][name]):
        said = caught(lambda: importlib.import_module(name), ModuleNotFoundError)
        assert said.name == name and str(said).endswith(hint)
    elif place == "module":
        exec(f"from {name} import *", imported := {})
        others = [importlib.import_module(other) for other in hints.fastai_names()[place][name]["names"]]
        assert set(imported) - {"__builtins__"} == {n for other in others for n in other.__all__}
        provoke_hub("store_attr", hints.hint("hub", "store_attr"), name)
    elif place == "event":
        said = caught(lambda: type("Old", (vision.Callback,), {name: lambda self: None}), TypeError)
        assert f"Old.{name}" in str(said) and str(said).endswith(hint)
    elif place == "argument":
        said = caught(lambda: vision.ImageDataLoaders.from_folder(names["path"], **{name: None}), TypeError)
        assert repr(name) in str(said) and str(said).endswith(hint)
    elif place in ("list", "FileUpload"):
        owner = [1] if place == "list" else importlib.import_module("ipywidgets").FileUpload()
        assert hints.late_hint(caught(lambda: getattr(owner, name), AttributeError)) == hint
    else:
        provoke_attribute(name, hint, {"Learner": learn, "DataLoaders": dls, "Recorder": learn.recorder, "Callback": vision.Callback()}[place])


@pytest.mark.parametrize(("place", "listed", "row"), [pytest.param(*row, id=f"{row[0]}-{row[1][:40]}") for row in ROWS])
def test_every_entry(place: str, listed: str, row: dict[str, Any], names: dict[str, Any]) -> None:
    """The hint is shown for each name, on one line that names what to write and why; the code runs."""
    for name in listed.split(", "):
        hint = hints.hint(place, name)
        assert "\n" not in hint and all(f"`{code}`" in hint for code in row["write"]) and hint.endswith(f"instead: {row['why']}.")
        provoke(place, name, hint, names)
    scope = names
    if place == "v1":
        v1, learn = importlib.import_module("coursekit.v1"), copy.deepcopy(names["learn"])
        learn.__class__ = v1.V1Learner
        scope = names | {n: getattr(v1, n) for n in v1.__all__} | {"learn": learn}
    for code in row["write"]:
        if "export" in code:  # a network that was built by hand has no recipe that a file could hold
            scope = names | {"learn": vision.vision_learner(names["dls"], vision.resnet18, pretrained=False)}
        with torch.random.fork_rng():
            exec(code, dict(scope))
    plt.close("all")
    if place == "event":  # the method is one that a fit calls
        (method,) = inspect.getmembers(SimpleNamespace(**{k: v for k, v in run(row["write"][0]).items() if k in EVENTS}), inspect.isfunction)
        assert method[0] in EVENTS


def run(code: str) -> dict[str, Any]:
    exec(code, scope := {})
    return scope


def test_the_list_is_plain() -> None:
    """No name is listed twice in a place, and none hides one that is there."""
    for place, part in PLACES.items():
        every = [n for listed in part["names"] for n in listed.split(", ")]
        assert sorted(every) == sorted(set(every)) and part["title"], place
    assert len(ROWS) > 150 and {"L", "Optimizer", "TfmdLists", "TensorImage", "store_attr", "defaults", "model_meta", "DataBunch"} <= set(hints.fastai_names()["hub"])


# ------------------------------------------------------------------------------------------------------------------ nothing else changes


@pytest.mark.parametrize("hub", HUBS)
def test_other_names_are_missing_as_everywhere(hub: str) -> None:
    module = importlib.import_module(hub)
    assert not hasattr(module, "nothing_of_the_kind") and getattr(module, "L", None) is None
    assert "__path__" not in vars(module) and not hasattr(module, "__path__")
    with pytest.raises(AttributeError, match="'Learner'"):
        _ = module.Lerner
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from {hub} import nothing_of_the_kind")
    with pytest.raises(ModuleNotFoundError, match=r"coursekit\.nothing"):
        importlib.import_module("coursekit.nothing")


def test_help_and_completion_show_no_clutter() -> None:
    learn, package = synthetic_learner(), importlib.import_module("coursekit.vision")
    listed = set(hints.fastai_names()["Learner"])
    assert not listed & set(dir(learn)) and not listed & set(dir(learn.dls)) and "no_such_name" not in dir(package)
    assert "Write `" not in pydoc.render_doc(vision.Learner) and pydoc.render_doc(package)
    assert not {"L", "store_attr"} & {*dir(vision), *vision.__all__}
    files = {p.name for p in PACKAGE.iterdir()}
    assert {"hints.py", "hints.yaml"} <= files and not {"basics.py", "callback", "medical"} & files


def test_an_attribute_error_inside_a_property_is_not_hidden() -> None:
    learn = synthetic_learner()
    learn.splitter = lambda model: [model.head]
    with pytest.raises(AttributeError, match="head"):
        _ = learn.groups
    assert copy.copy(learn).model is learn.model and not hasattr(learn, "__len__")
    with pytest.raises(AttributeError) as e:
        _ = learn.fitt
    assert e.value.name == "fitt" and e.value.obj is learn  # from these Python finds what is spelled alike


def test_a_script_gets_one_line_below_the_error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The hook that was there still gets every error, and nothing is added to one about another name."""
    seen: list[BaseException] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    hints.hint_errors.__wrapped__()
    errors = [caught(functools.partial(eval, code, {"x": [1]}), Exception) for code in ("L(3)", "x.itemgot(0)", "nothing", "x.nothing", "1 / 0", "int('a')")]
    said = []
    for error in errors:
        sys.excepthook(type(error), error, error.__traceback__)
        said.append(capsys.readouterr().err)
    assert seen == errors
    assert said == [hints.hint("hub", "L") + "\n", hints.hint("list", "itemgot") + "\n", "", "", "", ""]
    assert hints.late_hint(None) == hints.late_hint(NameError("raised by hand")) == hints.late_hint(AttributeError("likewise")) == ""


def test_a_notebook_gets_one_line_below_the_error(shell: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """IPython reports the error as ever; installed twice, the line comes once."""
    import IPython

    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)
    before, handlers, hook = list(shell.events.callbacks["post_run_cell"]), shell.custom_exceptions, sys.excepthook
    outputs = []
    for k in range(2):
        result = shell.run_cell("store_attr()")
        assert isinstance(result.error_in_exec, NameError)
        outputs.append(capsys.readouterr())
        hints.hint_errors.__wrapped__()
        hints.hint_errors.__wrapped__()
    assert "NameError" in outputs[0].out and outputs[0].err == "" and outputs[1].err == hints.hint("hub", "store_attr") + "\n"
    assert outputs[1].out == outputs[0].out
    shell.run_cell("x = 1; print(x)")
    shell.run_cell("nothing_of_the_kind")
    assert capsys.readouterr().err == ""
    assert len(shell.events.callbacks["post_run_cell"]) == len(before) + 1
    assert shell.custom_exceptions == handlers and sys.excepthook is hook


# ------------------------------------------------------------------------------------------------------------------ callbacks


def decorated(method: Any) -> Any:
    @functools.wraps(method)
    def outer(*args: Any) -> Any:
        return method(*args)

    return outer


@pytest.mark.parametrize("event", EVENTS)
def test_a_method_without_the_learner_is_refused(event: str) -> None:
    with pytest.raises(TypeError) as e:
        type("Mine", (vision.Callback,), {event: lambda self: None})
    assert f"Mine.{event}(self)" in str(e.value) and f"`def {event}(self, learn):`" in str(e.value)


def test_which_methods_are_refused() -> None:
    """Those that a fit could not call, and no others."""
    good = [lambda self, learn: None, lambda me, it: None, lambda *args: None, lambda self, learn, more=1: None, lambda self, *, more=1, **k: None,
            decorated(lambda self, learn: None), staticmethod(lambda learn: None), functools.partialmethod(lambda self, a, learn: None, 1)]
    bad = good.pop(4)
    calls = 0
    for method in good:
        kind = type("Mine", (vision.Callback,), {"after_batch": method})
        synthetic_learner(n_train=1).fit(1, cbs=kind())
        calls += 1
    assert calls == len(good) == 7
    for method in (bad, lambda self, learn, more: None, lambda: None):
        with pytest.raises(TypeError, match="after_batch"):
            type("Mine", (vision.Callback,), {"after_batch": method})
    assert type("Mine", (vision.Callback,), {"helper": lambda self: None, "on_my_own": lambda self: None})


# ------------------------------------------------------------------------------------------------------------------ the first version


def test_lesson_2_of_the_first_version(names: dict[str, Any], tmp_path: Path) -> None:
    """Every factory takes ds_tfms and size; a learner goes on with other data and comes back from its folder."""
    v1, path, files, df = importlib.import_module("coursekit.v1"), names["path"], names["files"], names["df"]
    tfms = v1.get_transforms(flip_vert=True, max_warp=0.0)
    df.to_csv(path / "labels.csv", index=False)
    options = {"ds_tfms": tfms, "size": 32, "bs": 4, "num_workers": 0}
    (tmp_path / "both").mkdir()
    for side in ("train", "valid"):
        for f in files:
            (tmp_path / "both" / side / f.parent.name).mkdir(parents=True, exist_ok=True)
            (tmp_path / "both" / side / f.parent.name / f.name).write_bytes(f.read_bytes())
    made = [v1.ImageDataBunch.from_folder(path, train=".", valid_pct=0.25, **options), v1.ImageDataBunch.from_folder(tmp_path / "both", **options),
            v1.ImageDataBunch.from_df(path, df, **options), v1.ImageDataBunch.from_csv(path, **options),
            v1.ImageDataBunch.from_lists(path, files, [f.parent.name for f in files], **options),
            v1.ImageDataBunch.from_name_func(path, files, lambda p: p.parent.name, **options),  # the function gets the path
            v1.ImageDataBunch.from_name_re(path, files, r"/([^/]+)/\d+.png$", **options)]
    for data in made:
        assert isinstance(data, v1.ImageDataBunch) and data.classes == ["blue", "red"] and data.c == 2
        assert data.one_batch().xs[0].shape == (4, 3, 32, 32) and len(data.train.batch_tfms) >= 1
    np_seeded = []
    for _ in range(2):
        v1.np.random.seed(42)
        np_seeded.append(v1.ImageDataBunch.from_df(path, df, size=32, bs=4).valid_ds.items)
    assert [str(r) for r in np_seeded[0]] == [str(r) for r in np_seeded[1]]
    learn = v1.create_cnn(made[0].normalize(v1.imagenet_stats), v1.models.resnet18, metrics=v1.accuracy, ps=0.25, pretrained=False, path=tmp_path)
    assert [m.p for m in learn.model.modules() if isinstance(m, torch.nn.Dropout)][-1] == 0.25
    learn.progress = False
    learn.fit_one_cycle(1, max_lr=1e-3)
    learn.data = made[2].normalize()
    assert learn.data is learn.dls and learn.data.train.batch_tfms[-1] != made[2].train.batch_tfms[-1]
    learn.recorder.plot_losses()
    plt.close("all")
    assert learn.export() == tmp_path.absolute() / "export.ck"
    again = v1.load_learner(tmp_path)
    said, index, outputs = again.predict(v1.open_image(files[0]))
    assert said == again.dls.vocab[index] and torch.allclose(outputs, learn.predict(files[0]).probabilities, atol=1e-4)
    with pytest.raises(TypeError, match="callback_fns.*cbs="):
        v1.create_cnn(made[0], v1.models.resnet18, callback_fns=[])
    with pytest.raises(ValueError, match=r"\.ck"):
        learn.export("export.pkl")
    with pytest.raises(TypeError, match="szie"):
        v1.ImageDataBunch.from_df(path, df, szie=3)
