"""Exported files: other processes, no pickle, damage and malice; addresses; ONNX; the Hugging Face Hub."""

from __future__ import annotations

import base64
import hashlib
import html
import http.server
import importlib.util
import json
import pickle
import pickletools
import pkgutil
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contracts import same
import pytest
import torch
import torch.nn.functional as F
from helpers import rough_photos, run
from safetensors.torch import save
from torch import nn

import coursekit
from coursekit.deploy import hub, onnx as portable
from coursekit.data.block import Block, CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.download import DownloadError
from coursekit.data.items import RandomSplitter, get_image_files
from coursekit.data.transforms import BatchTransform, ItemTransform
from coursekit.deploy.export import Exported, build_network, read_export, write_export
from coursekit.deploy.hub import HubError, from_hub, load_learner, plain, push_to_hub
from coursekit.deploy.registry import FORMER, TYPES, type_name, type_of
from coursekit.interpret.interpretation import ClassificationInterpretation
from coursekit.training.layers import ModelSpec
from coursekit.training.learner import Learner
from coursekit.training.loss_wrappers import WrappedLoss
from coursekit.training.losses import CrossEntropyLossFlat, FocalLoss, Loss
from coursekit.training.weights import read_tensors, tensors_hash
from coursekit.vision.data import ImageBlock, ImageDataLoaders
from coursekit.vision.learner import vision_learner
from coursekit.vision.models import VisionModel
from coursekit.vision.augment import AugmentNormalize, Normalize, ToFloat, aug_transforms, imagenet_stats
from coursekit.vision.resize import Resize

SIZE = 40


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rough_photos(tmp_path_factory.mktemp("photos"), (60, 50))


LABELS: dict[str, tuple[Any, Callable[[Path], Any]]] = {
    "classes": (CategoryBlock, lambda f: f.name[0]),
    "labels": (MultiCategoryBlock, lambda f: [f.name[0], "x"][: 1 + len(f.stem) % 2]),
    "number": (RegressionBlock, lambda f: float(f.stem[2:])),
    "points": (RegressionBlock, lambda f: [float(f.stem[2:]), 3.0, 1.0, 0.5]),
}


def learner(photos: Path, kind: str = "classes", arch: str = "coursenet", **options: Any) -> Learner:
    files = sorted(get_image_files(photos))
    block, label = LABELS[kind]
    dls = ImageDataLoaders.from_lists(photos, files, [label(f) for f in files], y_block=block, valid_pct=0.34, seed=0, bs=4,
                                      item_tfms=Resize(SIZE), batch_tfms=aug_transforms(size=32), device="cpu")  # fmt: skip
    made = vision_learner(dls, arch, pretrained=False, seed=0, lin_ftrs=(), **options)
    made.progress = False
    made.fit(1, 1e-3)
    return made


@pytest.fixture(scope="module")
def classifier(photos: Path) -> Learner:
    return learner(photos)


