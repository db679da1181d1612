"""The evaluator: all four protocols in one pass, whatever the order and the number of ranks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worked_example import BACKGROUND, NULL, PREDICTIONS, TRUTHS, VOCABULARY, A, B, block, segmentation

from weakly.errors import UserError
from weakly.evaluation.pairs import OfficialOptions
from weakly.evaluation.protocols import PROTOCOLS, Evaluator, Scores
from weakly.evaluation.records import Record
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

Pair = tuple[Segmentation, Segmentation]


def evaluator(side: int = 8, official: OfficialOptions | None = None) -> Evaluator:
    return Evaluator(VOCABULARY, side, official or OfficialOptions(batch_size=2, world_size=1))


def score(pairs: list[Pair]) -> Scores:
    result = evaluator()
    for truth, prediction in pairs:
        result.update(truth, prediction)
    return result.compute()


def random_pairs(seed: int, count: int) -> list[Pair]:
    """Small images of two sizes; some null, some without truth."""
    generator = np.random.default_rng(seed)
    pairs = []
    for number in range(count):
        size = (6, 8) if number % 2 else (8, 5)
        sides = []
        for _ in range(2):
            masks = generator.random((int(generator.integers(0, 4)), *size)) < 0.5
            sides.append(Segmentation.from_masks(masks, generator.integers(0, 3, len(masks))))
        pairs.append((sides[0], sides[1]))
    return pairs


def as_numbers(scores: Scores) -> dict[str, object]:
    return Record(method="m", data="d", split="val", **scores.record_fields()).to_dict()


def test_worked_example_under_all_four_protocols() -> None:
    scores = score(list(zip(TRUTHS, PREDICTIONS, strict=True)))
    assert list(scores.protocols) == list(PROTOCOLS)
    found = {name: (figures.miou, figures.macc) for name, figures in scores.protocols.items()}
    assert found["dataset41"] == pytest.approx((0.2963, 0.4917), abs=1e-4)
    assert found["dataset40"] == pytest.approx((0.1852, 0.3125), abs=1e-4)
    assert found["pair_binary"] == pytest.approx((0.3667, 0.5833), abs=1e-4)
    assert found["official_rowwise"] == pytest.approx((0.5417, 0.5833), abs=1e-4)
    assert scores.pixel_accuracy == pytest.approx(0.6875)
    assert (scores.matched, scores.missed, scores.false_positive) == (2, 1, 1)
    assert (scores.images, scores.null_images, scores.official_pairs) == (2, 0, 3)


@pytest.mark.parametrize("nulls", [(False, False), (True, False), (False, True), (True, True)])
def test_pair_binary_counts_all_three_pairs_whatever_is_null(nulls: tuple[bool, bool]) -> None:
    pairs = [
        (truth, NULL if null else prediction)
        for truth, prediction, null in zip(TRUTHS, PREDICTIONS, nulls, strict=True)
    ]
    scores = score(pairs)
    assert scores.matched + scores.missed == 3
    assert scores.null_images == sum(nulls)
    expected = (0 if nulls[0] else 0.6) + (0 if nulls[1] else 0.5)
    assert scores.protocols["pair_binary"].miou == pytest.approx(expected / 3)


@given(seed=st.integers(0, 10**6), categories=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_a_null_image_lowers_pair_binary_by_its_number_of_categories(seed: int, categories: int) -> None:
    pairs = [*random_pairs(seed, 4), (TRUTHS[0], PREDICTIONS[0])]
    before = score(pairs)
    masks = np.ones((categories, 8, 8), bool)
    after = score([*pairs, (Segmentation.from_masks(masks, range(categories)), NULL)])
    n = before.matched + before.missed
    figures, lowered = before.protocols["pair_binary"], after.protocols["pair_binary"]
    assert lowered.miou == pytest.approx(figures.miou * n / (n + categories), rel=1e-14)
    assert lowered.macc == pytest.approx(figures.macc * n / (n + categories), rel=1e-14)


@given(seed=st.integers(0, 10**6), order=st.permutations(range(7)), ranks=st.integers(1, 4))
@settings(max_examples=25, deadline=None)
def test_scores_do_not_depend_on_order_or_ranks(seed: int, order: list[int], ranks: int) -> None:
    """Even the released code's batches are found again, from the index of each image."""
    pairs = [*random_pairs(seed, 6), (TRUTHS[0], PREDICTIONS[0])]
    official = OfficialOptions(batch_size=3, world_size=2)
    straight = evaluator(official=official)
    for truth, prediction in pairs:
        straight.update(truth, prediction)
    shards = [evaluator(official=official) for _ in range(ranks)]
    for step, index in enumerate(order):
        shards[step % ranks].update(*pairs[index], index=index)
    merged = shards[0]
    for shard in shards[1:]:
        merged = merged.merge(shard)
    assert as_numbers(merged.compute()) == as_numbers(straight.compute())


