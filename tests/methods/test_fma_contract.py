"""FMA-WSSS keeps every promise of a method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import MethodContract
from tiny_fma import tagged, tiny_models, tiny_settings
from tiny_segmenter import rectangle_dataset, sources_of

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.methods.base import ImageSource, Learner, Workspace
from weakly.methods.fma import METHOD
from weakly.methods.fma.settings import FmaSettings, RefineSettings
from weakly.methods.frozen import frozen_clip, frozen_segmenter
from weakly.methods.optimisation import Optimisation


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models(tmp_path_factory.mktemp("models"))


class TestFma(MethodContract):
    method = METHOD
    optimisation = Optimisation(
        lr=1e-3, optimizer="adamw", warmup_steps=0, epochs=2, batch_size=4, schedule="constant", seed=3
    )

    @pytest.fixture
    def settings(self, models: Path) -> FmaSettings:
        return tiny_settings(models, refine=RefineSettings(by="sams"))

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return tagged(rectangle_dataset(tmp_path / "images", 6))

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: FmaSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_clip(settings.clip, workspace.device)

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.net.segmentation_head[0].bias[-1] += 1e4

    def rouse(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.net.segmentation_head[0].bias[-1] -= 1e2

    def test_no_mask_and_no_view_is_made_twice(
        self, settings: FmaSettings, dataset: Dataset, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.method.prepare(settings, dataset, workspace)

        def refuse(*_: Any, **__: Any) -> None:
            pytest.fail("frozen work was repeated")

        monkeypatch.setattr(frozen_segmenter(settings.segmenter), "encode", refuse)
        monkeypatch.setattr(frozen_clip(settings.clip), "encode", refuse)
        monkeypatch.setattr("weakly.methods.fma.prompts._update", refuse)
        self.method.prepare(settings, dataset, workspace)


def space(folder: Path, **changes: Any) -> Workspace:
    return Workspace(run=folder / "run", features=folder / "features", **changes)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tagged(rectangle_dataset(tmp_path / "images", 5))


def test_validation_uses_the_prompts_of_the_training_split(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    workspace = space(tmp_path)
    settings = tiny_settings(models)
    METHOD.prepare(settings, dataset, workspace)
    prompts = {path: path.read_bytes() for path in (workspace.run / "prompts").iterdir()}
    validation = tagged(rectangle_dataset(tmp_path / "val", 3, split="val", seed=9))
    data = METHOD.prepare(settings, validation, workspace)
    assert len(data) == 3 and data.classes == 3
    assert prompts == {path: path.read_bytes() for path in (workspace.run / "prompts").iterdir()}


def test_a_split_without_tags_is_refused_and_one_image_without_is_left_out(
    models: Path, dataset: Dataset, tmp_path: Path
) -> None:
    records = [replace(record, sample=replace(record.sample, tags=None)) for record in dataset.records]
    with pytest.raises(UserError, match=r"split 'train' of rectangles has no image tags.*set data\.val to null"):
        METHOD.prepare(tiny_settings(models), replace(dataset, records=tuple(records)), space(tmp_path))
    mixed = replace(dataset, records=(*dataset.records[:3], records[3]))
    data = METHOD.prepare(tiny_settings(models), mixed, space(tmp_path))
    assert len(data) == 3
    assert "has no tags" in data.skipped[0].reason
    assert METHOD.references(tiny_settings(models), mixed, space(tmp_path)) == []


def test_no_readable_image_is_one_sentence(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    for sample in dataset:
        sample.path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"No image of rectangles \(train\) can be read"):
        METHOD.prepare(tiny_settings(models), dataset, space(tmp_path))


def test_references_are_clip_es_and_once_trained_the_runs_own_seeds(
    models: Path, dataset: Dataset, tmp_path: Path
) -> None:
    workspace, settings = space(tmp_path), tiny_settings(models)
    before = METHOD.references(settings, dataset, workspace)
    assert [(score.method, score.supervision, score.extra["row"]) for score in before] == [("clip-es", "tags", "seeds")]
    assert before[0].extra["segmenter"] is None, "CLIP-ES asks no segmenter"
    METHOD.prepare(settings, dataset, workspace)
    scores = METHOD.references(settings, dataset, workspace)
    assert [(score.method, score.extra["row"]) for score in scores] == [
        ("clip-es", "seeds"),
        ("fma", "coarse-seeds"),
        ("fma", "seeds"),
    ]
    alone = METHOD.references(replace(settings, segmentation=None), dataset, workspace)
    assert [score.extra["row"] for score in alone] == ["seeds", "seeds"], "one prompt set makes the fine seeds"
    dataset[1].path.unlink()
    for score in scores:
        results = list(score.results())
        assert [result.size for result in results] == [sample.size for sample in dataset]
        assert len(results[1]) == 0 and (results[1].label_map == 3).all(), "an unreadable image is all background"
        for sample, result in zip(dataset, results, strict=True):
            assert set(result.labels) <= set(sample.tags.labels), "only tagged classes compete"
            assert (result.label_map != 255).all()
            assert np.array_equal(result.to_label_map(3), result.without_label_map().to_label_map(3))
    assert all(any(len(result) for result in score.results()) for score in scores[1:])


def test_references_depend_on_models_and_settings(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    def identity(settings: FmaSettings) -> str:
        return METHOD.references(settings, dataset, space(tmp_path))[0].identity()

    settings = tiny_settings(models)
    changed = [
        identity(replace(settings, clip_es=replace(settings.clip_es, threshold=0.5))),
        identity(replace(settings, backgrounds=("grass",))),
        identity(replace(settings, names={})),
        identity(replace(settings, parity=True)),
        identity(replace(settings, crf=replace(settings.crf, iterations=1))),
    ]
    assert identity(settings) == identity(tiny_settings(models))
    assert len({identity(settings), *changed}) == 6


@pytest.mark.parametrize("segmentation", [True, False], ids=["both prompt sets", "classification alone"])
def test_each_stage_leaves_something_to_look_at(
    models: Path, dataset: Dataset, tmp_path: Path, segmentation: bool
) -> None:
    settings = tiny_settings(models)
    settings = settings if segmentation else replace(settings, segmentation=None)
    workspace = space(tmp_path)
    data = METHOD.prepare(settings, dataset, workspace)
    stages = {path.name.split("-")[0] for path in (workspace.run / "prompts").glob("*.safetensors")}
    assert stages == ({"classification", "segmentation"} if segmentation else {"classification"})
    rows = [json.loads(line) for log in (workspace.run / "prompts").glob("*.jsonl") for line in log.open()]
    assert rows and all(np.isfinite(row["loss"]) and row["lr"] > 0 for row in rows)
    assert sorted(path.name for path in (workspace.run / "seeds").iterdir()) == (
        ["coarse", "fine"] if segmentation else ["fine"]
    )
    assert len(list((workspace.run / "seeds" / "fine").glob("*.png"))) == len(data) == 5
    assert (workspace.features / "masks").is_dir() and (workspace.features / "views").is_dir()


def test_seeds_by_the_crf_need_no_segmenter(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = tiny_settings(models, segmenter=str(tmp_path / "nowhere"))
    crf = replace(settings.coarse, finish="crf", confidence=0.9)
    settings = replace(settings, coarse=crf, fine=crf)
    dataset[1].path.write_bytes(b"no image")
    data = METHOD.prepare(settings, dataset, space(tmp_path))
    assert len(data) == 4
    assert len(data.skipped) == 1 and str(dataset[1].path) in data.skipped[0].reason


def test_a_missing_clip_says_how_to_get_one(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    settings = tiny_settings(models, clip=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="There is no CLIP at"):
        METHOD.prepare(settings, dataset, space(tmp_path))
