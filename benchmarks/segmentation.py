#!/usr/bin/env python3
"""Masks of streets: how accurate a U-Net becomes, and what the Learner adds to the cost of its training step.

    COURSEKIT_MIRROR=../shared/data python benchmarks/segmentation.py camvid             # three seeds
    COURSEKIT_MIRROR=../shared/data python benchmarks/segmentation.py camvid --seeds 1   # one
    python benchmarks/segmentation.py streets                                            # three seeds on the drawn streets
    python benchmarks/segmentation.py step                                               # no data needed

camvid: the frames of CamVid, split as `valid.txt` says, at 180 x 240 pixels, over `efficientnet_lite0` with its ImageNet weights. Pixel accuracy and
mean Jaccard are over all validation pixels but Void. streets: Paper Streets with `coursenet`, trained as in lesson 6: 1 + 3 epochs at 72 x 96 pixels,
then 5 at 120 x 160. step: random images of that size; the bare loop has the same network, loss, optimizer and batch
transforms, and the time of both is the median of steps that are taken in turn. Prints Markdown tables.
"""
from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from pathlib import Path

import torch
from seeds import mean_line

from coursekit.training.optimizers import AdamW, make_optimizer, split_params
from coursekit.vision.all import (
    Callback,
    DataBlock,
    DataLoaders,
    FuncSplitter,
    ImageBlock,
    JaccardCoeffMulti,
    Learner,
    MaskBlock,
    PixelAccuracy,
    Resize,
    URLs,
    aug_transforms,
    course_data,
    get_image_files,
    num_params,
    unet_learner,
    untar_data,
)

SIZE, BATCH = (180, 240), 8


def frames(path: Path, size: tuple[int, int], **options) -> tuple[DataLoaders, int]:
    "Loaders of CamVid or Paper Streets, and the number of the class Void."
    codes = (path / "codes.txt").read_text().split()
    valid = set((path / "valid.txt").read_text().split())
    block = DataBlock(blocks=(ImageBlock, MaskBlock(codes, void="Void")), get_items=get_image_files, splitter=FuncSplitter(lambda f: f.name in valid),
                      get_y=lambda f: path / "labels" / f"{f.stem}_P.png", item_tfms=Resize(size), batch_tfms=options.pop("batch_tfms"))
    return block.dataloaders(path / "images", path, cache="memory", **options), codes.index("Void")


def train_streets(seed: int) -> tuple[list[float], float]:
    "What `train` returns, for the drawn streets."
    start = time.perf_counter()
    dls, void = frames(course_data(URLs.CAMVID), (72, 96), bs=4, seed=seed, batch_tfms=aug_transforms(max_rotate=5, max_warp=0))
    learn = unet_learner(dls, "coursenet", metrics=[PixelAccuracy(ignore_index=void), JaccardCoeffMulti(ignore_index=void)], seed=seed)
    learn.fine_tune(3, 1e-2, lr_mult=3)
    learn.dls = learn.dls.with_size((120, 160))
    learn.fit_one_cycle(5, slice(8e-3 / 3, 8e-3))
    return learn.recorder.final_record[1:], time.perf_counter() - start


def train(seed: int, *, freeze_epochs: int, epochs: int, lr: float, lr_mult: float, precision: str) -> tuple[list[float], float]:
    "Validation loss, pixel accuracy and mean Jaccard after training, and the seconds from the files to these numbers."
    start = time.perf_counter()
    dls, void = frames(untar_data(URLs.CAMVID), SIZE, bs=BATCH, seed=seed, batch_tfms=aug_transforms())
    metrics = [PixelAccuracy(ignore_index=void), JaccardCoeffMulti(ignore_index=void)]
    learn = unet_learner(dls, "efficientnet_lite0", metrics=metrics, precision=precision, seed=seed)
    learn.fine_tune(epochs, lr, freeze_epochs=freeze_epochs, lr_mult=lr_mult)
    return learn.recorder.final_record[1:], time.perf_counter() - start


def bare_step(model, loss_func, opt, batch, dtype) -> None:
    "A training step by hand."
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        preds = model(batch[0])
    loss = loss_func(preds.float(), batch[1])
    loss.backward()
    opt.step()
    opt.zero_grad()
    loss.item()


def step_times(n: int) -> tuple[float, float, Learner]:
    "Median seconds of a step of a Learner, and of a loop by hand with the same network; and the Learner."
    rng = torch.Generator().manual_seed(0)
    images = torch.randn(BATCH, *SIZE, 3, generator=rng).permute(0, 3, 1, 2)  # channels last, as images are
    batches = [(images, torch.randint(12, (BATCH, *SIZE), generator=rng))] * n
    learn = unet_learner(DataLoaders(batches, batches[:1], device="cpu"), "efficientnet_lite0", n_out=12, loss_func=torch.nn.CrossEntropyLoss(), seed=0)
    learn.unfreeze()
    learn.progress = False
    model, dtype = learn.model, learn.autocast_dtype
    opt = make_optimizer(split_params(model, learn.splitter), AdamW, [1e-5] * 3, wd=0.01, moms=learn.moms, model=model)
    ours, bare = [], []
    for _ in range(3):  # in turn, because other work on the machine comes and goes
        starts: list[float] = []
        model.train()
        for batch in batches:
            start = time.perf_counter()
            bare_step(model, torch.nn.functional.cross_entropy, opt, batch, dtype)
            bare.append(time.perf_counter() - start)
        learn.fit(1, 1e-5, cbs=Clock(starts))
        ours += [b - a for a, b in zip(starts, starts[1:])]
    return statistics.median(ours), statistics.median(bare), learn


class Clock(Callback):
    "Notes when each training batch begins."

    def __init__(self, starts: list[float]):
        self.starts = starts

    def before_batch(self, learn: Learner) -> None:
        if learn.state.training:
            self.starts.append(time.perf_counter())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["camvid", "streets", "step"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="over all layers")
    parser.add_argument("--freeze-epochs", type=int, default=2, help="before that, for the decoder alone")
    parser.add_argument("--lr", type=float, default=5e-3)
    parser.add_argument("--lr-mult", type=float, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--steps", type=int, default=12)
    args = parser.parse_args()
    options = {k: getattr(args, k) for k in ("freeze_epochs", "epochs", "lr", "lr_mult", "precision")}
    for name, run in (("camvid", partial(train, **options)), ("streets", train_streets)):
        if name in args.what:
            print(f"| {name}, seed | validation loss | pixel accuracy | mean Jaccard | minutes |\n|---|---|---|---|---|", flush=True)
            found = []
            for seed in range(args.seeds):
                (loss, accuracy, jaccard), seconds = run(seed)
                found.append((accuracy, jaccard))
                print(f"| {seed} | {loss:.3f} | {accuracy:.4f} | {jaccard:.4f} | {seconds / 60:.1f} |", flush=True)
            if args.seeds > 1:
                print("\n".join(mean_line(values, what, ".3f") for values, what in zip(zip(*found), ("pixel accuracy", "mean Jaccard"))))
    if "step" in args.what:
        ours, bare, learn = step_times(args.steps)
        print("| U-Net | parameters | precision | Learner, ms per step | bare loop, ms | ratio |\n|---|---|---|---|---|---|")
        print(f"| efficientnet_lite0 | {num_params(learn.model) / 1e6:.1f} million | {learn.autocast_dtype or 'float32'} | {ours * 1000:.0f} | {bare * 1000:.0f} | "
              f"{ours / bare:.3f} |")


if __name__ == "__main__":
    main()
