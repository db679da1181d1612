"""Whole images through a student, and masks from boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segmenter import source_of, tiny_segmenter
from tiny_students import SIZES, rectangles, tiny_student

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.sam import SamSegmenter
from weakly.methods.base import ImageSource, Skipped
from weakly.methods.weaksam.detectors import Detections
from weakly.methods.weaksam.predictor import Inference, WeakSamPredictor, box_masks, join
from weakly.methods.weaksam.pseudo_masks import decode_boxes, masks_from_boxes
from weakly.segmentation import Segmentation, decode_masks, rle_areas
from weakly.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
INFERENCE = Inference(short=(64,), long=64)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[ImageSource]:
    data = rectangles(tmp_path_factory.mktemp("images"), masks=False)
    return [source_of(index, path) for index, path in enumerate(data.images)]


def predictor(kind: str, segmenter: SamSegmenter | None = None, inference: Inference = INFERENCE) -> WeakSamPredictor:
    return WeakSamPredictor(tiny_student(kind), VOCABULARY, inference, segmenter)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "rt_detr", "mask2former"])
def test_results_are_aligned_and_a_batch_changes_nothing(
    kind: str, segmenter: SamSegmenter, sources: list[ImageSource], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    model = predictor(kind, segmenter)
    results = list(model.predict([*sources[:3], source_of("bad", broken), *sources[3:]], batch_size=4))
    skipped = results.pop(3)
    assert isinstance(skipped, Skipped)
    assert skipped.image_id == "bad"
    found = [item for item in results if isinstance(item, Segmentation)]
    assert [item.size for item in found] == list(SIZES)
    assert sum(len(item) for item in found) > 0
    for source, item in zip(sources, found, strict=True):
        alone = next(iter(model.predict([source], batch_size=1)))
        assert isinstance(alone, Segmentation)
        assert np.array_equal(alone.labels, item.labels)
        assert np.allclose(alone.boxes, item.boxes, atol=1e-2)
        assert item.masks().shape == (len(item), *item.size)
        assert (rle_areas(item.rles) > 0).all()
        assert ((item.scores >= 0) & (item.scores <= 1)).all()
        assert all(origin["head"] == kind for origin in item.provenance)


def test_boxes_of_a_detector_stay_as_they_were_predicted(segmenter: SamSegmenter, sources: list[ImageSource]) -> None:
    model = predictor("faster_rcnn", segmenter)
    image = sources[2].read()
    (detections,) = model.detect([image])
    (result,) = model.predict_images([image])
    assert np.array_equal(result.boxes, detections.boxes)
    prompted = masks_from_boxes(segmenter, image, detections.boxes)
    for rle, made, origin in zip(result.rles, prompted.rles, result.provenance, strict=True):
        assert origin["box"] == "predicted"
        assert (origin["mask"] == "segmenter") == (rle["counts"] == made["counts"])
    filled = predictor("faster_rcnn", None, replace(INFERENCE, boxes_to_masks="box"))
    (boxes,) = filled.predict_images([image])
    assert np.array_equal(boxes.boxes, result.boxes)
    assert {origin["mask"] for origin in boxes.provenance} == {"box"}


def test_masks_from_boxes_are_those_of_single_prompts(segmenter: SamSegmenter, sources: list[ImageSource]) -> None:
    """One encoding and one batch give what one prompt after another gives."""
    image = read_image(sources[1].path)
    boxes = np.array([[4, 4, 30, 40], [10, 20, 47, 63], [0, 0, 48, 64]], np.float32)
    calls = []
    encode = segmenter.encode

    def counted(pixels: torch.Tensor) -> torch.Tensor:
        calls.append(len(pixels))
        return encode(pixels)

    segmenter.encode = counted  # type: ignore[method-assign]
    found = masks_from_boxes(segmenter, image, boxes)
    segmenter.encode = encode  # type: ignore[method-assign]
    assert calls == [1]
    embedding = segmenter.encode(segmenter.preprocess([image]))
    for row in range(3):
        alone = decode_boxes(segmenter, embedding, segmenter.frame(SIZES[1]), boxes[row : row + 1])
        differing = decode_masks(alone.rles, SIZES[1])[0] != decode_masks(found.rles, SIZES[1])[row]
        assert differing.mean() < 1e-3
        assert alone.ious[0] == pytest.approx(found.ious[row], abs=1e-4)
    for mask, box in zip(decode_masks(found.rles, SIZES[1]), found.boxes, strict=True):
        rows, columns = np.nonzero(mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert box.tolist() == expected
    assert masks_from_boxes(segmenter, image, boxes[:0]).rles == ()


def test_views_are_joined(sources: list[ImageSource]) -> None:
    """A mirrored image gives mirrored boxes; joined they are suppressed per category."""
    inference = Inference((48, 64), 64, flip=True, boxes_to_masks="box")
    (joined,) = predictor("faster_rcnn", None, inference).predict_images([sources[3].read()])
    assert 0 < len(joined) <= 100
    a = Detections(np.array([[0, 0, 10, 10]], np.float32), np.array([0]), np.array([0.5], np.float32))
    b = a._replace(scores=np.array([0.9], np.float32))
    other = a._replace(labels=np.array([1]))
    found = join([a, b, other], 0.5, 10)
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(join([a, b, other], 0.5, 1).labels) == 1


def test_a_mirrored_view_finds_the_mirror_image(sources: list[ImageSource]) -> None:
    model = predictor("faster_rcnn", None, Inference((64,), 64, boxes_to_masks="box"))
    image = sources[3].read()
    (mirrored,) = model._look([image[:, ::-1]], 64, mirrored=True)
    (plain,) = model._look([image], 64, mirrored=False)
    assert np.array_equal(mirrored.labels, plain.labels)
    assert np.allclose(mirrored.boxes[:, [2, 0]], image.shape[1] - plain.boxes[:, [0, 2]], atol=1e-3)


def test_box_masks_are_the_pixels_of_the_box() -> None:
    masks = decode_masks(box_masks(np.array([[2, 3, 5, 9], [-4, 0, 2.4, 1.6]], np.float32), (10, 8)), (10, 8))
    expected = np.zeros((2, 10, 8), bool)
    expected[0, 3:9, 2:5] = True
    expected[1, 0:2, 0:2] = True
    assert np.array_equal(masks, expected)
    assert box_masks(np.zeros((0, 4), np.float32), (3, 3)) == ()


def test_what_cannot_be_joined_or_prompted_is_refused(segmenter: SamSegmenter) -> None:
    with pytest.raises(UserError, match="mask_rcnn cannot join masks of 2 views"):
        predictor("mask_rcnn", segmenter, replace(INFERENCE, flip=True))
    with pytest.raises(ValueError, match="needs a segmenter"):
        predictor("faster_rcnn", None)
    with pytest.raises(UserError, match=r"inference\.short is \[80\] and inference\.long is 64"):
        Inference((80,), 64)
    assert list(predictor("mask_rcnn").predict([])) == []
