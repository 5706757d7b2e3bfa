#!/usr/bin/env python3
"""Whether a notebook that runs for hours grows: fit, predict, interpret, export and widgets, again and again in one kernel.

    python benchmarks/soak.py                  # two hours
    python benchmarks/soak.py --minutes 30 --log soak.jsonl

After every round the kernel counts its memory (RSS), Python objects, handles, threads and live widgets. After the first ten minutes (or a
third of the time, if that is less), memory must grow by less than 1%, from the median of the first half of the samples to the median of the
second half (a sample is the lowest of ten rounds). The most objects of the second half must be less than 1% above those of the first, and
the other three must not grow at all. Otherwise the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COUNTS = ("handles", "threads", "widgets")
ROUND = """
import soak
soak.work_round(place)
print("SAMPLE", soak.json.dumps(soak.sample()))
"""


# ---- In the kernel


def data(folder: Path) -> list[Path]:
    """A few dozen small images in two classes."""
    from PIL import Image

    files = [folder / f"class{i % 2}" / f"{i}.png" for i in range(24)]
    for i, file in enumerate(files):
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            Image.effect_noise((64, 48), 40 + 40 * (i % 2)).convert("RGB").save(file)
    return files


def work_round(place: str) -> None:
    """What a reader does in an hour, in a few seconds."""
    from IPython.display import display

    from coursekit.deploy.hub import load_learner
    from coursekit.interpret.interpretation import ClassificationInterpretation
    from coursekit.vision.data import ImageDataLoaders
    from coursekit.vision.learner import vision_learner
    from coursekit.vision.resize import Resize
    from coursekit.widgets import ImageClassifierCleaner, lr_explorer, upload_and_predict

    folder = Path(place)
    files = data(folder / "images")
    dls = ImageDataLoaders.from_folder(folder / "images", valid_pct=0.25, seed=1, item_tfms=Resize(32), bs=8, num_workers=0, cache="memory", device="cpu")
    learn = vision_learner(dls, "coursenet", seed=0)
    learn.lr_find(num_it=10)
    explorer = lr_explorer(learn)
    learn.fine_tune(1)
    interp = ClassificationInterpretation.from_learner(learn)
    interp.plot_confusion_matrix()
    interp.plot_top_losses(4)
    learn.show_results()
    learn.export(folder / "model.ck")
    loaded = load_learner(folder / "model.ck")
    for file in files[:4]:
        loaded.predict(file)
    page = upload_and_predict(loaded)
    page.take("a.png", files[0].read_bytes())
    page.toggle.value = True
    page.clear()
    cleaner = ImageClassifierCleaner(learn, max_n=6)
    display(cleaner, page, explorer)
    cleaner.choose(0, "delete")
    cleaner._view.show_page(6)
    for widget in (cleaner, page, explorer):
        widget.close()


def sample() -> dict[str, float]:
    """What this process holds."""
    import gc

    import ipywidgets
    import psutil

    gc.collect()
    objects = len(gc.get_objects())
    me = psutil.Process()
    handles = me.num_handles() if hasattr(me, "num_handles") else me.num_fds()
    return {"rss": me.memory_info().rss / 1e6, "objects": objects, "handles": handles, "threads": me.num_threads(), "widgets": len(ipywidgets.widgets.widget._instances)}


# ---- Outside


def rounds(minutes: float, place: str) -> Any:
    """A sample after each round, with its seconds since the start."""
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel()
    start, printed = time.monotonic(), []

    def hear(message: dict[str, Any]) -> None:
        if message["msg_type"] == "stream":
            printed.append(message["content"]["text"])
        elif message["msg_type"] == "error":
            raise RuntimeError("\n".join(message["content"]["traceback"]))

    try:
        run = lambda code: client.execute_interactive(code, output_hook=hear, store_history=False, timeout=900)
        run(f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'benchmarks')!r}]; place = {place!r}\n%matplotlib inline")
        while time.monotonic() - start < 60 * minutes:
            printed.clear()
            run(ROUND)
            line = next(line for line in "".join(printed).splitlines() if line.startswith("SAMPLE "))
            yield {"seconds": round(time.monotonic() - start, 1), **json.loads(line.removeprefix("SAMPLE "))}
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def verdict(samples: list[dict[str, float]], settled: float, *, tolerance: float = 0.01, group: int = 10) -> dict[str, Any]:
    """How memory, objects, handles, threads and widgets grew after the first seconds."""
    rest = [s for s in samples if s["seconds"] >= settled]
    group = max(1, min(group, len(rest) // 6))
    low = [min(s["rss"] for s in rest[i : i + group]) for i in range(0, len(rest) - group + 1, group)]
    half = len(low) // 2
    if not half:
        return {"rounds": len(samples), "problems": ["too few rounds; pass more --minutes"]}
    before, after = statistics.median(low[:half]), statistics.median(low[-half:])
    found: dict[str, Any] = {"rounds": len(samples), "rss_before": before, "rss_after": after, "growth": after / before - 1}
    problems = [f"memory grew by {after / before - 1:.2%}, from {before:.0f} to {after:.0f} MB"] if after > before * (1 + tolerance) else []
    for name in ("objects", *COUNTS):
        first, last = max(s[name] for s in rest[: len(rest) // 2]), max(s[name] for s in rest[len(rest) // 2 :])
        found[name] = (first, last)
        problems += [f"{name} grew from {first:.0f} to {last:.0f}"] if last > first * (1 + tolerance * (name == "objects")) else []
    return {**found, "problems": problems}


def main() -> int:
    parser = argparse.ArgumentParser(description="Whether a notebook that runs for hours grows.")
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--log", type=Path, help="write each sample to this file, one JSON object per line")
    args = parser.parse_args()
    samples: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory(prefix="coursekit-soak-") as place, open(args.log or "/dev/null", "w", encoding="utf-8") as log:
        for s in rounds(args.minutes, place):
            samples.append(s)
            log.write(json.dumps(s) + "\n")
            log.flush()
            if len(samples) % 10 == 1:
                counts = "  ".join(f"{s[k]:.0f} {k}" for k in ("objects", *COUNTS))
                print(f"{s['seconds'] / 60:6.1f} min  round {len(samples):5}  {s['rss']:7.1f} MB  {counts}", flush=True)
    found = verdict(samples, min(600, 20 * args.minutes))
    print(json.dumps(found))
    for problem in found["problems"]:
        print(f"! {problem}")
    return bool(found["problems"])


if __name__ == "__main__":
    sys.exit(main())
