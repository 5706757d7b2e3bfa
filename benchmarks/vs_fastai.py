"""coursekit and fastai on the same data, on this machine, one after the other; writes the table that benchmarks/README.md links to.

    python -m venv /tmp/peer && /tmp/peer/bin/pip install fastai torchvision       # fastai lives in an environment of its own
    python benchmarks/vs_fastai.py --data ../shared/data --peer /tmp/peer/bin/python
    python benchmarks/vs_fastai.py --cases tabular collab --rounds 3 --out benchmarks/vs_fastai_tables.md
    python benchmarks/vs_fastai.py --cases text --rounds 3 --out benchmarks/vs_fastai_text.md

DATA holds dogscats.tgz, adult_sample.tgz, movie_lens_sample.tgz and imdb.tgz (or what they hold, extracted). fastai's side is `../shared/peer/fastai_baseline.py`; each side runs in a process
of its own, so that its peak memory can be told. --rounds takes turns several times and reports the medians. Nothing else should run meanwhile.
"""
import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
CASES = ("pipeline", "train", "tabular", "collab", "text")
ARCHIVES = {"pipeline": "dogscats", "train": "dogscats", "tabular": "adult_sample", "collab": "movie_lens_sample", "text": "imdb"}  # what each case reads


def say(case, figure, value, unit):
    print(json.dumps({"case": case, "figure": figure, "value": round(value, 4), "unit": unit}), flush=True)


def timed(f):
    start = time.perf_counter()
    result = f()
    return time.perf_counter() - start, result


def adult(data: Path, bs: int, seed: int):
    "The learner that fastai_baseline.py trains, with another batch size if asked for."
    from coursekit.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, accuracy, tabular_learner

    dls = TabularDataLoaders.from_csv(
        data / "adult_sample" / "adult.csv", path=data, y_names="salary", bs=bs, seed=seed, procs=[Categorify, FillMissing, Normalize],
        cat_names=["workclass", "education", "marital-status", "occupation", "relationship", "race"], cont_names=["age", "fnlwgt", "education-num"])
    return tabular_learner(dls, metrics=accuracy, seed=seed)


def tabular(data: Path, seed: int) -> None:
    "Three epochs of Adult as fastai_baseline.py trains it; then in larger batches, beside gradient boosting on the same rows and columns."
    from sklearn.ensemble import HistGradientBoostingClassifier

    learn = adult(data, 64, seed)
    with learn.no_bar():
        s, _ = timed(lambda: learn.fit_one_cycle(3))
    say("tabular", "rate", 3 * (len(learn.dls.train_ds) + len(learn.dls.valid_ds)) / s, "rows/s")
    say("tabular", "accuracy", learn.recorder.final_record[-1], "")
    learn = adult(data, 1024, seed)
    with learn.no_bar():
        s, _ = timed(lambda: learn.fit_one_cycle(5, 1e-2))
    say("tabular", "accuracy, bs 1024", learn.recorder.final_record[-1], "")
    say("tabular", "seconds, bs 1024", s, "s")
    sides = [ds.__getitems__(torch_range(len(ds))) for ds in (learn.dls.train_ds, learn.dls.valid_ds)]
    (x, y), (vx, vy) = [(as_matrix(*b.xs), b.y.numpy()) for b in sides]
    forest = HistGradientBoostingClassifier(categorical_features=range(sides[0].x.shape[1]), random_state=0)
    s, _ = timed(lambda: forest.fit(x, y))
    say("tabular", "accuracy, boosting", float((forest.predict(vx) == vy).mean()), "")
    say("tabular", "seconds, boosting", s, "s")


def collab(data: Path, seed: int) -> None:
    "Five epochs of MovieLens as fastai_baseline.py trains it."
    from coursekit.collab import CollabDataLoaders, collab_learner

    dls = CollabDataLoaders.from_csv(data / "movie_lens_sample" / "ratings.csv", bs=64, seed=seed)
    learn = collab_learner(dls, y_range=(0.5, 5.5), seed=seed)
    with learn.no_bar():
        s, _ = timed(lambda: learn.fit_one_cycle(5, 5e-3, wd=0.1))
    say("collab", "rate", 5 * (len(dls.train_ds) + len(dls.valid_ds)) / s, "rows/s")
    say("collab", "valid_mse", learn.recorder.final_record[1], "")


