"""Losses against torch.nn.functional: values, gradients, losses per item, activations, and what is refused."""

from __future__ import annotations

import functools
import json

import pytest
import torch
import torch.nn.functional as F
from helpers import plain_repr, raises
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import coursekit.training.losses as losses_module
from coursekit.training.loss_wrappers import WrappedLoss, as_loss
from coursekit.training.losses import (
    BCEWithLogitsLossFlat, CrossEntropyLossFlat, DiceLoss, FocalLoss, L1LossFlat, LabelSmoothingCrossEntropy, Loss, MSELossFlat
)

quick = settings(deadline=None, max_examples=40)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def classes(n: int, *shape: int, seed: int = 1) -> Tensor:
    return torch.randint(n, shape, generator=torch.Generator().manual_seed(seed))


def same_with_gradient(loss: Loss, reference, preds: Tensor, targs: Tensor) -> None:
    a, b = preds.clone().requires_grad_(), preds.clone().requires_grad_()
    got, want = loss(a, targs), reference(b, targs)
    assert got.shape == () and torch.allclose(got, want, rtol=1e-10, atol=1e-12)
    got.backward()
    want.backward()
    assert torch.allclose(a.grad, b.grad, rtol=1e-8, atol=1e-12)


# name -> (loss, preds, targs, reference); seven of ten items and four classes or labels
IMAGE, MASK = normal(3, 4, 5, 6), classes(4, 3, 5, 6)
SUBJECTS = {
    "cross entropy": (CrossEntropyLossFlat(), normal(7, 4), classes(4, 7), F.cross_entropy),
    "cross entropy of words": (
        CrossEntropyLossFlat(), normal(3, 6, 4), classes(4, 3, 6), lambda p, t: F.cross_entropy(p.movedim(-1, 1), t)),
    "cross entropy of pixels": (CrossEntropyLossFlat(axis=1), IMAGE, MASK, F.cross_entropy),
    "smoothed": (
        LabelSmoothingCrossEntropy(0.2), normal(7, 4), classes(4, 7), functools.partial(F.cross_entropy, label_smoothing=0.2)),
    "focal, gamma 0": (FocalLoss(0), normal(7, 4), classes(4, 7), F.cross_entropy),
    "focal": (
        FocalLoss(2), normal(7, 4), classes(4, 7),
        lambda p, t: ((1 - (q := p.softmax(1)[range(7), t])) ** 2 * -q.log()).mean()),
    "focal of pixels": (
        FocalLoss(1.5, axis=1), IMAGE, MASK,
        lambda p, t: ((1 - (q := p.softmax(1).gather(1, t[:, None]))) ** 1.5 * -q.log()).mean()),
    "dice": (
        DiceLoss(), IMAGE, MASK,
        lambda p, t: (1 - (2 * (p.softmax(1) * (h := F.one_hot(t, 4).movedim(-1, 1))).sum((2, 3)) + 1e-6)
                      / ((p.softmax(1) + h).sum((2, 3)) + 1e-6)).mean()),
    "binary": (
        BCEWithLogitsLossFlat(), normal(7, 4), classes(2, 7, 4),
        lambda p, t: F.binary_cross_entropy_with_logits(p, t.to(p.dtype))),
    "squares": (MSELossFlat(), normal(7, 4), normal(7, 4, seed=2), F.mse_loss),
    "absolute": (L1LossFlat(), normal(7, 4), normal(7, 4, seed=2), F.l1_loss),
    "wrapped": (as_loss(nn.SmoothL1Loss()), normal(7, 4), normal(7, 4, seed=2), F.smooth_l1_loss),
    "wrapped function": (
        as_loss(lambda p, t: ((p - t) ** 4).mean()), normal(7, 4), normal(7, 4, seed=2), lambda p, t: ((p - t) ** 4).mean()),
}


def test_every_loss_is_a_subject() -> None:
    public = {v for n, v in vars(losses_module).items() if isinstance(v, type) and issubclass(v, Loss) and not n.startswith("_")}
    one_target = public - {Loss, losses_module.MultiTargetLoss}
    assert one_target | {WrappedLoss} == {type(s[0]) for s in SUBJECTS.values()}


