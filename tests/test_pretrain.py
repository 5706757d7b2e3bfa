"""tools/pretrain_coursenet.py on a few random pictures: what an epoch shows, what is drawn, stop and go on, publish."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pretrain_coursenet as tool
import pytest
import torch
from safetensors.torch import load_file

from coursekit.vision.models import coursenet

ARGS = ["--plan", "2x32-48", "--bs", "8", "--tiny", "0.5", "--erase", "0.4", "--modes", "bilinear", "bicubic", "--lr", "0.05", "--cifar", "2"]


@pytest.fixture
def pictures() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    classes = torch.cat([torch.arange(16), 200 + torch.arange(8)])
    parts = {}
    for part in ("train", "valid"):
        parts |= {f"{part}_x": torch.randint(0, 256, (24, 3, 32, 32), generator=rng, dtype=torch.uint8), f"{part}_y": classes.clone()}
    return parts


def run(monkeypatch: pytest.MonkeyPatch, pictures: dict, work: Path, *more: str) -> dict[str, torch.Tensor]:
    work.mkdir(exist_ok=True)
    if not (work / "pictures.pt").exists():
        torch.save(pictures, work / "pictures.pt")
    monkeypatch.setattr(sys, "argv", ["pretrain_coursenet.py", "--work", str(work), *ARGS, *more])
    tool.main()
    return load_file(work / "models" / json.loads((work / "state.json").read_text())["file"])


def test_plan() -> None:
    assert tool.parse_plan("2x40,1x64-96") == [[40], [40], [64, 80, 96]]


def test_an_epoch_shows_a_share_of_one_set_and_all_of_the_other(pictures: dict) -> None:
    args = Namespace(tiny=0.25, cifar=3, seed=1)
    shown = [Counter(tool.train_pictures(pictures["train_y"], args, epoch).tolist()) for epoch in range(20)]
    assert all(sum(i < 16 for i in s) == 4 and max(n for i, n in s.items() if i < 16) == 1 for s in shown)
    assert all({i: n for i, n in s.items() if i >= 16} == dict.fromkeys(range(16, 24), 3) for s in shown)
    assert len({frozenset(s) for s in shown}) > 10  # others each time
    assert shown[3] == Counter(tool.train_pictures(pictures["train_y"], args, 3).tolist())


def test_the_last_epochs_are_calmer() -> None:
    args = Namespace(plan=[[32]] * 5, calm=2, erase=0.4, rotate=8.0, warp=0.1, lighting=0.3, sharpen=2.0, min_scale=0.5, seed=1)
    assert all(tool.calmed(args, epoch) is args for epoch in range(3))
    for epoch in (3, 4):
        made = tool.calmed(args, epoch)
        assert (made.erase, made.rotate, made.warp, made.lighting, made.sharpen, made.min_scale) == (0.2, 4.0, 0.05, 0.15, 1.0, 0.75) and made.seed == 1
    assert args.erase == 0.4  # the caller's are left alone


def test_erase_blanks_one_square_of_at_most_its_share() -> None:
    x = torch.ones(200, 3, 40, 40)
    rng = torch.Generator().manual_seed(0)
    (out,) = tool.Erase(0.5).apply([x], ["image"], rng=rng, train=True)
    assert tool.Erase(0.5).apply([x], ["image"], rng=rng, train=False)[0] is x and x.min() == 1
    blank = out == 0
    assert (blank == blank[:, :1]).all()  # all channels alike
    rows, cols = blank[:, 0].any(2), blank[:, 0].any(1)
    assert (blank[:, 0] == rows[:, :, None] & cols[:, None, :]).all() and rows.sum(1).max() == 20 and cols.sum(1).max() <= 20
    assert abs(blank[:, 0].float().mean((1, 2)).mean() - 0.25 / 3) < 0.03  # mean of (u / 2)^2, less what hangs over the edges


def test_sharpen_makes_more_of_an_edge_and_nothing_of_a_plain() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.zeros(400, 3, 8, 16)
    x[..., 8:] = 1.0  # one upright edge
    (out,) = tool.Sharpen(3.0).apply([x], ["image"], rng=rng, train=True)
    assert tool.Sharpen(3.0).apply([x], ["image"], rng=rng, train=False)[0] is x
    torch.testing.assert_close(out[..., [0, -1]], x[..., [0, -1]])  # away from the edge, and at the border, where a window has fewer pixels
    over = out[:, 0, 4, 8] - 1  # what the first bright pixel gains: amount times (1 - its blurred self), which is 2/3 or 3/5
    torch.testing.assert_close(out[:, 0, 4, 7], -over)
    changed = over > 1e-6
    assert 0.4 < changed.float().mean() < 0.6 and over.min() >= -1e-6 and 0.8 < over.max() <= 3 * 2 / 5 + 1e-6


def test_own_classes_and_loss() -> None:
    preds, targs = torch.randn(6, 210, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 7, 199, 200, 205, 209])
    parts = [torch.nn.functional.cross_entropy(preds[:3, :200], targs[:3], label_smoothing=0.1, reduction="sum"),
             torch.nn.functional.cross_entropy(preds[3:, 200:], targs[3:] - 200, label_smoothing=0.1, reduction="sum")]
    torch.testing.assert_close(tool.joint_loss(preds, targs), sum(parts) / 6)


def test_stopped_and_gone_on_with_is_the_same(pictures: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(monkeypatch, pictures, tmp_path / "whole")
    write = tool.atomic_write

    def and_stop(file: Path, data: bytes) -> None:
        write(file, data)
        raise KeyboardInterrupt

    monkeypatch.setattr(tool, "atomic_write", and_stop)
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, pictures, tmp_path / "parts")
    monkeypatch.setattr(tool, "atomic_write", write)
    parts = run(monkeypatch, pictures, tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[k], parts[k]) for k in whole)
    log, log_of_parts = ([json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("whole", "parts"))
    assert [{**row, "seconds": 0} for row in log] == [{**row, "seconds": 0} for row in log_of_parts]
    assert [row.get("epoch") for row in log] == [None, 1, 2] and log[1]["sizes"] == [32, 48] and 0 <= log[2]["cifar10"] <= 1


def test_the_last_epoch_may_be_an_average(pictures: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights after a constant rate are the mean over the steps: recorded here step by step."""
    seen, step = [], tool.Learner.take_step

    def and_record(learn: tool.Learner) -> None:
        step(learn)
        seen.append((learn.opt.param_groups[0]["lr"], learn.model.fc.weight.detach().clone()))

    monkeypatch.setattr(tool.Learner, "take_step", and_record)
    last = run(monkeypatch, pictures, tmp_path / "a", "--average", "0.01")
    half = len(seen) // 2
    assert {rate for rate, _ in seen[half:]} == {0.01} and len({rate for rate, _ in seen[:half]}) > 1
    torch.testing.assert_close(last["model.fc.weight"], torch.stack([w for _, w in seen[half:]]).mean(0))


