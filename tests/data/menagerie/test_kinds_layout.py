"""The layout of parts of kinds: "horse's head", every kind in every split, the scenes of the other layouts."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from weakly import cli
from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.check_files import label_map_agreement
from weakly.data.menagerie import KINDS, PART_NAMES, PARTS_OF, render_scene
from weakly.data.menagerie.layouts import WRITERS
from weakly.data.menagerie.scene import BUILDERS
from weakly.data.menagerie.write_kinds import KIND_CLASSES, write_kinds
from weakly.data.object_parts import object_table
from weakly.errors import UserError

SEED, SIZE = 5, 96
SPLITS = {"train": 6, "val": 3}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kinds") / "world"
    write_kinds(root, SPLITS, seed=SEED, size=SIZE, workers=1)
    return root


def content(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_class_is_a_part_that_its_kind_is_drawn_with() -> None:
    drawn = {
        f"{name}'s {shape.part.lower()}"
        for name, kind in KINDS.items()
        for seed in range(8)
        for shape in BUILDERS[kind.builder](np.random.default_rng(seed), kind.proportions).shapes
    }
    assert {name for name, _ in KIND_CLASSES} == drawn
    assert len(KIND_CLASSES) == sum(len(PARTS_OF[kind.super_category]) for kind in KINDS.values()) - 1
    assert "ape's tail" not in drawn


def test_categories_have_their_kind_for_object(root: Path) -> None:
    vocabulary = open_dataset("menagerie", root, "train").vocabulary
    assert tuple((c.name, c.object) for c in vocabulary.categories) == KIND_CLASSES
    assert object_table(vocabulary)[0] == tuple(sorted(KINDS))
    assert ("horse's head", "horse") in KIND_CLASSES
    assert ("sedan's side mirror", "sedan") in KIND_CLASSES


@pytest.mark.parametrize(("split", "first"), [("train", 0), ("val", 10_000_000)])
def test_maps_name_part_and_kind_of_every_pixel_of_the_scene(root: Path, split: str, first: int) -> None:
    dataset = open_dataset("menagerie", root, split)
    vocabulary, kinds = dataset.vocabulary, sorted(KINDS)
    assert len(dataset) == SPLITS[split]
    for position in range(len(dataset)):
        scene = render_scene(SEED, first + position, SIZE)
        names = [
            f"{scene.objects[p.object_index].kind}'s {PART_NAMES[p.category].split(' ', 1)[1].lower()}"
            for p in scene.parts
        ]
        classes = [vocabulary.index(name) for name in names]
        labels = dataset.truth(position).to_label_map(vocabulary.background)
        assert np.array_equal(labels, np.array([vocabulary.background, *classes])[scene.part_map])
        owners = np.array([len(kinds), *(kinds.index(o.kind) for o in scene.objects)])
        found = dataset.object_map(position)
        assert np.array_equal(found, owners[scene.object_map])
        assert found.dtype == np.uint16
        assert dataset[position].boxes.labels.tolist() == classes
        assert label_map_agreement(dataset, position) > 0.95


@pytest.mark.parametrize("split", SPLITS)
def test_data_check_is_clean(root: Path, split: str) -> None:
    report = check("menagerie", root, split, workers=1)
    assert report.exit_code == 0
    assert [p for p in report.problems if p.check != "more-parts-than-queries"] == []


def test_images_are_those_of_the_other_layouts_and_every_call_writes_the_same_bytes(root: Path, tmp_path: Path) -> None:
    WRITERS["partimagenet"](tmp_path / "parts", {"train": 2}, seed=SEED, size=SIZE, workers=1)
    for path in (tmp_path / "parts/images/train").iterdir():
        assert path.read_bytes() == (root / "images/train" / path.name).read_bytes()
    words = ["--layout", "kinds", "--train", "6", "--val", "3", "--seed", str(SEED), "--size", str(SIZE)]
    assert cli.main(["data", "make", str(tmp_path / "again"), *words, "--workers", "1"]) == 0
    assert content(tmp_path / "again") == content(root)


def test_few_kinds_keep_all_categories_and_another_layout_is_another_world(tmp_path: Path) -> None:
    write_kinds(tmp_path, {"train": 1}, seed=1, size=64, kinds=["sedan"], workers=1)
    dataset = open_dataset("menagerie", tmp_path, "train")
    assert len(dataset.vocabulary) == len(KIND_CLASSES)
    assert {dataset.vocabulary.categories[label].object for label in dataset[0].boxes.labels} == {"sedan"}
    with pytest.raises(UserError, match="layout 'kinds', not 'partimagenet'"):
        WRITERS["partimagenet"](tmp_path, {"train": 1}, seed=1, size=64, kinds=["sedan"], workers=1)
