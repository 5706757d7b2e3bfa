"""Pretrain `coursenet`, the network that comes with the package, on 150,000 small photos.

    python tools/pretrain_coursenet.py --work ~/coursenet            # downloads or takes COURSEKIT_MIRROR
    python tools/pretrain_coursenet.py --work ~/coursenet --publish  # writes the weights into the package

It learns two things at once from one body: the 200 classes of Tiny ImageNet at 32 pixels (Le & Yang 2015) and the 10 of
CIFAR-10 (Krizhevsky 2009). Each picture is scored only among the classes of the set it comes from. The pictures are cut at
random, turned, tilted, relit and enlarged, and a square of each is blanked (DeVries & Taylor 2017, "cutout"). An epoch has
one size, or each batch has its own between two: what is learned at one enlargement alone works at no other. Small pictures
at first and larger ones later cost little accuracy and save half of the time (Howard 2018, "progressive resizing"). One
cycle of the rate spans the whole run (Smith & Topin 2017).

The run can be stopped at any time, also by `kill -9`: the same command goes on after the last whole epoch, with the same
result as if it had not been stopped. The log has one JSON object a line: one for the settings, one for each epoch.
"""
import argparse
import dataclasses
import hashlib
import itertools
import json
import platform
import time
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from torch.optim.swa_utils import update_bn

import coursekit.vision.models
from coursekit.core import seeded
from coursekit.data.block import CategoryBlock
from coursekit.data.dataset import Dataset
from coursekit.data.download import URLs, untar_data
from coursekit.data.items import get_image_files
from coursekit.data.loader import DataLoaders
from coursekit.data.transforms import BatchTransform
from coursekit.training.callback import ParamScheduler
from coursekit.training.callbacks.ema import EMA
from coursekit.training.learner import Learner
from coursekit.training.metrics import Metric
from coursekit.training.optimizers import SGD, AdamW
from coursekit.training.schedules import one_cycle
from coursekit.training.weights import atomic_write
from coursekit.vision.augment import Normalize, aug_transforms, fuse_tfms, imagenet_stats
from coursekit.vision.data import ImageBlock
from coursekit.vision.images import load_image, to_uint8_tensor
from coursekit.vision.models import coursenet

TINY, CIFAR = 200, 10  # classes of the two sets; CIFAR's come after
WEIGHTS = Path(coursekit.vision.models.__file__).with_name("coursenet.safetensors")


class Ready:
    "Makes a block of values that are encoded already."

    def encode(self, value):
        return value

    def collate(self, values):
        return torch.stack(list(values)) if isinstance(values[0], torch.Tensor) else torch.tensor(list(values))


class PixelBlock(Ready, ImageBlock):
    "Pictures as (3, 32, 32) tensors of bytes."

    eager = True  # nothing to wait for


class ClassBlock(Ready, CategoryBlock):
    "Classes as numbers."


def read_pictures(folder, first_class, vocab):
    "All pictures below `folder`, a folder a class, as bytes (N, 3, 32, 32), and their classes (N,)."
    files = sorted(get_image_files(folder))
    index = {name: first_class + i for i, name in enumerate(vocab)}
    label = lambda f: next(p for p in f.relative_to(folder).parts if p in index)
    return torch.stack([to_uint8_tensor(load_image(f)) for f in files]), torch.tensor([index[label(f)] for f in files])


def read_data(work):
    "Training and validation pictures of both sets; decoded once, then kept in a file."
    file = work / "pictures.pt"
    if not file.exists():
        tiny, cifar = untar_data(URLs.TINY_IMAGENET_32), untar_data(URLs.CIFAR)
        wnids = sorted(p.name for p in (tiny / "train").iterdir() if p.is_dir())
        names = sorted(p.name for p in (cifar / "train").iterdir() if p.is_dir())
        parts = {}
        for part, (a, b) in {"train": ("train", "train"), "valid": ("val", "test")}.items():
            sets = read_pictures(tiny / a, 0, wnids), read_pictures(cifar / b, TINY, names)
            parts |= {f"{part}_x": torch.cat([s[0] for s in sets]), f"{part}_y": torch.cat([s[1] for s in sets])}
            print(f"{part}: {len(sets[0][1]):,} of Tiny ImageNet, {len(sets[1][1]):,} of CIFAR-10", flush=True)
        torch.save(parts, file.with_suffix(".part"))
        file.with_suffix(".part").rename(file)
    return torch.load(file, weights_only=True)