def test_mean_of_two_runs_with_its_own_norm_statistics(pictures: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "WEIGHTS", tmp_path / "made.safetensors")
    one = run(monkeypatch, pictures, tmp_path / "a")
    other = run(monkeypatch, pictures, tmp_path / "b", "--seed", "2", "--mix", str(next((tmp_path / "a" / "models").iterdir())), "--publish")
    made = load_file(tmp_path / "made.safetensors")
    key = "layer2.0.convs.0.weight"
    torch.testing.assert_close(made[key].float(), (one[f"model.{key}"] + other[f"model.{key}"]) / 2, atol=1e-3, rtol=1e-3)
    stats = "stem.1.running_mean"  # the stem's first layer is linear in its weights: statistics over the same kind of pictures lie between the runs'
    assert not torch.allclose(made[stats], (one[f"model.{stats}"] + other[f"model.{stats}"]) / 2, atol=1e-6)


def test_a_run_may_begin_with_the_mean_of_two(pictures: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (run(monkeypatch, pictures, tmp_path / name, "--seed", seed) for name, seed in (("a", "1"), ("b", "2")))
    files = [next((tmp_path / name / "models").iterdir()).rename(tmp_path / f"{name}.safetensors") for name in "ab"]
    monkeypatch.setattr(tool.Learner, "fit", lambda self, *args, **options: setattr(self.recorder, "values", [[0.0] * 4]) or setattr(self.recorder, "lrs", [0.0]))
    after = run(monkeypatch, pictures, tmp_path / "c", "--start", str(files[0]), "--blend", str(files[1]))
    for key in ("model.fc.weight", "model.layer2.0.convs.0.weight"):
        torch.testing.assert_close(after[key], (one[key] + other[key]) / 2)


def test_publish_and_start(pictures: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "WEIGHTS", tmp_path / "made.safetensors")
    run(monkeypatch, pictures, tmp_path / "a", "--publish")
    made = load_file(tmp_path / "made.safetensors")
    assert {k for k in coursenet(10).state_dict() if not k.startswith("fc.") and not k.endswith("tracked")} == {k for k in made if not k.startswith("heads.")}
    assert all(v.dtype == (torch.float16 if v.ndim > 1 else torch.float32) for v in made.values())
    last = json.loads((tmp_path / "a" / "log.jsonl").read_text().splitlines()[-1])
    assert last["bytes"] == (tmp_path / "made.safetensors").stat().st_size and set(last) > {"sha256", "test_64px", "test_96px"}

    # from a run's own file everything is taken over, from published weights the head of CIFAR-10 and the body
    monkeypatch.setattr(tool.Learner, "fit", lambda self, *args, **options: setattr(self.recorder, "values", [[0.0] * 4]) or setattr(self.recorder, "lrs", [0.0]))
    checkpoint = next((tmp_path / "a" / "models").iterdir())
    before = {k: v for k, v in load_file(checkpoint).items() if k.startswith("model.")}
    for name, start in (("b", checkpoint), ("c", tmp_path / "made.safetensors")):
        after = run(monkeypatch, pictures, tmp_path / name, "--start", str(start))
        same = {k for k, v in before.items() if v.ndim and torch.allclose(v, after[k], atol=1e-3)}
        assert {k for k, v in before.items() if v.ndim} - same == (set() if name == "b" else {"model.fc.weight", "model.fc.bias"})
        assert torch.allclose(before["model.fc.weight"][200:], after["model.fc.weight"][200:], atol=1e-3)
