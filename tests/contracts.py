"""One shared check for each kind of thing that the package is made of.

A check raises an AssertionError that names its subject, the promise that it broke and what it did instead.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import inspect
import json
import math
import pkgutil
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import raises
from PIL.Image import Image
from torch import Tensor, nn

from coursekit.data.block import Block
from coursekit.data.transforms import BatchTransform, ItemTransform
from coursekit.deploy.hub import load_learner
from coursekit.deploy.registry import from_spec, to_spec
from coursekit.training.callback import Callback, CancelEpochException, CancelFitException, CancelTrainException
from coursekit.training.layers import ModelSpec
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.losses import Loss, named_loss
from coursekit.training.metrics import Metric
from coursekit.training.schedules import Schedule


def require(kept: Any, subject: Any, promise: str, *, seen: Any = None) -> None:
    """Fail with the subject and its promise unless the promise is kept."""
    assert kept, f"{subject!r}: {promise}" + ("." if seen is None else f"; got {seen!r}.")


def same(a: Any, b: Any, *, tol: float = 0.0) -> bool:
    """Whether two nests of values are equal: tensors by type, shape and numbers, images by their pixels."""
    if type(a) is not type(b):
        return False
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y, tol=tol) for x, y in zip(a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k], tol=tol) for k in a)
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=tol, atol=tol, equal_nan=True)
    if isinstance(a, Image):
        return a.mode == b.mode and a.size == b.size and a.tobytes() == b.tobytes()
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and np.array_equal(a, b)
    if isinstance(a, float):
        return math.isclose(a, b, rel_tol=tol, abs_tol=tol) or (math.isnan(a) and math.isnan(b))
    return bool(a == b)


@contextlib.contextmanager
def global_rng_untouched(subject: Any) -> Iterator[None]:
    """Inside, nothing may draw from the global generators of Python, NumPy and torch, or reseed them."""

    def states() -> tuple:
        return random.getstate(), [str(part) for part in np.random.get_state()], torch.get_rng_state()  # noqa: NPY002

    before = states()
    yield
    for name, x, y in zip(("random", "numpy.random", "torch"), before, states()):
        require(same(x, y), subject, f"leaves the global generator of {name} alone")


def all_subclasses(base: type) -> list[type]:
    """Every public subclass, at any depth, that coursekit defines, sorted by name."""
    package = importlib.import_module("coursekit")
    for module in pkgutil.walk_packages(package.__path__, "coursekit."):
        if not module.name.endswith((".all", "._modidx", ".__main__")):  # these define nothing
            importlib.import_module(module.name)
    found: set[type] = set()
    todo = [base]
    while todo:
        kids = set(todo.pop().__subclasses__()) - found
        found |= kids
        todo += kids
    own = [c for c in found if c.__module__.startswith("coursekit.") and not c.__name__.startswith("_")]
    return sorted(own, key=lambda c: (c.__module__, c.__name__))


def rebuilt(subject: Any) -> Any:
    """The subject as a file would bring it back, by way of JSON; a class of a test's own is made from its fields."""
    if type(subject).__module__.startswith("coursekit."):
        return from_spec(json.loads(json.dumps(to_spec(subject))))
    fields = {f.name: getattr(subject, f.name) for f in dataclasses.fields(subject) if f.init}
    return type(subject)(**json.loads(json.dumps(fields)))


# ------------------------------------------------------------------------------------------------------ schedules


def check_schedule(schedule: Schedule, *, start: float | None = None, peak: float | None = None, end: float | None = None) -> None:
    """Finite numbers on 0..1, pure, with the values given at start, peak and end; other progress is refused."""
    grid = [i / 400 for i in range(401)]
    values = [schedule(p) for p in grid]
    require(isinstance(schedule, Schedule), schedule, "is a `Schedule`: called with progress")
    require(all(isinstance(v, float) and math.isfinite(v) for v in values), schedule, "gives a finite float from 0 to 1")
    require([schedule(p) for p in reversed(grid)] == values[::-1], schedule, "is pure: the order of calls does not matter")
    for name, expected, got in (("start", start, values[0]), ("peak", peak, max(values)), ("end", end, values[-1])):
        require(expected is None or math.isclose(got, expected, rel_tol=1e-9), schedule, f"has {name} {expected}", seen=got)
    for bad in (-0.01, 1.01, math.nan):
        with raises(ValueError, "pct"):
            schedule(bad)


