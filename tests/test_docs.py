"""The site that `make docs` builds: whole, offline, readable by everyone. Warnings are errors, every link leads somewhere."""

from __future__ import annotations

import base64
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
from browser import FLAGS
from conftest import CI, missing
from filelock import FileLock
from helpers import ROOT, notebooks, real_photo, run

PHONE, DESKTOP = (375, 740), (1280, 900)
LESSON, MODULE = "lessons/01_image_classification.html", "api/training/learner.html"
sys.path.append(str(ROOT / "docs"))
LOADING = {"script": "src", "img": "src", "source": "src", "iframe": "src", "video": "src", "audio": "src", "embed": "src", "object": "data"}

NO_NETWORK = """import socket

def refused(*args, **options):
    raise OSError("the test has cut the network")

socket.getaddrinfo = socket.create_connection = socket.socket.connect = refused
"""


@pytest.fixture(scope="session")
def site(home: Path) -> Path:
    """The site, built with the network cut after what it needs was fetched; the first of several test processes builds it."""
    pytest.importorskip("myst_nb")
    out = home / "site"
    with FileLock(home / "site.lock"):
        if not (out / "index.html").exists():
            build = [sys.executable, str(ROOT / "docs" / "build.py")]
            try:
                run([*build, "--fetch"], cwd=ROOT)  # as the installation does
            except AssertionError as e:
                if "could not be downloaded" in str(e):
                    missing("the scripts of web pages cannot be had", must=CI)
                raise
            (cut := home / "no-network").mkdir(exist_ok=True)
            (cut / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
            run([*build, "--out", str(out), "--work", str(home / "site-work")], cwd=ROOT,
                env={"PYTHONPATH": os.pathsep.join(filter(None, [str(cut), os.environ.get("PYTHONPATH", "")]))})  # fmt: skip
    return out


@dataclass
class Read(HTMLParser):
    """What a page links to, loads and is missing."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)
    without_alt: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {v for k in ("id", "name") if (v := given.get(k))}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"] or "")
        if tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loads.append(given.get("href") or "")
        if given.get(LOADING.get(tag, "")):
            self.loads.append(given[LOADING[tag]] or "")
        self.loads += re.findall(r"url\(([^)]+)\)", given.get("style") or "")
        if tag == "img" and not (given.get("alt") or "").strip():
            self.without_alt.append(given.get("src") or "")


@pytest.fixture(scope="session")
def catalog() -> Any:
    """What the site's generator knows of all notebooks, without a build."""
    pytest.importorskip("pages")
    from pages import Site, site_pages

    return Site(Path("out"), site_pages())


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Read]:
    found = {}
    for path in sorted(set(site.rglob("*.html")) - {site / "what_is_in_your_photo.html"}):  # that one has tests of its own, in test_page.py
        found[path] = Read()
        found[path].feed(path.read_text(encoding="utf-8"))
    return found


def test_every_notebook_is_a_page(site: Path, pages: dict[Path, Read]) -> None:
    assert len(pages) > len(notebooks("lessons", "solutions", "api"))
    names = {p.relative_to(site).as_posix() for p in pages}
    assert {"index.html", "search.html", "glossary.html", "fastai.html", "architecture.html", LESSON, MODULE} <= names


def test_no_dead_link(site: Path, pages: dict[Path, Read]) -> None:
    dead = []
    for path, page in pages.items():
        for link in page.links:
            if re.match(r"[a-z]+:", link):
                continue
            file, anchor = urldefrag(unquote(link))
            target = (path.parent / file).resolve() if file else path
            if not target.is_file():
                dead.append(f"{path.relative_to(site)}: {link}")
            elif anchor and target in pages and anchor not in pages[target].ids:
                dead.append(f"{path.relative_to(site)}: no such place, {link}")
    assert not dead, "\n".join(sorted(set(dead))[:40])


def test_links_into_the_repository(pages: dict[Path, Read]) -> None:
    """Files of the repository that pages link to are there."""
    found = {m[1] for page in pages.values() for link in page.links if (m := re.search(r"/blob/main/([^#]+)", link))}
    gone = sorted(name for name in found if not (ROOT / unquote(name)).exists())
    assert found and not gone, gone


