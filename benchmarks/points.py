#!/usr/bin/env python3
"""Where is the pet's head? The center of its box as a point, learned by coursenet: distance to the truth on held-out pets.

    python benchmarks/points.py                     # one seed, in two minutes or less on two cores
    python benchmarks/points.py --seeds 3

The distance is measured in pixels of the original photo and given in percent of that photo's width.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from xml.etree import ElementTree

import torch
from seeds import by_seed

from coursekit.vision.all import (
    DataBlock,
    ImageBlock,
    PointBlock,
    RandomSplitter,
    Resize,
    URLs,
    aug_transforms,
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


def run(path: Path, seed: int, args: argparse.Namespace) -> tuple[str, float]:
    """A line about one seed, and its mean distance in shares of the photo's width."""
    block = DataBlock(blocks=(ImageBlock, PointBlock), get_items=with_boxes, get_y=head_of, splitter=RandomSplitter(0.2, seed=seed),
                      item_tfms=Resize(args.size, method="squish"), batch_tfms=aug_transforms(max_rotate=10, max_zoom=1.1))
    dls = block.dataloaders(path, bs=args.bs, seed=seed, cache="memory")
    learn = vision_learner(dls, args.arch, metrics=point_error, seed=seed)
    start = time.perf_counter()
    learn.fine_tune(args.epochs, args.lr, lr_mult=5)
    seconds, preds, off = time.perf_counter() - start, learn.get_preds().preds, []
    for i, p in enumerate(preds):
        width = dls.valid_ds.encode_part(i, 0).shape[2]
        off.append(torch.dist(to_photo(p[None], dls.valid, i)[0], torch.tensor(head_of(dls.valid_ds.items[i]))).item() / width)
    mean, near = statistics.mean(off), sum(d <= 0.04 for d in off) / len(off)
    return f"{seconds:.0f} s: mean distance {mean:.2%} of the photo's width, median {statistics.median(off):.2%}; {near:.0%} within 4%", mean


if __name__ == "__main__":
    by_seed(__doc__, URLs.PETS, run, epochs=6, lr=8e-3, what="mean distance", form=".2%")