@pytest.mark.parametrize("name", SUBJECTS)
def test_contract(name: str) -> None:
    loss, preds, targs, reference = SUBJECTS[name]
    same_with_gradient(loss, reference, preds, targs)
    items = loss.per_item(preds, targs)
    assert items.shape == (len(preds),)
    assert torch.allclose(items.mean(), loss(preds, targs))
    for i in range(len(preds)):
        assert torch.allclose(items[i], loss(preds[i : i + 1], targs[i : i + 1]))
    assert loss.activation(preds).shape == preds.shape
    assert len(loss.decode(preds)) == len(preds)
    assert not loss.state_dict()  # nothing of a loss ends up among a model's weights


@pytest.mark.parametrize("name", SUBJECTS)
def test_rebuilt_from_json(name: str) -> None:
    loss, preds, targs, _ = SUBJECTS[name]
    again = type(loss)(**json.loads(json.dumps(loss.options())))
    assert again.options() == loss.options()
    assert torch.equal(again.decode(preds), loss.decode(preds))
    assert torch.equal(again.activation(preds), loss.activation(preds))
    if not isinstance(loss, WrappedLoss):
        assert torch.equal(again(preds, targs), loss(preds, targs))


@given(n=st.integers(1, 6), c=st.integers(2, 5), dims=st.lists(st.integers(1, 3), max_size=3), seed=st.integers(0, 999))
@quick
def test_cross_entropy_of_any_shape(n: int, c: int, dims: list[int], seed: int) -> None:
    preds, targs = normal(n, c, *dims, seed=seed), classes(c, n, *dims, seed=seed)
    want = F.cross_entropy(preds, targs)
    assert torch.allclose(CrossEntropyLossFlat(axis=1)(preds, targs), want)
    assert torch.allclose(CrossEntropyLossFlat()(preds.movedim(1, -1), targs), want)
    assert torch.allclose(CrossEntropyLossFlat(axis=1).per_item(preds, targs).mean(), want)
    assert torch.equal(CrossEntropyLossFlat(axis=1).decode(preds), preds.argmax(1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_and_void(smoothing: float) -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    targs = MASK.clone()
    targs[:, 0], targs[1] = 255, 255  # a void row, and one picture all void
    loss = CrossEntropyLossFlat(weight, 1, label_smoothing=smoothing, ignore_index=255)
    want = functools.partial(F.cross_entropy, weight=weight, ignore_index=255, label_smoothing=smoothing)
    same_with_gradient(loss, want, IMAGE, targs)
    assert loss.per_item(IMAGE, targs)[1] == 0
    assert loss.options()["weight"] == weight.tolist()
    focal = FocalLoss(0, weight=weight, axis=1, ignore_index=255)
    same_with_gradient(focal, functools.partial(F.cross_entropy, weight=weight, ignore_index=255), IMAGE, targs)


def test_channels_last_scores() -> None:
    targs = MASK.clone()
    targs[:, 0] = 255
    loss, preds = CrossEntropyLossFlat([1, 2, 3, 4], 1, ignore_index=255), IMAGE.to(memory_format=torch.channels_last)
    weight = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    same_with_gradient(loss, functools.partial(F.cross_entropy, weight=weight, ignore_index=255), preds, targs)
    assert torch.allclose(loss.per_item(preds, targs), loss.per_item(IMAGE, targs))


def test_probabilities_as_targets() -> None:
    preds, soft = normal(5, 4), normal(5, 4, seed=3).softmax(1)
    same_with_gradient(CrossEntropyLossFlat(), F.cross_entropy, preds, soft)
    assert torch.allclose(CrossEntropyLossFlat().per_item(preds, soft).mean(), F.cross_entropy(preds, soft))


def test_focal_on_a_sure_answer_has_a_gradient() -> None:
    preds = torch.tensor([[80.0, 0.0], [0.0, 80.0]], requires_grad=True)
    loss = FocalLoss(0.5)(preds, torch.tensor([0, 0]))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(preds.grad).all()


@pytest.mark.parametrize("loss", [MSELossFlat(), L1LossFlat(), BCEWithLogitsLossFlat()], ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("shapes", [((6, 1), (6,)), ((6,), (6, 1)), ((6, 4), (6, 2, 2)), ((6, 1, 2), (6, 2))], ids=str)
def test_shapes_that_mean_the_same(loss: Loss, shapes: tuple) -> None:
    preds, targs = normal(*shapes[0]), normal(*shapes[1], seed=2).sigmoid()
    flat = loss(preds.flatten(), targs.flatten())
    assert torch.allclose(loss(preds, targs), flat)
    assert torch.allclose(loss.per_item(preds, targs).mean(), flat)


def test_pos_weight() -> None:
    weight = torch.tensor([1.0, 4.0], dtype=torch.float64)
    preds, targs = normal(5, 2), classes(2, 5, 2)
    want = F.binary_cross_entropy_with_logits(preds, targs.double(), pos_weight=weight)
    assert torch.allclose(BCEWithLogitsLossFlat(pos_weight=[1, 4])(preds, targs), want)
    assert BCEWithLogitsLossFlat(0.8).decode(torch.tensor([1.0, 2.0])).tolist() == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "loss", [CrossEntropyLossFlat([1, 2, 3, 4]), FocalLoss(), DiceLoss(), BCEWithLogitsLossFlat(), MSELossFlat(), L1LossFlat()],
    ids=lambda x: type(x).__name__)
def test_half_precision_is_computed_in_full(loss: Loss, dtype: torch.dtype) -> None:
    preds = normal(6, 4, 3).to(dtype) if isinstance(loss, DiceLoss) else normal(6, 4).to(dtype)
    dense = isinstance(loss, (BCEWithLogitsLossFlat, MSELossFlat, L1LossFlat))
    targs = classes(2, 6, 4) if dense else classes(4, 6, 3) if isinstance(loss, DiceLoss) else classes(4, 6)
    assert loss(preds, targs).dtype == torch.float32
    assert torch.equal(loss(preds, targs), loss(preds.float(), targs))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int16, torch.bool])
