"""Every subject that the package defines keeps the promises of its kind; subjects are found, so none is left out.

A class that can be made without arguments is picked up by itself. One that needs arguments is made in a table below,
and the test that asks for it fails until it is there.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contracts import (
    StopAfter,
    all_subclasses,
    bad_signature,
    check_batch_transform,
    check_block,
    check_callback,
    check_export,
    check_item_transform,
    check_loss,
    check_metric,
    check_model_spec,
    check_schedule,
)
from helpers import module_name, modules, raises
from PIL import Image, ImageDraw
from torch import nn

import coursekit.training.count_metrics
import coursekit.training.metrics
import coursekit.training.schedules
from coursekit.training import losses
from coursekit.training.callback import EVENTS, Callback
from coursekit.collab import CollabModel, PairBlock
from coursekit.data.block import Block, CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.transforms import BatchTransform, ItemTransform
from coursekit.data.items import IndexSplitter
from coursekit.text.stream import NextTokens
from coursekit.training.layers import ModelSpec
from coursekit.training.loss_wrappers import as_loss
from coursekit.training.losses import Loss
from coursekit.training.metrics import AverageMetric, Metric
from coursekit.training.schedules import SchedCos, SchedExp, Schedule, SchedLin, SchedNo, combine_scheds
from coursekit.training.learner import synthetic_learner
from coursekit.vision.gan import GANLearner, GANModel, NoiseBlock
from coursekit.vision.point_head import PointModel
from coursekit.vision.generative import FeatureLoss, ImageUNetModel
from coursekit.vision.images import to_uint8_tensor

RNG = torch.Generator().manual_seed(3)
NAMES = [module_name(p) for p in modules() if p.stem not in ("__init__", "all")]
MODULES = [importlib.import_module(f"coursekit.{name}") for name in NAMES]


def made(base: type, table: dict[str, list[Callable]], abstract: tuple[str, ...] = ()) -> list:
    """A (name, maker) pair for each subject: from the table, or the class itself where it needs no arguments."""
    found = {c.__name__: c for c in all_subclasses(base) if ".course." not in c.__module__}  # a lesson's own need not go into files
    unknown = (set(table) | set(abstract)) - set(found)
    assert found and not unknown, f"{base.__name__}: {unknown} of the table are no subclasses"
    pairs = [(name, make) for name, cls in found.items() if name not in abstract for make in table.get(name, [cls])]
    return [pytest.param(name, make, id=f"{name}-{i}") for i, (name, make) in enumerate(pairs)]


def make_or_explain(name: str, make: Callable):
    try:
        return make()
    except TypeError as e:
        pytest.fail(f"{name} cannot be made without arguments: add it to this file's table of its kind ({e})")


# ---------------------------------------------------------------- schedules
SCHEDULES = {
    "SchedNo": (SchedNo(1.5), (1.5, 1.5, 1.5)),
    "SchedLin": (SchedLin(2.0, 1.0), (2.0, 2.0, 1.0)),
    "SchedCos": (SchedCos(0.0, 1.0), (0.0, 1.0, 1.0)),
    "SchedExp": (SchedExp(1e-7, 10.0), (1e-7, 10.0, 10.0)),
    "CombinedSched": (combine_scheds([0.25, 0.75], [SchedLin(0.0, 1.0), SchedCos(1.0, 0.5)]), (0.0, 1.0, 0.5)),
    "combined_cos": (coursekit.training.schedules.combined_cos(0.25, 1.0, 2.0, 0.5), (1.0, 2.0, 0.5)),
    "combine_scheds": (combine_scheds([0.5, 0.5], [SchedNo(1.0), SchedLin(1.0, 0.0)]), (1.0, 1.0, 0.0)),
    "one_cycle": (coursekit.training.schedules.one_cycle(1e-3)[0], (4e-5, 1e-3, 1e-8)),
    "one_cycle-momentum": (coursekit.training.schedules.one_cycle(1e-3)[1], (0.95, 0.95, 0.95)),
}


def test_schedules_are_all_there():
    found = {
        name
        for name, thing in vars(coursekit.training.schedules).items()
        if getattr(thing, "__module__", "") == "coursekit.training.schedules" and not name.startswith("_")
        if (isinstance(thing, type) and issubclass(thing, Schedule) and thing is not Schedule)
        or (inspect.isfunction(thing) and "Sched" in str(inspect.signature(thing).return_annotation))
    }
    assert len(found) >= 8 and found == {name.split("-")[0] for name in SCHEDULES}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(name):
    schedule, (start, peak, end) = SCHEDULES[name]
    check_schedule(schedule, start=start, peak=peak, end=end)


# ---------------------------------------------------------------- losses
classes = torch.randn(8, 5, generator=RNG), torch.randint(5, (8,), generator=RNG)
pixels = torch.randn(4, 3, 5, 6, generator=RNG), torch.randint(3, (4, 5, 6), generator=RNG)
tags = torch.randn(8, 4, generator=RNG), torch.randint(2, (8, 4), generator=RNG).float()
floats = torch.randn(8, 1, generator=RNG), torch.randn(8, generator=RNG)
photos = torch.rand(4, 3, 64, 64, generator=RNG), torch.rand(4, 3, 64, 64, generator=RNG)
coords = torch.randn(8, 6, generator=RNG), torch.randn(8, 3, 2, generator=RNG)
LOSSES = {
    "CrossEntropyLossFlat": [
        (losses.CrossEntropyLossFlat(), *classes),
        (losses.CrossEntropyLossFlat(axis=1, label_smoothing=0.1), *pixels),
    ],
    "LabelSmoothingCrossEntropy": [(losses.LabelSmoothingCrossEntropy(0.2), *classes)],
    "FocalLoss": [(losses.FocalLoss(1.5), *classes), (losses.FocalLoss(axis=1), *pixels)],
    "DiceLoss": [(losses.DiceLoss(), *pixels)],
    "BCEWithLogitsLossFlat": [(losses.BCEWithLogitsLossFlat(0.3), *tags)],
    "MSELossFlat": [(losses.MSELossFlat(), *floats), (losses.MSELossFlat(), *coords)],
    "L1LossFlat": [(losses.L1LossFlat(), *floats), (losses.L1LossFlat(), *coords)],
    "FeatureLoss": [(FeatureLoss("coursenet", [1, 0.5]), *photos), (FeatureLoss(weights=[0, 2], pixel=0.1), *photos)],
    "WrappedLoss": [
        (as_loss(lambda p, t: (p - t.view_as(p)).abs().mean()), *floats),
        (as_loss(nn.HuberLoss()), floats[0], floats[1][:, None]),
        (as_loss(nn.BCEWithLogitsLoss(weight=torch.ones(4))), *tags),
    ],
}  # fmt: skip
LOSS_CASES = [pytest.param(*case, id=f"{name}-{i}") for name, cases in LOSSES.items() for i, case in enumerate(cases)]


def test_losses_are_all_there():
    assert set(LOSSES) == {c.__name__ for c in all_subclasses(Loss)} - {"MultiTargetLoss"}  # takes several targets


@pytest.mark.parametrize(("loss", "preds", "targs"), LOSS_CASES)
def test_loss(loss, preds, targs):
    check_loss(loss, preds, targs, wrapped=type(loss).__name__ == "WrappedLoss")


@pytest.mark.parametrize("f", [nn.CrossEntropyLoss(), F.cross_entropy, nn.CrossEntropyLoss(label_smoothing=0.1)])
def test_wrapped_class_losses(f):
    check_loss(as_loss(f), *classes)


# ---------------------------------------------------------------- metrics
yes_no = torch.randn(12, 2, generator=RNG), torch.tensor([0, 1] * 6)
masks = torch.randn(6, 2, 4, 4, generator=RNG), torch.randint(2, (6, 4, 4), generator=RNG)
twelve = torch.randn(12, 5, generator=RNG), torch.tensor([0, 1, 2, 3, 4] * 2 + [0, 1])
multi = torch.randn(12, 4, generator=RNG), torch.randint(2, (12, 4), generator=RNG).float()
numbers = torch.randn(12, 1, generator=RNG), torch.randn(12, generator=RNG)
M, C = coursekit.training.metrics, coursekit.training.count_metrics
FUNCTIONS = {n: f for n, f in vars(M).items() if inspect.isfunction(f) and hasattr(f, "higher_is_better")}
DATA = {
    "accuracy_multi": [multi], "mse": [numbers], "rmse": [numbers], "mae": [numbers],
    "top_k_accuracy": [twelve], "accuracy": [twelve, yes_no], "error_rate": [twelve],
    "Dice": [masks], "JaccardCoeff": [masks], "DiceMulti": [masks], "JaccardCoeffMulti": [masks], "PixelAccuracy": [masks], "Perplexity": [twelve], "RocAuc": [twelve, multi, yes_no, (yes_no[0][:, :1], yes_no[1])],
}  # fmt: skip
MAKERS = {
    "FBeta": [lambda: C.FBeta(2.0), lambda: C.FBeta(0.5, average="macro")],
    "FBetaMulti": [lambda: C.FBetaMulti(2.0), lambda: C.FBetaMulti(0.5, thresh=0.3)],
    **{n: [lambda cls=getattr(C, n), a=a: cls(average=a) for a in ("binary", "macro", "micro", "weighted")]
       for n in ("Precision", "Recall", "F1Score", "Dice", "JaccardCoeff")},
    "RocAuc": [M.RocAuc, lambda: M.RocAuc("weighted")],
    "AverageMetric": [lambda f=f: AverageMetric(f) for f in FUNCTIONS.values()],
}  # fmt: skip
METRIC_CASES = made(Metric, MAKERS, abstract=("CountMetric",))


def test_metric_functions_are_all_there():
    assert {"accuracy", "error_rate", "mse", "rmse"} <= set(FUNCTIONS)
    assert all(isinstance(f.higher_is_better, bool) for f in FUNCTIONS.values())


@pytest.mark.parametrize(("name", "make"), METRIC_CASES)
def test_metric(name, make):
    metric = make_or_explain(name, make)
    for preds, targs in DATA.get(metric.name, DATA.get(name, [yes_no])):
        check_metric(make, preds, targs)


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("cls", [C.Precision, C.Recall, C.F1Score])
def test_counting_metrics_of_several_classes_and_labels(cls, average):
    check_metric(lambda: cls(average=average), *twelve)
    check_metric(lambda: cls(average=average), *multi)


# ---------------------------------------------------------------- callbacks
def lr_finder():
    from coursekit.training.lr_find import LRFinder

    return LRFinder(1, start_lr=1e-4, end_lr=0.1, num_it=3, stop_div=True)


def stop_watch():
    from coursekit.training.profile import StopWatch

    return StopWatch(3)


def picture_learner():
    from coursekit.training.learner import Learner

    rng = torch.Generator().manual_seed(5)
    loaders = [[(torch.randn(4, 3, 8, 8, generator=rng), torch.arange(4) % 2) for _ in range(2)] for _ in range(2)]
    model = nn.Sequential(nn.Flatten(), nn.utils.skip_init(nn.Linear, 192, 2))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    return Learner(loaders, model, nn.CrossEntropyLoss(), device="cpu", precision="fp32", seed=0)


def noise_learner():
    from coursekit.vision.block import ImageBlock

    block = DataBlock(blocks=(NoiseBlock(4), ImageBlock), get_x=lambda i: i, get_y=lambda i: picture(i, size=(8, 8)), splitter=IndexSplitter([4, 5, 6, 7]))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GANModel(4, 8, (4, 4), (4, 4)).build()
    return GANLearner(block.dataloaders(list(range(8)), bs=2, seed=0, device="cpu"), model, precision="fp32", seed=0)


def checkpoint():
    from coursekit.training.callbacks.checkpoint import Checkpoint

    return Checkpoint(resume=False)  # to go on from a file is the opposite of starting anew


CALLBACKS = made(Callback, {"LRFinder": [lr_finder], "StopWatch": [stop_watch], "Checkpoint": [checkpoint]})
LEARNERS = {"CutMix": picture_learner, "SampleGrids": noise_learner}  # what the callback needs, where a straight line through points does not do
ONCE = {"LRFinder", "StopWatch"}  # made by a method of the learner for one fit


@pytest.mark.parametrize(("name", "make"), CALLBACKS)
def test_callback(name, make, capsys):
    import matplotlib.pyplot as plt

    make_or_explain(name, make)
    check_callback(make, learner=LEARNERS.get(name), once=name in ONCE)
    plt.close("all")


def test_every_event_is_a_documented_method_that_takes_the_learner():
    for event in EVENTS:
        method = getattr(Callback, event)
        assert list(inspect.signature(method).parameters) == ["self", "learn"] and (method.__doc__ or "").strip(), event


def test_a_cancelled_fit_leaves_a_learner_that_goes_on():
    learn = synthetic_learner(n_train=5, n_valid=1)
    learn.fit(1, cbs=StopAfter(2))
    assert learn.state.step == 2 and len(learn.recorder.losses) == 2
    learn.fit_one_cycle(10)
    assert abs(learn.model.weight.item() - 2) < 0.3


# ---------------------------------------------------------------- blocks
def picture(seed: int = 0, *, size: tuple[int, int] = (40, 32)) -> Image.Image:
    rng = random.Random(seed)
    img = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    draw = ImageDraw.Draw(img)
    for _ in range(8):
        x, y, r = rng.randrange(size[0]), rng.randrange(size[1]), rng.randrange(2, 12)
        draw.ellipse((x - r, y - r, x + r, y + r), tuple(rng.randrange(256) for _ in range(3)))
    return img


def mask(seed: int = 0) -> Image.Image:
    return picture(seed).convert("L").point(lambda v: v // 86)


VALUES = {  # kind -> values of training items, a value that cannot be encoded
    "category": (["cat", "dog", "cat", "ant"], "bird"),
    "multicategory": ([["cat"], ["cat", "dog"], [], ["ant"]], ["bird"]),
    "regression": ([1.5, -2.0, 0.25], "much"),
    "image": ([picture(0), picture(1)], "no_such_file.jpg"),
    "mask": ([mask(0), mask(1)], "no_such_file.png"),
    "table": ([{"job": "clerk", "old": True}, {"job": None, "old": False}, {"job": "nurse", "old": True}], None),
    "numbers": ([{"age": 39.0, "hours": 40.5}, {"age": 50.0, "hours": 13.0}, {"age": 28.0, "hours": 38.25}], None),
    "pair": ([("Ann", "Up"), ("Bo", "Alien"), ("Ann", "Alien")], None),
    "noise": ([3, 4, "a.jpg"], None),
    "points": ([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]], "here"),
    "text": (["The cat sat.", "A dog!"], 5),
    "tokens": ([["the", "cat"], ["cat", "the"]], ["dog"]),
}
BLOCKS = made(Block, {"PairBlock": [lambda: PairBlock(["Ann", "Bo"], ["Alien", "Up"])], "NextTokens": [lambda: NextTokens(["the", "cat"])]})


@pytest.mark.parametrize(("name", "make"), BLOCKS)
def test_block(name, make):
    import matplotlib.pyplot as plt

    kind = make_or_explain(name, make).kind
    assert kind in VALUES, f"add values of kind {kind!r} to VALUES, so that {name} can be checked"
    values, unknown = VALUES[kind]
    fig, ax = plt.subplots()
    try:
        check_block(make, values, unknown=unknown, ax=ax)
    finally:
        plt.close(fig)


def test_blocks_are_set_up_on_training_items_only():
    seen = []

    class Spy(CategoryBlock):
        def setup(self, values):
            seen.append(list(values))
            super().setup(values)

    def build(items):
        block = DataBlock(
            blocks=(CategoryBlock, Spy), get_x=lambda i: i[0], get_y=lambda i: i[1], splitter=IndexSplitter([2])
        )
        dsets = block.datasets(items)
        return [dsets.valid[i] for i in range(len(dsets.valid))]

    build([("a", "cat"), ("b", "dog"), ("a", "cat")])
    assert seen == [["cat", "dog"]]
    with raises(ValueError, "bird"):
        build([("a", "cat"), ("b", "dog"), ("a", "bird")])


# ---------------------------------------------------------------- transforms
def item_tfms():
    from coursekit.vision import resize as T

    return {
        "Resize": [lambda: T.Resize(16), lambda: T.Resize((12, 20), "pad"), lambda: T.Resize(16, "squish")],
        "RandomResizedCrop": [lambda: T.RandomResizedCrop(16), lambda: T.RandomResizedCrop((16, 12), min_scale=0.5)],
    }


def batch_tfms():
    from coursekit.vision import augment as T

    stats = T.Normalize.from_stats(*T.imagenet_stats)
    return {
        "Normalize": [lambda: stats],
        "Augment": [
            T.Augment,
            lambda: T.Augment(size=12, min_scale=0.5),
            lambda: T.Augment(flip_vert=True, pad_mode="zeros"),
        ],
        "AugmentNormalize": [lambda: T.AugmentNormalize(T.Augment(), stats)],
    }


KINDS = ["image", "mask", "points", "category"]


@pytest.mark.parametrize(("name", "make"), made(ItemTransform, item_tfms()))
def test_item_transform(name, make):
    transform = make_or_explain(name, make)
    sample = [to_uint8_tensor(picture()), to_uint8_tensor(mask())[0], torch.tensor([[3.0, 4.0], [20.0, 10.0]]), torch.tensor(1)]
    check_item_transform(transform, sample, KINDS)
    check_item_transform(transform, [to_uint8_tensor(picture(size=(17, 33))), torch.tensor(1)], ["image", "category"])


@pytest.mark.parametrize(("name", "make"), made(BatchTransform, batch_tfms()))
def test_batch_transform(name, make):
    transform = make_or_explain(name, make)
    images = torch.randint(256, (4, 3, 16, 24), generator=RNG).byte()
    masks = torch.randint(3, (4, 16, 24), generator=RNG)
    parts = [images, masks, 10 * torch.rand(4, 2, 2, generator=RNG), torch.arange(4)]
    check_batch_transform(transform, parts, KINDS)
    check_batch_transform(transform, [images.float() / 255, torch.arange(4)], ["image", "category"])


# ---------------------------------------------------------------- models and exported files
SPECS = made(ModelSpec, {"VisionModel": [lambda: _vision_model("coursenet"), lambda: _vision_model("squeezenet1_1")],
                         "TabularModel": [lambda: _tabular_model("one_input"), lambda: _tabular_model("two_inputs"), lambda: _tabular_model("two_models")],
                         "CollabModel": [lambda: CollabModel(4, 7, [5]), lambda: CollabModel(4, 7, [3, 2], [8], [0, 5.5])],
                         "UNetModel": [lambda: _unet_model("coursenet")],
                         "PointModel": [lambda: PointModel("coursenet", 4), lambda: PointModel("coursenet", 2, width=8)],
                         "LanguageModelSpec": [lambda a=arch: _text_model("LanguageModelSpec", a) for arch in ("awd_lstm", "transformer")],
                         "TextClassifierSpec": [lambda a=arch: _text_model("TextClassifierSpec", a, 3) for arch in ("awd_lstm", "transformer")],
                         "ImageUNetModel": [lambda: ImageUNetModel("coursenet"), lambda: ImageUNetModel("coursenet", [8, 16], 4)],
                         "GANModel": [lambda: GANModel(8, 16, (16, 8, 8), (8, 16)), lambda: GANModel(8, 16, (8, 8), (8, 8), spectral=False)]})


def _vision_model(arch: str) -> ModelSpec:
    from coursekit.vision.models import VisionModel

    return VisionModel(arch, 3, lin_ftrs=[16])


def _unet_model(arch: str) -> ModelSpec:
    from coursekit.vision.unet import UNetModel

    return UNetModel(arch, 4)


def _tabular_model(join: str) -> ModelSpec:
    from coursekit.tabular.model import TabularModel

    return TabularModel([(4, 3), (9, 5)], 2, 3, [12, 8], [0.1, 0.2], y_range=[0, 5], join=join)


def _text_model(name: str, arch: str, *n_out: int) -> ModelSpec:
    import coursekit.text.learner as recipes

    return getattr(recipes, name)(arch, 20, *n_out, {"emb_sz": 8, "n_layers": 2, **({"n_hid": 6} if arch == "awd_lstm" else {"n_heads": 2})})


INPUTS = {"LanguageModelSpec": (torch.randint(20, (2, 7), generator=RNG),), "TextClassifierSpec": (torch.randint(20, (2, 7), generator=RNG),),
          "VisionModel": (torch.rand(2, 3, 64, 64, generator=RNG),), "TabularModel": (torch.tensor([[3, 8], [0, 1]]), torch.rand(2, 2, generator=RNG)),
          "CollabModel": (torch.tensor([[3, 6], [0, 1]]),), "UNetModel": (torch.rand(2, 3, 48, 64, generator=RNG),),
          "PointModel": (torch.rand(2, 3, 48, 64, generator=RNG),),
          "ImageUNetModel": (torch.rand(2, 3, 45, 64, generator=RNG),), "GANModel": (torch.randn(2, 8, generator=RNG),)}


@pytest.mark.parametrize(("name", "make"), SPECS)
def test_model_spec(name, make):
    check_model_spec(make_or_explain(name, make), *INPUTS[name])


def test_exported_file(tmp_path: Path):
    from coursekit.training.learner import Learner
    from coursekit.vision.data import ImageDataLoaders
    from coursekit.vision.models import VisionModel
    from coursekit.vision.augment import aug_transforms
    from coursekit.vision.resize import Resize

    files = []
    for i in range(12):
        files.append(tmp_path / f"{'cat' if i % 2 else 'dog'}_{i}.png")
        picture(i).save(files[-1])
    dls = ImageDataLoaders.from_name_re(
        tmp_path, files, r"^([a-z]+)_", valid_pct=0.25, seed=1, bs=4, item_tfms=Resize(32), batch_tfms=aug_transforms()
    )
    model = VisionModel("coursenet", dls.n_out, lin_ftrs=[16]).build()
    learn = Learner(dls, model, path=tmp_path, precision="fp32", seed=0)
    learn.progress = False
    learn.fit(1)
    loaded = check_export(learn, files[:3], tmp_path / "model.ck")
    assert list(loaded.dls.vocab) == ["cat", "dog"]


# ---------------------------------------------------------------- signatures
PUBLIC = {
    f"{m.__name__}.{name}": getattr(m, name)
    for m in MODULES
    for name in getattr(m, "__all__", ())
    if (inspect.isroutine(getattr(m, name)) or inspect.isclass(getattr(m, name))) and getattr(getattr(m, name), "__module__", "") == m.__name__
}


EXEMPT = {"coursekit.tabular.data.TabularPandas": "the books pass table, procs and both lists of columns by place",
          "coursekit.samples.sprites.oval": "a centre and two radii are as well known by place as x and y",
          "coursekit.course.judging.Hint": "the keywords are what a hint's text shows", "coursekit.course.judging.hint_if": "likewise",
          "coursekit.course.lab.sweep": "the keywords are the values to try, whatever the experiment calls them"}


def test_signatures() -> None:
    assert len(PUBLIC) > 80 and set(EXEMPT) <= set(PUBLIC)
    printed = ("coursekit.v1.", "coursekit.training.notation.")  # these have the signatures that the books and lessons print
    checked = [n for n in PUBLIC if n not in EXEMPT and not n.startswith(printed)]
    wrong = {n: bad_signature(PUBLIC[n]) for n in sorted(checked)}
    assert not any(wrong.values()), "\n".join(f"{n} {why}" for n, why in wrong.items() if why)


# ---------------------------------------------------------------- what the checks find
class Forgetful:
    calls = 0.0

    def __call__(self, pct):
        self.calls += 1.0
        return self.calls


class SumLoss(Loss):
    def per_item(self, preds, targs):
        return (preds - targs) ** 2

    def forward(self, preds, targs):
        return self.per_item(preds, targs).sum()


class MeanOfMeans(Metric):
    higher_is_better = True

    def __init__(self):
        self.reset()

    def reset(self):
        self.means = []

    def update(self, preds, targs):
        if len(targs):
            self.means.append(float(M.accuracy(preds, targs)))

    def compute(self):
        return sum(self.means) / len(self.means) if self.means else math.nan


class LeavesLoss(Callback):
    def before_train(self, learn):
        self.plain, learn.loss_func = learn.loss_func, losses.L1LossFlat()

    def after_train(self, learn):
        learn.loss_func = self.plain


class Counts(Callback):
    keeps = ("n",)
    n = 0

    def after_batch(self, learn):
        self.n += 1

    def before_step(self, learn):
        if self.n > 5:
            learn.opt.param_groups[0]["lr"] = 0.0


class Writes(Callback):
    def after_epoch(self, learn):
        learn.save("each")


class KeepsASet(Callback):
    keeps = ("seen",)

    def before_fit(self, learn):
        self.seen = {learn.state.step}


@dataclasses.dataclass
class Growing(CategoryBlock):
    def encode(self, value):
        return super().encode(value) if value in self.vocab else torch.tensor(len(self.vocab))


@dataclasses.dataclass
class FlipAll(ItemTransform):
    always: bool = False

    def apply(self, values, kinds, *, rng, train):
        return [v.flip(-1) for v in values] if (train or self.always) and rng.random() < 0.5 else list(values)


class FlipGlobal(FlipAll):
    def apply(self, values, kinds, *, rng, train):
        random.random()
        return super().apply(values, kinds, rng=rng, train=train)


@dataclasses.dataclass
class InPlace(BatchTransform):
    def apply(self, tensors, kinds, *, rng, train):
        return [tensors[0].add_(1), *tensors[1:]]


@dataclasses.dataclass
class Wobbly(ModelSpec):
    def build(self):
        return nn.Linear(3, random.randint(1, 10**6))


sample, batch = torch.arange(48, dtype=torch.uint8).view(3, 4, 4), torch.zeros(2, 3, 4, 4)
BROKEN = {
    "is pure": lambda: check_schedule(Forgetful()),
    "has end 3.0": lambda: check_schedule(SchedLin(1.0, 2.0), end=3.0),
    "is the mean of its items": lambda: check_loss(SumLoss(), torch.tensor([1.0, 2.0]), torch.tensor([1.5, 2.5])),
    "for uneven batches": lambda: check_metric(MeanOfMeans, *yes_no),
    "puts loss, metrics and hooks back": lambda: check_callback(LeavesLoss),
    "starts anew with each fit": lambda: check_callback(Counts),
    "writes no file in a trial run": lambda: check_callback(Writes),
    "keeps seen as numbers": lambda: check_callback(KeepsASet),
    "DID NOT RAISE": lambda: check_block(Growing, ["cat", "dog"], unknown="bird"),
    "draws nothing outside training": lambda: check_item_transform(FlipAll(True), [sample], ["image"], seeds=8),
    "leaves the global generator of random alone": lambda: check_item_transform(FlipGlobal(), [sample], ["image"], seeds=1),
    "leaves the tensors passed in alone": lambda: check_batch_transform(InPlace(), [batch, torch.tensor([0, 1])], ["image", "category"]),
    "builds the same layers": lambda: check_model_spec(Wobbly(), torch.ones(2, 3)),
}  # fmt: skip


@pytest.mark.parametrize("promise", BROKEN)
def test_a_check_finds_the_broken_promise(promise):
    with pytest.raises((AssertionError, pytest.fail.Exception), match=promise):
        BROKEN[promise]()


def test_bad_signatures_are_found():
    assert "**keywords" in bad_signature(lambda x, **kwargs: x)
    assert "'d'" in bad_signature(lambda a, b, c, d=1: a)
    assert not bad_signature(CategoryBlock)
