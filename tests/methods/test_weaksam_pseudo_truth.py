"""Adaptive pseudo truth: the worked values, and what holds of every list of detections."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.errors import UserError
from weakly.labels import Sample
from weakly.methods.weaksam.detectors import Detections
from weakly.methods.weaksam.pseudo_truth import (
    PseudoTruth,
    PseudoTruthSettings,
    pseudo_truth,
    shares_inside,
    write_pseudo_truth,
)
from weakly.vocabulary import Category, Vocabulary

TAGS = np.array([True, True, False])


def found(rows: list[tuple[list[float], int, float]]) -> Detections:
    """From (x, y, width, height), label, score."""
    boxes = np.array([[x, y, x + w, y + h] for (x, y, w, h), _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.array([r[1] for r in rows], np.int64), np.array([r[2] for r in rows], np.float32))


def choose(rows: list[tuple[list[float], int, float]], tags: Any = TAGS, **settings: Any) -> PseudoTruth:
    return pseudo_truth(found(rows), np.asarray(tags), PseudoTruthSettings(**settings))


def kept(truth: PseudoTruth) -> list[tuple[int, float]]:
    return [(int(label), round(float(score), 4)) for label, score in zip(truth.labels, truth.scores, strict=True)]


def apart(scores: list[float], label: int, row: float = 0) -> list[tuple[list[float], int, float]]:
    return [([40 * index, row, 20, 20], label, score) for index, score in enumerate(scores)]


WORKED = [*apart([0.9, 0.5, 0.25, 0.1], 0), *apart([0.02, 0.015, 0.001], 1, 200)]
NEAR_TWINS = [([0, 0, 100, 100], 0, 0.6), ([3, 3, 100, 100], 0, 0.7)]
NESTED = [([10, 10, 20, 20], 0, 0.9), ([0, 0, 100, 100], 0, 0.8)]


def test_the_released_code_divides_by_the_range_alone() -> None:
    assert kept(choose(WORKED, mode="released")) == [
        (0, 1.125), (0, 0.625), (0, 0.3125), (1, 1.0526), (1, 0.7895)
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["adaptive", "published", "released", "top1", "threshold"])
def test_every_rule_tells_what_the_detector_said(mode: str) -> None:
    truth = choose(WORKED, mode=mode, threshold=0.01)
    said = {(x, y, x + w, y + h): np.float32(score) for (x, y, w, h), _, score in WORKED}
    assert [said[tuple(box)] for box in truth.boxes.tolist()] == truth.confidence.tolist()


@pytest.mark.parametrize("mode", ["adaptive", "published"])
def test_min_max_drops_the_worst(mode: str) -> None:
    assert kept(choose(WORKED, mode=mode)) == [(0, 1.0), (0, 0.5), (1, 1.0), (1, 0.7368)]


def test_the_range_norm_is_that_of_the_released_code() -> None:
    assert kept(choose(WORKED, norm="range")) == kept(choose(WORKED, mode="released"))


@pytest.mark.parametrize("mode", ["adaptive", "published", "released", "top1"])
@pytest.mark.parametrize("score", [0.9, 0.01, 0.0])
def test_a_single_box_is_kept(mode: str, score: float) -> None:
    assert len(choose(apart([score], 1), mode=mode).boxes) == 1


def test_near_twins_delete_each_other_in_the_released_code_alone() -> None:
    released = choose(NEAR_TWINS, mode="released", tau_score=0)
    assert not len(released.boxes) and released.missing.tolist() == [0, 1]
    robust = choose(NEAR_TWINS, tau_score=0)
    assert robust.boxes.tolist() == [[3, 3, 103, 103]], "the better one"


def test_a_small_box_in_a_large_one() -> None:
    large, small = [0, 0, 100, 100], [10, 10, 30, 30]
    assert choose(NESTED, mode="released").boxes.tolist() == [large]
    assert choose(NESTED, tau_score=0).boxes.tolist() == [large]
    assert choose(NESTED, tau_score=0.3).boxes.tolist() == [small], "the other one normalises to 0"


def test_categories_do_not_interact() -> None:
    rows = [*NESTED, *[(box, 1, score) for box, _, score in reversed(NESTED)]]
    for mode in ("adaptive", "published", "released"):
        both = choose(rows, mode=mode, tau_score=0.3)
        alone = [choose(NESTED, mode=mode, tau_score=0.3), choose(rows[2:], mode=mode, tau_score=0.3)]
        np.testing.assert_array_equal(both.boxes, np.concatenate([each.boxes for each in alone]))


def test_the_order_of_the_list_matters_to_the_released_code_alone() -> None:
    rows = apart([0.9, 0.5, 0.1], 0)
    assert len(choose(rows, mode="released", tau_score=0.5).boxes) == 2
    assert len(choose(rows[::-1], mode="released", tau_score=0.5).boxes) == 3, "the first is kept unconditionally"
    assert kept(choose(rows, tau_score=0.5)) == kept(choose(rows[::-1], tau_score=0.5))


def test_top1_and_threshold() -> None:
    assert kept(choose(WORKED, mode="top1")) == [(0, 0.9), (1, 0.02)]
    fixed = choose(WORKED, mode="threshold", threshold=0.25)
    assert kept(fixed) == [(0, 0.9), (0, 0.5), (0, 0.25)] and fixed.missing.tolist() == [1]


@pytest.mark.parametrize("mode", ["adaptive", "published", "released", "top1", "threshold"])
def test_tags_without_detections_are_reported(mode: str) -> None:
    truth = choose([([0, 0, 9, 9], 2, 0.9), ([5, 5, 0, 9], 0, 0.8)], mode=mode)
    assert not len(truth.boxes), "an untagged category and a box without area"
    assert truth.missing.tolist() == [0, 1] and truth.boxes.shape == (0, 4)
    assert choose([], mode=mode).missing.tolist() == [0, 1]


@st.composite
def detections(draw: st.DrawFn) -> list[tuple[list[float], int, float]]:
    """Few distinct numbers, so that ties, twins and nested boxes abound."""
    side = st.integers(1, 12)
    row = st.tuples(
        st.tuples(st.integers(0, 4), st.integers(0, 4), side, side).map(lambda b: [float(v) for v in b]),
        st.integers(0, 2),
        st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5, 0.9]),
    )
    return draw(st.lists(row, max_size=14))


@settings(max_examples=50, deadline=None)
@given(detections(), st.sampled_from([0.0, 0.3, 1.0]), st.sampled_from(["minmax", "range"]), st.randoms())
def test_the_robust_form_visits_boxes_one_by_one(rows, tau, norm, random) -> None:
    """The definition, box by box, as the whole-array form must have it; the order of the list leaves no trace."""
    truth = choose(rows, tau_score=tau, norm=norm)
    wanted: list[tuple[Any, ...]] = []
    for label in (0, 1):
        of_label = found([row for row in rows if row[1] == label])
        if not len(of_label.scores):
            continue
        scores, boxes = of_label.scores.astype(float), of_label.boxes.astype(float)
        span = np.ptp(scores)
        values = np.ones(len(scores)) if span == 0 else (scores - (scores.min() if norm == "minmax" else 0)) / span
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        share = shares_inside(boxes)
        left = {i for i in range(len(scores)) if values[i] >= tau or scores[i] == scores.max()}
        for i in sorted(left, key=lambda i: (area[i], scores[i], boxes[i].tolist())):
            if len(left) > 1 and any(share[i, k] >= 0.85 for k in left - {i}):
                left.remove(i)
        wanted += [(label, *boxes[i], values[i]) for i in left]
    rounded = [
        (int(lab), *map(float, box), float(v))
        for lab, box, v in zip(truth.labels, truth.boxes, truth.scores, strict=True)
    ]
    np.testing.assert_allclose(sorted(rounded), sorted(wanted), atol=1e-6)
    shuffled = random.sample(rows, len(rows))
    for one, other in zip(truth, choose(shuffled, tau_score=tau, norm=norm), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=50, deadline=None)
@given(detections(), st.sampled_from(["adaptive", "published", "released", "top1", "threshold"]))
def test_survivors_are_finite_tagged_detections(rows, mode) -> None:
    truth = choose(rows, mode=mode)
    boxes = {tuple(box) for box in found(rows).boxes.tolist()}
    assert all(tuple(box) in boxes for box in truth.boxes.tolist())
    assert np.isfinite(truth.scores).all() and set(truth.labels.tolist()) <= {0, 1}
    assert sorted({*truth.labels.tolist(), *truth.missing.tolist()}) == [0, 1]
    tagged = {label for _, label, _ in rows} & {0, 1}
    if mode in ("adaptive", "top1"):
        assert set(truth.labels.tolist()) == tagged, "no category that was found vanishes"


def test_the_file_is_a_coco_document_with_scores(tmp_path: Path) -> None:
    vocabulary = Vocabulary(
        (Category("cat", source_id=17), Category("dog", source_id=18), Category("cow", source_id=90))
    )
    samples = [Sample(7, Path("/somewhere/a.jpg"), (300, 400)), Sample(9, Path("/somewhere/b.jpg"), (30, 40))]
    path = tmp_path / "truth.json"
    write_pseudo_truth(path, [choose(WORKED), choose([])], samples, vocabulary)
    document = json.loads(path.read_text())
    assert document["images"][0] == {"id": 7, "file_name": "a.jpg", "height": 300, "width": 400}
    assert [row["id"] for row in document["annotations"]] == [1, 2, 3, 4]
    first = document["annotations"][0]
    assert first["bbox"] == [0, 0, 20, 20] and first["area"] == 400 and first["image_id"] == 7 and first["score"] == 1
    assert [row["category_id"] for row in document["annotations"]] == [17, 17, 18, 18]
    assert document["categories"][2] == {"id": 90, "name": "cow"} and str(tmp_path) not in path.read_text()


@pytest.mark.parametrize("wrong", [{"tau_score": 1.5}, {"tau_inside": 0}, {"threshold": -1}])
def test_wrong_settings_name_their_remedy(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.*give"):
        PseudoTruthSettings(**wrong)
