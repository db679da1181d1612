"""Average precision of instance masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from weakly.evaluation.instances import THRESHOLDS, coco_instance_ap, mask_iou, voc_instance_ap
from weakly.segmentation import Segmentation, encode_masks
from weakly.vocabulary import Vocabulary

NAMES = Vocabulary.from_names(("cat", "dog"))
SIZE = (40, 60)


def bar(start: int, length: int) -> np.ndarray:
    """Ten rows of ``length`` columns."""
    mask = np.zeros(SIZE, bool)
    mask[5:15, start : start + length] = True
    return mask


def segmentation(*found: tuple[np.ndarray, int, float]) -> Segmentation:
    masks = np.stack([mask for mask, *_ in found]) if found else np.zeros((0, *SIZE), bool)
    return Segmentation.from_masks(masks, [item[1] for item in found], [item[2] for item in found])


def test_mask_iou_is_that_of_the_pixels() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random((3, *SIZE)) < 0.4, rng.random((5, *SIZE)) < 0.6
    expected = (a[:, None] & b[None]).sum((2, 3)) / (a[:, None] | b[None]).sum((2, 3))
    assert np.allclose(mask_iou(encode_masks(a), encode_masks(b)), expected)
    assert mask_iou((), encode_masks(b)).shape == (0, 5)
    nothing = encode_masks(np.zeros((1, *SIZE), bool))
    assert mask_iou(nothing, nothing).tolist() == [[0]]


def test_each_threshold_judges_for_itself() -> None:
    """Ten columns found by 4, 6 and 8 of them: IoU 0.4, 0.6 and 0.8 of three instances."""
    truth = segmentation((bar(0, 10), 0, 1), (bar(20, 10), 0, 1), (bar(40, 10), 0, 1))
    found = segmentation((bar(0, 8), 0, 0.9), (bar(20, 6), 0, 0.8), (bar(40, 4), 0, 0.7))
    scores = voc_instance_ap([(truth, found)], NAMES)
    assert scores.figures == pytest.approx({"ap25": 1, "ap50": 2 / 3, "ap70": 1 / 3, "ap75": 1 / 3})
    assert math.isnan(scores.per_class[1]["ap25"])


def test_boxes_play_no_part() -> None:
    """A frame and its hole have the same box but no pixel in common."""
    frame = bar(10, 20)
    frame[7:13, 12:28] = False
    hole = bar(10, 20) & ~frame
    pair = (segmentation((frame, 0, 1)), segmentation((hole, 0, 1)))
    assert voc_instance_ap([pair], NAMES).figures["ap25"] == 0
    assert coco_instance_ap([pair], NAMES).figures["ap50"] == 0


def test_coco_and_voc_agree_where_instances_are_apart() -> None:
    rng = np.random.default_rng(1)
    pairs = []
    for _ in range(6):
        truth = [(bar(20 * i, 10), int(rng.integers(2)), 1.0) for i in range(3)]
        found = [(bar(20 * i, int(rng.integers(2, 11))), int(rng.integers(2)), float(rng.random())) for i in range(3)]
        pairs.append((segmentation(*truth), segmentation(*found)))
    coco, voc = coco_instance_ap(pairs, NAMES), voc_instance_ap(pairs, NAMES)
    for name in ("ap50", "ap75"):
        assert coco.figures[name] == pytest.approx(voc.figures[name], abs=0.02)
    assert 0 < coco.figures["ap"] < coco.figures["ap50"]


def test_a_perfect_prediction_is_perfect_at_every_threshold() -> None:
    truth = segmentation((bar(0, 10), 0, 1), (bar(20, 10), 1, 1))
    assert set(voc_instance_ap([(truth, truth)], NAMES).figures.values()) == {1.0}
    assert len(THRESHOLDS) == 4
    assert coco_instance_ap([(truth, truth)], NAMES).figures["ap"] == pytest.approx(1)
