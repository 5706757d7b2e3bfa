"""Optimiser groups: every parameter once, decay where it belongs, steps equal to torch.optim's; and the layers under them."""

from __future__ import annotations

from functools import partial

import pytest
from helpers import raises
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from coursekit.core import seeded
from coursekit.training.layers import create_head, is_norm, norm_bias_params, num_params
from coursekit.training.optimizers import SGD, Adam, AdamW, RMSProp, describe_groups, get_hyper, make_optimizer, set_hyper, split_params

quick = settings(deadline=None, max_examples=40)
OPT_FUNCS = {"AdamW": AdamW, "Adam": Adam, "SGD": SGD, "SGD with momentum": partial(SGD, mom=0.9), "RMSProp": RMSProp}


def convnet() -> nn.Sequential:
    with seeded(0):
        body = nn.Sequential(
            nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            nn.Sequential(nn.Conv2d(8, 8, 1), nn.GroupNorm(2, 8), nn.ReLU()),
        )
        return nn.Sequential(*body, create_head(8, 5, lin_ftrs=(16,)))


def by_child(model: nn.Module) -> list[nn.Module]:
    return list(model.children())


# ---------------------------------------------------------------- groups


@given(cuts=st.lists(st.integers(0, 20), min_size=0, max_size=4))
@quick
def test_every_parameter_is_in_one_group(cuts: list[int]) -> None:
    model = convnet()
    params = list(model.parameters())
    edges = [0, *sorted(min(c, len(params)) for c in cuts), len(params)]
    groups = split_params(model, lambda m: [list(m.parameters())[a:b] for a, b in zip(edges, edges[1:])])
    assert [id(p) for g in groups for p in g] == [id(p) for p in params]
    opt = make_optimizer(groups, AdamW, [1e-3] * len(groups), wd=0.1, model=model)
    held = [id(p) for g in opt.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in params)
    for g in opt.param_groups:
        assert {id(p) for p in g["params"]} <= {id(p) for p in groups[g["group_index"]]}
        plain = [id(p) in norm_bias_params(model) for p in g["params"]]
        assert all(plain) if g["weight_decay"] == 0 else not any(plain)


@pytest.mark.parametrize("opt_func", OPT_FUNCS.values(), ids=OPT_FUNCS)
def test_decay_never_on_norms_and_biases(opt_func) -> None:
    """With no gradient but weight decay, what moves is exactly the weights of linear layers and convolutions."""
    model = convnet()
    opt = make_optimizer(split_params(model, by_child), opt_func, [0.1, 0.1, 0.1], wd=0.5, model=model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    for name, p in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        decays = isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith("weight")
        assert torch.equal(p, before[name]) != decays, name


def test_norms_and_biases_of_other_layers() -> None:
    model = nn.ModuleDict({
        "lstm": nn.LSTM(3, 4, num_layers=2), "attention": nn.MultiheadAttention(4, 2, add_bias_kv=True),
        "embedding": nn.Embedding(5, 4), "norm": nn.LayerNorm(4), "rms": nn.RMSNorm(4), "instance": nn.InstanceNorm2d(4, affine=True),
    })
    plain = {name for name, p in model.named_parameters() if id(p) in norm_bias_params(model)}
    assert {"embedding.weight", "lstm.weight_ih_l0", "attention.in_proj_weight"} & plain == set()
    assert {"norm.weight", "rms.weight", "instance.bias", "lstm.bias_hh_l1", "attention.in_proj_bias",
            "attention.out_proj.bias"} <= plain


def test_shared_weights_count_once() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 7, bias=False))
    model[1].weight = model[0].weight
    assert num_params(model) == 28 and len(split_params(model)[0]) == 1
    with raises(ValueError, "'0.weight'", "group 0", "group 1"):
        split_params(model, by_child)