def test_nothing_comes_from_elsewhere(site: Path, pages: dict[Path, Read]) -> None:
    remote = [f"{p.relative_to(site)}: {what}" for p, page in pages.items() for what in page.loads if re.match(r"(https?:)?//", what)]
    gone = [f"{p.relative_to(site)}: {what}" for p, page in pages.items() for what in page.loads
            if not re.match(r"[a-z]+:|//", what) and not (p.parent / unquote(what).partition("?")[0]).exists()]
    for css in site.rglob("*.css"):
        remote += [f"{css.relative_to(site)}: {u}" for u in re.findall(r"(?:@import\s+[\"']?|url\([\"']?)((?:https?:)?//[^\"')\s]+)", css.read_text(encoding="utf-8"))]
    assert not remote and not gone, "\n".join([*sorted(set(remote))[:20], *gone[:20]])


def test_every_image_is_described(site: Path, pages: dict[Path, Read]) -> None:
    found = [f"{p.relative_to(site)}: {src}" for p, page in pages.items() for src in page.without_alt]
    assert not found, "\n".join(found[:20])


def test_nothing_of_this_machine(site: Path, pages: dict[Path, Read]) -> None:
    found = [p.relative_to(site) for p in pages if str(ROOT) in (text := p.read_text(encoding="utf-8")) or "/site-work" in text]
    assert not found


def test_reference_entries(site: Path) -> None:
    """A signature, the comment behind a parameter, a method, and the lessons that use the class."""
    text = (site / MODULE).read_text(encoding="utf-8")
    assert 'id="coursekit.training.learner.Learner.predict"' in text
    plain = " ".join(re.sub(r"<[^>]+>", "", text).split())
    assert "learning rate if a fit names none" in plain and "Used in" in plain


def test_lessons_that_use_a_function(catalog: Any) -> None:
    """Whether it came from a hub, from its module by its name, or from its module with a star."""
    users = {key: {p.path.stem[:2] for p in pages} for key, pages in catalog.users.items()}
    assert {"02", "05", "06"} <= users["coursekit.data.datablock", "DataBlock"]
    assert users["coursekit.collab", "similar_items"] == {"08"} and "08" in users["coursekit.collab", "collab_learner"]
    assert "06" in users["coursekit.training.losses", "DiceLoss"] and ("coursekit.training.loop", "run_epoch") not in users


def test_lessons_for_colab() -> None:
    """A copy of each lesson begins with a cell that installs the package on Colab, and does nothing here; its page links to it."""
    import json

    pages = pytest.importorskip("pages")
    cfg = pages.settings()
    for lesson in notebooks("lessons"):
        first, *others = json.loads(pages.for_colab(lesson))["cells"]
        assert [c["source"] for c in others] == [c["source"] for c in json.loads(lesson.read_text(encoding="utf-8"))["cells"]]
        assert not any(c.get("outputs") for c in others)
        assert f'"{cfg["lib_name"]} @ git+{cfg["git_url"] % cfg}@{cfg["branch"]}"' in first["source"]
        exec(first["source"].replace("    %pip", "    raise AssertionError  #"), {})


def test_architecture_is_the_real_one(catalog: Any) -> None:
    """Every layer and module is on the page, with its docstring, and no arrow leads upwards."""
    import architecture

    modules = {m: p.docname for m, p in catalog.modules.items()}
    text = architecture.page(ROOT, modules)
    stack = architecture.layers(ROOT)
    level = {name: i for i, layer in enumerate(stack) for name in layer}
    assert stack[:2] == [["hints"], ["core"]] and {m.split(".")[1] for m in modules} <= set(level)
    arrows = re.findall(r"(?m)^  (\w+) --> (\w+)$", text)
    assert ("data", "core") in arrows and all(level[a] >= level[b] for a, b in arrows)
    assert all(f"](/{name}.ipynb) | " in text for name in modules.values())
    assert "| [training.callback](/api/training/callback.ipynb) | " in text and not re.search(r"\.ipynb\) \|  \|", text)
    graph = {"a": {"b", "c"}, "b": {"c"}, "c": set()}
    assert architecture.reduced(graph) == [("a", "b"), ("b", "c")]


