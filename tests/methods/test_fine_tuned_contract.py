"""WPS-SAM with a fine-tuned encoder keeps every promise of a method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract import MethodContract
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder

from weakly.data.dataset import Dataset
from weakly.methods.base import ImageSource, Learner, Workspace
from weakly.methods.baselines.fine_tuned import METHOD, FineTunedSettings
from weakly.methods.frozen import frozen_segmenter


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


class TestFineTuned(MethodContract):
    method = METHOD

    @pytest.fixture(params=["plain", "checkpointing, mirrored"])
    def settings(self, segmenter_folder: Path, request: pytest.FixtureRequest) -> FineTunedSettings:
        more = request.param != "plain"
        return FineTunedSettings(
            segmenter=str(segmenter_folder),
            queries=5,
            width=32,
            heads=4,
            layers=1,
            ffn=32,
            downsamples=1,
            flip=more,
            checkpointing=more,
        )

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return rectangle_dataset(tmp_path / "images", 6)

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: FineTunedSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.class_head.bias[-1] += 1e4

    def rouse(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.class_head.bias[-1] -= 1e2
