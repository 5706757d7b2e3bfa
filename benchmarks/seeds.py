"""The command line that benchmarks of accuracy share: one training per seed, a line about each, and the figure over all of them."""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from coursekit.course.compare import interval
from coursekit.vision.all import course_data, data_mode


def mean_line(found: Sequence[float], what: str, form: str) -> str:
    """The mean of some figures with its 95% interval (Student's t), and the range of the figures."""
    mean, half = interval(found)
    return f"{len(found)} seeds: {what} {mean:{form}} ± {half:{form}} (95% interval), {min(found):{form}} to {max(found):{form}}"


def by_seed(
    doc: str,  # what the script measures; its first line is the help
    url: str,  # of the data
    run: Callable[[Path, int, argparse.Namespace], tuple[str, float]],  # path, seed, options -> a line about the seed, and its figure
    *,
    epochs: int,
    lr: float,
    what: str,  # what the figure is
    form: str = ".3f",  # how it is written
) -> None:
    """Read the options, train once per seed and print what was found."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--arch", default="coursenet", help="architecture (default coursenet)")
    parser.add_argument("--size", type=int, default=96, help="pixels (default 96)")
    parser.add_argument("--epochs", type=int, default=epochs, help=f"(default {epochs})")
    parser.add_argument("--lr", type=float, default=lr, help=f"highest learning rate (default {lr:g})")
    parser.add_argument("--bs", type=int, default=32, help="images per batch (default 32)")
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, 0, 1, ... (default 1)")
    args = parser.parse_args()
    path = course_data(url)
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, Python {platform.python_version()}, torch {torch.__version__}, {data_mode()} data")
    found = []
    for seed in range(args.seeds):
        line, figure = run(path, seed, args)
        found.append(figure)
        print(f"seed {seed}: {args.arch} at {args.size} px, {args.epochs} epochs in {line}", flush=True)
    if len(found) > 1:
        print(mean_line(found, what, form))
