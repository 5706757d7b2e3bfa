"""Metrics against scikit-learn on random inputs, for any split into batches, without waiting for the device."""

from __future__ import annotations

import functools
import math
import warnings

import numpy as np
import pytest
from helpers import raises
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch import Tensor, nn

import coursekit.training.count_metrics as count_metrics
import coursekit.training.metrics as metrics_module
from coursekit.training.count_metrics import (
    CountMetric, Dice, DiceMulti, F1Score, F1ScoreMulti, FBeta, FBetaMulti, JaccardCoeff, JaccardCoeffMulti, JaccardMulti, PixelAccuracy, Precision,
    PrecisionMulti, Recall, RecallMulti
)
from coursekit.training.metrics import (
    AverageMetric, Metric, Perplexity, RocAuc, accuracy, accuracy_multi, as_metric, error_rate, mae, mse, rmse, top_k_accuracy
)

quick = settings(deadline=None, max_examples=40)
seeds = st.integers(0, 2**31)
cuts = st.lists(st.integers(0, 60), max_size=5)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scores(seed: int, *shape: int) -> Tensor:
    """Random scores, coarse, so that there are ties."""
    return (torch.randn(*shape, generator=generator(seed)) * 3).round() / 3


def numbers(seed: int, n_classes: int, *shape: int) -> Tensor:
    return torch.randint(n_classes, shape, generator=generator(seed + 1))


def in_batches(metric: Metric, preds: Tensor, targs: Tensor, at: list[int]) -> float:
    metric.reset()
    edges = [0, *sorted(min(c, len(preds)) for c in at), len(preds)]
    for a, b in zip(edges, edges[1:]):
        metric.update(preds[a:b], targs[a:b])
    return metric.compute()


def agree(metric: object, preds: Tensor, targs: Tensor, at: list[int], want: float) -> None:
    metric = as_metric(metric)
    assert metric(preds, targs) == pytest.approx(want, rel=1e-5, abs=1e-6)
    assert in_batches(metric, preds, targs, at) == pytest.approx(want, rel=1e-5, abs=1e-6)


# ---------------------------------------------------------------- against scikit-learn


@given(seeds, st.integers(1, 60), st.integers(2, 6), cuts)
@quick
def test_shares_of_right_answers(seed: int, n: int, c: int, at: list[int]) -> None:
    preds, targs = torch.randn(n, c, generator=generator(seed)), numbers(seed, c, n)
    right = sk.accuracy_score(targs, preds.argmax(1))
    agree(accuracy, preds, targs, at, right)
    agree(error_rate, preds, targs, at, 1 - right)
    for k in {1, 2, c}:
        want = sk.top_k_accuracy_score(targs, preds, k=k, labels=range(c)) if c > 2 and k < c else right if k == 1 else 1.0
        agree(functools.partial(top_k_accuracy, k=k), preds, targs, at, want)


@given(seeds, st.integers(1, 60), st.integers(2, 6), cuts, st.sampled_from(["macro", "micro", "weighted"]))
@quick
def test_counts_of_classes(seed: int, n: int, c: int, at: list[int], average: str) -> None:
    preds, targs = torch.randn(n, c, generator=generator(seed)), numbers(seed, c, n)
    answers, how = preds.argmax(1), dict(average=average, zero_division=0)
    agree(Precision(average), preds, targs, at, sk.precision_score(targs, answers, **how))
    agree(Recall(average), preds, targs, at, sk.recall_score(targs, answers, **how))
    agree(F1Score(average), preds, targs, at, sk.f1_score(targs, answers, **how))
    agree(FBeta(2, average=average), preds, targs, at, sk.fbeta_score(targs, answers, beta=2, **how))
    agree(JaccardCoeff(average), preds, targs, at, sk.jaccard_score(targs, answers, **how))
    agree(FBeta(0.5, average=average), preds, targs, at, sk.fbeta_score(targs, answers, beta=0.5, **how))
    agree(Dice(average), preds, targs, at, sk.f1_score(targs, answers, **how))