def test_links_to_try_a_lesson(pages: dict[Path, Read]) -> None:
    """Every lesson leads to Colab, Codespaces and Binder, and so does README, at the addresses of the repository in settings.ini."""
    from pages import try_it

    lessons = {p.name.replace(".html", ".ipynb"): page for p, page in pages.items() if p.parent.name == "lessons"}
    assert set(lessons) == {p.name for p in notebooks("lessons")}
    for name, page in lessons.items():
        assert set(try_it(name)) == {"Colab", "Codespaces", "Binder"} and set(try_it(name).values()) <= set(page.links), name
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(f"]({address})" in readme for address in try_it("01_image_classification.ipynb").values())


def test_first_use_of_a_term_leads_to_the_glossary(site: Path, pages: dict[Path, Read], catalog: Any) -> None:
    """Once in a lesson at most, not from the place that explains the term, and each term leads back to that place."""
    terms = catalog.glossary.terms
    assert len(terms) > 100
    back = {urldefrag(link)[1] for link in pages[site / "glossary.html"].links if "#first-" in link}
    assert back == {anchor for _, anchor, _ in terms.values()}
    for lesson in notebooks("lessons"):
        led = [link for link in pages[site / f"lessons/{lesson.stem}.html"].links if "glossary.html#term-" in link]
        assert len(led) == len(set(led)) and (led or lesson.stem.startswith("00")), lesson.stem
    text = (site / LESSON).read_text(encoding="utf-8")
    assert re.search(r'"../glossary.html#term-weight-decay"', text)  # explained in lesson 4b, used here
    assert not re.search(r'"../glossary.html#term-softmax"', text)  # explained here


@pytest.mark.parametrize(("text", "linked"), [
    ("The loss and the losses.", ["loss"]), ("`loss`, $loss$, [loss](x.md) and <i title=loss>", []), ("# Loss\n\n| loss |\n", []),
    ("```\nloss\n```\nA glossary has no loss-free words, but learning rates.", ["learning rates"]), ("**weight decay**", ["weight decay"])])  # fmt: skip
def test_where_a_term_can_be_a_link(catalog: Any, text: str, linked: list[str]) -> None:
    welcome = catalog.lessons[0]
    assert re.findall(r"\{term\}`([^<]+) <", catalog.glossary.link(welcome, text, set())) == linked


def test_short_list_for_language_models(site: Path) -> None:
    lines = (site / "llms.txt").read_text(encoding="utf-8").splitlines()
    linked = [m[1] for line in lines if (m := re.search(r"\]\(https://[^/]+/[^/]+/([^)]+)\): .+", line))]
    assert lines[0].startswith("# ") and len(linked) > len(notebooks("lessons"))
    assert all((site / name).is_file() for name in linked)


def test_slides(tmp_path: Path) -> None:
    """A deck for each lesson, whose scripts lie beside it."""
    try:
        run([sys.executable, str(ROOT / "docs" / "slides.py"), "--out", str(tmp_path)], cwd=ROOT)
    except AssertionError as e:
        if "DownloadError" in str(e):
            missing("reveal.js cannot be had", must=CI)
        raise
    for lesson in notebooks("lessons"):
        text, deck = (tmp_path / f"{lesson.stem}.html").read_text(encoding="utf-8"), Read()
        deck.feed(text)
        assert text.count("<section>") >= 5 and not deck.without_alt, lesson.stem
        assert all((tmp_path / name).is_file() for name in deck.loads if not name.startswith("data:")), deck.loads


# ----------------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield found
        found.close()


def opened(browser: Any, site: Path, name: str, size: tuple[int, int] = DESKTOP, theme: str = "light", strict: bool = True) -> Any:
    """A page from a file, the network cut; an error of its scripts fails if `strict`."""
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=theme, offline=True)
    page = context.new_page()
    page.errors = []
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.on("requestfailed", lambda r: page.errors.append(r.url))
    page.goto(f"{site.as_uri()}/{name}")
    page.wait_for_function("document.body.dataset.drawn")
    assert not (strict and page.errors), page.errors
    return page


