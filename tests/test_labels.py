"""Several labels per item: the road from a table to an exported model, and thresholds chosen by a curve."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics as sk
import torch
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from coursekit.data.block import MultiCategoryBlock, RegressionBlock
from coursekit.interpret.curves import set_thresh, threshold_curve
from coursekit.interpret.interpretation import Interpretation
from coursekit.training.count_metrics import F1ScoreMulti, FBetaMulti, JaccardMulti, PrecisionMulti, RecallMulti
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.metrics import accuracy_multi
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.learner import vision_learner
from coursekit.vision.resize import Resize

COLORS = {"red": "#d02020", "green": "#20a040", "blue": "#2040d0"}
OPTIONS = {"item_tfms": Resize(32), "bs": 8, "num_workers": 0, "device": "cpu", "seed": 0}


@pytest.fixture(scope="module")
def balls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Images of colored balls, and a table of which: 48 rows, some without a label."""
    root, rng, rows = tmp_path_factory.mktemp("balls"), random.Random(0), []
    for k in range(48):
        img = Image.new("RGB", (40, 40), (rng.randint(160, 255),) * 3)
        there = [c for c in COLORS if rng.random() < 0.5] if k > 3 else list(COLORS)
        for i, c in enumerate(there):
            x, y = 6 + 11 * i + rng.randint(0, 3), rng.randint(8, 30)
            ImageDraw.Draw(img).ellipse((x - 5, y - 5, x + 5, y + 5), fill=COLORS[c])
        img.save(root / f"{k}.png")
        rows.append((f"{k}.png", " ".join(there), k % 4 == 0))
    return root, pd.DataFrame(rows, columns=["fname", "labels", "is_valid"])


def loaders(balls: tuple[Path, pd.DataFrame], **options) -> ImageDataLoaders:
    root, df = balls
    return ImageDataLoaders.from_df(options.pop("df", df), root, **{"valid_col": "is_valid", "label_delim": " "} | OPTIONS | options)


# ------------------------------------------------------------------------------------------------ tables


def test_a_table_and_its_csv_file_are_the_same(balls) -> None:
    root, df = balls
    df.to_csv(root / "train.csv", index=False)
    one = loaders(balls)
    two = ImageDataLoaders.from_csv(root, "train.csv", label_delim=" ", valid_col="is_valid", **OPTIONS)
    assert one.vocab == two.vocab == sorted(COLORS) and isinstance(one.targets[0], MultiCategoryBlock)
    assert all(torch.equal(a.y, b.y) and torch.equal(a.x, b.x) for a, b in zip(one.valid, two.valid))
    assert len(one.train_ds) + len(one.valid_ds) == len(df)  # an empty cell is an item without a label, not an item to drop


@pytest.mark.parametrize(("change", "options", "facts"), [
    ({}, {"label_delim": ";"}, ["label_delim=';'", "labels", "label_delim=' '"]),
    ({"fname": lambda f: f.replace("7.png", "gone.png")}, {}, ["5 of 48", "gone.png", "drop these rows"]),
    ({"fname": lambda f: f.removesuffix(".png")}, {}, ["48 of 48", "suff='.png'"]),
    ({}, {"folder": "images"}, ["48 of 48", "images", "folder"]),
    ({"labels": lambda _: ""}, {}, ["none of", "label", "get_y"]),
    ({"labels": lambda v: "purple" if v == "red green blue" else v}, {"valid_col": "last"}, ["'purple'", "vocab=[...]"]),
], ids=["delimiter", "no file", "no ending", "no folder", "no labels", "unknown label"])  # fmt: skip
def test_a_bad_table_is_one_error_with_the_fix(balls, change, options, facts) -> None:
    df = balls[1].copy()
    for column, func in change.items():
        df[column] = df[column].map(func)
    df["last"] = df["labels"] == "purple"
    with raises(ValueError, *facts):
        loaders(balls, df=df, **options)