@given(seeds, st.integers(1, 60), cuts, st.integers(0, 1))
@quick
def test_counts_of_yes_and_no(seed: int, n: int, at: list[int], pos: int) -> None:
    preds, targs = torch.randn(n, 2, generator=generator(seed)), numbers(seed, 2, n)
    answers, how = preds.argmax(1), dict(pos_label=pos, zero_division=0)
    for metric, reference in ((Precision, sk.precision_score), (Recall, sk.recall_score), (F1Score, sk.f1_score),
                              (JaccardCoeff, sk.jaccard_score)):
        want = reference(targs, answers, **how)
        agree(metric(pos_label=pos), preds, targs, at, want)
        if metric is not JaccardCoeff:  # one score an item says the same
            agree(metric(pos_label=pos), preds[:, 1] - preds[:, 0], targs, at, want)
            agree(metric(pos_label=pos), (preds[:, 1] - preds[:, 0])[:, None], targs, at, want)
    for beta in (0.5, 2.0):
        agree(FBeta(beta, pos_label=pos), preds, targs, at, sk.fbeta_score(targs, answers, beta=beta, **how))
    agree(Dice(pos_label=pos), preds, targs, at, sk.f1_score(targs, answers, **how))
    for average in ("macro", "micro", "weighted"):  # two classes, both of which count
        agree(F1Score(average), preds, targs, at, sk.f1_score(targs, answers, average=average, zero_division=0))


@given(seeds, st.integers(1, 40), st.integers(2, 5), cuts, st.sampled_from(["macro", "micro", "weighted"]))
@quick
def test_counts_of_labels(seed: int, n: int, c: int, at: list[int], average: str) -> None:
    preds, targs = scores(seed, n, c) + 0.01, numbers(seed, 2, n, c)
    given_, how = (preds > 0).long(), dict(average=average, zero_division=0)
    agree(F1Score(average), preds, targs, at, sk.f1_score(targs, given_, **how))
    agree(FBeta(0.5, average=average), preds, targs.bool(), at, sk.fbeta_score(targs, given_, beta=0.5, **how))
    agree(Precision(average, sigmoid=False, thresh=0.0), preds, targs.float(), at, sk.precision_score(targs, given_, **how))
    agree(Recall(average), preds, targs, at, sk.recall_score(targs, given_, **how))
    agree(JaccardCoeff(average), preds, targs, at, sk.jaccard_score(targs, given_, **how))
    agree(Dice(average), preds, targs, at, sk.f1_score(targs, given_, **how))
    agree(accuracy_multi, preds, targs, at, sk.accuracy_score(targs.flatten(), given_.flatten()))


@given(seeds, st.integers(1, 40), st.integers(1, 5), cuts, st.floats(0.05, 0.95))
@quick
def test_thresholds_of_labels(seed: int, n: int, c: int, at: list[int], thresh: float) -> None:
    probs, targs = torch.rand(n, c, generator=generator(seed)), numbers(seed, 2, n, c)
    given_ = (probs > thresh).long()
    agree(functools.partial(accuracy_multi, thresh=thresh, sigmoid=False), probs, targs, at, sk.accuracy_score(targs.flatten(), given_.flatten()))
    if c > 1:
        for average in ("macro", "micro", "weighted"):
            want = sk.f1_score(targs, given_, average=average, zero_division=0)
            agree(F1Score(average, thresh=thresh, sigmoid=False), probs, targs, at, want)


@given(seeds, st.integers(1, 40), st.integers(1, 3), cuts)
@quick
def test_errors_of_numbers(seed: int, n: int, dims: int, at: list[int]) -> None:
    preds, targs = torch.randn(n, dims, generator=generator(seed)), torch.randn(n, dims, generator=generator(seed + 1))
    agree(mse, preds, targs, at, sk.mean_squared_error(targs, preds))
    agree(rmse, preds, targs, at, math.sqrt(sk.mean_squared_error(targs, preds)))
    agree(mae, preds, targs, at, sk.mean_absolute_error(targs, preds))
    if dims == 1:  # one number an item, with and without a dimension for it
        agree(mae, preds, targs[:, 0], at, sk.mean_absolute_error(targs, preds))
        agree(rmse, preds[:, 0], targs, at, math.sqrt(sk.mean_squared_error(targs, preds)))


@given(seeds, st.integers(2, 60), cuts)
@quick
def test_area_of_yes_and_no(seed: int, n: int, at: list[int]) -> None:
    preds, targs = scores(seed, n), numbers(seed, 2, n)
    targs[0], targs[1] = 0, 1
    want = sk.roc_auc_score(targs, preds)
    agree(RocAuc, preds, targs, at, want)
    agree(RocAuc, preds[:, None], targs, at, want)
    agree(RocAuc, torch.stack([-preds, preds], 1), targs, at, want)


