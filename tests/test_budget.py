"""How much `from coursekit.vision.all import *` brings: names, and modules that must wait until they are needed."""

from __future__ import annotations

import json
import sys

import pytest
from helpers import run

MAX_NAMES = 250
LATER = ("pandas", "matplotlib", "sklearn", "scipy", "ipywidgets", "anywidget", "IPython", "tqdm.notebook", "timm")
# torch itself loads some of these in some versions; only what coursekit adds counts.
PROBE = """
import json, sys
import torch, torchvision
before = set(sys.modules)
names = {{}}
exec("from {hub} import *", names)
print(json.dumps([sorted(n for n in names if not n.startswith("__")), sorted(set(sys.modules) - before)]))
"""


@pytest.fixture(scope="module")
def brought() -> tuple[list[str], set[str]]:
    done = run([sys.executable, "-c", PROBE.format(hub="coursekit.vision.all")])
    names, loaded = json.loads(done.stdout.splitlines()[-1])
    return names, set(loaded)


def test_names(brought: tuple[list[str], set[str]]) -> None:
    names, _ = brought
    assert 40 <= len(names) <= MAX_NAMES, f"{len(names)} names, at most {MAX_NAMES}"
    private = [n for n in names if n.startswith("_")]
    assert not private, private


def test_the_names_people_know_are_there(brought: tuple[list[str], set[str]]) -> None:
    known = """untar_data URLs course_data get_image_files DataBlock ImageBlock CategoryBlock RandomSplitter
        GrandparentSplitter parent_label RegexLabeller ImageDataLoaders Resize RandomResizedCrop aug_transforms
        Normalize imagenet_stats vision_learner cnn_learner Learner load_learner ClassificationInterpretation PILImage
        error_rate accuracy resnet18 resnet34""".split()
    missing = [n for n in known if n not in brought[0]]
    assert not missing, missing


@pytest.mark.parametrize("module", LATER)
def test_loads_later(module: str, brought: tuple[list[str], set[str]]) -> None:
    early = sorted(m for m in brought[1] if m == module or m.startswith(f"{module}."))
    assert not early, f"importing coursekit.vision.all loads {early[:3]}"
