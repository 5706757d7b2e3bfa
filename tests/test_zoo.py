"""vision_learner over architectures of torchvision, timm and coursekit: cut, groups, head, weights, export; and what comes with the package."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import rough_photos
from PIL import Image
from safetensors.torch import load_file, save_file

from coursekit.training.callback import Callback
from coursekit.core import precision_dtype
from coursekit.data.items import get_image_files
from coursekit.data.loader import DataLoaders
from coursekit.interpret.interpretation import ClassificationInterpretation
from coursekit.deploy.hub import load_learner
from coursekit.training.learner import Learner
from coursekit.training.metrics import error_rate
from coursekit.vision.data import ImageDataLoaders
from coursekit.vision.learner import pretrained, vision_learner
from coursekit.vision.models import VisionModel, WeightsError, arch_name, course_arch, create_body, fetch_weights, norm_stats, read_state, vision_groups, whole_net
from coursekit.vision.augment import AugmentNormalize, aug_transforms, imagenet_stats
from coursekit.vision.resize import Resize

FAMILIES = ["resnet18", "alexnet", "squeezenet1_1", "densenet121", "googlenet", "inception_v3", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny", "swin_t", "coursenet",
            "timm/convnext_atto", "timm/vit_tiny_patch16_224", "efficientnet_lite0"]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return rough_photos(tmp_path_factory.mktemp("zoo"), (110, 100))


def loaders(photos: Path, size: int = 80, **options) -> ImageDataLoaders:
    return ImageDataLoaders.from_name_func(photos, get_image_files(photos), lambda n: n[0], valid_pct=0.34, seed=0, bs=4, item_tfms=Resize(size),
                                           device="cpu", **options)  # fmt: skip


def whole_weights(arch: str, file: Path) -> dict[str, torch.Tensor]:
    """Random weights of a whole network in the layout in which they are published."""
    torch.manual_seed(1)
    if arch.startswith("timm/"):
        import timm

        state = timm.create_model(arch.removeprefix("timm/")).state_dict()
    else:
        state = whole_net(arch).state_dict()
    # torchvision's files of DenseNets have names that PyTorch no longer allows
    published = {re.sub(r"(denselayer\d+\.(?:norm|conv))(?=[12]\.)", r"\1.", k): v.contiguous().clone() for k, v in state.items()}
    assert (list(published) != list(state)) == arch.startswith("densenet")
    save_file(published, file)
    return state


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_is_cut_grouped_loaded_and_trained(photos: Path, tmp_path: Path, arch: str) -> None:
    size = 224 if "224" in arch else 80
    state = whole_weights(arch, tmp_path / "w.safetensors")
    learn = vision_learner(loaders(photos, size), arch, weights=tmp_path / "w.safetensors", metrics=error_rate, seed=0)
    learn.progress = False
    body = {k: v for k, v in learn.model[0].state_dict().items() if not k.endswith("num_batches_tracked")}
    published = [v for k, v in state.items() if not k.endswith("num_batches_tracked")][:len(body)]
    assert all(torch.equal(a, b) for a, b in zip(body.values(), published))  # all of it, in its place
    early, late, head = (sum(p.numel() for p in g) for g in learn.groups)
    assert early > 0.005 * (early + late) and late and head and early + late + head == sum(p.numel() for p in learn.model.parameters())
    trained = {id(p) for p in learn.model.parameters() if p.requires_grad}
    assert {id(p) for p in learn.groups[2]} == trained  # the body is frozen, norms and all
    stats = {k: v.clone() for k, v in learn.model[0].state_dict().items() if "running" in k}
    before = [p.detach().clone() for p in learn.model.parameters()]
    learn.fine_tune(1)
    assert sum(not torch.equal(a, b) for a, b in zip(before, learn.model.parameters())) > 0.9 * len(before)
    kept = [torch.equal(v, stats[k]) for k, v in learn.model[0].state_dict().items() if k in stats]
    assert all(kept) if arch == "efficientnet_lite0" else not any(kept)  # batch norms keep their statistics
    again = load_learner(learn.export(tmp_path / "m.ck"), device="cpu")
    item = learn.dls.valid_ds.items[0]
    assert torch.allclose(again.predict(item).probabilities, learn.predict(item).probabilities, atol=1e-5)
    assert len(vision_groups(again.model)) == 3


def test_published_features_come_out_of_the_body(tmp_path: Path) -> None:
    """A body with a network's weights computes that network's features."""
    from coursekit.vision.models import load_body_weights

    x = torch.rand(2, 3, 96, 96)
    for arch, pooled in (("resnet18", lambda net, f: net.fc(f.mean((2, 3)))), ("convnext_tiny", lambda net, f: net.classifier(net.avgpool(f)))):
        torch.manual_seed(0)
        net = whole_net(arch).eval()
        save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "w.safetensors")
        body = create_body(arch).eval()
        load_body_weights(body, arch, tmp_path / "w.safetensors")
        with torch.no_grad():
            assert torch.allclose(pooled(net, body(x)), net(x), atol=1e-5)


@pytest.mark.parametrize("arch", ["googlenet", "inception_v3"])
def test_the_body_sees_what_the_network_saw_in_training(arch: str) -> None:
    """With published weights these two bring ImageNet's scale to another one before the layers of the body."""
    torch.manual_seed(0)
    net = whole_net(arch)
    net.transform_input = True  # as torchvision sets it with published weights
    photos = torch.rand(2, 3, 96, 96)
    (mean, std), (own_mean, own_std) = ([torch.tensor(v)[:, None, None] for v in stats] for stats in (imagenet_stats, norm_stats(arch)))
    assert torch.allclose(net._transform_input((photos - mean) / std), (photos - own_mean) / own_std, atol=1e-5)


