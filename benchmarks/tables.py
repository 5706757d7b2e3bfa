#!/usr/bin/env python3
"""How fast a table is iterated: rows per second of a shuffled `DataLoader` over a dataset that serves whole batches.

    python benchmarks/tables.py              # batches of 64 and 256, as a table
    python benchmarks/tables.py --workers 2  # prepared by worker processes

The table is as large as the Adult census: 32,561 rows with 8 categories (int64), 6 numbers (float32) and a label.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from coursekit.data.loader import DataLoader


class Rows:
    """Columns of a table, sliced a batch at a time."""

    def __init__(self, n: int = 32_561):
        g = torch.Generator().manual_seed(0)
        self.cats, self.nums = torch.randint(0, 40, (n, 8), generator=g), torch.randn(n, 6, generator=g)
        self.labels = torch.randint(0, 2, (n,), generator=g)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.cats[indices], self.nums[indices], self.labels[indices]


def rows_per_second(bs: int, *, workers: int = 0, runs: int = 7) -> float:
    """The median over several epochs."""
    dl = DataLoader(Rows(), bs=bs, shuffle=True, num_workers=workers, device="cpu")
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        n = sum(batch.size for batch in dl)
        times.append(time.perf_counter() - start)
    return n / statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (default 0)")
    args = parser.parse_args()
    print("| batch size | rows/s |\n|---|---|")
    for bs in (64, 256):
        print(f"| {bs} | {rows_per_second(bs, workers=args.workers):,.0f} |")


if __name__ == "__main__":
    main()
