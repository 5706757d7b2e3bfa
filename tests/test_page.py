"""The page that `learn.export("x.html")` writes: opened from a file, the network cut, it predicts what the package predicts."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import HOSTILE
from browser import FLAGS
from conftest import CI, missing
from helpers import raises, rough_photos, says
from PIL import Image
from torch import nn

from coursekit.cli.export import export_model
from coursekit.core import seeded
from coursekit.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.download import DownloadError
from coursekit.data.items import get_image_files
from coursekit.data.transforms import BatchTransform, ItemTransform
from coursekit.deploy import page as pages
from coursekit.deploy.onnx import compare, graph_runner, onnx_graph
from coursekit.training.learner import Learner
from coursekit.vision.augment import Augment, aug_transforms
from coursekit.vision.block import ImageBlock
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.learner import pretrained, vision_learner
from coursekit.vision.points import PointBlock
from coursekit.vision.resize import RandomResizedCrop, Resize
from coursekit.vision.segmentation import SegmentationDataLoaders, unet_learner

PHONE, DESKTOP = (375, 740), (1280, 900)
SIZE = 24


@pytest.fixture(scope="session")
def runtime(home: Path) -> None:
    """ONNX Runtime Web: the only thing here that comes from the network, once."""
    pytest.importorskip("onnxscript")
    try:
        pages.fetch_runtime()
    except DownloadError as e:
        missing(f"ONNX Runtime Web cannot be had: {e}", must=CI)


@pytest.fixture(scope="session")
def photos(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """150 of the real photos of cats and dogs, of all sizes, alternating."""
    folder = tmp_path_factory.mktemp("dogscats")
    found: dict[str, list[Path]] = {"cat": [], "dog": []}
    with tarfile.open(mirror / "dogscats.tgz", "r|gz") as tar:
        for member in tar:
            name = Path(member.name).name
            some = found.get(name.split(".")[0])
            if some is None or not member.isfile() or len(some) >= 75:
                continue
            some.append(folder / name)
            some[-1].write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
            if all(len(files) == 75 for files in found.values()):
                break
    return [file for pair in zip(*found.values()) for file in pair]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rough_photos(tmp_path_factory.mktemp("drawn"), (60, 50))


def small_learner(folder: Path, y_block: Any = CategoryBlock, label: Any = lambda f: f.name[0], n_out: int = 2, **options: Any) -> Learner:
    """A linear model on tiny images: what matters here comes before and after the network."""
    files = sorted(get_image_files(folder))
    dls = ImageDataLoaders.from_lists(folder, files, [label(f) for f in files], y_block=y_block, valid_pct=0.34, seed=0, bs=4, device="cpu",
                                      **{"item_tfms": Resize(SIZE), **options})  # fmt: skip
    with seeded(0):
        net = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, n_out))
    learn = Learner(dls, net, seed=0)
    learn.progress = False
    return learn


class Opened:
    """An exported page in a browser without network, and what it asked for, said and complained about."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.failures: list[str] = []
        page.on("request", lambda r: self.requests.append(r.url))
        page.on("requestfailed", lambda r: self.failures.append(r.failure))
        page.on("websocket", lambda w: self.requests.append(w.url))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))

    def outside(self) -> list[str]:
        """Requests that leave the file."""
        return [url for url in self.requests if not url.startswith(("file:", "blob:", "data:"))]

    def predict(self, file: Path) -> str:
        """Choose a file as a person does; the answer."""
        self.page.locator("#file").set_input_files(file)
        self.until(lambda: self.seen(file.name) or self.text("#problem"))
        assert self.text("#problem") == ""
        return self.text("#answer")

    def shown(self) -> dict[str, float]:
        """Class -> the probability that is shown."""
        rows = self.page.locator(".row").evaluate_all("rows => rows.map(row => [...row.children].slice(0, 2).map(part => part.textContent))")
        return {name: float(percent.rstrip("%")) / 100 for name, percent in rows}

    def text(self, place: str) -> str:
        return str(self.page.locator(place).text_content())

    def seen(self, name: str) -> bool:
        """Whether the image of this name is the one that is shown."""
        return str(self.page.locator("#image").get_attribute("alt")).endswith(name)

    def until(self, true: Callable[[], Any], *, timeout: float = 60) -> None:
        """Playwright's own waiting for a condition is a script that the page's policy forbids."""
        end = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < end, "the page does not come that far"
            self.page.wait_for_timeout(50)


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        started = play.chromium.launch(executable_path=chromium, headless=True, args=FLAGS)
        yield started
        started.close()