def own_classes(targs):
    "True where a class belongs to the set that the picture comes from: (N, 210)."
    return (torch.arange(TINY + CIFAR, device=targs.device) >= TINY) == (targs >= TINY)[:, None]


def joint_loss(preds, targs, smooth=0.1):
    "Cross-entropy with label smoothing (Szegedy et al. 2016) among the classes of the picture's own set."
    own = own_classes(targs)
    logp = F.log_softmax(preds.masked_fill(~own, -1e4), 1)
    nll = -logp.gather(1, targs[:, None])[:, 0]
    return ((1 - smooth) * nll - smooth * (logp * own).sum(1) / own.sum(1)).mean()


class SetAccuracy(Metric):
    "Share of one set's pictures whose class is right, 0..1."

    higher_is_better = True

    def __init__(self, label, low, high):
        self.label, self.low, self.high = label, low, high

    @property
    def name(self):
        return self.label

    def reset(self):
        self.right, self.n = 0, 0

    def update(self, preds, targs):
        mine = (targs >= self.low) & (targs < self.high)
        self.right += int((preds[mine, self.low:self.high].argmax(1) + self.low == targs[mine]).sum())
        self.n += int(mine.sum())

    def compute(self):
        return self.right / max(self.n, 1)


@dataclasses.dataclass(frozen=True)
class OneOf(BatchTransform):
    "One of several transforms for each batch, drawn; for training only."

    of: tuple

    def apply(self, tensors, kinds, *, rng, train):
        i = int(torch.randint(len(self.of), (), generator=rng))
        return self.of[i].apply(tensors, kinds, rng=rng, train=train)


@dataclasses.dataclass(frozen=True)
class Erase(BatchTransform):
    "Blanks a square of each normalised picture; its side is drawn up to `most`, a share of the picture's, its middle anywhere."

    most: float

    def apply(self, tensors, kinds, *, rng, train):
        if not train or not self.most:
            return tensors
        x, *others = tensors
        h, w = x.shape[-2:]
        side, at_y, at_x = torch.rand(3, len(x), 1, 1, 1, generator=rng).to(x.device)
        rows, cols = torch.arange(h, device=x.device).view(1, 1, h, 1), torch.arange(w, device=x.device)
        hole = ((rows - at_y * h).abs() < side * self.most * h / 2) & ((cols - at_x * w).abs() < side * self.most * w / 2)
        return [x.masked_fill(hole, 0.0), *others]


@dataclasses.dataclass(frozen=True)
class Sharpen(BatchTransform):
    """Adds to half of the pictures what distinguishes them from their blurred selves, up to `most` times ("unsharp mask"): enlarged pictures
    are smooth, photos are not, and a network that saw smooth ones only takes the grain of a photo for a sign of something."""

    most: float

    def apply(self, tensors, kinds, *, rng, train):
        if not train or not self.most:
            return tensors
        x, *others = tensors
        r = int(torch.randint(1, 3, (), generator=rng))
        amount = (torch.rand(len(x), generator=rng) * 2 - 1).clamp(min=0) * self.most
        blurred = F.avg_pool2d(x, 2 * r + 1, stride=1, padding=r, count_include_pad=False)
        return [torch.lerp(blurred, x, 1 + amount.to(x).view(-1, 1, 1, 1)), *others]


def train_pictures(classes, args, epoch):
    "Which pictures an epoch shows: a share of Tiny ImageNet's, another one each time, and each of CIFAR-10's so many times."
    tiny, cifar = torch.nonzero(classes < TINY)[:, 0], torch.nonzero(classes >= TINY)[:, 0]
    chosen = torch.randperm(len(tiny), generator=torch.Generator().manual_seed(args.seed * 1000 + epoch))[:round(args.tiny * len(tiny))]
    return torch.cat([tiny[chosen], cifar.repeat(args.cifar)])


