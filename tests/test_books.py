"""Small programs in the manner of the fast.ai book: with only the import swapped, they run as they are written there."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import raises
from PIL import Image

from coursekit.data.batch import Batch
from coursekit.data.loader import DataLoader, DataLoaders
from coursekit.deploy.hub import load_learner
from coursekit.vision import models
from coursekit.vision.augment import Normalize
from coursekit.vision.block import ImageBlock
from coursekit.vision.learner import vision_learner
from coursekit.vision.models import VisionModel, create_body
from coursekit.vision.pil import PILImage, PILImageBW, PILMask
from coursekit.vision.point_head import PointModel
from coursekit.vision.unet import UNetModel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`digits`: gray images of 28 pixels, bright on the left (3) or on the right (7). `pets`: names with breed and number. `bears`: folders."""
    root, rng = tmp_path_factory.mktemp("book"), np.random.default_rng(0)
    for side, n in (("train", 12), ("valid", 6)):
        for c in "37":
            (root / "digits" / side / c).mkdir(parents=True)
            for k in range(n):
                a = rng.integers(0, 80, (28, 28)).astype(np.uint8)
                a[:, :14 if c == "3" else None][:, 0 if c == "3" else 14:] += 120
                Image.fromarray(a).save(root / "digits" / side / c / f"{k}.png")
    (root / "pets").mkdir()
    for breed in ("Bengal", "Birman", "beagle", "pug_dog"):
        for k in range(6):
            a = rng.integers(0, 120, (40 + k, 60, 3)) + (100 * (breed[0] == "B"), 0, 100 * (breed[1] == "e"))
            Image.fromarray(a.astype(np.uint8)).save(root / "pets" / f"{breed}_{k}.jpg", quality=90)
    for c in ("grizzly", "black", "teddy"):
        (root / "bears" / c).mkdir(parents=True)
        for k in range(4):
            Image.fromarray(rng.integers(0, 255, (50, 70, 3)).astype(np.uint8)).save(root / "bears" / c / f"{k}.jpg")
    return root


