"""Rates and momenta of the fits against PyTorch's own schedulers and closed forms; what the learner says of its model and of its time."""

from __future__ import annotations

import math
import time

import pytest
from helpers import raises
import torch
from torch import nn
from torch.optim import lr_scheduler

from coursekit.training.callback import Callback, ParamScheduler
from coursekit.training.learner import Learner, synthetic_learner
from coursekit.training.optimizers import get_hyper
from coursekit.training.schedules import SchedCos, SchedExp, SchedLin, combine_scheds, minimum, one_cycle, slide, steep, valley

GROUPS = (1e-3, 1e-2)


class Watch(Callback):
    """Rates and momenta of all groups at every batch, as the optimiser has them when it steps."""

    order = 100

    def before_fit(self, learn: Learner) -> None:
        self.rates: list[list[float]] = []
        self.moms: list[float] = []

    def before_step(self, learn: Learner) -> None:
        self.rates.append([h["lr"] for h in get_hyper(learn.opt)])
        self.moms.append(get_hyper(learn.opt)[0]["mom"])


def learner(n_train: int = 10) -> tuple[Learner, Watch]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(1, 4), nn.Linear(4, 1))
    learn, watch = synthetic_learner(model=net, n_train=n_train), Watch()
    learn.splitter = list
    learn.add_cb(watch)
    return learn, watch


def theirs(make, n: int) -> list[list[float]]:
    """Rates batch by batch of a scheduler of PyTorch's, one group after the other."""
    columns = []
    for lr in GROUPS:
        opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
        scheduler, rates = make(opt, lr), []
        for _ in range(n):
            rates.append(opt.param_groups[0]["lr"])
            opt.step()
            scheduler.step()
        columns.append(rates)
    return [list(row) for row in zip(*columns)]


def same(ours: list[list[float]], expected: list[list[float]], *, abs_tol: float = 1e-12) -> bool:
    assert len(ours) == len(expected) > 0
    return all(math.isclose(a, b, rel_tol=1e-6, abs_tol=abs_tol) for x, y in zip(ours, expected) for a, b in zip(x, y))


def test_constant_rate() -> None:
    learn, watch = learner()
    learn.fit(2, list(GROUPS))
    assert watch.rates == [list(GROUPS)] * 20 and watch.moms == [0.95] * 20