def make_dls(data, sizes, args, *, epoch=0, every=1, test_size=None):
    "Loaders that enlarge to one of `sizes` pixels a batch, held-out pictures to `test_size` or the last; `every` thins those out."
    blocks = [PixelBlock(), ClassBlock(vocab=list(range(TINY + CIFAR)))]
    valid = list(range(0, len(data["valid_y"]), every))
    x, y = data["valid_x"][valid], data["valid_y"][valid].tolist()
    mine = train_pictures(data["train_y"], args, epoch)
    train = Dataset(range(len(mine)), blocks, [None, None], train=True, values=[data["train_x"][mine], data["train_y"][mine].tolist()])
    held = Dataset(range(len(y)), blocks, [None, None], values=[x, y])

    def way(size, mode):
        aug = aug_transforms(size=size, mode=mode, min_scale=args.min_scale, max_rotate=args.rotate, max_warp=args.warp, max_lighting=args.lighting, p_affine=0.5)
        return fuse_tfms([*aug, Normalize.from_stats(*imagenet_stats)])[0]

    made = DataLoaders.from_dsets(train, held, bs=args.bs, val_bs=250, num_workers=0, seed=args.seed, batch_tfms=[way(test_size or sizes[-1], args.modes[0])])
    made.train = made.train.new(batch_tfms=[OneOf(tuple(way(size, mode) for size in sizes for mode in args.modes)), Sharpen(args.sharpen), Erase(args.erase)])
    return made


def calmed(args, epoch):
    "The settings for an epoch: in the last ones of a plan pictures are changed half as much, so that the network ends on what it will be shown."
    if epoch < len(args.plan) - args.calm:
        return args
    half = {name: getattr(args, name) / 2 for name in ("erase", "rotate", "warp", "lighting", "sharpen")}
    return argparse.Namespace(**{**vars(args), **half, "min_scale": (1 + args.min_scale) / 2})


def part_of(schedule, epoch, n):
    "Epoch `epoch` of `n` of a schedule that spans them all."
    return lambda pct: schedule((epoch + pct) / n)


def parse_plan(text):
    "'2x40,1x64-96' as [[40], [40], [64, 80, 96]]: the sizes that the batches of each epoch may have."
    plan = []
    for n, sizes in (part.split("x") for part in text.split(",")):
        low, high = (int(size) for size in (sizes.split("-") * 2)[:2])
        plan += [list(range(low, high + 1, 16))] * int(n)
    return plan


