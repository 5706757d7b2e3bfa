"""Every exercise accepts its solution, every known mistake gets its own hint, no hint gives the solution away; quizzes are sound."""

import html
import inspect
import json
import math
import re
import tempfile
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.training.callback import Callback, CancelBatchException, CancelEpochException
from coursekit.course import checks_03, checks_04b, exercises
from coursekit.course.compare import Tuned
from coursekit.course.exercises import CheckResult, all_exercises, check, content_files, lesson_exercises, lesson_file
from coursekit.course.judging import AnswerTable, FunctionCheck, Hint
from coursekit.course.quiz import Question, Quiz, quiz, read_quiz
from coursekit.data.block import CategoryBlock
from coursekit.deploy.export import Exported, write_export
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.schedules import one_cycle
from coursekit.vision.data import ImageBlock
from coursekit.vision.learner import pretrained
from coursekit.vision.models import VisionModel

# ---------------------------------------------------------------- answers to try


def raises(*args):
    raise RuntimeError("<b>oops</b>")


def gray(image):
    return np.asarray(image.convert("L"))


ramp = Image.linear_gradient("L").resize((64, 64)).convert("RGB")
said = pretrained("cifar10").predict(ramp)
matrix = torch.tensor([[40, 6, 4], [12, 30, 8], [8, 4, 38]])


def pets(vocab=("cup", "pan"), losses=(1.0,), scores=((2.0, 1.0), (1.0, 2.0)), targs=(0, 1)):
    "What the judge of one's own images looks at; nbs/solutions runs the real thing."
    preds = SimpleNamespace(preds=torch.tensor(scores), targs=torch.tensor(targs))
    return SimpleNamespace(dls=SimpleNamespace(train=[], valid=[], vocab=vocab), recorder=SimpleNamespace(losses=losses), get_preds=lambda: preds)


pets_once = pets()


def first_only(files):
    first = {data: name for name, data in reversed(files.items())}
    return [name for name in files if name in first.values()]


def scenes(names, every=4, start=0):
    of = [name.rpartition("_")[0] for name in names]
    held = set(sorted(set(of))[start::every])
    return [i for i, s in enumerate(of) if s not in held], [i for i, s in enumerate(of) if s in held]


letters = ["turn by 5 degrees", "darker", "zoom to 110%", "red ink becomes blue"]
models = tempfile.TemporaryDirectory()  # exported files, for as long as this module is there


def exported(name, vocab, inputs=()):
    "A file as `learn.export` writes it, with a single number for weights."
    blocks = [*(inputs or [ImageBlock()]), CategoryBlock(vocab=vocab)]
    return str(write_export(Path(models.name) / name, Exported(VisionModel("coursenet", len(vocab)), {"w": torch.zeros(1)}, blocks, 1, [], [], None, {})))


(Path(models.name) / "trap.ck").write_bytes(b"cos\nsystem\n(S'echo'\ntR.")


def steps(change, *, clear=True, skip=True):
    "An SGD step: change(p, rate) in place."

    def step(params, rate):
        with torch.no_grad():
            for p in params:
                if p.grad is not None or not skip:
                    change(p, rate)
                    if clear:
                        p.grad = None

    return step


def rebinds(params, rate):
    params[:] = [p if p.grad is None else (p - rate * p.grad).detach() for p in params]


def lost(params, rate):
    for p in params:
        if p.grad is not None:
            slope, p.grad = p.grad, None
            p = p - rate * slope


bce = F.binary_cross_entropy_with_logits
ink = torch.randint(256, (12, 8, 8), generator=torch.Generator().manual_seed(4)) * (torch.arange(64).view(8, 8) % 3 == 0)
meant, of_net = torch.arange(12) % 10, torch.eye(10)[torch.arange(12) % 10]


def rate_at(p, top=0.2, up=0.1):
    return top * p / up if p < up else top * (1 - p) / (1 - up)


def lion(p, g, m, lr, share=0.9, keep=0.99, sign=torch.sign, early=False):
    old, m["v"] = m.get("v", 0 * g), keep * m.get("v", 0 * g) + (1 - keep) * g
    p -= lr * sign(share * (m["v"] if early else old) + (1 - share) * g)


def raced(lrs=tuple(2.0**k for k in range(-10, 3)), epochs=6, runs=12, lowest=0.1, best=3):
    return Tuned(lrs, torch.tensor([lowest if k == best else 0.8 for k in range(len(lrs))]), torch.linspace(0.05, 0.1, runs), [], epochs)


rising, opposite = ([s(k / 40) for k in range(40)] for s in one_cycle(0.1))


def cycled(epochs=2, **options):
    learn = synthetic_learner()
    learn.fit_one_cycle(epochs, 0.01, **options)
    return learn


def own_cycle(learn, change=0.0):
    "What a reader's own learner recorded, if its losses are those of a learner of the package, or off by something."
    r = learn.recorder
    return SimpleNamespace(recorder=SimpleNamespace(steps=list(zip([loss + change for loss in r.losses], r.lrs, r.moms))))


middle, early = cycled(pct_start=0.5), cycled()


def cycle(lrs=rising, moms=opposite, losses=(2.0, 1.0), values=((1.0, 1.0),)):
    return SimpleNamespace(recorder=SimpleNamespace(lrs=lrs, moms=moms, losses=losses, values=values))


def normed(eps=1e-5):
    return lambda x, w, b: F.batch_norm(x, None, None, w, b, training=True, eps=eps)


def dropped(same=(2, 3), drop=lambda p: p, scale=lambda p: 1 / (1 - p), seed=None):
    "Dropout of channels; `same`: dimensions along which one draw holds for all."

    def drop_channels(x, p):
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        return x * (torch.rand([1 if k in same else n for k, n in enumerate(x.shape)], generator=rng) >= drop(p)) * scale(p)

    return drop_channels


low, high = [0.20, 0.22, 0.21], [0.30, 0.33, 0.31]
few, many = [0.91, 0.93, 0.92], [0.96, 0.97, 0.98]


def callback(body, event="after_loss", name="Own"):
    "A class of callbacks, made with a limit, that run a body at an event."
    return type(name, (Callback,), {"__init__": lambda self, limit=0: setattr(self, "limit", limit), event: body})


def clip(change, event="before_step"):
    return callback(lambda self, learn: [change(p, self.limit) for p in learn.model.parameters() if p.grad is not None], event)


def cancel(error=CancelBatchException, when=lambda state, limit: state.training and state.loss > limit, event="after_loss"):
    def body(self, learn):
        if when(learn.state, self.limit):
            raise error

    return callback(body, event)


ClipValue, SkipHard, Idle = clip(lambda p, c: p.grad.clamp_(-c, c)), cancel(), type("Idle", (Callback,), {"__init__": lambda self, limit=0: None})
Mine, Counter = (callback(lambda self, learn: None, "after_epoch", name) for name in ("Mine", "Counter"))


class Interrupts(SkipHard):
    def after_fit(self, learn):
        learn.state.interrupted = True


def trained(*cbs, epochs=1):
    x = torch.ones(2, 1)
    learn = Learner(([(x, x)], [(x, x)]), torch.nn.Linear(1, 1), torch.nn.MSELoss(), cbs=cbs, device="cpu")
    with learn.no_bar():
        if epochs:
            learn.fit(epochs)
    return learn


def filled(train, new, *, how=torch.nanmedian, of=None):
    "A column filled with a value of the training rows, and where the gaps were."
    gaps = new.isnan()
    return torch.where(gaps, how(train if of is None else of), new), gaps


def rise(loss, x, column, order, change=lambda x, c, o: x[:, c].copy_(x[o, c])):
    "By how much a loss rises when a table is changed."
    moved = x.clone()
    change(moved, column, order)
    return loss(moved) - loss(x)


def rise_in_place(loss, x, column, order):
    before = loss(x)
    x[:, column] = x[order, column]
    return loss(x) - before


def seen_pixels(layers):
    return 1 + sum((k - 1) * math.prod(s for _, s in layers[:i]) for i, (k, _) in enumerate(layers))


def joined(x, layers):
    for layer in layers:
        x = torch.cat([x, layer(x)], 1)
    return x


def evidence(maps, weights, tiny=1e-9):
    found = (weights[:, None, None] * maps).sum(0).clamp(min=0)
    return found / found.max().clamp(min=tiny)


def located(n):
    "Heat maps with one bright place each, and boxes around it."
    return [(SimpleNamespace(map=1.0 * (torch.arange(100).view(10, 10) < 15 + k)), (0.1, 0.1, 0.9, 0.2)) for k in range(n)]


HEAT = located(1)[0][0]


