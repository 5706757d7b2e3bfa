"""Schedules against their closed forms, and what holds for any of them."""

from __future__ import annotations

import math
import random

import pytest
from helpers import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from coursekit.training.recorder import smooth
from coursekit.training.schedules import (
    CombinedSched, SchedCos, SchedExp, SchedLin, SchedNo, Schedule, combine_scheds, combined_cos, descent, lr_groups, minimum,
    one_cycle, slide, steep, valley
)

rates = st.floats(1e-7, 10)
shares = st.floats(0, 1)
quick = settings(deadline=None, max_examples=100)

SCHEDULES = {
    "no": SchedNo(0.1),
    "lin": SchedLin(0.1, 1),
    "cos": SchedCos(0.1, 1),
    "exp": SchedExp(0.1, 1),
    "combined": combine_scheds([0.25, 0.75], [SchedLin(0.1, 1), SchedExp(1, 0.1)]),
    "one_cycle lr": one_cycle(1e-3)[0],
    "one_cycle mom": one_cycle(1e-3)[1],
}


def half_wave(start: float, end: float, pct: float) -> float:
    """The closed form, written another way than the package writes it."""
    return start + (end - start) * math.sin(math.pi * pct / 2) ** 2


# ---------------------------------------------------------------- every schedule


@pytest.mark.parametrize("name", SCHEDULES)
def test_contract(name: str) -> None:
    sched = SCHEDULES[name]
    assert isinstance(sched, Schedule)
    assert sched == sched and hash(sched) == hash(sched)
    for pct in (0, 0.0, 0.3, 1, 1.0):
        assert isinstance(sched(pct), float) and math.isfinite(sched(pct))
        assert sched(pct) == sched(pct)
    for pct in (-1e-9, 1.0000001, math.nan, math.inf):
        with raises(ValueError, "pct", 0, 1):
            sched(pct)
    with pytest.raises(AttributeError):
        sched.start = 3


@pytest.mark.parametrize("cls", [SchedLin, SchedCos, SchedExp])
@given(start=rates, end=rates, pct=shares, other=shares)
@quick
def test_pieces_stay_between_their_ends_and_go_one_way(cls, start: float, end: float, pct: float, other: float) -> None:
    sched, slack = cls(start, end), 1e-12 * max(start, end)
    assert sched(0) == start and sched(1) == end
    assert min(start, end) - slack <= sched(pct) <= max(start, end) + slack
    first, second = sorted((pct, other))
    assert (sched(second) - sched(first)) * (end - start) >= -slack * 10


@given(lr_max=rates, div=st.floats(1, 1e4), div_final=st.floats(1, 1e8), pct_start=st.floats(0.01, 0.99), pct=shares)
@quick
def test_one_cycle_is_its_closed_form(lr_max: float, div: float, div_final: float, pct_start: float, pct: float) -> None:
    lr, mom = one_cycle(lr_max, div=div, div_final=div_final, pct_start=pct_start, moms=(0.95, 0.85, 0.9))
    assert (lr(0), lr(1), mom(0), mom(1)) == (lr_max / div, lr_max / div_final, 0.95, 0.9)
    assert (lr(pct_start), mom(pct_start)) == (lr_max, 0.85)
    if pct < pct_start:
        want = half_wave(lr_max / div, lr_max, pct / pct_start), half_wave(0.95, 0.85, pct / pct_start)
    else:
        local = (pct - pct_start) / (1 - pct_start)
        want = half_wave(lr_max, lr_max / div_final, local), half_wave(0.85, 0.9, local)
    assert (lr(pct), mom(pct)) == pytest.approx(want, rel=1e-6, abs=1e-12)
    assert 0 < lr(pct) <= lr_max * (1 + 1e-12) and 0.85 - 1e-12 <= mom(pct) <= 0.95 + 1e-12