def test_a_size_that_a_network_cannot_take_and_a_device_that_is_not_there(photos: Path) -> None:
    with pytest.raises(ValueError, match=r"vision_learner: alexnet cannot take images of 16 x 16 pixels .*Resize\(224\)"):
        vision_learner(loaders(photos, 16), "alexnet", pretrained=False)
    with pytest.raises(ValueError, match="timm/vit_tiny_patch16_224 cannot take images of 80 x 80 pixels"):
        vision_learner(loaders(photos, 80), "timm/vit_tiny_patch16_224", pretrained=False)
    plain = [(torch.zeros(2, 3), torch.zeros(2))]
    for make in (lambda: pretrained("cifar10", device="cuda:99"), lambda: loaders(photos).new(device="cuda:99"),
                 lambda: DataLoaders(plain, plain, device="cuda:99"), lambda: Learner((plain, plain), torch.nn.Linear(3, 1), torch.nn.MSELoss(), device="cuda:99")):
        with pytest.raises(ValueError, match=r"device='cuda:99' cannot be used here .*pass 'cpu'"):
            make()
    with pytest.raises(ValueError, match=r"Learner: device='meta', but the data are on 'cpu'"):
        Learner(loaders(photos).new(device="cpu"), torch.nn.Linear(3, 1), torch.nn.MSELoss(), device="meta")


def test_other_data_get_the_normalisation_in_the_same_pass(photos: Path) -> None:
    dls = loaders(photos, batch_tfms=aug_transforms())
    learn = vision_learner(dls, "coursenet")
    before = learn.dls.batch_tfms
    next(iter(dls.train))
    learn.dls = dls
    assert [type(t) for t in before] == [type(t) for t in learn.dls.batch_tfms] == [AugmentNormalize]
    assert learn.dls.train.epoch == dls.train.epoch == 0  # the next epoch is not like the first one


@pytest.mark.parametrize(("arch", "faster"), [("resnet18", True), ("convnext_tiny", True), ("regnet_y_400mf", True), ("coursenet", True), ("mobilenet_v2", False),
                                              ("efficientnet_b0", False), ("shufflenet_v2_x0_5", False), ("mnasnet0_5", False)])  # fmt: skip
