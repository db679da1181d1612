"""The two ways to score: parts, and one label per pixel."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from worked_example import BACKGROUND, PREDICTIONS, TRUTHS, VOCABULARY, A, B, C

from weakly.data.dataset import Dataset, Record
from weakly.evaluation.pairs import OfficialOptions, pair_binary
from weakly.evaluation.protocols import PROTOCOLS
from weakly.evaluation.scoring import PARTS, SEMANTIC
from weakly.evaluation.semantic import SEMANTIC_PROTOCOLS
from weakly.labels import Sample
from weakly.segmentation import Segmentation

VOID = 255


def as_map(rows: list[list[int]]) -> Segmentation:
    label_map = np.array(rows, np.uint8)
    return Segmentation(label_map.shape, label_map=label_map)


def test_each_way_has_its_protocols() -> None:
    for scoring, protocols in ((PARTS, PROTOCOLS), (SEMANTIC, SEMANTIC_PROTOCOLS)):
        evaluator = scoring.evaluator(VOCABULARY, 8, OfficialOptions())
        for index, (truth, prediction) in enumerate(zip(TRUTHS, PREDICTIONS, strict=True)):
            evaluator.update(truth, prediction, index)
        fields = evaluator.compute().record_fields()
        assert tuple(fields["protocols"]) == protocols and fields["images"] == 2
        assert ("miou" in fields) == (scoring is SEMANTIC)


def test_without_a_label_map_an_image_shows_no_part_or_is_unknown() -> None:
    samples = [Sample(i, Path(f"{i}.jpg"), (4, 4)) for i in range(2)]
    dataset = Dataset("d", "val", VOCABULARY, (Record(samples[0], label_map_path=Path("0.png")), Record(samples[1])))
    assert len(PARTS.known(dataset)) == 2
    assert len(SEMANTIC.known(dataset)) == 1


def test_images_are_ranked_by_the_categories_they_truly_show() -> None:
    """A: 1 of 2 right and one void pixel taken for A, which costs nothing; B is missed; C is only predicted."""
    truth = as_map([[A, A, VOID, B], [BACKGROUND, BACKGROUND, BACKGROUND, BACKGROUND]])
    prediction = as_map([[A, BACKGROUND, A, BACKGROUND], [C, BACKGROUND, BACKGROUND, BACKGROUND]])
    assert SEMANTIC.image_iou(truth, prediction, BACKGROUND) == pytest.approx([1 / 2, 0])
    assert len(SEMANTIC.image_iou(as_map([[BACKGROUND, VOID]]), as_map([[A, A]]), BACKGROUND)) == 0


def test_parts_are_ranked_by_their_binary_masks() -> None:
    for truth, prediction in zip(TRUTHS, PREDICTIONS, strict=True):
        expected = pair_binary(truth.category_masks(), prediction.category_masks()).iou
        assert np.array_equal(PARTS.image_iou(truth, prediction, BACKGROUND), expected)
    truth, prediction = as_map([[A, A, B]]), as_map([[A, B, BACKGROUND]])
    assert PARTS.image_iou(truth, prediction, BACKGROUND) == pytest.approx([1 / 2, 0]), "from label maps alone"
