"""From boxes to masks: what prompts the segmenter, what average precision sees, and where embeddings come from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_det_sam import KINDS, tiny_settings
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.evaluation.scoring import PART_BOXES
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame
from weakly.methods.base import Workspace
from weakly.methods.baselines.det_sam import METHOD, DetSamSettings
from weakly.methods.baselines.det_sam.model import Found
from weakly.methods.baselines.det_sam.predictor import DetSamPredictor, in_images
from weakly.methods.baselines.oracle import oracle
from weakly.methods.embedding import find_store
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path / "images", 4)


def space(folder: Path) -> Workspace:
    return Workspace(folder / "run", folder / "features", feature_dtype="float32")


def saved(settings: DetSamSettings, dataset: Dataset, folder: Path) -> Path:
    torch.manual_seed(0)
    learner = METHOD.learner(settings, dataset.vocabulary, Optimisation(), 10)
    METHOD.save(learner, folder, {})
    return folder


def true_finder(dataset: Dataset, side: int, scores: Sequence[float]) -> Any:
    """Stands in for a detector that has learned the dataset: says the true boxes of every image, in order."""
    rows = iter(range(len(dataset)))

    def detect(inputs: Tensor) -> Found:
        image, boxes, labels = [], [np.zeros((0, 4))], [np.zeros(0, np.int64)]
        for row in range(len(inputs)):
            sample = dataset[next(rows)]
            assert sample.boxes is not None
            boxes.append(Frame.fit(sample.size, side).boxes_to_frame(sample.boxes.xyxy))
            labels.append(sample.boxes.labels)
            image += [row] * len(sample.boxes)
        flat = torch.from_numpy(np.concatenate(boxes)).float()
        found = torch.tensor([scores[i % len(scores)] for i in range(len(flat))])
        return Found(torch.tensor(image, dtype=torch.int64), flat, torch.from_numpy(np.concatenate(labels)), found)

    return detect


def predictor(settings: DetSamSettings, dataset: Dataset, folder: Path, scores: Sequence[float]) -> DetSamPredictor:
    loaded = METHOD.load(saved(settings, dataset, folder / "student"), space(folder))
    loaded.student.detect = true_finder(dataset, 64, scores)
    return loaded


@pytest.mark.parametrize("backbone", ["resnet18", "segmenter"])
def test_true_boxes_give_the_masks_of_the_oracle(
    segmenter_folder: Path, dataset: Dataset, tmp_path: Path, backbone: str
) -> None:
    settings = tiny_settings(segmenter_folder, "faster-rcnn", backbone)
    model = predictor(settings, dataset, tmp_path, [0.9])
    expected = oracle(model.segmenter, dataset, "box", batch_size=2)
    for a, b in zip(model.predict(sources_of(dataset), batch_size=2), expected, strict=True):
        assert np.array_equal(a.labels, b.labels)
        assert len(a) == 0 or np.mean(a.masks() != b.masks()) < 1e-3
        assert all(origin["method"] == "det-sam" and len(origin["box"]) == 4 for origin in a.provenance)


def test_boxes_below_the_threshold_prompt_nothing_but_count_for_average_precision(
    segmenter_folder: Path, dataset: Dataset, tmp_path: Path
) -> None:
    settings = tiny_settings(segmenter_folder, "detr", "segmenter", score_threshold=0.5)
    masks = list(predictor(settings, dataset, tmp_path, [0.6, 0.4]).predict(sources_of(dataset)))
    assert sum(map(len, masks)) == 3
    evaluator = PART_BOXES.evaluator(dataset.vocabulary, 64, None)  # type: ignore[arg-type]
    found = predictor(settings, dataset, tmp_path, [0.6, 0.4]).detect(sources_of(dataset))
    for index, result in enumerate(found):
        evaluator.update(PART_BOXES.truth(dataset, index), result, index)
    fields = evaluator.compute().record_fields()
    assert fields["ap"] == pytest.approx(1)
    assert fields["ap50"] == pytest.approx(1)


def test_detections_are_placed_in_their_images_and_clipped() -> None:
    frames = [Frame.fit((50, 100), 64), Frame.fit((64, 64), 64)]
    boxes = torch.tensor([[-5.0, 8, 32, 90], [40, 40, 60, 60], [10, 10, 10.2, 40]])
    found = Found(torch.tensor([0, 1, 1]), boxes, torch.tensor([2, 0, 1]), torch.tensor([0.9, 0.8, 0.7]))
    first, second = in_images(found, frames)
    assert first.boxes.tolist() == [[0, 12.5, 50, 50]]
    assert first.labels.tolist() == [2]
    assert second.boxes.tolist() == [[40, 40, 60, 60]], "slivers are left out"


def test_stored_embeddings_are_not_made_again(
    segmenter_folder: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_settings(segmenter_folder, "faster-rcnn", "resnet18")
    segmenter = frozen_segmenter(settings.segmenter, pad=settings.pad)
    store = FeatureStore.open(tmp_path / "features", segmenter, "float32")  # type: ignore[arg-type]
    store.build([sample.path for sample in dataset], batch_size=4)
    assert find_store(tmp_path / "features", segmenter, "float32") is not None
    model = predictor(settings, dataset, tmp_path, [0.9])
    monkeypatch.setattr(segmenter, "encode", lambda *_: pytest.fail("an image was encoded again"))
    assert sum(map(len, model.predict(sources_of(dataset), batch_size=3))) == 6  # type: ignore[arg-type]


@pytest.mark.parametrize(("detector", "backbone"), KINDS)
def test_another_segmenter_suits_detectors_that_look_at_images(
    segmenter_folder: Path, dataset: Dataset, tmp_path: Path, detector: str, backbone: str
) -> None:
    settings = tiny_settings(segmenter_folder, detector, backbone)
    folder = saved(settings, dataset, tmp_path / "student")
    other = tiny_sam_folder(tmp_path / "other", seed=1)
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["segmenter"] = str(other)
    (folder / "config.json").write_text(json.dumps(config))
    if backbone == "segmenter":
        with pytest.raises(UserError, match="trained on segmenter"):
            METHOD.load(folder, space(tmp_path))
    else:
        METHOD.load(folder, space(tmp_path))


def test_the_threshold_is_stored_with_the_student(segmenter_folder: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = tiny_settings(segmenter_folder, "faster-rcnn", "segmenter", score_threshold="auto", min_score=0.0)
    data = METHOD.prepare(settings, dataset, space(tmp_path))
    torch.manual_seed(0)
    learner = METHOD.learner(settings, dataset.vocabulary, Optimisation(), 10)
    assert learner.threshold() == 0.5, "nothing was trained on"
    learner.loader(data, batch_size=2, shuffle=False, seed=0)
    assert learner.threshold() == 0.5, "validation images choose nothing"
    learner.loader(data, batch_size=2, shuffle=True, seed=0)
    METHOD.save(learner, tmp_path / "student", {})
    chosen = METHOD.load(tmp_path / "student", space(tmp_path)).threshold
    assert chosen == learner.threshold()
    assert replace(settings, score_threshold=0.25).score_threshold == 0.25
    assert f"score of {chosen:.3f}" in (tmp_path / "student" / "README.md").read_text()