@pytest.mark.parametrize(("name", "theme"), [("index.html", "dark"), (LESSON, "light"), ("lessons/00_welcome.html", "dark"), ("api/training/callback.html", "light"),
                                             ("api/training/callback.html", "dark"), ("glossary.html", "light")])
def test_accessible(browser: Any, site: Path, name: str, theme: str) -> None:
    """axe-core finds nothing serious, and the page isn't wider than a phone."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    page = opened(browser, site, name, theme=theme)
    found = axe.Axe().run(page).response["violations"]
    serious = [f"{v['id']}: {v['help']}: {v['nodes'][0]['html'][:200]}" for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, "\n".join(serious)
    page.set_viewport_size({"width": PHONE[0], "height": PHONE[1]})
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]
    page.context.close()


def test_front_page_names_a_photo(browser: Any, site: Path, tmp_path: Path) -> None:
    """The network cut, the front page loads its model and answers a dropped photo."""
    page = opened(browser, site, "index.html")
    page.locator(".try-it button").click()
    frame = page.frame_locator(".try-it iframe")
    frame.locator("#choose").wait_for()
    drop(frame, real_photo(tmp_path))
    answer = frame.locator("#answer")
    answer.filter(has_text=re.compile(r"[a-z]{3}")).wait_for(timeout=60_000)
    assert frame.locator(".row").count() >= 3 and frame.locator("#problem").text_content() == ""
    page.context.close()


def drop(frame: Any, photo: Path) -> None:
    """Drop a file on the page, as a person does with the mouse."""
    data = base64.b64encode(photo.read_bytes()).decode()
    frame.locator("body").evaluate("""(body, [data, name]) => {
        const transfer = new DataTransfer();
        transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name, { type: "image/jpeg" }));
        for (const kind of ["dragenter", "dragover", "drop"])
            body.dispatchEvent(new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
    }""", [data, photo.name])


STOPS = """() => {  // what can be used: of a label, the box it belongs to
    const found = [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0'], iframe, label")];
    const seen = found.filter((e) => e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && e.getClientRects().length);
    window.stops = [...new Set(seen.map((e) => e.control ?? e))];
    return window.stops.map((e) => e.outerHTML.slice(0, 120));
}"""
FOCUSED = """() => {  // its number among the stops, and whether its outline, or that of its label, is in view
    const e = document.activeElement, marked = [e, ...(e.labels ?? [])].some((x) => {
        const style = getComputedStyle(x), at = x.getBoundingClientRect();
        return x.checkVisibility({ visibilityProperty: true, opacityProperty: true }) && style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0
            && at.width * at.height > 0 && at.bottom > 0 && at.top < innerHeight && at.right > 0 && at.left < innerWidth;
    });
    return { stop: window.stops.indexOf(e), marked, html: e.outerHTML.slice(0, 120), out: e === document.body };
}"""


@pytest.mark.parametrize(("name", "size"), [("index.html", DESKTOP), ("index.html", PHONE), (LESSON, DESKTOP), (MODULE, DESKTOP), (MODULE, PHONE)])
def test_tab_reaches_everything(browser: Any, site: Path, name: str, size: tuple[int, int]) -> None:
    """One Tab after another, forward to the end and a few steps back: everything that can be used has its turn, and one sees where one is."""
    page = opened(browser, site, name, size)
    page.add_style_tag(content="html { scroll-behavior: auto !important; }")  # or it's still on its way when one looks
    stops, reached, unseen = page.evaluate(STOPS), [], []
    while len(reached) <= len(stops) + 20:
        page.keyboard.press("Tab")
        now = page.evaluate(FOCUSED)
        if now["out"]:
            break
        if not now["marked"]:
            page.wait_for_timeout(400)  # a link that slides in
            now = page.evaluate(FOCUSED)
        reached.append(now["stop"])
        unseen += [] if now["marked"] else [now["html"]]
    assert now["out"], f"caught at {now['html']}"
    left_out = [stops[i] for i in sorted(set(range(len(stops))) - set(reached))]
    assert not left_out and not unseen, "\n".join(["not reached:", *left_out[:10], "focus not seen:", *unseen[:10]])
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate(FOCUSED)["stop"] == reached[-2]
    page.context.close()


def test_sidebar_with_the_keyboard(browser: Any, site: Path) -> None:
    """A part of the sidebar opens; on a phone, the whole sidebar does, and Escape closes it and goes back to its button."""
    page = opened(browser, site, "index.html")
    page.locator("#toctree-checkbox-1").focus()
    page.keyboard.press("Enter")
    page.get_by_role("link", name="Lesson 0: worked answers").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Lesson 0: worked answers"
    page.context.close()
    page = opened(browser, site, "index.html", PHONE)
    link = page.locator(".sidebar-drawer").get_by_role("link", name="Glossary")
    assert not link.is_visible()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "__navigation"
    page.keyboard.press("Enter")
    link.wait_for()
    page.keyboard.press("Escape")
    link.wait_for(state="hidden")
    assert page.evaluate("document.activeElement.id") == "__navigation"
    page.context.close()


def test_drop_zone_with_the_keyboard(browser: Any, site: Path, tmp_path: Path) -> None:
    """The front page's network is loaded and given a photo without a mouse, and Tab leaves its frame again."""
    page = opened(browser, site, "index.html")
    page.locator(".try-it button").focus()
    page.keyboard.press("Enter")
    frame = page.frame_locator(".try-it iframe")
    frame.locator("#choose").wait_for()
    frame.locator("#count").filter(has_text="1000").wait_for()  # by its script, which comes after the 16 MB of the network
    for _ in range(12):
        page.keyboard.press("Tab")
        if frame.locator("#choose").evaluate("e => document.activeElement === e"):
            break
    else:
        pytest.fail("Tab does not reach the button that chooses an image")
    frame.locator("#file").evaluate("e => e.addEventListener('click', (event) => { event.preventDefault(); e.dataset.asked = 'yes'; })")  # no dialog
    page.keyboard.press("Enter")
    frame.locator("#file[data-asked=yes]").wait_for(state="attached")
    frame.locator("#file").set_input_files(real_photo(tmp_path))
    frame.locator("#answer").filter(has_text=re.compile(r"[a-z]{3}")).wait_for(timeout=60_000)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.tagName") != "IFRAME":
            break
    assert page.evaluate("document.activeElement.tagName") == "A"
    page.context.close()


def test_quiz_right_and_wrong(browser: Any, site: Path) -> None:
    """With the keyboard alone: a wrong choice and a right one say so, and the score counts the first try."""
    page = opened(browser, site, LESSON)
    first, second = (page.locator(".ck-quiz ol > li").nth(i) for i in (0, 1))
    for question, kind, verdict in ((first, "ck-wrong", "No."), (second, "ck-right", "Right.")):
        choice = question.locator(f"details.{kind}").first
        choice.locator("summary").focus()
        page.keyboard.press("Enter")
        assert verdict in choice.locator(".ck-why").inner_text()
    first.locator("details.ck-right summary").click()
    page.wait_for_function("document.querySelector('.quiz-score').textContent.startsWith('1 right at the first try, of 2')")
    page.context.close()


def test_diagrams_and_mathematics(browser: Any, site: Path) -> None:
    page = opened(browser, site, LESSON)
    assert page.locator("div.mermaid svg").count() and page.locator("div.mermaid svg title").first.text_content()
    page.context.close()
    page = opened(browser, site, "lessons/04a_training_well.html")
    assert page.locator(".math .katex").count() and not page.locator(".katex-error").count()
    page.context.close()


def test_search_finds(browser: Any, site: Path) -> None:
    """Search works on files, without a server; only the excerpts of the pages found, which the browser may not fetch, are missing there."""
    page = opened(browser, site, "search.html?q=overfitting", strict=False)
    page.locator("#search-results li a", has_text="Lesson 1:").wait_for()
    assert "Lesson" in page.locator("#search-results").inner_text()
    page.context.close()
