#!/usr/bin/env python3
"""Which animals, people and things does a scene show? Several labels per image, learned by coursenet: F1 on held-out images.

    python benchmarks/labels.py                     # one seed
    python benchmarks/labels.py --seeds 3

"macro" is the mean over the labels, "micro" counts all answers alike. A label is given above a probability of 0.5, and above the threshold that is best
for the validation images. The test images had no say in either.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path

import pandas as pd
import torch

from coursekit.vision.all import (
    F1ScoreMulti,
    ImageDataLoaders,
    Resize,
    URLs,
    aug_transforms,
    course_data,
    data_mode,
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
    learn = vision_learner(dls, args.arch, metrics=F1ScoreMulti(), ps=args.ps, seed=seed)
    start = time.perf_counter()
    learn.fine_tune(args.epochs, args.lr, lr_mult=5)
    seconds = time.perf_counter() - start
    valid = learn.get_preds()
    best = threshold_curve(valid.preds, valid.targs).best
    held = learn.get_preds(dl=learn.dls.test_dl(test.assign(fname="../test/" + test.fname), with_labels=True))
    scores = [f"{name} macro {f1(p.preds, p.targs):.3f}, micro {f1(p.preds, p.targs, average='micro'):.3f}, macro at {best:.2f} {f1(p.preds, p.targs, thresh=best):.3f}"
              for name, p in (("validation:", valid), ("test:", held))]
    return f"{seconds:.0f} s; {'; '.join(scores)}", f1(valid.preds, valid.targs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="coursenet", help="architecture (default coursenet)")
    parser.add_argument("--size", type=int, default=96, help="pixels (default 96)")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=8e-3, help="learning rate of fine_tune (default 0.008)")
    parser.add_argument("--bs", type=int, default=32, help="images per batch (default 32)")
    parser.add_argument("--ps", type=float, default=0.1, help="dropout of the head (default 0.1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, 0, 1, ... (default 1)")
    args = parser.parse_args()

    path = course_data(URLs.PASCAL_2007)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {data_mode()} data")
    found = []
    for seed in range(args.seeds):
        line, score = run(path, seed, args)
        found.append(score)
        print(f"seed {seed}: {args.arch} at {args.size} px, {args.epochs} epochs in {line}", flush=True)
    if len(found) > 1:
        print(f"{len(found)} seeds: macro F1 {statistics.mean(found):.3f} on average, {min(found):.3f} to {max(found):.3f}")


if __name__ == "__main__":
    main()
