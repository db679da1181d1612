"""Semantic mIoU and the mIoU of class activation maps (spec fma-wsss section 7)."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worked_example import BACKGROUND, PREDICTIONS, TRUTHS, VOCABULARY, A, B, C

from weakly.data.dataset import Dataset
from weakly.data.dataset import Record as DataRecord
from weakly.errors import UserError
from weakly.evaluation.records import Record
from weakly.evaluation.semantic import SEMANTIC_PROTOCOLS, CamEvaluator, SemanticEvaluator, with_known_truth
from weakly.labels import Sample
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

VOID = 255


def as_map(rows: list[list[int]]) -> Segmentation:
    label_map = np.array(rows, np.uint8)
    return Segmentation(label_map.shape, label_map=label_map)


def random_maps(seed: int, images: int) -> list[tuple[Segmentation, Segmentation]]:
    generator = np.random.default_rng(seed)
    pairs = generator.integers(0, 4, (images, 2, 5, 6)).astype(np.uint8)
    pairs[:, 0][generator.random(pairs[:, 0].shape) < 0.1] = VOID
    return [(as_map(truth), as_map(prediction)) for truth, prediction in pairs]


def scored(pairs: list[tuple[Segmentation, Segmentation]]) -> SemanticEvaluator:
    evaluator = SemanticEvaluator(VOCABULARY)
    for truth, prediction in pairs:
        evaluator.update(truth, prediction)
    return evaluator


class TestSemantic:
    def test_three_class_toy(self) -> None:
        """A: 2 of 4 right, background: 1 of 3, B void, C only predicted: absent from the truth, it does not count."""
        truth = as_map([[A, A, A, VOID], [BACKGROUND, BACKGROUND, VOID, VOID]])
        prediction = as_map([[A, A, BACKGROUND, B], [BACKGROUND, C, VOID, A]])
        scores = scored([(truth, prediction)]).compute()
        assert tuple(scores.protocols) == SEMANTIC_PROTOCOLS
        assert scores.protocols["semantic"].miou == pytest.approx((2 / 3 + 1 / 3) / 2)
        assert scores.protocols["dataset41"].miou == pytest.approx((2 / 3 + 1 / 3 + 0) / 3)
        assert [row["iou"] for row in scores.per_class] == pytest.approx([2 / 3, None, 0, 1 / 3])

    def test_worked_example_with_masks(self) -> None:
        scores = scored(list(zip(TRUTHS, PREDICTIONS, strict=True))).compute()
        assert scores.protocols["semantic"].miou == pytest.approx(0.3951, abs=1e-4)
        assert (scores.images, scores.null_images) == (2, 0)
        assert scores.details["pixel_accuracy"] == pytest.approx(0.6875)

    @given(seed=st.integers(0, 10**6))
    @settings(max_examples=25, deadline=None)
    def test_it_is_the_definition_over_all_pixels(self, seed: int) -> None:
        pairs = random_maps(seed, 3)
        true = np.concatenate([t.label_map.ravel() for t, _ in pairs])
        predicted = np.concatenate([p.label_map.ravel() for _, p in pairs])[true != VOID]
        true = true[true != VOID]
        expected = [
            ((true == k) & (predicted == k)).sum() / ((true == k) | (predicted == k)).sum() for k in np.unique(true)
        ]
        assert scored(pairs).compute().protocols["semantic"].miou == pytest.approx(np.mean(expected), rel=1e-12)

    @given(seed=st.integers(0, 10**6), cut=st.integers(0, 4))
    @settings(max_examples=10, deadline=None)
    def test_order_and_ranks_do_not_matter(self, seed: int, cut: int) -> None:
        pairs = random_maps(seed, 4)
        merged = scored(pairs[cut:]).merge(scored(pairs[:cut]))
        assert (merged.confusion.counts == scored(pairs).confusion.counts).all()
        assert merged.images == 4

    def test_a_prediction_of_background_alone_is_counted(self) -> None:
        empty = Segmentation((8, 8))
        assert scored([(TRUTHS[0], empty)]).compute().null_images == 1

    def test_scores_are_a_record(self) -> None:
        scores = scored([(TRUTHS[0], PREDICTIONS[0])]).compute()
        record = Record(method="fma", data="d", split="val", **scores.record_fields())
        assert record.to_dict()["protocols"]["semantic"]["miou"] == scores.protocols["semantic"].miou
        assert record.miou == scores.protocols["semantic"].miou, "the headline, under the name other methods have too"

    def test_what_does_not_fit_is_refused(self) -> None:
        with pytest.raises(UserError, match="No image was scored"):
            SemanticEvaluator(VOCABULARY).compute()
        with pytest.raises(UserError, match="Image 3 has a truth of 8 x 8 pixels but a prediction of 5 x 4"):
            SemanticEvaluator(VOCABULARY).update(TRUTHS[0], Segmentation((4, 5)), index=3)
        with pytest.raises(UserError, match="Image 0: prediction label 255 is outside"):
            SemanticEvaluator(VOCABULARY).update(as_map([[A]]), as_map([[VOID]]))
        with pytest.raises(ValueError, match="different vocabularies"):
            SemanticEvaluator(VOCABULARY).merge(SemanticEvaluator(Vocabulary.from_names("AB")))


class TestCams:
    """One row of pixels with scores .2, .45, .7, 0 for A; background (1 - s)^p."""

    SCORES = np.array([[[0.2, 0.45, 0.7, 0.0]]])

    @pytest.mark.parametrize(
        ("power", "expected"),
        [(1, [BACKGROUND, BACKGROUND, A, BACKGROUND]), (2, [BACKGROUND, A, A, BACKGROUND]), (9, [A, A, A, BACKGROUND])],
    )
    def test_higher_powers_leave_less_background(self, power: int, expected: list[int]) -> None:
        evaluator = CamEvaluator(VOCABULARY, power=power)
        evaluator.update(as_map([expected]), self.SCORES, np.array([A]))
        assert evaluator.compute().protocols["cam"].miou == 1.0

    def test_the_best_power_is_reported_as_chosen_on_truth(self) -> None:
        evaluator = CamEvaluator(VOCABULARY)
        evaluator.update(as_map([[BACKGROUND, A, A, BACKGROUND]]), self.SCORES, np.array([A]))
        scores = evaluator.compute()
        assert scores.details["best_power"] == 2
        assert scores.details["best_power_chosen_on"] == "truth"
        assert scores.protocols["cam_best_power"].miou == 1.0
        assert scores.protocols["cam"].miou == pytest.approx((1 / 2 + 2 / 3) / 2)
        assert scores.details["miou_by_power"]["1"] == scores.protocols["cam"].miou
        assert len(scores.details["miou_by_power"]) == 10
        Record(method="fma", data="d", split="train", **scores.record_fields())

    def test_the_highest_class_wins_and_background_wins_a_tie(self) -> None:
        evaluator = CamEvaluator(VOCABULARY)
        cams = np.array([[[0.6, 0.9, 0.5]], [[0.8, 0.2, 0.1]]])
        evaluator.update(as_map([[C, B, BACKGROUND]]), cams, np.array([B, C]))
        assert evaluator.compute().protocols["cam"].miou == 1.0

    @given(seed=st.integers(0, 10**6))
    @settings(max_examples=15, deadline=None)
    def test_each_power_is_an_argmax_over_background_and_classes(self, seed: int) -> None:
        generator = np.random.default_rng(seed)
        cams = generator.random((2, 5, 6))
        ((truth, _),) = random_maps(seed, 1)
        cam = CamEvaluator(VOCABULARY, power=3, powers=(1, 3))
        cam.update(truth, cams, np.array([A, C]))
        for power in (1, 3):
            stacked = np.concatenate([(1 - cams.max(0, keepdims=True)) ** power, cams])
            prediction = np.array([BACKGROUND, A, C], np.uint8)[stacked.argmax(0)]
            expected = scored([(truth, as_map(prediction))]).confusion.counts
            assert (cam.confusions[power].counts == expected).all()

    def test_without_classes_everything_is_background(self) -> None:
        evaluator = CamEvaluator(VOCABULARY)
        evaluator.update(as_map([[BACKGROUND, A]]), np.zeros((0, 1, 2)), np.zeros(0))
        scores = evaluator.compute()
        assert scores.null_images == 1
        assert scores.protocols["cam"].miou == pytest.approx(0.25)

    def test_ranks_are_merged(self) -> None:
        one, two, both = (CamEvaluator(VOCABULARY) for _ in range(3))
        for shards, column in (((one, both), A), ((two, both), BACKGROUND)):
            for shard in shards:
                shard.update(as_map([[column] * 4]), self.SCORES, np.array([A]))
        assert one.merge(two).compute().record_fields() == both.compute().record_fields()
        with pytest.raises(ValueError, match="different settings"):
            one.merge(CamEvaluator(VOCABULARY, power=2))

    def test_what_does_not_fit_is_refused(self) -> None:
        truth, evaluator = as_map([[A] * 4]), CamEvaluator(VOCABULARY)
        with pytest.raises(UserError, match="Image 7: a class score is outside 0..1"):
            evaluator.update(truth, self.SCORES * 2, np.array([A]), index=7)
        with pytest.raises(UserError, match="outside 0..1"):
            evaluator.update(truth, self.SCORES * math.nan, np.array([A]))
        with pytest.raises(UserError, match="2 labels for scores"):
            evaluator.update(truth, self.SCORES, np.array([A, B]))
        with pytest.raises(UserError, match="Image 0 has a truth of 4 x 1 pixels but a prediction of 3 x 1"):
            evaluator.update(truth, self.SCORES[..., :3], np.array([A]))
        with pytest.raises(UserError, match="not positive"):
            CamEvaluator(VOCABULARY, powers=(0, 1))


def test_unknown_truth_is_not_scored() -> None:
    """With label maps in the dataset an image without one is unknown; with masks alone none means background."""
    samples = [Sample(i, Path(f"{i}.jpg"), (4, 4)) for i in range(3)]
    bare = [DataRecord(sample) for sample in samples]
    mapped = Dataset("d", "val", VOCABULARY, (DataRecord(samples[0], label_map_path=Path("0.png")), *bare[1:]))
    assert [s.image_id for s in with_known_truth(mapped)] == [0]
    assert len(with_known_truth(Dataset("d", "val", VOCABULARY, tuple(bare)))) == 3
    masks = DataRecord(samples[2], truth=((A, [[0, 0, 2, 0, 2, 2]]),))
    mixed = Dataset("d", "val", VOCABULARY, (mapped.records[0], bare[1], masks))
    assert [s.image_id for s in with_known_truth(mixed)] == [0, 2], "masks state as much as a label map"