@pytest.mark.parametrize(
    ("splitter", "facts"),
    [
        (lambda m: [m[0], m[1]], ["7 parameters", "2.2.weight"]),
        (lambda m: [m[0], m], ["'0.0.weight'", "group 0", "group 1"]),
        (lambda m: [m, nn.Linear(2, 2).weight], ["(2, 2)", "group 1"]),
        (lambda m: [], ["14 parameters", "0.0.weight", "..."]),
    ],
)
def test_bad_splitters(splitter, facts: list[str]) -> None:
    with raises(ValueError, *facts):
        split_params(convnet(), splitter)


@pytest.mark.parametrize("group", [3, "0.weight", torch.zeros(2)])
def test_groups_of_something_else(group: object) -> None:
    with raises(TypeError, "list of parameters"):
        split_params(convnet(), lambda m: [m, group])


def test_bad_optimizers() -> None:
    model = convnet()
    groups = split_params(model, by_child)
    with raises(ValueError, 1, "3 groups"):
        make_optimizer(groups, AdamW, [1e-3], model=model)
    with raises(ValueError, "parameters"):
        make_optimizer(split_params(nn.ReLU()), AdamW, [1e-3], model=nn.ReLU())
    with raises(TypeError, "opt_func"):
        make_optimizer(groups, lambda params, lr: params, [1, 2, 3], model=model)
    with raises(TypeError, "weight_decay"):
        AdamW(model.parameters(), weight_decay=0.1)


# ---------------------------------------------------------------- steps


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int = 5) -> list[torch.Tensor]:
    gen = torch.Generator().manual_seed(3)
    for _ in range(steps):
        x, y = torch.randn(8, 6, generator=gen, dtype=torch.float64), torch.randint(3, (8,), generator=gen)
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()
    return [p.detach().clone() for p in model.parameters()]


def mlp() -> nn.Sequential:
    with seeded(1):
        return nn.Sequential(nn.Linear(6, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 3)).double()


PAIRS = {
    "AdamW": (AdamW, partial(torch.optim.AdamW, betas=(0.9, 0.99), eps=1e-5), 0.01),
    "SGD": (SGD, torch.optim.SGD, 0.1),
    "SGD with momentum": (partial(SGD, mom=0.9), partial(torch.optim.SGD, momentum=0.9), 0.1),
    "RMSProp": (RMSProp, partial(torch.optim.RMSprop, alpha=0.99, eps=1e-8), 0.01),
}


@pytest.mark.parametrize("name", PAIRS)
def test_steps_equal_those_of_torch(name: str) -> None:
    ours, theirs, wd = PAIRS[name]
    model = mlp()
    opt = make_optimizer(split_params(model, lambda m: [m[:2], m[2:]]), ours, [1e-3, 1e-2], wd=wd, model=model)
    got = train(model, opt)

    model = mlp()
    plain = norm_bias_params(model)
    groups = [
        {"params": [p], "lr": 1e-3 if i < 4 else 1e-2, "weight_decay": 0.0 if id(p) in plain else wd}
        for i, p in enumerate(model.parameters())
    ]
    want = train(model, theirs(groups, lr=1e-3))
    for a, b in zip(got, want):
        assert torch.allclose(a, b, rtol=1e-8, atol=1e-10)


def test_adamw_by_hand() -> None:
    """Two steps of the published rule: .9/.99, eps 1e-5, decay apart from the gradient."""
    w, lr, wd = torch.tensor([1.0, -3.0], dtype=torch.float64), 0.1, 0.01
    p = nn.Parameter(w.clone())
    opt = AdamW([p], lr=lr)
    mean = square = torch.zeros(2, dtype=torch.float64)
    for step, grad in enumerate([torch.tensor([0.5, -2.0]).double(), torch.tensor([1.0, 1.0]).double()], 1):
        p.grad = grad.clone()
        opt.step()
        mean, square = 0.9 * mean + 0.1 * grad, 0.99 * square + 0.01 * grad**2
        w = w * (1 - lr * wd) - lr * (mean / (1 - 0.9**step)) / ((square / (1 - 0.99**step)).sqrt() + 1e-5)
        assert torch.allclose(p.detach(), w, rtol=1e-9)


