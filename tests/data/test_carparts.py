"""The real car-parts photographs, where they are present (WEAKLY_DATA names the folder with carparts/)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from weakly.data.carparts import read_carparts
from weakly.data.check import check
from weakly.errors import UserError

ROOT = Path(os.environ.get("WEAKLY_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "carparts"
needs_photographs = pytest.mark.skipif(
    not ROOT.is_dir(), reason=f"no car-parts photographs in {ROOT}; name their parent folder with WEAKLY_DATA"
)


@needs_photographs
def test_splits_have_the_documented_sizes_and_do_not_overlap() -> None:
    ids = {s: {x.image_id for x in read_carparts(ROOT, s)} for s in ("train", "val", "trainval", "test")}
    assert {split: len(found) for split, found in ids.items()} == {
        "train": 360,
        "val": 40,
        "trainval": 400,
        "test": 100,
    }
    assert ids["train"].isdisjoint(ids["val"])
    assert ids["train"] | ids["val"] == ids["trainval"]


@needs_photographs
def test_the_eighteen_parts_of_a_car() -> None:
    dataset = read_carparts(ROOT, "test")
    assert len(dataset.vocabulary) == 18
    assert "_background_" not in dataset.vocabulary.names
    assert {category.object for category in dataset.vocabulary.categories} == {"car"}
    assert sum(len(record.truth) for record in dataset.records) == 811
    assert dataset.image(0).shape == (*dataset[0].size, 3)


@needs_photographs
def test_every_test_photograph_is_sound() -> None:
    report = check("carparts", ROOT, "test", workers=1)
    assert report.exit_code == 0
    assert report.counts == {"box-mask-mismatch": 1}
    wheels = next(c for c in report.categories if c.name == "wheel")
    assert (wheels.boxes, wheels.masks) == (108, 108)


def test_wrong_split_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'dev'; choose one of train, val, trainval, test"):
        read_carparts(tmp_path, "dev")
    with pytest.raises(UserError, match=r"no folder .*trainingset"):
        read_carparts(tmp_path, "train")
