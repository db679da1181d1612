"""True prompts on the segmenter: the upper bound."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset, Record
from weakly.foundation.features import FeatureStore
from weakly.foundation.sam import SamSegmenter
from weakly.labels import Points
from weakly.methods.baselines.oracle import oracle, oracle_scores
from weakly.methods.embedding import find_store


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 7)


@pytest.mark.parametrize("supervision", ["box", "point"])
def test_masks_are_the_segmenters_answer_to_true_prompts(
    segmenter: SamSegmenter, dataset: Dataset, supervision: str
) -> None:
    results = list(oracle(segmenter, dataset, supervision, batch_size=3))
    assert len(results) == 7
    for index, (sample, result) in enumerate(zip(dataset, results, strict=True)):
        assert result.size == sample.size
        assert result.labels.tolist() == sample.boxes.labels.tolist()
        if len(sample.boxes) == 0:
            continue
        frame = segmenter.frame(sample.size)
        boxes = frame.boxes_to_frame(sample.boxes.xyxy)
        centres = frame.points_to_frame(sample.boxes.centers().xy)
        tokens = (
            segmenter.box_tokens(torch.from_numpy(boxes).float())
            if supervision == "box"
            else segmenter.point_tokens(torch.from_numpy(centres).float())
        )
        embedding = segmenter.encode(segmenter.preprocess([dataset.image(index)]))
        with torch.no_grad():
            logits, iou = segmenter.decode(embedding, tokens, torch.zeros(len(tokens)).long())
        expected = frame.logits_to_image(logits[:, 0]) >= 0
        assert np.mean(result.masks() != expected.numpy()) < 1e-3
        assert result.scores == pytest.approx(iou[:, 0].clamp(0, 1).numpy(), abs=1e-4)


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