@pytest.fixture(scope="module")
def model_ck(classifier: Learner, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier.export(tmp_path_factory.mktemp("export") / "model.ck")


# ---- another process


def readable(label: Any) -> Any:
    return label.tolist() if isinstance(label, torch.Tensor) else label


def test_another_process_predicts_the_same(classifier: Learner, photos: Path, model_ck: Path, tmp_path: Path) -> None:
    """A Python process with no path and no environment of the user's predicts the same from the files alone, whatever is predicted."""
    learners = {"classes": classifier, **{kind: learner(photos, kind) for kind in LABELS if kind != "classes"}}
    files = {kind: model_ck if kind == "classes" else learn.export(tmp_path / f"{kind}.ck") for kind, learn in learners.items()}
    items = sorted(get_image_files(photos))[:3]
    program = ("import json, sys; from coursekit.deploy.hub import load_learner\n"
               "n = int(sys.argv[1]); learners = [load_learner(f, device='cpu') for f in sys.argv[2:2 + n]]\n"
               "answers = [[learn.predict(f) for f in sys.argv[2 + n:]] for learn in learners]\n"
               "readable = lambda label: label.tolist() if hasattr(label, 'tolist') else label\n"
               "print(json.dumps([[[readable(a.label), a.probabilities.tolist()] for a in row] for row in answers]))")  # fmt: skip
    command = [sys.executable, "-I", "-c", program, str(len(files)), *map(str, files.values()), *map(str, items)]
    said = json.loads(run(command, cwd=tmp_path).stdout.splitlines()[-1])
    for kind, row in zip(files, said, strict=True):
        for item, (label, numbers) in zip(items, row, strict=True):
            mine = learners[kind].predict(item)
            assert torch.allclose(torch.tensor(numbers), mine.probabilities, atol=1e-4, rtol=1e-5), kind
            if kind in ("classes", "labels"):
                assert label == mine.label
            else:
                assert np.allclose(label, readable(mine.label), atol=1e-4, rtol=1e-5)
    about = read_export(model_ck).about
    assert about["results"].keys() == {"train_loss", "valid_loss"} and all(np.isfinite(list(about["results"].values())))


@pytest.mark.parametrize("kind", ["labels", "number", "points"])
def test_every_kind_of_target_comes_back(photos: Path, tmp_path: Path, kind: str) -> None:
    learn = learner(photos, kind, y_range=(0.0, 12.0) if kind == "number" else None)
    loaded = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    items = sorted(get_image_files(photos))[:4]
    for item in items:
        ours, theirs = learn.predict(item), loaded.predict(item)
        assert torch.allclose(ours.probabilities, theirs.probabilities, atol=1e-5) and same(ours.label, theirs.label, tol=1e-4)
    assert loaded.dls.vocab == learn.dls.vocab and type(loaded.loss_func) is type(learn.loss_func)
    again = loaded.export(tmp_path / "again.ck")  # a loaded learner can be exported
    assert same(read_export(again).weights, read_export(tmp_path / "m.ck").weights)


@pytest.mark.parametrize("own", [None, lambda preds, kind, number: F.cross_entropy(preds[:, :2], kind) + F.mse_loss(preds[:, 2:], number)])
def test_two_targets_come_back(photos: Path, tmp_path: Path, own: Callable | None) -> None:
    block = DataBlock(blocks=(ImageBlock, CategoryBlock, RegressionBlock), n_inp=1, get_items=get_image_files, splitter=RandomSplitter(seed=0),
                      get_y=[lambda f: f.name[0], lambda f: float(f.stem[2:])], item_tfms=Resize(SIZE))  # fmt: skip
    learn = vision_learner(block.dataloaders(photos, bs=4, device="cpu"), "coursenet", pretrained=False, seed=0, lin_ftrs=(), loss_func=own)
    learn.progress = False
    loaded, item = load_learner(learn.export(tmp_path / "m.ck"), device="cpu"), sorted(get_image_files(photos))[0]
    ours, theirs = learn.predict(item), loaded.predict(item)
    assert ours.label == theirs.label and len(ours.label) == 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.probabilities, theirs.probabilities, strict=True))
    if own is None:
        (kinds, numbers) = session_of(learn.export(tmp_path / "m.onnx")).run(None, {"images": portable.prepare_images(learn, [item]).numpy()})
        assert np.allclose(kinds[0], ours.probabilities[0], atol=1e-4) and np.allclose(numbers[0], ours.probabilities[1], atol=1e-4)


def test_another_loss_and_a_published_architecture(photos: Path, tmp_path: Path) -> None:
    learn = learner(photos, arch="regnet_y_400mf", loss_func=FocalLoss(3.0, weight=[0.2, 0.8]))
    before = torch.get_rng_state()
    build_network(learn.model.spec, learn.model.state_dict(), "test")
    assert torch.equal(before, torch.get_rng_state())  # building draws nothing from the global generator
    loaded = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    assert torch.allclose(loaded.get_preds(loaded.dls.test_dl(get_image_files(photos))).preds,
                          learn.get_preds(learn.dls.test_dl(get_image_files(photos))).preds, atol=1e-5)  # fmt: skip
    assert loaded.loss_func.options() == learn.loss_func.options()


@pytest.mark.parametrize(("kind", "own"), [
    ("classes", lambda p, y: F.cross_entropy(p, y)), ("labels", lambda p, y: F.binary_cross_entropy_with_logits(p, y)),
    ("points", lambda p, y: (p - y).abs().mean())])  # fmt: skip
def test_a_loss_function_of_your_own_predicts_and_is_exported(photos: Path, tmp_path: Path, kind: str, own: Callable) -> None:
    learn, usual = learner(photos, kind, loss_func=own), learner(photos, kind)
    learn.model.load_state_dict(usual.model.state_dict())
    loaded = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    item = sorted(get_image_files(photos))[0]
    wanted = usual.predict(item)
    for given in (learn.predict(item), loaded.predict(item)):
        assert same(given.label, wanted.label, tol=1e-4) and torch.allclose(given.probabilities, wanted.probabilities, atol=1e-5)
    batch = learn.dls.one_batch()
    preds = torch.randn(len(batch.y), learn.dls.n_out, generator=torch.Generator().manual_seed(0))
    assert learn.loss_func(preds, batch.y) == own(preds, batch.y)  # the value is the function's own
    if kind == "classes":
        found = ClassificationInterpretation.from_learner(learn)
        assert found.decoded.shape == (len(learn.dls.valid_ds),) and found.losses.isfinite().all()


