"""Paper Streets and Pets in company: the same bytes for a seed, masks that agree with the images, splits and tables that agree with the files."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from coursekit.data.download import STAND_INS, URLs, archive_name, stand_in_title
from coursekit.samples.company import LABELS, draw_company, make_pets_in_company
from coursekit.samples.perspective import BUILDING, CAR, CODES, EYE, FENCE, POLE, ROAD, SIGN, SKY, VOID, WEATHERS, Street, View
from coursekit.samples.sprites import Affine, Canvas, Pen
from coursekit.samples.streets import FRAMES, SIZE, STREETS, draw_street, make_paper_streets, make_street


def rows(file: Path) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_paper_streets(tmp_path_factory.mktemp("data") / "camvid", streets=12, frames=2, n_workers=1)


@pytest.fixture(scope="module")
def company(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pets_in_company(tmp_path_factory.mktemp("data") / "pascal_2007", n_train=60, n_test=10, n_workers=1)


# ---------------------------------------------------------------------------------------------------- both


def test_both_are_registered_under_the_names_of_their_archives() -> None:
    names = [archive_name(url) for url in (URLs.CAMVID, URLs.PASCAL_2007)]
    assert [STAND_INS[n].rpartition(":")[2] for n in names] == ["make_paper_streets", "make_pets_in_company"]
    assert [stand_in_title(n) for n in names] == ["Paper Streets", "Pets in company"]


@pytest.mark.parametrize(("make", "bad"), [(make_paper_streets, {"streets": 0}), (make_paper_streets, {"frames": -1}), (make_pets_in_company, {"n_train": 0}),
                                           (make_pets_in_company, {"n_test": -3})])
def test_no_images_are_refused_before_anything_is_written(make, bad: dict[str, int], tmp_path: Path) -> None:
    (name, value), = bad.items()
    with pytest.raises(ValueError, match=rf"{name}={value}\b.*pass"):
        make(tmp_path / "new", **bad)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("make", [make_paper_streets, make_pets_in_company])
def test_a_full_folder_is_refused(make, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        make(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# ---------------------------------------------------------------------------------------------------- Paper Streets


def test_the_files_of_camvid(streets: Path) -> None:
    assert (streets / "codes.txt").read_text().split() == ["Sky", "Building", "Pole", "Road", "Pavement", "Tree", "SignSymbol", "Fence", "Car", "Pedestrian",
                                                           "Bicyclist", "Void"]
    images = sorted((streets / "images").iterdir())
    assert len(images) == 24 and STREETS * FRAMES >= 600
    assert [p.name for p in sorted((streets / "labels").iterdir())] == [f"{p.stem}_P.png" for p in images]
    for p in images:
        with Image.open(p) as image, Image.open(streets / "labels" / f"{p.stem}_P.png") as mask:
            assert (image.mode, mask.mode, image.size, mask.size) == ("RGB", "L", SIZE, SIZE) and SIZE[0] * 3 == SIZE[1] * 4
            assert set(np.unique(np.asarray(mask))) <= set(range(len(CODES)))


def test_whole_streets_are_for_validation_each_in_another_weather(streets: Path) -> None:
    table = rows(streets / "streets.csv")
    assert [r["file"] for r in table] == sorted(p.name for p in (streets / "images").iterdir())
    valid = (streets / "valid.txt").read_text().split()
    chosen = {f.split("_")[0] for f in valid}
    assert sorted(valid) == [r["file"] for r in table if r["file"].split("_")[0] in chosen]
    assert len(chosen) == 2 and len({r["weather"] for r in table if r["file"] in valid}) == 2
    for group in (table[:12], table[12:]):  # six streets, every weather once
        assert Counter(r["weather"] for r in group) == dict.fromkeys(WEATHERS, 2)
    times = [int(r["file"][:-4].split("_")[1]) for r in table]
    assert all(b - a == 30 for a, b in zip(times[::2], times[1::2]))  # a second apart, as in the archive


def test_the_recorded_shares_are_those_of_the_masks(streets: Path) -> None:
    for r in rows(streets / "streets.csv"):
        mask = np.asarray(Image.open(streets / "labels" / f"{r['file'][:-4]}_P.png"))
        assert [float(r[c]) for c in CODES] == pytest.approx(np.bincount(mask.ravel(), minlength=len(CODES)) / mask.size, abs=6e-5)


def test_every_code_has_its_share() -> None:
    scenes = [draw_street(make_street(k), 5) for k in range(0, STREETS, 2)]
    share = np.mean([[s.attributes[c] for c in CODES] for s in scenes], axis=0)
    assert share.argmax() == ROAD and 0.2 < share[ROAD] < 0.4
    assert (share[[SKY, BUILDING]] > 0.08).all() and 0.03 < share[CAR] < 0.15
    assert (share > 0.007).all(), dict(zip(CODES, share))  # none so rare that nothing can be learned
    assert share[POLE] < 0.04 and share[SIGN] < 0.05 and share[VOID] < 0.1  # and the small ones are small, as they are


def test_neighbors_look_alike_and_streets_do_not() -> None:
    a, b, other = (np.asarray(draw_street(make_street(k), f).mask) for k, f in ((3, 5), (3, 6), (9, 5)))
    assert (a == b).mean() > (a == other).mean() + 0.05


@pytest.mark.parametrize("weather", [w for w in WEATHERS if w != "snow"])
def test_the_colors_are_those_of_the_mask(weather: str) -> None:
    """Sky is one gradual sheet and road nearly one color: inside each of them colors differ less than between them."""
    street = next(s for s in map(make_street, range(STREETS)) if s.weather == weather)
    scene = draw_street(street, 4)
    image, mask = np.asarray(scene.image).astype(float), np.asarray(scene.mask)
    road, sky = image[mask == ROAD], image[mask == SKY]
    gap = np.linalg.norm(np.median(road, 0) - np.median(sky, 0))
    spread = max(np.median(np.linalg.norm(v - np.median(v, 0), axis=1)) for v in (road, sky))
    assert gap > 1.3 * spread  # at dusk, both are dark
    edge = np.hypot(*(np.abs(np.diff(image.mean(2), axis=k))[: SIZE[1] - 1, : SIZE[0] - 1] for k in (0, 1)))
    border = (np.diff(mask, axis=0)[:, :-1] != 0) | (np.diff(mask, axis=1)[:-1] != 0)
    assert edge[border].mean() > 2 * edge[~border].mean()  # the mask changes where the image does


def test_a_layer_labels_the_pixels_it_covers_and_no_others() -> None:
    canvas = Canvas(60, 40, np.random.default_rng(0))
    before = canvas.rgb.copy()
    Pen(canvas, Affine(), FENCE).paint(np.array([(10, 10), (40, 10), (40, 30), (10, 30)]), "#203040")
    changed = np.abs(canvas.rgb - before).max(0) > 127
    assert (changed == (canvas.labels == FENCE)).all() and changed.sum() == 600


@settings(max_examples=40, deadline=None)
@given(s=st.floats(2, 50), d=st.floats(-20, 20), up=st.floats(0, 10), k=st.floats(1.1, 3))
def test_perspective(s: float, d: float, up: float, k: float) -> None:
    street = Street("0001AA", "A", ("shops", "shops"), 3.5, 0.0, None, "summer", "day", 0.0, 1.0, 0.5, False, 0)
    view = View(Canvas(240, 180, np.random.default_rng(0)), street, at=0.0, d=0.0, horizon=90.0)
    near, far = view.see([(s, d, up), (k * s, d, up)])
    assert near - (120, 90) == pytest.approx(k * (far - (120, 90)), abs=1e-6)  # k times as far is one k-th of the size
    assert view.see([(s, d, EYE)])[0, 1] == pytest.approx(90)  # the height of the eye is on the horizon


# ---------------------------------------------------------------------------------------------------- Pets in company


def test_tables_name_the_files_that_are_there(company: Path) -> None:
    train, test = rows(company / "train.csv"), rows(company / "test.csv")
    assert (list(train[0]), list(test[0])) == (["fname", "labels", "is_valid"], ["fname", "labels"])
    for part, table in (("train", train), ("test", test)):
        assert [r["fname"] for r in table] == sorted(p.name for p in (company / part).iterdir())
        for r in table:
            labels = r["labels"].split(" ")
            assert labels and set(labels) <= set(LABELS) and len(set(labels)) == len(labels)
    assert Counter(r["is_valid"] for r in train) == {"False": 48, "True": 12}


def test_labels_are_those_of_the_boxes_that_count(company: Path) -> None:
    labels = {r["fname"]: set(r["labels"].split()) for r in rows(company / "train.csv") + rows(company / "test.csv")}
    seen = 0
    for part in ("train", "valid", "test"):
        known = json.loads((company / f"{part}.json").read_text())
        names, found = {c["id"]: c["name"] for c in known["categories"]}, {i["file_name"]: set() for i in known["images"]}
        images = {i["id"]: i for i in known["images"]}
        for a in known["annotations"]:
            (x, y, w, h), image = a["bbox"], images[a["image_id"]]
            assert 0 <= x < x + w <= image["width"] and 0 <= y < y + h <= image["height"] and 0 < a["area"] <= w * h
            if not a["ignore"]:
                found[image["file_name"]].add(names[a["category_id"]])
        assert found == {f: labels[f] for f in found}
        seen += len(found)
    assert seen == len(labels) == 70


def test_labels_go_together_as_in_life() -> None:
    n = 120
    many = [draw_company(k) for k in range(n)]
    count = Counter(label for c in many for label in c.labels)
    assert count.most_common(1)[0][0] == "person" and set(count) == set(LABELS) and min(count.values()) > 5
    assert count["person"] > 3 * min(count.values())  # unbalanced
    sizes = Counter(len(c.labels) for c in many)
    assert set(sizes) <= {1, 2, 3, 4, 5} and sum(k * v for k, v in sizes.items()) / n > 1.6 and sizes[1] > n // 8
    scene = {label: {c.scene for c in many if label in c.labels} for label in ("boat", "sofa", "car")}
    assert scene == {"boat": {"beach"}, "sofa": {"room"}, "car": {"street"}}
    areas = [o["area"] / (c.image.width * c.image.height) for c in many for o in c.objects]
    assert 0.01 < min(areas) < 0.05 and max(areas) > 0.25  # all sizes, but none too small to be seen
    assert sum(o["ignore"] for c in many for o in c.objects) < 0.02 * len(areas)  # and few are hidden
    cut = [o for c in many for x, y, w, h in [o["bbox"] for o in c.objects] for o in [x == 0 or x + w == c.image.width] if o]
    assert len(cut) > n // 10  # and some are cut off by the edge


def test_a_box_is_around_what_can_be_seen() -> None:
    one = next(c for c in map(draw_company, range(100)) if len(c.objects) == 1 and c.labels == ["car"])
    (x, y, w, h), = (o["bbox"] for o in one.objects)
    assert one.objects[0]["area"] > 0.4 * w * h
