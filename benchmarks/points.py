#!/usr/bin/env python3
"""Where is the pet's head? The center of its box as a point, learned by coursenet: distance to the truth on held-out pets.

    python benchmarks/points.py                     # one seed, in two minutes or less on two cores
    python benchmarks/points.py --seeds 3

The distance is measured in pixels of the original photo and given in percent of that photo's width.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from pathlib import Path
from xml.etree import ElementTree

import torch

from coursekit.vision.all import (
    DataBlock,
    ImageBlock,
    PointBlock,
    RandomSplitter,
    Resize,
    URLs,
    aug_transforms,
    course_data,
    data_mode,
    get_image_files,
    point_error,
    vision_learner,
)
from coursekit.vision.points import to_photo


def head_of(file: Path) -> tuple[float, float]:
    """The center of the head's box, in pixels of the photo."""
    box = ElementTree.parse(file.parents[1] / "annotations" / "xmls" / f"{file.stem}.xml").find("object/bndbox")
    left, top, right, bottom = (float(box.find(side).text) for side in ("xmin", "ymin", "xmax", "ymax"))
    return (left + right) / 2, (top + bottom) / 2


def with_boxes(path: Path) -> list[Path]:
    """The photos whose head is known: all drawn pets, half of the real ones."""
    return [f for f in get_image_files(path / "images") if (path / "annotations" / "xmls" / f"{f.stem}.xml").exists()]


def run(path: Path, seed: int, args: argparse.Namespace) -> tuple[float, float, float, float]:
    """Mean and median distance in shares of the photo's width, seconds, and the share of points within 4%."""
    block = DataBlock(blocks=(ImageBlock, PointBlock), get_items=with_boxes, get_y=head_of, splitter=RandomSplitter(0.2, seed=seed),
                      item_tfms=Resize(args.size, method="squish"), batch_tfms=aug_transforms(max_rotate=10, max_zoom=1.1))
    dls = block.dataloaders(path, bs=args.bs, seed=seed, cache="memory")
    learn = vision_learner(dls, args.arch, metrics=point_error, y_range=(-1.2, 1.2), ps=args.ps, seed=seed)
    learn.unfreeze()
    start = time.perf_counter()
    learn.fit_one_cycle(args.epochs, args.lr)
    seconds = time.perf_counter() - start
    preds, off = learn.get_preds().preds, []
    for i, p in enumerate(preds):
        item = dls.valid_ds.items[i]
        width = dls.valid_ds.encode_part(i, 0).shape[2]
        off.append(torch.dist(to_photo(p[None], dls.valid, i)[0], torch.tensor(head_of(item))).item() / width)
    return statistics.mean(off), statistics.median(off), seconds, sum(d <= 0.04 for d in off) / len(off)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="coursenet", help="architecture (default coursenet)")
    parser.add_argument("--size", type=int, default=96, help="pixels (default 96)")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--lr", type=float, default=5e-3, help="highest learning rate of the cycle (default 0.005)")
    parser.add_argument("--bs", type=int, default=32, help="images per batch (default 32)")
    parser.add_argument("--ps", type=float, default=0.1, help="dropout of the head (default 0.1)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, 0, 1, ... (default 1)")
    args = parser.parse_args()

    path = course_data(URLs.PETS)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {data_mode()} data")
    found = []
    for seed in range(args.seeds):
        mean, median, seconds, near = run(path, seed, args)
        found.append(mean)
        print(f"seed {seed}: {args.arch} at {args.size} px, {args.epochs} epochs in {seconds:.0f} s: mean distance {mean:.2%} of the photo's width, "
              f"median {median:.2%}; {near:.0%} within 4%", flush=True)
    if len(found) > 1:
        print(f"{len(found)} seeds: {statistics.mean(found):.2%} on average, {min(found):.2%} to {max(found):.2%}")


if __name__ == "__main__":
    main()