def test_precision_by_architecture(arch: str, faster: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What benchmarks/README.md measured: networks with small depthwise convolutions are slower in bfloat16 on a CPU."""
    monkeypatch.setattr("coursekit.core.has_fast_bf16", lambda device: True)
    body, cpu = create_body(arch), torch.device("cpu")
    assert (precision_dtype(cpu, model=body) is torch.bfloat16) == faster
    assert precision_dtype(cpu, "bf16", model=body) is precision_dtype(torch.device("cuda"), model=body) is torch.bfloat16
    assert precision_dtype(cpu, "fp32", model=body) is None


def test_statistics_come_from_the_weights() -> None:
    assert norm_stats("timm/vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert tuple(norm_stats("resnet34")[0]) == imagenet_stats[0] == tuple(norm_stats("coursenet")[0])


def test_weights_that_cannot_be_had_or_do_not_fit(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_MIRROR", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path / "home"))
    dls = loaders(photos)
    for arch in ("resnet34", "timm/convnext_atto"):
        with pytest.raises(WeightsError, match=r"not on this machine .* copy .*pretrained=False.*efficientnet_lite0") as e:
            vision_learner(dls, arch)
        assert "\n" not in str(e.value)
    with pytest.raises(FileNotFoundError, match="weights=.* does not exist"):
        vision_learner(dls, "resnet18", weights=tmp_path / "none.pth")
    whole_weights("resnet18", tmp_path / "r.safetensors")
    with pytest.raises(ValueError, match="with pretrained=False; leave one"):
        vision_learner(dls, "resnet18", pretrained=False, weights=tmp_path / "r.safetensors")
    torch.save({"state_dict": whole_net("resnet18").state_dict()}, tmp_path / "trainer.pth")
    vision_learner(dls, "resnet18", weights=tmp_path / "trainer.pth")
    (tmp_path / "empty.pth").touch()
    with pytest.raises(WeightsError, match=r"empty.pth cannot be read \(EOFError"):
        vision_learner(dls, "resnet18", weights=tmp_path / "empty.pth")
    torch.save(torch.zeros(3), tmp_path / "tensor.pth")
    with pytest.raises(WeightsError, match=r"tensor\.pth .*model\.state_dict"):
        vision_learner(dls, "resnet18", weights=tmp_path / "tensor.pth")
    with pytest.raises(WeightsError, match="does not fit mobilenet_v2: features.0.0.weight should be .* and is not there"):
        vision_learner(dls, "mobilenet_v2", weights=tmp_path / "r.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"<html>")
    with pytest.raises(WeightsError, match="cannot be read"):
        vision_learner(dls, "resnet18", weights=tmp_path / "bad.safetensors")
    import pickle

    (tmp_path / "evil.pth").write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(WeightsError, match="cannot be read"):
        vision_learner(dls, "resnet18", weights=tmp_path / "evil.pth")


def test_a_file_put_where_the_message_says_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSEKIT_HOME", str(tmp_path))
    folder = tmp_path / "weights" / "timm" / "convnext_atto"
    folder.mkdir(parents=True)
    whole_weights("timm/convnext_atto", folder / "model.safetensors")
    assert fetch_weights("convnext_atto") == folder / "model.safetensors"


def test_a_body_from_scratch_learns_its_statistics(photos: Path) -> None:
    for fixed, moves in ((None, True), (True, False)):
        learn = vision_learner(loaders(photos), "coursenet", pretrained=False, fixed_stats=fixed, seed=0)
        learn.progress = False
        stats = {k: v.clone() for k, v in learn.model[0].state_dict().items() if "running" in k}
        learn.fit(1)
        assert any(not torch.equal(v, stats[k]) for k, v in learn.model[0].state_dict().items() if k in stats) is moves


def test_imagenet_weights_that_are_installed(photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """EfficientNet-Lite0's file has the order of timm's layers, and none of its names."""
    state, net = read_state(fetch_weights("efficientnet_lite0")), whole_net("efficientnet_lite0")
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    learn = vision_learner(loaders(photos), "efficientnet_lite0", seed=0)
    names = [k for k in net.state_dict() if not k.endswith("num_batches_tracked")]
    body = [v for k, v in learn.model[0].state_dict().items() if not k.endswith("num_batches_tracked")]
    assert len(state) == len(names) == len(body) + 2 and all(torch.equal(a, b) for a, b in zip(state.values(), body))
    assert learn.dls.batch_tfms[-1].mean == pytest.approx((127 / 255,) * 3)
    monkeypatch.setenv("COURSEKIT_DATA", "full")
    monkeypatch.setenv("COURSEKIT_MIRROR", str(photos))
    monkeypatch.setenv("TORCH_HOME", str(photos))
    assert course_arch("resnet18") == "efficientnet_lite0" and "resnet18" in capsys.readouterr().out


def test_names_and_their_mistakes() -> None:
    assert arch_name("convnext_tiny") == "convnext_tiny" and arch_name("timm/convnext_tiny") == "timm/convnext_tiny"
    with pytest.raises(ValueError, match=r"no architecture 'resnet43' in torchvision or timm.*did you mean.*resnet34"):
        arch_name("resnet43")


# ---- what comes with the package


def test_coursenet_brings_its_weights() -> None:
    file = fetch_weights("coursenet")
    assert file.stat().st_size <= 6e6 and file.suffix == ".safetensors"
    state = read_state(file)
    assert state["heads.cifar10.weight"].shape == (10, 256) and all(v.isfinite().all() for v in state.values())
    assert load_file(file).keys() == state.keys()


def test_pretrained_cifar10(mirror: Path) -> None:
    """A hundred of CIFAR-10's test pictures; all ten thousand are in benchmarks/."""
    learn = pretrained("cifar10", device="cpu")
    learn.progress = False
    files: dict[str, list[bytes]] = {name: [] for name in learn.dls.vocab}
    with tarfile.open(mirror / "cifar10.tgz", "r|gz") as tar:
        for member in tar:
            part, name = (*Path(member.name).parts, "", "")[1:3]
            if member.isfile() and part == "test" and len(files[name]) < 10:
                files[name].append(tar.extractfile(member).read())  # type: ignore[union-attr]
                if min(map(len, files.values())) == 10:
                    break
    truth = [name for name, some in files.items() for _ in some]
    preds, _ = learn.get_preds(learn.dls.test_dl([data for some in files.values() for data in some], bs=100))
    right = sum(learn.dls.vocab[int(p.argmax())] == name for p, name in zip(preds, truth, strict=True)) / 100
    assert right > 0.85  # 92% of all ten thousand; the figure is in benchmarks/
    with pytest.raises(ValueError, match="'mnist'.*cifar10.*imagenet"):
        pretrained("mnist")
    import coursekit

    assert coursekit.pretrained("cifar10").dls.vocab == learn.dls.vocab


def test_pretrained_takes_the_mean_of_several_looks() -> None:
    model = pretrained("cifar10", device="cpu").model
    one, x = torch.nn.Sequential(*model).eval(), torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        looks = [one(v) for size in (80, 96, 112, 128)
                 for w in [torch.nn.functional.interpolate(x, size=(size, size), mode="bicubic")] for v in (w, torch.flip(w, (3,)))]
        torch.testing.assert_close(model.eval()(x), sum(looks) / 8)
        assert not torch.allclose(looks[0], looks[1], atol=1e-3)


def test_a_file_with_views_of_its_own_still_loads(photos: Path, tmp_path: Path) -> None:
    model = VisionModel("coursenet", 2, views=[64, 96], mirror=False).build()
    learn = Learner(loaders(photos, 48), model, precision="fp32", path=tmp_path)
    again = load_learner(learn.export("views.ck"), device="cpu")
    assert (again.model.sizes, again.model.mirror) == ((64, 96), False)
    file = get_image_files(photos)[0]
    torch.testing.assert_close(again.predict(file).probabilities, learn.predict(file).probabilities)
    x = (torch.arange(96)[:, None] + torch.arange(120)).remainder(2).float().expand(1, 3, 96, 120)
    seen: list[torch.Tensor] = []
    again.model[0].register_forward_pre_hook(lambda body, args: seen.append(args[0]))
    again.model.eval()(x)
    assert [tuple(v.shape[2:]) for v in seen] == [(64, 80), (96, 120)]  # the shape of the image is kept
    assert float((seen[0] - 0.5).abs().max()) < 0.1 and seen[1] is x  # and reduced without aliasing
    for views in ([512] * 5, [8], ["96"], [96.0]):
        with pytest.raises(ValueError, match="VisionModel: views must be sizes from 16 to 512 pixels"):
            VisionModel("coursenet", 2, views=views)


def test_pretrained_can_be_exported(tmp_path: Path) -> None:
    learn, picture = pretrained("cifar10", device="cpu"), Image.effect_noise((50, 40), 90).convert("RGB")
    again = load_learner(learn.export(tmp_path / "ten.ck"))
    assert torch.equal(again.predict(picture).probabilities, learn.predict(picture).probabilities) and again.model.sizes == (80, 96, 112, 128)


# ---- the road from a file to an answer


def test_a_camera_photo_is_read_small_and_predicted_alike(photos: Path) -> None:
    learn = vision_learner(loaders(photos, 64), "coursenet", seed=0)
    r = np.random.default_rng(0)
    photo = Image.fromarray(r.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((4000, 3000), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", quality=92)
    ds = learn.dls.test_dl([buffer.getvalue()]).dataset
    assert ds.encode_part(0, 0).shape == (3, 375, 500)  # an eighth: both sides stay over twice 64
    small = learn.predict(buffer.getvalue()).probabilities
    whole = learn.predict(photo).probabilities  # a picture in memory has nothing to be read smaller
    assert (small - whole).abs().max() < 0.05
    opened = Image.open(buffer)
    assert (learn.predict(opened).probabilities - whole).abs().max() < 0.05 and opened.size == (4000, 3000)  # the caller's own is left as it was


def test_interpretation_after_a_fit_reads_no_data(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learn = vision_learner(loaders(photos, batch_tfms=aug_transforms()), "coursenet", metrics=error_rate, seed=0)
    learn.progress = False
    learn.fit_one_cycle(1)
    forward, calls = learn.model.forward, []
    monkeypatch.setattr(learn.model, "forward", lambda *x: calls.append(1) or forward(*x))
    interp = ClassificationInterpretation.from_learner(learn)
    assert calls == [] and 1 - float((interp.decoded == interp.targs).float().mean()) == pytest.approx(learn.recorder.final_record[-1])
    kept = learn.get_preds(with_loss=True)
    learn.kept.found = None
    fresh = learn.get_preds(with_loss=True)
    assert calls and all(torch.allclose(a, b, atol=1e-6) for a, b in zip(kept, fresh))

    def in_place():
        with torch.no_grad():
            learn.model[1][-1].weight[0, 0] += 1.0

    def rows(): learn.model[1][-1].weight.data = learn.model[1][-1].weight.data.flip(0)
    def load(): learn.model.load_state_dict({k: v + 0.1 if v.is_floating_point() else v for k, v in learn.model.state_dict().items()})
    def layer(): learn.model[1].append(torch.nn.Hardtanh())
    def reorder(): learn.dls.valid.dataset.items.reverse()
    for change in (in_place, rows, load, layer, reorder):
        learn.validate()
        calls.clear()
        learn.get_preds()
        assert not calls
        change()
        learn.get_preds()
        assert calls, change.__name__

    class Meddle(Callback):
        def after_pred(self, learn): learn.state.preds = learn.state.preds * 0

    learn.validate(cbs=Meddle())
    calls.clear()
    learn.get_preds()
    assert calls
    learn.validate()
    calls.clear()
    learn.get_preds(learn.dls.test_dl(learn.dls.valid_ds.items))
    assert calls  # another loader


def test_a_cached_learner_says_so(photos: Path) -> None:
    dls = loaders(photos, cache="memory")
    assert "cache='memory'" in repr(dls) and "no workers but" in repr(loaders(photos, num_workers=0)) and "2 workers" in repr(loaders(photos, num_workers=2))


def test_a_model_may_put_out_a_pair(photos: Path) -> None:
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = torch.nn.LazyLinear(2)

        def forward(self, x):
            y = self.lin(x.flatten(1))
            return y, y

    learn = Learner(loaders(photos, 16), Two(), lambda p, y: torch.nn.functional.cross_entropy(p[0], y))
    learn.model(torch.zeros(1, 3, 16, 16))
    learn.progress = False
    learn.fit(1, 1e-3)


def test_a_loaded_learner_predicts_in_batches(photos: Path) -> None:
    dl = pretrained("cifar10", device="cpu").dls.test_dl(get_image_files(photos))
    assert dl.bs == 12 and len(dl) == 1