@given(seeds, st.integers(3, 5), st.integers(0, 40), cuts, st.sampled_from(["macro", "weighted"]))
@quick
def test_area_of_classes(seed: int, c: int, extra: int, at: list[int], average: str) -> None:
    preds = torch.randn(c + extra, c, generator=generator(seed))
    targs = torch.cat([torch.arange(c), numbers(seed, c, extra)])
    probs = preds.double().softmax(1).numpy()
    want = sk.roc_auc_score(targs, probs, multi_class="ovr", average=average)
    agree(RocAuc(average), preds, targs, at, want)
    labels = F.one_hot(targs, c)
    agree(RocAuc(average), preds, labels, at, sk.roc_auc_score(labels, preds, average=average))


@given(seeds, st.integers(2, 5), st.integers(2, 40), cuts, st.sampled_from(["macro", "weighted"]))
@quick
def test_area_of_labels(seed: int, c: int, n: int, at: list[int], average: str) -> None:
    preds, labels = scores(seed, n, c), numbers(seed, 2, n, c)  # any number of labels an item
    labels[0], labels[1] = 0, 1
    want = sk.roc_auc_score(labels, preds, average=average)
    for kind in (torch.long, torch.float, torch.bool):
        agree(RocAuc(average), preds, labels.to(kind), at, want)


@given(seeds, st.integers(1, 20), st.integers(1, 6), cuts)
@quick
def test_perplexity(seed: int, n: int, length: int, at: list[int]) -> None:
    preds, targs = torch.randn(n, length, 9, generator=generator(seed)), numbers(seed, 9, n, length)
    want = math.exp(sk.log_loss(targs.flatten(), preds.double().flatten(0, 1).softmax(1), labels=range(9)))
    agree(Perplexity, preds, targs, at, want)
    padded, keep = targs.clone(), numbers(seed, 2, n, length).bool()
    padded[~keep] = -100
    if keep.any():
        agree(Perplexity, preds, padded, at, F.cross_entropy(preds[keep], targs[keep]).exp().item())


@given(seeds, st.integers(1, 6), cuts)
@quick
def test_masks(seed: int, n: int, at: list[int]) -> None:
    preds, targs = torch.randn(n, 3, 4, 5, generator=generator(seed)), numbers(seed, 3, n, 4, 5)
    targs[:, 0] = 255  # void
    answers, known = preds.argmax(1)[:, 1:].flatten(), targs[:, 1:].flatten()
    agree(Dice("macro"), preds, targs, at, sk.f1_score(known, answers, average="macro"))
    agree(JaccardCoeff("macro"), preds, targs, at, sk.jaccard_score(known, answers, average="macro"))
    agree(functools.partial(accuracy, axis=1), preds[:, :, 1:], targs[:, 1:], at, sk.accuracy_score(known, answers))
    agree(functools.partial(error_rate, axis=1), preds[:, :, 1:], targs[:, 1:], at, 1 - sk.accuracy_score(known, answers))
    for average in ("micro", "weighted"):
        agree(Dice(average), preds, targs, at, sk.f1_score(known, answers, average=average))
        agree(JaccardCoeff(average), preds, targs, at, sk.jaccard_score(known, answers, average=average))


@given(seeds, st.integers(1, 6), cuts, st.integers(0, 1))
@quick
def test_masks_of_one_class_and_background(seed: int, n: int, at: list[int], pos: int) -> None:
    preds, targs = torch.randn(n, 2, 4, 5, generator=generator(seed)), numbers(seed, 2, n, 4, 5)
    answers, known = preds.argmax(1).flatten(), targs.flatten()
    agree(Dice(pos_label=pos), preds, targs, at, sk.f1_score(known, answers, pos_label=pos, zero_division=0))
    agree(JaccardCoeff(pos_label=pos), preds, targs, at, sk.jaccard_score(known, answers, pos_label=pos, zero_division=0))


# ---------------------------------------------------------------- what holds for all

