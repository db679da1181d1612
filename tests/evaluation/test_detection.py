"""VOC's average precision, CorLoc and COCO's figures of boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.evaluation.coco_detection import coco_detection_ap
from weakly.evaluation.detection import (
    average_precision,
    box_iou,
    corloc,
    match_image,
    voc_detection_ap,
)
from weakly.evaluation.instance_scoring import InstanceEvaluator
from weakly.segmentation import Segmentation, encode_masks
from weakly.vocabulary import Vocabulary

ONE = Vocabulary.from_names(("cat",))
TWO = Vocabulary.from_names(("cat", "dog"))
SIZE = (60, 80)
HERE, THERE, AWAY = (0, 0, 10, 10), (20, 20, 40, 40), (50, 5, 70, 25)


def instances(*found: tuple[Any, ...], origin: dict[int, dict[str, Any]] | None = None) -> Segmentation:
    """(box, label, score) each; masks are the filled boxes."""
    masks = np.zeros((len(found), *SIZE), bool)
    for mask, ((x0, y0, x1, y1), *_) in zip(masks, found, strict=True):
        mask[round(y0) : round(y1), round(x0) : round(x1)] = True
    return Segmentation(
        SIZE,
        encode_masks(masks),
        np.array([item[0] for item in found], np.float32).reshape(-1, 4),
        np.array([item[1] for item in found], np.int64),
        np.array([item[2] if len(item) > 2 else 1 for item in found], np.float32),
        tuple((origin or {}).get(i, {}) for i in range(len(found))),
    )


def test_two_truths_ranked_right_wrong_right() -> None:
    """The worked example: 0.8485 over eleven recalls, 0.8333 as an area."""
    hits = np.array([True, False, True])
    assert average_precision(hits, 2, "11point") == pytest.approx(0.8485, abs=5e-5)
    assert average_precision(hits, 2, "area") == pytest.approx(0.8333, abs=5e-5)
    truth = instances((HERE, 0), (THERE, 0))
    prediction = instances((THERE, 0, 0.2), (HERE, 0, 0.9), (AWAY, 0, 0.5))
    scores = voc_detection_ap([(truth, prediction)], ONE)
    assert scores.figures["ap50"] == pytest.approx(0.8485, abs=5e-5)
    assert scores.per_class == [{"name": "cat", "ap50": scores.figures["ap50"], "truths": 2, "predictions": 3}]
    assert voc_detection_ap([(truth, prediction)], ONE, interpolation="area").figures["ap50"] == pytest.approx(5 / 6)


@given(st.lists(st.booleans(), max_size=30), st.integers(0, 20))
def test_area_is_the_sum_over_hits_of_the_best_later_precision(found: list[bool], missed: int) -> None:
    hits = np.array(found, bool)
    truths = int(hits.sum()) + missed
    score = average_precision(hits, truths, "area")
    if truths == 0:
        assert math.isnan(score)
        return
    precision = [hits[: k + 1].mean() for k in range(len(hits))]
    expected = sum(max(precision[k:]) for k in np.flatnonzero(hits)) / truths
    assert score == pytest.approx(expected)
    assert 0 <= score <= 1


def test_corners_past_the_last_pixel_make_the_legacy_iou() -> None:
    """Inclusive [0,0,9,9] and [5,0,14,9] overlap by 1/3 under VOC's + 1; [0,0,9,9] and [10,0,19,9] not at all."""
    overlaps = box_iou(np.array([[0, 0, 10, 10]]), np.array([[5, 0, 15, 10], [10, 0, 20, 10], [3, 3, 3, 3]]))
    assert overlaps[0].tolist() == pytest.approx([1 / 3, 0, 0])
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]


def test_a_second_prediction_of_the_same_box_is_wrong() -> None:
    truth = instances((HERE, 0))
    twice = instances((HERE, 0, 0.4), (HERE, 0, 0.9))
    assert voc_detection_ap([(truth, twice)], ONE).figures["ap50"] == 1, "the better one comes first"
    hits, counted = match_image(np.ones((2, 1)), np.array([0.4, 0.9]), np.array([False]), (0.5,))
    assert hits.tolist() == [[False, True]]
    assert counted.all()


def test_a_box_goes_to_what_it_overlaps_most_and_no_further() -> None:
    """VOC's rule, unlike COCO's: no second choice where the first is taken."""
    overlaps = np.array([[0.9, 0.6], [0.8, 0.7]])
    hits, _ = match_image(overlaps, np.array([0.9, 0.8]), np.zeros(2, bool), (0.5,))
    assert hits.tolist() == [[True, False]]


@given(st.integers(0, 2**32 - 1), st.integers(0, 6), st.integers(0, 4))
def test_matching_is_the_greedy_loop_of_the_definition(seed: int, predictions: int, truths: int) -> None:
    rng = np.random.default_rng(seed)
    overlaps = np.where(rng.random((predictions, truths)) < 0.3, -1, rng.random((predictions, truths)))
    scores, difficult = rng.choice([0.1, 0.5, 0.9], predictions), rng.random(truths) < 0.3
    hits, counted = match_image(overlaps, scores, difficult, (0.3, 0.6))
    for row, threshold in enumerate((0.3, 0.6)):
        taken: set[int] = set()
        for index in sorted(range(predictions), key=lambda i: -scores[i]):
            best = int(overlaps[index].argmax()) if truths else -1
            found = truths > 0 and overlaps[index, best] >= threshold
            assert counted[row, index] == (not (found and difficult[best]))
            assert hits[row, index] == (found and not difficult[best] and best not in taken)
            if found:
                taken.add(best)


