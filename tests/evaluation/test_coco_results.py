"""COCO results of any program: aligned with the data set, checked before they are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from weakly.data.dataset import Dataset, Record
from weakly.errors import UserError
from weakly.evaluation.coco_results import read_coco_results
from weakly.labels import Sample
from weakly.segmentation import Segmentation, compressed_runs
from weakly.vocabulary import Category, Vocabulary

VOCABULARY = Vocabulary((Category("Head", source_id=3), Category("Tail", source_id=9)))
SIZE = (4, 6)
HALF = np.arange(24).reshape(SIZE) % 6 < 3


@pytest.fixture
def dataset() -> Dataset:
    samples = [Sample(image_id, Path(f"/images/{image_id}.jpg"), SIZE) for image_id in (11, "b", 12)]
    return Dataset("toy", "val", VOCABULARY, tuple(Record(sample) for sample in samples))


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def result(**changes: Any) -> dict[str, Any]:
    """A valid result with some fields changed; a field changed to None is left out."""
    given = {"image_id": 11, "category_id": 9, "segmentation": rle(HALF), "score": 0.5, **changes}
    return {name: value for name, value in given.items() if value is not None}


def rle(mask: np.ndarray) -> dict[str, Any]:
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def test_results_come_back_in_the_order_of_the_data_set(tmp_path: Path, dataset: Dataset) -> None:
    content = [result(image_id=12, category_id=3), result(), result(image_id=12, score=None)]
    first, empty, last = read_coco_results(written(tmp_path, content), dataset)
    assert len(empty) == 0
    assert empty.size == SIZE
    assert first.labels.tolist() == [1]
    assert (last.labels.tolist(), last.scores.tolist()) == ([0, 1], [1.0 * 0.5, 1.0])
    assert np.array_equal(first.masks()[0], HALF)


def test_what_this_package_writes_is_read_back(tmp_path: Path, dataset: Dataset) -> None:
    made = Segmentation.from_masks(np.stack([HALF, ~HALF]), [0, 1], [0.25, 0.75], [{"query": 4}, {"query": 7}])
    back = read_coco_results(written(tmp_path, made.to_coco("b", VOCABULARY)), dataset)[1]
    assert np.array_equal(back.masks(), made.masks())
    assert back.scores.tolist() == [0.25, 0.75]
    assert np.array_equal(back.boxes, made.boxes)


@pytest.mark.parametrize(
    "segmentation",
    [{"size": [4, 6], "counts": [0, 12, 12]}, [[0, 0, 3, 0, 3, 4, 0, 4]]],
    ids=["uncompressed", "polygon"],
)
def test_every_coco_form_of_a_mask_is_read(tmp_path: Path, dataset: Dataset, segmentation: Any) -> None:
    first = read_coco_results(written(tmp_path, [result(segmentation=segmentation)]), dataset)[0]
    assert np.array_equal(first.masks()[0], HALF)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_id": 99}, "image_id 99 is not in the data set"),
        ({"image_id": [1]}, r"image_id \[1\] is not in the data set"),
        ({"category_id": 0}, "category_id 0 is not in the vocabulary"),
        ({"category_id": None}, "category_id None is not in the vocabulary"),
        ({"segmentation": rle(np.ones((3, 6), bool))}, r"mask of size \[3, 6\] for an image of size \[4, 6\]"),
        ({"segmentation": None}, "boxes alone cannot be scored"),
        ({"segmentation": {"size": [4, 6]}}, "neither run lengths nor polygons"),
        ({"segmentation": {"size": [4, 6], "counts": [3, 4]}}, "run lengths are damaged"),
        ({"segmentation": {"size": [4, 6], "counts": [30, -6]}}, "run lengths are damaged"),
        ({"segmentation": {"size": [4, 6], "counts": "T"}}, "run lengths are damaged"),
        ({"segmentation": {"size": [4, 6], "counts": "!!"}}, "run lengths are damaged"),
        ({"segmentation": {"size": [4, 6], "counts": "o" * 9 + "0"}}, "run lengths are damaged"),
        ({"segmentation": {"size": [4, 6], "counts": "0ooo1"}}, "run lengths are damaged"),
        ({"segmentation": [[0, 0, 1, 1]]}, "no polygon ring"),
        ({"segmentation": [[0, 0, 1e12, 0, 1, 1]]}, "polygon coordinate"),
        ({"segmentation": [["a", 0, 1, 0, 1, 1]]}, "neither run lengths nor polygons"),
        ({"score": "high"}, "score 'high' is not a number"),
    ],
)
def test_a_wrong_result_names_file_and_index(
    tmp_path: Path, dataset: Dataset, wrong: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=rf"results\.json: results\[1\]: .*{message}|results\[1\]: {message}"):
        read_coco_results(written(tmp_path, [result(), result(**wrong)]), dataset)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is not JSON"),
        ({"annotations": []}, "is neither a list nor a COCO document"),
        ([7], r"results\[0\]: is not an object"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, dataset: Dataset, content: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_coco_results(written(tmp_path, content), dataset)


def test_a_missing_file_is_refused(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_coco_results(tmp_path / "none.json", dataset)


def test_compressed_runs_are_those_of_the_mask() -> None:
    generator = np.random.default_rng(0)
    for density in (0.0, 0.001, 0.1, 0.5, 1.0):
        mask = generator.random((97, 203)) < density
        runs = compressed_runs(rle(mask)["counts"])
        values = np.arange(len(runs)) % 2 == 1
        assert np.array_equal(np.repeat(values, runs).reshape(203, 97).T, mask)


def test_a_whole_document_is_matched_by_file_name(tmp_path: Path, dataset: Dataset) -> None:
    """What `weakly predict` writes numbers its images for itself; other images of the folder are no error."""
    images = [
        {"id": 1, "file_name": "photos/12.jpg"},
        {"id": 11, "file_name": "b.jpg"},
        {"id": 3, "file_name": "x.jpg"},
    ]
    document = {"images": images, "annotations": [result(image_id=1), result(image_id=11), result(image_id=1)]}
    assert [len(one) for one in read_coco_results(written(tmp_path, document), dataset)] == [0, 1, 2]
    unknown = {"images": images, "annotations": [result(image_id=3)]}
    with pytest.raises(UserError, match=r"results\[0\]: image_id 3 is not in the data set"):
        read_coco_results(written(tmp_path, unknown), dataset)


def test_two_images_of_one_name_need_ids(tmp_path: Path, dataset: Dataset) -> None:
    twins = [Record(Sample(i, Path(f"/{i}/same.jpg"), SIZE)) for i in (1, 2)]
    document = {"images": [{"id": 1, "file_name": "same.jpg"}], "annotations": []}
    with pytest.raises(UserError, match="two images named same.jpg"):
        read_coco_results(written(tmp_path, document), Dataset("toy", "val", VOCABULARY, tuple(twins)))