def test_cells_of_one_label_each_may_be_meant(balls) -> None:
    df = balls[1].copy()
    df["labels"] = ["red" if k % 2 else "blue" for k in range(48)]
    with raises(ValueError, "label_delim=';'", "leave it out"):
        loaders(balls, df=df, label_delim=";")
    assert loaders(balls, df=df, label_delim=";", y_block=MultiCategoryBlock).vocab == ["blue", "red"]


# ------------------------------------------------------------------------------------------------ metrics and thresholds

LABELS = st.tuples(st.integers(1, 30), st.integers(2, 5), st.integers(0, 2**31))


@settings(max_examples=60, deadline=None)
@given(LABELS, st.floats(0.05, 0.95), st.sampled_from(["macro", "micro", "weighted"]))
def test_metrics_are_scikit_learn_s(shape, thresh, average) -> None:
    n, c, seed = shape
    rng = torch.Generator().manual_seed(seed)
    scores, truth = torch.randn(n, c, generator=rng), (torch.rand(n, c, generator=rng) < 0.4).float()
    given_ = (scores.sigmoid() > thresh).numpy()
    for metric, func in ((PrecisionMulti(thresh, average=average), sk.precision_score), (RecallMulti(thresh, average=average), sk.recall_score),
                         (F1ScoreMulti(thresh=thresh, average=average), sk.f1_score), (JaccardMulti(thresh, average=average), sk.jaccard_score),
                         (FBetaMulti(2, thresh=thresh, average=average), functools.partial(sk.fbeta_score, beta=2))):
        assert metric(scores, truth) == pytest.approx(func(truth.numpy(), given_, average=average, zero_division=0), abs=1e-9)
    assert F1ScoreMulti(thresh, sigmoid=False, average=average)(scores.sigmoid(), truth) == pytest.approx(F1ScoreMulti(thresh, average=average)(scores, truth))


@settings(max_examples=30, deadline=None)
@given(LABELS, st.sampled_from([0.5, 1.0, 2.0]))
def test_the_curve_of_several_labels_is_scikit_learn_s(shape, beta) -> None:
    n, c, seed = shape
    rng = torch.Generator().manual_seed(seed)
    probs, truth = torch.rand(n, c, generator=rng), (torch.rand(n, c, generator=rng) < 0.5).float()
    truth[0, 0] = 1
    curve = threshold_curve(probs, truth, beta=beta)
    assert len(curve.thresholds) == 99 and curve.thresholds[49] == 0.5
    for k in (0, 24, 49, 90):
        said = (probs.double() > curve.thresholds[k]).numpy()
        want = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": functools.partial(sk.fbeta_score, beta=beta)}
        for name, func in want.items():
            assert getattr(curve, name)[k].item() == pytest.approx(func(truth.numpy(), said, average="macro", zero_division=0))
        assert curve.accuracy[k].item() == pytest.approx((said == truth.numpy()).mean())
    best = F1ScoreMulti(curve.best, sigmoid=False) if beta == 1 else FBetaMulti(beta, thresh=curve.best, sigmoid=False)
    assert best(probs.double(), truth) == pytest.approx(curve.f1.max().item())