def main():
    ap = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    ap.add_argument("--work", type=Path, required=True, help="folder for decoded pictures, checkpoint and log")
    ap.add_argument("--plan", type=parse_plan, default="6x40,6x48,4x64", help="epochs x pixels, in order; 64-96: one of 64, 80, 96 for each batch (default %(default)s)")
    ap.add_argument("--opt", choices=["sgd", "adamw"], default="sgd")
    ap.add_argument("--lr", type=float, default=0.2, help="rate at the peak")
    ap.add_argument("--wd", type=float, default=5e-4)
    ap.add_argument("--bs", type=int, default=128)
    ap.add_argument("--min-scale", type=float, default=0.35, help="smallest share of the area that is cut out")
    ap.add_argument("--cifar", type=int, default=2, help="times that an epoch shows each picture of CIFAR-10, of which there are half as many")
    ap.add_argument("--tiny", type=float, default=1.0, help="share of Tiny ImageNet's pictures that an epoch shows, others each time")
    ap.add_argument("--modes", nargs="+", default=["bilinear"], help="ways to enlarge, one for each batch: bilinear, bicubic")
    ap.add_argument("--erase", type=float, default=0.0, help="largest side of a square that is blanked, as a share of the picture's")
    ap.add_argument("--sharpen", type=float, default=0.0, help="half of the pictures are sharpened, by a factor up to this; 3 makes enlarged ones look like photos")
    ap.add_argument("--calm", type=int, default=0, help="so many last epochs change pictures half as much")
    ap.add_argument("--average", type=float, default=0.0, help="the last epoch has this rate from beginning to end, and its result is the mean of the weights after each step")
    ap.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="of training; auto: bf16 where the processor multiplies it")
    ap.add_argument("--test-size", type=int, help="pixels of held-out pictures (default: the largest of the epoch)")
    ap.add_argument("--rotate", type=float, default=10.0, help="degrees")
    ap.add_argument("--warp", type=float, default=0.1, help="tilt: one side up to so much longer than the opposite one")
    ap.add_argument("--lighting", type=float, default=0.3, help="change of brightness and contrast, 0 to 0.95")
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--start", type=Path, help="begin with the weights of this file, written by --publish, or by a run into the folder models of its work folder")
    ap.add_argument("--blend", type=Path, help="begin with the mean of the weights of --start and those of this file, written by a run into the folder models")
    ap.add_argument("--mix", type=Path, help="publish the mean of the weights and those of this file, written by a run into the folder models")
    ap.add_argument("--publish", action="store_true", help="after the run: write the weights into the package, and test them")
    args = ap.parse_args()
    if args.blend and not args.start:
        ap.error("--blend: the mean of what? Name the other file by --start.")
    args.work.mkdir(parents=True, exist_ok=True)
    data, plan = read_data(args.work), args.plan
    log, state_file = args.work / "log.jsonl", args.work / "state.json"
    state = json.loads(state_file.read_text()) if state_file.exists() else {"epochs": 0}
    done = state["epochs"]
    settings = {k: v.name if isinstance(v, Path) else v for k, v in vars(args).items() if k not in ("work", "publish")}

    def say(**row):
        print(json.dumps(row), flush=True)
        with log.open("a") as f:
            f.write(json.dumps(row) + "\n")

    with seeded(args.seed):
        model = coursenet(TINY + CIFAR)
    saved = args.start and any(k.startswith("model.") for k in load_file(args.start))
    if args.start and not saved and not done:
        begin = load_file(args.start)
        weight, bias = begin.pop("heads.cifar10.weight").float(), begin.pop("heads.cifar10.bias")
        model.load_state_dict(begin, strict=False)
        with torch.no_grad():
            model.fc.weight[TINY:].copy_(weight)
            model.fc.bias[TINY:].copy_(bias)
    metrics = [SetAccuracy("tiny_imagenet", 0, TINY), SetAccuracy("cifar10", TINY, TINY + CIFAR)]
    opt = partial(SGD, mom=0.9) if args.opt == "sgd" else AdamW
    learn = Learner(make_dls(data, plan[0], args, every=4), model.to(memory_format=torch.channels_last), joint_loss, opt_func=opt,
                    metrics=metrics, wd=args.wd, path=args.work, precision=args.precision, seed=args.seed)
    learn.progress = False
    if done or saved:
        learn.load(state["file"] if done else args.start.resolve(), with_opt=bool(done))
    if args.blend and not done:
        mean_weights(learn.model, args.blend)
    if done and not (log.exists() and f'"epoch": {done},' in log.read_text()):  # killed before it was written
        say(**state["row"])
    if state.get("settings") != settings:  # at the start, or gone on with another plan
        say(epochs_done=done, settings=settings, torch=torch.__version__, trained_in=str(learn.autocast_dtype or torch.float32), machine=f"{platform.machine()}, {torch.get_num_threads()} threads", date=time.strftime("%Y-%m-%d"))
    lr, mom = one_cycle(args.lr, pct_start=0.2)
    cycle = len(plan) - (args.average > 0)  # epochs of the cycle
    for epoch in range(done, len(plan)):
        start = time.perf_counter()
        learn.dls = make_dls(data, plan[epoch], calmed(args, epoch), epoch=epoch, every=4, test_size=args.test_size)
        learn.dls.train.epoch = epoch - 1  # so that this pass draws what it would have drawn in one go
        cbs = [ParamScheduler(lr=[part_of(lr, epoch, cycle)], mom=part_of(mom, epoch, cycle))]
        if epoch == cycle:  # stochastic weight averaging (Izmailov et al. 2018): a decay so near 1 weighs all steps alike
            cbs = [ParamScheduler(lr=[lambda pct: args.average], mom=lambda pct: 0.9), EMA(1 - 1e-9)]
        learn.fit(1, args.lr, cbs=cbs)
        file = learn.save(f"epoch_{epoch + 1}")  # the state names it only when it is whole
        row = dict(zip(["train_loss", "valid_loss", *(m.name for m in metrics)], learn.recorder.values[-1]))
        row = {"epoch": epoch + 1, "of": len(plan), "lr": learn.recorder.lrs[-1], "sizes": plan[epoch], "seconds": round(time.perf_counter() - start)} \
            | {k: round(v, 4) for k, v in row.items()}
        atomic_write(state_file, json.dumps({"epochs": epoch + 1, "file": file.name, "settings": settings, "row": row}).encode())
        say(**row)
        for old in file.parent.glob("epoch_*.safetensors"):
            if old != file and not (args.start and old.samefile(args.start)):
                old.unlink()

    if args.publish:
        say(**publish(learn.model, data, args))


