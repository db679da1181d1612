"""`pair_binary` and `official_rowwise`: the intended metric and the released one, errors included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from segmentation_models_pytorch import metrics
from worked_example import NULL, PREDICTIONS, TRUTHS, A, B, C, block, segmentation

from weakly.errors import UserError
from weakly.evaluation.pairs import (
    OfficialImage,
    OfficialOptions,
    binary_scores,
    mean_figures,
    official_pairs,
    official_rowwise,
    pair_binary,
    rowwise_scores,
    to_frame,
)
from weakly.segmentation import Segmentation

Masks = NDArray[np.bool_]
SIDE = 1024
SQUARE = block((300, 599), (300, 599), (SIDE, SIDE))
ONE_BATCH = OfficialOptions(batch_size=2, world_size=1)


def random_masks(seed: int, count: int, size: tuple[int, int] = (24, 24)) -> tuple[Masks, Masks]:
    """Pairs of masks that overlap more or less, with empty rows and sometimes empty masks."""
    generator = np.random.default_rng(seed)
    truth = generator.random((count, *size)) < generator.random((count, 1, 1))
    flips = generator.random((count, *size)) < generator.random((count, 1, 1)) ** 2
    rows = generator.random((2, count, size[0], 1)) < generator.random((2, count, 1, 1))
    return truth & rows[0], (truth ^ flips) & rows[1]


def smp_scores(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], *, leading_axis: bool) -> tuple[float, float]:
    """The released call: 2-D masks; with a leading axis of 1 it means what it says."""
    output, target = (torch.from_numpy(np.ascontiguousarray(mask)).long() for mask in (prediction, truth))
    if leading_axis:
        output, target = output[None], target[None]
    stats = metrics.get_stats(output, target, mode="binary", threshold=0.5)
    return (
        float(metrics.iou_score(*stats, reduction="micro-imagewise")),
        float(metrics.accuracy(*stats, reduction="micro-imagewise")),
    )


def image(truth_index: int, *, null: bool = False) -> OfficialImage:
    """An image of the worked example."""
    return official_image(TRUTHS[truth_index], NULL if null else PREDICTIONS[truth_index], 8)


def official_image(truth: Segmentation, prediction: Segmentation, side: int) -> OfficialImage:
    own = official_rowwise(truth.category_masks(), prediction.category_masks(), side)
    return OfficialImage(truth, prediction, own)


def test_rowwise_equals_segmentation_models_on_2d_masks() -> None:
    truth, prediction = random_masks(0, 200)
    iou, accuracy = rowwise_scores(truth, prediction, 24)
    expected = np.array([smp_scores(t, p, leading_axis=False) for t, p in zip(truth, prediction, strict=True)])
    assert np.abs(iou - expected[:, 0]).max() <= 1e-6
    assert np.abs(accuracy - expected[:, 1]).max() <= 1e-6


def test_pair_binary_equals_segmentation_models_with_a_leading_axis() -> None:
    truth, prediction = random_masks(1, 200)
    truth[:, 0, 0] = prediction[:, 0, 0] = True  # Both categories are there; the empty ones have their own tests.
    scores = pair_binary(dict(enumerate(truth)), dict(enumerate(prediction)))
    # A leading axis of 1 makes the rows classes of one image, which micro-averaging pools.
    expected = np.array([smp_scores(t, p, leading_axis=True) for t, p in zip(truth, prediction, strict=True)])
    assert np.abs(scores.iou - expected[:, 0]).max() <= 1e-6
    assert np.abs(scores.accuracy - expected[:, 1]).max() <= 1e-6


SHIFTED_SIDEWAYS = block((300, 599), (450, 749), (SIDE, SIDE))
SAME_ROWS = block((300, 599), (650, 949), (SIDE, SIDE))
OTHER_ROWS = block((650, 949), (300, 599), (SIDE, SIDE))
NOTHING = np.zeros((SIDE, SIDE), bool)
SMALL, SMALL_SHIFTED = block((500, 509), (500, 509), (SIDE, SIDE)), block((505, 514), (500, 509), (SIDE, SIDE))


@pytest.mark.parametrize(
    ("truth", "prediction", "true_iou", "official_iou", "accuracy"),
    [
        pytest.param(SQUARE, SHIFTED_SIDEWAYS, 0.333, 0.805, 0.914, id="shifted 150 px sideways"),
        pytest.param(SQUARE, NOTHING, 0.0, 0.707, 0.914, id="empty"),
        pytest.param(SQUARE, SAME_ROWS, 0.0, 0.707, 0.828, id="disjoint, same rows"),
        pytest.param(SQUARE, OTHER_ROWS, 0.0, 0.414, 0.828, id="disjoint, other rows"),
        pytest.param(SMALL, SMALL_SHIFTED, 0.333, 0.990, 0.9999, id="10 x 10, shifted 5 px down"),
    ],
)
def test_what_the_row_wise_figure_hides(
    truth: Masks, prediction: Masks, true_iou: float, official_iou: float, accuracy: float
) -> None:
    assert binary_scores(truth[None], prediction[None])[0] == pytest.approx(true_iou, abs=5e-4)
    iou, right = rowwise_scores(truth[None], prediction[None], SIDE)
    assert iou == pytest.approx(official_iou, abs=5e-4)
    assert right == pytest.approx(accuracy, abs=5e-4 if accuracy < 0.99 else 5e-5)


def test_padding_rows_of_a_landscape_image_score_one() -> None:
    truth = np.ones((1, 375, 500), bool)
    iou, accuracy = rowwise_scores(truth, ~truth, SIDE)
    assert iou == pytest.approx(0.25)
    assert accuracy == pytest.approx(0.25)


@given(seed=st.integers(0, 10**6), height=st.integers(1, 40), width=st.integers(1, 40), side=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_weighted_counts_equal_the_frame_built_pixel_by_pixel(seed: int, height: int, width: int, side: int) -> None:
    truth, prediction = random_masks(seed, 3, (height, width))
    iou, accuracy = rowwise_scores(truth, prediction, side)
    framed_truth, framed_prediction = to_frame(truth, side), to_frame(prediction, side)
    assert framed_truth.shape == (3, side, side)
    common, union = (framed_truth & framed_prediction).sum(2), (framed_truth | framed_prediction).sum(2)
    assert iou == pytest.approx(np.where(union > 0, common / np.maximum(union, 1), 1.0).mean(1))
    assert accuracy == pytest.approx((framed_truth == framed_prediction).mean((1, 2)))


def test_frame_is_centred_with_the_odd_row_below() -> None:
    frame = to_frame(np.ones((1, 224, 300), bool), SIDE)[0]
    rows = np.flatnonzero(frame.any(1))
    assert (rows[0], SIDE - 1 - rows[-1]) == (129, 130)
    assert frame.all(0).sum() == 0
    assert frame[rows[0]].all()


def test_worked_example_pairs() -> None:
    first, second = (
        pair_binary(t.category_masks(), p.category_masks()) for t, p in zip(TRUTHS, PREDICTIONS, strict=True)
    )
    assert first.iou == pytest.approx([0.6, 0])
    assert second.iou == pytest.approx([0.5])
    figures = mean_figures((pairs.iou, pairs.accuracy) for pairs in (first, second))
    assert figures.miou == pytest.approx(0.3667, abs=1e-4)
    assert figures.macc == pytest.approx(0.5833, abs=1e-4)
    assert (first.matched, first.missed, first.false_positive) == (1, 1, 1)


def test_worked_example_official_terms() -> None:
    assert image(0).own.iou == pytest.approx([0.75, 0])
    assert image(1).own.iou == pytest.approx([0.875])


@pytest.mark.parametrize(
    ("nulls", "pairs", "miou", "macc"),
    [
        ((False, False), 3, 0.5417, 0.5833),
        ((True, False), 2, 0.0, 0.0),  # The good pair of the second image is lost.
        ((False, True), 2, 0.375, 0.4375),  # The miss of the second image is not counted.
        ((True, True), 0, None, None),
    ],
)
def test_null_images_vanish_from_an_official_batch(
    nulls: tuple[bool, bool], pairs: int, miou: float | None, macc: float | None
) -> None:
    images = [image(i, null=null) for i, null in enumerate(nulls)]
    scored = list(official_pairs(images, ONE_BATCH, 8))
    assert sum(len(iou) for iou, _ in scored) == pairs
    figures = mean_figures(scored).to_dict()
    assert figures == ({} if miou is None else pytest.approx({"miou": miou, "macc": macc}, abs=1e-4))


def test_predictions_move_up_past_a_null_image() -> None:
    """Null pattern 0, 1, 0, 0: image 1 scores 0, image 2 gets the masks of image 3, image 3 is dropped."""
    truth = segmentation({A: block((0, 1), (0, 7)), B: block((4, 5), (0, 7)), C: block((7, 7), (0, 7))})
    own = segmentation({A: block((0, 1), (0, 7)), B: block((4, 5), (0, 7))})
    # Another size: a 4 x 8 image fills rows 2 to 5 of the frame. It has A there in row 2, and no B.
    other = segmentation({A: block((0, 0), (0, 7), (4, 8))})
    images = [
        image(0),
        image(1, null=True),
        official_image(truth, own, 8),
        official_image(segmentation({A: block((0, 0), (0, 7), (4, 8))}), other, 8),
    ]
    scored = list(official_pairs(images, OfficialOptions(batch_size=4, world_size=1), 8))
    assert [iou.tolist() for iou, _ in scored[:2]] == [[0.75, 0.0], [0.0]]
    # A: rows 0, 1 and 2 are touched in vain; B: nothing is found in its 2 rows; C: not among the image's own labels.
    assert scored[2][0] == pytest.approx([5 / 8, 6 / 8, 0])
    assert scored[2][1] == pytest.approx([1 - 24 / 64, 1 - 16 / 64, 0])
    assert len(scored) == 3


def test_images_are_dealt_to_ranks_and_the_first_repeated() -> None:
    """Five images on two ranks: 0 2 4 and 1 3 0."""
    images = [image(0), image(1), image(1), image(1), image(1)]
    sizes = {
        rank: [len(iou) for iou, _ in official_pairs(images, OfficialOptions(2, 2, rank), 8)] for rank in (0, 1, "all")
    }
    assert sizes == {0: [2, 1, 1], 1: [1, 1, 2], "all": [2, 1, 1, 1, 1, 2]}


def test_more_ranks_than_images_repeat_images_as_often_as_needed() -> None:
    scored = list(official_pairs([image(0)], OfficialOptions(2, 4, "all"), 8))
    assert len(scored) == 4


@pytest.mark.parametrize(
    "wrong", [{"batch_size": 0}, {"world_size": 0}, {"rank": 4}, {"rank": -1}], ids=lambda wrong: next(iter(wrong))
)
def test_impossible_official_options_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match="official_rowwise"):
        OfficialOptions(**wrong)


def test_a_true_category_without_pixels_is_skipped_and_counted() -> None:
    scores = pair_binary({A: NOTHING, B: SQUARE}, {A: SQUARE, B: SQUARE})
    assert scores.iou.tolist() == [1.0]
    assert (scores.empty_truth, scores.false_positive) == (1, 0)


def test_a_predicted_mask_without_pixels_is_a_miss() -> None:
    scores = pair_binary({A: SQUARE}, {A: NOTHING, B: NOTHING})
    assert (scores.iou.tolist(), scores.accuracy.tolist()) == ([0.0], [0.0])
    assert (scores.matched, scores.missed, scores.false_positive) == (0, 1, 0)


def test_the_released_code_matches_by_label_even_without_pixels() -> None:
    scores = official_rowwise({A: SQUARE}, {A: NOTHING}, SIDE)
    assert scores.iou == pytest.approx([1 - 300 / 1024])


def test_a_perfect_prediction_scores_one_in_both() -> None:
    for scores in (pair_binary({A: SQUARE}, {A: SQUARE}), official_rowwise({A: SQUARE}, {A: SQUARE}, 512)):
        assert (scores.iou.tolist(), scores.accuracy.tolist()) == ([1.0], [1.0])