def test_a_loss_that_cannot_say_what_its_outputs_mean_is_refused(photos: Path, tmp_path: Path) -> None:
    learn = learner(photos, loss_func=WrappedLoss(lambda p, y: F.cross_entropy(p, y)))  # identity, asked for
    with pytest.raises(ValueError, match=r"CategoryBlock \(2 outputs\).*activation=") as e:
        learn.export(tmp_path / "m.ck")
    assert "\n" not in str(e.value) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["pets", "pets.pt2", "pets.pkl", "pets.PTH", "pets-v0.2"])
def test_the_ending_chooses_the_writer(classifier: Learner, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"path='.*{name}'.*\.ck or \.onnx or \.html.*never writes pickles"):
        classifier.export(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_the_home_folder(classifier: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photos: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert classifier.export("~/m.ck") == tmp_path / "m.ck"
    assert load_learner("~/m.ck", device="cpu").dls.vocab == ["a", "b"]
    assert classifier.save("~/w") == tmp_path / "w.safetensors" and classifier.load("~/w") is classifier
    assert {p.name for p in tmp_path.iterdir()} == {"m.ck", "w.safetensors"}


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_a_device_that_is_not_there(model_ck: Path, device: str) -> None:
    with pytest.raises(ValueError, match=f"load_learner: device='{device}' cannot be used here") as e:
        load_learner(model_ck, device=device)
    assert "\n" not in str(e.value)


def test_a_network_of_your_own_says_what_can_be_done(classifier: Learner) -> None:
    own = Learner(classifier.dls, nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2)))
    with pytest.raises(ValueError, match=r"Sequential was built by hand.*vision_learner.*learn\.save.*\.onnx"):
        own.export("model.ck")
    classifier.model.spec.n_out, kept = 5, classifier.model.spec.n_out
    try:
        with pytest.raises(ValueError, match="the network has 5 outputs and the targets need 2"):
            classifier.export("model.ck")
    finally:
        classifier.model.spec.n_out = kept


# ---- no pickle


def pickles_in(data: bytes) -> list[int]:
    """Offsets at which a pickle begins: a protocol mark whose opcodes can be read to the STOP, or the same without a mark at the start."""
    starts = [i for i in range(len(data) - 1) if data[i] == 0x80 and data[i + 1] <= 5] + [0]
    found = []
    for start in starts:
        try:
            list(pickletools.genops(data[start : start + 1_000_000]))
        except Exception:
            continue
        found.append(start)
    return found