def of_table(*, names=("size",), kind="table", vocab=("a", "b"), losses=(1.0,), right=30, n=40):
    "What the judge of one's own table looks at; nbs/solutions runs the real thing."
    train = SimpleNamespace(blocks=[SimpleNamespace(kind=kind, names=list(names)), SimpleNamespace(kind="numbers", names=["width"])])
    preds = SimpleNamespace(preds=torch.eye(2)[(torch.arange(n) < right).long()], targs=(torch.arange(n) < n // 2).long())
    return SimpleNamespace(dls=SimpleNamespace(train=train, targets=[SimpleNamespace(vocab=vocab)]), recorder=SimpleNamespace(losses=losses),
                           get_preds=lambda: preds)


def class_numbers(painted, palette, void, channels=3):
    same = (painted[:, :, None, :channels] == palette[:, :channels]).all(-1)
    return torch.where(same.any(-1), same.int().argmax(-1), void)


def pixels_right(scores, targs, void, counts=None):
    return (scores.argmax(1) == targs)[targs != void if counts is None else counts].float().mean()


def of_masks(*, kind="mask", vocab=("ground", "cup"), losses=(1.0,), right=8, n=4, cups=3, ignored=None):
    "What the judge of one's own masks looks at; nbs/solutions runs the real thing."
    targs = torch.zeros(n, 3, 10, dtype=torch.long)
    targs[:, :, :cups] = 1
    preds = SimpleNamespace(preds=F.one_hot(torch.where(torch.arange(10) < right, targs, 1 - targs), 2).movedim(-1, 1).float(), targs=targs)
    train = SimpleNamespace(blocks=[SimpleNamespace(kind="image"), SimpleNamespace(kind=kind, vocab=list(vocab), ignored=ignored)])
    return SimpleNamespace(dls=SimpleNamespace(train=train), recorder=SimpleNamespace(losses=losses), get_preds=lambda: preds)


def f_beta(said, there, beta, factor=None):
    hits, alarms, misses = ((a & b).sum() for a, b in ((said, there), (said, ~there), (~said, there)))
    if not hits:
        return 0
    precision, recall = hits / (hits + alarms), hits / (hits + misses)
    return (1 + beta**2 if factor is None else factor) * precision * recall / (beta**2 * precision + recall)


def shares(change):
    "A wrong F-beta, made from precision and recall."
    return lambda said, there, beta: change((said & there).sum() / said.sum(), (said & there).sum() / there.sum(), beta)


def threshold_for(probs, there, recall, by=0):
    "The threshold that finds a share of what's there, or some more."
    yes = probs[there].sort(descending=True).values
    return yes[max(0, min(math.ceil(recall * len(yes) - 1e-6) - 1 + by, len(yes) - 1))]


def moved(change):
    "Points changed by a function of x, y and the width."
    return lambda points, width: torch.stack(change(*points.T, width), 1)


def mirror_in_place(points, width):
    points[:, 0] = width - points[:, 0]
    return points


def of_tags(*, kind="multicategory", vocab=("cup", "pen"), losses=(1.0,), right=True, n=24):
    "What the judge of one's own tagger looks at; nbs/solutions runs the real thing."
    targs = torch.tensor([[1.0, 0], [0, 1], [1, 1], [0, 0]]).repeat(n, 1)[:n]
    target, preds = SimpleNamespace(kind=kind, vocab=list(vocab), thresh=0.5), SimpleNamespace(preds=targs if right else 0 * targs, targs=targs)
    return SimpleNamespace(dls=SimpleNamespace(targets=[target]), recorder=SimpleNamespace(losses=losses), get_preds=lambda: preds)


little, much = [0.30, 0.31, 0.32], [0.33, 0.34, 0.35]

ANY_CALLBACK = [("an object", SkipHard(1.0)), ("no class", 3), ("no callback", dict), ("no event", Idle)]

# name -> (right answers, [(name of the hint, answer that gets it)]); more of both come from the tables, below
CASES = {
    "fix the function": ([lambda p: gray(p).mean() / 255, lambda p: torch.tensor(gray(p) / 255).mean()],
                          [("one side", lambda p: gray(p).sum() / len(gray(p)) / 255), ("otherwise", lambda p: 0.2), ("otherwise", lambda p: 0.9)]),
    "another background": ([["purple", "purple"], ("navy", "#000080")], [
        ("two colors", "purple"), ("two colors", ["purple"]), ("no color", ["purple", "purpel"]), ("no color", [3, "purple"]),
        ("hidden", ["whitesmoke", "purple"]), ("hidden", ["purple", "sienna"]), ("still a ship", ["pink", "pink"]),
        ("still a ship", ["lightblue", "steelblue"])]),
    "own drawing": ([[ramp, said], (ramp, said)], [
        ("two things", 3), ("two things", [ramp]), ("no image", [None, said]), ("image type", ["photo.jpg", said]),
        ("one color", [Image.new("L", (8, 8), 7), said]), ("no prediction", [ramp, ...]), ("part of it", [ramp, said.label]),
        ("part of it", [ramp, said.probabilities]), ("other image", [ramp.rotate(90), said])]),
    "error rate by hand": ([lambda p, t: (p.argmax(1) != t).float().mean(), lambda p, t: 1 - sum(int(a.argmax() == b) for a, b in zip(p, t)) / len(t)],
                           [("otherwise", lambda p, t: (p.argmax(0) != t[0]).float().mean()), ("otherwise", lambda p, t: 0.9)]),
    "shelter pattern": ([r"^\w+-(\w+)-\d+\.\w+$", r"-(.+)-", r"-([^-]+)-", re.compile(r"^[A-Z]+\d+-(\w+)-")], [
        ("no pattern", 3), ("no pattern", b"-(.+)-"), ("unreadable", "("), ("no group", r"\w+"), ("nothing", r"^(.+)_\d+.jpg$"), ("nothing", r"-(\w+)-\d+.jpe?g"),
        ("several parts", "(.+)-"), ("animal", r"^(\w+)-"), ("ending", r"-(\d+)\."), ("a piece", "-([a-z]+)"), ("otherwise", "(x?)")]),
    "one change compared": ([[pets(), pets(scores=((1.0, 2.0), (1.0, 2.0)))], (pets(scores=[(2.0, 1.0)] * 9, targs=[0] * 9), pets(scores=[(1.0, 2.0)] * 9, targs=[0] * 9))], [
        ("two learners", 3), ("two learners", [pets()]), ("same learner", [pets_once, pets_once]), ("not trained", [pets(), pets(losses=())]),
        ("other images", [pets(), pets(targs=(0, 0))]), ("nothing changed", [pets(), pets()])]),
    "own pictures": ([pets(), pets(["cup", "pan", "jug"], scores=[[3.0, 1, 1], [1, 3.0, 1], [1, 1, 3.0]], targs=[0, 1, 2])], [
        ("no learner", 3), ("only data", pets().dls), ("no classes", pets(vocab="cup")), ("one class", pets(["cup"])), ("not trained", pets(losses=())),
        ("absent class", pets(targs=(0, 0))), ("no better", pets(scores=((1.0, 2.0), (2.0, 1.0))))]),
    "label two levels up": ([lambda p: p.parent.parent.name, lambda p: p.parts[-3], lambda p: str(p).split("/")[-3]], [
        ("nothing", lambda p: None), ("a path", lambda p: p.parent.parent), ("month", lambda p: p.parent.name), ("file", lambda p: p.name),
        ("file", lambda p: p.stem), ("from the left", lambda p: p.parts[0]), ("otherwise", lambda p: str(p)[:3]), ("otherwise", lambda p: 3)]),
    "each picture once": ([first_only, lambda f: tuple(first_only(f))], [
        ("no list", lambda f: None), ("no list", lambda f: set(first_only(f))), ("unknown", lambda f: [*first_only(f), "x.jpg"]),
        ("unknown", lambda f: list(set(f.values()))), ("twice", lambda f: first_only(f) * 2), ("order", lambda f: first_only(f)[::-1]), ("a copy", list),
        ("lost", lambda f: []), ("lost", lambda f: first_only(f)[1:]), ("lost", lambda f: list({len(data): name for name, data in f.items()}.values())),
        ("later name", lambda f: list({data: name for name, data in f.items()}.values()))]),
    "split by scene": ([scenes, lambda n: tuple(map(torch.tensor, scenes(n))), lambda n: [np.array(side) for side in scenes(n, 3)]], [
        ("two lists", lambda n: None), ("two lists", lambda n: "abc"), ("positions", lambda n: (n[5:], n[:5])), ("positions", lambda n: ([1.0], [2.0])),
        ("positions", lambda n: ([1], [-1])), ("positions", lambda n: ([0], [len(n)])), ("both", lambda n: (list(range(len(n))),) * 2),
        ("each once", lambda n: ([0, 1], [2])), ("each once", lambda n: (scenes(n)[0] * 2, scenes(n)[1])),
        ("torn scene", lambda n: (list(range(9, len(n))), list(range(9)))), ("share", lambda n: (list(range(len(n))), [])), ("share", lambda n: scenes(n)[::-1])]),
    "changes that keep a letter": ([letters, tuple(letters[::-1]), set(letters)], [
        ("no list", "darker"), ("no list", {"darker": True}), ("empty", []), ("empty", [...]), ("unknown", ["dark"]), ("unknown", [["darker"]]),
        ("both", ["mirror"]), ("two harmful", [*letters, "mirror", "upside down"]), ("one harmful", [*letters, "mirror"]), ("more", letters[:3])]),
    "augmentation on and off": ([[[0.01, 0.02, 0.03], [0.04, 0.05, 0.06]], ([0.0, 0.02, 0.03], [0, 0.05, 0.06, 0.01])], [
        ("two lists", 0.5), ("two lists", [0.1, 0.2]), ("three seeds", [[0.1, 0.2, 0.3], [...]]), ("three seeds", [[0.1, 0.2], [0.1, 0.2, 0.3]]),
        ("no share", [[0.1, 0.2, 0.3], [1, 2, 3]]), ("no share", [[0.1, "0.2", 0.3], [0.1, 0.2, 0.3]]), ("same lists", [[0.1, 0.2, 0.3]] * 2)]),
    "own model file": ([exported("mine.ck", ["cup", "pan"]), Path(exported("three.ck", ["a", "b", "beagle"]))], [
        ("the learner", SimpleNamespace(export=1, dls=1)), ("no path", 3), ("folder", models.name), ("no file", "nothing.ck"), ("no file", "\0"),
        ("no file", "x" * 5000), ("unreadable", f"{models.name}/trap.ck"), ("other kind", exported("words.ck", ["a", "b"], [CategoryBlock(vocab=["c", "d"])])),
        ("one class", exported("one.ck", ["cup"])), ("lesson's own", exported("lesson.ck", ["Persian", "Siamese"]))]),
    "shape by broadcasting": ([(32, 7, 10), [32, 7, 10], tuple((torch.zeros(32, 1, 10) + torch.zeros(7, 1)).shape)], [
        ("a tensor", torch.zeros(32, 7, 10)), ("no tuple", 2240), ("no tuple", {32, 7, 10}), ("too short", (32, 7)), ("too short", ()),
        ("too long", (32, 1, 7, 10)), ("first axis", (7, 1, 10)), ("unchanged", (32, 1, 10)), ("swapped", (32, 10, 7)), ("otherwise", (32, 7, 1))]),
    "slope by nudging": ([lambda f, w, h: (f(w + h) - f(w - h)) / (2 * h)],
                         [("own h", lambda f, w, h: (f(w + 1e-4) - f(w - 1e-4)) / 2e-4), ("otherwise", lambda f, w, h: (f(w + h) - f(w - h)) / 2)]),
    "one step of SGD": ([steps(lambda p, rate: p.sub_(rate * p.grad)),
                         *(lambda params, rate, none=none: (lambda o: (o.step(), o.zero_grad(none)))(torch.optim.SGD(params, lr=rate)) for none in (True, False))], [
        ("other tensors", rebinds), ("other tensors", lambda params, rate: params.clear()),
        ("no gradient", steps(lambda p, rate: p.sub_(rate * (0.1 if p.grad is None else p.grad)), skip=False)), ("nothing moved", lambda params, rate: None),
        ("lost", lost), ("uphill", steps(lambda p, rate: p.add_(rate * p.grad))), ("no rate", steps(lambda p, rate: p.sub_(p.grad))),
        ("other step", steps(lambda p, rate: p.sub_(rate * p.grad.sign()))),
        ("not followed", steps(lambda p, rate: p.sub_(rate * p.grad).requires_grad_(False))), ("kept slopes", steps(lambda p, rate: p.sub_(rate * p.grad), clear=False))]),
    "binary cross-entropy that survives": ([
        bce, lambda s, y: (s.clamp(min=0) - s * y + (-s.abs()).exp().log1p()).mean(), lambda s, y: F.softplus(torch.where(y == 1, -s, s)).mean().item()], [
        ("no mean", lambda s, y: bce(s, y, reduction="none")), ("otherwise", lambda s, y: F.mse_loss(s.sigmoid(), y)), ("otherwise", lambda s, y: 9.0),
        ("overflow", lambda s, y: -torch.where(y == 1, s.sigmoid(), 1 - s.sigmoid()).log().mean()),
        ("overflow", lambda s, y: (1 + torch.where(y == 1, -s, s).exp()).log().mean()),
        ("lost logarithm", lambda s, y: F.binary_cross_entropy(s.sigmoid(), y)), ("lost logarithm", lambda s, y: bce(s.clamp(-80, 80), y))]),
    "width of the digit reader": ([[few, many, "wider"], [many, few, "narrower"], (torch.tensor(few), many[::-1], "wider"), [few, [0.93, 0.95, 0.9], "can't tell"]], [
        ("three things", "wider"), ("three things", [few, many]), ("no share", [few, [96, 97, 98], "wider"]), ("same lists", [few, few, "can't tell"]),
        ("guessing", [few, [0.1, 0.1, 0.1], "narrower"]), ("verdict", [few, many, "better"]), ("too sure", [few, [0.93, 0.95, 0.9], "wider"]),
        ("too careful", [few, many, "can't tell"]), ("wrong side", [few, many, "narrower"])]),
    "own digits": ([[ink, meant, of_net], (ink.float(), meant, of_net.flip(0)), [ink.byte(), meant.float(), of_net * 7]], [
        ("three", ink), ("three", [ink, meant]), ("one missing", [ink, ..., of_net]), ("no tensor", [ink, meant.tolist(), of_net]), ("axes", [ink, of_net, meant]),
        ("counts", [ink, meant, of_net[:9]]), ("size", [ink[:, :5, :5], meant, of_net]), ("scores", [ink, meant, of_net[:, :9]]),
        ("scores", [ink, meant, of_net / 0]), ("no digits", [ink, meant + 4, of_net]), ("pixels", [ink / 255, meant, of_net]),
        ("bright", [255 - ink, meant, of_net]), ("kinds", [ink, meant % 7, of_net]), ("kinds", [ink[:5], meant[:5], of_net[:5]]),
        ("same twice", [ink[:1].repeat(12, 1, 1), meant, of_net])]),
    "warm-up and fall": ([rate_at, lambda p: min(2 * p, 0.2 * (1 - p) / 0.9), lambda p: torch.tensor(rate_at(p))], [
        ("peak", lambda p: 0.0), ("peak", lambda p: rate_at(p, up=0.25)), ("first", lambda p: 0.2), ("last", lambda p: 2 * p if p < 0.1 else 0.2),
        ("wave up", lambda p: 0.1 * (1 - math.cos(math.pi * p / 0.1)) if p < 0.1 else rate_at(p)), ("way up", lambda p: 20 * p * p if p < 0.1 else rate_at(p)),
        ("late fall", lambda p: rate_at(p) if p <= 0.1 else 0.2 * (1 - p)),
        ("wave down", lambda p: rate_at(p) if p < 0.1 else 0.1 * (1 + math.cos(math.pi * (p - 0.1) / 0.9))),
        ("way down", lambda p: rate_at(p) if p < 0.1 else 0.2 * ((1 - p) / 0.9) ** 2)]),
    "write Lion": ([lion, lambda p, g, m, lr: p.copy_(p - lr * (0.9 * m.get("v", 0 * g) + 0.1 * g).sign()) is None or m.update(v=0.99 * m.get("v", 0 * g) + 0.01 * g)], [
        ("nothing moved", lambda p, g, m, lr: p - lr * g.sign()), ("uphill", lambda p, g, m, lr: lion(p, g, m, -lr)), ("otherwise", lambda p, g, m, lr: p.add_(g)),
        ("no sign", partial(lion, sign=lambda mix: mix)), ("no memory", lambda p, g, m, lr: p.sub_(lr * g.sign())), ("too early", partial(lion, early=True)),
        ("same share", partial(lion, keep=0.9)), ("swapped", partial(lion, share=0.99, keep=0.9))]),
    "a fair race": ([raced(), raced(lrs=[2.0**k for k in range(-10, 3)])], [
        ("not tuned", 3), ("not tuned", lion), ("epochs", raced(epochs=8)), ("grid", raced(lrs=[0.1, 0.2])), ("seeds", raced(runs=3)),
        ("not learned", raced(lowest=0.7)), ("edge", raced(best=0)), ("edge", raced(best=12))]),
    "own cycle": ([cycle(), cycle(moms=[0.9] * 40)], [
        ("no learner", 3), ("not trained", cycle(losses=())), ("not trained", cycle(values=())), ("too short", cycle(lrs=rising[:9])),
        ("not finite", cycle(losses=[2.0, float("nan")])), ("never rose", cycle(lrs=[0.1] * 40)), ("never fell", cycle(lrs=sorted(rising))),
        ("momentum", cycle(moms=opposite[10:] + opposite[:10])), ("not learned", cycle(losses=[1.0, 2.0]))]),
    "batch norm for maps": ([normed(), lambda x, w, b: torch.stack([(c - c.mean()) / (c.var(correction=0) + 1e-5).sqrt() for c in x.unbind(1)], 1)
                             * w.view(-1, 1, 1) + b.view(-1, 1, 1)], [
        ("nothing", lambda x, w, b: None), ("no tensor", lambda x, w, b: x.numpy()), ("shape", lambda x, w, b: x[0]),
        ("eps", normed(eps=1e-9)), ("otherwise", normed(eps=0.1))]),
    "dropout of whole channels": ([dropped(), F.dropout2d], [
        ("nothing", lambda x, p: None), ("no tensor", lambda x, p: 3), ("shape", lambda x, p: x[0]), ("no zero", lambda x, p: x), ("all zero", lambda x, p: 0 * x),
        ("parts", F.dropout), ("same channels", dropped((0, 2, 3))), ("all or none", dropped((1, 2, 3))),
        ("several factors", dropped(scale=lambda p: torch.rand(1, 50, 1, 1))), ("kept share", dropped(drop=lambda p: 1 - p)), ("share", dropped(drop=lambda p: p / 2)),
        ("unscaled", dropped(scale=lambda p: 1)), ("factor", dropped(scale=lambda p: 1 / p)), ("same draw", dropped(seed=0))]),
    "own remedy": ([[high, low, "better"], [low, high, "worse"], (np.array(low), torch.tensor([0.1, 0.3, 0.2]), "not shown"), [low * 5, high * 5, "worse"]], [
        ("three things", "better"), ("three things", [low, high]), ("no errors", [[...], [...], "..."]), ("no list", [low, "high", "worse"]),
        ("few seeds", [low[:2], high[:2], "worse"]), ("no share", [[20, 22, 21], high, "better"]), ("unpaired", [low, [*high, 0.3], "worse"]),
        ("verdict", [low, high, "good"]), ("verdict", [low, high, ...]), ("same lists", [low, low, "not shown"]), ("same errors", [[0.2] * 3, [0.1] * 3, "better"]),
        ("too sure", [low, [0.1, 0.3, 0.2], "better"]), ("too careful", [low, high, "not shown"]), ("wrong side", [low, high, "better"])]),
    "peak in the middle": ([[own_cycle(middle), middle], (own_cycle(middle, 1e-8), middle)], [
        ("two learners", middle), ("two learners", [middle]), ("not yours", [middle, own_cycle(middle)]), ("not yours", [own_cycle(synthetic_learner()), middle]),
        ("not the package's", [own_cycle(middle), 3]), ("not trained", [own_cycle(middle), synthetic_learner()]), ("peak", [own_cycle(early), middle]),
        ("peak", [own_cycle(middle), early]), ("lengths", [own_cycle(cycled(3, pct_start=0.5)), middle]), ("differ", [own_cycle(middle, 0.1), middle])]),
    "clip every number": ([ClipValue], [
        *ANY_CALLBACK, ("no step", cancel(when=lambda state, limit: True)), ("lost", clip(lambda p, c: setattr(p, "grad", None))), ("unchanged", Mine),
        ("unchanged", clip(lambda p, c: p.grad.clamp_(-c, c), "after_step")), ("above only", clip(lambda p, c: p.grad.clamp_(max=c))),
        ("no negative", clip(lambda p, c: p.grad.clamp_(0, c))), ("too large", clip(lambda p, c: p.grad.mul_(2))),
        ("same factor", callback(lambda self, learn: torch.nn.utils.clip_grad_norm_(learn.model.parameters(), self.limit), "before_step")),
        ("otherwise", clip(lambda p, c: p.grad.sign_().mul_(c / 2)))]),
    "skip hard batches": ([SkipHard, cancel(event="before_step")], [
        *ANY_CALLBACK, ("easy ones", cancel(when=lambda state, limit: state.training and state.loss <= limit)), ("all", Mine), ("all", cancel(event="after_step")),
        ("ends more", cancel(CancelEpochException)), ("others", cancel(when=lambda state, limit: state.training and state.loss > limit / 3)),
        ("validation", cancel(when=lambda state, limit: state.loss > limit)), ("interrupted", Interrupts)]),
    "fill and remember": ([filled, lambda t, n: [n.nan_to_num(float(np.nanmedian(t))), torch.isnan(n)]], [
        ("two tensors", lambda t, n: n), ("two tensors", lambda t, n: ([1.0], n)), ("shape", lambda t, n: (n[:2], n[:2])), ("gaps left", lambda t, n: (n, n.isnan())),
        ("changed", lambda t, n: (torch.full_like(n, 3), n.isnan())), ("own median", lambda t, n: filled(t, n, of=n)),
        ("mean", lambda t, n: filled(t, n, how=torch.nanmean)), ("zero", lambda t, n: (n.nan_to_num(), n.isnan())),
        ("otherwise", lambda t, n: (n.nan_to_num(-5), n.isnan())), ("no truth values", lambda t, n: (filled(t, n)[0], n.isnan().int())),
        ("wrong places", lambda t, n: (filled(t, n)[0], ~n.isnan()))]),
    "importance by shuffling": ([rise, lambda f, x, c, o: f(torch.cat([x[:, :c], x[o, c : c + 1], x[:, c + 1 :]], 1)) - f(x)], [
        ("changed x", rise_in_place), ("whole rows", lambda f, x, c, o: f(x[o]) - f(x)), ("a row", lambda *a: rise(*a, lambda x, c, o: x[c].copy_(x[c][o]))),
        ("not compared", lambda f, x, c, o: rise(f, x, c, o) + f(x)), ("sign", lambda *a: -rise(*a)), ("ratio", lambda f, x, c, o: rise(f, x, c, o) / f(x) + 1),
        ("zeros", lambda *a: rise(*a, lambda x, c, o: x[:, c].zero_())), ("otherwise", lambda *a: 99.0)]),
    "small net or large": ([[much, little, "large"], (little, np.array(much), "small"), [little, [0.29, 0.33, 0.34], "can't tell"]], [
        ("three parts", "small"), ("three parts", [little, much]), ("not a loss", [[0.85, 0.86, 0.85], much, "large"]), ("equal lists", [much, much, "small"]),
        ("verdict", [little, much, "both"]), ("verdict", [little, much, ...]), ("too sure", [little, [0.29, 0.33, 0.34], "small"]),
        ("too careful", [little, much, "can't tell"]), ("wrong side", [little, much, "large"])]),
    "own table": ([of_table(), of_table(vocab=("a", "b", "c"), n=100, right=60)], [
        ("no learner", 3), ("no learner", of_table().dls), ("no table", of_table(kind="image")), ("lesson's own", of_table(names=["fnlwgt"])),
        ("no classes", of_table(vocab=None)), ("not trained", of_table(losses=())), ("few rows", of_table(n=10)), ("no better", of_table(right=40))]),
    "F-beta by hand": ([f_beta, lambda s, t, b: (1 + b * b) * (s & t).sum() / ((1 + b * b) * (s & t).sum() + b * b * (~s & t).sum() + (s & ~t).sum()).clamp(min=1)], [
        ("no hits", shares(lambda p, r, b: (1 + b**2) * p * r / (b**2 * p + r))), ("only f1", lambda s, t, b: f_beta(s, t, 1)),
        ("not squared", shares(lambda p, r, b: (1 + b) * p * r / (b * p + r))), ("other way", lambda s, t, b: f_beta(t, s, b)), ("precision", shares(lambda p, r, b: p)),
        ("recall", shares(lambda p, r, b: r)), ("mean", shares(lambda p, r, b: (p + r) / 2)), ("mean", shares(lambda p, r, b: (p + b * r) / (1 + b))),
        ("accuracy", lambda s, t, b: (s == t).float().mean()), ("no factor", lambda s, t, b: f_beta(s, t, b, 1)), ("otherwise", lambda s, t, b: 0.01)]),
    "threshold for a recall": ([threshold_for, lambda p, t, r: max(x for x in p if (p[t] >= x).float().mean() >= r)], [
        ("the recall itself", lambda p, t, r: r), ("all images", lambda p, t, r: p.sort(descending=True).values[math.ceil(r * len(p)) - 1]),
        ("one too high", lambda p, t, r: threshold_for(p, t, r, -1)), ("one too low", lambda p, t, r: threshold_for(p, t, r, 1)),
        ("one too low", lambda p, t, r: p[t].quantile(1 - r)), ("finds all", lambda p, t, r: p[t].min()),
        ("share of the range", lambda p, t, r: p[t].max() - r * (p[t].max() - p[t].min())), ("otherwise", lambda p, t, r: 0.99)]),
    "points in the mirror": ([moved(lambda x, y, w: (w - x, y)), lambda p, w: torch.tensor([[w, 0.0]]) + p * torch.tensor([-1.0, 1.0])], [
        ("shape", lambda p, w: w - p[:, 0]), ("shape", lambda p, w: [1, 2]), ("changed", mirror_in_place), ("upside down", moved(lambda x, y, w: (x, w - y))),
        ("both", lambda p, w: w - p), ("centered", moved(lambda x, y, w: (-x, y))), ("one off", moved(lambda x, y, w: (w - 1 - x, y))),
        ("swapped", moved(lambda x, y, w: (y, x))), ("swapped", moved(lambda x, y, w: (y, w - x))), ("unchanged", lambda p, w: p),
        ("otherwise", moved(lambda x, y, w: (w / 2 - x, y)))]),
    "squared or absolute": ([[much, little, "absolute"], (little, np.array(much), "squared"), [little, [0.29, 0.33, 0.34], "can't tell"]], [
        ("three parts", "squared"), ("three parts", [little, much]), ("not an error", [[3.1, 3.2, 3.0], much, "squared"]), ("equal lists", [much, much, "squared"]),
        ("verdict", [little, much, "both"]), ("verdict", [little, much, ...]), ("too sure", [little, [0.29, 0.33, 0.34], "squared"]),
        ("too careful", [little, much, "can't tell"]), ("wrong side", [little, much, "absolute"])]),
    "own tagger": ([of_tags(), of_tags(vocab=("cup", "pen", "pan"), n=100)], [
        ("no learner", 3), ("no learner", of_tags().dls), ("one label", of_tags(kind="category")), ("lesson's own", of_tags(vocab=("bicycle", "pottedplant"))),
        ("few labels", of_tags(vocab=("cup",))), ("not trained", of_tags(losses=())), ("few images", of_tags(n=7)), ("no better", of_tags(right=False))]),
    "own callback": ([trained(Mine()), trained(Counter(), Mine(), epochs=2)], [
        ("the callback", Mine), ("the callback", Mine()), ("no learner", 3), ("no learner", [trained(Mine())]), ("none of yours", trained()),
        ("the lesson's", trained(Counter())), ("idle", trained(Idle())), ("not trained", trained(Mine(), epochs=0))]),
}

CASES["forest or chance"] = CASES["own remedy"]


def nearest(factors, i):
    alike = torch.cosine_similarity(factors, factors[i : i + 1])
    return int(alike.index_fill(0, torch.tensor([i]), -2).argmax())


mine, guessed = {f"film {i}": 1 + i % 4 for i in range(8)}, {f"film {i}": 2.0 + i / 40 for i in range(40)}
CASES |= {
    "nearest in taste": ([nearest, lambda f, i: F.normalize(f).matmul(F.normalize(f)[i]).argsort()[-2]], [
        ("itself", lambda f, i: i), ("dot product", lambda f, i: int((f @ f[i]).argsort()[-1])), ("no number", lambda f, i: "film"),
        ("distance", lambda f, i: int((f - f[i]).norm(dim=1).argsort()[1])), ("farthest", lambda f, i: int(torch.cosine_similarity(f, f[i : i + 1]).argmin())),
        ("otherwise", lambda f, i: nearest(f, i) if i < 5 else 0)]),
    "how many factors": ([[[0.8, 0.81, 0.82], [0.7, 0.71, 0.72], "more"], [[0.7] * 3, [0.71] * 3, "fewer"], ([0.7, 0.8, 0.9], torch.tensor([0.75, 0.8, 0.6]), "can't tell")], [
        ("three things", [[0.8] * 3, [0.7] * 3]), ("no loss", [[8, 9, 8], [0.7] * 3, "more"]), ("same lists", [[0.8] * 3, [0.8] * 3, "more"]),
        ("verdict", [[0.8] * 3, [0.7] * 3, "both"]), ("too sure", [[0.8, 0.6, 0.7], [0.7] * 3, "more"]), ("too careful", [[0.8] * 3, [0.7] * 3, "can't tell"]),
        ("wrong side", [[0.8] * 3, [0.7] * 3, "fewer"])]),
    "own ratings": ([[mine, guessed]], [
        ("two dictionaries", [mine]), ("few", [{"film 1": 3}, guessed]), ("scale", [{**mine, "film 1": 9}, guessed]), ("all alike", [dict.fromkeys(mine, 3), guessed]),
        ("missing", [{**mine, "other": 3}, guessed]), ("few predictions", [mine, mine]), ("same prediction", [mine, dict.fromkeys(guessed, 3.0)])]),
}  # fmt: skip

CASES |= {
    "colors to class numbers": ([class_numbers, lambda p, c, v: torch.tensor([[c.tolist().index(x) if x in c.tolist() else v for x in row] for row in p.tolist()])], [
        ("no tensor", lambda p, c, v: p.numpy()), ("turned", lambda p, c, v: class_numbers(p, c, v).T), ("shape", lambda p, c, v: p),
        ("truth values", lambda p, c, v: class_numbers(p, c, v) > 1), ("unknown color", lambda p, c, v: class_numbers(p, c, 0)),
        ("one channel", partial(class_numbers, channels=2)), ("otherwise", lambda p, c, v: 1 + class_numbers(p, c, v))]),
    "pixel accuracy by hand": ([pixels_right, lambda s, t, v: ((s.argmax(1) == t) & (t != v)).sum() / (t != v).sum()], [
        ("void counts", lambda s, t, v: (s.argmax(1) == t).double().mean()), ("divided by all", lambda s, t, v: ((s.argmax(1) == t) & (t != v)).double().mean()),
        ("image by image", lambda s, t, v: sum(pixels_right(a[None], b[None], v) for a, b in zip(s, t)) / len(s)), ("errors", lambda s, t, v: 1 - pixels_right(s, t, v)),
        ("percent", lambda s, t, v: 100 * pixels_right(s, t, v)), ("count", lambda s, t, v: ((s.argmax(1) == t) & (t != v)).sum()),
        ("said void", lambda s, t, v: pixels_right(s, t, v, s.argmax(1) != v)), ("otherwise", lambda s, t, v: 0.123)]),
    "shallow or deep": ([[little, much, "deep"], (much, np.array(little), "shallow"), [little, [0.29, 0.33, 0.34], "can't tell"]], [
        ("three parts", "deep"), ("three parts", [little, much]), ("no Jaccard", [[33, 34, 35], much, "deep"]), ("equal lists", [much, much, "deep"]),
        ("verdict", [little, much, "both"]), ("verdict", [little, much, ...]), ("too sure", [little, [0.29, 0.33, 0.34], "deep"]),
        ("too careful", [little, much, "can't tell"]), ("wrong side", [little, much, "shallow"])]),
    "own masks": ([of_masks(), of_masks(ignored=255, n=2)], [
        ("no learner", 3), ("no learner", of_masks().dls), ("no masks", of_masks(kind="category")), ("lesson's own", of_masks(vocab=("Pedestrian", "Bicyclist"))),
        ("not trained", of_masks(losses=())), ("few images", of_masks(n=1)), ("one class", of_masks(cups=0)), ("no better", of_masks(right=0))]),
    "receptive field of a chain": ([seen_pixels, lambda layers: torch.tensor(seen_pixels(layers))], [("otherwise", lambda layers: 2.5)]),
    "concatenate by hand": ([joined, lambda x, fs: [x := torch.cat((x, f(x)), dim=1) for f in fs][-1]], [
        ("no tensor", lambda x, fs: [x]), ("not a number", lambda x, fs: joined(x, fs) * math.nan), ("otherwise", lambda x, fs: 0 * joined(x, fs)), ("otherwise", lambda x, fs: joined(x, fs)[..., 0])]),
    "class map by hand": ([evidence, lambda m, w: evidence(m.double(), w.double())], [
        ("no tensor", lambda m, w: 1.0), ("not a number", lambda m, w: evidence(m, w, tiny=0)), ("otherwise", lambda m, w: m), ("otherwise", lambda m, w: torch.zeros(m.shape[1:]))]),
    "with or without shortcuts": ([[little, much, "with"], (much, np.array(little), "without"), [little, [0.29, 0.33, 0.34], "can't tell"]], [
        ("three parts", "with"), ("three parts", [little, much]), ("not an error", [[33, 34, 35], much, "with"]), ("equal lists", [much, much, "with"]),
        ("verdict", [little, much, "both"]), ("verdict", [little, much, ...]), ("too sure", [little, [0.29, 0.33, 0.34], "with"]),
        ("too careful", [little, much, "can't tell"]), ("wrong side", [little, much, "without"])]),
    "own heat maps": ([located(5), tuple(located(6))], [
        ("no list", 3), ("few", located(4)), ("few", located(1) * 9), ("no pair", [HEAT] * 5), ("no pair", [("map", (0, 0, 0.5, 0.5))]), ("no pair", [(HEAT, 0.5)]),
        ("no box", [(HEAT, (20, 20, 50, 50))]), ("no box", [(HEAT, (0.5, 0, 0.2, 1))]), ("whole image", [(HEAT, (0, 0, 1, 0.99))])]),
}  # fmt: skip

def blended(x, y, order, share, part=lambda s: s):
    wide = part(share)
    return wide[:, None, None, None] * x + (1 - wide[:, None, None, None]) * x[order], wide[:, None] * y + (1 - wide[:, None]) * y[order]


def unbeaten(speed, error, sign=1):
    nets = list(zip(speed, error))
    return [i for i, (s, e) in enumerate(nets) if not any(sign * a >= sign * s and b <= e and (a, b) != (s, e) for a, b in nets)]


CASES |= {
    "mixup by hand": ([blended, lambda x, y, o, s: [torch.lerp(x[o], x, s.view(-1, 1, 1, 1)), torch.lerp(y[o], y, s.view(-1, 1))]], [
        ("two tensors", lambda x, y, o, s: x), ("two tensors", lambda x, y, o, s: [x.tolist(), y.tolist()]), ("shape", lambda x, y, o, s: (x[:2], y[:2])),
        ("labels left", lambda x, y, o, s: (blended(x, y, o, s)[0], y)), ("images left", lambda x, y, o, s: (x, blended(x, y, o, s)[1])),
        ("swapped", partial(blended, part=lambda s: 1 - s)), ("one share", partial(blended, part=lambda s: s[:1].expand(len(s)))),
        ("one share", partial(blended, part=lambda s: s.mean().expand(len(s)))), ("other order", lambda x, y, o, s: blended(x, y, o.argsort(), s)),
        ("otherwise", lambda x, y, o, s: (x / 2, y)), ("otherwise", lambda x, y, o, s: (blended(x, y, o, s)[0], y * 0))]),
    "worth a try": ([unbeaten, lambda s, e: tuple(unbeaten(s, e)), lambda s, e: torch.tensor(unbeaten(s, e))], [
        ("no list", lambda s, e: 0), ("no list", lambda s, e: None), ("names", lambda s, e: [len(s)]), ("names", lambda s, e: [0.5]), ("names", lambda s, e: ["a"]),
        ("one only", lambda s, e: [e.index(min(e))]), ("slow ones", partial(unbeaten, sign=-1)), ("beaten", lambda s, e: list(range(len(s)))),
        ("missing", lambda s, e: unbeaten(s, e)[:-1] if len(s) == 5 else unbeaten(s, e)), ("missing", lambda s, e: []), ("order", lambda s, e: unbeaten(s, e)[::-1])]),
    "how much to mix": CASES["own remedy"], "own trick": CASES["own remedy"],
}  # fmt: skip



def lm_batches(tokens, bs, seq_len):
    length = (len(tokens) - 1) // bs
    x, y = (tokens[k : k + bs * length].view(bs, length) for k in (0, 1))
    return list(zip(x.split(seq_len, 1), y.split(seq_len, 1)))


def pairs_turned(change):
    return lambda *args: [change(x, y) for x, y in lm_batches(*args)]


def by_batch(tokens, bs, seq_len):
    size = bs * seq_len
    return [(tokens[i : i + size].view(bs, -1), tokens[i + 1 : i + size + 1].view(bs, -1)) for i in range(0, len(tokens) - size, size)]


def next_probs(scores, temperature, k, change=lambda s, t: s / t, sign=1):
    best = (sign * scores).topk(k).indices
    return torch.full_like(scores, -torch.inf).index_put_((best,), change(scores, temperature)[best]).softmax(0)


def of_texts(*, kind="text", vocab=("ham", "spam"), losses=(1.0,), right=30, n=40, is_lm=False):
    "What the judge of one's own texts looks at; nbs/solutions runs the real thing."
    targs = torch.arange(n) % 2
    preds = SimpleNamespace(preds=F.one_hot(torch.where(torch.arange(n) < right, targs, 1 - targs), 2).float(), targs=targs)
    train = SimpleNamespace(blocks=[SimpleNamespace(kind=kind, is_lm=is_lm), SimpleNamespace(kind="category", vocab=list(vocab))])
    return SimpleNamespace(dls=SimpleNamespace(train=train), recorder=SimpleNamespace(losses=losses), get_preds=lambda: preds)


fewer, more = [5.30, 5.31, 5.32], [5.43, 5.44, 5.45]
CASES |= {
    "batches of a stream": ([lm_batches, lambda *args: [[x, y] for x, y in lm_batches(*args)]], [
        ("no pairs", lambda t, bs, n: t), ("rows", pairs_turned(lambda x, y: (x.T, y.T))), ("same", pairs_turned(lambda x, y: (x, x))),
        ("behind", pairs_turned(lambda x, y: (y, x))), ("last target", pairs_turned(lambda x, y: (x, y[:, :-1]))), ("not continued", by_batch),
        ("too long", lambda t, bs, n: lm_batches(t, bs, n + 1)), ("tokens lost", lambda *args: lm_batches(*args)[:2]),
        ("otherwise", pairs_turned(lambda x, y: (x.flip(0), y.flip(0))))]),
    "temperature and top k": ([next_probs, lambda s, t, k: F.softmax((s / t).masked_fill(s < s.topk(k).values[-1], -torch.inf), 0)], [
        ("no tensor", lambda s, t, k: s.tolist()), ("shape", lambda s, t, k: s.topk(k).values), ("changed scores", lambda s, t, k: s.div_(t).softmax(0)),
        ("all words", lambda s, t, k: (s / t).softmax(0)), ("no temperature", lambda s, t, k: next_probs(s, 1, k)),
        ("upside down", lambda s, t, k: next_probs(s, 1 / t, k)), ("on probabilities", lambda s, t, k: next_probs(s, t, k, lambda s, t: s.softmax(0) / t)),
        ("worst", partial(next_probs, sign=-1)), ("not one", lambda s, t, k: (s / t).softmax(0) * (s >= s.topk(k).values[-1])),
        ("otherwise", lambda s, t, k: torch.ones(len(s)) / len(s))]),
    "dropout or none": ([[fewer, more, "none"], (more, torch.tensor(fewer), "full"), [fewer, [5.2, 5.4, 5.5], "can't tell"]], [
        ("three parts", "none"), ("three parts", [fewer, more]), ("not a loss", [[200, 210, 220], more, "full"]), ("equal lists", [more, more, "none"]),
        ("verdict", [fewer, more, "both"]), ("too sure", [fewer, [5.2, 5.4, 5.5], "none"]), ("too careful", [fewer, more, "can't tell"]),
        ("wrong side", [fewer, more, "full"])]),
    "own texts": ([of_texts(), of_texts(n=20, right=20)], [
        ("no learner", 3), ("no texts", of_texts(kind="image")), ("language model", of_texts(is_lm=True)), ("lesson's own", of_texts(vocab=("networkx", "sympy"))),
        ("not trained", of_texts(losses=())), ("few texts", of_texts(n=10)), ("no better", of_texts(right=20))]),
}  # fmt: skip



def two_losses(real, fake, change=lambda critic, generator: (critic, generator)):
    return change(F.softplus(-real).mean() + F.softplus(fake).mean(), F.softplus(-fake).mean())


def of_images(*, kinds=("image", "image"), losses=(1.0,), n=4, better=0.5, item="own/a.jpg", noise=0.1):
    "What the judge of one's own super-resolver looks at; nbs/solutions runs the real thing."
    rng = torch.Generator().manual_seed(0)
    targs = 0.5 + 0.2 * torch.rand(n, 3, 8, 8, generator=rng)
    worse = noise * torch.randn(n, 3, 8, 8, generator=rng)

    class Loader(list):
        dataset = SimpleNamespace(items=[item] * n)

    preds = SimpleNamespace(preds=targs + better * worse, targs=targs)
    dls = SimpleNamespace(train=SimpleNamespace(blocks=[SimpleNamespace(kind=k) for k in kinds]), valid=Loader([SimpleNamespace(xs=(targs + worse,))]))
    return SimpleNamespace(dls=dls, recorder=SimpleNamespace(losses=losses), get_preds=lambda: preds)


def naive_losses(real, fake):
    return -real.sigmoid().log().mean() - (1 - fake.sigmoid()).log().mean(), -fake.sigmoid().log().mean()


CASES |= {
    "two losses by hand": ([two_losses, lambda r, f: list(two_losses(r, f)), lambda r, f: (-F.logsigmoid(r).mean() - F.logsigmoid(-f).mean(), -F.logsigmoid(f).mean())], [
        ("two numbers", lambda r, f: 3), ("two numbers", lambda r, f: (F.softplus(-r), F.softplus(f))), ("swapped", lambda r, f: two_losses(r, f)[::-1]),
        ("sum", partial(two_losses, change=lambda c, g: (5 * c, g))), ("halved", partial(two_losses, change=lambda c, g: (c / 2, g))),
        ("sum", lambda r, f: (two_losses(r, f)[0], F.softplus(-f).sum())), ("wrong way", lambda r, f: (F.softplus(r).mean() + F.softplus(-f).mean(), F.softplus(-f).mean())),
        ("real only", lambda r, f: (F.softplus(-r).mean(), F.softplus(-f).mean())), ("fake only", lambda r, f: (F.softplus(f).mean(), F.softplus(-f).mean())),
        ("minus critic", partial(two_losses, change=lambda c, g: (c, -c))), ("minus critic", lambda r, f: (two_losses(r, f)[0], -F.softplus(f).mean())),
        ("against itself", lambda r, f: (two_losses(r, f)[0], F.softplus(f).mean())), ("no logarithm", lambda r, f: (two_losses(r, f)[0], -f.mean())),
        ("no logarithm", lambda r, f: (f.mean() - r.mean(), -f.mean())), ("overflow", naive_losses), ("otherwise", lambda r, f: (0.1, 0.2))]),
    "momentum or none": ([[[0.5, 0.6, 0.7], [0.1, 0.2, 0.3], "none"], ([0.1, 0.2, 0.3], np.array([0.5, 0.6, 0.7]), "momentum"), [[0.5, 0.6, 0.7], [0.55, 0.2, 0.3], "can't tell"],
                          [[0.0] * 3, [0.0] * 3, "can't tell"]], [
        ("three parts", "none"), ("three parts", [[0.5] * 3, [0.4] * 3]), ("no share", [[50, 60, 70], [0.1, 0.2, 0.3], "none"]), ("equal lists", [[0.5] * 3, [0.5] * 3, "none"]),
        ("verdict", [[0.5] * 3, [0.4] * 3, "both"]), ("too sure", [[0.5, 0.6, 0.7], [0.55, 0.2, 0.3], "none"]),
        ("too careful", [[0.5] * 3, [0.4] * 3, "can't tell"]), ("wrong side", [[0.5] * 3, [0.4] * 3, "momentum"])]),
    "own super-resolver": ([of_images(), of_images(n=2, better=0)], [
        ("no learner", 3), ("no learner", of_images().dls), ("no images", of_images(kinds=("image", "mask"))), ("lesson's own", of_images(item="data/oxford-iiit-pet/a.jpg")),
        ("not trained", of_images(losses=())), ("few images", of_images(n=1)), ("nothing spoiled", of_images(noise=0)), ("no better", of_images(better=2))]),
}  # fmt: skip

# The right answers of the tables once more, as sums.
SUMS = {
    "decibels": [-10 * math.log10(0.001), 10 * math.log10(2)], "the safest guess": [(7 * 0 + 3 * 1) / 10, sorted([0] * 7 + [1] * 3)[5]],
    "a sub-pixel layer": [8 * 2 * 2, 24 * 3 * 3 * 8 * 2 * 2],
    "cells out of order": [(2 * 3 + 4) * 3, 2 * 3 + 4], "training time": math.ceil(1080 / 32) * 0.4 * 5,
    "validation pictures": int(1350 * 0.3), "precision of one breed": matrix[0, 0] / matrix[:, 0].sum(), "largest stable rate": 2 / (2 * 40),
    "first step of Adam": [0.01 * g / math.sqrt(g * g) for g in (200, 0.005)], "deviation of the first weights": (2 / 800) ** 0.5,
    "half of a weight": math.ceil(math.log(0.5) / math.log(1 - 0.02 * 0.1)), "calls of three events": [3, 3 * (23 + 3), 3 * 23 - 5],
    "rates of a cycle": [one_cycle(0.02)[0](k / 400) for k in (0, 25, 100, 250)],
    "stars by hand": [2 * 1 + 0 * 3 - 1 * 0.5 + 0.5 - 1, 5 / (1 + math.exp(-1))], "rows of the table": [2_050_000 * 101, 64 * 2 * 101],
    "dice and jaccard of a car": [2 * 30 / (50 + 60), 30 / (50 + 60 - 30)], "into an up step": [256 + 112, 96 // 16, 160 // 16],
    "three yes-or-no questions": -sum(math.log(p) for p in (0.9, 1 - 0.2, 0.5)) / 3,
    "a smoothed target": [1 - 0.2 + 0.2 / 5, 0.2 / 5],
    "size of a table net": [4 + 6 + 5, 9 * 4 + 16 * 6 + (4 + 6 + 5) * 100 + 100 + 100 * 2 + 2],
    "size of a convolution": [(96 + 2 * 2 - 5) // 2 + 1, 5 * 5 * 3 * 24 + 24, 48 * 48 * 24 * 5 * 5 * 3],
    "perplexity by hand": [-sum(math.log(p) for p in (1 / 2, 1 / 4, 1 / 8, 1 / 16)) / 4, 2**2.5],
}

# name -> what no hint and no task may say
SECRETS = {
    "decibels": ["3.01", "log10(2)"], "the safest guess": ["0.3"], "a sub-pixel layer": ["6912", "6,912"], "two losses by hand": ["softplus(-real)", "softplus(fake)", "logsigmoid(real"],
    "cells out of order": ["30", "10"], "training time": ["68", "34", "33"],
    "fix the function": [".mean", ".size", "numel"], "another background": ["purple", "navy", "olive"], "validation pictures": ["405"],
    "error rate by hand": ["argmax", "!=", ".mean", "max(", ".sum"], "shelter pattern": [r"(\w+)", "(.+)", "(.*)", "([^-]+)", "-("],
    "precision of one breed": ["0.66", "0.67", ".66", "66.", "2/3", "40/60", "60"],
    "label two levels up": ["parent.parent", "parents[1]", "parts[-3]"], "each picture once": ["setdefault", "in seen", ".values()", "dict.fromkeys", "set("],
    "split by scene": ["rpartition", "rsplit", "split("], "changes that keep a letter": ["without mirror", "not mirror", "is missing: ", "remove"],
    "shape by broadcasting": ["(32, 7, 10)", "32, 7", "7, 10"],
    "slope by nudging": ["2 * h", "2h", "w + h", "w - h"], "one step of SGD": ["rate * p.grad", "p.grad = None", "zero_", "alpha"],
    "binary cross-entropy that survives": ["clamp(", ".abs", "log1p", "softplus", "logsigmoid", "stack"],
    "largest stable rate": ["0.025", ".025", "1/40", "2 / 80"],
    "warm-up and fall": ["2 * p", "2*p", "/ 0.1", "/ 0.9", "0.9)", "1 - p"], "first step of Adam": ["0.01,", "0.01 ", "0.01.", "1e-2"],
    "write Lion": [".sign", "sign(", "* v", "v *"],
    "deviation of the first weights": ["0.05", ".05", "2/n", "2 / n", "sqrt(2"], "batch norm for maps": ["(0, 2, 3)", "keepdim", "sqrt", "correction=0", "unbiased"],
    "half of a weight": ["347", "346", "0.998", "0.002", "log"], "dropout of whole channels": ["1 / (1 - p)", "1 - p", "dropout2d(", "N, C, 1, 1", "rand("],
    "calls of three events": ["78", "64"], "rates of a cycle": ["0.0008", "0.0036", "0.01 ", "8e-4"], "peak in the middle": ["peak=", "pct_start"],
    "stars by hand": ["3.65", "3.66"], "rows of the table": ["207", "12928", "12,928"], "nearest in taste": ["cosine_similarity", "argmax", "normalize"],
    "size of a convolution": ["48", "4147200", "4,147,200"], "receptive field of a chain": ["k - 1", "kernel - 1", "*= stride", "step *"],
    "concatenate by hand": ["cat(", "dim=1"], "class map by hand": ["einsum", "clamp", "relu", ".max("],
    "size of a table net": ["1934", "1,934"], "fill and remember": ["nanmedian", "isnan", "where(", "nan_to_num"],
    "importance by shuffling": ["clone", "x[order", "[:, ", "[order"],
    "dice and jaccard of a car": ["0.54", "0.55", ".375", "37.5", "6/11", "3/8"], "into an up step": ["368", "256 + 112", "6, 10", "6 × 10", "6 x 10"],
    "colors to class numbers": ["all(", "argmax", "where(", "[:, :, None"], "pixel accuracy by hand": ["argmax", "!=", ".mean", "[targs"],
    "three yes-or-no questions": ["0.34", ".34", "0.8,", "0.8 "], "F-beta by hand": ["beta**2", "b**2", "1 + beta", "&", "~"],
    "threshold for a recall": ["ceil", "quantile", "sort(", "descending", "probs[there]"], "points in the mirror": ["width - x", "width - p", "clone"],
    "a smoothed target": ["0.84", "0.04", ".84", ".04"], "mixup by hand": ["lerp", "[:, None", "x[order]", "view("], "worth a try": ["any(", "min(", "sorted("],
    "perplexity by hand": ["1.73", "5.65", "5.66", "2.5 "], "batches of a stream": [".view", "reshape", "split(", "chunk", "- 1)"],
    "temperature and top k": ["topk", "softmax", "masked_fill", "inf", "/ temp"],
    "clip every number": ["clamp", "clip_grad_value", "before_step"], "skip hard batches": ["CancelBatch", "after_loss", "state.training"],
}  # fmt: skip
JUNK = [3.7e-9, 12345.6, 0, -1, True, "text", "0.5", b"x", [1], [0.1, 0.9], {1, 2}, {"a": 1}, {}, (), [...], [None], [..., ...], float("nan"), float("inf"), 2j,
        object(), print, lambda: 1, lambda *args: None, lambda *args: "text", lambda *args: args[0], raises, int, torch.ones(2), np.ones((2, 2)), slice(1, 2)]  # fmt: skip
TABLES = {name: e.judge for name, e in all_exercises().items() if isinstance(e.judge, AnswerTable)}


def hint_of(name, answer):
    "The name of the hint that an answer gets; None if it is right."
    try:
        all_exercises()[name].judge(answer)
    except Hint as hint:
        return hint.key
    return None


def table_rows():
    "(exercise, hint, answer): an answer for every pattern of every table."
    for name, table in TABLES.items():
        right = table.answer if isinstance(table.answer, list) else [table.answer]
        for row in table.wrong:
            for pattern in table._patterns(row):
                for scale in (1, 1.7):  # of the numbers that are left open
                    answer = []
                    for p, r in zip(pattern, right):
                        sign, limit = p.split() if isinstance(p, str) and p != "same" else ("", 0)
                        answer.append(r * scale if p is None else answer[-1] if p == "same" else p * (1.005 if p == r and len(right) == 1 else 1) if not sign else
                                      float(limit) * 1.7 if sign == "!=" else float(limit) + (abs(float(limit)) * 0.3 or 1) * (1 if ">" in sign else -1))
                    answer = answer if isinstance(table.answer, list) else answer[0]
                    if hint_of(name, answer) == row["hint"]:
                        break
                yield name, row["hint"], answer


def function_rows():
    "(exercise, hint, answer): the mistakes of every FunctionCheck as answers."
    inside = {"binary cross-entropy that survives": checks_03.ordinary_cross_entropy, "batch norm for maps": checks_04b.ordinary_maps}
    for name, exercise in all_exercises().items():
        if isinstance(judge := inside.get(name, exercise.judge), FunctionCheck):
            for key, mistake in judge.wrong.items():
                formula = mistake[0] if isinstance(mistake, tuple) else mistake
                yield name, key, lambda *args, f=formula: found[0] if isinstance(found := f(*args), list) else found


RIGHT = [(name, answer) for name, case in CASES.items() for answer in case[0]]
RIGHT += [(name, kind(answer)) for name, answer in SUMS.items() for kind in ((tuple, torch.tensor) if isinstance(answer, list) else (float, torch.as_tensor))]
WRONG = [*table_rows(), *function_rows(), *((name, key, answer) for name, case in CASES.items() for key, answer in case[1])]


def assert_gives_nothing_away(name, text):
    assert not [secret for secret in SECRETS.get(name, ()) if secret in text], text


def test_every_exercise_has_cases():
    assert set(CASES) | set(SUMS) == set(all_exercises()) and set(SUMS) == set(TABLES)
    assert len(all_exercises()) == sum(len(lesson_exercises(n)) for n in content_files())  # names are unique


@pytest.mark.parametrize(("name", "answer"), RIGHT, ids=[f"{name}-{k}" for k, (name, *_) in enumerate(RIGHT)])
def test_solution_is_accepted(name, answer):
    result = check(name, answer)
    assert result and result.text.endswith("."), result


@pytest.mark.parametrize(("name", "key", "answer"), WRONG, ids=[f"{name}-{key}-{k}" for k, (name, key, _) in enumerate(WRONG)])
def test_mistake_gets_its_own_hint(name, key, answer):
    assert hint_of(name, answer) == key
    text = check(name, answer).text
    assert len(text) > 20 and not re.search(r"\{[a-z_]+[}:.\[]", text) and "cannot be used here" not in text
    assert_gives_nothing_away(name, text)


@pytest.mark.parametrize("name", CASES)
def test_every_hint_is_tried(name):
    assert set(all_exercises()[name].hints) == {key for n, key, _ in WRONG if n == name}


@pytest.mark.parametrize("name", all_exercises())
def test_anything_else_gets_a_hint_too(name):
    for answer in JUNK:
        result = check(name, answer)
        assert isinstance(result, CheckResult) and len(result.text) > 20 and (not result or answer == 0 or name == "own model file"), result
        assert_gives_nothing_away(name, result.text.replace("12345.6", "")) if not result else None
    for answer in (None, ...):
        assert "Nothing to check yet" in check(name, answer).text


@pytest.mark.parametrize("name", all_exercises())
def test_the_task_says_what_to_do_and_not_the_answer(name):
    exercise = all_exercises()[name]
    assert ("..." in exercise.starter or "mistakes" in exercise.ask) and exercise.ask.endswith((".", "?", "!", ")"))
    texts = repr(exercise) + inspect.getsource(check)
    said = (".sum", ".mean", "softplus", "logsigmoid", "keepdim")  # a task may name a tool, or rule one out; a hint may not
    assert not [text for text in SECRETS.get(name, ()) if text in texts and text not in said]


def lesson_tasks(file):
    "Name of each exercise in a lesson -> what the lesson asks, without the emphasis and the links, and the code of the reader's cell."
    found, text = {}, ""
    for cell in json.loads(file.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            task = re.split(r"^\*\*\d+\.", source, flags=re.M)[-1]
            text = "".join(p if p[:1] == "`" else re.sub(r"\[(.+?)\]\(.+?\)", r"\1", p).replace("*", "") for p in re.split(r"(`[^`]*`)", task))
        found |= {name: (" ".join(text.split()), source) for name in re.findall(r'^check\("(.+?)"', source, flags=re.M)}
    return found


@pytest.mark.parametrize("lesson", content_files())
def test_a_lesson_and_its_task_file_ask_the_same(lesson):
    asked = lesson_tasks(Path(__file__).parent.parent / "nbs" / "lessons" / f"{lesson_file(lesson).stem}.ipynb")
    assert [*asked] == [exercise.name for exercise in lesson_exercises(lesson)]
    for exercise in lesson_exercises(lesson):
        text, code = asked[exercise.name]
        assert (" ".join(exercise.ask.split()), code.count(exercise.starter.strip())) == (text, 1)


plain = st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(max_size=20) | st.binary(max_size=8)
answers = st.recursive(
    plain, lambda kids: st.lists(kids, max_size=4) | st.tuples(kids, kids, kids) | st.dictionaries(st.text(max_size=3), kids, max_size=3), max_leaves=6
)
patterns = st.from_regex(r"[-^(]{1,3}[\\w.+*]{1,4}[-)]{1,2}", fullmatch=True)


@pytest.mark.parametrize("name", all_exercises())
@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(answer=answers | st.lists(st.floats(1e-7, 1.0), min_size=3, max_size=3) | st.floats(-1, 2) | st.integers(-10, 3000) | patterns)
def test_no_answer_raises_or_draws_the_solution_out(name, answer):
    result = check(name, answer)
    if not result:  # what the reader typed may be quoted, so their own text is taken out first
        numbers = re.escape(f"{answer:.4g}") if isinstance(answer, (int, float)) else re.escape(str(answer)) or "$^"
        assert_gives_nothing_away(name, re.sub(numbers, "", result.text.replace(str(answer) or "$^", "")))
    assert result._repr_html_() and repr(result)


def test_a_function_as_answer_cannot_change_what_it_is_compared_with():
    def cheat(preds, targs):
        targs[:] = preds.argmax(1)
        return 0.0

    assert not check("error rate by hand", cheat)


def test_checking_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    for name, *_, answer in [*RIGHT, *WRONG]:
        check(name, answer)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", all_exercises())
def test_answers_are_escaped(name):
    evil = "<img src=x onerror=alert(1)>"
    named = type(evil, (), {"__repr__": lambda self: evil})()

    def raising(*args):
        raise ValueError(evil)

    for answer in (evil, f"({evil})", f"(({evil}", named, [evil] * 3, [named] * 3, raising, pets(vocab=[evil, "x"], targs=(1, 1))):
        assert "<img" not in check(name, answer)._repr_html_()


def test_result_says_the_verdict_in_words():
    right, wrong = CheckResult("a", True, "Good `x < 1`."), CheckResult("a", False, "Halve it.")
    assert "Right." in right._repr_html_() and "Not yet." in wrong._repr_html_() and "<code>x &lt; 1</code>" in right._repr_html_()
    assert repr(wrong) == "a: ✗ Not yet. Halve it."


@pytest.mark.parametrize(("name", "facts"), [("sheltre pattern", "'shelter pattern'"), ("qqqq", "'cells out of order'"), (0.2, "check(")])
def test_unknown_name_offers_the_nearest(name, facts):
    with pytest.raises(ValueError, match=re.escape(facts)):
        check(name, "x")


@pytest.mark.parametrize("n", content_files())
def test_lesson_has_three_to_six_exercises_and_the_last_is_ones_own(n):
    found = lesson_exercises(n)
    assert 3 <= len(found) <= 6 and found[-1].name.startswith("own ")


# ---------------------------------------------------------------- quizzes
QUIZZES = {n: quiz(n) for n in list(content_files("quiz"))}


class Page(HTMLParser):
    "Collects tags and attributes, and that every element is closed."

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("br", "img", "hr"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_there_are_quizzes():
    assert {0, 1} <= set(QUIZZES) and list(QUIZZES) == list(content_files())


@pytest.mark.parametrize("n", QUIZZES)
def test_quiz_is_sound(n):
    questions = QUIZZES[n].questions
    assert 10 <= len(questions) <= 25 and len({q.ask for q in questions}) == len(questions)
    for q in questions:
        assert q.ask.endswith(("?", ":")) and sum(right for _, _, right in q.choices) == 1
        for choice, why, _ in q.choices:
            assert len(why) >= 15 and why.rstrip().endswith("."), why
            assert len(choice) <= 80, choice
    letters = ["abcde"[[right for *_, right in q.choices].index(True)] for q in questions]
    assert max(map(letters.count, letters)) <= len(letters) * 0.45, letters  # no letter is the best guess
    longest = sum(len(q.right[0]) > max(len(c) for c, _ in q.wrong) for q in questions)
    assert longest <= len(questions) / 2  # nor is the longest choice


@pytest.mark.parametrize("n", QUIZZES)
def test_quiz_needs_no_network_and_no_script(n):
    text = QUIZZES[n]._repr_html_()
    page = Page(text)
    assert {tag for tag, _ in page.tags} <= {"style", "section", "p", "strong", "br", "ol", "li", "details", "summary", "code"}
    for tag, attrs in page.tags:
        assert set(attrs) <= {"class", "aria-label"}, (tag, attrs)
    assert not re.search(r"https?://|//\w|url\(|@import|eval|<script|javascript:", text)
    assert len(text) < 40_000


@pytest.mark.parametrize("n", QUIZZES)
def test_quiz_answers_by_letter_and_shows_every_explanation(n):
    page = " ".join("".join(Page(QUIZZES[n]._repr_html_()).text).split())
    for i, q in enumerate(QUIZZES[n].questions, 1):
        results = [QUIZZES[n].answer(i, letter) for letter in "abcde"[: len(q.choices)]]
        assert sum(map(bool, results)) == 1
        assert all(r.text.replace("`", "") in page for r in results)
    assert q.ask in repr(QUIZZES[n])


def test_quiz_escapes():
    evil = "<img src=x onerror=alert(1)>"
    text = Quiz(evil, (Question(evil, (evil, evil), ((evil + "1", evil), (evil + "2", evil))),))._repr_html_()
    assert "<img" not in text and html.escape(evil) in text


def test_known_mistakes_are_not_taught_as_right():
    right = " ".join(f"{q.ask} {q.right[0]} {q.right[1]}" for q in QUIZZES[1].questions).lower()
    assert "lr/10" not in right and "between 0 and 1" not in right and "weight decay 0.1" not in right


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("lesson", [99, "99", "1", "01", "4z", "04a", "", True, 1.0, None, [1]])
def test_unknown_lesson(lesson):
    with pytest.raises(ValueError, match=re.escape(f"lesson={lesson!r}") + ".*0, 1, 2"):
        quiz(lesson)


def test_a_half_of_a_lesson_is_asked_for_by_its_text(tmp_path, monkeypatch):
    for name in ("tasks/03_a", "tasks/04b_b", "tasks/04a_c", "tasks/11_d", "tasks/x_e", "tasks/04ab_f", "quizzes/04a_g"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text("")
    monkeypatch.setattr(exercises, "COURSE", tmp_path)
    assert list(content_files()) == [3, "4a", "4b", 11] and list(content_files("quiz")) == ["4a"]
    assert [lesson_file(n).name for n in content_files()] == ["03_a.yaml", "04a_c.yaml", "04b_b.yaml", "11_d.yaml"]
    with pytest.raises(ValueError, match="lesson=4 .*3, '4a', '4b', 11"):
        lesson_file(4)


@pytest.mark.parametrize(("old", "new", "facts"), [
    ("right:", "rigth:", ["question 1", "`rigth:`", "'right'"]), ("title:", "titel:", ["`titel:`", "'title'"]), ("why: ", "why: 3 #", ["question 1", "`why:`", "3"]),
    ("ask: ", "ask: `", ["line"]), ("questions:", "questions: []\nmore:", ["`questions:`"]), ("- ask:", "- asks: a\n    ask:", ["question 1", "`asks:`"]),
])  # fmt: skip
def test_a_mistake_in_a_file_names_file_place_and_fix(tmp_path, old, new, facts):
    text = lesson_file(3, "quiz").read_text(encoding="utf-8")
    file = tmp_path / "03_topic.yaml"
    file.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises((ValueError, yaml.YAMLError), match="03_topic.yaml") as caught:
        read_quiz(file)
    assert all(fact in str(caught.value) for fact in facts), caught.value