@pytest.mark.parametrize(("n_cycles", "cycle_len", "cycle_mult"), [(1, 2, 2), (3, 1, 2), (2, 2, 1), (2, 1, 3)])
def test_warm_restarts_against_pytorch(n_cycles: int, cycle_len: int, cycle_mult: int) -> None:
    learn, watch = learner()
    lengths = [cycle_mult**k for k in range(n_cycles)]
    n = 10 * cycle_len * sum(lengths)
    scheds = [combine_scheds([k / sum(lengths) for k in lengths], [SchedCos(lr, 0.0)] * n_cycles) for lr in GROUPS]
    learn.fit(n // 10, cbs=ParamScheduler(lr=scheds))
    assert same(watch.rates, theirs(lambda opt, lr: lr_scheduler.CosineAnnealingWarmRestarts(opt, 10 * cycle_len, cycle_mult), n))


@pytest.mark.parametrize("pct_start", [0.2, 0.25, 0.5])
def test_one_cycle_against_pytorch(pct_start: float) -> None:
    """PyTorch's cycle has its peak one batch earlier and ends at the last batch, not after it: so the two are compared on its grid."""
    n = 40
    opt = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler = lr_scheduler.OneCycleLR(opt, 0.1, total_steps=n, pct_start=pct_start, div_factor=25, final_div_factor=4000,
                                        base_momentum=0.85, max_momentum=0.95)
    lr, mom = one_cycle(0.1, pct_start=pct_start)
    peak = pct_start * n - 1
    for k in range(n):
        pct = pct_start * k / peak if k <= peak else pct_start + (1 - pct_start) * (k - peak) / (n - 1 - peak)
        group = opt.param_groups[0]
        assert group["lr"] == pytest.approx(lr(min(pct, 1.0)), rel=1e-6)
        assert group["momentum"] == pytest.approx(mom(min(pct, 1.0)), rel=1e-6)
        opt.step()
        if k < n - 1:
            scheduler.step()


def test_a_schedule_of_ones_own() -> None:
    """Warm up along a line, then fall by equal factors: PyTorch's LinearLR and ExponentialLR in a row."""
    def make(opt, lr):
        return lr_scheduler.SequentialLR(opt, [lr_scheduler.LinearLR(opt, 0.1, 1.0, 5), lr_scheduler.ExponentialLR(opt, 0.01 ** (1 / 15))], [5])

    learn, watch = learner()
    scheds = [combine_scheds([0.25, 0.75], [SchedLin(lr / 10, lr), SchedExp(lr, lr / 100)]) for lr in GROUPS]
    learn.fit(2, cbs=ParamScheduler(lr=scheds, mom=SchedLin(0.8, 0.9)))
    assert same(watch.rates, theirs(make, 20))
    assert watch.moms == pytest.approx([0.8 + 0.1 * k / 20 for k in range(20)])
    learn.fit(1, cbs=ParamScheduler(lr=SchedLin(1.0, 0.0)))  # one for all groups
    assert same(watch.rates, [[1 - k / 10] * 2 for k in range(10)])
    with raises(ValueError, "3 schedules", "2 parameter groups"):
        learn.fit(1, cbs=ParamScheduler(lr=[SchedLin(1.0, 0.0)] * 3))


def test_unknown_options_raise() -> None:
    learn, _ = learner()
    for call in (lambda: learn.fit(1, rate=0.1), lambda: learn.fit_one_cycle(1, lr=0.1)):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()


def test_four_suggestions() -> None:
    learn, _ = learner()
    found = learn.lr_find(suggest_funcs=(minimum, steep, valley, slide), show_plot=False)
    assert found._fields == ("minimum", "steep", "valley", "slide")
    assert all(1e-7 <= lr <= 10 for lr in found)


# ------------------------------------------------------------------------------------------------- what it says of itself


def test_summary_counts() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                        nn.Linear(8, 5))
    net[0].requires_grad_(False)
    data = [(torch.zeros(4, 3, 16, 16), torch.zeros(4, dtype=torch.long))]
    learn = Learner((data, data), net, nn.CrossEntropyLoss(), device="cpu")
    table = learn.summary()
    rows = {row[0]: row for row in table.values}
    assert rows["0"][3] == 3 * 8 * 9 and rows["5"][3] == 45 and rows["0"][2] == "4 x 8 x 8 x 8"
    assert (rows["0"][4], rows["1"][4]) == ("no", "yes")
    assert rows["0"][5] == pytest.approx(2 * 8 * 8 * 8 * 27 / 1e6) and rows["5"][5] == pytest.approx(2 * 8 * 5 / 1e6)
    assert "277 parameters, 61 trained, 216 frozen" in table.caption and "[4, 3, 16, 16]" in table.caption
    assert not any(m._forward_hooks for m in net.modules())
    assert "61 trained" in str(table) and "<table" in table._repr_html_()


def test_parameter_groups_are_readable() -> None:
    learn, _ = learner()
    learn.fit(1, list(GROUPS))
    table = learn.param_groups()
    rows = [dict(zip(table.headers, row)) for row in table.rows]
    assert [(r["group"], r["decay"], r["lr"], r["wd"]) for r in rows] == [
        ("0", "yes", "0.001", "0.01"), ("0", "no", "0.001", "0"), ("1", "yes", "0.01", "0.01"), ("1", "no", "0.01", "0")]
    assert rows[0]["first"] == "0.weight" and rows[3]["last"] == "1.bias"


def test_profile_finds_what_is_slow_and_leaves_no_trace() -> None:
    class Slow:
        def __init__(self, data: list, seconds: float):
            self.data, self.seconds = data, seconds

        def __len__(self) -> int:
            return len(self.data)

        def __iter__(self):
            for item in self.data:
                time.sleep(self.seconds)
                yield item

    class SlowHook(Callback):
        def after_loss(self, learn: Learner) -> None:
            time.sleep(self.seconds)

    learn, _ = learner()
    before = [p.detach().clone() for p in learn.model.parameters()]
    data = learn.dls.train.loader
    shares = {}
    for what, seconds in (("data: read, collate, transform", (0.02, 0.0)), ("callbacks", (0.0, 0.02))):
        learn.dls = (Slow(data, seconds[0]), Slow(data, 0.0))
        hook = SlowHook()
        hook.seconds = seconds[1]
        learn.add_cb(hook)
        table = learn.profile(6)
        learn.remove_cb(hook)
        shares[what] = {part: share for part, _, share in table.values}
        assert max((p for p in shares[what] if p != "together"), key=lambda p: shares[what][p]) == what
        assert sum(s for p, s in shares[what].items() if p != "together") == pytest.approx(1)
    assert all(torch.equal(a, b) for a, b in zip(before, learn.model.parameters()))
    assert learn.opt is None
    with raises(ValueError, "n_batches", 0):
        learn.profile(0)