def harmless(data: bytes, start: int) -> bool:
    """Bytes of weights may by chance read as opcodes to a STOP; a pickle that does anything names a callable or rebuilds an object."""
    names = {op.name for op, _, _ in pickletools.genops(data[start : start + 1_000_000])}
    return not names & {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"}


def test_no_pickle_in_the_bytes(model_ck: Path, classifier: Learner, tmp_path: Path) -> None:
    data = model_ck.read_bytes()
    assert [start for start in pickles_in(data) if not harmless(data, start)] == []
    # the scanner finds real ones: alone, of every protocol with a mark, inside an export, and what torch.save writes
    for protocol in range(2, 6):
        real = pickle.dumps(nn.Linear(2, 2), protocol=protocol)
        for hidden in (real, data[:5000] + real + data[5000:9000]):
            assert any(not harmless(hidden, start) for start in pickles_in(hidden)), protocol
    torch.save(classifier.model.state_dict(), tmp_path / "weights.pth")
    saved = (tmp_path / "weights.pth").read_bytes()
    assert any(not harmless(saved, start) for start in pickles_in(saved))


# ---- damage


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """An export with everything in its header and few numbers, so that all its bytes can be tried."""
    block = CategoryBlock(["cat", "dög"])
    return write_export(tmp_path / "small.ck", Exported(VisionModel("coursenet", 2), {"w": torch.arange(4.0), "n": torch.tensor(3)},
                                                        [ImageBlock(), block], 1, [Resize(8)], [], CrossEntropyLossFlat(), {"made": "here"}))  # fmt: skip


def test_every_changed_byte_is_refused(small: Path, tmp_path: Path) -> None:
    whole, wanted, spoilt = small.read_bytes(), read_tensors(small), tmp_path / "spoilt.ck"
    for i in range(len(whole)):  # header, the padding after it, and all the tensors
        spoilt.write_bytes(whole[:i] + bytes([whole[i] ^ (0x01, 0x80, 0x20, 0xFF)[i % 4]]) + whole[i + 1 :])
        with pytest.raises(ValueError, match="^load: [^\n]*$"):
            read_tensors(spoilt)
    spoilt.write_bytes(whole)
    assert same(read_tensors(spoilt), wanted)


def test_changed_numbers_and_cut_files_are_refused(model_ck: Path, tmp_path: Path) -> None:
    whole, spoilt = model_ck.read_bytes(), tmp_path / "spoilt.ck"
    start = 8 + int.from_bytes(whole[:8], "little")
    for i in np.random.default_rng(0).integers(start, len(whole), 12):
        spoilt.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        with pytest.raises(ValueError, match="was changed after it was written"):
            load_learner(spoilt)
    for n in (0, 1, 7, 8, 9, start - 1, start, start + 1, len(whole) // 2, len(whole) - 1):
        spoilt.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="safetensors file"):
            load_learner(spoilt)
    spoilt.write_bytes(whole + b"more")
    with pytest.raises(ValueError, match="safetensors file"):
        load_learner(spoilt)


# ---- malice: files with the right hashes


def forged(path: Path, weights: dict[str, torch.Tensor], spec: Any, text: str | None = None) -> Path:
    """A file with true hashes and any spec."""
    text = text or json.dumps({"format": 1, "spec": spec, "sha256": tensors_hash(weights)})
    path.write_bytes(save(weights, {"coursekit": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    return path


def spec_of(file: Path) -> dict[str, Any]:
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["coursekit"])["spec"]


def put(spec: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    spec = json.loads(json.dumps(spec))
    at: Any = spec
    *path, last = where.split(".")
    for key in path:
        at = at[int(key) if key.isdigit() else key]
    at[int(last) if last.isdigit() else last] = value
    return spec


FORGERIES = [
    *(("model.type", name, "not loaded") for name in ("os:system", "coursekit.core:os", "coursekit.data.download:untar_data", "Missing", 3)),
    ("model.type", None, "model holds a dict"),
    ("model.fields.arch", "timm/hf-hub:someone/evil", "cannot build the network"),
    ("model.fields.arch", "resnet152", "far larger than the weights|different network"),
    ("model.fields.arch", ["resnet18"], "needs a str as its arch"),
    ("model.fields.n_out", 10**9, "outputs and the targets need|cannot build the network"),
    ("model.fields.n_out", "2", "needs a int as its n_out"),
    ("model.fields.n_out", -2, "outputs and the targets need|cannot build the network"),
    ("model.fields.lin_ftrs", [10**9], "far larger than the weights"),
    ("model.fields.lin_ftrs", [10**18, 10**18], "cannot build the network"),
    ("model.fields.lin_ftrs", [1] * 100_000, "far larger than the weights"),
    ("model.fields.lin_ftrs", [64], "weights of a different network"),
    ("model.fields.views", [10**9], "views"),
    ("model.fields.ps", "half", "needs a float as its ps"),
    ("model", None, "model holds a NoneType"),
    ("model", [], "model holds a list"),
    ("blocks.1.fields.vocab", 10**9, "needs a"),
    ("blocks.1.fields.vocab", [["a"], ["b"]], "not a list of names"),
    ("blocks.1.fields.vocab", "ab", "not a list of names"),
    ("blocks.1.fields.vocab", ["a", "b", "c"], "2 outputs and the targets need 3"),
    ("blocks.0", {"type": "mse", "fields": {}}, "blocks holds a MSELossFlat"),
    ("blocks", 7, "malformed"),
    ("n_inp", 3, "3 inputs and 2 blocks"),
    ("n_inp", "1", "n_inp holds a str"),
    ("item_tfms.0.fields.size", 10**9, "has size="),
    ("item_tfms.0.fields.size", "big", "needs a"),
    ("item_tfms.0.fields.size", [16_384, 16_384], "has size="),
    ("item_tfms.0.fields.size", 16_384, "has size="),
    ("model.fields.y_range", ["a", "b"], "needs a"),
    ("loss.fields.axis", 7, "malformed"),
    ("loss", {"type": "wrapped", "fields": {}}, "malformed"),
    ("loss", {"type": "wrapped", "fields": {"like": "softmax"}}, "needs a"),
    ("batch_tfms.0.fields", {"augment": 3, "normalize": 4}, "needs a"),
    ("loss", "softmax", "loss holds a str"),
    ("about", ["x"], "about holds a list"),
]


@pytest.mark.parametrize(("where", "value", "said"), FORGERIES, ids=[f"{w}={str(v)[:20]}" for w, v, _ in FORGERIES])
def test_forged_specs_are_refused_in_one_line(model_ck: Path, tmp_path: Path, where: str, value: Any, said: str) -> None:
    weights, _ = read_tensors(model_ck)
    file = forged(tmp_path / "forged.ck", weights, put(spec_of(model_ck), where, value))
    with pytest.raises(ValueError, match=said) as e:
        load_learner(file, device="cpu")
    assert str(e.value).startswith("load") and "\n" not in str(e.value) and len(str(e.value)) < 1000


def test_a_forger_can_write_a_good_file(model_ck: Path, tmp_path: Path, photos: Path, classifier: Learner) -> None:
    """The forgeries above fail for what is wrong with them: the same steps with nothing wrong give a file that loads."""
    weights, _ = read_tensors(model_ck)
    loaded = load_learner(forged(tmp_path / "f.ck", weights, put(spec_of(model_ck), "about.note", "none")), device="cpu")
    item = sorted(get_image_files(photos))[0]
    assert torch.allclose(loaded.predict(item).probabilities, classifier.predict(item).probabilities, atol=1e-6)


@pytest.mark.parametrize("text", ["{" * 200_000, '{"a":' * 200_000, '{"spec": 1', '{"format": 1, "spec": {}, "sha256": 3}', "{}"])
def test_texts_that_are_no_header(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match="is malformed"):
        load_learner(forged(tmp_path / "f.ck", {"w": torch.zeros(2)}, None, text))


def test_gigantic_networks_take_no_memory(model_ck: Path, tmp_path: Path) -> None:
    weights, _ = read_tensors(model_ck)
    spec = put(spec_of(model_ck), "model.fields.lin_ftrs", [60_000, 60_000])
    file = forged(tmp_path / "f.ck", weights, spec)
    program = ("import resource, sys; from coursekit.deploy.hub import load_learner; import coursekit.vision.models\n"
               "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
               "before = peak()\n"
               "try: load_learner(sys.argv[1], device='cpu')\n"
               "except ValueError as e: print(e); print(peak() - before)")  # fmt: skip
    *said, mib = run([sys.executable, "-c", program, str(file)]).stdout.splitlines()
    assert "far larger than the weights in the file" in said[-1]
    assert sys.platform != "linux" or int(mib) < 800, mib  # 60,000 x 60,000 numbers are 14 GB


# ---- names that outlive moves


def subclasses(base: type) -> set[type]:
    below = {c for sub in base.__subclasses__() for c in (sub, *subclasses(sub))}
    return {c for c in below if c.__module__.startswith("coursekit.") and not c.__name__.startswith("_")}


@pytest.mark.parametrize("base", [Block, ItemTransform, BatchTransform, Loss, ModelSpec])
def test_every_exportable_class_has_a_stable_name(base: type) -> None:
    for info in pkgutil.walk_packages(coursekit.__path__, "coursekit."):
        if info.name.split(".")[1] in ("data", "training", "vision", "tabular", "text"):
            importlib.import_module(info.name)
    assert [c for c in subclasses(base) if type_name(c) is None and ".course." not in c.__module__] == []  # a lesson's own are not for files


def test_every_stable_name_is_of_a_class() -> None:
    for name in TYPES:
        assert type_name(type_of(name)) == name
    assert set(FORMER.values()) <= set(TYPES)


def drawn(k: int, h: int, w: int) -> np.ndarray:
    y, x = np.mgrid[:h, :w]
    return np.stack([(x * (3 + k) + y * 5) % 256, (x * y // 7 + 40 * k) % 256, (y * (9 - k) + 30) % 256], -1).astype(np.uint8)


@pytest.mark.parametrize("file", sorted((Path(__file__).parent / "exports").glob("*.ck")), ids=lambda f: f.stem)
def test_files_of_an_earlier_version_predict_the_same(file: Path) -> None:
    learn, wanted = load_learner(file, device="cpu"), json.loads(file.with_suffix(".json").read_text())["predictions"]
    for k, want in enumerate(wanted):
        got = learn.predict(drawn(k, 40 + 8 * k, 56))
        assert np.allclose(got.probabilities, want["probabilities"], atol=1e-5)
        assert same(readable(got.label), want["label"], tol=1e-5)


# ---- addresses


class Stub(http.server.BaseHTTPRequestHandler):
    """A server of files, and the few addresses of the Hub that huggingface_hub asks for."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        length = {"Content-Length": str(len(body))} if getattr(self.server, "says_length", True) else {"Connection": "close"}
        for key, value in {**length, **headers}.items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        s: Any = self.server
        s.log.append((self.command, self.path))
        if "/resolve/" not in self.path:
            data = s.files.get(self.path.lstrip("/"))
            return self.answer(200, data) if data is not None else self.answer(404)
        repo, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repo not in s.repos or (repo in s.private and self.headers.get("Authorization") != "Bearer right"):
            return self.answer(401 if repo in s.private else 404, X_Error_Code="RepoNotFound")
        if revision != "main":
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit = hashlib.sha1(b"".join(s.repos[repo].values())).hexdigest()  # another one after every change
        if name not in s.repos[repo]:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data = s.repos[repo][name]
        return self.answer(200, data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=commit)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        s: Any = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        s.log.append((self.command, self.path))
        if self.headers.get("Authorization") != "Bearer right":
            return self.answer(401, b'{"error": "Invalid token"}')
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            s.repos.setdefault(repo := f"{asked['organization']}/{asked['name']}", {})
            if "private" in (asked.get("visibility"), asked.get("private") and "private"):
                s.private.add(repo)
            host = f"http://127.0.0.1:{s.server_port}"
            return self.json({"url": f"{host}/{repo}", "name": repo, "id": repo})
        if "/preupload/" in self.path:
            files = json.loads(body)["files"]
            return self.json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        if "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    s.repos[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.json({"success": True, "commitOid": "0" * 40, "commitUrl": f"http://127.0.0.1:{s.server_port}/{repo}/commit/0"})
        return self.json({"errors": [], "warnings": []})  # what it says of the page's YAML head

    def json(self, value: Any) -> None:
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")


def hub_is_at(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT does when huggingface_hub is imported."""
    if importlib.util.find_spec("huggingface_hub"):
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    s: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    s.files, s.repos, s.private, s.log = {}, {}, set(), []
    s.url = f"http://127.0.0.1:{s.server_port}"
    threading.Thread(target=s.serve_forever, daemon=True).start()
    hub_is_at(s.url, monkeypatch)
    yield s
    s.shutdown()
    s.server_close()


def test_a_model_from_an_address(server: Any, small: Path, model_ck: Path, tmp_path: Path, classifier: Learner, photos: Path,
                                 monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    data = model_ck.read_bytes()
    server.files = {"a/model.ck": data, "b/model.ck": data[:-4] + b"\0\0\1\0", "c/model.ck": small.read_bytes()}
    item, sha = sorted(get_image_files(photos))[0], hashlib.sha256(data).hexdigest()
    for options in ({}, {"sha256": sha}, {}):
        loaded = load_learner(f"{server.url}/a/model.ck", device="cpu", **options)
        assert torch.allclose(loaded.predict(item).probabilities, classifier.predict(item).probabilities, atol=1e-5)
    assert len(server.log) == 1  # fetched once
    with pytest.raises(ValueError, match="was changed after it was written"):  # another file of that name
        load_learner(f"{server.url}/b/model.ck")
    with pytest.raises(DownloadError, match="its sha256 is .* instead of"):
        load_learner(f"{server.url}/c/model.ck", sha256=sha)
    with pytest.raises(DownloadError, match=r"none\.ck .*404") as e:
        load_learner(f"{server.url}/none.ck")
    assert "\n" not in str(e.value)
    for bad in ("http://example.com/model.ck", "ftp://example.com/model.ck", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="is not an https address"):
            load_learner(bad)
    server.files["a/model.ck"] = small.read_bytes()
    next((tmp_path / "home" / "models").rglob("model.ck")).unlink()
    (tmp_path / "home" / "models").rename(tmp_path / "elsewhere")  # with what was noted of the files there
    with pytest.raises(ValueError, match="weights of a different network"):  # the small file's
        load_learner(f"{server.url}/a/model.ck", device="cpu")
    # a mirror knows its files by name only, so without a hash another model of that name is not taken from it
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    (mirror / "model.ck").write_bytes(data)
    (mirror / "SHA256SUMS").write_text(f"{sha}  model.ck\n")
    monkeypatch.setenv("COURSEKIT_MIRROR", str(mirror))
    n = len(server.log)
    assert load_learner("https://nowhere.invalid/model.ck", sha256=sha, device="cpu").dls.vocab == ["a", "b"]
    with pytest.raises(DownloadError):
        load_learner(f"{server.url}/gone/model.ck")
    assert len(server.log) == n + 1


def test_a_bad_download_is_not_kept(server: Any, model_ck: Path, tmp_path: Path) -> None:
    server.files["a/model.ck"] = b"<!doctype html><title>Sign in</title>"
    address = f"{server.url}/a/model.ck"
    with pytest.raises(DownloadError, match="web page") as e:
        load_learner(address, device="cpu")
    assert address in str(e.value) and "\n" not in str(e.value)
    server.files["a/model.ck"] = model_ck.read_bytes()
    assert load_learner(address, device="cpu").dls.vocab == ["a", "b"]


def test_a_bad_file_of_a_mirror_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    (tmp_path / "mirror").mkdir()
    bad = tmp_path / "mirror" / "model.ck"
    bad.write_bytes(b"no model")
    sha = hashlib.sha256(b"no model").hexdigest()
    (tmp_path / "mirror" / "SHA256SUMS").write_text(f"{sha}  model.ck\n")
    monkeypatch.setenv("COURSEKIT_MIRROR", str(tmp_path / "mirror"))
    with pytest.raises(ValueError, match="safetensors file"):
        load_learner("https://nowhere.invalid/model.ck", sha256=sha)
    assert bad.read_bytes() == b"no model"


@pytest.mark.parametrize("says_length", [True, False])
def test_a_download_may_not_be_endless(server: Any, model_ck: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says_length: bool) -> None:
    monkeypatch.setattr(hub, "MAX_MODEL", 100_000)
    server.files["a/model.ck"] = bytes(1_500_000)
    server.says_length = says_length
    with pytest.raises(DownloadError, match=r"more than the 100,000 (bytes )?allowed"):
        load_learner(f"{server.url}/a/model.ck")
    assert sum(p.stat().st_size for p in (tmp_path / "home").rglob("*") if p.is_file()) < 1000  # nothing of it is kept


# ---- portable graphs


def session_of(file: Path) -> Any:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    return onnxruntime.InferenceSession(file)


def test_the_graph_gives_what_predict_gives(classifier: Learner, photos: Path, tmp_path: Path) -> None:
    session = session_of(classifier.export(tmp_path / "model.onnx"))
    notes = session.get_modelmeta().custom_metadata_map
    assert json.loads(notes["classes"]) == ["a", "b"] and "(batch, 3, 32, 32) bytes" in notes["input"]
    items = sorted(get_image_files(photos))
    for n in (1, 7):
        images = portable.prepare_images(classifier, items[:n])
        assert images.dtype == torch.uint8 and images.shape == (n, 3, 32, 32)
        wanted = torch.stack([classifier.predict(f).probabilities for f in items[:n]])
        assert torch.allclose(torch.tensor(session.run(None, {"images": images.numpy()})[0]), wanted, atol=1e-4)


@pytest.mark.parametrize("kind", ["labels", "points"])
def test_other_targets_as_a_graph(photos: Path, tmp_path: Path, kind: str) -> None:
    learn = learner(photos, kind)
    if kind == "points":  # a network of one's own will do
        learn = Learner(learn.dls, nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(48, 4)))
        learn.progress = False
    source = learn if kind == "points" else load_learner(learn.export(tmp_path / "m.ck"), device="cpu")  # without data it compares on noise
    session = session_of(source.export(tmp_path / "m.onnx"))
    items = sorted(get_image_files(photos))[:3]
    (got,) = session.run(None, {"images": portable.prepare_images(learn, items).numpy()})
    assert torch.allclose(torch.tensor(got), learn.get_preds(learn.dls.test_dl(items)).preds, atol=1e-4)


def test_what_a_graph_does_first_is_what_the_transforms_do() -> None:
    pictures = torch.randint(256, (3, 3, 5, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    normalize, augment = Normalize.from_stats(*imagenet_stats), aug_transforms()[0]
    for t in (ToFloat(), normalize, augment, AugmentNormalize(augment, normalize)):
        for x in (pictures, pictures.float() / 255):
            wanted = t.apply([x], ["image"], rng=torch.Generator(), train=False)[0]
            assert torch.allclose(t.traced(x), wanted, atol=1e-6) and t.traced(x).dtype == wanted.dtype
    assert augment.resizing is None and aug_transforms(size=8)[0].resizing.size == 8


def test_a_graph_that_differs_is_refused(photos: Path) -> None:
    """The tolerance grows with the numbers, and not beyond them: two millionths are rounding, a thousandth is a fault."""
    learn = learner(photos, "number", y_range=(1e5, 5e5))
    graph = portable.ImageGraph(learn)
    assert portable.graph_notes(learn, (1, 3, 32, 32))["output"].startswith("numbers: ")
    portable.compare(lambda x: [graph(x) * (1 + 2e-6)], learn)
    for wrong in (lambda x: [graph(x) * (1 + 1e-3)], lambda x: [graph(x) * torch.nan], lambda x: [graph(x)[0]]):
        with pytest.raises(ValueError, match="Nothing was written"):
            portable.compare(wrong, learn)


def test_what_is_not_installed_is_named(classifier: Learner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = portable.importlib.util.find_spec
    monkeypatch.setattr(portable.importlib.util, "find_spec", lambda name: None if name.startswith("onnx") else real(name))
    with pytest.raises(ImportError, match=r"pip install 'coursekit\[onnx\]'") as e:
        classifier.export(tmp_path / "model.onnx")
    assert "\n" not in str(e.value) and list(tmp_path.iterdir()) == []
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(ImportError, match="pip install huggingface_hub"):
        from_hub("me/pets")


# ---- the Hub


def test_to_the_hub_and_back(server: Any, classifier: Learner, model_ck: Path, photos: Path) -> None:
    pytest.importorskip("huggingface_hub")
    item = sorted(get_image_files(photos))[0]
    for what, options in ((classifier, {"private": True}), (model_ck, {"filename": "small.ck"})):
        assert push_to_hub(what, "me/pets", token="right", **options) == f"{server.url}/me/pets"
        name = options.get("filename", "model.ck")
        loaded = from_hub("me/pets", filename=name, token="right", device="cpu")
        assert torch.allclose(loaded.predict(item).probabilities, classifier.predict(item).probabilities, atol=1e-5)
    card = server.repos["me/pets"]["README.md"].decode()
    for fact in ("library_name: coursekit", "| network | coursenet |", "| classes | a, b |", "valid\\_loss", "hf://me/pets"):
        assert fact in card, card
    assert server.repos["me/pets"].keys() == {"model.ck", "small.ck", "README.md"} and server.private == {"me/pets"}


def test_an_address_of_the_hub_gives_the_newest_model(server: Any, model_ck: Path, photos: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    pytest.importorskip("huggingface_hub")
    newer = learner(photos, "labels").export(tmp_path / "newer.ck")
    server.repos = {"me/pets": {"model.ck": model_ck.read_bytes()}}
    assert load_learner("hf://me/pets", device="cpu").dls.vocab == ["a", "b"]
    server.repos["me/pets"]["model.ck"] = newer.read_bytes()
    for again in (lambda: load_learner("hf://me/pets", device="cpu"), lambda: from_hub("me/pets", device="cpu")):
        assert again().dls.vocab == ["a", "b", "x"]
    sha = hashlib.sha256(newer.read_bytes()).hexdigest()
    assert load_learner("hf://me/pets@main/model.ck", sha256=sha, device="cpu").dls.vocab == ["a", "b", "x"]
    with pytest.raises(ValueError, match="is not the expected file"):
        load_learner("hf://me/pets", sha256="0" * 64)
    server.repos["me/pets"]["model.ck"] = b"no model"
    with pytest.raises(ValueError, match=r"safetensors file.*hf://me/pets"):
        load_learner("hf://me/pets")


def test_a_page_of_the_owners_is_left_alone(server: Any, model_ck: Path) -> None:
    pytest.importorskip("huggingface_hub")
    server.repos = {"me/pets": {"README.md": b"# My pets"}}
    push_to_hub(model_ck, "me/pets", token="right")
    assert server.repos["me/pets"]["README.md"] == b"# My pets" and server.repos["me/pets"]["model.ck"] == model_ck.read_bytes()


def test_faults_of_this_machine_are_not_the_networks(server: Any, model_ck: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def fault(error: Exception) -> None:
        def fail(*args: Any, **kwargs: Any) -> None:
            raise error

        monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
        from_hub("me/pets")

    with pytest.raises(ZeroDivisionError):
        fault(ZeroDivisionError())
    with pytest.raises(HubError, match=r"^from_hub: me/pets: \[Errno 28\] No space left on device\.$"):
        fault(OSError(28, "No space left on device"))
    with pytest.raises(HubError, match="Check the connection"):
        fault(ConnectionError())
    monkeypatch.setattr("coursekit.deploy.hub.model_card", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        push_to_hub(model_ck, "me/pets", token="right")


@pytest.mark.parametrize("text", ["Bob's", 'say "hi"', "a & b", "<img>", "*x* _y_ [z](u) #1 `c` |d| ~e~ \\ !f -g +h {i}"])
def test_names_on_the_page_show_as_typed(text: str) -> None:
    shown = html.unescape(re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", plain(text)))  # as CommonMark reads backslashes and entities
    assert shown == text
    assert not re.search(r"&(?!amp;|lt;|gt;)", plain(text)) and "<" not in plain(text)


def test_errors_of_the_hub_are_one_line(server: Any, model_ck: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("huggingface_hub")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between huggingface_hub's attempts
    server.repos = {"me/pets": {"README.md": b"x", "model.ck": b"\x80\x04N."}, "me/secret": {}}
    server.private = {"me/secret"}
    (tmp_path / "bad.ck").write_bytes(b"\x80\x04N.")
    at = {"token": "wrong"}
    with pytest.raises(ValueError, match="pickles"):
        from_hub("me/pets", **at)
    with pytest.raises(ValueError, match="pickles"):
        push_to_hub(tmp_path / "bad.ck", "me/pets", **at)
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("me/pets: .*401", lambda: push_to_hub(model_ck, "me/pets", **at)),
        ("me/none.*Check the names", lambda: from_hub("me/none", **at)),
        ("me/secret.*token", lambda: from_hub("me/secret", **at)),
        ("Check the names.*file", lambda: from_hub("me/pets", filename="none.ck", **at)),
        ("Check the names.*revision", lambda: from_hub("me/pets", revision="v9", **at)),
        ("me/pets/more.*Check the names", lambda: from_hub("me/pets/more", **at)),
    ]
    offline: list[tuple[str, Callable[[], Any]]] = [
        ("Check the connection", lambda: push_to_hub(model_ck, "me/pets", **at)),
        ("Check the connection", lambda: from_hub("me/elsewhere", token=False)),
    ]
    for said, call in [*cases, *offline]:
        if (said, call) == offline[0]:
            hub_is_at("http://127.0.0.1:9", monkeypatch)
        with pytest.raises(HubError, match=said) as e:
            call()
        assert "\n" not in str(e.value) and len(str(e.value)) < 500
