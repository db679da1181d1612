"""The four students: one interface, finite gradients, learning, resuming, and the folders they are saved to."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from contract import quiet_trainer
from lightning import Callback
from tiny_students import RCNN, SIZES, STUDENTS, rectangles, tiny_student
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from weakly.engine.checkpoint import SafetensorsCheckpoints
from weakly.errors import UserError
from weakly.methods.optimisation import Optimisation
from weakly.methods.weaksam.detectors import Detector, DetectorSettings, FasterRcnn
from weakly.methods.weaksam.learner import WeakSamLearner
from weakly.methods.weaksam.mask2former import Mask2FormerSettings
from weakly.methods.weaksam.pretrained import from_pretrained, save_pretrained
from weakly.methods.weaksam.query_detectors import ResNetSettings
from weakly.methods.weaksam.roi_drop import DropSettings
from weakly.methods.weaksam.rt_detr import RtDetrSettings
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.students import build_student, rebuild_student
from weakly.methods.weaksam.targets import WeakSamData
from weakly.segmentation import decode_masks
from weakly.vocabulary import Vocabulary

KINDS = tuple(STUDENTS)
VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
OPTIMISATION = Optimisation(lr=2e-3, optimizer="adamw", warmup_steps=0, schedule="constant", epochs=2, batch_size=2)


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> WeakSamData:
    return rectangles(tmp_path_factory.mktemp("boxes"), masks=False)


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> WeakSamData:
    return rectangles(tmp_path_factory.mktemp("masks"), masks=True)


def data_for(student: Detector, boxes: WeakSamData, masks: WeakSamData) -> WeakSamData:
    return masks if student.makes_masks else boxes


class SeedSteps(Callback):
    """What the engine does: randomness of a step depends on its number alone."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