def test_one_cycle_defaults_batch_by_batch() -> None:
    lr, mom = one_cycle(1e-3)
    n = 40
    for k in range(n):
        up = k / n < 0.25
        local = k / n / 0.25 if up else (k / n - 0.25) / 0.75
        ends = (1e-3 / 25, 1e-3, 0.95, 0.85) if up else (1e-3, 1e-8, 0.85, 0.95)
        assert lr(k / n) == pytest.approx(ends[0] + (1 + math.cos(math.pi * (1 - local))) * (ends[1] - ends[0]) / 2)
        assert mom(k / n) == pytest.approx(ends[2] + (1 + math.cos(math.pi * (1 - local))) * (ends[3] - ends[2]) / 2)
    assert lr(10 / n) == 1e-3 and mom(10 / n) == 0.85  # the peak, exactly


@given(pct=st.floats(0.001, 0.999), start=rates, middle=rates, end=rates)
@quick
def test_two_waves_join(pct: float, start: float, middle: float, end: float) -> None:
    sched = combined_cos(pct, start, middle, end)
    for near in (pct - 1e-9, pct, pct + 1e-9):
        assert sched(near) == pytest.approx(middle, abs=1e-6 * (start + middle + end))


@given(st.lists(st.integers(1, 20), min_size=1, max_size=6), st.lists(rates, min_size=7, max_size=7))
@quick
def test_pieces_in_a_row_join(lengths: list[int], values: list[float]) -> None:
    pcts = [n / sum(lengths) for n in lengths]
    sched = combine_scheds(pcts, [SchedLin(a, b) for a, b in zip(values, values[1:7])][: len(pcts)])
    assert isinstance(sched, CombinedSched)
    assert sched(0) == values[0] and sched(1) == values[len(pcts)]
    for i, edge in enumerate(sched.edges):
        assert sched(edge) == pytest.approx(values[i], abs=1e-9)
        assert sched(max(edge - 1e-12, 0)) == pytest.approx(values[i], abs=1e-8)


@pytest.mark.parametrize("pct_start", [0.0, 1.0])
def test_half_a_cycle_may_be_empty(pct_start: float) -> None:
    lr, _ = one_cycle(1e-3, pct_start=pct_start)
    assert lr(1) in (1e-3, 1e-8)
    assert all(0 < lr(k / 10) <= 1e-3 for k in range(11))


# ---------------------------------------------------------------- rates per group


@given(first=rates, last=rates, n=st.integers(2, 12))
@quick
def test_slice_is_geometric_and_monotone(first: float, last: float, n: int) -> None:
    got = lr_groups(slice(first, last), n)
    assert len(got) == n and got[0] == first and got[-1] == last
    factor = (last / first) ** (1 / (n - 1))
    for i, rate in enumerate(got):
        assert rate == pytest.approx(first * factor**i, rel=1e-6)
    for a, b in zip(got, got[1:]):
        assert (b - a) * (last - first) >= -1e-12 * max(first, last)


@given(last=rates, n=st.integers(1, 12))
@quick
def test_one_ended_slice_gives_a_tenth(last: float, n: int) -> None:
    assert lr_groups(slice(last), n) == [last / 10] * (n - 1) + [last]


def test_fine_tune_peaks() -> None:
    base_lr, lr_mult = 2e-3, 100
    assert lr_groups(slice(base_lr), 3) == pytest.approx([2e-4, 2e-4, 2e-3])
    assert lr_groups(slice(base_lr / 2 / lr_mult, base_lr / 2), 3) == pytest.approx([1e-5, 1e-4, 1e-3])


def test_lists() -> None:
    assert lr_groups((1, 2, 3), 3) == [1.0, 2.0, 3.0]
    assert lr_groups(slice(1e-5, 1e-3), 1) == [1e-3]


@pytest.mark.parametrize(
    "lr", [None, -1e-3, math.nan, math.inf, [1e-3], (1, 2, -3), slice(None), slice(1e-5, 1e-3, 2), slice(0, 1e-3)]
)
def test_what_is_no_rate_is_refused(lr: object) -> None:
    with raises(ValueError, "lr_groups"):
        lr_groups(lr, 3)


# ---------------------------------------------------------------- reading a curve


def curve(n: int = 90) -> tuple[list[float], list[float]]:
    lrs = [1e-7 * (1e8) ** (i / 99) for i in range(n)]
    return lrs, [3 - 2 / (1 + math.exp(-1.5 * (math.log10(r) + 3.5))) + (r / 0.8) ** 2 for r in lrs]