SUBJECTS: dict[str, tuple[object, tuple[int, ...], tuple[int, ...]]] = {
    "accuracy": (accuracy, (12, 3), (12,)),
    "error_rate": (error_rate, (12, 3), (12,)),
    "top_k": (functools.partial(top_k_accuracy, k=2), (12, 3), (12,)),
    "accuracy_multi": (accuracy_multi, (12, 3), (12, 3)),
    "mse": (mse, (12, 2), (12, 2)),
    "rmse": (rmse, (12, 2), (12, 2)),
    "mae": (mae, (12, 1), (12,)),
    "loss": (nn.CrossEntropyLoss(), (12, 3), (12,)),
    "precision": (Precision("macro"), (12, 3), (12,)),
    "recall": (Recall("weighted"), (12, 3), (12,)),
    "fbeta": (FBeta(2, average="micro"), (12, 3), (12, 3)),
    "f1": (F1Score(), (12, 1), (12,)),
    "dice": (Dice(), (4, 2, 5, 5), (4, 5, 5)),
    "jaccard": (JaccardCoeff("macro"), (4, 3, 5, 5), (4, 5, 5)),
    "precision_multi": (PrecisionMulti(), (12, 3), (12, 3)),
    "recall_multi": (RecallMulti(), (12, 3), (12, 3)),
    "f1_multi": (F1ScoreMulti(), (12, 3), (12, 3)),
    "fbeta_multi": (FBetaMulti(2), (12, 3), (12, 3)),
    "jaccard_multi": (JaccardMulti(), (12, 3), (12, 3)),
    "dice_multi": (DiceMulti(), (4, 3, 5, 5), (4, 5, 5)),
    "jaccard_masks": (JaccardCoeffMulti(), (4, 3, 5, 5), (4, 5, 5)),
    "pixel_accuracy": (PixelAccuracy(), (4, 3, 5, 5), (4, 5, 5)),
    "perplexity": (Perplexity(), (12, 4, 7), (12, 4)),
    "roc_auc": (RocAuc(), (12, 2), (12,)),
    "roc_auc_yes_no": (RocAuc(), (12,), (12,)),
}


def test_every_metric_is_a_subject() -> None:
    both = (*vars(metrics_module).values(), *vars(count_metrics).values())
    known = {v for v in both if isinstance(v, type) and issubclass(v, Metric)}
    assert {m for m in known if not m.__name__.startswith("_")} - {Metric, CountMetric} == {type(as_metric(f)) for f, _, _ in SUBJECTS.values()}


@pytest.mark.parametrize("name", SUBJECTS)
def test_contract(name: str) -> None:
    f, shape, targ_shape = SUBJECTS[name]
    metric = as_metric(f)
    assert isinstance(metric.name, str) and metric.name
    assert metric.higher_is_better in (True, False)
    preds, targs = torch.randn(*shape, generator=generator(0)), numbers(0, 2, *targ_shape)
    value = metric(preds, targs)
    assert isinstance(value, float) and math.isfinite(value)
    metric.update(preds, targs)
    assert metric.compute() == pytest.approx(value)  # the same items twice
    assert metric.compute() == metric.compute()
    metric.reset()
    assert math.isnan(metric.compute())  # no items, no value
    for dtype in (torch.bfloat16, torch.float64):
        assert math.isfinite(metric(preds.to(dtype), targs))
    metric.reset()
    twin = as_metric(metric)
    twin.update(preds, targs)
    assert twin is not metric and math.isnan(metric.compute())


@pytest.mark.parametrize("name", SUBJECTS)
def test_update_never_waits_for_the_device(name: str) -> None:
    """Tensors on the meta device hold no data: whatever asks for a number, or for a shape that depends on one, fails."""
    f, shape, targ_shape = SUBJECTS[name]
    metric = as_metric(f)
    for _ in range(2):
        metric.update(torch.zeros(shape, device="meta"), torch.zeros(targ_shape, dtype=torch.float if name in ("mse", "rmse") else torch.long, device="meta"))


@pytest.mark.parametrize("name", SUBJECTS)
def test_no_gradient_is_kept(name: str) -> None:
    f, shape, targ_shape = SUBJECTS[name]
    metric = as_metric(f)
    metric.update(torch.randn(*shape, generator=generator(0), requires_grad=True), numbers(0, 2, *targ_shape))
    kept = [v for x in vars(metric).values() for v in (x if isinstance(x, list) else [x]) if isinstance(v, (Tensor, float))]
    assert kept and not any(v.requires_grad for v in kept if isinstance(v, Tensor))


