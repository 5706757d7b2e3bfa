#!/usr/bin/env python3
"""Lesson 11 with several seeds: what a feature loss is worth in super-resolution, and how many of a GAN's samples are recognizably pets.

    python benchmarks/generative.py superres --seeds 3
    python benchmarks/generative.py gan --seeds 3

superres: a U-Net over `coursenet` enlarges spoiled drawn pets, once with the mean squared error and once with `FeatureLoss` (EfficientNet-Lite0), for two
epochs each. Distances are in the features of EfficientNet-Lite0 and of `coursenet`, which had no part in the loss. gan: 14 epochs on 32 x 32 portraits.
The judge is a classifier of real portraits and of scrambled ones ("no pet"); a sample counts if the judge names a breed with 60% or more.
"""
from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from seeds import mean_line

from coursekit.vision.all import (
    EMA,
    CategoryBlock,
    Crappify,
    DataBlock,
    FeatureLoss,
    ImageBlock,
    MSELossFlat,
    NoiseBlock,
    PILImage,
    RandomSplitter,
    Resize,
    URLs,
    aug_transforms,
    course_data,
    error_rate,
    gan_learner,
    generator_learner,
    get_image_files,
    psnr,
    samples,
    vision_learner,
)


def superres(path: Path, files: list[Path], seed: int) -> list[tuple[str, float]]:
    "Distances of both networks' images from the originals, and how often the feature loss is closer by coursenet's features."
    block = DataBlock(blocks=(ImageBlock, ImageBlock), splitter=RandomSplitter(0.1, seed=42), item_tfms=[Resize(64), Crappify(factor=3, quality=(60, 95), noise=0.01)])
    dls = block.dataloaders(files[::2], path, bs=8, seed=seed, cache="memory")
    x, y = (torch.cat([part(b)[0] for b in dls.valid]) for part in (lambda b: b.xs, lambda b: b.ys))
    made, found = {"bicubic": x}, []
    for name, loss in (("pixel loss", MSELossFlat()), ("feature loss", FeatureLoss())):
        learn = generator_learner(dls, "coursenet", loss_func=loss, metrics=psnr, seed=seed)
        with learn.no_bar():
            learn.fit_one_cycle(2, 3e-3)
            made[name] = learn.get_preds().preds.clamp(0, 1)
    judges = {"EfficientNet": FeatureLoss(pixel=0), "coursenet": FeatureLoss("coursenet", pixel=0)}
    with torch.no_grad():
        distance = {(judge, name): f.per_item(images, y) for judge, f in judges.items() for name, images in made.items()}
    found += [(f"{name}, PSNR in dB", psnr(images, y).item()) for name, images in made.items()]
    found += [(f"{name}, distance in features of {judge}", d.mean().item()) for (judge, name), d in distance.items()]
    return [*found, ("share of images for which the feature loss is closer, by coursenet's features",
                     (distance["coursenet", "feature loss"] < distance["coursenet", "pixel loss"]).float().mean().item())]


def portrait(path: Path, file: Path) -> Image.Image:
    "The head on white."
    image, trimap = PILImage.create(file), Image.open(path / "annotations/trimaps" / f"{file.stem}.png")
    image.paste("white", mask=trimap.point(lambda v: 255 * (v == 2)))
    xml = (path / "annotations/xmls" / f"{file.stem}.xml").read_text()
    left, top, right, bottom = (int(re.search(f"<{side}>(\\d+)<", xml)[1]) for side in ("xmin", "ymin", "xmax", "ymax"))
    half = round(0.55 * max(right - left, bottom - top))
    out = Image.new("RGB", (2 * half, 2 * half), "white")
    out.paste(image, (half - (left + right) // 2, half - (top + bottom) // 2))
    return out


def scrambled(image: Image.Image) -> Image.Image:
    "The 16 tiles of an image in another order."
    tiles = np.asarray(image.resize((32, 32))).reshape(4, 8, 4, 8, 3).swapaxes(1, 2).reshape(16, 8, 8, 3)
    tiles = tiles[np.random.default_rng(int(tiles.sum())).permutation(16)]
    return Image.fromarray(tiles.reshape(4, 4, 8, 8, 3).swapaxes(1, 2).reshape(32, 32, 3))


def gan(path: Path, files: list[Path], seed: int) -> list[tuple[str, float]]:
    "How many samples the judge is sure about, and how often it's wrong about real portraits."
    items = [(f, False) for f in files] + [(f, True) for f in files[::6]]
    real = DataBlock(blocks=(ImageBlock, CategoryBlock), splitter=RandomSplitter(0.1, seed=42), item_tfms=Resize(32, "squish"), batch_tfms=aug_transforms(max_warp=0),
                     get_x=lambda item: scrambled(portrait(path, item[0])) if item[1] else portrait(path, item[0]),
                     get_y=lambda item: "no pet" if item[1] else item[0].name.rsplit("_", 1)[0])
    judge = vision_learner(real.dataloaders(items, path, bs=32, seed=seed, cache="memory"), "coursenet", metrics=error_rate, seed=seed)
    noise = DataBlock(blocks=(NoiseBlock(64), ImageBlock), get_y=lambda f: portrait(path, f), splitter=RandomSplitter(0.1, seed=42), item_tfms=Resize(32, "squish"),
                      batch_tfms=aug_transforms(max_rotate=0, max_zoom=1, max_warp=0, max_lighting=0))
    game = gan_learner(noise.dataloaders(files, path, bs=32, seed=seed, cache="memory"), lr=(1e-3, 1e-3), widths=(96, 64, 48, 32),
                       critic_widths=(24, 48, 96, 128), cbs=[EMA(0.98)], seed=seed)
    with judge.no_bar(), game.no_bar():
        judge.fine_tune(2, 8e-3, lr_mult=3)
        game.fit_one_cycle(14)
        probs = judge.get_preds(judge.dls.test_dl(list(samples(game, 512)))).preds
    top = probs.max(1)
    sure = (top.values >= 0.6) & (top.indices != judge.dls.vocab.index("no pet"))
    return [("share of samples with a breed of 60% or more", sure.float().mean().item()), ("error of the judge on real portraits", judge.recorder.final_record[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["superres", "gan"])
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, 0, 1, ... (default 3)")
    args = parser.parse_args()
    path = course_data(URLs.PETS)
    files = [f for f in get_image_files(path / "images") if (path / "annotations/xmls" / f"{f.stem}.xml").exists()]
    found: dict[str, list[float]] = {}
    for seed in range(args.seeds):
        cpu = time.process_time()
        for name, value in {"superres": superres, "gan": gan}[args.what](path, files, seed):
            found.setdefault(name, []).append(value)
        print(f"seed {seed}: {time.process_time() - cpu:.0f} s of CPU time", flush=True)
    for name, values in found.items():
        print(mean_line(values, name, ".3f") if len(values) > 1 else f"{name} {values[0]:.3f}")


if __name__ == "__main__":
    main()
