"""True prompts on the segmenter: the upper bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset, Record
from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.foundation.sam import SamSegmenter
from weakly.labels import Points
from weakly.methods.baselines.oracle import ORACLES, mask_iou, oracle, oracle_scores, true_masks
from weakly.methods.baselines.references import REFERENCES, check_references, reference_scores
from weakly.methods.embedding import find_store
from weakly.segmentation import Segmentation, encode_masks
from weakly.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 7)


def answers(segmenter: SamSegmenter, dataset: Dataset, index: int, supervision: str, *, multimask: bool) -> Any:
    """The segmenter asked by hand: (M, K, H, W) masks and (M, K) predicted IoU of the prompts of one image."""
    sample = dataset[index]
    frame = segmenter.frame(sample.size)
    boxes = torch.from_numpy(frame.boxes_to_frame(sample.boxes.xyxy)).float()
    centres = torch.from_numpy(frame.points_to_frame(sample.boxes.centers().xy)).float()
    tokens = {
        "box": lambda: segmenter.box_tokens(boxes),
        "point": lambda: segmenter.point_tokens(centres),
        "point+box": lambda: segmenter.point_tokens(centres, boxes),
    }[supervision]()
    assert tokens.shape[1] == (3 if supervision == "point+box" else 2)
    embedding = segmenter.encode(segmenter.preprocess([dataset.image(index)]))
    with torch.no_grad():
        logits, iou = segmenter.decode(embedding, tokens, torch.zeros(len(tokens)).long(), multimask=multimask)
    masks = frame.logits_to_image(logits.flatten(0, 1)).unflatten(0, logits.shape[:2]) >= 0
    return masks.numpy(), iou.numpy()


@pytest.mark.parametrize("supervision", ["box", "point", "point+box"])
def test_masks_are_the_segmenters_answer_to_true_prompts(
    segmenter: SamSegmenter, dataset: Dataset, supervision: Any
) -> None:
    results = list(oracle(segmenter, dataset, supervision, batch_size=3))
    assert len(results) == 7
    for index, (sample, result) in enumerate(zip(dataset, results, strict=True)):
        assert result.size == sample.size
        assert result.labels.tolist() == sample.boxes.labels.tolist()
        if len(sample.boxes) == 0:
            continue
        masks, iou = answers(segmenter, dataset, index, supervision, multimask=False)
        assert np.mean(result.masks() != masks[:, 0]) < 1e-3
        assert result.scores == pytest.approx(iou[:, 0].clip(0, 1), abs=1e-4)


@pytest.mark.parametrize("supervision", ["box", "point", "point+box"])
def test_the_best_of_three_is_chosen_as_its_name_says(
    segmenter: SamSegmenter, dataset: Dataset, supervision: Any
) -> None:
    predicted = list(oracle(segmenter, dataset, supervision, "best-predicted", batch_size=3))
    true = list(oracle(segmenter, dataset, supervision, "best-true", batch_size=4))
    for index in (1, 2, 3):
        masks, iou = answers(segmenter, dataset, index, supervision, multimask=True)
        truth = dataset.truth(index)
        for i, label in enumerate(dataset[index].boxes.labels):
            assert np.mean(predicted[index].masks()[i] != masks[i, iou[i].argmax()]) < 1e-3
            assert predicted[index].scores[i] == pytest.approx(iou[i].max().clip(0, 1), abs=1e-4)
            rivals = truth.masks()[truth.labels == label]
            ious = [[(m & t).sum() / (m | t).sum() for t in rivals] for m in masks[i]]
            if np.max(ious) > 0:
                best = int(np.max(ious, 1).argmax())
                assert np.mean(true[index].masks()[i] != masks[i, best]) < 1e-3


def test_without_any_truth_the_best_is_the_predicted_one(segmenter: SamSegmenter, dataset: Dataset) -> None:
    bare = replace(dataset, records=tuple(Record(sample) for sample in dataset))
    pairs = zip(
        oracle(segmenter, bare, "box", "best-true"), oracle(segmenter, bare, "box", "best-predicted"), strict=True
    )
    assert all(np.array_equal(a.masks(), b.masks()) and np.array_equal(a.scores, b.scores) for a, b in pairs)


def test_a_label_map_alone_says_one_mask_per_category() -> None:
    label_map = np.array([[0, 0, 3], [2, 3, 255]], np.uint8)
    rles, categories = true_masks(Segmentation((2, 3), label_map=label_map), 3)
    assert categories.tolist() == [0, 2]
    assert mask_iou(encode_masks(label_map[None] == 0), rles).tolist() == [[1.0, 0.0]]
    assert mask_iou([], rles).shape == (0, 2) and mask_iou(rles, []).shape == (2, 0)


def test_clicks_serve_where_there_are_no_boxes(segmenter: SamSegmenter, dataset: Dataset) -> None:
    records = tuple(
        Record(replace(s, boxes=None, points=Points(s.boxes.centers().xy, s.boxes.labels))) for s in dataset
    )
    clicked = replace(dataset, records=records)
    for a, b in zip(oracle(segmenter, dataset, "point"), oracle(segmenter, clicked, "point"), strict=True):
        assert np.array_equal(a.to_label_map(3), b.to_label_map(3))
    scores = oracle_scores(lambda: segmenter, clicked, lambda _: None)
    assert [(score.method, score.supervision) for score in scores] == [("oracle", "point")]


def test_scores_load_nothing_before_they_are_asked_for(dataset: Dataset) -> None:
    scores = oracle_scores(lambda: pytest.fail("loaded"), dataset, lambda _: None)
    assert [score.supervision for score in scores] == ["box", "point"]


def test_an_unreadable_image_gives_an_empty_result_in_its_place(segmenter: SamSegmenter, dataset: Dataset) -> None:
    dataset[3].path.write_bytes(b"no image")
    results = list(oracle(segmenter, dataset, "box", batch_size=2))
    assert [result.size for result in results] == [sample.size for sample in dataset]
    assert len(results[3]) == 0
    assert (results[3].label_map == 3).all()
    assert len(results[2]) == 2


def test_stored_features_serve(
    segmenter: SamSegmenter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore.open(tmp_path / "f", segmenter, "float32").build([sample.path for sample in dataset])
    monkeypatch.setattr(segmenter, "encode", lambda *_: pytest.fail("an image was encoded again"))
    scores = oracle_scores(lambda: segmenter, dataset, lambda s: find_store(tmp_path / "f", s, "float32"))
    assert len(list(scores[0].results())) == 7


def test_references_are_what_a_recipe_names(segmenter: SamSegmenter, dataset: Dataset) -> None:
    names = ("point", "point+box:best-true", "box:best-predicted", "everything")
    scores = reference_scores(names, lambda: segmenter, dataset, lambda _: None)
    told = [(score.method, score.supervision, score.extra.get("row")) for score in scores]
    assert told == [
        ("oracle", "point", None),
        ("oracle", "point+box", "best-true"),
        ("oracle", "box", "best-predicted"),
        ("everything", "mask", "oracle-label"),
    ]
    assert reference_scores((), lambda: pytest.fail("loaded"), dataset, lambda _: None) == []


def test_no_two_references_share_what_is_kept_of_them(segmenter: SamSegmenter, dataset: Dataset) -> None:
    scores = reference_scores(REFERENCES, lambda: segmenter, dataset, lambda _: None)
    assert len({(score.method, score.supervision, score.identity()) for score in scores}) == len(REFERENCES)
    assert len({(score.method, score.supervision, score.extra.get("row")) for score in scores}) == len(REFERENCES)


def test_references_that_labels_do_not_allow_are_left_out(dataset: Dataset) -> None:
    records = tuple(Record(replace(s, boxes=None, points=s.boxes.centers())) for s in dataset)
    scores = reference_scores(
        REFERENCES, lambda: pytest.fail("loaded"), replace(dataset, records=records), lambda _: None
    )
    assert {(score.method, score.supervision) for score in scores} == {("oracle", "point")}


def test_unknown_references_are_refused() -> None:
    check_references(tuple(ORACLES))
    with pytest.raises(UserError, match="names 'box:best'; give some of box, box:best-predicted"):
        check_references(("box", "box:best"))
    with pytest.raises(UserError, match="names one twice"):
        check_references(("box", "box"))
    with pytest.raises(UserError, match="There is no oracle 'everything'"):
        oracle_scores(lambda: pytest.fail("loaded"), rectangles(), lambda _: None, ("everything",))


def rectangles() -> Dataset:
    return Dataset("rectangles", "train", Vocabulary.from_names(("Red",)), ())
