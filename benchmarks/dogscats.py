#!/usr/bin/env python3
"""Cats against dogs on real photos, from scratch: error and seconds, and that `predict` agrees with `get_preds`.

    COURSEKIT_MIRROR=../shared/data python benchmarks/dogscats.py

Without COURSEKIT_MIRROR the public archive is downloaded (800 MB). The split is the archive's own: train/ and valid/.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch

from coursekit.vision.all import ImageDataLoaders, Resize, URLs, aug_transforms, error_rate, untar_data, vision_learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="coursenet", help="architecture (default coursenet)")
    parser.add_argument("--size", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--epochs", type=int, default=24, help="epochs (default 24)")
    parser.add_argument("--lr", type=float, default=5e-3, help="highest rate of the cycle (default 0.005)")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    path = untar_data(URLs.DOGS)
    dls = ImageDataLoaders.from_folder(path, seed=args.seed, bs=32, item_tfms=Resize(args.size),
                                        batch_tfms=aug_transforms())
    learn = vision_learner(dls, args.arch, metrics=error_rate, pretrained=False, seed=args.seed)
    start = time.perf_counter()
    learn.fit_one_cycle(args.epochs, args.lr)
    seconds = time.perf_counter() - start
    preds = learn.get_preds().preds
    some = dls.valid_ds.items[:200:10]
    worst = max((learn.predict(f).probabilities - p).abs().max().item() for f, p in zip(some, preds[:200:10]))
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, "
          f"torch {torch.__version__}, {learn.device.type}, {'bf16' if learn.autocast_dtype else 'fp32'}")
    print(f"{args.arch} at {args.size} px, {args.epochs} epochs, {len(dls.train_ds):,} photos to learn from: "
          f"error {learn.recorder.final_record[-1]:.1%} on {len(dls.valid_ds):,} in {seconds:.0f} s; "
          f"predict differs from get_preds by at most {worst:.1e}")


if __name__ == "__main__":
    main()