def mean_weights(model, file):
    "The mean of a model's weights and those of a run's file: near optima of one valley, it is often better than both (Izmailov et al. 2018)."
    other = {k.removeprefix("model."): v for k, v in load_file(file).items() if k.startswith("model.")}
    model.load_state_dict({k: v.lerp(other[k], 0.5) if v.is_floating_point() else v for k, v in model.state_dict().items()})


def measure_norms(model, data, args, batches=160):
    "Batch norm's statistics, measured anew on calm pictures: those of a mean are not the mean of those."
    calm = calmed(argparse.Namespace(**{**vars(args), "calm": 1}), len(args.plan) - 1)
    loader = make_dls(data, args.plan[-1], calm, epoch=len(args.plan)).train
    update_bn((b.x.contiguous(memory_format=torch.channels_last) for b in itertools.islice(loader, batches)), model)
    model.eval()


def publish(model, data, args):
    "Write body and CIFAR-10 head, half precision, into the package; test what was written on all held-out pictures."
    if args.mix:
        mean_weights(model, args.mix)
    if args.mix or args.average:
        measure_norms(model, data, args)
    state = {k: v.detach() for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    weight, bias = state.pop("fc.weight"), state.pop("fc.bias")
    heads = {"heads.cifar10.weight": weight[TINY:], "heads.cifar10.bias": bias[TINY:]}
    state = {k: (v.half() if v.ndim > 1 else v.float()).contiguous() for k, v in (state | heads).items()}
    made = {"made by": "tools/pretrain_coursenet.py", "settings": json.dumps({k: v.name if isinstance(v, Path) else v for k, v in vars(args).items() if k != "work"})}
    atomic_write(WEIGHTS, save(state, made))
    model.load_state_dict({**{k: v.float() for k, v in state.items() if not k.startswith("heads.")}, "fc.weight": weight.half().float(), "fc.bias": bias}, strict=False)
    learn = Learner(make_dls(data, [64], args), model, joint_loss, metrics=[SetAccuracy("tiny_imagenet", 0, TINY), SetAccuracy("cifar10", TINY, TINY + CIFAR)])
    tests = {}
    with learn.no_bar():
        for size in (64, 96, 128):
            learn.dls = make_dls(data, [size], args)
            tests[f"test_{size}px"] = dict(zip(("loss", "tiny_imagenet", "cifar10"), (round(v, 4) for v in learn.validate())))
    return {"weights": WEIGHTS.name, "bytes": WEIGHTS.stat().st_size, "sha256": hashlib.sha256(WEIGHTS.read_bytes()).hexdigest(), **tests}


if __name__ == "__main__":
    main()