class SaveAt(Callback):
    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_trained_parameter_gets_a_finite_gradient(kind: str, boxes: WeakSamData, masks: WeakSamData) -> None:
    student = tiny_student(kind).train()
    torch.manual_seed(0)
    losses = student.loss(*data_for(student, boxes, masks).__getitems__(range(5)), step=0)
    losses["loss"].backward()
    parts = [value for name, value in losses.items() if name != "loss" and not name.startswith("dropped")]
    assert float(losses["loss"]) == pytest.approx(float(sum(parts)), rel=1e-5)
    silent = [
        n for n, p in student.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.isfinite().all())
    ]
    assert silent == []
    assert any(name.startswith(student.backbone) for name, _ in student.named_parameters())
    assert student.undecayed() <= {name for name, _ in student.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_any_instance_are_background(kind: str, boxes: WeakSamData, masks: WeakSamData) -> None:
    student = tiny_student(kind).train()
    losses = student.loss(*data_for(student, boxes, masks).__getitems__([4, 4]), step=5)
    losses["loss"].backward()
    assert float(losses["loss"]) > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in student.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", KINDS)
def test_detections_are_inside_the_image_and_alike_alone_and_together(
    kind: str, boxes: WeakSamData, masks: WeakSamData
) -> None:
    student = tiny_student(kind).eval()
    batch = data_for(student, boxes, masks).__getitems__([3, 4])
    originals = [(128, 128), SIZES[4]]
    together = student.predict(batch.inputs, batch.sizes, originals)
    for row, found in enumerate(together):
        height, width = originals[row]
        assert 0 < len(found.labels) <= 5
        assert (found.boxes >= 0).all()
        assert (found.boxes[:, [0, 2]] <= width).all()
        assert (found.boxes[:, [1, 3]] <= height).all()
        assert ((found.labels >= 0) & (found.labels < 3)).all()
        assert (np.diff(found.scores) <= 0).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()
        assert (found.rles is not None) == student.makes_masks
        if found.rles is not None:
            assert decode_masks(found.rles, (height, width)).shape == (len(found.labels), height, width)
        alone = student.predict(batch.inputs[row : row + 1], batch.sizes[row : row + 1], originals[row : row + 1])[0]
        assert np.array_equal(alone.labels, found.labels)
        assert np.allclose(alone.boxes, found.boxes, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_student_folder_gives_the_same_student(
    kind: str, boxes: WeakSamData, masks: WeakSamData, tmp_path: Path
) -> None:
    student = tiny_student(kind)
    settings = WeakSamSettings(student=kind, segmenter="facebook/sam-vit-base")  # type: ignore[arg-type]
    save_pretrained(tmp_path, student, settings, VOCABULARY, {"data": "rectangles"})
    before = torch.random.get_rng_state()
    saved = from_pretrained(tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert saved.vocabulary == VOCABULARY
    assert saved.settings == settings
    batch = data_for(student, boxes, masks).__getitems__([0])
    first, second = (s.eval().predict(*batch[:2], [SIZES[0]])[0] for s in (student, saved.student))
    assert np.array_equal(first.boxes, second.boxes)
    assert np.array_equal(first.scores, second.scores)
    assert "rectangles" in (tmp_path / "README.md").read_text()


def learner(kind: str, steps: int = 6, optimisation: Optimisation = OPTIMISATION) -> WeakSamLearner:
    return WeakSamLearner(tiny_student(kind), STUDENTS[kind], VOCABULARY, optimisation, steps)


def fit(
    model: WeakSamLearner, data: WeakSamData, folder: Path, *callbacks: Callback, resume: Path | None = None
) -> Any:
    trainer = quiet_trainer(
        folder, max_epochs=2, callbacks=[SeedSteps(), *callbacks], plugins=[SafetensorsCheckpoints()]
    )
    batches = model.loader(data, batch_size=2, shuffle=True, seed=7)
    trainer.fit(model, batches, model.loader(data, batch_size=3, shuffle=False, seed=7), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("kind", ["mask_rcnn", "rt_detr", "mask2former"])
def test_stopping_in_an_epoch_and_resuming_ends_with_the_same_bytes(
    kind: str, boxes: WeakSamData, masks: WeakSamData, tmp_path: Path
) -> None:
    whole, resumed = learner(kind), learner(kind)
    data = data_for(whole.student, boxes, masks)
    finished = fit(whole, data, tmp_path, SaveAt(4, tmp_path / "stopped.ckpt"))
    again = fit(resumed, data, tmp_path, resume=tmp_path / "stopped.ckpt")
    assert finished.global_step == again.global_step == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert finished.callback_metrics["val/loss"] == again.callback_metrics["val/loss"]
    assert all(name.startswith("student.") for name in whole.state_dict())


def validate(model: WeakSamLearner, data: WeakSamData, folder: Path) -> dict[str, float]:
    batches = model.loader(data, batch_size=2, shuffle=False, seed=7)
    logged: dict[str, float] = quiet_trainer(folder).validate(model, batches, verbose=False)[0]
    return logged


def test_learning_lowers_the_loss_and_validation_draws_nothing(masks: WeakSamData, tmp_path: Path) -> None:
    model = learner("mask_rcnn")
    before = validate(model, masks, tmp_path)
    assert validate(model, masks, tmp_path) == before
    assert not any("dropped" in name for name in before)
    batches = model.loader(masks, batch_size=5, shuffle=True, seed=7)
    quiet_trainer(tmp_path, max_epochs=8, callbacks=[SeedSteps()]).fit(model, batches)
    assert validate(model, masks, tmp_path)["val/loss"] < 0.9 * before["val/loss"]


def test_the_backbone_has_its_own_learning_rate_and_norms_no_decay() -> None:
    optimizer = learner("rt_detr").configure_optimizers()["optimizer"]
    kinds = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert kinds == {(2e-4, 1e-4), (2e-4, 0.0), (2e-3, 1e-4), (2e-3, 0.0)}


def test_drop_starts_at_its_step(boxes: WeakSamData) -> None:
    """With thresholds that nothing stays below, the second stage's losses vanish from the step on."""
    settings = replace(RCNN, drop=DropSettings(cls=1e-9, reg=1e-9, start=3))
    torch.manual_seed(0)
    student = build_student("faster_rcnn", settings, 3).train()
    found = []
    for step in (2, 3, None):
        torch.manual_seed(1)
        found.append(student.loss(*boxes.__getitems__([0, 1]), step=step))
    assert float(found[0]["classification"]) > 0
    assert float(found[0]["classification"]) == float(found[2]["classification"])
    assert float(found[1]["classification"]) == float(found[1]["regression"]) == 0
    assert float(found[1]["dropped_classification"]) == float(found[1]["dropped_regression"]) == 1
    assert float(found[1]["objectness"]) == float(found[0]["objectness"]), "proposals are never dropped"


def test_a_local_backbone_is_loaded_frozen(tmp_path: Path) -> None:
    source = resnet18()
    state = {name: tensor.contiguous() for name, tensor in source.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "resnet.safetensors")
    torch.save(state, tmp_path / "resnet.pth")
    for name in ("resnet.safetensors", "resnet.pth"):
        student = FasterRcnn(replace(RCNN, weights=str(tmp_path / name)), 3)
        body = student.pyramid.body
        assert torch.equal(body.layer4[0].conv1.weight, source.layer4[0].conv1.weight)
        assert isinstance(body.bn1, FrozenBatchNorm2d)
        trained = {n.split(".")[0] for n, p in body.named_parameters() if p.requires_grad}
        assert trained == {"layer2", "layer3", "layer4"}
    (tmp_path / "resnet.pth").unlink()
    rebuilt = rebuild_student(json.loads(json.dumps(student.architecture())), 3)  # the file is not needed any more
    rebuilt.load_state_dict(student.state_dict())
    with pytest.raises(UserError, match="cannot be loaded"):
        FasterRcnn(replace(RCNN, weights=str(tmp_path / "resnet.pth")), 3)
    with pytest.raises(UserError, match="no weights 'IMAGENET' for resnet18; give IMAGENET1K_V1"):
        FasterRcnn(replace(RCNN, weights="IMAGENET"), 3)
    with pytest.raises(UserError, match="lack|have"):
        FasterRcnn(replace(RCNN, backbone="resnet34", weights=str(tmp_path / "resnet.safetensors")), 3)


def test_damaged_descriptions_and_wrong_settings_are_refused() -> None:
    student = tiny_student("mask2former")
    with pytest.raises(UserError, match="3 outputs, not 4"):
        rebuild_student(student.architecture(), 4)
    with pytest.raises(UserError, match="no student 'yolo'"):
        rebuild_student({"kind": "yolo", "settings": {}}, 3)
    with pytest.raises(UserError, match="damaged"):
        rebuild_student({"kind": "faster_rcnn"}, 3)
    with pytest.raises(UserError, match="rt_detr.*DetectorSettings"):
        build_student("rt_detr", DetectorSettings(), 3)
    for make in (
        lambda: DetectorSettings(width=100),
        lambda: DetectorSettings(anchors=(1, 2, 3)),  # type: ignore[arg-type]
        lambda: DetectorSettings(nms=2),
        lambda: RtDetrSettings(width=30),
        lambda: Mask2FormerSettings(width=32),
        lambda: ResNetSettings(depths=(0, 1, 1, 1)),
    ):
        with pytest.raises(UserError, match="; give"):
            make()