@contextmanager
def opened(browser: Any, file: Path, size: tuple[int, int] = DESKTOP, **options: Any) -> Iterator[Opened]:
    phone = {"is_mobile": True, "has_touch": True, "device_scale_factor": 2} if size == PHONE else {}
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **phone, **options)
    context.set_offline(True)
    view = Opened(context.new_page())
    try:
        view.page.goto(file.as_uri())
        view.until(lambda: view.text("#status") == "Ready." or view.text("#problem"))
        assert view.text("#problem") == ""
        yield view
    finally:
        context.close()


# ---- real photos


@pytest.fixture(scope="module")
def cats_and_dogs(runtime: None, photos: list[Path]) -> Learner:
    """Trained for seconds, on photos that are not among the first 50."""
    files = photos[50:]
    dls = ImageDataLoaders.from_lists(files[0].parent, files, [f.name[:3] for f in files], valid_pct=0.2, seed=0, bs=16, item_tfms=Resize(96),
                                      batch_tfms=aug_transforms(size=80, min_scale=0.8), device="cpu", num_workers=0)  # fmt: skip
    learn = vision_learner(dls, "coursenet", seed=0)
    learn.progress = False
    learn.fine_tune(1, 5e-3)
    return learn


def from_a_phone(photo: Path, folder: Path) -> Path:
    """12 million pixels, lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "phone.jpg"
    Image.open(photo).resize((4032, 3024), Image.Resampling.BICUBIC).save(path, quality=90, exif=exif)
    return path


@pytest.fixture(scope="module")
def cats_and_dogs_page(cats_and_dogs: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cats_and_dogs.export(tmp_path_factory.mktemp("cats_and_dogs") / "model.html")


@pytest.mark.parametrize(("model", "size", "n"), [("cats and dogs", PHONE, 50), ("cats and dogs", DESKTOP, 10), ("cifar10", PHONE, 5)], ids=str)
def test_the_page_predicts_what_the_package_predicts(browser: Any, cats_and_dogs: Learner, cats_and_dogs_page: Path, photos: list[Path], tmp_path: Path,
                                                     model: str, size: tuple[int, int], n: int) -> None:  # fmt: skip
    """Photos as they came, from file://, with the network cut: the same class, and every probability within 0.02."""
    learn = cats_and_dogs if model == "cats and dogs" else pretrained("cifar10", sizes=(96,), device="cpu")
    page = cats_and_dogs_page if learn is cats_and_dogs else learn.export(tmp_path / "model.html")
    some, worst = [*photos[:n], from_a_phone(photos[0], tmp_path)] if model == "cifar10" else photos[:n], 0.0
    with opened(browser, page, size) as view:
        for file in some:
            wanted = learn.predict(file)
            assert view.predict(file).startswith(f"{wanted.label}, "), file
            shown = view.shown()
            worst = max(worst, *(abs(shown[name] - float(p)) for name, p in zip(learn.dls.vocab, wanted.probabilities, strict=True)))
        assert view.text("#status") == f"Prediction: {view.text('#answer')}"
        assert not view.outside() and not view.complaints
        assert view.page.evaluate("document.documentElement.scrollWidth") <= size[0]  # nothing sticks out on a phone
    print(f"{model}: {len(some)} photos, the largest difference is {worst:.4f}, {page.stat().st_size / 1e6:.1f} MB")
    assert worst < 0.02


# ---- preparing images


