"""WeakSAM keeps every promise of a method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_students
import torch
from contract import MethodContract
from tiny_segmenter import sources_of, tiny_sam_folder
from tiny_weaksam import tagged_objects, tiny_settings

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.sam import SamSegmenter
from weakly.labels import Tags
from weakly.methods.base import ImageSource, Learner, Workspace
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.weaksam import METHOD
from weakly.methods.weaksam.settings import WeakSamSettings


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_sam_folder(folder / "sam")
    return folder


class TestWeakSam(MethodContract):
    method = METHOD
    optimisation = Optimisation(
        lr=1e-3, optimizer="adamw", warmup_steps=0, epochs=2, batch_size=4, schedule="constant", seed=3
    )

    @pytest.fixture
    def settings(self, models: Path) -> WeakSamSettings:
        return tiny_settings(models)

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return tagged_objects(tmp_path / "images", 6)

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: WeakSamSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_segmenter(settings.segmenter, workspace.device)

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.roi_heads.box_predictor.cls_score.bias[0] += 1e4

    def rouse(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.roi_heads.box_predictor.cls_score.bias[0] -= 1e2


def space(folder: Path, notes: list[str] | None = None) -> Workspace:
    return Workspace(folder / "run", folder / "features", note=(notes if notes is not None else []).append)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tagged_objects(tmp_path / "images", 5)


def with_tags(dataset: Dataset, *tags: list[int] | None) -> Dataset:
    """The first images with other tags."""
    changed = [
        replace(record, sample=replace(record.sample, tags=None if own is None else Tags(np.array(own, np.int64))))
        for record, own in zip(dataset.records, tags, strict=False)
    ]
    return replace(dataset, records=tuple(changed))


def test_every_stage_leaves_something_to_look_at(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    workspace = space(tmp_path)
    data = METHOD.prepare(tiny_settings(models, student="mask_rcnn"), dataset, workspace)
    assert len(data) == 5 and all(instances.rles is not None for instances in data.instances)
    run = workspace.run
    assert len(list((run / "clues").glob("weaktr-*.safetensors"))) == 1
    assert len(list((run / "points").glob("*.safetensors"))) == 5
    assert len(list((workspace.features / "proposals").rglob("*.safetensors"))) == 5
    assert len(list((run / "wsod").glob("detector-*.safetensors"))) == 1
    assert len(list((run / "pseudo_truth").glob("train-*.json"))) == 1
    assert len(list((run / "pseudo_masks").glob("*.json"))) == 5
    (detections,) = (run / "wsod").glob("detections-train-*.json")
    assert json.loads(detections.read_text())


def test_an_image_is_encoded_once_in_all_stages_masks_and_prediction_included(
    models: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[int] = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    workspace, contract = space(tmp_path), TestWeakSam()
    for student in ("mask_rcnn", "faster_rcnn"):
        settings = tiny_settings(models, student=student)
        METHOD.prepare(settings, dataset, workspace)
        predictor = contract.reloaded(contract.roused(settings, dataset), tmp_path / student, workspace)
        results = list(predictor.predict(sources_of(dataset), batch_size=3))
        assert sum(len(result) for result in results) > 0
        for score in METHOD.references(settings, dataset, workspace):
            list(score.results())
    assert sum(encoded) == 5


def test_validation_uses_the_networks_of_the_training_split(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    workspace, settings = space(tmp_path), tiny_settings(models)
    METHOD.prepare(settings, dataset, workspace)
    trained = [*(workspace.run / "clues").glob("*.safetensors"), *(workspace.run / "wsod").glob("*.safetensors")]
    before = {path: path.read_bytes() for path in trained}
    assert len(before) == 2
    data = METHOD.prepare(settings, tagged_objects(tmp_path / "val", 3, split="val", seed=9), workspace)
    assert len(data) == 3
    assert before == {path: path.read_bytes() for path in trained}


def test_references_are_the_stages_of_the_trained_run(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    workspace, settings = space(tmp_path), tiny_settings(models)
    assert METHOD.references(settings, dataset, workspace) == [], "nothing is trained to score a split"
    METHOD.prepare(settings, dataset, workspace)
    dataset[1].path.unlink()
    scores = METHOD.references(settings, dataset, workspace)
    assert [(score.method, score.supervision, score.extra["row"]) for score in scores] == [
        ("weaksam", "tags", row) for row in ("proposals", "wsod", "pseudo-truth")
    ]
    assert len({score.identity() for score in scores}) == 3
    for score in scores:
        results = list(score.results())
        assert [result.size for result in results] == [sample.size for sample in dataset]
        assert len(results[1]) == 0, "an unreadable image has nothing"
        assert sum(map(len, results)) > 0
    truths = list(scores[2].results())
    assert all(set(truth.labels) <= set(s.tags.labels) for truth, s in zip(truths, dataset, strict=True) if len(truth))
    assert METHOD.references(replace(settings, truth="true-boxes"), dataset, workspace) == []
    assert METHOD.references(settings, with_tags(dataset, None, None, None, None, None), workspace) == []


def test_a_split_without_tags_is_refused_and_one_image_without_is_left_out(
    models: Path, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"'train' of rectangles has no image tags.*set data\.val to null"):
        METHOD.prepare(tiny_settings(models), with_tags(dataset, None, None), space(tmp_path))
    data = METHOD.prepare(tiny_settings(models), with_tags(dataset, [0], [1], None, [2]), space(tmp_path))
    assert len(data) == 3
    assert "has no tags" in data.skipped[0].reason


def test_no_readable_image_is_one_sentence(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    for sample in dataset:
        sample.path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"No image of rectangles \(train\) can be read"):
        METHOD.prepare(tiny_settings(models), dataset, space(tmp_path))
    with pytest.raises(UserError, match=r"No image of rectangles \(train\) can be read"):
        METHOD.prepare(tiny_settings(models, truth="true-boxes"), dataset, space(tmp_path))


def test_classes_without_a_peak_leave_the_grid(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    """Images that show nothing have no map; here none has a point."""
    settings = tiny_settings(models)
    METHOD.prepare(settings, with_tags(dataset, [], [1], [0], [2]), space(tmp_path))
    nothing = replace(settings.proposals, grid=replace(settings.proposals.grid, side=0))
    notes: list[str] = []
    METHOD.prepare(
        replace(settings, proposals=nothing), with_tags(dataset, [], [1], [0], [2]), space(tmp_path / "b", notes)
    )
    assert any("1 of 4 images left out, no tags" in note for note in notes)


def test_no_proposal_at_all_is_one_sentence(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = tiny_settings(models, load=replace(tiny_settings(models).load, min_side=1000))
    with pytest.raises(UserError, match="None of the 5 training images has both tags and proposals"):
        METHOD.prepare(settings, dataset, space(tmp_path))


@pytest.mark.parametrize("student", ["faster_rcnn", "mask_rcnn"])
def test_no_pseudo_box_at_all_is_said_and_trains(models: Path, dataset: Dataset, tmp_path: Path, student: str) -> None:
    notes: list[str] = []
    settings = tiny_settings(models, student=student)
    settings = replace(settings, wsod_inference=replace(settings.wsod_inference, min_score=1.0))
    data = METHOD.prepare(settings, dataset, space(tmp_path, notes))
    assert len(data) == 5 and sum(map(len, data.instances)) == 0
    assert any("0.00 boxes per image, 5 images without any" in note for note in notes)
    learner = TestWeakSam().fresh(settings, dataset)
    batch = next(iter(learner.loader(data, batch_size=3, shuffle=True, seed=0)))
    assert torch.isfinite(learner.student.loss(*batch, step=0)["loss"])


@pytest.mark.parametrize("student", list(tiny_students.STUDENTS))
def test_true_boxes_are_the_upper_bound(models: Path, dataset: Dataset, tmp_path: Path, student: str) -> None:
    settings = tiny_settings(models, truth="true-boxes", student=student, segmenter=str(tmp_path / "nowhere"))
    data = METHOD.prepare(settings, dataset, space(tmp_path))
    for index, (found, path) in enumerate(zip(data.instances, data.images, strict=True)):
        truth = dataset.instances(index)
        assert path == dataset[index].path
        assert np.array_equal(found.boxes, truth.boxes) and np.array_equal(found.labels, truth.labels)
        assert (found.rles is not None) == settings.wants_masks
    assert not (tmp_path / "run").exists(), "nothing is learned from tags"


def test_instance_heads_on_true_boxes_need_true_masks(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    bare = tuple(
        replace(record, instances=tuple(replace(one, segmentation=None) for one in record.instances or ()))
        for record in dataset.records
    )
    settings = tiny_settings(models, truth="true-boxes", student="mask_rcnn")
    with pytest.raises(UserError, match="has no true masks, which mask_rcnn needs"):
        METHOD.prepare(settings, replace(dataset, records=bare), space(tmp_path))


def test_selective_search_asks_no_segmenter(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = tiny_settings(models, proposals_by="selective-search", segmenter=str(tmp_path / "nowhere"))
    dataset[1].path.write_bytes(b"no image")
    data = METHOD.prepare(settings, dataset, space(tmp_path))
    assert len(data) == 4 and len(data.skipped) == 1
    rows = [(score.method, score.extra["row"]) for score in METHOD.references(settings, dataset, space(tmp_path))]
    assert rows == [("selective-search", row) for row in ("proposals", "wsod", "pseudo-truth")]


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({}, {"row": "retrained", "method": "weaksam"}),
        ({"student": "mask2former"}, {"row": "instance", "method": "weaksam"}),
        ({"proposals_by": "selective-search"}, {"row": "retrained", "method": "selective-search"}),
        ({"truth": "true-boxes"}, {"row": "retrained", "method": "true-boxes", "supervision": "box"}),
    ],
)
def test_the_final_row_says_what_was_trained(changes: dict[str, Any], row: dict[str, str]) -> None:
    assert METHOD.final_row(WeakSamSettings(**changes)) == row