# --------------------------------------------------------------------------------------------- losses and metrics


def check_loss(loss: Loss, preds: Tensor, targs: Tensor, *, wrapped: bool = False) -> None:
    """A differentiable scalar, the mean of its items; activation and decode of fitting shape; rebuilt from its options.

    `preds` are raw outputs (N, ...), N even. `wrapped`: it wraps a function, so its errors are the function's.
    """
    kept = preds.clone(), targs.clone()
    x = preds.clone().requires_grad_()
    with global_rng_untouched(loss):
        value = loss(x, targs)
        require(value.ndim == 0 and value.isfinite(), loss, "gives a finite scalar", seen=value)
        value.backward()
        require(x.grad is not None and x.grad.isfinite().all() and x.grad.any(), loss, "has a finite gradient", seen=x.grad)
        items, activated, decoded = loss.per_item(preds, targs), loss.activation(preds), loss.decode(preds)
    require(items.shape == preds.shape[:1], loss, "gives one loss per item", seen=items.shape)
    require(torch.allclose(items.mean(), value, rtol=1e-4, atol=1e-6), loss, f"is the mean of its items, {items.mean()}", seen=value)
    require(activated.shape == preds.shape, loss, "activates without changing the shape", seen=activated.shape)
    require(len(decoded) == len(preds) and decoded.numel() == targs.numel(), loss, "decodes to answers like the targets", seen=decoded.shape)
    require(same((preds, targs), kept), loss, "leaves predictions and targets alone")

    again = type(loss)(**json.loads(json.dumps(loss.options())))
    require(same([again.activation(preds), again.decode(preds)], [activated, decoded]), loss, "rebuilt from its options answers the same")
    if not wrapped:
        require(loss(preds.bfloat16(), targs).dtype == torch.float32, loss, "is computed in float32")
        require(same(again(preds, targs), loss(preds, targs)), loss, "rebuilt from its options gives the same loss")
        with raises(ValueError, type(loss).__name__, len(targs) - 1):
            loss(preds, targs[:-1])


