"""WPS-SAM keeps every promise of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from contract import MethodContract
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.methods.base import ImageSource, Learner, Workspace
from weakly.methods.wps import METHOD, WpsSettings, frozen_segmenter


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


class TestWps(MethodContract):
    method = METHOD

    @pytest.fixture(params=["box", "point", "point+box"])
    def supervision(self, request: pytest.FixtureRequest) -> str:
        return request.param

    @pytest.fixture
    def settings(self, segmenter_folder: Path, supervision: Any) -> WpsSettings:
        return WpsSettings(
            segmenter=str(segmenter_folder),
            supervision=supervision,
            queries=5,
            width=32,
            heads=4,
            layers=1,
            ffn=32,
            downsamples=1,
            flip=supervision == "point",
        )

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return rectangle_dataset(tmp_path / "images", 6)

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: WpsSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.class_head.bias[-1] += 1e4

    def rouse(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.class_head.bias[-1] -= 1e2


def test_its_upper_bounds_are_those_that_the_settings_name(segmenter_folder: Path, tmp_path: Path) -> None:
    dataset = rectangle_dataset(tmp_path / "images", 3)
    settings = WpsSettings(segmenter=str(segmenter_folder), references=("point", "box:best-true"))
    scores = METHOD.references(settings, dataset, Workspace(tmp_path, tmp_path / "features"))
    assert [(score.method, score.supervision) for score in scores] == [("oracle", "point"), ("oracle", "box")]
    with pytest.raises(UserError, match="settings.references names 'boxes'"):
        WpsSettings(references=("boxes",))