def test_difficult_boxes_are_neither_missed_nor_found() -> None:
    truth = instances((HERE, 0), (THERE, 0), origin={1: {"difficult": True}})
    found = instances((THERE, 0, 0.9), (HERE, 0, 0.5))
    assert voc_detection_ap([(truth, found)], ONE).figures["ap50"] == 1
    assert voc_detection_ap([(truth, instances((HERE, 0, 0.5)))], ONE).figures["ap50"] == 1


def test_the_mean_is_over_categories_that_are_there_and_order_of_images_does_not_matter() -> None:
    pairs = [
        (instances((HERE, 0)), instances((HERE, 0, 0.3), (AWAY, 1, 0.9))),
        (instances((THERE, 0)), instances((AWAY, 0, 0.8))),
    ]
    scores = voc_detection_ap(pairs, TWO)
    assert math.isnan(scores.per_class[1]["ap50"])
    assert scores.figures["ap50"] == scores.per_class[0]["ap50"] == pytest.approx(6 / 11 * 0.5)
    assert scores.figures == voc_detection_ap(pairs[::-1], TWO).figures
    assert scores.images == 2
    assert math.isnan(voc_detection_ap([], TWO).figures["ap50"])


def test_corloc_asks_for_the_best_box_of_each_image_that_has_the_category() -> None:
    pairs = [
        (instances((HERE, 0)), instances((AWAY, 0, 0.2), (HERE, 0, 0.9), (HERE, 1, 1.0))),  # found; a dog is not there
        (instances((THERE, 0)), instances((AWAY, 0, 0.9), (THERE, 0, 0.8))),  # the best box is elsewhere
        (instances((THERE, 0), (HERE, 1), origin={1: {"difficult": True}}), instances((HERE, 1, 0.1))),
        (instances(), instances((HERE, 0, 1.0))),  # has no cat, so it does not count
    ]
    scores = corloc(pairs, TWO)
    assert [row["corloc"] for row in scores.per_class] == pytest.approx([1 / 3, 1])
    assert [row["images"] for row in scores.per_class] == [3, 1]
    assert scores.figures["corloc"] == pytest.approx(2 / 3)
    half = instances(((0, 0, 10, 5), 0))  # IoU exactly 0.5 is not enough
    assert corloc([(instances((HERE, 0)), half)], ONE).figures["corloc"] == 0


def test_perfect_predictions_are_perfect_under_every_protocol() -> None:
    truth = instances((HERE, 0), (THERE, 1), (AWAY, 1))
    coco = coco_detection_ap([(truth, truth), (instances(), instances())], TWO)
    assert coco.figures["ap"] == coco.figures["ap50"] == coco.figures["ap75"] == coco.figures["ar"] == pytest.approx(1)
    assert math.isnan(coco.figures["ap_large"])
    assert coco.images == 2
    assert [row["truths"] for row in coco.per_class] == [1, 2]
    assert voc_detection_ap([(truth, truth)], TWO).figures["ap50"] == 1
    assert corloc([(truth, truth)], TWO).figures["corloc"] == 1


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_where_boxes_do_not_touch_coco_and_voc_agree(seed: int) -> None:
    """With truths far apart both matchings are one; 101 recalls differ from the area by at most 0.02."""
    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(4):
        corners = [(x, y) for x in (0, 40) for y in (0, 30)]
        truth = [((x, y, x + 20, y + 20), int(rng.integers(2))) for x, y in corners if rng.random() < 0.7]
        found = [
            ((x + s, y, x + 20 + s, y + 20), int(rng.integers(2)), float(rng.random()))
            for x, y in corners
            for s in rng.choice([0, 3, 15], 2)
        ]
        pairs.append((instances(*truth), instances(*found)))
    coco, voc = coco_detection_ap(pairs, TWO), voc_detection_ap(pairs, TWO, interpolation="area")
    for a, b in zip(coco.per_class, voc.per_class, strict=True):
        assert a["ap50"] == pytest.approx(b["ap50"], abs=0.02, nan_ok=True)
        assert (a["truths"], a["predictions"]) == (b["truths"], b["predictions"])


def test_coco_crowds_are_no_misses_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    truth = instances((HERE, 0), (THERE, 0), origin={1: {"crowd": True}})
    found = instances((HERE, 0, 0.5), ((20, 20, 30, 30), 0, 0.9), ((30, 30, 40, 40), 0, 0.8))
    assert coco_detection_ap([(truth, found)], ONE).figures["ap"] == pytest.approx(1)
    empty = coco_detection_ap([(truth, instances())], ONE)
    assert empty.figures["ap"] == 0
    assert capsys.readouterr().out == ""


class TestAllBoxesTogether:
    """Precision and recall of boxes that were chosen, whatever their scores."""

    def details(self, *pairs: tuple[Segmentation, Segmentation]) -> dict[str, float]:
        evaluator = InstanceEvaluator(TWO)
        for truth, found in pairs:
            evaluator.update(truth, found)
        return evaluator.compute().details["all_boxes"]

    def test_a_worked_example(self):
        """Of three boxes two are right, of four true ones two are found; a lower score changes nothing."""
        first = (instances((HERE, 0), (THERE, 0)), instances((HERE, 0, 0.9), (AWAY, 0, 0.8)))
        second = (instances((HERE, 1), (AWAY, 0)), instances((HERE, 1, 0.1)))
        assert self.details(first, second) == {"precision": pytest.approx(2 / 3), "recall": 0.5}

    def test_difficult_truth_is_neither_missed_nor_an_error(self):
        truth = instances((HERE, 0), (THERE, 0), origin={1: {"difficult": True}})
        assert self.details((truth, instances((HERE, 0), (THERE, 0)))) == {"precision": 1.0, "recall": 1.0}

    def test_nothing_predicted_has_no_precision(self):
        found = self.details((instances((HERE, 0)), instances()))
        assert math.isnan(found["precision"]) and found["recall"] == 0
