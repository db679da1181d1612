"""Raw Pascal-Part annotations become the published layout: painted in order, merged by the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from raw_pascal import region, structs, whole, write_voc2010
from scipy.io import savemat

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.pascal_part_raw import convert_pascal_part
from weakly.errors import UserError

VOID = 255


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write annotations and images; returns the two folders."""

    def write(**annotations: list[dict[str, Any]]) -> tuple[Path, Path]:
        root = write_voc2010(tmp_path / "VOC2010", train=annotations)
        return root / "Annotations_Part", root / "JPEGImages"

    return write


DOG = region(slice(0, 10), slice(0, 10))
HEAD = region(slice(0, 5), slice(0, 5))
EYE = region(slice(1, 2), slice(1, 2))


def test_merged_names_in_the_order_of_the_annotation(raw, tmp_path: Path) -> None:
    dog = whole("dog", DOG, head=HEAD, leye=EYE, lfleg=region(slice(8, 10), slice(0, 1)),
                rbleg=region(slice(8, 10), slice(3, 4)))  # fmt: skip
    car = whole("car", region(slice(4, 20), slice(4, 30)), wheel_2=region(slice(18, 20), slice(5, 7)))
    table = whole("table", region(slice(0, 2), slice(20, 30)))
    folder, images = raw(a=[dog, car, table])
    done = convert_pascal_part(folder, images, tmp_path / "out", "train")
    assert (done.images, done.merges_version, done.problems) == (1, 1, ())

    dataset = open_dataset("pascal-part-116", tmp_path / "out", "train")
    index, labels = dataset.vocabulary.index, dataset.label_map(0)
    assert labels[0, 0] == index("dog's head") and labels[1, 1] == index("dog's eye"), "the eye lies on the head"
    assert labels[9, 0] == labels[9, 3] == index("dog's leg")
    assert labels[18, 5] == index("car's wheel")
    assert labels[4, 4] == VOID, "the car covers the head's corner and has no part there"
    assert labels[7, 1] == VOID and labels[0, 25] == dataset.vocabulary.background
    assert check("pascal-part-116", tmp_path / "out", "train", workers=1).problems == ()


def test_parts_of_one_object_alone_and_images_without_objects(raw, tmp_path: Path) -> None:
    folder, images = raw(a=[whole("dog", DOG, head=HEAD)], b=[whole("sofa", DOG)])
    savemat(folder / "c.mat", {"anno": {"imname": "c", "objects": structs([])}})
    (images / "c.jpg").write_bytes((images / "a.jpg").read_bytes())
    assert convert_pascal_part(folder, images, tmp_path / "out", "val").images == 3
    dataset = open_dataset("pascal-part-116", tmp_path / "out", "val")
    assert [int((dataset.label_map(i) < 116).sum()) for i in range(3)] == [25, 0, 0]


def test_names_that_the_table_lacks_are_reported_and_not_painted(raw, tmp_path: Path) -> None:
    folder, images = raw(a=[whole("cat", DOG, muzzle=HEAD, head=EYE), whole("cat", DOG, muzzle=HEAD)])
    done = convert_pascal_part(folder, images, tmp_path / "out", "train")
    (problem,) = done.problems
    assert (done.images, problem.check, problem.severity) == (1, "unknown-part", "warning")
    assert "'muzzle' of a cat (2)" in problem.message and problem.file.endswith("a.mat")
    assert set(np.unique(open_dataset("pascal-part-116", tmp_path / "out", "train").label_map(0))) == {VOID, 116}


def test_one_bad_file_is_one_problem(raw, tmp_path: Path) -> None:
    small = whole("dog", np.ones((4, 4), np.uint8))
    folder, images = raw(a=[whole("dog", DOG)], b=[whole("unicorn", DOG)], c=[small])
    (folder / "d.mat").write_bytes(b"nothing")
    (folder / "e.mat").write_bytes((folder / "a.mat").read_bytes()[:-40])
    for stem in "de":
        (images / f"{stem}.jpg").write_bytes((images / "a.jpg").read_bytes())
    savemat(folder / "f.mat", {"other": 1})
    done = convert_pascal_part(folder, images, tmp_path / "out", "train")
    assert done.images == 1
    assert [problem.index for problem in done.problems] == ["b", "c", "d", "e", "f"]
    assert len(open_dataset("pascal-part-116", tmp_path / "out", "train")) == 1


def test_only_the_images_of_the_split_and_the_same_bytes_again(raw, tmp_path: Path) -> None:
    folder, images = raw(a=[whole("dog", DOG)], b=[whole("dog", DOG)])
    out = tmp_path / "out"
    for _ in range(2):
        convert_pascal_part(folder, images, out, "val", stems=["b", "b"])
        written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    assert {path.name for path in written} == {"b.jpg", "b.png"}
    times = {path: path.stat().st_mtime_ns for path in written}
    convert_pascal_part(folder, images, out, "val", stems=["b"])
    assert {path: path.stat().st_mtime_ns for path in written} == times
    assert (out / "images/val/b.jpg").read_bytes() == (images / "b.jpg").read_bytes()


def test_paths_and_folders(raw, tmp_path: Path) -> None:
    folder, images = raw(a=[whole("dog", DOG)])
    with pytest.raises(UserError, match="no folder .*nowhere"):
        convert_pascal_part(tmp_path / "nowhere", images, tmp_path / "out", "train")
    with pytest.raises(UserError, match="is a path"):
        convert_pascal_part(folder, images, tmp_path / "out", "../train")
    with pytest.raises(UserError, match="no annotation"):
        convert_pascal_part(images, images, tmp_path / "out", "train")
    done = convert_pascal_part(folder, images, tmp_path / "out", "train", stems=["../a"])
    assert "leads outside" in done.problems[0].message
    assert not (tmp_path / "out").exists()