@pytest.fixture(scope="module")
def simple(runtime: None, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a linear model."""
    return small_learner(drawn).export(tmp_path_factory.mktemp("simple") / "page.html")


@pytest.fixture(scope="module")
def bench(browser: Any, simple: Path) -> Iterator[Opened]:
    """Any page, to try its functions on."""
    with opened(browser, simple) as view:
        view.page.evaluate("take = () => {}")  # what a chosen file starts, which is not wanted here
        yield view


def photo_like(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth in some places and sharp in others."""
    r = np.random.default_rng(seed)
    coarse = Image.fromarray(r.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    fine = Image.fromarray(r.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    return Image.blend(coarse, fine, 0.3)


def in_python(file: Path, tfms: list[Any]) -> np.ndarray:  # (H, W, 3)
    x = ImageBlock().before(tfms, ["image"]).encode(file)
    for t in tfms:
        if isinstance(t, Augment):
            x = t.apply([x[None]], ["image"], rng=torch.Generator(), train=False)[0][0]
        else:
            (x,) = t.run([x], ["image"], rng=None, train=False)
    return x.permute(1, 2, 0).numpy().astype(int)


def in_browser(view: Opened, file: Path, tfms: list[Any]) -> np.ndarray:
    view.page.evaluate("told => Object.assign(spec, told)", {"steps": [pages.page_step(t) for t in tfms], "reads": 2 * tfms[0].reads})
    view.page.locator("#file").set_input_files(file)
    made = view.page.evaluate("async () => { const { width, height, data } = await prepared($('file').files[0]); return [width, height, [...data]]; }")
    return np.array(made[2]).reshape(made[1], made[0], 3)


WAYS = [[Resize(64)], [Resize((48, 80))], [Resize(64, method="squish")], [Resize(64, method="pad")], [Resize(64, method="pad", pad_mode="zeros")],
        [Resize((90, 40), method="pad", pad_mode="border")], [RandomResizedCrop(64)], [Resize(96), Augment(size=64)], [Resize((61, 47)), Augment(size=(30, 33))]]  # fmt: skip
SHAPES = [(200, 150), (151, 203), (64, 64), (31, 40), (700, 60), (9, 300)]


@pytest.mark.parametrize("tfms", WAYS, ids=str)
def test_pixels_are_prepared_as_in_the_package(bench: Opened, tmp_path: Path, tfms: list[Any]) -> None:
    for i, size in enumerate(SHAPES):
        photo_like(size, i).save(tmp_path / f"{i}.png")
        wanted, got = in_python(tmp_path / f"{i}.png", tfms), in_browser(bench, tmp_path / f"{i}.png", tfms)
        assert got.shape == wanted.shape
        assert abs(got - wanted).max() <= 1 and abs(got - wanted).mean() < 0.01, size


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_and_read_smaller_as_in_the_package(bench: Opened, tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    for size in [(1000, 704), (801, 1203) if orientation == 1 else (808, 1208)]:  # cameras' sizes are multiples of 8
        photo_like(size).save(tmp_path / "photo.jpg", quality=92, exif=exif)
        wanted, got = in_python(tmp_path / "photo.jpg", [Resize(64)]), in_browser(bench, tmp_path / "photo.jpg", [Resize(64)])
        assert abs(got - wanted).mean() < 1 and abs(got - wanted).max() <= 12, size  # colors are stored at half the size: they differ at edges


def test_other_kinds_of_images(bench: Opened, tmp_path: Path) -> None:
    image = photo_like((160, 120))
    clear = image.copy()
    clear.putalpha(Image.linear_gradient("L").resize(image.size))
    kinds = {"gray.png": image.convert("L"), "palette.png": image.quantize(64), "clear.png": clear, "gray.jpg": image.convert("L"),
             "picture.webp": image, "picture.bmp": image, "clear.webp": clear, "picture.gif": image.quantize(64)}  # fmt: skip
    for name, picture in kinds.items():
        picture.save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
        wanted, got = in_python(tmp_path / name, [Resize(64)]), in_browser(bench, tmp_path / name, [Resize(64)])
        assert abs(got - wanted).max() <= 3, name


def test_a_color_profile_is_ignored_as_in_the_package(bench: Opened, tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")  # red is blue
    assert swapped != profile
    photo_like((160, 120)).save(tmp_path / "p.png", icc_profile=swapped)
    wanted, got = in_python(tmp_path / "p.png", [Resize(64)]), in_browser(bench, tmp_path / "p.png", [Resize(64)])
    assert abs(got - wanted).max() <= 2


# ---- what the page shows


def test_several_classes_and_numbers(runtime: None, browser: Any, drawn: Path, tmp_path: Path) -> None:
    several = small_learner(drawn, MultiCategoryBlock, lambda f: [f.name[0], "x"][: 1 + len(f.stem) % 2], 3)
    numbers = small_learner(drawn, RegressionBlock, lambda f: [float(f.stem[2:]), 3.0])
    item = sorted(get_image_files(drawn))[0]
    for i, learn in enumerate((several, numbers)):
        wanted = learn.predict(item)
        with opened(browser, learn.export(tmp_path / f"{i}.html")) as view:
            said = view.predict(item)
            if learn is several:
                assert set(said.split(", ")) == set(wanted.label or ["None of these"])
                assert all(abs(view.shown()[c] - float(p)) < 0.02 for c, p in zip(learn.dls.vocab, wanted.probabilities))
            else:
                assert np.allclose([float(v) for v in said.split(", ")], wanted.label, rtol=5e-3, atol=5e-3) and not view.shown()
                assert not view.page.locator("#known").is_visible()


def dotted_learner(folder: Path, **options: Any) -> Learner:
    """Two points per photo, by a linear model."""
    block = DataBlock(blocks=(ImageBlock, PointBlock), get_items=get_image_files, get_y=lambda f: [(12, 5 + int(f.stem[2:]) % 30), (30, 20)],
                      batch_tfms=options.pop("batch_tfms", []), **options)
    dls = block.dataloaders(folder, bs=4, seed=0, device="cpu", num_workers=0)
    with seeded(0):
        net = nn.Sequential(nn.AdaptiveAvgPool2d(6), nn.Flatten(), nn.Linear(108, 4), nn.Tanh())
    learn = Learner(dls, net, seed=0)
    learn.progress = False
    learn.fit(2, 1e-2)
    return learn


@pytest.mark.parametrize("tfms", [{"item_tfms": Resize((20, 28), method="pad")}, {"item_tfms": RandomResizedCrop(32, min_scale=0.5), "batch_tfms": aug_transforms(size=SIZE)}],
                         ids=lambda t: str(t["item_tfms"]))  # fmt: skip
def test_points_lie_where_the_package_says(runtime: None, browser: Any, drawn: Path, tmp_path: Path, tfms: dict) -> None:
    """In pixels of the photo, whatever its shape, as dots over it and in words."""
    learn = dotted_learner(drawn, **tfms)
    items = [*sorted(get_image_files(drawn))[:2], tmp_path / "large.jpg", tmp_path / "tall.png"]
    photo_like((901, 633), 3).save(items[2], quality=95)
    photo_like((60, 300), 4).save(items[3])
    with opened(browser, learn.export(tmp_path / "points.html"), PHONE) as view:
        for item in items:
            wanted, said = learn.predict(item).label, view.predict(item)
            got = torch.tensor([float(v) for v in re.findall(r"-?\d+", said)]).view(2, 2)
            assert (got - wanted).abs().max() <= 1, (item, said, wanted)
            width, height = Image.open(item).size
            assert f"{width} wide and {height} high" in view.text("#more")
            spots = view.page.evaluate("""() => [...document.querySelectorAll('.dot')].map(dot => {
                const [a, b] = [dot.getBoundingClientRect(), $('image').getBoundingClientRect()];
                return [(a.x + a.width / 2 - b.x) / b.width, (a.y + a.height / 2 - b.y) / b.height]; })""")
            assert np.allclose(np.array(spots) * [width, height], wanted, atol=max(1.0, 0.004 * max(width, height))), (item, spots, wanted)
        assert view.text("#status") == f"Prediction: {said}" and not view.shown() and not view.page.locator("#known").is_visible()
        assert not view.complaints and not view.outside()
        assert view.page.evaluate("document.documentElement.scrollWidth") <= PHONE[0]


def test_masks_are_the_package_s(runtime: None, browser: Any, drawn: Path, tmp_path: Path) -> None:
    """A U-Net: at least 99% of the pixels, and a legend with the shares of the classes."""
    codes = ["dark", "middle & <b>", "light"]
    dls = SegmentationDataLoaders.from_label_func(drawn, sorted(get_image_files(drawn)), lambda f: np.asarray(Image.open(f).convert("L")) // 86, codes,
                                                  seed=0, bs=8, item_tfms=Resize(64, method="pad", pad_mode="zeros"), device="cpu", num_workers=0)
    learn = unet_learner(dls, "coursenet", seed=0)
    learn.progress = False
    learn.fit_one_cycle(2, 1e-2)
    items = [*sorted(get_image_files(drawn))[:3], tmp_path / "wide.png"]
    photo_like((200, 90), 5).save(items[3])
    with opened(browser, learn.export(tmp_path / "masks.html"), DESKTOP) as view:
        for item in items:
            said = view.predict(item)
            got = view.page.evaluate("async () => [...await model(await prepared($('file').files[0]))]")
            wanted = learn.get_preds(learn.dls.test_dl([item])).preds[0].argmax(0)
            got = torch.tensor(got).view(64, 64)
            assert (got == wanted).float().mean() >= 0.99, item
            rows = view.page.locator(".row").evaluate_all("rows => rows.map(row => [...row.children].map(part => part.textContent))")
            w, h = Image.open(item).size
            scale = min(64 / w, 64 / h)
            (rows_in, cols_in) = (round(h * scale), round(w * scale))
            top, left = (64 - rows_in) // 2, (64 - cols_in) // 2
            inside = got[top : top + rows_in, left : left + cols_in]
            assert {name: float(share.rstrip("%")) for name, share in rows} == pytest.approx(
                {codes[c]: 100 * (inside == c).float().mean().item() for c in inside.unique()}, abs=0.06)
            assert said.startswith(f"{rows[0][0]} {rows[0][1]}")
            boxes = view.page.evaluate("() => ['.mask', '#image'].map(q => { const b = document.querySelector(q).getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })")
            (x, y, wide, high), (px, py, pw, ph) = boxes  # what was padded lies outside the photo
            assert np.allclose([x + wide * left / 64, y + high * top / 64, wide * cols_in / 64, high * rows_in / 64], [px, py, pw, ph], atol=2)
        assert view.text("#classes") == ", ".join(codes) and not view.complaints and not view.outside()


def test_names_are_text(runtime: None, browser: Any, drawn: Path, tmp_path: Path) -> None:
    names = [HOSTILE, "</script><script>alert(2)</script>", "{{model}} & <!-- é 猫"]
    learn = small_learner(drawn, label=lambda f: names[int(f.stem[2:]) % 3], n_out=3)
    file = learn.export(tmp_path / "a<b>_&amp;-mugs.html")
    item = tmp_path / "<b>photo's &lt;.png"
    item.write_bytes(sorted(get_image_files(drawn))[0].read_bytes())
    with opened(browser, file) as view:
        assert view.text("h1") == view.page.title() == "A<b> &amp; mugs"
        view.predict(item)
        assert set(view.shown()) == set(names) and view.text("#classes") == ", ".join(sorted(names))
        assert view.page.locator("main b, main img").count() == 1 and view.page.locator("script").count() == 2  # the others were unpacked and removed
        assert not view.complaints and not view.outside()


def test_the_page_may_not_ask_for_anything(bench: Opened) -> None:
    ways = {"connect-src": "fetch('https://example.com/x').catch(() => {})", "img-src": "new Image().src = 'https://example.com/x.png'",
            "script-src-elem": "document.head.append(Object.assign(document.createElement('script'), { src: 'https://example.com/x.js' }))",
            "frame-src": "document.body.append(Object.assign(document.createElement('iframe'), { src: 'https://example.com/' }))",
            "form-action": "Object.assign(document.body.appendChild(document.createElement('form')), { action: 'https://example.com/' }).submit()",
            "style-src-attr": "document.body.setAttribute('style', 'color: red')"}  # fmt: skip
    for kind, way in ways.items():
        wait = "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.effectiveDirective), { once: true }); %s; })"
        assert bench.page.evaluate(wait % way) == kind
    assert set(bench.failures) == {"csp"}, bench.failures  # the browser's word for it


def test_what_is_no_image_is_said(browser: Any, simple: Path, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    items = sorted(get_image_files(drawn))[:2]
    with opened(browser, simple) as view:
        for name in ("note.png", "empty.jpg"):
            view.page.locator("#file").set_input_files(tmp_path / name)
            view.until(lambda: name in view.text("#problem"))  # noqa: B023
        says(view.text("#problem"), "empty.jpg", "JPEG", "PNG")
        assert view.page.locator("#result").is_hidden()
        view.page.evaluate("""take(new DataTransfer().files)""")
        says(view.text("#problem"), "not a file")
        view.page.evaluate("""take([new File(["x"], "a.txt"), new File(["x"], "b.txt")])""")
        view.until(lambda: "a.txt" in view.text("#problem"))
        view.page.evaluate("""async ([text, name, kind]) => {  // dropped, then pasted
            const data = new DataTransfer();
            data.items.add(new File([Uint8Array.from(atob(text), c => c.charCodeAt(0))], name, { type: "image/png" }));
            document.dispatchEvent(kind === "drop" ? new DragEvent("drop", { dataTransfer: data }) : new ClipboardEvent("paste", { clipboardData: data }));
        }""", [base64.b64encode(items[0].read_bytes()).decode(), "dropped.png", "drop"])
        view.until(lambda: view.seen("dropped.png"))
        assert view.text("#problem") == "" and view.page.locator("#result").is_visible() and view.shown()
        with view.page.expect_file_chooser() as chooser:  # by keyboard
            view.page.locator("#choose").focus()
            view.page.keyboard.press("Enter")
        chooser.value.set_files(items[1])
        view.until(lambda: view.seen(items[1].name))
        assert view.page.locator("#photograph").is_hidden()  # there is no camera in the back


def test_other_people_can_use_it(browser: Any, simple: Path, drawn: Path, tmp_path: Path) -> None:
    """axe-core finds nothing serious, before and after a prediction and after an error: light on a phone, dark on a screen."""
    if not find_spec("axe_playwright_python"):
        missing("axe-core is not installed: pip install axe-playwright-python", must=CI)
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    item = sorted(get_image_files(drawn))[0]
    (tmp_path / "note.png").write_text("no picture")
    for size, scheme in ((PHONE, "light"), (DESKTOP, "dark")):
        with opened(browser, simple, size, color_scheme=scheme) as view:
            view.page.evaluate(axe)
            for step in ("ready", "predicted", "refused"):
                if step == "predicted":
                    view.predict(item)
                    assert view.page.locator("#photograph").is_visible() == (size == PHONE)
                if step == "refused":
                    view.page.locator("#file").set_input_files(tmp_path / "note.png")
                    view.page.locator("#problem:not(:empty)").wait_for()
                found = view.page.evaluate("axe.run()")
                bad = [f"{v['id']} ({v['impact']}): {v['nodes'][0]['html'][:200]}" for v in found["violations"]]
                assert not bad and len(found["passes"]) > 10, f"{step}, {size}, {scheme}: {bad}"


# ---- the file


def test_the_file(simple: Path, drawn: Path, tmp_path: Path) -> None:
    text = simple.read_text(encoding="utf-8")
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)[1].replace("&#x27;", "'")  # type: ignore[index]
    (script,), (style,) = re.findall(r"<script>(.*?)</script>", text, re.S), re.findall(r"<style>(.*?)</style>", text, re.S)
    for content in (script, style):
        assert f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'" in policy
    assert policy.startswith("default-src 'none'; ") and "unsafe-inline" not in policy and "http" not in policy and "*" not in policy
    spec = json.loads(re.search(r'id="spec">(.*?)</script>', text)[1])  # type: ignore[index]
    assert spec["classes"] == ["a", "b"] and spec["steps"] == [{"name": "crop", "size": [SIZE, SIZE], "pad_mode": "reflection"}]
    assert small_learner(drawn).export(tmp_path / "page.html").read_text(encoding="utf-8") == text, "the same model, another page"
    assert {p.name for p in tmp_path.iterdir()} == {"page.html"}


def test_weights_are_halved(drawn: Path) -> None:
    learn = small_learner(drawn)
    with torch.no_grad():
        learn.model.add_module("many", nn.Linear(2, 2048))
        learn.model.add_module("few", nn.Linear(2048, 2))
        learn.model.few.weight.mul_(1e-7)  # float16 has no digits down there
    pytest.importorskip("onnxscript")
    full, made = onnx_graph(learn), pages.halved(onnx_graph(learn))
    assert made.ByteSize() < full.ByteSize() - 2 * 2048
    compare(graph_runner(made.SerializeToString()), learn, within=5e-3)
    types = {t.name: t.data_type for t in made.graph.initializer}
    assert sorted(n for n in types if n.endswith(".half")) and any(t == 1 for t in types.values())


class Sharpen(ItemTransform):
    pass


class Posterize(BatchTransform):
    pass


class Foggy(ImageBlock):
    pass


def test_what_a_page_cannot_do_is_refused(drawn: Path, tmp_path: Path) -> None:
    cases: list[tuple[Learner, tuple[Any, ...]]] = [
        (small_learner(drawn, item_tfms=[Resize(SIZE), Sharpen()]), ("Sharpen", "Resize", "RandomResizedCrop")),
        (small_learner(drawn, item_tfms=None), ("item_tfms", "Resize(224)")),
        (small_learner(drawn, batch_tfms=Posterize()), ("Posterize", "batch_tfms")),
    ]
    for blocks, names in (((ImageBlock, CategoryBlock, RegressionBlock), ("CategoryBlock", "RegressionBlock")), ((Foggy, CategoryBlock), ("Foggy",))):
        get_y = [lambda f: f.name[0], lambda f: float(f.stem[2:])][: len(blocks) - 1]
        dls = DataBlock(blocks=blocks, n_inp=1, get_items=get_image_files, get_y=get_y, item_tfms=Resize(SIZE)).dataloaders(drawn, bs=4, device="cpu")
        cases.append((Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, dls.n_out))), names))
    for learn, facts in cases:
        with raises(ValueError, *facts):
            learn.export(tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_without_the_runtime_the_error_says_how_to_get_it(drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))

    def no_network(url: str, *_: Any, **__: Any) -> Path:
        raise DownloadError(f"{url} could not be downloaded: no connection")

    monkeypatch.setattr(pages, "fetch_file", no_network)
    learn = small_learner(drawn)
    with raises(DownloadError, f"npm pack onnxruntime-web@{pages.RUNTIME_VERSION}", pages.RUNTIME_URL, str(tmp_path / "home" / "runtime")):
        learn.export(tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_runtime_comes_from_a_mirror_or_by_hand_and_its_hash_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the archive, in the folder of the mirror; and a wrong one."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name in pages.RUNTIME_FILES.values():
            info = tarfile.TarInfo(name)
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    data = made.getvalue()
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(pages, "RUNTIME_SHA256", hashlib.sha256(data).hexdigest())
    by_hand = pages.runtime_place()
    by_hand.parent.mkdir(parents=True)
    by_hand.write_bytes(data)
    wanted = {part: name.encode() for part, name in pages.RUNTIME_FILES.items()}
    assert pages.fetch_runtime() == wanted
    by_hand.unlink()
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / by_hand.name).write_bytes(data)
    (mirror / "SHA256SUMS").write_text(f"{hashlib.sha256(data).hexdigest()}  {by_hand.name}\n")
    monkeypatch.setenv("COURSEKIT_MIRROR", str(mirror))
    assert pages.fetch_runtime() == wanted
    wrong = data + b"\0"
    (mirror / by_hand.name).write_bytes(wrong)
    (mirror / "SHA256SUMS").write_text(f"{hashlib.sha256(wrong).hexdigest()}  {by_hand.name}\n")  # the mirror says it is right
    with raises(DownloadError, "sha256"):
        pages.fetch_runtime()


def test_the_command(runtime: None, tmp_path: Path, drawn: Path) -> None:
    said: list[str] = []
    model = str(vision_learner(small_learner(drawn).dls, "coursenet", lin_ftrs=(), seed=0).export(tmp_path / "model.ck"))
    for name in ("things.html", "things.ck"):
        export_model(model, str(tmp_path / name), say=said.append)
        assert (tmp_path / name).is_file() and name in said[-1] and "MB" in said[-1]
        with raises(ValueError, name, "--overwrite"):
            export_model(model, str(tmp_path / name))
    with raises(ValueError, ".ck", ".onnx", ".html"):
        export_model(model, str(tmp_path / "things.pkl"))