def test_channels_last_weights_train() -> None:
    """Fused kernels want weights, gradients and averages in one memory order; 1x1 convolutions have an ambiguous one."""
    model, twin = convnet().to(memory_format=torch.channels_last), convnet()
    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    for m, x_ in ((model, x.to(memory_format=torch.channels_last)), (twin, x)):
        m.eval()
        opt = make_optimizer(split_params(m), AdamW, [1e-3], wd=0.1, model=m)
        for _ in range(3):
            opt.zero_grad()
            m(x_).square().mean().backward()
            opt.step()
    for a, b in zip(model.parameters(), twin.parameters()):
        assert torch.allclose(a, b, atol=1e-4)


# ---------------------------------------------------------------- rates and momentum


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(0, 0.999))
@quick
def test_set_and_get(lrs: list[float], mom: float) -> None:
    model = convnet()
    for name, opt_func in OPT_FUNCS.items():
        opt = make_optimizer(split_params(model, by_child), opt_func, [1, 2, 3], wd=0.05, model=model)
        set_hyper(opt, lrs=lrs, mom=mom)
        has_mom = name not in ("SGD", "RMSProp")
        assert get_hyper(opt) == [{"lr": lr, "mom": mom if has_mom else 0.0, "wd": 0.05} for lr in lrs]
        for group in opt.param_groups:
            assert group["lr"] == lrs[group["group_index"]]
            assert "betas" not in group or group["betas"] == (mom, 0.99)


def test_momentum_to_start_with_and_zero_in_between() -> None:
    model = mlp()
    opt = make_optimizer(split_params(model), partial(SGD, mom=0.9), [1], moms=(0.95, 0.85, 0.95), model=model)
    assert get_hyper(opt)[0]["mom"] == 0.95
    set_hyper(opt, mom=0.0)
    set_hyper(opt, mom=0.5)
    assert get_hyper(opt)[0]["mom"] == 0.5


def test_empty_groups_and_saved_state() -> None:
    model = mlp()
    groups = split_params(model, lambda m: [[], m])
    opt = make_optimizer(groups, AdamW, [1e-4, 1e-3], model=model)
    set_hyper(opt, lrs=[1, 2])
    assert [h["lr"] for h in get_hyper(opt)][1] == 2
    again = make_optimizer(groups, AdamW, [1e-4, 1e-3], model=model)
    again.load_state_dict(opt.state_dict())
    set_hyper(again, lrs=[3, 4], mom=0.8)
    assert get_hyper(again)[1] == {"lr": 4, "mom": 0.8, "wd": 0.01}


def test_rows_cover_the_model() -> None:
    model = convnet()
    model[0].requires_grad_(False)
    opt = make_optimizer(split_params(model, by_child), AdamW, [1e-5, 1e-4, 1e-3], model=model)
    rows = describe_groups(opt, model)
    assert sum(r["numbers"] for r in rows) == num_params(model)
    assert sum(r["trained"] for r in rows) == num_params(model, trainable=True)
    assert {(r["group"], r["wd"]) for r in rows} == {(i, wd) for i in range(3) for wd in (0.0, 0.01)}


def test_head() -> None:
    with seeded(0):
        head = create_head(64, 10)
    kinds = [type(m).__name__ for m in head]
    assert kinds == ["AdaptiveConcatPool2d", "Flatten", "BatchNorm1d", "Dropout", "Linear", "ReLU", "BatchNorm1d", "Dropout", "Linear"]
    first, last = (m for m in head if isinstance(m, nn.Linear))
    assert first.weight.std().item() == pytest.approx((2 / 128) ** 0.5, rel=0.02)
    assert last.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.05)
    assert all((m.weight == 1).all() and (m.bias == 0).all() for m in head if is_norm(m)) and (last.bias == 0).all()