def test_a_threshold_is_used_everywhere_and_travels_with_the_model(balls, tmp_path: Path) -> None:
    learn = vision_learner(loaders(balls), "coursenet", metrics=[accuracy_multi, F1ScoreMulti()], lin_ftrs=[16], seed=0, precision="fp32")
    with learn.no_bar():
        learn.fit_one_cycle(3, 1e-2)
        preds, targs = learn.get_preds()
    curve = threshold_curve(preds, targs)
    set_thresh(learn, curve.best)
    said = (preds > curve.best).float()
    assert learn.validate()[1:] == pytest.approx([(said == targs).float().mean().item(), curve.f1.max().item()], abs=1e-6)
    assert torch.equal(learn.get_preds(with_decoded=True).decoded, said.bool())
    items = learn.dls.valid_ds.items
    labels = [learn.predict(i).label for i in items]
    assert labels == [[learn.dls.vocab[c] for c in row.nonzero().flatten()] for row in said]
    file = learn.export(tmp_path / "balls.ck")
    code = f"""import json
from coursekit.deploy.hub import load_learner
learn = load_learner({str(file)!r}, device="cpu")
found = learn.get_preds(learn.dls.test_dl([{str(balls[0])!r} + "/" + name for name in {[str(i["fname"]) for i in items]}]))
print(json.dumps([learn.loss_func.thresh, [learn.predict({str(balls[0])!r} + "/" + n).label for n in {[str(i["fname"]) for i in items]}], found.preds.tolist()]))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    thresh, elsewhere, probs = json.loads(done.stdout.splitlines()[-1])
    assert thresh == curve.best and elsewhere == labels and np.allclose(probs, preds, atol=1e-4)


def test_a_learner_without_labels_has_no_threshold() -> None:
    with raises(ValueError, "set_thresh", "MSELossFlat", "MultiCategoryBlock"):
        set_thresh(synthetic_learner(), 0.3)
    with raises(ValueError, "thresh", 1.5):
        set_thresh(synthetic_learner(), 1.5)


# ------------------------------------------------------------------------------------------------ what is shown


def test_wrong_and_missed_labels_are_marked_in_words(balls) -> None:
    learn = vision_learner(loaders(balls), "coursenet", lin_ftrs=[16], seed=0, precision="fp32")
    learn.show_results(max_n=12)
    titles = [ax.get_title().replace("\n", " ") for ax in plt.gcf().axes[:12]]
    plt.close("all")
    found = learn.get_preds(with_decoded=True)
    for title, said, there in zip(titles, found.decoded.tolist(), found.targs.bool().tolist()):
        names = sorted(COLORS)
        assert title.count("✗") == sum(s and not t for s, t in zip(said, there)) and title.count("missed") == sum(t and not s for s, t in zip(said, there))
        assert all(f"{n} ✗" in title for n, s, t in zip(names, said, there) if s and not t)


def test_the_report_of_labels_is_scikit_learn_s(balls) -> None:
    learn = vision_learner(loaders(balls), "coursenet", lin_ftrs=[16], seed=0, precision="fp32")
    interp = Interpretation.from_learner(learn)
    want = sk.precision_recall_fscore_support(interp.targs, interp.decoded, zero_division=0)
    rows = interp.report().values
    assert [r[0] for r in rows] == [*sorted(COLORS), "mean over labels"]
    assert np.allclose([r[1:] for r in rows[:-1]], np.array(want).T) and rows[-1][3] == pytest.approx(want[2].mean())
    interp.plot_top_losses(4)
    plt.close("all")


def test_the_report_of_numbers(balls) -> None:
    df = balls[1].copy()
    df["a"], df["b"] = np.arange(48) / 10, np.arange(48) % 7 / 2
    learn = vision_learner(loaders(balls, df=df, label_col=["a", "b"], label_delim=None, y_block=RegressionBlock), "coursenet", lin_ftrs=[16], seed=0)
    interp = Interpretation.from_learner(learn)
    off = (interp.preds - interp.targs).double().numpy()
    want = [off.mean(0), abs(off).mean(0), (off**2).mean(0) ** 0.5, abs(off).max(0)]
    assert np.allclose([r[1:5] for r in interp.report().values], np.array(want).T, atol=1e-5)


def test_a_classifier_has_another_report(balls) -> None:
    df = balls[1].copy()
    df["labels"] = ["red" if k % 2 else "blue" for k in range(48)]
    learn: Learner = vision_learner(loaders(balls, df=df, label_delim=None), "coursenet", lin_ftrs=[16], seed=0)
    with raises(ValueError, "category", "ClassificationInterpretation"):
        Interpretation.from_learner(learn).report()