def test_a_perfect_prediction_scores_one_everywhere() -> None:
    scores = score([(truth, truth) for truth in TRUTHS])
    for figures in scores.protocols.values():
        assert figures.to_dict() == {"miou": 1.0, "macc": 1.0}
    assert scores.frequency_weighted_iou == 1.0


def test_compute_leaves_the_stream_open() -> None:
    pairs = list(zip(TRUTHS, PREDICTIONS, strict=True))
    stream = evaluator()
    stream.update(*pairs[0])
    assert stream.compute().images == 1
    stream.update(*pairs[1])
    assert as_numbers(stream.compute()) == as_numbers(score(pairs))


def test_in_a_truth_without_label_map_the_smaller_part_is_on_top() -> None:
    large, small = block((0, 7), (0, 7)), block((2, 3), (2, 3))
    scores = score([(segmentation({B: small, A: large}), segmentation({A: large}))])
    assert scores.per_class[B]["true_pixels"] == 4
    assert scores.per_class[A]["true_pixels"] == 60


def test_void_in_the_label_map_of_the_truth_is_not_scored() -> None:
    label_map = np.full((8, 8), BACKGROUND, np.uint8)
    label_map[1:5, 1:5], label_map[6:] = A, 255
    truth = Segmentation.from_masks(block((1, 4), (1, 4))[None], [A], label_map=label_map)
    scores = score([(truth, segmentation({A: block((1, 4), (1, 4)), B: block((6, 7), (0, 7))}))])
    assert scores.protocols["dataset41"].miou == 1.0
    assert sum(row["true_pixels"] for row in scores.per_class) == 48


def test_a_label_map_without_masks_makes_pairs_too() -> None:
    """Semantic data sets have no instances: their pairs are the categories of the label map, void left out."""
    maps = [item.to_label_map(BACKGROUND) for item in (*TRUTHS, *PREDICTIONS)]
    maps[0][0, 0] = 255
    first, second, *predictions = (Segmentation((8, 8), label_map=label_map) for label_map in maps)
    scores = score([(first, predictions[0]), (second, predictions[1])])
    assert scores.protocols["pair_binary"].miou == pytest.approx(1.1 / 3)
    assert scores.protocols["official_rowwise"].miou == pytest.approx(0.5417, abs=1e-4)
    assert scores.null_images == 0


def test_images_without_truth_count_only_where_the_released_code_keeps_them() -> None:
    empty_pair = (NULL, PREDICTIONS[0])
    pairs = list(zip(TRUTHS, PREDICTIONS, strict=True))
    scores = score([pairs[0], empty_pair, pairs[1]])
    assert (scores.images, scores.false_positive) == (3, 3)
    assert scores.protocols["official_rowwise"].miou == pytest.approx(0.5417, abs=1e-4)
    assert scores.protocols["dataset41"].miou < 0.2963


def test_all_null_in_official_mode_is_undefined_and_not_written() -> None:
    scores = score([(truth, NULL) for truth in TRUTHS])
    assert math.isnan(scores.protocols["official_rowwise"].miou)
    assert "official_rowwise" not in as_numbers(scores)["protocols"]
    assert scores.protocols["pair_binary"].to_dict() == {"miou": 0.0, "macc": 0.0}


def test_another_size_is_refused_with_both_sizes() -> None:
    with pytest.raises(UserError, match=r"Image 7 has a truth of 8 x 8 pixels but a prediction of 5 x 4"):
        evaluator().update(TRUTHS[0], Segmentation((4, 5)), index=7)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_outside_the_vocabulary_is_refused(label: int) -> None:
    hidden = Segmentation.from_masks(np.zeros((1, 8, 8), bool), [label])
    with pytest.raises(UserError, match=r"Image 0: a mask label is outside 0\.\.2"):
        evaluator().update(TRUTHS[0], hidden)


def test_nothing_scored_is_refused() -> None:
    with pytest.raises(UserError, match="No image was scored"):
        evaluator().compute()
    with pytest.raises(UserError, match="at least 1 pixel"):
        evaluator(side=0)


def test_ranks_that_repeat_an_image_or_differ_in_settings_are_refused() -> None:
    one, two = evaluator(), evaluator()
    for shard in (one, two):
        shard.update(TRUTHS[0], PREDICTIONS[0], index=0)
    with pytest.raises(ValueError, match="scored twice"):
        one.merge(two).compute()
    with pytest.raises(ValueError, match="different settings"):
        one.merge(Evaluator(Vocabulary.from_names("AB"), 8))
