"""The anchor-based prompter keeps every promise of a method."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract import MethodContract
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder

from weakly.data.dataset import Dataset
from weakly.methods.base import ImageSource, Learner, Workspace
from weakly.methods.baselines.anchor_prompter import METHOD
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.wps.settings import RegionSettings, WpsSettings


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


class TestAnchorPrompter(MethodContract):
    method = METHOD

    @pytest.fixture(params=["box", "point+box"])
    def settings(self, segmenter_folder: Path, request: pytest.FixtureRequest) -> WpsSettings:
        return WpsSettings(
            segmenter=str(segmenter_folder),
            supervision=request.param,
            prompter="regions",
            lambda_box=1.0,
            regions=RegionSettings(width=16, hidden=32, pre_nms=40, proposals=20, rois=16, detections=8),
            position="zeros" if request.param == "box" else "tokens",
            flip=request.param == "box",
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
        """See parts in every region; a fresh student's regions are so alike that rounding would order them."""
        with torch.no_grad():
            learner.student.rpn.head.cls_logits.weight *= 100
            learner.student.class_head.weight *= 10
            learner.student.class_head.bias[-1] -= 1e2


def test_it_stands_in_the_tables_of_wps_and_states_none() -> None:
    assert not METHOD.tables(WpsSettings()).tables