def test_valley_by_hand() -> None:
    # the longest descent is 9 8 7 6 5 4: indices 1..6; a third of six and half a third after the point before it
    losses = [9.5, 9, 8, 7, 6, 5, 4, 20, 30]
    lrs = [10.0**i for i in range(len(losses))]
    assert valley(lrs, losses) == lrs[-1 + 7 // 3 + 1]  # seven points with the first; starts one before it
    assert valley(lrs, [1.0] * 9) == lrs[0]
    assert valley([1.0, 2.0], [2.0, 1.0]) == 1.0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40))
@quick
def test_valley_against_the_plain_definition(losses: list[float]) -> None:
    """The longest strictly falling subsequence by its textbook recursion, the first end that reaches the length."""
    lengths = []
    for i in range(len(losses)):
        lengths.append(max([lengths[j] for j in range(i) if losses[j] > losses[i]], default=0) + 1)
    end, longest = lengths.index(max(lengths)), max(lengths)
    start = end - longest if longest > 1 else end
    index = start + int(longest / 3) + int(longest / 3 / 2)
    assert valley(range(1, len(losses) + 1), losses) == max(index, descent(losses)[0]) + 1


def test_minimum_and_steep() -> None:
    lrs, losses = curve()
    assert minimum(lrs, losses) == lrs[losses.index(min(losses))] / 10
    slopes = [(b - a) for a, b in zip(losses, losses[1:])]  # the rates are equally far apart in logarithm
    assert steep(lrs, losses) == lrs[slopes.index(min(slopes))]


def test_slide_stops_where_the_slopes_are_alike() -> None:
    lrs = [float(i) for i in range(1, 41)]
    flat = [1.0] * 40
    assert slide(lrs, flat) == lrs[39 - 15]  # alike at once
    losses = flat[:30] + [1 + (i - 29) * 0.5 for i in range(30, 40)]  # rises by 0.5 a step from index 29 on
    # slopes differ while the right end of the window is on the rise and the left end before it; index 29 is a half
    assert slide(lrs, losses) == lrs[29 - 15]


@pytest.mark.parametrize("rule", [valley, steep, minimum, slide])
def test_suggestions(rule) -> None:
    lrs, losses = curve()
    assert rule(lrs, losses) == rule(tuple(lrs), losses) and isinstance(rule(lrs, losses), float)
    # what comes after a loss that is not finite does not count
    assert rule([*lrs, 1e3, 1e4], [*losses, math.nan, 0.0]) == rule(lrs, losses)
    with raises(ValueError, rule.__name__, 0):
        rule(lrs, [math.inf] * len(lrs))
    with raises(ValueError, 90, 89):
        rule(lrs, losses[1:])


@pytest.mark.parametrize("rule", [valley, steep, minimum, slide])
@given(st.integers(0, 10**6), st.floats(-4, -1.5), st.floats(0.2, 0.8), st.floats(0.5, 1.5), st.floats(0, 0.1))
@quick
def test_no_suggestion_lies_where_the_curve_is_still_flat(rule, seed: int, center: float, width: float, depth: float, noise: float) -> None:
    """A hundred batches with noise, as the learning rate finder smooths them; the true curve has fallen by a fiftieth where the flat part ends."""
    rng, lrs = random.Random(seed), [1e-7 * 10 ** (8 * k / 100) for k in range(100)]
    clean = [2.3 - depth / (1 + math.exp(-(math.log10(r) - center) / width)) + r**2 for r in lrs]
    losses, truth = smooth([v + rng.gauss(0, noise) for v in clean]), smooth(clean)
    end = next(i for i, v in enumerate(truth) if v < truth[0] - 0.02 * (truth[0] - min(truth)))
    assert rule(lrs[:90], losses[:90]) >= lrs[max(0, end - 5)]


def test_where_the_descent_begins() -> None:
    for losses, (start, fall) in [([1.0] * 9, (0, 0.0)), ([2.0, 1.0], (0, 1.0)), ([3.0] * 5 + [2.0, 1.0, 0.0, 9.0], (4, 3.0)), ([1.0, 2.0, 3.0], (0, 0.0)),
                                  ([9.0] + [3.0] * 10 + [2.0, 1.0, 0.0], (10, 3.0))]:  # fmt: skip
        assert descent(losses) == (start, fall)