def text(data: Path, seed: int) -> None:
    "Training batches of the language model that fastai_baseline.py trains, in the precision that the processor is fast in; then in float32."
    from collections import Counter

    import torch

    from coursekit.core import precision_dtype, reuse_memory, seeded
    from coursekit.text.awd_lstm import AWD_LSTM, LanguageModel
    from coursekit.text.callbacks import activation_penalty
    from coursekit.text.next_word import next_word_loss
    from coursekit.text.stream import LMDataLoader
    from coursekit.training.optimizers import Adam

    words = [f.read_text(encoding="utf-8", errors="replace").lower().split() for f in sorted((data / "imdb").rglob("*.txt"))[:2000]]
    ids = {w: i for i, (w, _) in enumerate(Counter(w for d in words for w in d).most_common(20_000), start=1)}
    few = [b for _, b in zip(range(5), LMDataLoader([[ids.get(w, 0) for w in d] for d in words], bs=64, seq_len=72, device="cpu"))]
    reuse_memory()  # as a fit does
    for name, dtype in (("rate", precision_dtype(torch.device("cpu"))), ("rate, float32", None)):
        with seeded(seed):
            model = LanguageModel(AWD_LSTM(20_001)).train()
        opt = Adam(model.parameters())

        def step(x, y, model=model, opt=opt, dtype=dtype) -> None:
            with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
                scores = model(x)
            (next_word_loss(scores, y) + activation_penalty(model.activations, 2, 1)).backward()
            opt.step()
            opt.zero_grad()

        step(*few[0])
        s, _ = timed(lambda step=step: [step(*b) for b in few[1:]])
        say("text", name, sum(b.x.numel() for b in few[1:]) / s, "tokens/s")


def torch_range(n: int):
    import torch

    return torch.arange(n)


def as_matrix(cats, conts):
    import torch

    return torch.cat([cats.double(), conts.double()], 1).numpy()