def test_class_numbers_of_any_integer_type(dtype: torch.dtype) -> None:
    preds, targs = normal(6, 2), classes(2, 6)
    assert torch.equal(CrossEntropyLossFlat()(preds, targs.to(dtype)), F.cross_entropy(preds, targs))


def test_no_waiting_for_the_device() -> None:
    """Tensors without data refuse to be read; the classes of the first batch are looked at, so that one is not asked for."""
    preds, targs = torch.zeros(6, 4, 3, device="meta"), torch.zeros(6, 3, dtype=torch.long, device="meta")
    for loss in (CrossEntropyLossFlat([1, 2, 3, 4], 1), FocalLoss(axis=1), DiceLoss()):
        loss._checked = 4
        assert loss(preds, targs).shape == () and loss.per_item(preds, targs).shape == (6,)
    for loss in (MSELossFlat(), BCEWithLogitsLossFlat(), L1LossFlat()):
        assert loss(preds, preds).shape == ()


REFUSED = {
    "class too high": (CrossEntropyLossFlat(), normal(3, 4), torch.tensor([0, 4, 1]), ["target 4", "0..3"]),
    "class below 0": (CrossEntropyLossFlat(), normal(3, 4), torch.tensor([0, -1, 1]), ["target -1"]),
    "focal": (FocalLoss(), normal(3, 4), torch.tensor([0, 7, 1]), ["FocalLoss", "target 7"]),
    "dice": (DiceLoss(), normal(3, 4, 2), torch.full((3, 2), 9), ["DiceLoss", "target 9"]),
    "number of targets": (CrossEntropyLossFlat(), normal(3, 4), torch.tensor([0, 1]), ["(3,)", "(2,)"]),
    "float classes": (CrossEntropyLossFlat(), normal(3, 4), torch.zeros(3), ["integers"]),
    "mask without axis": (CrossEntropyLossFlat(), IMAGE, MASK, ["axis=1"]),
    "several labels": (CrossEntropyLossFlat(), normal(3, 4), classes(2, 3, 4), ["BCEWithLogitsLossFlat"]),
    "no classes": (CrossEntropyLossFlat(), normal(3), torch.tensor([0, 1, 2]), ["(N, C"]),
    "weights": (CrossEntropyLossFlat([1, 2]), normal(3, 4), torch.tensor([0, 1, 2]), ["2 weights", "4 classes"]),
    "broadcast": (MSELossFlat(), normal(64, 1), normal(32), ["(64, 1)", "(32,)"]),
    "transposed": (L1LossFlat(), normal(2, 3), normal(3, 2), ["(2, 3)", "(3, 2)"]),
    "labels": (BCEWithLogitsLossFlat(), normal(3, 4), classes(2, 3), ["BCEWithLogitsLossFlat", "preds"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    loss, preds, targs, facts = REFUSED[name]
    with raises(ValueError, *facts):
        loss(preds, targs)
    with raises(ValueError, *facts):
        loss.per_item(preds, targs)


@pytest.mark.parametrize(
    ("given_loss", "wanted"),
    [
        (F.cross_entropy, CrossEntropyLossFlat),
        (nn.CrossEntropyLoss, CrossEntropyLossFlat),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3, 4]), label_smoothing=0.1, ignore_index=3), CrossEntropyLossFlat),
        (functools.partial(F.cross_entropy, label_smoothing=0.1), CrossEntropyLossFlat),
        (functools.partial(nn.CrossEntropyLoss, label_smoothing=0.1), CrossEntropyLossFlat),
        (functools.partial(CrossEntropyLossFlat, label_smoothing=0.1), CrossEntropyLossFlat),
        (LabelSmoothingCrossEntropy, LabelSmoothingCrossEntropy),
        (nn.NLLLoss(), WrappedLoss),
        (nn.CrossEntropyLoss(reduction="sum"), WrappedLoss),
    ],
    ids=plain_repr,
)
def test_as_loss_of_classes(given_loss, wanted: type) -> None:
    preds, targs = normal(6, 4, dtype=torch.float32), classes(4, 6)
    loss = as_loss(given_loss)
    assert type(loss) is wanted
    reference = given_loss() if isinstance(given_loss, type) else given_loss
    if isinstance(reference, functools.partial) and isinstance(reference.func, type):
        reference = reference()
    assert torch.allclose(loss(preds, targs), reference(preds, targs))
    assert torch.equal(loss.decode(preds), preds.argmax(1))
    assert loss.per_item(preds, targs).shape == (6,)


