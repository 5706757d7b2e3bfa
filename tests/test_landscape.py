"""The loss over a plane of weights: closed forms, filter norms, planes of paths against scikit-learn's PCA, and a model that is left as it was."""

from __future__ import annotations

import math

from contracts import global_rng_untouched
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from coursekit.core import seeded
from coursekit.data.block import CategoryBlock, RegressionBlock
from coursekit.data.datablock import DataBlock
from coursekit.data.items import IndexSplitter
from coursekit.interpret.embeddings import principal_directions
from coursekit.interpret.landscape import Landscape, _scaled, filter_directions, flat_weights, loss_landscape
from coursekit.training.learner import Learner

X = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
Y = torch.arange(50) % 3


def small_net(*, norm: bool = False, drop: float = 0.0) -> nn.Sequential:
    with seeded(2):
        return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5) if norm else nn.Identity(), nn.ReLU(), nn.Dropout(drop), nn.Linear(5, 3))


def draw(model: nn.Module, dl=(X, Y), **options) -> Landscape:
    return loss_landscape(model, dl, **{"loss_func": F.cross_entropy, "n": 5} | options)


def weights_at(land: Landscape, x: float, y: float) -> Tensor:
    return (land.origin + x * land.directions[0] + y * land.directions[1]).float()


def loss_with(model: nn.Module, weights: Tensor) -> float:
    """The loss with these weights, computed by writing them into a copy of the model."""
    import copy

    twin = copy.deepcopy(model).eval()
    nn.utils.vector_to_parameters(weights, twin.parameters())
    with torch.no_grad():
        return F.cross_entropy(twin(X), Y).item()


# ------------------------------------------------------------------------------------------------------ closed forms


class Bowl(nn.Module):
    """Its loss is (w - c)' H (w - c) / 2, where x holds a root of H."""

    def __init__(self, w: Tensor, c: Tensor):
        super().__init__()
        self.w, self.c = nn.Parameter(w), c

    def forward(self, x: Tensor) -> Tensor:
        return (self.w - self.c) @ x


@given(seed=st.integers(0, 10_000), n=st.integers(2, 7), span=st.floats(0.1, 5))
@settings(max_examples=20, deadline=None)
def test_a_quadratic_bowl(seed: int, n: int, span: float) -> None:
    g = torch.Generator().manual_seed(seed)
    w, c, root = (torch.randn(s, generator=g, dtype=torch.float64) for s in (6, 6, (1, 6, 6)))
    land = loss_landscape(Bowl(w, c), (root, torch.zeros(1)), loss_func=lambda p, _: p.square().sum() / 2, n=n, span=span, seed=seed)
    hessian, (a, b) = root[0] @ root[0].T, land.directions
    torch.testing.assert_close(a.norm(), w.norm())
    for j, y in enumerate(land.ys):
        for i, x in enumerate(land.xs):
            d = w + x * a + y * b - c
            torch.testing.assert_close(land.losses[j, i], d @ hessian @ d / 2, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(land.xs[[0, -1]], torch.tensor([-span, span], dtype=torch.float64))


def test_the_losses_are_those_of_the_model_with_these_weights() -> None:
    net = small_net(norm=True)
    land = draw(net, seed=4)
    for j, i in ((0, 0), (1, 3), (4, 2)):
        assert land.losses[j, i].item() == pytest.approx(loss_with(net, weights_at(land, land.xs[i], land.ys[j])), abs=1e-5)


@pytest.mark.parametrize("bs", [50, 20, 7])
def test_the_centre_is_the_loss_of_the_model_however_the_set_is_cut(bs: int) -> None:
    net = small_net().eval()
    batches = list(zip(X.split(bs), Y.split(bs)))
    for dl in (batches, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=bs, shuffle=True)):
        assert draw(net, dl).losses[2, 2].item() == pytest.approx(F.cross_entropy(net(X), Y).item(), abs=1e-6)
    first = draw(net, batches[:1]).losses[2, 2].item()
    assert first == pytest.approx(F.cross_entropy(net(X[:bs]), Y[:bs]).item(), abs=1e-6)


def test_loaders_of_the_package_are_read_in_order() -> None:
    class Numbers(RegressionBlock):
        pass

    block = DataBlock(blocks=(Numbers, CategoryBlock), get_x=lambda i: X[i].tolist(), get_y=lambda i: int(Y[i]), splitter=IndexSplitter(range(20)))
    dls = block.dataloaders(range(50), bs=8, seed=0, device="cpu")
    learn = Learner(dls, small_net())
    for dl in (dls.train, dls.valid):
        land = loss_landscape(learn.model, dl, loss_func=learn.loss_func, n=3)
        with learn.no_bar():
            assert land.losses[1, 1].item() == pytest.approx(learn.validate(dl)[0], abs=1e-6)


