"""The programs that books and notes print, on real photos: word for word but for the picture size of the second one."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from helpers import run, tool
from torchvision.models import get_model

SIX_LINES = """
from coursekit.vision.all import *
path = untar_data(URLs.PETS)/'images'

def is_cat(x): return x[0].isupper()
dls = ImageDataLoaders.from_name_func(
    path, get_image_files(path), valid_pct=0.2, seed=42,
    label_func=is_cat, item_tfms=Resize(224))

learn = vision_learner(dls, resnet34, metrics=error_rate)
learn.fine_tune(1)
"""

CHECK = """
import torch
print('vocab', dls.vocab, len(dls.train_ds), len(dls.valid_ds))
photo = dls.valid_ds.items[0]
is_it, _, probs = learn.predict(PILImage.create(photo))
assert is_it in (False, True) and torch.allclose(probs, learn.get_preds().preds[0], atol=1e-5)
print('agrees')
"""

VERSION_1 = """
from coursekit.v1 import *
bs = 8
path = untar_data(URLs.PETS)
path.ls()
path_img = path/'images'
fnames = get_image_files(path_img)
fnames[:5]
np.random.seed(2)
pat = r'/([^/]+)_\\d+.jpg$'
data = ImageDataBunch.from_name_re(path_img, fnames, pat, ds_tfms=get_transforms(), size=32, bs=bs).normalize(imagenet_stats)
data.show_batch(rows=3, figsize=(7,6))
print(data.classes)
len(data.classes), data.c

learn = create_cnn(data, models.resnet34, metrics=error_rate)
learn.fit_one_cycle(4)
learn.save('stage-1')

interp = ClassificationInterpretation.from_learner(learn)
losses, idxs = interp.top_losses()
len(data.valid_ds) == len(losses) == len(idxs)
interp.plot_top_losses(9, figsize=(15,11))
interp.plot_confusion_matrix(figsize=(12,12), dpi=60)
interp.most_confused(min_val=2)

learn.unfreeze()
learn.fit_one_cycle(1)
learn.load('stage-1')
learn.lr_find()
learn.recorder.plot()
learn.unfreeze()
learn.fit_one_cycle(2, max_lr=slice(1e-6, 1e-4))
print('done')
"""


@pytest.fixture(scope="module")
def few_photos(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A mirror with 28 of the real photos of four breeds, and a cached file in the place of the published weights."""
    base = tmp_path_factory.mktemp("few")
    small = base / "mirror" / "oxford-iiit-pet.tgz"
    small.parent.mkdir()
    with tarfile.open(mirror / "oxford-iiit-pet.tgz") as whole, tarfile.open(small, "w:gz") as part:
        left = dict.fromkeys(("Abyssinian", "Siamese", "pug", "beagle"), 7)
        for member in whole:
            breed = Path(member.name).name.rpartition("_")[0]
            if member.name.endswith(".jpg") and left.get(breed, 0):
                left[breed] -= 1
                part.addfile(member, whole.extractfile(member))
                if not any(left.values()):
                    break
    digest = hashlib.sha256(small.read_bytes()).hexdigest()
    (small.parent / "SHA256SUMS").write_text(f"{digest}  {small.name}\n")
    checkpoints = base / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    with torch.random.fork_rng():
        torch.save(get_model("resnet34", weights=None).state_dict(), checkpoints / "resnet34-b627a593.pth")
    return {"COURSEKIT_MIRROR": str(small.parent), "COURSEKIT_HOME": str(base / "home"), "TORCH_HOME": str(base / "torch"),
            "MPLBACKEND": "Agg"}


def test_six_lines(few_photos: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "six.py").write_text(SIX_LINES + CHECK)
    said = run([sys.executable, str(tmp_path / "six.py")], env=few_photos).stdout
    assert "vocab [False, True] 23 5" in said and said.rstrip().endswith("agrees"), said


def test_version_1(few_photos: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "v1.py").write_text(VERSION_1)
    said = run([sys.executable, str(tmp_path / "v1.py")], env=few_photos).stdout
    assert "['Abyssinian', 'Siamese', 'beagle', 'pug']" in said and said.rstrip().endswith("done"), said


@pytest.fixture(scope="module")
def few_cats_and_dogs(mirror: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 200 of the real cats and dogs to learn from, 40 held out, and ten more in `new`."""
    base = tmp_path_factory.mktemp("dogscats")
    wanted = {("train", kind): 100 for kind in ("cats", "dogs")} | {("valid", kind): 25 for kind in ("cats", "dogs")}
    with tarfile.open(mirror / "dogscats.tgz") as whole:
        for member in whole:
            _, side, kind, *name = (*Path(member.name).parts, "", "", "")[:4]
            if not member.isfile() or wanted.get((side, kind), 0) == 0:
                continue
            wanted[side, kind] -= 1
            fresh = side == "valid" and wanted[side, kind] < 5
            target = base / ("new" if fresh else f"dogscats/{side}/{kind}") / name[0]
            target.parent.mkdir(parents=True, exist_ok=True)
            file = whole.extractfile(member)
            assert file is not None
            target.write_bytes(file.read())
            if not any(wanted.values()):
                break
    return base


def test_train_and_predict_as_typed(few_cats_and_dogs: Path, home: Path) -> None:
    """`coursekit train` on real photos, then `coursekit predict` on ten that the training never saw."""
    env = {"COURSEKIT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    said = run([tool("coursekit"), "train", "dogscats", "--size", "96", "--epochs", "1"], cwd=few_cats_and_dogs, env=env).stdout
    assert "cats 120, dogs 120" in said and "200 for training, 40 for validation" in said, said
    found = re.search(r"(?m)^error rate [\d.]+%: (\d+) of 40 validation images wrong$", said)
    assert found and int(found[1]) < 8, f"two classes, and more than 20% wrong:\n{said}"
    assert said.splitlines()[-1].startswith("next: coursekit predict model.ck dogscats/valid/"), said

    photos = sorted(str(p.relative_to(few_cats_and_dogs)) for p in (few_cats_and_dogs / "new").glob("*.jpg"))
    told = run([tool("coursekit"), "predict", "model.ck", *photos, "dogscats/valid", "--json"], cwd=few_cats_and_dogs, env=env).stdout
    found_in = {x["file"]: x["prediction"] for x in map(json.loads, told.splitlines())}
    assert set(photos) <= set(found_in) and len(photos) == 10 and len(found_in) == 50 and set(found_in.values()) == {"cats", "dogs"}
    wrong = [file for file, kind in found_in.items() if file not in photos and not Path(file).name.startswith(kind[:3])]
    assert len(wrong) == int(found[1]), "the file predicts otherwise than the training said"
