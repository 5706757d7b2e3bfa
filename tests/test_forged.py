"""Model files that somebody forged, or whose weights are not finite: one readable error, before anything large is built or computed."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import raises, run, says
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch import nn

from coursekit.collab import CollabDataLoaders, collab_learner
from coursekit.data.block import CategoryBlock
from coursekit.deploy.export import MAX_TFMS, Exported, write_export
from coursekit.deploy.hub import load_learner
from coursekit.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
from coursekit.text.all import AWD_LSTM, SubwordTokenizer, TextDataLoaders, language_model_learner, text_classifier_learner
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.losses import CrossEntropyLossFlat
from coursekit.training.weights import read_tensors, tensors_hash, write_tensors
from coursekit.vision.block import ImageBlock
from coursekit.vision.models import VisionModel
from coursekit.vision.resize import Resize

SIZES = {"emb_sz": 8, "n_hid": 8, "n_layers": 1}
TEXTS = pd.DataFrame({"text": [f"the cat sat on the mat and ran {i} times" for i in range(30)], "label": ["a", "b"] * 15})


def tables() -> Learner:
    r = np.random.default_rng(0)
    df = pd.DataFrame({"job": r.choice(list("abc"), 60), "age": r.normal(40, 9, 60).round(1), "y": r.choice(["lo", "hi"], 60)})
    df.loc[3, "age"] = np.nan
    dls = TabularDataLoaders.from_df(df, y_names="y", cat_names=["job"], cont_names=["age"], procs=[Categorify, FillMissing, Normalize], bs=16, seed=1,
                                     device="cpu")
    return tabular_learner(dls, layers=[8])


def ratings() -> Learner:
    df = pd.DataFrame({"user": np.arange(60) % 8, "title": list("pqrst") * 12, "rating": np.arange(60) % 5 + 1}).drop_duplicates(["user", "title"])
    return collab_learner(CollabDataLoaders.from_df(df, seed=1, bs=8, device="cpu"), n_factors=4, y_range=(0, 5.5))


def texts(*, is_lm: bool, tok: Any = None) -> Any:
    dls = TextDataLoaders.from_df(TEXTS, is_lm=is_lm, tok=tok, seed=1, bs=4, min_freq=1, text_col="text", label_col="label", device="cpu", **{"seq_len": 8} if is_lm else {})
    if is_lm:
        return language_model_learner(dls, AWD_LSTM, config=SIZES, seed=0)
    return text_classifier_learner(dls, AWD_LSTM, config=SIZES, lin_ftrs=[6], seed=0)


KINDS: dict[str, tuple[Callable[[], Any], Any]] = {  # learner, and an item to predict
    "table": (tables, {"job": "a", "age": None}), "ratings": (ratings, (1, "p")), "words": (lambda: texts(is_lm=True), "the cat"),
    "pieces": (lambda: texts(is_lm=False, tok=SubwordTokenizer(vocab_sz=300)), "the cat")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


@functools.cache
def exported(folder: Path, kind: str) -> Path:
    learn = KINDS[kind][0]()
    learn.progress = False
    return learn.export(folder / f"{kind}.ck")


def forged(like: Path, target: Path, *, spec: Any = None, header: dict | None = None, weights: dict | None = None) -> Path:
    """The same file with another spec, other entries of the header or other weights, and with true hashes."""
    tensors, found = read_tensors(like)
    tensors = tensors | (weights or {})
    text = json.dumps(found | ({} if spec is None else {"spec": spec}) | (header or {}) | {"sha256": tensors_hash(tensors)})
    target.write_bytes(save(tensors, {"coursekit": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    return target


def spec_of(file: Path) -> Any:
    return read_tensors(file)[1]["spec"]


def refusal(call: Callable[[], Any]) -> str:
    """The message of a ValueError, which is one line; '' if there is none. Any other error is not caught."""
    try:
        call()
    except ValueError as e:
        said = str(e)
    else:
        return ""
    return said if "\n" not in said and 0 < len(said) < 1500 else pytest.fail(f"not a line: {said!r}")


# ---- any header


def paths(x: Any, at: tuple = ()) -> Iterator[tuple]:
    """The places in nested values; of a long list, the first dozen."""
    yield at
    for key, value in list(x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, list) else ())[:12]:
        yield from paths(value, (*at, key))


ODD = [None, True, -1, 0, 3, 10**9, 2**70, 1e999, float("nan"), 0.5, "", "é", [], [None], [[]], ["a", "a"], [1, 2], [0] * 100, {}, {"a": 1},
       *({"type": name, "fields": fields} for name, fields in [
           ("mse", {}), ("resize", {"size": 8}), ("category", {"vocab": ["a", "b"]}), ("char_tokenizer", {}), ("image", {}), ("mask", {}),
           ("wrapped", {"activation": "sigmoid", "decode": "half"}), ("table", {}), ("noise", {}), ("next_tokens", {"vocab": ["a"]})])]


@st.composite
def changes(draw: st.DrawFn, spec: Any) -> Any:
    """The spec with one to three values of it dropped, repeated, copied to other places, or replaced by odd ones."""
    spec = json.loads(json.dumps(spec))
    for _ in range(draw(st.integers(1, 3))):
        *way, last = draw(st.sampled_from([p for p in paths(spec) if p]))
        at = functools.reduce(lambda x, key: x[key], way, spec)
        how = draw(st.sampled_from(["odd", "odd", "drop", "repeat", "copy"]))
        if how == "drop":
            del at[last]
        elif how == "repeat" and isinstance(at[last], list):
            at[last] = at[last] * draw(st.sampled_from([2, 50]))
        else:
            other = functools.reduce(lambda x, key: x[key], draw(st.sampled_from(list(paths(spec)))), spec)
            at[last] = json.loads(json.dumps(other)) if how == "copy" else copy.deepcopy(draw(st.sampled_from(ODD)))
        if not any(paths(spec)):
            break
    return spec


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_a_spec_says_is_one_readable_error(folder: Path, kind: str, data: st.DataObject) -> None:
    """On loading, or, where a file fits together, on predicting."""
    file = exported(folder, kind)
    spec = data.draw(changes(spec_of(file)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refusal(lambda: load_learner(forged(file, folder / f"forged_{kind}.ck", spec=spec), device="cpu").predict(KINDS[kind][1]))


@pytest.mark.parametrize("kind", ["words", "pieces"])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_an_encoder_file_says_is_one_readable_error(folder: Path, kind: str, data: st.DataObject) -> None:
    learn = made(kind)
    file = learn.save_encoder(folder / f"encoder_{kind}")
    tensors, header = read_tensors(file)
    about = data.draw(changes({k: header[k] for k in ("arch", "config", "input")}))
    drop = data.draw(st.sampled_from([None, *tensors]))
    text = json.dumps({"format": "encoder", **about, "sha256": tensors_hash({k: v for k, v in tensors.items() if k != drop})})
    forgery = folder / f"forged_{kind}.safetensors"
    forgery.write_bytes(save({k: v for k, v in tensors.items() if k != drop}, {"coursekit": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}))
    again = text_classifier_learner if kind == "pieces" else language_model_learner
    refusal(lambda: learn.load_encoder(forgery))
    refusal(lambda: again(learn.dls, pretrained=forgery))


@functools.cache
def made(kind: str) -> Any:
    learn = KINDS[kind][0]()
    learn.progress = False
    return learn


@pytest.mark.parametrize("change", [{"meaning": {"inputs": [3], "targets": 1}}, {"meaning": [1]}, {"meaning": {"targets": [{"vocab": 3}]}}])
@pytest.mark.parametrize("extra", [{}, {"opt.x": torch.zeros(1)}, {"opt.99.exp_avg": torch.zeros(1)}, {"opt.0.exp_avg": torch.zeros(7, 7)}])
def test_a_forged_file_of_save(tmp_path: Path, change: dict, extra: dict) -> None:
    learn = made("table")
    tensors, header = read_tensors(learn.save(tmp_path / "m"))
    write_tensors(tmp_path / "f.safetensors", tensors | extra, header | change)
    said = refusal(lambda: learn.load(tmp_path / "f"))
    assert said.startswith("Learner.load: ") if extra else True


# ---- limits, before anything is built

RESIZE = {"type": "resize", "fields": {"size": 4000, "method": "squish", "pad_mode": "reflection"}}
LOSS: Any = {"type": "mse", "fields": {}}
DEEP: Any = functools.reduce(lambda loss, _: {"type": "wrapped", "fields": {"like": loss}}, range(200), LOSS)


@pytest.mark.parametrize(("change", "fact"), [
    ({"item_tfms": [RESIZE] * 6000}, "256"), ({"item_tfms": [RESIZE] * (MAX_TFMS + 1)}, MAX_TFMS + 1), ({"item_tfms": [RESIZE] * 2}, "16,777,216"),
    ({"loss": {"type": "multi_target", "fields": {"losses": [LOSS] * 100_000, "sizes": []}}}, "256"), ({"loss": DEEP}, "24"),
    ({"about": {"x": [[]] * 10_000_000}}, "33,555,432"),
    ({"about": {"x": [[]] * 2_000_000}}, "2,000,000 lists"), ({"about": {"x": float("nan")}}, "nan"), ({"n_inp": 2}, "2 inputs"),
    ({"item_tfms": [{"type": "resize", "fields": {"size": 10**18}}]}, "16,384")])
def test_limits_hold_before_anything_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict, fact: Any) -> None:
    small = write_export(tmp_path / "small.ck", Exported(VisionModel("coursenet", 2), {"w": torch.zeros(2)}, [ImageBlock(), CategoryBlock(["a", "b"])], 1,
                                                         [Resize(8)], [], CrossEntropyLossFlat(), {}))
    file = forged(small, tmp_path / "f.ck", spec=spec_of(small) | change)
    monkeypatch.setattr(VisionModel, "build", lambda self: pytest.fail("the network was built"))
    start = time.process_time()
    with raises(ValueError, fact):
        load_learner(file, device="cpu")
    assert time.process_time() - start < 20  # a minute and more without limits; milliseconds with them


@pytest.mark.parametrize("change", [{"format": 2}, {"version": 2}, {"format": 10**400}])
def test_a_newer_file_says_so(folder: Path, tmp_path: Path, change: dict) -> None:
    with raises(ValueError, "written by a newer coursekit", "pip install -U coursekit"):
        load_learner(forged(exported(folder, "table"), tmp_path / "f.ck", spec={"unknown": []}, header=change), device="cpu")


def test_a_file_of_many_tensors(folder: Path, tmp_path: Path) -> None:
    file = forged(exported(folder, "table"), tmp_path / "f.ck", weights={f"x{i}": torch.zeros(0) for i in range(50_001)})
    with raises(ValueError, "50,000"):
        load_learner(file, device="cpu")


@pytest.mark.parametrize("change", [{"continuing_subword_prefix": "é"}, {"dropout": 2.0}, {"merges": [["a"]]}, {"vocab": {"a": -1}}, {"vocab": {"a": 2**32 - 1}}, {"type": "Unigram"},
                                    {"end_of_word_suffix": "</w>"}, {"merges": [["a", "é"]]}, {"unknown": 1}])
def test_a_forged_tokenizer_never_reaches_the_library(folder: Path, tmp_path: Path, change: dict) -> None:
    spec = spec_of(exported(folder, "pieces"))
    fields = spec["blocks"][0]["fields"]["tokenizer"]["fields"]["tok"]["fields"]
    model = json.loads(fields["model"])
    fields["model"] = json.dumps(model | {"model": model["model"] | change})
    with raises(ValueError, "SubwordTokenizer"):
        load_learner(forged(exported(folder, "pieces"), tmp_path / "f.ck", spec=spec), device="cpu")


def test_tokens_that_fill_the_memory(folder: Path, tmp_path: Path) -> None:
    """A text repeats them, so that a megabyte becomes gigabytes."""
    spec = spec_of(exported(folder, "words"))
    spec["blocks"][0]["fields"]["vocab"][-1] = "x" * 1_001
    with raises(ValueError, "more than 1,000 characters"):
        load_learner(forged(exported(folder, "words"), tmp_path / "f.ck", spec=spec), device="cpu")


# ---- weights that are not finite


def spoilt(value: float) -> Learner:
    learn = tables()
    learn.progress = False
    with torch.no_grad():
        next(learn.model.parameters()).view(-1)[0] = value
    return learn


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(tmp_path: Path, value: float) -> None:
    learn = spoilt(value)
    for write in (lambda: learn.save(tmp_path / "m"), lambda: learn.export(tmp_path / "m.ck")):
        with raises(ValueError, "nan or infinity", "nothing was written"):
            write()
    lm = texts(is_lm=True)
    lm.model.bias.data[0] = value
    with raises(ValueError, "bias"):
        lm.save_encoder(tmp_path / "e")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_and_a_page_of_weights_that_are_not_finite(tmp_path: Path) -> None:
    from coursekit.deploy.onnx import onnx_graph

    pytest.importorskip("onnxruntime")
    learn = spoilt(float("nan"))
    with raises(ValueError, "nan or infinity"):
        onnx_graph(learn)  # which both the graph and the page are made of


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_weights_that_are_not_finite_are_not_loaded(folder: Path, tmp_path: Path, value: float) -> None:
    tensors, _ = read_tensors(exported(folder, "table"))
    name = next(k for k, t in tensors.items() if t.is_floating_point())
    bad = tensors[name].clone().index_fill_(0, torch.tensor([0]), value)
    with raises(ValueError, name, "nan or infinite"):
        load_learner(forged(exported(folder, "table"), tmp_path / "f.ck", weights={name: bad}), device="cpu")
    learn = tables()
    before = [t.clone() for t in learn.model.state_dict().values()]
    saved, header = read_tensors(learn.save(tmp_path / "m"))
    write_tensors(tmp_path / "n.safetensors", saved | {f"model.{name}": bad}, header)
    with raises(ValueError, name, "nan or infinite"):
        learn.load(tmp_path / "n")
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.state_dict().values()))


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool, torch.float8_e4m3fn])
def test_weights_of_another_kind_of_number(folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors, _ = read_tensors(exported(folder, "table"))
    file = forged(exported(folder, "table"), tmp_path / "f.ck", weights={k: t.to(dtype) for k, t in tensors.items()})
    with raises(ValueError, str(dtype), "different network"):
        load_learner(file, device="cpu")


def test_infinity_that_is_meant(tmp_path: Path) -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(1, 1)
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    learn = synthetic_learner(model=Masked())
    learn.load(learn.save(tmp_path / "m"))
    learn.model.mask.fill_(float("nan"))
    with raises(ValueError, "mask"):
        learn.save(tmp_path / "m")


def test_the_command_says_it_and_fails(folder: Path, tmp_path: Path) -> None:
    import subprocess

    from coursekit.vision.augment import ToFloat

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = VisionModel("coursenet", 2, lin_ftrs=()).build()
    weights = dict(model.state_dict())
    weights[next(iter(weights))] = weights[next(iter(weights))] * float("nan")
    write_export(tmp_path / "m.ck", Exported(model.spec, weights, [ImageBlock(), CategoryBlock(["airplane", "bird"])], 1, [Resize(32)], [ToFloat()],
                                             CrossEntropyLossFlat(), {}))
    done = subprocess.run([sys.executable, "-m", "coursekit", "predict", str(tmp_path / "m.ck"), "x.png"], capture_output=True, text=True, env=os.environ, check=False)
    assert done.returncode and "airplane" not in done.stdout
    says(done.stdout + done.stderr, "nan or infinite")
    assert "Traceback" not in done.stderr


def test_large_fields_take_no_memory(folder: Path, tmp_path: Path) -> None:
    spec = spec_of(exported(folder, "words"))
    spec["model"]["fields"]["config"] |= {"emb_sz": 60_000, "n_hid": 60_000}
    file = forged(exported(folder, "words"), tmp_path / "f.ck", spec=spec)
    program = ("import resource, sys; from coursekit.deploy.hub import load_learner; import coursekit.text.all\n"
               "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
               "before = peak()\n"
               "try: load_learner(sys.argv[1], device='cpu')\n"
               "except ValueError as e: print(e); print(peak() - before)")  # fmt: skip
    *said, mib = run([sys.executable, "-c", program, str(file)]).stdout.splitlines()
    assert "far larger than the weights in the file" in said[-1]
    assert sys.platform != "linux" or int(mib) < 400, mib