@pytest.mark.parametrize("given_loss", [F.mse_loss, nn.MSELoss(), F.l1_loss, nn.L1Loss, F.huber_loss, nn.PoissonNLLLoss()], ids=plain_repr)
def test_as_loss_of_numbers(given_loss) -> None:
    preds, targs = normal(6, 2), normal(6, 2, seed=5)
    loss = as_loss(given_loss)
    want = (given_loss() if isinstance(given_loss, type) else given_loss)(preds, targs)
    assert torch.allclose(loss(preds, targs), want)
    assert torch.allclose(loss.per_item(preds, targs).mean(), want)
    assert torch.equal(loss.decode(preds), preds)


def test_as_loss_of_binary_losses() -> None:
    preds, targs = normal(6, 2), classes(2, 6, 2).double()
    for f in (F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(pos_weight=torch.ones(2).double()), nn.MultiLabelSoftMarginLoss()):
        loss = as_loss(f)
        assert torch.allclose(loss(preds, targs), F.binary_cross_entropy_with_logits(preds, targs))
        assert torch.equal(loss.decode(preds), preds > 0) and torch.allclose(loss.activation(preds), preds.sigmoid())
    assert torch.equal(as_loss(F.binary_cross_entropy).decode(preds.sigmoid()), preds > 0)


def test_several_outputs_and_targets() -> None:
    loss = as_loss(lambda preds, a, b: (preds[0] - a).abs().mean() + (preds[1] - b).abs().mean())
    preds = (normal(4, 2), normal(4, 3))
    a, b = normal(4, 2, seed=3), normal(4, 3, seed=4)
    assert torch.allclose(loss.per_item(preds, a, b).mean(), loss(preds, a, b))


@pytest.mark.parametrize("bad", [None, "mse", 3, [F.mse_loss]])
def test_no_loss(bad: object) -> None:
    with raises(TypeError, "as_loss", repr(bad)):
        as_loss(bad)


def test_options_are_kept_by_subclasses_of_users() -> None:
    class Scaled(MSELossFlat):
        def __init__(self, scale: float = 2.0):
            super().__init__()
            self.scale = scale

    assert Scaled(3.0).options() == {"scale": 3.0}
    with raises(NotImplementedError, "Loss", "per_item"):
        Loss()(normal(2), normal(2))
    with pytest.raises(TypeError):
        MSELossFlat(reduction="sum")
