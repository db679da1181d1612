"""The four detectors: their maps, labels and weights, and that they learn where parts are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_det_sam import KINDS, tiny_settings
from tiny_segmenter import rectangle_dataset, tiny_sam_folder
from torch import nn
from torchvision.models import resnet18
from torchvision.ops import box_iou

from weakly.errors import UserError
from weakly.methods.base import Workspace
from weakly.methods.baselines.det_sam import METHOD
from weakly.methods.baselines.det_sam.detectors import build_detector, rebuild_detector
from weakly.methods.baselines.det_sam.detr import ResNetDetr, SetDetector
from weakly.methods.baselines.det_sam.losses import Answers
from weakly.methods.baselines.det_sam.model import Detector, FasterRcnn
from weakly.methods.baselines.det_sam.settings import DetrSettings, DetSamSettings, RcnnSettings
from weakly.methods.baselines.det_sam.targets import DetSamBatch
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.simple_pyramid import SimplePyramid


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


def built(settings: DetSamSettings) -> Detector:
    torch.manual_seed(0)
    return build_detector(settings, 3, frozen_segmenter(settings.segmenter, pad=settings.pad))


@pytest.mark.parametrize("scales", [(4, 2, 1, 0.5, 0.25), (2, 1), (1, 0.5)])
def test_the_simple_pyramid_has_its_scales(scales: tuple[float, ...]) -> None:
    maps = SimplePyramid(6, 32, scales)(torch.randn(2, 6, 16, 8))
    assert [tuple(one.shape) for one in maps.values()] == [(2, 32, int(16 * s), int(8 * s)) for s in scales]
    assert list(maps)[-1] == "pool"


def taught(settings: DetSamSettings, folder: Path, steps: int, lr: float) -> tuple[Detector, DetSamBatch, list[float]]:
    """A detector after some steps on two images, and its losses."""
    dataset = rectangle_dataset(folder / "images", 4).select([1, 2])
    data = METHOD.prepare(settings, dataset, Workspace(folder / "run", folder / "features"))
    student, batch = built(settings).train(), data.__getitems__([0, 1])
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = student.losses(batch)["loss"]
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return student.eval(), batch, losses


@pytest.mark.parametrize(("detector", "steps"), [("faster-rcnn", 70), ("detr", 140)])
def test_it_learns_to_find_the_rectangles_of_two_images(
    segmenter_folder: Path, tmp_path: Path, detector: str, steps: int
) -> None:
    """On embeddings: boxes of the right category that overlap by half, which no detector here finds by chance."""
    student, batch, _ = taught(tiny_settings(segmenter_folder, detector, "segmenter"), tmp_path, steps, 3e-3)
    found = student.detect(batch.inputs)
    for row, count in enumerate(batch.counts):
        mine = (found.image == row) & (found.scores > 0.1)
        overlaps = box_iou(batch.boxes[row, :count], found.boxes[mine])
        same = batch.labels[row, :count, None] == found.labels[mine]
        assert ((overlaps * same).amax(1) > 0.5).all()


@pytest.mark.parametrize(("detector", "steps"), [("faster-rcnn", 15), ("detr", 40)])
def test_training_on_images_lowers_the_loss(segmenter_folder: Path, tmp_path: Path, detector: str, steps: int) -> None:
    _, _, losses = taught(tiny_settings(segmenter_folder, detector, "resnet18"), tmp_path, steps, 1e-3)
    assert losses[-1] < 0.85 * losses[0]


class Fixed(SetDetector):
    def __init__(self, settings: DetSamSettings, answers: Answers) -> None:
        super().__init__(100, settings)
        self.said = answers

    def answers(self, inputs: Any) -> Answers:
        return self.said


def test_queries_answer_with_their_likeliest_category_and_the_best_come_first() -> None:
    probabilities = torch.tensor([[0.2, 0.1, 0.7], [0.01, 0.02, 0.97], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]])
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.4]]).repeat(4, 1)
    boxes[2] = torch.tensor([0.1, 0.1, 0.2, 0.2])
    answers = Answers(probabilities.log()[None, None], boxes[None, None])
    found = Fixed(DetSamSettings(detector="detr"), answers).detect(torch.zeros(1))
    assert found.labels.tolist() == [1, 0, 0]
    assert found.scores.tolist() == pytest.approx([0.8, 0.5, 0.2])
    assert found.boxes[0].tolist() == pytest.approx([0, 0, 20, 20], abs=1e-5)
    assert found.boxes[1].tolist() == pytest.approx([40, 30, 60, 70], abs=1e-4)
    assert len(Fixed(DetSamSettings(detector="detr", detections=2), answers).detect(torch.zeros(1)).image) == 2


@pytest.mark.parametrize(("detector", "backbone"), KINDS)
def test_images_without_parts_are_background(segmenter_folder: Path, detector: str, backbone: str) -> None:
    student = built(tiny_settings(segmenter_folder, detector, backbone)).train()
    inputs = torch.randn(2, 32, 8, 8) if backbone == "segmenter" else torch.randn(2, 3, 64, 64)
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    losses = student.losses(DetSamBatch(inputs, torch.zeros(2, 0, 4), nothing, (0, 0)))
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize(("detector", "backbone"), KINDS)
def test_a_description_is_all_it_takes_besides_the_settings(
    segmenter_folder: Path, detector: str, backbone: str
) -> None:
    settings = tiny_settings(segmenter_folder, detector, backbone)
    student = built(settings)
    described = json.loads(json.dumps(student.described()))
    again = rebuild_detector(settings, described, 3, frozen_segmenter(settings.segmenter, pad=settings.pad))
    again.load_state_dict(student.state_dict())
    assert any(name.startswith(student.backbone) for name in student.state_dict()) == (backbone != "segmenter")


def test_a_pretrained_resnet_is_loaded_frozen_and_not_needed_again(segmenter_folder: Path, tmp_path: Path) -> None:
    source = resnet18()
    torch.save(source.state_dict(), tmp_path / "resnet.pth")
    settings = tiny_settings(segmenter_folder, "faster-rcnn", "resnet18", weights=str(tmp_path / "resnet.pth"))
    student = built(settings)
    assert isinstance(student, FasterRcnn)
    body: Any = student.pyramid.body
    assert torch.equal(body.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
    trained = {name.split(".")[0] for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    (tmp_path / "resnet.pth").unlink()
    segmenter = frozen_segmenter(settings.segmenter, pad=settings.pad)
    rebuild_detector(settings, {}, 3, segmenter).load_state_dict(student.state_dict())
    with pytest.raises(UserError, match="cannot be loaded"):
        built(settings)


def test_a_pretrained_detr_gets_a_new_class_head_alone(segmenter_folder: Path, tmp_path: Path) -> None:
    settings = tiny_settings(segmenter_folder, "detr", "resnet18")
    source = build_detector(settings, 5, frozen_segmenter(settings.segmenter, pad=settings.pad))
    assert isinstance(source, ResNetDetr)
    assert not any("FrozenBatchNorm" in type(module).__name__ for module in source.modules()), "random weights learn"
    from transformers import DetrForObjectDetection

    checkpoint = DetrForObjectDetection(source.net.config)
    checkpoint.save_pretrained(tmp_path / "detr")
    pretrained = replace(settings, weights=str(tmp_path / "detr"), detr=DetrSettings())
    student = built(pretrained)
    assert isinstance(student, ResNetDetr)
    before, after = checkpoint.state_dict(), student.net.state_dict()
    kept = [name for name in before if not name.startswith("class_labels_classifier.")]
    assert all(torch.equal(before[name], after[name]) for name in kept)
    assert after["class_labels_classifier.weight"].shape[0] == 4
    trained = {n.split(".")[4] for n, p in student.named_parameters() if "backbone" in n and p.requires_grad}
    assert trained == {"layer2", "layer3", "layer4"}
    student.answers(torch.zeros(1, 3, 64, 64))
    described = json.loads(json.dumps(student.described()))
    segmenter = frozen_segmenter(settings.segmenter, pad=settings.pad)
    rebuild_detector(pretrained, described, 3, segmenter).load_state_dict(student.state_dict())
    with pytest.raises(ValueError, match="3 outputs, not 4"):
        rebuild_detector(pretrained, described, 4, segmenter)
    with pytest.raises(UserError, match="cannot be loaded as a DETR"):
        built(replace(settings, weights=str(tmp_path / "absent")))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: DetSamSettings(side=100),
        lambda: DetSamSettings(score_threshold=2.0),
        lambda: DetSamSettings(nms=-1.0),
        lambda: DetSamSettings(detections=0),
        lambda: DetSamSettings(backbone="segmenter", weights="IMAGENET1K_V1"),
        lambda: DetSamSettings(faster_rcnn=RcnnSettings(anchors=(8, 16, 32))),
        lambda: DetSamSettings(backbone="segmenter", faster_rcnn=RcnnSettings(scales=(2, 1))),
        lambda: RcnnSettings(scales=(4, 1)),
        lambda: RcnnSettings(scales=(3, 1.5)),
        lambda: RcnnSettings(frozen_stages=9),
        lambda: RcnnSettings(anchors=(8,)),
        lambda: DetrSettings(width=30, heads=4),
        lambda: DetrSettings(queries=0),
        lambda: DetrSettings(eos_weight=0),
    ],
)
def test_wrong_settings_are_refused_in_one_sentence(wrong: Any) -> None:
    with pytest.raises(UserError, match=r"settings\..*; (give|leave)"):
        wrong()
