"""What `coursenet`'s weights are worth: the same net with and without them, with the same budget, three seeds each.

    COURSEKIT_MIRROR=../shared/data python benchmarks/transfer.py dogscats pets paper cifar photos

dogscats: 2,000 photos to learn from, 2,000 held out. pets: the 37 breeds of the mirror's 370 Oxford-IIIT Pets photos, a fifth held out.
paper: Paper Pets, 12 drawn breeds. cifar: `pretrained("cifar10")` on CIFAR-10's 10,000 test pictures. photos: ten photos
and what it calls them, as thumbnails in cifar10_photos.jpg beside this file. Prints a Markdown table.
"""
import argparse
import json
import time
from pathlib import Path
from statistics import mean

import torch

from coursekit.core import precision_dtype
from coursekit.course.compare import interval
from coursekit.vision.all import (
    ImageDataLoaders,
    PILImage,
    RegexLabeller,
    Resize,
    URLs,
    aug_transforms,
    course_data,
    coursenet,
    error_rate,
    get_image_files,
    plt,
    pretrained,
    untar_data,
    vision_learner,
)


def train(make_dls, *, epochs, base_lr, lr_mult, scratch_lr, seed, weights, precision):
    "Error and seconds of fine_tune(epochs) over the weights, or of one cycle of epochs + 1 without."
    start = time.perf_counter()
    learn = vision_learner(make_dls(seed), coursenet, metrics=error_rate, pretrained=weights, precision=precision, seed=seed)
    with learn.no_bar():
        if weights:
            learn.fine_tune(epochs, base_lr, lr_mult=lr_mult)
        else:
            learn.fit_one_cycle(epochs + 1, scratch_lr)
    return learn.recorder.final_record[-1], time.perf_counter() - start


def compare(name, make_dls, seeds, *, epochs, base_lr, lr_mult, scratch_lr, what, precision):
    "Rows for one data set."
    rows = []
    for start in what:
        runs = []
        for seed in range(seeds):
            error, seconds = train(make_dls, epochs=epochs, base_lr=base_lr, lr_mult=lr_mult, scratch_lr=scratch_lr, seed=seed,
                                   weights=start == "pretrained", precision=precision)
            print(json.dumps({"data": name, "start": start, "precision": precision, "base_lr": base_lr if start == "pretrained" else scratch_lr, "seed": seed, "error": round(error, 4), "seconds": round(seconds)}), flush=True)
            runs.append((error, seconds))
        errors = [e for e, _ in runs]
        half = interval(errors)[1] if len(errors) > 1 else None
        fit = f"fine_tune({epochs})" if start == "pretrained" else f"fit_one_cycle({epochs + 1})"
        rows.append((name, f"{start}, {fit}", mean(errors), half, max(s for _, s in runs)))
    return rows


def show_photos(learn):
    "Ten photos, chosen by number and not by result: five of pets, three from the other archive of pets, two streets."
    dogs, pets, streets = untar_data(URLs.DOGS) / "valid", untar_data(URLs.PETS) / "images", untar_data(URLs.CAMVID) / "images"
    files = [get_image_files(folder)[k] for folder, ks in ((dogs / "cats", (100, 300)), (dogs / "dogs", (100, 300, 500)),
                                                           (pets, (50, 150, 250)), (streets, (100, 500))) for k in ks]
    said = [learn.predict(f) for f in files]
    rows = [(f.name, a.label, float(a.probabilities.max())) for f, a in zip(files, said)]
    fig, axes = plt.subplots(2, 5, figsize=(7.5, 3.4), layout="constrained")
    for ax, f, (_, label, sure) in zip(axes.flat, files, rows):
        small = PILImage.create(f, draft_size=160)
        small.thumbnail((160, 160))
        ax.imshow(small)
        ax.set_title(f"{label} {sure:.0%}", fontsize=9)
        ax.axis("off")
    fig.savefig(Path(__file__).with_name("cifar10_photos.jpg"), dpi=90, pil_kwargs={"quality": 80})
    for name, label, sure in rows:
        print(f"{name:40} {label:12} {sure:.0%}")


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("cases", nargs="+", choices=["dogscats", "pets", "paper", "cifar", "photos"])
    ap.add_argument("--seeds", type=int, default=3)
    ap.add_argument("--size", type=int, default=96, help="pixels, dogscats and pets")
    ap.add_argument("--lr", type=float, default=8e-3, help="base_lr of fine_tune")
    ap.add_argument("--lr-mult", type=float, default=5, help="lr_mult of fine_tune")
    ap.add_argument("--bs", type=int, help="photos a batch (default 32; 16 of the 37 breeds)")
    ap.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    ap.add_argument("--only", choices=["pretrained", "scratch"])
    args = ap.parse_args()
    what = [args.only] if args.only else ["pretrained", "scratch"]
    rows = []
    options = {"item_tfms": Resize(args.size), "bs": args.bs or 32, "cache": "memory"}
    fit = {"base_lr": args.lr, "lr_mult": args.lr_mult, "scratch_lr": 5e-3, "what": what, "precision": args.precision}
    if "dogscats" in args.cases:
        path = untar_data(URLs.DOGS)
        rows += compare(f"dogscats, {args.size} px", lambda seed: ImageDataLoaders.from_folder(path, valid="valid", seed=seed, batch_tfms=aug_transforms(min_scale=0.6), **options), args.seeds,
                        epochs=3, **fit)
    if "pets" in args.cases:
        files = get_image_files(untar_data(URLs.PETS) / "images")
        rows += compare(f"37 breeds, {len(files)} photos, {args.size} px", lambda seed: ImageDataLoaders.from_name_func(
            files[0].parent, files, RegexLabeller(r"^(.*)_\d+\.jpg$"), valid_pct=0.2, seed=seed, batch_tfms=aug_transforms(), **{**options, "bs": args.bs or 16}),
            args.seeds, epochs=10, **fit)
    if "paper" in args.cases:
        files = get_image_files(course_data(URLs.PETS) / "images")
        rows += compare("Paper Pets, 12 breeds, 64 px", lambda seed: ImageDataLoaders.from_name_func(
            files[0].parent, files, RegexLabeller(r"^(.*)_\d+\.jpg$"), valid_pct=0.2, seed=seed, batch_tfms=aug_transforms(),
            **{**options, "item_tfms": Resize(64)}), args.seeds, epochs=2, **fit)
    if "cifar" in args.cases:
        learn = pretrained("cifar10")
        folder = untar_data(URLs.CIFAR) / "test"
        files = get_image_files(folder)
        start = time.perf_counter()
        with learn.no_bar():
            preds, _ = learn.get_preds(learn.dls.test_dl(files, bs=100))
        wrong = [learn.dls.vocab[k] != f.parent.name for k, f in zip(preds.argmax(1).tolist(), files)]
        rows.append((f"CIFAR-10, {len(files):,} test pictures", 'pretrained("cifar10")', mean(map(float, wrong)), None, time.perf_counter() - start))
    if "photos" in args.cases:
        show_photos(pretrained("cifar10"))
    arithmetic = precision_dtype(torch.device("cpu"), args.precision) or torch.float32
    print(f"\n{time.strftime('%Y-%m-%d')}, {torch.get_num_threads()} threads, torch {torch.__version__}, training in {arithmetic}, {args.seeds} seeds\n")
    print("| data | start | error, mean and 95% interval | seconds a seed, at most |\n|---|---|---|---|")
    for name, start, error, half, seconds in rows:
        print(f"| {name} | {start} | {error:.2%}{'' if half is None else f' ± {half:.1%}'} | {seconds:.0f} |")


if __name__ == "__main__":
    main()
