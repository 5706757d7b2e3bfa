#!/usr/bin/env python3
"""What the package costs beyond PyTorch: microseconds a batch of the training loop, and seconds of import.

    python benchmarks/overhead.py              # both, as a table
    python benchmarks/overhead.py --runs 9     # more runs; the table shows medians of runs taken in turn

The loop trains a 10-to-2 linear model in batches of 64, so that nearly all of the time is the loop itself. The bare
loop is written by hand and gives the same results: every batch's loss, validation loss and accuracy. The learner adds
one-cycle scheduling of rate and momentum, their record, callbacks, checks and progress (drawn into nothing). Both use
the same fused AdamW with weight decay on weights but not on biases, float32 and the same tensors.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import statistics
import subprocess
import sys
import time


def batches(n: int) -> list:
    import torch

    g = torch.Generator().manual_seed(0)
    return [(torch.randn(64, 10, generator=g), torch.randint(0, 2, (64,), generator=g)) for _ in range(n)]


def bare(data: list, epochs: int) -> float:
    """Seconds of a hand-written loop over the training data and a validation pass, as a Learner does."""
    import torch
    import torch.nn.functional as F

    model = torch.nn.Linear(10, 2)
    groups = [{"params": [model.weight], "weight_decay": 0.01}, {"params": [model.bias], "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=1e-3, fused=True)
    losses, start = [], time.perf_counter()
    for _ in range(epochs):
        model.train()
        for x, y in data:
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
            losses.append(loss.item())
        model.eval()
        total = correct = n = 0
        with torch.no_grad():
            for x, y in data:
                preds = model(x)
                total += F.cross_entropy(preds, y) * len(y)
                correct += (preds.argmax(1) == y).float().sum()
                n += len(y)
        losses.append((float(total) / n, float(correct) / n))
    return time.perf_counter() - start


def learner(data: list, epochs: int) -> float:
    """Seconds of `fit_one_cycle` on the same."""
    import torch

    from coursekit.training.learner import Learner
    from coursekit.training.metrics import accuracy

    learn = Learner((data, data), torch.nn.Linear(10, 2), torch.nn.CrossEntropyLoss(), metrics=accuracy, device="cpu",
                    precision="fp32", seed=0)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        start = time.perf_counter()
        learn.fit_one_cycle(epochs)
        return time.perf_counter() - start


def import_seconds(what: str) -> float:
    code = f"import time; t = time.perf_counter(); {what}; print(time.perf_counter() - t)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5, help="runs of each, taken in turn (default 5)")
    parser.add_argument("--batches", type=int, default=500, help="batches an epoch (default 500)")
    runs, n = (args := parser.parse_args()).runs, args.batches
    import torch

    data, epochs = batches(n), 2
    bare(data, 1), learner(data, 1)
    pairs = [(bare(data, epochs), learner(data, epochs)) for _ in range(runs)]
    a, b = (statistics.median(p) / (epochs * n * 2) * 1e6 for p in zip(*pairs))
    ratio = statistics.median(y / x for x, y in pairs)
    imports = [(import_seconds("import torch, torchvision"),
                import_seconds("import torch, torchvision; from coursekit.vision.all import *")) for _ in range(runs)]
    base, ours = (statistics.median(p) for p in zip(*imports))
    extra = statistics.median(y - x for x, y in imports)
    print(f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, "
          f"Python {platform.python_version()}, torch {torch.__version__}; medians of {runs} runs taken in turn\n")
    print("| | bare PyTorch | coursekit | |\n|---|---|---|---|")
    print(f"| loop, µs a batch (training and validation) | {a:.0f} | {b:.0f} | {ratio:.2f} x |")
    print(f"| import, s (torch + torchvision; vision.all) | {base:.2f} | {ours:.2f} | + {extra:.2f} s |")


if __name__ == "__main__":
    main()
