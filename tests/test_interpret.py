"""Interpretation of every kind of task against scikit-learn, scipy and closed forms; embeddings and their map."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest
from sklearn.decomposition import PCA
from sklearn.metrics import classification_report, precision_recall_curve
from torch import nn

from coursekit.core import seeded
from coursekit.interpret.curves import threshold_curve, wilson
from coursekit.data.block import CategoryBlock, MultiCategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter
from coursekit.data.loader import DataLoader, DataLoaders
from coursekit.interpret.embeddings import EmbeddingMap, embeddings, pca
from coursekit.interpret.interpretation import ClassificationInterpretation, Interpretation
from coursekit.training.learner import Learner
from coursekit.vision.data import ImageBlock, ImageDataLoaders
from coursekit.vision.resize import Resize

quick = settings(deadline=None, max_examples=40)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    files = [folder / f"{'abc'[i % 3]}_{i:02d}.png" for i in range(24)]
    for f in files:
        Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)).resize((40, 40)).save(f)
    return files


def learner(photos: list[Path], target, label, n_out: int) -> Learner:
    plan = DataBlock(blocks=(ImageBlock, target), get_y=label, splitter=IndexSplitter(range(8, 24)), item_tfms=Resize(16))
    with seeded(5):
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, n_out))
    learn = Learner(plan.dataloaders(photos, bs=4, seed=0, device="cpu"), net)
    learn.progress = False
    return learn


def classes(photos: list[Path]) -> Learner:
    return learner(photos, CategoryBlock, lambda f: f.name[0], 3)


def made_up(targs: torch.Tensor, preds: torch.Tensor, vocab: list) -> ClassificationInterpretation:
    """An interpretation of numbers made up for a test."""
    losses = -preds[torch.arange(len(targs)), targs].clamp(min=1e-9).log()
    return ClassificationInterpretation(SimpleNamespace(dls=SimpleNamespace(vocab=vocab)), None, preds, targs, preds.argmax(1), losses)


# ---- curves

scores = st.integers(0, 2**31).flatmap(lambda seed: st.tuples(st.just(seed), st.integers(1, 60), st.sampled_from([0, 1, 2, 8])))


@quick
@given(scores)
def test_threshold_curve_is_that_of_scikit_learn(case: tuple[int, int, int]) -> None:
    seed, n, digits = case  # few digits: many ties
    rng = np.random.default_rng(seed)
    probs, truth = rng.random(n).round(digits), rng.random(n) < rng.random()
    truth[rng.integers(n)] = True
    curve = threshold_curve(torch.tensor(probs), torch.tensor(truth))
    precision, recall, thresholds = precision_recall_curve(truth, probs)
    assert np.array_equal(curve.thresholds, thresholds)
    assert np.allclose(curve.precision, precision[:-1]) and np.allclose(curve.recall, recall[:-1])  # its last point has no threshold
    total = precision[:-1] + recall[:-1]
    assert np.allclose(curve.f1, np.divide(2 * precision[:-1] * recall[:-1], total, out=np.zeros_like(total), where=total > 0))
    assert curve.f1[curve.thresholds == curve.best] == curve.f1.max()


def test_a_threshold_curve_in_words() -> None:
    threshold_curve(torch.tensor([0.3, 0.6, 0.2]), torch.tensor([0, 1, 1]), name="yes").plot()
    assert "yes: best F1 0.80" in plt.gcf().alt_text
    plt.close("all")


@quick
@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy(case: tuple[int, int]) -> None:
    expected = binomtest(*case).proportion_ci(0.95, method="wilson")
    assert np.allclose(wilson(*case), (expected.low, expected.high), atol=1e-6)


# ---- tables

def test_the_report_is_that_of_scikit_learn(photos: list[Path]) -> None:
    learn = classes(photos)
    interp = ClassificationInterpretation.from_learner(learn)
    assert [interp.item(i) for i in range(16)] == photos[8:]
    for i, f in enumerate(photos[8:]):
        said = learn.predict(f)
        assert interp.vocab[interp.decoded[i]] == said.label and interp.vocab[interp.targs[i]] == f.name[0]
        assert interp.losses[i].item() == pytest.approx(-said.probabilities[interp.targs[i]].log().item(), abs=1e-4)
    report = interp.report().to_df().set_index("class")
    actual, predicted = ([interp.vocab[i] for i in part.tolist()] for part in (interp.targs, interp.decoded))
    expected = classification_report(actual, predicted, output_dict=True, zero_division=0)
    for name in "abc":
        assert report.loc[name, ["precision", "recall", "f1"]].tolist() == pytest.approx([expected[name][k] for k in ("precision", "recall", "f1-score")])
    assert report.loc["accuracy", "f1"] == pytest.approx(expected["accuracy"])
    assert report.loc["mean over classes", "recall"] == pytest.approx(expected["macro avg"]["recall"])


def test_several_labels_are_no_classes(photos: list[Path]) -> None:
    labels = learner(photos, MultiCategoryBlock, lambda f: ["a", "b"][: int(f.stem[2:]) % 3], 2)
    with pytest.raises(ValueError, match="use Interpretation"):
        ClassificationInterpretation.from_learner(labels)


def test_masks_and_plain_loaders() -> None:
    x, y = torch.rand(6, 3, 8, 8), torch.randint(2, (6, 8, 8))
    plain = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    from coursekit.training.losses import CrossEntropyLossFlat

    learn = Learner(DataLoaders(plain, plain, device="cpu"), nn.Conv2d(3, 2, 1), CrossEntropyLossFlat(axis=1))
    learn.progress = False
    masks = Interpretation.from_learner(learn)
    assert len(masks.losses) == 6 and masks.top_losses()[0][0] == masks.losses.max()
    with pytest.raises(ValueError, match="plain loaders"):
        masks.item(0)


def test_items_that_are_pairs_of_file_and_label(photos: list[Path]) -> None:
    """`from_lists` and `plan_data` make such items: maps call them by their file."""
    dls = ImageDataLoaders.from_lists(".", photos, [f.name[0] for f in photos], valid_pct=0.5, seed=1, item_tfms=Resize(16), bs=4, device="cpu")
    learn = Learner(dls, nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.ReLU(), nn.Linear(4, 3)))
    learn.progress = False
    assert set(EmbeddingMap.from_learner(learn).names) == {item[0].name for item in dls.valid.dataset.items}


# ---- figures

def test_top_losses_of_every_kind_are_drawn_with_and_without_heat(photos: list[Path]) -> None:
    interp = ClassificationInterpretation.from_learner(classes(photos))
    interp.plot_top_losses(4, heatmap=True)
    axes = [ax for ax in plt.gcf().axes if ax.images]
    assert len(axes) == 4 and all(len(ax.images) == 2 and ax.images[1].get_array().shape == (16, 16) for ax in axes)
    assert "heat maps" in plt.gcf().alt_text
    for target, label, n in ((RegressionBlock, lambda f: [1.0, 2.0], 2), (RegressionBlock, lambda f: 1.5, 1), (MultiCategoryBlock, lambda f: ["a", "b"], 2)):
        Interpretation.from_learner(learner(photos, target, label, n)).plot_top_losses(2, heatmap=True)
    plt.close("all")


@pytest.mark.parametrize("normalize", [False, True])
def test_a_confusion_matrix_of_37_classes_can_be_read(normalize: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    targs = torch.arange(37).repeat(30)
    said = torch.where(torch.rand(len(targs), generator=rng) < 0.7, targs, torch.randint(37, (len(targs),), generator=rng))
    interp = made_up(targs, nn.functional.one_hot(said, 37).float(), [f"staffordshire_bull_terrier_{i}" for i in range(37)])
    interp.plot_confusion_matrix(normalize=normalize)
    fig = plt.gcf()
    fig.canvas.draw()
    ax = fig.axes[0]
    assert len(ax.texts) == int((interp.confusion_matrix() > 0).sum())  # no number where there is nothing
    whole, (width, height) = fig.bbox, np.ptp(ax.transData.transform([(1, 1), (2, 0)]), axis=0)
    for t in ax.texts:
        box = t.get_window_extent()
        assert box.width <= width and box.height <= height and t.get_fontsize() >= 7  # a number stays in its square
    labels = [*ax.get_xticklabels(), *ax.get_yticklabels()]
    assert len(labels) == 74
    for t in labels:
        box = t.get_window_extent()
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1 and whole.y0 <= box.y0 and box.y1 <= whole.y1
    plt.close("all")


# ---- embeddings

@quick
@given(st.integers(0, 2**31), st.integers(3, 30), st.integers(2, 8))
def test_principal_components_are_those_of_scikit_learn(seed: int, n: int, d: int) -> None:
    x = np.random.default_rng(seed).normal(size=(n, d)) * np.arange(1, d + 1) ** 2
    points, shares = pca(torch.tensor(x))
    sk = PCA(2, svd_solver="full").fit(x)
    assert np.allclose(points, sk.transform(x), atol=1e-6 * np.abs(x).max())  # sign included: both point to the largest weight
    assert np.allclose(shares, sk.explained_variance_ratio_, atol=1e-9)


def test_embeddings_are_what_the_last_linear_layer_sees(photos: list[Path]) -> None:
    learn = classes(photos)
    rows = embeddings(learn)
    assert rows.shape == (16, 10)
    with torch.no_grad():
        assert torch.allclose(learn.model[6](rows).softmax(1), learn.get_preds().preds, atol=1e-5)
    learn.model.train()
    assert embeddings(learn, learn.dls.train).shape == (8, 10) and learn.model.training  # ordered, nothing dropped, mode kept
    assert not any(m._forward_pre_hooks for m in learn.model.modules())
    no_linear = Learner(learn.dls, nn.Sequential(nn.Conv2d(3, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    with pytest.raises(ValueError, match="no linear layer"):
        embeddings(no_linear)


def test_the_map_of_a_learner(photos: list[Path]) -> None:
    learn = classes(photos)
    chart = EmbeddingMap.from_learner(learn)
    assert torch.allclose(chart.points, pca(embeddings(learn))[0], atol=1e-6)
    assert chart.names == [f.name for f in photos[8:]] and chart.actual == [f.name[0] for f in photos[8:]]
    assert chart.predicted == [learn.predict(f).label for f in photos[8:]]
    some = EmbeddingMap.from_learner(learn, max_n=5)
    assert len(some.points) == 5 and "5 items of 16" in repr(some)
    assert all(torch.equal(p, chart.points[chart.names.index(n)]) for p, n in zip(some.points, some.names))
    data, metadata = chart._repr_mimebundle_()
    picture = next(k for k in data if k.startswith("image/"))
    assert "16 items" in metadata[picture]["alt"] and len(data[picture]) < 200_000
    item, out = chart.widget.children
    wrong = [i for i in range(16) if chart.wrong(i)]
    assert [i for _, i in item.options][: len(wrong)] == wrong and len(item.options) == 16
    item.value = 3
    near = [int(k) for k in (chart.features - chart.features[3]).norm(dim=1).argsort() if k != 3][:5]
    said = out.outputs[0]["metadata"][picture]["alt"]
    assert f"Picked: {chart.text(3)}." in said and [said.index(chart.text(k)) for k in near] == sorted(said.index(chart.text(k)) for k in near)
    chart.plot()
    assert "16 items" in plt.gcf().alt_text and sum(len(c.get_offsets()) for c in plt.gcf().axes[0].collections) == 16
    plt.close("all")
    unlabelled = EmbeddingMap.from_learner(learn, learn.dls.test_dl(photos[:3]))
    assert unlabelled.actual == [None] * 3 and "actual" not in unlabelled.text(0) and unlabelled.widget.children[1].outputs
    numbers = EmbeddingMap.from_learner(learner(photos, RegressionBlock, lambda f: float(f.stem[2:]), 1))
    assert "0 predicted wrongly" in repr(numbers) and numbers.widget.children[1].outputs


def test_the_map_draws_any_name() -> None:
    """The names are text of a figure and of a list: no HTML, no formula, no second line."""
    bad = ["<img src=x onerror=alert(1)>", "b", "$x$", r"$\\frac", "_hidden", "a\nb\x1b[2J", "x" * 500, ""]
    chart = EmbeddingMap(torch.eye(8)[:, :2], bad, bad[::-1], bad, [Image.new("RGB", (9, 5)), *[None] * 7])
    item, out = chart.widget.children
    assert len(item.options) == 8 and all(label.isprintable() and len(label) <= 160 for label, _ in item.options)
    item.value = 1
    assert "Picked: b:" in out.outputs[0]["data"]["text/plain"]
    chart.plot()
    labels = [t.get_text() for t in plt.gcf().axes[0].get_legend().get_texts()]
    assert all(len(t) < 40 and "\n" not in t for t in labels)
    plt.close("all")


def test_interpretation_of_a_loader_of_ones_own(photos: list[Path]) -> None:
    learn = classes(photos)
    dl = learn.dls.test_dl(photos[:5], with_labels=True)
    assert isinstance(dl, DataLoader) and len(Interpretation.from_learner(learn, dl=dl).losses) == 5


def test_the_second_of_two_targets(photos: list[Path]) -> None:
    """Predictions of several targets come as tuples, one entry per target; the loaders' blocks name the classes."""
    one = Interpretation.from_learner(classes(photos))
    parts = [(torch.zeros(len(part), 1), part) for part in (one.preds, one.targs, one.decoded)]
    blocks = [SimpleNamespace(vocab=None), SimpleNamespace(vocab=["x", "y", "z"])]
    two = SimpleNamespace(dls=SimpleNamespace(targets=blocks, vocab=None), eval_dl=lambda i: one.dl, get_preds=lambda dl, **_: [*parts, one.losses])
    interp = ClassificationInterpretation.from_learner(two, target=1)
    assert interp.vocab == ["x", "y", "z"] and torch.equal(interp.decoded, one.decoded) and torch.equal(interp.losses, one.losses)
    assert interp.confusion_matrix().shape == (3, 3) and Interpretation.from_learner(two).decoded.ndim == 2
