"""A race on CIFAR-10 as in DAWNBench: from random weights to a good accuracy, through coursekit's public API, with both clocks.

    python benchmarks/cifar10_race.py                      # all images; on two cores at most 20 minutes, goal 92%
    python benchmarks/cifar10_race.py --short              # a tenth of the images and a narrow network: about a minute on two cores
    python benchmarks/cifar10_race.py --runs 25 --compile  # on a GPU: goal 94% on average, in at most 5 seconds of training

The network and the recipe are `coursekit.course.tools_12.race`. *Training* is the time of the fit, with the images in memory and the network
compiled and warm. *Total* starts with the files on the disk: it includes reading them, building, compiling, training and predicting the test images.
The settings are fixed below, so the test set plays no part in any choice, and every run reads the files again. Prints a Markdown table. The archive is
`URLs.CIFAR`, 50,000 images for training and 10,000 for the test; COURSEKIT_MIRROR names a folder that has it.
"""
import argparse
import platform
import time

import torch

from coursekit.cli.doctor import processor
from coursekit.core import default_device, precision_dtype
from coursekit.course.compare import interval
from coursekit.course.tools_12 import Shift, race
from coursekit.data.block import CategoryBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.download import URLs, untar_data
from coursekit.data.items import GrandparentSplitter, get_image_files, parent_label
from coursekit.vision.augment import Normalize, cifar_stats
from coursekit.vision.block import ImageBlock
from coursekit.vision.resize import Resize

SETTINGS = {  # kind of device -> passes over the images, width of the network, images per batch
    "cpu": dict(epochs=14, width=64, bs=512),
    "mps": dict(epochs=10, width=64, bs=512),
    "cuda": dict(epochs=10, width=64, bs=1024),
}
SHORT = dict(epochs=4, width=16, bs=128)


def loaders(files, bs, device, seed):
    "Images and their classes, shifted and mirrored in training."
    block = DataBlock(blocks=(ImageBlock, CategoryBlock), get_y=parent_label, splitter=GrandparentSplitter("train", "test"), item_tfms=Resize(32),
                      batch_tfms=[Shift(2), Normalize.from_stats(*cifar_stats)])
    return block.dataloaders(files, bs=bs, val_bs=2 * bs, device=device, cache="device" if device.type == "cuda" else "memory", seed=seed)


def name_of(device):
    "What the numbers were measured on."
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--runs", type=int, default=1, help="runs with seeds 0, 1, ... (default 1)")
    ap.add_argument("--short", action="store_true", help="every tenth image and a narrow network")
    ap.add_argument("--compile", action="store_true", help="translate the network with torch.compile first")
    ap.add_argument("--device", default=None, help="cpu, cuda or mps (default: the fastest there is)")
    for name, what in (("epochs", "passes over the images"), ("width", "channels of the first block"), ("bs", "images per batch")):
        ap.add_argument(f"--{name}", type=int, default=None, help=f"{what} (default: by device)")
    ap.add_argument("--lr", type=float, default=1.5, help="learning rate at the peak, for batches of 1,024 (default 1.5)")
    ap.add_argument("--views", type=int, default=4, help="shifted and mirrored views averaged for each test image (default 4)")
    args = ap.parse_args()

    device = torch.device(args.device or default_device())
    given = SHORT if args.short else SETTINGS[device.type]
    epochs, width, bs = (getattr(args, name) or given[name] for name in ("epochs", "width", "bs"))
    files = sorted(get_image_files(untar_data(URLs.CIFAR)))[::10 if args.short else 1]
    dtype = precision_dtype(device) or torch.float32
    print(f"{time.strftime('%Y-%m-%d')}, {name_of(device)}, Python {platform.python_version()}, torch {torch.__version__}; {len(files):,} images, "
          f"{epochs} epochs, width {width}, batches of {bs}, lr {args.lr:g}, {str(dtype).removeprefix('torch.')}, {'compiled' if args.compile else 'not compiled'}\n")
    print("| run | accuracy | without TTA | training, s | total, s |\n|---|---|---|---|---|", flush=True)
    rows = []
    for seed in range(args.runs):
        begun = time.perf_counter()
        torch.compiler.reset()  # or only the first run would pay for compiling
        done = race(loaders(files, bs, device, seed), epochs=epochs, width=width, lr=args.lr, compiled=args.compile, views=args.views, seed=seed)
        rows.append((100 * done.accuracy, 100 * done.plain, done.training, time.perf_counter() - begun))
        print("| {} | {:.2f}% | {:.2f}% | {:.1f} | {:.1f} |".format(seed, *rows[-1]), flush=True)
    if args.runs > 1:
        print("| mean | " + " | ".join("{:.2f} ± {:.2f}".format(*interval(column)) for column in zip(*rows)) + " |")


if __name__ == "__main__":
    main()
