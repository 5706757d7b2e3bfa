#!/usr/bin/env python3
"""Cats against dogs on 2,000 real photos: error on 2,000 others, and seconds.

    COURSEKIT_MIRROR=../shared/data python benchmarks/dogscats.py                     # coursenet from scratch
    COURSEKIT_MIRROR=../shared/data python benchmarks/dogscats.py --arch efficientnet_lite0 --size 160 --fine-tune 3 --seeds 3

Without COURSEKIT_MIRROR the public archive is downloaded (800 MB). The split is the archive's own: train/ and valid/.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

import torch
from seeds import mean_line

from coursekit.vision.all import ImageDataLoaders, Resize, URLs, aug_transforms, error_rate, untar_data, vision_learner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="coursenet", help="architecture (default coursenet)")
    parser.add_argument("--size", type=int, default=64, help="pixels (default 64)")
    parser.add_argument("--epochs", type=int, default=24, help="epochs from scratch (default 24)")
    parser.add_argument("--fine-tune", type=int, metavar="EPOCHS", help="start from the weights of ImageNet and fine-tune, with the default learning rate")
    parser.add_argument("--lr", type=float, default=5e-3, help="highest learning rate from scratch (default 0.005)")
    parser.add_argument("--seed", type=int, default=42, help="first seed (default 42)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds (default 1)")
    args = parser.parse_args()

    path = untar_data(URLs.DOGS)
    errors = []
    for seed in range(args.seed, args.seed + args.seeds):
        start = time.perf_counter()
        dls = ImageDataLoaders.from_folder(path, seed=seed, bs=32, item_tfms=Resize(args.size), batch_tfms=aug_transforms())
        learn = vision_learner(dls, args.arch, metrics=error_rate, pretrained=bool(args.fine_tune), seed=seed)
        if args.fine_tune:
            learn.fine_tune(args.fine_tune)
        else:
            learn.fit_one_cycle(args.epochs, args.lr)
        seconds = time.perf_counter() - start
        errors.append(100 * learn.recorder.final_record[-1])
        if seed == args.seed:
            print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {learn.device.type}, "
                  f"{'bf16' if learn.autocast_dtype else 'fp32'}; {args.arch} at {args.size} px, "
                  f"{f'fine_tune({args.fine_tune})' if args.fine_tune else f'{args.epochs} epochs'}, {len(dls.train_ds):,} photos to learn from")
        print(f"seed {seed}: {errors[-1]:.2f}% of {len(dls.valid_ds):,} wrong, {seconds:.0f} s", flush=True)
    if len(errors) > 1:
        print(mean_line(errors, "percent wrong", ".2f"))


if __name__ == "__main__":
    main()
