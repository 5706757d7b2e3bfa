"""Random search: what is drawn, what is kept, and whether the forest finds the knob that matters and says when it has found nothing."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
from contracts import global_rng_untouched
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from coursekit.tuning import Choice, Forest, LogUniform, Trials, Uniform, _oob_r2, draw_knobs, trials

SPACE = {"lr": LogUniform(1e-4, 1.0), "drop": Uniform(0.0, 0.9), "act": Choice(["relu", "tanh", "gelu"]), "dummy": Uniform(-1, 1)}


def objective(lr: float, drop: float, act: str, dummy: float) -> float:
    """The rate matters most, the activation some, dropout a little, the dummy not at all."""
    return 1 + (math.log10(lr) + 2) ** 2 + 1.5 * (act == "tanh") + 0.1 * drop


@pytest.fixture(scope="module")
def found() -> Trials:
    return trials(objective, SPACE, n=80)


def knobs_of(search: Trials) -> list[dict]:
    return [r.knobs for r in search.rows]


# ------------------------------------------------------------------------------------------------------------- knobs


@given(low=st.floats(1e-9, 1e3), factor=st.floats(1.001, 1e6), u=st.floats(0, 1))
def test_a_logarithmic_knob(low: float, factor: float, u: float) -> None:
    knob = LogUniform(low, low * factor)
    assert low <= knob.draw(u) <= low * factor
    assert math.log(knob.draw(u) / low) == pytest.approx(u * math.log(factor), abs=1e-6)


@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-3, 1e6), u=st.floats(0, 1))
def test_an_even_knob(low: float, width: float, u: float) -> None:
    knob = Uniform(low, low + width)
    assert low <= knob.draw(u) <= low + width and knob.draw(u) == pytest.approx(low + u * width, rel=1e-6, abs=1e-6)


@given(n=st.integers(2, 9), u=st.floats(0, 1, exclude_max=True))
def test_a_choice(n: int, u: float) -> None:
    assert Choice(list(range(n))).draw(u) == math.floor(u * n)
    assert Choice(list(range(n))).draw(1.0) == n - 1


def test_the_draws_have_the_distributions_they_are_named_after() -> None:
    from scipy.stats import chisquare, kstest

    drawn = [draw_knobs(SPACE, 1, i) for i in range(1000)]
    assert kstest([(math.log10(d["lr"]) + 4) / 4 for d in drawn], "uniform").pvalue > 0.001
    assert kstest([d["drop"] / 0.9 for d in drawn], "uniform").pvalue > 0.001
    assert chisquare(list(Counter(d["act"] for d in drawn).values())).pvalue > 0.001
    pairs = np.corrcoef([[math.log10(d["lr"]), d["drop"], d["dummy"]] for d in drawn], rowvar=False)
    assert np.abs(pairs - np.eye(3)).max() < 0.13  # independent: 4 deviations of 1 / sqrt(1000)


def test_a_choice_is_one_column_an_option_and_a_rate_its_logarithm(found: Trials) -> None:
    x = found.forest.model[:-1].transform(found.forest.frame)
    for row, r in zip(x.tolist(), found.rows, strict=True):
        act = [float(r.knobs["act"] == o) for o in ("relu", "tanh", "gelu")]
        assert row == pytest.approx([math.log10(r.knobs["lr"]), r.knobs["drop"], *act, r.knobs["dummy"]])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LogUniform(0, 1), "both above 0"),
        (lambda: LogUniform(1, 0.1), "low=1 and high=0.1"),
        (lambda: Uniform(1, 1), "low=1 and high=1"),
        (lambda: Uniform(0, math.inf), "high=inf"),
        (lambda: Choice(["sgd"]), "two or more"),
        (lambda: Choice("sgd"), "'sgd'"),
        (lambda: Choice({"sgd"}), "two or more"),
        (lambda: Choice([1, 2, 2]), "names differ"),
        (lambda: Choice([lambda x: x, lambda x: 2 * x]), "names differ"),
    ],
)
def test_knobs_that_cannot_be_drawn(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ------------------------------------------------------------------------------------------------------------ search


def test_a_search_is_the_same_for_the_same_seed_whatever_the_global_generators_do() -> None:
    def noisy(lr: float, drop: float, act: str, dummy: float) -> torch.Tensor:
        return lr + torch.rand(())  # as the initial weights of a net are drawn

    with global_rng_untouched("trials"):
        first = trials(noisy, SPACE, n=6)
    torch.rand(5)
    random.random()
    again = trials(noisy, SPACE, n=6)
    assert [r.loss for r in first.rows] == [r.loss for r in again.rows] and knobs_of(first) == knobs_of(again)
    assert len({r.loss - r.knobs["lr"] for r in first.rows}) == 6  # each trial has noise of its own
    assert knobs_of(trials(noisy, SPACE, n=6, seed=1)) != knobs_of(first)


@pytest.mark.parametrize("at", [0, 1, 7])
def test_ctrl_c_keeps_what_is_done(found: Trials, at: int, capsys: pytest.CaptureFixture) -> None:
    calls = []

    def stopped(**knobs) -> float:
        calls.append(1)
        if len(calls) == at + 1:
            raise KeyboardInterrupt
        return objective(**knobs)

    part = trials(stopped, SPACE, n=12)
    assert f"{at} of 12" in capsys.readouterr().out
    assert [(r.number, r.knobs, r.loss) for r in part.rows] == [(r.number, r.knobs, r.loss) for r in found.rows[:at]]


def test_an_interrupt_from_the_keyboard() -> None:
    """The real signal, in the midst of a trial."""
    import signal

    calls = []

    def slow(a: float) -> float:
        calls.append(a)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return a

    part = trials(slow, {"a": Uniform(0, 1)}, n=9)
    assert len(part.rows) == 2


@pytest.mark.parametrize("value", [1.5, 2, np.float32(1.5), torch.tensor(1.5), torch.tensor([1.5]), True])
def test_any_single_number_is_a_loss(value) -> None:
    assert trials(lambda a: value, {"a": Uniform(0, 1)}, n=1).rows[0].loss == float(value)


BAD = {
    "plain number": (dict(space={"lr": 0.1}), "'lr'.* is 0.1"),
    "class for object": (dict(space={"lr": LogUniform}), "'lr'"),
    "n": (dict(n=0), "n must be .* got 0"),
    "n float": (dict(n=1e2), "n must be .* got 100.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        trials(**{"objective": lambda a: a, "space": {"a": Uniform(0, 1)}} | options)


# ------------------------------------------------------------------------------------------------------------ failed


def diverging(lr: float, kind: str) -> float:
    if lr > 0.5:
        raise FloatingPointError("the loss is nan at batch 7 of 20\nmore of it")
    if lr > 0.25:
        return math.nan if kind == "a" else math.inf
    return 1.0 + lr


def test_trials_that_diverge_are_kept_with_their_reason() -> None:
    search = trials(diverging, {"lr": Uniform(0, 1), "kind": Choice("a b".split())}, n=30)
    for r in search.rows:
        assert bool(r.failed) == (r.knobs["lr"] > 0.25) and math.isnan(r.loss) == bool(r.failed)
    reasons = {r.failed for r in search.failed}
    assert reasons == {"the loss is nan at batch 7 of 20", "the objective returned nan", "the objective returned inf"}
    worst = max(r.loss for r in search.rows if not r.failed)
    targets = search.forest.y
    assert all((t > worst) == bool(r.failed) for t, r in zip(targets, search.rows, strict=True)) and np.isfinite(targets).all()
    assert "count as worse than the worst that ended" in search.verdict and f"{len(search.failed)} of which failed" in repr(search)
    assert [row[0] for row in search.table(100).rows[-len(search.failed):]] == [str(r.number) for r in search.failed]
    assert search.best.knobs["lr"] == min(r.knobs["lr"] for r in search.rows)


def test_nothing_but_failures() -> None:
    search = trials(lambda a: math.nan, {"a": Uniform(0, 1)}, n=12)
    for ask in (lambda: search.best, lambda: search.forest, search.plot_importance, lambda: search.plot_dependence("a")):
        with pytest.raises(ValueError, match=r"none of which ended with a loss; the first says: the objective returned nan"):
            ask()
    assert "12 trials, 12 of which failed" in repr(search) and len(search.table(20).rows) == 12
    with pytest.raises(ValueError, match="0 trials, none of which ended with a loss"):
        Trials(SPACE, []).best  # noqa: B018


# ------------------------------------------------------------------------------------------------------------ forest


def test_the_knob_that_matters_is_found_and_the_dummy_is_not(found: Trials) -> None:
    mean = {name: f.mean() for name, f in found.forest.importances().items()}
    assert mean["lr"] > 3 * mean["act"] > 0.15 and mean["act"] > 3 * abs(mean["dummy"]) and abs(mean["dummy"]) < 0.05
    assert "explains 9" in found.verdict


def test_the_out_of_bag_score_is_scikit_learns(found: Trials) -> None:
    forest = found.forest
    assert _oob_r2(forest.model, forest.frame, forest.y) == pytest.approx(forest.r2, abs=1e-6)
    assert _oob_r2(forest.model, forest.frame.assign(lr=forest.frame["lr"].to_numpy()[::-1]), forest.y) < forest.r2 - 0.3


def test_importances_are_not_those_of_rows_that_were_learned() -> None:
    """On its own rows a forest that memorized noise finds everything important; out of bag it does not."""
    from sklearn.inspection import permutation_importance

    noise = trials(lambda a, b: float(torch.randn(())), {"a": Uniform(0, 1), "b": Uniform(0, 1)}, n=60)
    forest = noise.forest
    own = permutation_importance(forest.model, forest.frame, forest.y, n_repeats=10, random_state=0).importances_mean
    assert own.min() > 0.3 > max(f.mean() for f in forest.importances().values())
    assert forest.r2 < Forest.LOW and "mean nothing" in noise.verdict


@pytest.mark.parametrize("name", ["lr", "drop", "act"])
def test_partial_dependence_is_the_mean_prediction_with_a_value_in_every_trial(found: Trials, name: str) -> None:
    forest = found.forest
    values, means = forest.dependence(name)
    assert len(values) == (3 if name == "act" else 40)
    tried = [r.knobs[name] for r in found.rows]
    assert (min(values), max(values)) == (pytest.approx((min(tried), max(tried))) if name != "act" else (min(tried), max(tried)))
    for v, m in zip(values, means, strict=True):
        assert m == pytest.approx(forest.model.predict(forest.frame.assign(**{name: SPACE[name].code(v)})).mean())
    assert name != "act" or values[means.argmax()] == "tanh"


def test_losses_over_decades_are_learned_by_their_logarithm() -> None:
    search = trials(lambda lr, other: 1e-3 + 1e6 * lr**2, {"lr": LogUniform(1e-4, 1), "other": Uniform(0, 1)}, n=40)
    assert search.forest.log and search.forest.r2 > 0.8 and "log10 of the loss" in search.verdict
    np.testing.assert_allclose(search.forest.y, [math.log10(r.loss) for r in search.rows])
    assert not trials(lambda a: a - 0.5, {"a": Uniform(0, 1)}, n=20).forest.log


def test_the_forest_is_the_same_each_time(found: Trials) -> None:
    twin = Trials(found.space, found.rows, seed=found.seed)
    with global_rng_untouched("Trials"):
        again = twin.forest.importances()
    assert all(np.array_equal(again[name], f) for name, f in found.forest.importances().items())
    assert twin.forest.dependence("lr")[1].tolist() == found.forest.dependence("lr")[1].tolist()


def test_too_little_to_learn_from() -> None:
    with pytest.raises(ValueError, match="9 trials"):
        _ = trials(lambda a: a, {"a": Uniform(0, 1)}, n=9).forest
    with pytest.raises(ValueError, match="from 1 to 1"):
        trials(lambda a: 1.0, {"a": Uniform(0, 1)}, n=20).plot_importance()
    with pytest.raises(ValueError, match=r"'lrr' .*'lr'"):
        trials(lambda lr: lr, {"lr": Uniform(0, 1)}, n=20).plot_dependence("lrr")


# ------------------------------------------------------------------------------------------------------------- plots


def test_plots_say_in_words_what_they_show(found: Trials) -> None:
    import matplotlib.pyplot as plt

    means = {name: f.mean() for name, f in found.forest.importances().items()}
    found.plot_importance()
    alt = plt.gcf().alt_text
    assert alt.startswith("Importance of the hyperparameters: lr ") and "out-of-bag R²" in alt
    assert [t.get_text() for t in plt.gcf().axes[0].get_yticklabels()] == sorted(SPACE, key=lambda name: means[name])
    for knob in SPACE:
        found.plot_dependence(knob)
        ax = plt.gcf().axes[0]
        assert plt.gcf().alt_text.startswith(f"Predicted loss against {knob}: lowest, ")
        assert ax.get_xscale() == ("log" if knob == "lr" else "linear") and len(ax.lines[0].get_xdata()) == len(found.rows)
    plt.close("all")
    fig, (left, right) = plt.subplots(1, 2)
    found.plot_importance(left)
    found.plot_dependence("act", right)
    assert not hasattr(fig, "alt_text") and [t.get_text() for t in right.get_xticklabels()] == ["relu", "tanh", "gelu"]
    plt.close("all")


def test_a_weak_forest_says_so_in_its_picture(found: Trials) -> None:
    import matplotlib.pyplot as plt

    noise = trials(lambda a, b: float(torch.rand(())), {"a": Uniform(0, 1), "b": Uniform(0, 1)}, n=30)
    for search, weak in ((noise, True), (found, False)):
        search.plot_importance()
        assert ("mean nothing" in plt.gcf().axes[0].get_title()) == ("mean nothing" in plt.gcf().alt_text) == weak
    plt.close("all")


def test_tables(found: Trials) -> None:
    table = found.table(3)
    losses = sorted(r.loss for r in found.rows)
    assert table.headers == ["trial", *SPACE, "loss", "seconds"] and [row[-2] for row in table.rows] == [f"{v:.4g}" for v in losses[:3]]
    assert "80 trials" in found._repr_html_() and found.best.loss == losses[0]
