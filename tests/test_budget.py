"""What a star import of a hub brings: at most 250 names, and no module that can wait until it is needed."""

from __future__ import annotations

import importlib
import json
import sys

import pytest
from helpers import module_name, modules, run

MAX_NAMES = 250
HUBS = [f"coursekit.{module_name(p)}" for p in modules() if p.name == "all.py"]
LATER = ("pandas", "matplotlib", "sklearn", "scipy", "ipywidgets", "anywidget", "IPython", "tqdm.notebook", "timm", "yaml")
# torch itself loads some of these in some versions; only what coursekit adds counts.
PROBE = """
import json, sys
import torch, torchvision
before, said = set(sys.modules), {}
for hub in sys.argv[1:]:
    names = {}
    exec(f"from {hub} import *", names)
    said[hub] = sorted(n for n in names if not n.startswith("__")), sorted(set(sys.modules) - before)
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def brought() -> dict[str, tuple[list[str], list[str]]]:
    """Hub -> its names, and the modules that are loaded after it and those before it in the list."""
    return json.loads(run([sys.executable, "-c", PROBE, *HUBS]).stdout.splitlines()[-1])


@pytest.mark.parametrize("hub", HUBS)
def test_names(brought: dict[str, tuple[list[str], list[str]]], hub: str) -> None:
    names, _ = brought[hub]
    assert 40 <= len(names) <= MAX_NAMES, f"{len(names)} names, at most {MAX_NAMES}"
    private = [n for n in names if n.startswith("_")]
    assert not private, private


@pytest.mark.parametrize("hub", HUBS)
def test_what_can_wait_is_not_loaded(brought: dict[str, tuple[list[str], list[str]]], hub: str) -> None:
    early = sorted(m for m in brought[hub][1] for later in LATER if m == later or m.startswith(f"{later}."))
    assert not early, f"the star import loads {early}"


def test_the_names_people_know_are_there() -> None:
    known = """untar_data URLs course_data get_image_files DataBlock ImageBlock CategoryBlock RandomSplitter
        GrandparentSplitter parent_label RegexLabeller ImageDataLoaders Resize RandomResizedCrop aug_transforms
        Normalize imagenet_stats vision_learner cnn_learner Learner load_learner ClassificationInterpretation PILImage
        error_rate accuracy resnet18 resnet34""".split()
    missing = set(known) - set(importlib.import_module("coursekit.vision.all").__all__)
    assert not missing, missing


def test_the_names_people_know_for_tables_are_there() -> None:
    known = """untar_data URLs course_data TabularDataLoaders TabularPandas tabular_learner Categorify FillMissing Normalize RandomSplitter
        CategoryBlock RegressionBlock add_datepart cont_cat_split range_of accuracy rmse load_learner Learner pd np TabularClassifier""".split()
    missing = set(known) - set(importlib.import_module("coursekit.tabular.all").__all__)
    assert not missing, missing