def ours(data: Path, case: str, seed: int) -> None:
    "coursekit's side of one case; the same work as the function of this name in fastai_baseline.py."
    import torch

    if case in ("tabular", "collab", "text"):
        torch.set_num_threads(2)
        {"tabular": tabular, "collab": collab, "text": text}[case](data, seed)
        say(case, "peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KB, "MB")
        return

    from coursekit.vision.all import (
        ClassificationInterpretation,
        ImageDataLoaders,
        Resize,
        aug_transforms,
        error_rate,
        get_image_files,
        vision_learner,
    )

    torch.set_num_threads(2)
    if case == "pipeline":
        for name, tfms, cache in (("augmented", aug_transforms(), "memory"), ("augmented, no cache", aug_transforms(), None), ("plain", None, None)):
            dls = ImageDataLoaders.from_folder(data / "dogscats", valid="valid", item_tfms=Resize(224), batch_tfms=tfms, bs=64, cache=cache)
            for epoch in ("first epoch", "later epoch"):
                s, n = timed(lambda dl=dls.train: sum(b.size for b in dl))
                say("pipeline", f"{name}, {epoch}", n / s, "photos/s")
    else:
        dls = ImageDataLoaders.from_folder(data / "dogscats", valid="valid", item_tfms=Resize(96), batch_tfms=aug_transforms(), bs=64)
        learn = vision_learner(dls, "resnet18", metrics=error_rate, pretrained=False)
        with learn.no_bar():
            s, _ = timed(lambda: learn.fit_one_cycle(1, 1e-3))
            say("train", "epoch", s, "s")
            say("train", "error_rate", learn.recorder.final_record[-1], "")
            file = get_image_files(data / "dogscats")[0]
            learn.predict(file)
            s, _ = timed(lambda: [learn.predict(file) for _ in range(20)])
            say("train", "predict", s / 20 * 1e3, "ms")
            s, _ = timed(lambda: ClassificationInterpretation.from_learner(learn))
            say("train", "interpret", s, "s")
    say(case, "peak memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / KB, "MB")


KB = 1e6 if sys.platform == "darwin" else 1e3  # macOS counts bytes
IMPORT = ("import json, time; t = time.perf_counter(); from {}.vision.all import *; "
          "print(json.dumps(dict(case='import', figure='vision', value=time.perf_counter() - t, unit='s')))")
WRAP = ("import resource, runpy, sys, json; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
        "print(json.dumps(dict(case=sys.argv[2], figure='peak memory', value=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == 'darwin' else 1e3), unit='MB')))")


def run(command: list[str]) -> dict[tuple[str, str], float]:
    "The figures that a command prints."
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} ... failed:\n{done.stderr[-2000:]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {(r["case"], r["figure"]): r["value"] for r in rows}


TABLE = [  # what, fastai's figure, ours, unit, larger is better, asked for
    ("augmented 224 px batches, later epochs, cached", ("pipeline", "augmented"), ("pipeline", "augmented, later epoch"), "photos/s", True, 10),
    ("augmented 224 px batches, first epoch", ("pipeline", "augmented"), ("pipeline", "augmented, first epoch"), "photos/s", True, 4),
    ("the same without a cache, later epoch", ("pipeline", "augmented"), ("pipeline", "augmented, no cache, later epoch"), "photos/s", True, None),
    ("plain 224 px batches without a cache, later epoch", ("pipeline", "plain"), ("pipeline", "plain, later epoch"), "photos/s", True, None),
    ("ResNet-18 at 96 px, epoch of 2,000 photos and validation on 2,000", ("train", "epoch"), ("train", "epoch"), "s", False, 2),
    ("`predict` of one photo, ResNet-18", ("train", "predict"), ("train", "predict"), "ms", False, 3),
    ("interpretation after training: fastai predicts again, coursekit kept what its last validation predicted", ("train", "interpret"), ("train", "interpret"), "s", False, None),
    ("import of `vision.all`", ("import", "vision"), ("import", "vision"), "s", False, 1 / 0.65),
    ("tables: Adult, three epochs, batches of 64", ("tabular", "rate"), ("tabular", "rate"), "rows/s", True, 8),
    ("tables: accuracy after them", ("tabular", "accuracy"), ("tabular", "accuracy"), "", True, None),
    ("ratings: MovieLens-small, five epochs, batches of 64", ("collab", "rate"), ("collab", "rate"), "rows/s", True, 8),
    ("ratings: mean squared error after them", ("collab", "valid_mse"), ("collab", "valid_mse"), "", False, None),
    ("AWD-LSTM 400/1152/3, 20,001 words, batches of 64 x 72 tokens, training", ("text", "rate"), ("text", "rate"), "tokens/s", True, 1.5),
    ("the same, both in float32", ("text", "rate"), ("text", "rate, float32"), "tokens/s", True, None),
    ("peak memory, text", ("text", "peak memory"), ("text", "peak memory"), "MB", False, 1),
    ("peak memory, tables", ("tabular", "peak memory"), ("tabular", "peak memory"), "MB", False, 1),
    ("peak memory, batches", ("pipeline", "peak memory"), ("pipeline", "peak memory"), "MB", False, 1),
    ("peak memory, training", ("train", "peak memory"), ("train", "peak memory"), "MB", False, 1),
]


def table(peer: dict, mine: dict) -> str:
    "Both sides as Markdown."
    def show(v: float, unit: str) -> str:
        return f"{v:,.0f} {unit}" if v >= 100 else f"{v:.1f} {unit}" if v >= 1 else f"{v:.3f} {unit}"

    lines = ["| | fastai | coursekit | ratio | goal |", "|---|---|---|---|---|"]
    for what, theirs, own, unit, larger, goal in TABLE:
        if theirs not in peer or own not in mine:  # a case that was not asked for
            continue
        a, b = peer[theirs], mine[own]
        ratio = b / a if larger else a / b
        want = f"{goal:.2g}x" if goal else ""
        lines.append(f"| {what} | {show(a, unit)} | {show(b, unit)} | {f'{ratio:.1f}x' if ratio < 100 else ''} | {want} |")  # over 100 it is not the same work
    if ("tabular", "accuracy, boosting") in mine:
        lines += ["", "| Adult, the same rows and columns | accuracy | seconds |", "|---|---|---|"]
        lines += [f"| {what} | {mine['tabular', f'accuracy, {key}']:.4f} | {mine['tabular', f'seconds, {key}']:.2f} |"
                  for what, key in (("`tabular_learner`, batches of 1,024, five epochs", "bs 1024"), ("scikit-learn's HistGradientBoostingClassifier", "boosting"))]
    return "\n".join(lines)


def main() -> None:
    import torch

    from coursekit.cli.doctor import processor
    from coursekit.core import precision_dtype

    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder with dogscats.tgz or dogscats")
    ap.add_argument("--peer", default="/tmp/peer/bin/python", help="Python of the environment with fastai")
    ap.add_argument("--script", type=Path, default=ROOT.parent / "shared" / "peer" / "fastai_baseline.py")
    ap.add_argument("--rounds", type=int, default=1)
    ap.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "vs_fastai.md")
    ap.add_argument("--cases", nargs="+", choices=("import", *CASES), default=["import", *CASES], help="what to compare (default: everything)")
    ap.add_argument("--ours", choices=CASES, help=argparse.SUPPRESS)
    ap.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)  # of our side: of the split, the weights and the order; fastai's baseline sets none
    args = ap.parse_args()
    if args.ours:
        ours(args.data, args.ours, args.seed)
        return
    with tempfile.TemporaryDirectory() as scratch:
        data = args.data
        needed = sorted({ARCHIVES[case] for case in args.cases if case in ARCHIVES})
        if not all((data / name).is_dir() for name in needed):
            from coursekit.data.archive import extract_archive

            data = Path(scratch)
            for name in needed:
                extract_archive(args.data / f"{name}.tgz", data / f"{name}.new", strip_top=True)
                (data / f"{name}.new").rename(data / name)
        peer: dict[tuple[str, str], list[float]] = {}
        mine: dict[tuple[str, str], list[float]] = {}
        for seed in range(args.rounds):
            for case in args.cases:
                commands = ([args.peer, "-c", WRAP, str(args.script), str(data), case], [sys.executable, __file__, "--data", str(data), "--ours", case, "--seed", str(seed)])
                if case == "import":
                    commands = ([args.peer, "-c", IMPORT.format("fastai")], [sys.executable, "-c", IMPORT.format("coursekit")])
                for side, command in zip((peer, mine), commands):
                    for key, value in run(command).items():
                        side.setdefault(key, []).append(value)
                        print("fastai  " if side is peer else "coursekit", *key, value, flush=True)
    found = subprocess.run([args.peer, "-c", "import fastai, torch; print(fastai.__version__, torch.__version__)"], capture_output=True, text=True, check=True)
    fastai, torch_version = found.stdout.split()
    text = table({k: median(v) for k, v in peer.items()}, {k: median(v) for k, v in mine.items()})
    note = (f"Measured {time.strftime('%Y-%m-%d')} on {processor()}; medians of {args.rounds} rounds: coursekit {version('coursekit')}, fastai {fastai}, "
            f"torch {version('torch').split('+')[0]} and {torch_version.split('+')[0]}, precision of coursekit's training: {'bf16' if precision_dtype(torch.device('cpu')) else 'fp32'} "
            f"(chosen by the processor; tables and ratings fp32), of fastai's: fp32 (its default); by `python benchmarks/vs_fastai.py --cases {' '.join(args.cases)} --rounds {args.rounds}`.")
    args.out.write_text(f"{text}\n\n{note}\n")
    print(f"\n{text}\n\n{note}")


if __name__ == "__main__":
    main()