def test_directions() -> None:
    better = {f.__name__: f.higher_is_better for f in (accuracy, error_rate, top_k_accuracy, accuracy_multi, mse, rmse, mae)}
    assert [k for k, v in better.items() if not v] == ["error_rate", "mse", "rmse", "mae"]
    assert Perplexity.higher_is_better is False and F1Score.higher_is_better and RocAuc.higher_is_better
    assert as_metric(lambda p, t: 0.0).higher_is_better is None
    assert as_metric(nn.MSELoss).higher_is_better is False and as_metric(F.mse_loss).higher_is_better is False
    assert AverageMetric(lambda p, t: 0.0, higher_is_better=True).higher_is_better is True


def test_long_sums_are_exact() -> None:
    metric = as_metric(accuracy)
    preds, targs = torch.eye(2)[torch.zeros(3, dtype=torch.long)], torch.tensor([0, 0, 1])
    for _ in range(3000):
        metric.update(preds, targs)
    assert metric.compute() == pytest.approx(2 / 3, abs=1e-7)


def test_functions_of_users() -> None:
    def matthews(preds, targs):
        return sk.matthews_corrcoef(targs.numpy(), preds.argmax(1).numpy())

    preds, targs = torch.eye(3), torch.arange(3)
    assert as_metric(matthews)(preds, targs) == 1.0 and as_metric(matthews).name == "matthews"
    assert as_metric(lambda p, t: np.float32(0.5))(preds, targs) == 0.5
    mixed = AverageMetric(lambda p, t: 0.5 if len(p) == 1 else torch.tensor(1.0))
    mixed.update(preds[:1], targs[:1])
    mixed.update(preds, targs)
    assert mixed.compute() == pytest.approx(3.5 / 4)
    pairs = as_metric(lambda p, t: (p[0] - t[0]).abs().mean())
    assert pairs((preds, preds), (preds + 1, preds)) == pytest.approx(1)


def test_one_kind_only_has_no_area() -> None:
    with pytest.warns(UserWarning, match="RocAuc.*1 of 1"):
        assert math.isnan(RocAuc()(torch.rand(5), torch.ones(5)))
    with pytest.warns(UserWarning, match="RocAuc.*1 of 3"):
        assert RocAuc()(torch.eye(3)[:2] * 9, torch.tensor([0, 1])) == 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert F1Score("macro")(torch.eye(3)[:2], torch.tensor([0, 1])) == 1.0


REFUSED = {
    "one column": (accuracy, torch.zeros(4, 1), torch.zeros(4).long(), ["accuracy_multi"]),
    "no classes": (error_rate, torch.zeros(4), torch.zeros(4).long(), ["error_rate", "(4,)"]),
    "mask": (accuracy, torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4).long(), ["axis=1"]),
    "labels": (error_rate, torch.zeros(4, 3), torch.zeros(4, 3).long(), ["(4,)", "(4, 3)"]),
    "k": (functools.partial(top_k_accuracy, k=9), torch.zeros(4, 3), torch.zeros(4).long(), ["k=9"]),
    "numbers": (mse, torch.zeros(4, 3), torch.zeros(4), ["mse", "(4, 3)", "(4,)"]),
    "binary": (F1Score(), torch.zeros(4, 3), torch.zeros(4).long(), ["average='binary'", "3 classes"]),
    "binary labels": (F1Score(), torch.zeros(4, 3), torch.zeros(4, 3).long(), ["average='binary'", "3 labels"]),
    "area": (RocAuc(), torch.zeros(4, 3, 2), torch.zeros(4), ["RocAuc", "(4, 3, 2)"]),
    "multi": (accuracy_multi, torch.zeros(4, 3), torch.zeros(4), ["accuracy_multi", "(4, 3)", "(4,)"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    f, preds, targs, facts = REFUSED[name]
    with raises(ValueError, *facts):
        as_metric(f)(preds, targs)


def test_no_metric() -> None:
    for bad in ("accuracy", None, 3, [accuracy]):
        with raises(TypeError, "as_metric", repr(bad)):
            as_metric(bad)
    with raises(ValueError, "marco", "'macro'"):
        F1Score("marco")
    with raises(NotImplementedError, "Mine", "update"):
        type("Mine", (Metric,), {})().update(torch.zeros(1), torch.zeros(1))
