#!/usr/bin/env python3
"""Which animals, people and things does a scene show? Several labels per image, learned by coursenet: F1 on held-out images.

    python benchmarks/labels.py                     # one seed
    python benchmarks/labels.py --seeds 3

"macro" is the mean over the labels, "micro" counts all answers alike. A label is given above a probability of 0.5, and above the threshold that is best
for the validation images. The test images had no say in either.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pandas as pd
import torch
from seeds import by_seed

from coursekit.vision.all import (
    F1ScoreMulti,
    ImageDataLoaders,
    Resize,
    URLs,
    aug_transforms,
    threshold_curve,
    vision_learner,
)


def f1(probs: torch.Tensor, truth: torch.Tensor, *, thresh: float = 0.5, average: str = "macro") -> float:
    """F1 of probabilities, (N, C)."""
    score = F1ScoreMulti(thresh, average=average, sigmoid=False)
    score.update(probs, truth)
    return score.compute()


def run(path: Path, seed: int, args: argparse.Namespace) -> tuple[str, float]:
    """A line about one seed, and its macro F1 on the validation images."""
    table, test = pd.read_csv(path / "train.csv"), pd.read_csv(path / "test.csv")
    dls = ImageDataLoaders.from_df(table, path, folder="train", valid_col="is_valid", label_delim=" ", seed=seed, item_tfms=Resize(args.size, method="squish"),
                                   batch_tfms=aug_transforms(), bs=args.bs, cache="memory")
    learn = vision_learner(dls, args.arch, metrics=F1ScoreMulti(), ps=0.1, seed=seed)
    start = time.perf_counter()
    learn.fine_tune(args.epochs, args.lr, lr_mult=5)
    seconds = time.perf_counter() - start
    valid = learn.get_preds()
    best = threshold_curve(valid.preds, valid.targs).best
    held = learn.get_preds(dl=learn.dls.test_dl(test.assign(fname="../test/" + test.fname), with_labels=True))
    scores = [f"{name} macro {f1(p.preds, p.targs):.3f}, micro {f1(p.preds, p.targs, average='micro'):.3f}, macro at {best:.2f} {f1(p.preds, p.targs, thresh=best):.3f}"
              for name, p in (("validation:", valid), ("test:", held))]
    return f"{seconds:.0f} s; {'; '.join(scores)}", f1(valid.preds, valid.targs)


if __name__ == "__main__":
    by_seed(__doc__, URLs.PASCAL_2007, run, epochs=14, lr=8e-3, what="macro F1 on the validation images")