# -------------------------------------------------------------------------------------------------------- directions


def test_each_filter_of_a_direction_has_the_norm_of_the_models() -> None:
    with seeded(0):
        net = nn.Sequential(
            nn.Embedding(7, 4), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ConvTranspose2d(6, 5, 2), nn.GroupNorm(1, 5), nn.Linear(5, 2)
        )
    with torch.no_grad():
        net[1].weight[3] = 0.0  # a dead filter has no norm to scale by
        net[2].weight.fill_(3.0)
    for direction in filter_directions(net, seed=5):
        parts = dict(zip([n for n, _ in net.named_parameters()], direction.split([p.numel() for p in net.parameters()])))
        for name, p in net.named_parameters():
            d = parts[name].view(p.shape)
            if name in ("0.weight", "1.weight", "3.weight", "5.weight"):
                of, by = (d.transpose(0, 1), p.transpose(0, 1)) if name == "3.weight" else (d, p)
                torch.testing.assert_close(of.flatten(1).norm(dim=1), by.detach().flatten(1).norm(dim=1))
            else:
                assert not d.any(), name
    a, b = filter_directions(net)
    assert a.isfinite().all() and abs(a @ b) < 0.5 * a.norm() * b.norm()


def test_a_rescaled_net_that_computes_the_same_looks_the_same() -> None:
    """What the normalisation is for: ReLU lets one layer be 10 times larger and the next 10 times smaller (Li et al. 2018)."""
    net, big = small_net(), small_net()
    with torch.no_grad():
        big[0].weight *= 10
        big[0].bias *= 10
        big[4].weight /= 10
    torch.testing.assert_close(draw(net).losses, draw(big).losses, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(draw(net).losses, draw(net, seed=1).losses)


def test_frozen_weights_stay() -> None:
    net = small_net()
    net[0].requires_grad_(False)
    land = draw(net)
    assert land.directions.shape == (2, 3 * 5 + 3) and land.losses[0, 0] != land.losses[2, 2]
    net.requires_grad_(False)  # nothing is trained: then all of it is looked at
    assert draw(net).directions.shape[1] == sum(p.numel() for p in net.parameters())


# ------------------------------------------------------------------------------------------------------------- paths


@given(seed=st.integers(0, 10_000), k=st.integers(3, 12))
@settings(max_examples=20, deadline=None)
def test_a_path_in_a_plane_is_projected_without_loss(seed: int, k: int) -> None:
    net, g = small_net(), torch.Generator().manual_seed(seed)
    plane = torch.randn(2, len(flat_weights(net)), generator=g)
    weights = flat_weights(net) + torch.randn(k, 2, generator=g) @ plane
    land = draw(net, n=2, path=list(weights))
    torch.testing.assert_close(land.explained, 1.0)
    back = torch.stack([weights_at(land, *p) for p in land.paths[""]])
    torch.testing.assert_close(back, weights, rtol=1e-4, atol=1e-4)
    assert not land.paths[""][-1].any() and torch.equal(land.origin, weights[-1].double())
    low, high = land.paths[""].amin(0), land.paths[""].amax(0)
    assert land.xs[0] < low[0] and high[0] < land.xs[-1] and land.ys[0] < low[1] and high[1] < land.ys[-1]


def test_the_plane_is_that_of_the_principal_components() -> None:
    from sklearn.decomposition import PCA

    points = torch.randn(9, 30, generator=torch.Generator().manual_seed(0)).cumsum(0)
    directions, shares = principal_directions(points)
    pca = PCA(2, svd_solver="full").fit(points.double().numpy())
    assert shares.tolist() == pytest.approx(pca.explained_variance_ratio_, abs=1e-9)
    overlap = directions @ torch.as_tensor(pca.components_).T
    torch.testing.assert_close(overlap.abs(), torch.eye(2, dtype=torch.float64), atol=1e-6, rtol=0)


def test_several_paths_share_one_plane() -> None:
    net = small_net()
    start = flat_weights(net)
    g = torch.Generator().manual_seed(0)
    a, b = (torch.stack([start, *(start + torch.randn(4, len(start), generator=g).cumsum(0))]) for _ in range(2))
    land = draw(net, path={"one": list(a), "two": b})
    assert list(land.paths) == ["one", "two"] and land.paths["one"].shape == (5, 2)
    torch.testing.assert_close(land.origin, torch.cat([a, b]).double().mean(0))
    torch.testing.assert_close(land.paths["one"][0], land.paths["two"][0])
    for name, path in (("one", a), ("two", b)):
        assert land.ends[name] == pytest.approx((loss_with(net, path[0]), loss_with(net, path[-1])), abs=1e-5)
    total = torch.cat([a, b]).double()
    inside = torch.cat(list(land.paths.values())).square().sum() / (total - total.mean(0)).square().sum()
    assert land.explained == pytest.approx(inside.item(), abs=1e-9)


def test_a_straight_path_still_gets_a_plane() -> None:
    net = small_net()
    start = flat_weights(net)
    land = draw(net, path=[start, 1.5 * start, 2 * start])
    assert land.explained == pytest.approx(1.0)
    torch.testing.assert_close(land.directions @ land.directions.T, torch.eye(2, dtype=torch.float64))
    assert land.ys[-1] - land.ys[0] > 0.2 * (land.xs[-1] - land.xs[0])


def test_span_widens_the_plane_of_a_path() -> None:
    net = small_net()
    path = [flat_weights(net) + t for t in torch.randn(4, len(flat_weights(net)), generator=torch.Generator().manual_seed(0))]
    one, two = draw(net, path=path, n=2), draw(net, path=path, n=2, span=2.0)
    torch.testing.assert_close(two.xs[1] - two.xs[0], 2 * (one.xs[1] - one.xs[0]))
    torch.testing.assert_close(two.ys.mean(), one.ys.mean())


# ------------------------------------------------------------------------------------------- nothing is left behind


class Counting(nn.Module):
    """Counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def state_of(net: nn.Module) -> tuple:
    return (
        {k: v.clone() for k, v in net.state_dict().items()},
        [(m.training, len(m._forward_hooks), getattr(m, "track_running_stats", None)) for m in net.modules()],
        [(p.requires_grad, p.grad) for p in net.parameters()],
    )


def same_state(a: tuple, b: tuple) -> bool:
    return a[0].keys() == b[0].keys() and all(torch.equal(v, b[0][k]) for k, v in a[0].items()) and a[1:] == b[1:]


@pytest.mark.parametrize("batch_stats", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_model_is_left_as_it_was(training: bool, batch_stats: bool) -> None:
    net = small_net(norm=True, drop=0.5).append(Counting())
    net.train(training)
    net[1].train(not training)
    before = state_of(net)
    with global_rng_untouched("loss_landscape"):
        land = draw(net, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=10, shuffle=True), batch_stats=batch_stats)
        draw(net, path=[weights_at(land, 0, 0), weights_at(land, 1, 0)], batch_stats=batch_stats)
    assert same_state(before, state_of(net))
    assert land.losses.isfinite().all()


@pytest.mark.parametrize("when", [1, 2, 4])
def test_the_model_is_left_as_it_was_after_an_error(when: int) -> None:
    net, calls = small_net(norm=True).train(), []

    def failing(preds: Tensor, targs: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) >= when:
            raise ZeroDivisionError("of the loss")
        return F.cross_entropy(preds, targs)

    before = state_of(net)
    with global_rng_untouched("loss_landscape"), pytest.raises(ZeroDivisionError):
        draw(net, loss_func=failing, batch_stats=True)
    assert same_state(before, state_of(net))


def test_batch_norm_by_running_statistics_or_by_the_batch() -> None:
    net = small_net(norm=True)
    with torch.no_grad():
        net[1].running_mean += 1.0
        running, own = F.cross_entropy(net.eval()(X), Y).item(), F.cross_entropy(net.train()(X), Y).item()
    assert abs(running - own) > 1e-3
    net = small_net(norm=True)
    net[1].running_mean += 1.0
    assert draw(net).losses[2, 2].item() == pytest.approx(running, abs=1e-5)
    assert draw(net, batch_stats=True).losses[2, 2].item() == pytest.approx(own, abs=1e-5)


# -------------------------------------------------------------------------------------------------------- what fails

NET = small_net()
BAD = {
    "no parameters": (dict(model=nn.ReLU()), "no parameters"),
    "all zero": (dict(model=nn.BatchNorm1d(6)), "no filter"),
    "loss of the wrong shape": (dict(loss_func=lambda p, t: p.mean(1)), "one number"),
    "n": (dict(n=1), "n must be .* got 1"),
    "n whole": (dict(n=2.5), "n must be .* got 2.5"),
    "dl empty": (dict(dl=[]), "empty"),
    "dl without targets": (dict(dl=[X]), "no targets"),
    "dl of numpy": (dict(dl=[(X.numpy(), Y)]), "tuple"),
    "path of wrong size": (dict(path=[torch.zeros(3), torch.ones(3)]), "53 weights"),
    "path of one point": (dict(path=[flat_weights(NET)]), "two or more"),
    "path that stays": (dict(path=[flat_weights(NET)] * 3), "does not move"),
    "path with nan": (dict(path={"sgd": [flat_weights(NET), flat_weights(NET) * math.nan]}), "'sgd'.* point 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        loss_landscape(**{"model": NET, "dl": (X, Y), "loss_func": F.cross_entropy, "n": 3} | options)


# ------------------------------------------------------------------------------------------------------------- plots


def made(losses: Tensor, **options) -> Landscape:
    axis = torch.linspace(-1, 1, len(losses), dtype=torch.float64)
    return Landscape(axis, axis, losses.double(), torch.zeros(4), torch.eye(2, 4), **options)


@pytest.mark.parametrize("kind", ["contour", "surface"])
@pytest.mark.parametrize("losses", ["decades", "flat", "zero", "negative", "overflow"])
def test_plots_of_all_kinds_of_losses(kind: str, losses: str) -> None:
    import matplotlib.pyplot as plt

    axis = torch.linspace(-1, 1, 5)
    z = {"decades": 10 ** (4 * axis), "flat": torch.ones(5), "zero": axis.square(), "negative": axis,
         "overflow": torch.tensor([1.0, 2.0, math.inf, math.nan, 9.0])}[losses].expand(5, 5)  # fmt: skip
    path = {"a": torch.tensor([[-0.5, -0.5], [0.3, 0.9]]), "b_1$": torch.tensor([[-0.5, -0.5], [3.0, 0.1]])}
    land = made(z, paths=path, explained=0.9)
    getattr(land, f"plot_{kind}")()
    fig = plt.gcf()
    fig.canvas.draw()
    assert fig.alt_text.startswith("Loss over a plane of weights, from ") and "path a goes from (-0.5, -0.5)" in fig.alt_text
    plt.close(fig)


def test_the_plot_of_both_and_into_axes_of_ones_own() -> None:
    import matplotlib.pyplot as plt

    land = draw(small_net())
    land.plot()
    assert len(plt.gcf().axes) == 3 and "Loss over" in plt.gcf().alt_text
    paths = {"a": torch.zeros(2, 2), "_b$": torch.ones(2, 2)}
    made(torch.eye(3) + 1, paths=paths, explained=0.8, ends={"a": (2.5, 0.125)}).plot_contour()
    labels = [t.get_text() for t in plt.gcf().axes[0].get_legend().get_texts()]
    assert labels == ["a: loss 2.5 to 0.12", r"b\$", "start", "end"] and "80%" in plt.gcf().axes[0].get_xlabel()
    plt.close("all")
    fig, ax = plt.subplots()
    land.plot_contour(ax)
    assert not hasattr(fig, "alt_text") and ax.get_xlabel() == "random direction 1"
    with pytest.raises(ValueError, match="no loss here is finite"):
        made(torch.full((3, 3), math.nan)).plot_contour(ax)
    plt.close("all")


def test_the_scale_is_logarithmic_only_where_that_says_more() -> None:
    decades, narrow = torch.tensor([[0.01, 1.0], [3.0, 10.0]]), torch.tensor([[1.0, 1.5], [2.0, 3.0]])

    def kind(z: Tensor) -> str:
        return type(_scaled(z)[1]).__name__

    assert kind(decades) == "LogNorm" and kind(narrow) == kind(-decades) == "Normalize"
    z, _, edges = _scaled(torch.tensor([[0.0, 0.01], [1.0, 100.0]]))
    assert z.min() == torch.tensor(0.01) and edges[::5].tolist() == pytest.approx([0.01, 0.1, 1, 10, 100])


def test_losses_between_the_points_of_the_grid() -> None:
    x, y = torch.meshgrid(torch.linspace(-1, 1, 5), torch.linspace(-1, 1, 5), indexing="xy")
    land = made(2 * x - 3 * y + x * y)  # bilinear, so interpolation is exact
    points = torch.tensor([[0.1, -0.7], [-1.0, 1.0], [0.99, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(land.loss_at(points), 2 * points[:, 0] - 3 * points[:, 1] + points.prod(1))