def check_metric(make: Callable[[], Metric], preds: Tensor, targs: Tensor) -> None:
    """nan before any batch, fresh after reset, the same for every split into batches and every order of them.

    `preds` are raw outputs (N, ...), N at least 6.
    """
    metric = make()
    kept = preds.clone(), targs.clone()

    def over(*cuts: slice) -> float:
        metric.reset()
        for cut in cuts:
            metric.update(preds[cut], targs[cut])
        return metric.compute()

    require(isinstance(metric.higher_is_better, bool), metric, "says whether higher is better", seen=metric.higher_is_better)
    require(isinstance(metric.name, str) and metric.name, metric, "has a name", seen=metric.name)
    require(math.isnan(metric.compute()), metric, "is nan before the first batch", seen=metric.compute())
    n = len(preds)
    with global_rng_untouched(metric):
        whole = over(slice(n))
        require(type(whole) is float and math.isfinite(whole), metric, "computes a finite float", seen=whole)
        require(metric.compute() == whole, metric, "computes the same when asked twice", seen=metric.compute())
        splits = {
            "two halves": (slice(n // 2), slice(n // 2, n)),
            "uneven batches": (slice(1), slice(1, n - 2), slice(n - 2, n)),
            "another order": (slice(n // 2, n), slice(n // 2)),
            "an empty batch": (slice(n), slice(0)),
        }
        for name, cuts in splits.items():
            got = over(*cuts)
            require(math.isclose(got, whole, rel_tol=1e-6, abs_tol=1e-9), metric, f"gives {whole} for {name} as well", seen=got)
    metric.reset()
    require(math.isnan(metric.compute()), metric, "is fresh after reset", seen=metric.compute())
    require(same((preds, targs), kept), metric, "leaves predictions and targets alone")
    metric.update(preds.clone().requires_grad_(), targs)
    held = [v for v in vars(metric).values() if isinstance(v, Tensor)]
    require(not any(v.requires_grad for v in held), metric, "keeps no graph of the model alive")
    require(type(metric).__name__ in repr(metric) or metric.name in repr(metric), metric, "says what it is in its repr")


# ------------------------------------------------------------------------------------------------------ callbacks


class StopAfter(Callback):
    """Ends the fit when `n` training batches are done."""

    def __init__(self, n: int = 1):
        self.n = n

    def before_batch(self, learn: Learner) -> None:
        if learn.state.training and learn.state.step >= self.n and not learn.state.trial:
            raise CancelFitException


class At(Callback):
    """Calls a function at one event of a fit's first batch."""
    order = 1000

    def __init__(self, event: str, call: Callable[[], Any]):
        self.call, self.todo = call, True
        setattr(self, event, self.once)

    def once(self, learn: Learner) -> None:
        if self.todo:
            self.todo = False
            self.call()


def check_callback(make: Callable[[], Callback], *, learner: Callable[[], Learner] | None = None, once: bool = False) -> None:
    """Survives a fit, a second one and a cancelled one; keeps the weights finite; refuses a misspelt event; what it `keeps` can be
    stored and taken over; each fit starts anew; an interrupted fit leaves nothing behind; a trial run like `lr_find`'s writes no file.

    `learner` makes the learner to fit, the same each time. `once`: it serves a single fit, and only when passed to that one.
    """
    cb = make()
    require(isinstance(cb, Callback) and isinstance(cb.order, (int, float)), cb, "is a Callback with a number as its order")
    require(type(cb).__name__ in repr(cb), cb, "says what it is in its repr")
    with raises(TypeError, "before_bacth", "before_batch"):
        type("Misspelt", (type(cb),), {"before_bacth": lambda self, learn: None})
    with tempfile.TemporaryDirectory() as folder, global_rng_untouched(cb):
        def fresh() -> Learner:
            learn = learner() if learner else synthetic_learner(n_train=2, n_valid=1)
            learn.path, learn.progress = Path(tempfile.mkdtemp(dir=folder)), False
            return learn

        if not once:
            _check_trial(make(), fresh())
            _check_fits_alike(make, fresh)
        _check_keeps(make, fresh)
        _check_interrupted(make, fresh)
        learn = fresh()
        for n, cbs in ((1, [cb]), (1, [cb]), (2, [cb, StopAfter(1)])):
            learn.fit(n, cbs=cbs)
    _check_left_in_order(cb, learn, "after three fits")


def _check_left_in_order(cb: Callback, learn: Learner, when: str) -> None:
    require(all(p.isfinite().all() for p in learn.model.parameters()), cb, f"keeps the weights finite {when}")
    require(not learn.model.training and cb not in learn.cbs, cb, f"leaves the learner in order {when}")


def _check_trial(cb: Callback, learn: Learner) -> None:
    before = copy.deepcopy(dict(learn.model.state_dict()))
    learn.add_cb(cb)
    learn.lr_find(num_it=10, show_plot=False)
    written = sorted(str(p.relative_to(learn.path)) for p in learn.path.rglob("*"))
    require(not written, cb, "writes no file in a trial run", seen=written)
    require(same(dict(learn.model.state_dict()), before), cb, "leaves the weights as they were before a trial run")


def _check_fits_alike(make: Callable[[], Callback], fresh: Callable[[], Learner]) -> None:
    old, used, new = make(), fresh(), fresh()
    for learn, cbs in ((used, [old, old]), (new, [make(), make()])):
        for cb in cbs:
            learn.fit(2, cbs=cb)
    a, b = ([dict(learn.model.state_dict()), learn.recorder.losses] for learn in (used, new))
    require(same(a, b, tol=1e-7), old, "starts anew with each fit")


def _storable(value: Any) -> bool:
    if isinstance(value, dict):
        return all(isinstance(k, str) for k in value) and all(map(_storable, value.values()))
    return all(map(_storable, value)) if type(value) is list else isinstance(value, (bool, int, float, str, Tensor, type(None)))


def _check_keeps(make: Callable[[], Callback], fresh: Callable[[], Learner]) -> None:
    """What a checkpoint stores exists, can be stored, and is taken over by a new callback."""
    cb, twin = make(), make()
    kept: dict[str, Any] = {}
    back: dict[str, Any] = {}
    require(isinstance(cb.keeps, tuple) and all(isinstance(name, str) for name in cb.keeps), cb, "keeps a tuple of names", seen=cb.keeps)
    fresh().fit(1, cbs=[cb, At("after_batch", lambda: kept.update(copy.deepcopy(cb.kept())))])
    require(set(cb.keeps) <= set(kept), cb, "has what it says that it keeps", seen=sorted(kept))
    for name, value in kept.items():
        require(_storable(value), cb, f"keeps {name} as numbers, texts, tensors, and lists and dictionaries of them", seen=value)

    def take_over() -> None:
        twin.restore(copy.deepcopy(kept))
        back.update(copy.deepcopy(twin.kept()))

    fresh().fit(1, cbs=[twin, At("before_fit", take_over)])
    require(same(back, kept), cb, "takes over what another one kept", seen=back)


def _check_interrupted(make: Callable[[], Callback], fresh: Callable[[], Learner]) -> None:
    """A fit that is interrupted or cut short, in a batch or in the validation, leaves a learner that works without the callback."""
    events = ("after_pred", "after_backward", "before_validate", "after_epoch")
    for event, error in [(e, KeyboardInterrupt) for e in events] + [(events[1], CancelTrainException), (events[1], CancelEpochException)]:
        learn, cb, when = fresh(), make(), f"after a {error.__name__} in {event}"
        before = learn.loss_func, list(learn.metrics), _count_hooks(learn)
        learn.add_cb(cb)
        with contextlib.suppress(KeyboardInterrupt):
            learn.fit(2, cbs=At(event, partial(_throw, error)))
        learn.remove_cb(cb)
        after = learn.loss_func, list(learn.metrics), _count_hooks(learn)
        require(after == before, cb, f"puts loss, metrics and hooks back {when}", seen=after)
        _check_left_in_order(cb, learn, when)
        learn.fit(1)
        _check_left_in_order(cb, learn, f"in a fit {when}")


def _throw(error: type[BaseException]) -> None:
    raise error


def _count_hooks(learn: Learner) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in learn.model.modules())


# ----------------------------------------------------------------------------------------- blocks and transforms


def check_block(make: Callable[[], Block], values: Sequence, *, unknown: Any = None, ax: Any = None) -> Block:
    """Set up, encoded, stacked, decoded, shown and rebuilt from its fields; a value it cannot encode is named.

    `values` are those of training items, at least 2, as a getter gives them. `unknown` is a value that cannot be encoded.
    """
    block = make()
    with global_rng_untouched(block):
        block.setup(values)
        fields = copy.deepcopy(vars(block))
        batch = block.collate([block.encode(v) for v in values])
        require(isinstance(batch, Tensor) and len(batch) == len(values), block, f"stacks {len(values)} samples to one tensor", seen=batch)
        decoded = [block.decode(row) for row in batch]
    require(isinstance(block.kind, str) and block.kind, block, "has a kind", seen=block.kind)
    require(same(batch, block.collate([block.encode(v) for v in values])), block, "encodes the same value the same way twice")
    if block.n_out is not None:
        require(isinstance(named_loss(block.loss), Loss) and block.n_out > 0, block, "as a target has a loss and a positive n_out", seen=block.n_out)
        back = block.collate([block.encode(v) for v in decoded])
        require(same(back, batch, tol=1e-6), block, "encodes a decoded value to what it was", seen=back)
    require(all(same(v, vars(block)[k]) for k, v in fields.items() if isinstance(v, (str, int, float, list))), block,
            "learns from setup alone, not from what it encodes later")
    twin = rebuilt(block)
    require(same(twin.collate([twin.encode(v) for v in values]), batch), block, "rebuilt from its fields encodes the same")
    if ax is not None:
        block.show(decoded[0], ax)
    if unknown is not None:
        with raises(ValueError, unknown[0] if isinstance(unknown, list) else unknown):
            block.encode(unknown)
    return block


def check_item_transform(transform: ItemTransform, values: list, kinds: list[str], *, seeds: int = 4) -> None:
    """Leaves the sample passed in and the global generators alone, depends on nothing but the generator passed, rebuilds from JSON."""

    def run(t: ItemTransform, seed: int, train: bool) -> list:
        passed = copy.deepcopy(values)
        out = t.run(passed, list(kinds), rng=random.Random(seed), train=train)
        require(same(passed, values), t, "leaves the values passed in alone")
        require(same(t.prepare(passed, list(kinds)), t.prepare(values, list(kinds))), t, "prepares a sample the same way every time")
        return out

    for kind, *parts in _check_transform(transform, run, values, kinds, seeds):
        known = kind in ("image", "mask", "points")
        require(known or same(*parts), transform, f"leaves a part of kind {kind!r} alone", seen=parts[1])


def check_batch_transform(transform: BatchTransform, tensors: list[Tensor], kinds: list[str], *, seeds: int = 3) -> None:
    """Leaves the batch passed in and the global generators alone, depends on nothing but the generator passed, decodes, rebuilds."""

    def run(t: BatchTransform, seed: int, train: bool) -> list[Tensor]:
        passed = [x.clone() for x in tensors]
        out = t.apply(passed, list(kinds), rng=torch.Generator().manual_seed(seed), train=train)
        require(same(passed, tensors), t, "leaves the tensors passed in alone")
        require([x.shape for x in t.decode(list(out), list(kinds))] == [x.shape for x in out], t, "decodes without changing shapes")
        return out

    for _, before, after in _check_transform(transform, run, tensors, kinds, seeds):
        require(len(before) == len(after), transform, "keeps the number of samples")
        require(after.isfinite().all(), transform, "gives finite numbers")


def _check_transform(transform: Any, run: Callable, parts: list, kinds: list[str], seeds: int) -> Iterator[tuple[str, Any, Any]]:
    """(kind, part before, part after) of every run, when it has shown that it is repeated and rebuilt."""
    twin = rebuilt(transform)
    require(isinstance(transform.order, (int, float)), transform, "has a number as its order", seen=transform.order)
    with global_rng_untouched(transform):
        for train in (True, False):
            for seed in range(seeds):
                out = run(transform, seed, train)
                require(isinstance(out, list) and len(out) == len(parts), transform, "gives as many parts as it got", seen=out)
                require(same(out, run(transform, seed, train)), transform, f"is the same for the same draw (train={train})")
                require(same(out, run(twin, seed, train)), transform, f"rebuilt from its fields does the same (train={train})")
                yield from zip(kinds, parts, out)
        require(same(run(transform, 0, False), run(transform, 1, False)), transform, "draws nothing outside training")


# --------------------------------------------------------------------------------------------- models and exports


def check_model_spec(spec: ModelSpec, *xs: Tensor) -> nn.Module:
    """Builds a network for the inputs of a batch, the same layers each time, and is rebuilt from its fields."""
    with torch.random.fork_rng():  # a recipe may draw the first weights
        model, twin = spec.build().eval(), rebuilt(spec).build().eval()
    shapes, again = ({k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, twin))
    require(shapes == again, spec, "builds the same layers when rebuilt from its fields")
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        out, repeated = model(*xs), twin(*xs)
    require(len(out) == len(xs[0]) and out.isfinite().all(), spec, "gives a finite output for every input", seen=out.shape)
    require(same(out, repeated, tol=1e-5), spec, "with the same weights gives the same output")
    return model


def check_export(learn: Learner, items: Sequence, path: Path) -> Learner:
    """An exported file holds no pickle, and loaded it predicts what the learner predicts; `items` are as its get_items gives them."""
    with learn.no_bar(), global_rng_untouched(learn):
        file = learn.export(path)
        wanted = learn.get_preds(learn.dls.test_dl(items)).preds
    content = file.read_bytes()
    require(content[:2] not in (b"PK", b"\x80\x02", b"\x80\x04") and b"pickle" not in content, learn, "exports no pickle")
    loaded = load_learner(file, device="cpu")
    with loaded.no_bar():
        got = loaded.get_preds(loaded.dls.test_dl(items)).preds
        one = loaded.predict(items[0])
    require(torch.allclose(got, wanted, atol=1e-5), learn, "predicts the same after export and loading", seen=(got - wanted).abs().max())
    require(same(loaded.dls.vocab, learn.dls.vocab), learn, "keeps its classes", seen=loaded.dls.vocab)
    require(torch.allclose(one.probabilities, wanted[0], atol=1e-5), learn, "predicts one item as among others", seen=one)
    return loaded


# ----------------------------------------------------------------------------------------------------- signatures


def bad_signature(subject: Callable) -> str:
    """What is wrong with a public function's or class's arguments, or nothing: unknown ones raise, the fourth on are passed by name."""
    if isinstance(subject, type):
        owner = next(c for c in subject.__mro__ if "__init__" in vars(c))
        inherited = owner.__module__.split(".")[0] != subject.__module__.split(".")[0]  # from torch or Python, which refuse the unknown
        if inherited or dataclasses.is_dataclass(owner) or vars(owner)["__init__"].__qualname__ != f"{owner.__name__}.__init__":  # a protocol
            return ""
    parameters = [p for p in inspect.signature(subject).parameters.values() if p.name not in ("self", "cls")]
    by_place = [p for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return "takes any **keywords"
    if len(by_place) > 3 and any(p.default is not p.empty for p in by_place):
        return f"has more than three arguments by place: {[p.name for p in by_place]}"
    return ""
