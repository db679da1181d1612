"""Det-SAM keeps every promise of a method, with either detector on either backbone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from contract import MethodContract
from tiny_det_sam import tiny_settings
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder

from weakly.data.dataset import Dataset
from weakly.methods.base import ImageSource, Learner, Workspace
from weakly.methods.baselines.det_sam import METHOD, DetSamSettings
from weakly.methods.baselines.det_sam.model import FasterRcnn
from weakly.methods.frozen import frozen_segmenter


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


class DetSamContract(MethodContract):
    method = METHOD
    detector = ""
    backbone = ""

    @pytest.fixture
    def settings(self, segmenter_folder: Path) -> DetSamSettings:
        return tiny_settings(segmenter_folder, self.detector, self.backbone, flip=self.detector == "detr")

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return rectangle_dataset(tmp_path / "images", 4)

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: DetSamSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            bias, nothing = nothing_logit(learner)
            bias[nothing] += 1e4

    def rouse(self, learner: Learner) -> None:
        """Certain of the first category, so that no result is empty."""
        with torch.no_grad():
            bias, nothing = nothing_logit(learner)
            bias[nothing] -= 1e2
            bias[0 if nothing else 1] += 3


def nothing_logit(learner: Learner) -> tuple[torch.Tensor, int]:
    """The biases of the class head, and the place of "no part" among them."""
    student = learner.student
    if isinstance(student, FasterRcnn):
        return student.roi_heads.box_predictor.cls_score.bias, 0
    head = student.prompter.class_head if hasattr(student, "prompter") else student.net.class_labels_classifier
    return head.bias, -1


class TestFasterRcnnOnResNet(DetSamContract):
    detector, backbone = "faster-rcnn", "resnet18"


class TestFasterRcnnOnSegmenter(DetSamContract):
    detector, backbone = "faster-rcnn", "segmenter"


class TestDetrOnResNet(DetSamContract):
    detector, backbone = "detr", "resnet18"


class TestDetrOnSegmenter(DetSamContract):
    detector, backbone = "detr", "segmenter"