@pytest.fixture
def book(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the cells of a chapter, one after the other, in one namespace that begins with the star import."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec("from coursekit.vision.all import *", names)
    names["root"] = root

    def run(*cells: str) -> dict[str, Any]:
        for cell in cells:
            exec(compile(cell, "cell", "exec"), names)
        return names

    return run


# ------------------------------------------------------------------------------------------------------- programs


def test_numbers_as_images(book, root: Path) -> None:
    made = book(
        """
path = root/'digits'
Path.BASE_PATH = path
threes = (path/'train'/'3').ls().sorted()
sevens = (path/'train'/'7').ls().sorted()
im3 = Image.open(threes[1])
small = array(im3)[4:10,4:10]
im3_t = tensor(im3)
df = pd.DataFrame(im3_t[4:15,4:22])
""", """
three_tensors, seven_tensors = [[tensor(Image.open(o)) for o in files] for files in (threes, sevens)]
show_image(three_tensors[1]);
stacked_threes, stacked_sevens = [torch.stack(t).float()/255 for t in (three_tensors, seven_tensors)]
mean3 = stacked_threes.mean(0)
ax = show_image(mean3)
ax.set_title('ideal three')
""", """
data = [[1,2,3],[4,5,6]]
arr, tns = array(data), tensor(data)
xt = tensor([3.,4.,10.]).requires_grad_()
(xt**2).sum().backward()
fig, ax = plt.subplots()
ax.plot(to_np(xt), to_np(xt.grad))
plot_function(F.relu, 'x', 'relu(x)', min=-1, max=1)
""")
    assert made["small"].shape == (6, 6) and made["im3_t"].dtype == torch.uint8 and made["df"].shape == (11, 18)
    assert torch.equal(made["im3_t"], torch.tensor(np.array(made["im3"]))) and made["ax"].get_lines()
    assert made["xt"].grad.tolist() == [6, 8, 20] and np.array_equal(made["arr"], made["tns"])
    assert [f.name for f in made["threes"]] == sorted(f.name for f in (root / "digits" / "train" / "3").iterdir())


def test_sgd_from_scratch_and_with_a_learner(book) -> None:
    made = book(
        """
set_seed(42)
def load(side): return [torch.stack([tensor(Image.open(o)) for o in (root/'digits'/side/c).ls()]).float()/255 for c in '37']
(t3, t7), (v3, v7) = load('train'), load('valid')
train_x = torch.cat([t3, t7]).view(-1, 28*28)
train_y = tensor([1]*len(t3) + [0]*len(t7)).unsqueeze(1)
valid_x = torch.cat([v3, v7]).view(-1, 28*28)
valid_y = tensor([1]*len(v3) + [0]*len(v7)).unsqueeze(1)
dset, valid_dset = list(zip(train_x,train_y)), list(zip(valid_x,valid_y))
dl, valid_dl = DataLoader(dset, batch_size=8, shuffle=True), DataLoader(valid_dset, batch_size=8)
xb,yb = first(dl)
""", """
coll = DataLoader(range(15), batch_size=5, shuffle=True)
letters = list(DataLoader(list(enumerate('abcdefgh')), batch_size=4))
""", """
def mnist_loss(predictions, targets):
    predictions = predictions.sigmoid()
    return torch.where(targets==1, 1-predictions, predictions).mean()
def batch_accuracy(xb, yb): return ((xb.sigmoid()>0.5) == yb).float().mean()
linear_model = nn.Linear(28*28,1)
opt = SGD(linear_model.parameters(), 1.)
for _ in range(5):
    for xb,yb in dl:
        mnist_loss(linear_model(xb), yb).backward()
        opt.step()
        opt.zero_grad()
acc = torch.stack([batch_accuracy(linear_model(xb), yb) for xb,yb in valid_dl]).mean()
""", """
dls = DataLoaders(dl, valid_dl)
learn = Learner(dls, nn.Linear(28*28,1), opt_func=SGD, loss_func=mnist_loss, metrics=batch_accuracy)
learn.fit(3, lr=1.)
simple_net = nn.Sequential(nn.Linear(28*28,30), nn.ReLU(), nn.Linear(30,1))
learn = Learner(dls, simple_net, opt_func=SGD, loss_func=mnist_loss, metrics=batch_accuracy)
learn.fit(4, 0.1)
last = learn.recorder.values[-1][2]
plt.plot([v[2] for v in learn.recorder.values]);
""")
    assert made["xb"].shape[1:] == (784,) and sorted(int(n) for b in made["coll"] for n in b.x) == list(range(15))
    assert [tuple(y) for _, y in made["letters"]] == [tuple("abcd"), tuple("efgh")]
    assert made["acc"] > 0.9 and 0 <= made["last"] <= 1


def test_bears(book, root: Path, tmp_path: Path) -> None:
    made = book(
        """
path = Path('bears')
shutil.copytree(root/'bears', path)
(path/'teddy'/'broken.jpg').write_bytes(b'not an image')
fns = get_image_files(path)
failed = verify_images(fns)
failed.map(Path.unlink);
resize_images(path/'black', max_size=40, dest=path/'black')
bears = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(valid_pct=0.3, seed=42), get_y=parent_label,
                  item_tfms=Resize(32))
dls = bears.dataloaders(path, bs=4)
dls.valid.show_batch(max_n=3, nrows=1)
""", """
squished = bears.new(item_tfms=Resize(32, ResizeMethod.Squish)).dataloaders(path, bs=4)
padded = bears.new(item_tfms=Resize(32, ResizeMethod.Pad, pad_mode='zeros')).dataloaders(path, bs=4)
bears = bears.new(item_tfms=RandomResizedCrop(32, min_scale=0.3), batch_tfms=aug_transforms(mult=2))
dls = bears.dataloaders(path, bs=4)
dls.train.show_batch(max_n=4, nrows=2, unique=True)
x, y = dls.valid.one_batch()
""", """
learn = vision_learner(dls, 'coursenet', metrics=error_rate, seed=0)
learn.fit(1)
interp = ClassificationInterpretation.from_learner(learn)
interp.plot_top_losses(3, nrows=1)
learn.show_results(max_n=3, nrows=1)
img = PILImage.create(path/'grizzly'/'1.jpg')
thumb = img.to_thumb(24)
label = learn.predict(img)[0]
pred,pred_idx,probs = learn.predict(img)
learn.export()
""", """
path = Path()
path.ls(file_exts='.ck')
inference = load_learner('export.ck')
box = VBox([widgets.Label('Which bear?'), HBox([widgets.FileUpload(), widgets.Button(description='Classify')])])
uploader = SimpleNamespace(data=['bears/grizzly/1.jpg'])
again = inference.predict(PILImage.create(uploader.data[0]))
""")
    assert [f.name for f in made["failed"]] == ["broken.jpg"] and not (tmp_path / "bears/teddy/broken.jpg").exists()
    assert {max(Image.open(f).size) for f in (tmp_path / "bears/black").iterdir()} == {40}
    assert {max(Image.open(f).size) for f in (tmp_path / "bears/teddy").iterdir()} == {70}
    assert made["x"].shape == (3, 3, 32, 32) and made["thumb"].size == (24, 17)
    assert made["label"] == made["pred"] == made["again"].label and [*made["box"].children[1].children]
    with raises(ValueError, "load_learner", "export.pkl", "load_learner('export.ck')"):
        load_learner("export.pkl")
    with raises(ValueError, "load_learner", "other.pkl", "learn.export"):
        load_learner("other.pkl")


def test_pets(book) -> None:
    made = book(
        """
path = root/'pets'
fname = path.ls()[0]
re.findall(r'(.+)_\\d+.jpg$', fname.name)
pets = DataBlock(blocks=(ImageBlock, CategoryBlock), get_items=get_image_files, splitter=RandomSplitter(seed=42),
                 get_y=using_attr(RegexLabeller(r'(.+)_\\d+.jpg$'), 'name'), item_tfms=Resize(48), batch_tfms=aug_transforms(size=32, min_scale=0.75))
dls = pets.dataloaders(path, bs=8)
dls.show_batch(nrows=1, ncols=3)
learn = vision_learner(dls, 'coursenet', metrics=error_rate, seed=0).to_fp16()
learn.fine_tune(1, base_lr=0.01)
""", """
x,y = dls.one_batch()
preds,_ = learn.get_preds(dl=[(x,y)])
loss = dls.loss_func(learn.model(to_device(x, learn.device)), to_device(y, learn.device))
same = nn.CrossEntropyLoss()(learn.model(x), y)
x_dec = dls.train.decode((x,))[0][0]
""")
    assert made["preds"].shape == (8, 4) and torch.allclose(made["loss"], made["same"]) and made["x_dec"].size == (32, 32)
    assert made["learn"].precision == "auto" and made["dls"].vocab == ["Bengal", "Birman", "beagle", "pug_dog"]


def test_a_table_grows_into_a_plan(book) -> None:
    made = book(
        """
df = pd.DataFrame({'fname': [f'{c}/{i}.jpg' for c in ('grizzly', 'black') for i in range(4)], 'labels': ['a b', 'b'] * 4, 'is_valid': [False, False, True, False] * 2})
dblock = DataBlock()
dsets = dblock.datasets(df)
x,y = dsets.train[0]
dblock = DataBlock(get_x=lambda r: r['fname'], get_y=lambda r: r['labels'])
def splitter(df):
    train = df.index[~df['is_valid']].tolist()
    valid = df.index[df['is_valid']].tolist()
    return train,valid
dblock = DataBlock(blocks=(ImageBlock, MultiCategoryBlock), splitter=splitter, get_x=lambda r: root/'bears'/r['fname'],
                   get_y=lambda r: r['labels'].split(' '), item_tfms=RandomResizedCrop(32, min_scale=0.35))
dls = dblock.dataloaders(df, bs=4)
x2,y2 = to_cpu(dls.train.one_batch())
""")
    assert made["x"]["fname"] == made["y"]["fname"] and len(made["dls"].valid_ds) == 2
    assert made["x2"].shape == (4, 3, 32, 32) and made["y2"].sum() >= 4
    with raises(ValueError, "position 8", "8 items", "reset_index"):
        made["dblock"].new(splitter=lambda df: ([0, 8], [1])).datasets(made["df"])
    with raises(ValueError, "position -1", "8 items"):
        made["dblock"].new(splitter=lambda df: ([0], [-1])).datasets(made["df"])
    with raises(ValueError, "Block", "stacked", "blocks="):
        next(iter(made["DataBlock"]().dataloaders(made["df"], bs=2, num_workers=0).train))


def test_sizes_and_mixup(book) -> None:
    made = book(
        """
def get_dls(bs, size):
    dblock = DataBlock((ImageBlock, CategoryBlock), get_items=get_image_files, get_y=parent_label, splitter=RandomSplitter(seed=1),
                       item_tfms=Resize(46), batch_tfms=[*aug_transforms(size=size, min_scale=0.75), Normalize.from_stats(*imagenet_stats)])
    return dblock.dataloaders(root/'bears', bs=bs)
dls = get_dls(4, 32)
model = xresnet18(n_out=dls.c)
learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=MixUp())
learn.fit_one_cycle(1, 3e-3)
learn.dls = get_dls(4, 40)
preds,targs = learn.tta()
acc = accuracy(preds, targs).item()
learn = Learner(dls, sequential(ConvLayer(3, 4), nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(4, dls.c)), loss_func=LabelSmoothingCrossEntropy())
learn.fit(1)
church = PILImage.create(get_image_files(root/'bears')[0]).resize((64,64))
tchurch = tensor(church).float() / 255.
_,axs = subplots(1, 2)
show_image(0.3*tchurch + 0.7*tchurch, ax=axs[1]);
show_images([tchurch, tchurch], titles=['a', 'b'])
show_titled_image((tchurch, 'church'))
head = create_head(2*num_features_model(xresnet18()), 3)
""")
    assert 0 <= made["acc"] <= 1 and made["tchurch"].shape == (64, 64, 3) and made["axs"][1].images
    assert models.arch_name(made["xresnet34"]) == "timm/resnet34d" and made["xresnet50"](5).num_classes == 5


def test_convolutions_on_gray_images(book) -> None:
    made = book(
        """
top_edge = tensor([[-1,-1,-1],[ 0, 0, 0],[ 1, 1, 1]]).float()
edge_kernels = torch.stack([top_edge, top_edge.t()]).unsqueeze(1)
def get_dls(bs=8):
    return DataBlock((ImageBlock(cls=PILImageBW), CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(), get_y=parent_label,
                     batch_tfms=Normalize()).dataloaders(root/'digits', bs=bs)
dls = get_dls()
dls.show_batch(max_n=4, figsize=(4,4))
xb,yb = to_cpu(first(dls.valid))
batch_features = F.conv2d(xb, edge_kernels)
show_image(batch_features[0,0]);
""", """
def conv(ni, nf, ks=3, act=True):
    layers = [nn.Conv2d(ni, nf, stride=2, kernel_size=ks, padding=ks//2)]
    if act: layers.append(nn.ReLU())
    layers.append(nn.BatchNorm2d(nf))
    return nn.Sequential(*layers)
def simple_cnn(): return sequential(conv(1,4,ks=5), conv(4,8), conv(8,8), conv(8,8), conv(8,2,act=False), Flatten())
learn = Learner(dls, simple_cnn(), loss_func=F.cross_entropy, metrics=accuracy, cbs=ActivationStats(with_hist=True))
learn.fit(2, 0.06)
learn.activation_stats.plot_layer_stats(-2)
learn.activation_stats.color_dim(-2)
learn.fit_one_cycle(1, 0.06)
learn.recorder.plot_sched()
learn.summary()
learn.show_results(max_n=4, nrows=1)
""", """
im = image2tensor(Image.open(root/'bears'/'grizzly'/'1.jpg'))
_,axs = subplots(1, 3)
for bear,ax,color in zip(im, axs, ('Reds','Greens','Blues')): show_image(255-bear, ax=ax, cmap=color)
""")
    x = torch.cat([b.x for b in made["dls"].valid])
    assert x.shape == (12, 1, 28, 28) and made["batch_features"].shape == (12, 2, 26, 26) and made["im"].shape == (3, 50, 70)
    assert made["dls"].train.dataset[0][0].shape == (1, 28, 28) and made["learn"].activation_stats.record


def test_resnet_from_module(book) -> None:
    made = book(
        """
dls = ImageDataLoaders.from_folder(root/'bears', valid_pct=0.4, seed=1, item_tfms=Resize(32), bs=4)
def _conv_block(ni,nf,stride):
    return nn.Sequential(ConvLayer(ni, nf, stride=stride), ConvLayer(nf, nf, act_cls=None, norm_type=NormType.BatchZero))
class ResBlock(Module):
    def __init__(self, ni, nf, stride=1):
        self.convs = _conv_block(ni,nf,stride)
        self.idconv = noop if ni==nf else ConvLayer(ni, nf, 1, act_cls=None)
        self.pool = noop if stride==1 else nn.AvgPool2d(2, ceil_mode=True)
    def forward(self, x): return F.relu(self.convs(x) + self.idconv(self.pool(x)))
class ResNet(nn.Sequential):
    def __init__(self, n_out, sizes):
        self.sizes = sizes
        super().__init__(ConvLayer(3, sizes[0], 3, stride=2), *[ResBlock(a, b, 2) for a,b in zip(sizes, sizes[1:])],
                         nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(sizes[-1], n_out))
def get_learner(m): return Learner(dls, m, loss_func=nn.CrossEntropyLoss(), metrics=accuracy).to_fp16()
learn = get_learner(ResNet(dls.c, [8, 8, 16]))
learn.fit_one_cycle(1, 3e-3)
""", """
class Hook():
    def __init__(self, m): self.hook = m.register_forward_hook(self.hook_func)
    def hook_func(self, m, i, o): self.stored = o.detach().clone()
    def __enter__(self, *args): return self
    def __exit__(self, *args): self.hook.remove()
x, = first(dls.test_dl([root/'bears'/'black'/'1.jpg']))
with Hook(learn.model[2]) as hook:
    with torch.no_grad(): output = learn.model.eval()(x)
    act = hook.stored[0]
cam_map = torch.einsum('ck,kij->cij', learn.model[-1].weight, act)
""")
    block = made["ResBlock"](4, 4)
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(block(x), x) and len(list(block.parameters())) == 6  # starts as its shortcut
    assert made["cam_map"].shape[0] == 3
    assert torch.allclose(made["cam_map"].mean((1, 2)) + made["learn"].model[-1].bias, made["output"][0], atol=1e-5)


def test_a_learner_of_ones_own(book) -> None:
    made = book(
        """
files = get_image_files(root/'bears')
lbls = sorted({o.parent.name for o in files})
v2i = {v: i for i,v in enumerate(lbls)}
class Dataset:
    def __init__(self, fns): self.fns=fns
    def __len__(self): return len(self.fns)
    def __getitem__(self, i):
        im = Image.open(self.fns[i]).resize((16,16)).convert('RGB')
        return tensor(im).float()/255, tensor(v2i[self.fns[i].parent.name])
def collate(idxs, ds):
    xb,yb = zip(*[ds[i] for i in idxs])
    return torch.stack(xb),torch.stack(yb)
class OwnLoader:
    def __init__(self, ds, bs): self.ds,self.bs = ds,bs
    def __iter__(self):
        idxs = list(range_of(self.ds))
        random.shuffle(idxs)
        for k in range(0, len(idxs), self.bs): yield collate(idxs[k:k+self.bs], self.ds)
xb,yb = to_device(first(OwnLoader(Dataset(files), 4)))
class Parameter(Tensor):
    def __new__(self, x): return Tensor._make_subclass(Parameter, x, True)
    def __init__(self, *args, **kwargs): self.requires_grad_()
p = Parameter(tensor(3.))
for _ in tqdm(range(2), disable=True): math.sqrt(float(p))
os.getcwd(), json.dumps(lbls), partial(noop, 3)()
ds = TensorDataset(torch.randn(20, 3), torch.arange(20) % 2)
learn = Learner(DataLoaders(DataLoader(ds, 5, shuffle=True), DataLoader(ds, 10)), nn.Linear(3, 2), loss_func=F.cross_entropy, metrics=accuracy)
learn.fit(1)
""")
    assert made["xb"].shape == (4, 16, 16, 3) and made["p"].requires_grad


@pytest.mark.parametrize("hub", ["tabular", "text"])
def test_short_names_in_the_other_hubs(hub: str, tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(f"from coursekit.{hub}.all import *", names)
    (tmp_path / "a.csv").touch()
    got = eval("first(Path(at).ls()), tensor(array([1.5])), Tensor, range_of('ab'), noop(1), to_np(tensor(1)), SimpleNamespace, math, os, random, Module", {**names, "at": tmp_path})
    assert got[0].name == "a.csv" and got[1].dtype == torch.float32 and got[3] == [0, 1]


# ------------------------------------------------------------------------------------------------------- one thing each


def test_seeds() -> None:
    from coursekit.training.notation import set_seed

    def draws() -> tuple:
        set_seed(7)
        loaders = DataLoaders.from_dsets(range(8), range(4), bs=2, device="cpu", num_workers=0)
        return torch.rand(1).item(), np.random.rand(), random.random(), [b.x.tolist() for b in loaders.train]  # noqa: NPY002

    assert draws() == draws()


def test_a_list_stays_where_it_is_until_loaders_move_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops of chapter 4 have their weights on the CPU, also where there is a GPU; a learner then moves the same loader."""
    monkeypatch.setenv("COURSEKIT_DEVICE", "meta")
    items = [(torch.ones(2), torch.tensor(1))] * 4
    dl = DataLoader(items, batch_size=2)
    assert next(iter(dl)).x.device.type == dl.new(shuffle=True).device.type == "cpu"
    assert DataLoaders(dl, dl.new(shuffle=True)).valid.one_batch().x.device.type == "meta"
    assert DataLoaders(dl, dl, device="cpu").device.type == DataLoaders(DataLoader(items, device="cpu"), dl).device.type == "cpu"
    with raises(ValueError, "bs=2", "batch_size=3", "one of them"):
        DataLoader(items, 2, batch_size=3)
    with raises(TypeError, "batch_sise"):
        DataLoader(items, batch_sise=3)


def test_normalize_measures_the_training_images(root: Path, book) -> None:
    made = book("""
def dls_of(block): return DataBlock((block, CategoryBlock), get_items=get_image_files, splitter=GrandparentSplitter(), get_y=parent_label,
                                    batch_tfms=Normalize()).dataloaders(root/'digits', bs=8)
gray, color = dls_of(ImageBlock(PILImageBW)), dls_of(ImageBlock)
""")
    pixels = np.stack([np.asarray(Image.open(f)) for f in sorted((root / "digits" / "train").glob("*/*.png"))]) / 255
    (norm,) = [t for t in made["gray"].batch_tfms if isinstance(t, Normalize)]
    assert norm.mean == pytest.approx([pixels.mean()]) and norm.std == pytest.approx([pixels.std()])
    x = torch.cat([b.x for b in made["gray"].new(batch_tfms=[*made["gray"].batch_tfms]).train])
    assert x.mean().abs() < 1e-4 and x.std(unbiased=False) == pytest.approx(1, abs=1e-4)
    assert len(next(t for t in made["color"].batch_tfms if isinstance(t, Normalize)).mean) == 3
    with raises(ValueError, "Normalize", "(2, 1, 4, 4)"):
        Normalize().apply([torch.rand(2, 1, 4, 4)], ["image"])
    with raises(ValueError, "mean", "std"):
        Normalize((0.5,))
    with raises(ValueError, "all of one color", "pass mean and std"):
        made["DataBlock"]((ImageBlock, made["CategoryBlock"]), get_x=lambda n: Image.new("RGB", (4, 4)), get_y=lambda n: n % 2,
                          batch_tfms=Normalize()).dataloaders(range(10), bs=2)


@pytest.mark.parametrize("arch", ["coursenet", "efficientnet_lite0"])
@pytest.mark.parametrize("recipe", [VisionModel, UNetModel, PointModel])
def test_published_weights_see_the_same_in_a_gray_image(arch: str, recipe: Any) -> None:
    file, bodies, x = models.fetch_weights(arch), [], torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for n_in in (3, 1):
        model = recipe(arch, 2, n_in=n_in).build().eval()
        models.load_body_weights(models.body_of(model), arch, file)
        bodies.append(models.body_of(model))
        with torch.no_grad():
            assert model(x.expand(-1, n_in, -1, -1)).shape[0] == 2
    with torch.no_grad():
        color, gray = bodies[0](x.expand(-1, 3, -1, -1)), bodies[1](x)
    torch.testing.assert_close(gray, color, rtol=1e-3, atol=1e-3 * float(color.abs().max()))


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "mobilenet_v3_small", "squeezenet1_1", "convnext_tiny", "timm/convnext_atto"])
def test_bodies_for_gray_images(arch: str) -> None:
    body = create_body(arch, 1).eval()
    size = 224 if arch.startswith("timm") else 64
    with torch.no_grad():
        assert body(torch.rand(1, 1, size, size)).shape[1] == models.num_features_model(body)


@pytest.mark.parametrize("how", ["cls", "channels"])
def test_a_gray_model_is_trained_exported_and_predicts(root: Path, tmp_path: Path, book, how: str) -> None:
    block = ImageBlock(cls=PILImageBW) if how == "cls" else ImageBlock(channels=1)
    names = book("")
    dls = names["DataBlock"]((block, names["CategoryBlock"]), get_items=names["get_image_files"], splitter=names["GrandparentSplitter"](),
                             get_y=names["parent_label"], item_tfms=names["Resize"](32)).dataloaders(root / "digits", bs=8, device="cpu", seed=0)
    learn = vision_learner(dls, "coursenet", metrics=names["accuracy"], seed=0, device="cpu")
    (norm,) = [t for t in learn.dls.batch_tfms if isinstance(t, Normalize)]
    assert norm.mean == pytest.approx([sum(models.norm_stats("coursenet")[0]) / 3]) and len(norm.std) == 1
    learn.fine_tune(2, 1e-2)
    file = learn.dls.valid_ds.items[0]
    said = learn.predict(file)
    loaded = load_learner(learn.export(tmp_path / "gray.ck"), device="cpu")
    for value in (file, file.read_bytes(), Image.open(file), Image.open(file).convert("RGB"), np.asarray(Image.open(file))):
        torch.testing.assert_close(loaded.predict(value).probabilities, said.probabilities, rtol=1e-4, atol=1e-5)
    with raises(ValueError, "channels 1", "channels 3"):
        learn.dls = names["ImageDataLoaders"].from_folder(root / "digits", item_tfms=names["Resize"](32), bs=8, device="cpu")
    names["grad_cam"](learn, file).show()
    with raises(ValueError, "ImageBlock", "channels=1", "upload_and_predict"):
        learn.export(tmp_path / "gray.html")


def test_gray_images_as_targets_and_of_sixteen_bits(tmp_path: Path) -> None:
    block = ImageBlock(PILImageBW)
    assert (block.n_out, ImageBlock().n_out, block.blank().shape[0]) == (1, 3, 1)
    deep = Image.fromarray(np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8))
    deep.save(tmp_path / "deep.png")
    block.setup([tmp_path / "deep.png"])
    x = block.encode(tmp_path / "deep.png")
    assert x.shape == (1, 8, 8) and x.max() > 240 and block.decode(x).mode == "L"
    red = Image.new("RGB", (2, 2), "red")
    assert PILImageBW.create(red).getpixel((0, 0)) == round(0.299 * 255) and PILImage.create(red).mode == "RGB"
    for wrong, shown in ((PILMask, "PILMask"), ("L", "'L'")):
        with raises(ValueError, "ImageBlock", "cls", shown, "PILImageBW"):
            ImageBlock(cls=wrong)
    with raises(ValueError, "channels=2", "1 for gray"):
        ImageBlock(channels=2)
    with raises(ValueError, "n_in=4"):
        create_body("coursenet", 4)


def test_module_needs_no_super() -> None:
    from coursekit.training.notation import Module

    class Outer(Module):
        def __init__(self, n: int) -> None:
            self.inner = Inner(n)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    class Inner(Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(torch.ones(n))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.w

    import copy

    net = Outer(3)
    assert [n for n, _ in net.named_parameters()] == ["inner.w"] and net(torch.ones(3)).sum() == 3
    assert copy.deepcopy(net).state_dict().keys() == net.state_dict().keys()
    with pytest.raises(TypeError):
        Outer()


def test_conv_layer_starts_as_said() -> None:
    from coursekit.training.notation import ConvLayer, NormType

    x = torch.randn(4, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert ConvLayer(3, 5, stride=2)(x).shape == (4, 5, 5, 5) and ConvLayer(3, 5, 1, padding=1)(x).shape == (4, 5, 11, 11)
    assert not ConvLayer(3, 3, norm_type=NormType.BatchZero, act_cls=None)(x).any()
    assert [p.shape for p in ConvLayer(3, 5, norm_type=None).parameters()] == [(5, 3, 3, 3), (5,)]
    out = ConvLayer(3, 64, act_cls=None)(x).detach()
    assert out.mean().abs() < 1e-4 and math.isclose(out.std(unbiased=False), 1, abs_tol=1e-2)
    with raises(ValueError, "norm_type='group'", "NormType.Batch"):
        ConvLayer(3, 5, norm_type="group")


def test_folders_first() -> None:
    from coursekit.vision.collect import download_images

    with raises(ValueError, "download_images", "dest", "urls="):
        download_images(["https://example.org/a.jpg"], "images")  # type: ignore[arg-type]


def test_completion_shows_no_clutter() -> None:
    import coursekit.vision.all as hub

    assert not [n for n in hub.__all__ if n.startswith("_") or n == "lazy_module"]
    assert re.search(r"Path\.ls", hub.__doc__ or "") and "to_thumb" in (hub.__doc__ or "")
    undocumented = [n for n in ("tensor", "first", "to_np", "to_cpu", "set_seed", "noop", "ConvLayer", "HBox", "VBox", "subplots", "xresnet34", "Module")
                    if not getattr(hub, n).__doc__]
    assert not undocumented
    assert isinstance(Batch((torch.ones(1),)), Batch)
