#!/usr/bin/env python3
"""How fast a table is iterated, and how much memory a large one takes.

    python benchmarks/tables.py                     # rows per second of a shuffled `DataLoader`, in batches of 64 and 256
    python benchmarks/tables.py --workers 2         # prepared by worker processes
    python benchmarks/tables.py --large frame       # peak memory of 10 million rows x 20 columns (Linux), from a DataFrame
    python benchmarks/tables.py --large parquet     # ... from a Parquet file

For the speed, the table is as large as the Adult census: 32,561 rows with 8 categories (int64), 6 numbers (float32) and a label, served in whole batches.
For the memory, it has 9 columns of categories, 10 of numbers and a label. What is counted is what encoding and training add to the process: the
largest resident memory until 200 batches of 1,024 are trained, less that before encoding, as a multiple of the encoded table.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
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


def megabytes(field: str) -> float:
    """VmRSS, the resident memory of this process, or VmHWM, its peak."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1e3


def large_table(n: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    columns: dict[str, np.ndarray] = {f"c{j}": rng.integers(0, 100, n, dtype=np.int16) for j in range(9)}
    columns |= {f"x{j}": rng.standard_normal(n, dtype=np.float32) for j in range(10)}
    return {**columns, "y": (columns["x0"] + rng.standard_normal(n, dtype=np.float32) > 0).astype(np.int8)}


def write_parquet(file: Path, n: int) -> None:
    """In a process of its own, so that the memory for it isn't counted."""
    import subprocess
    import sys

    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import tables, pandas as pd; pd.DataFrame(tables.large_table({n})).to_parquet({str(file)!r})"
    subprocess.run([sys.executable, "-c", code], check=True)


def peak(source: str, n: int) -> str:
    """The line that tells how much memory a large table takes."""
    import pandas as pd

    from coursekit.tabular.all import Categorify, CategoryBlock, Normalize, TabularDataLoaders, tabular_learner
    from coursekit.tabular.frames import parquet_columns
    from coursekit.training.callback import Callback, CancelFitException

    class Stop(Callback):
        def after_batch(self, learn) -> None:
            if learn.state.step >= 200:
                raise CancelFitException

    with tempfile.TemporaryDirectory() as folder:
        if source == "parquet":
            write_parquet(Path(folder, "table.parquet"), n)
        table = parquet_columns(Path(folder, "table.parquet")) if source == "parquet" else pd.DataFrame(large_table(n))
        warm = TabularDataLoaders.from_df(pd.DataFrame(large_table(1000)), cat_names=["c0"], cont_names=["x0"], y_names="y", y_block=CategoryBlock())
        tabular_learner(warm).fit(1)  # what PyTorch and the package load themselves isn't counted
        before = megabytes("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
        start = time.perf_counter()
        cats, conts = [f"c{j}" for j in range(9)], [f"x{j}" for j in range(10)]
        encoded = TabularDataLoaders.from_df(table, procs=[Categorify, Normalize], cat_names=cats, cont_names=conts, y_names="y", y_block=CategoryBlock(),
                                             valid_pct=0.01, seed=0, bs=1024)
        seconds = time.perf_counter() - start
        size = sum(ds.nbytes() for ds in (encoded.train_ds, encoded.valid_ds)) / 1e6
        tabular_learner(encoded).fit(1, 1e-3, cbs=Stop())
        added = megabytes("VmHWM") - before
    return f"| {source} | {n:,} | {seconds:.0f} | {size:,.0f} | {added:,.0f} | {added / size:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=0, help="processes that prepare batches (default 0)")
    parser.add_argument("--large", choices=["frame", "parquet"], help="the memory of a large table instead, from a DataFrame or a Parquet file")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the large table (default 10 million)")
    args = parser.parse_args()
    if args.large:
        print("| from | rows | seconds to encode | encoded, MB | added at most, MB | times |\n|---|---|---|---|---|---|")
        print(peak(args.large, args.rows))
        return
    print("| batch size | rows/s |\n|---|---|")
    for bs in (64, 256):
        print(f"| {bs} | {rows_per_second(bs, workers=args.workers):,.0f} |")


if __name__ == "__main__":
    main()
