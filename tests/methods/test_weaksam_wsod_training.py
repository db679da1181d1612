"""Training on tags and proposals: it learns, it skips what teaches nothing, and it survives being stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from tiny_wsod import SETTINGS, TAGS, TRAINING, tiny_boxes, tiny_data, tiny_detector, tiny_views
from torch import Tensor
from torchvision.ops import box_iou

from weakly.errors import UserError, WeaklyError
from weakly.methods.weaksam.wsod import WsodDetector, wsod_losses
from weakly.methods.weaksam.wsod_data import WsodData, load_batch
from weakly.methods.weaksam.wsod_inference import WsodInference, detect
from weakly.methods.weaksam.wsod_settings import WsodSettings, WsodTraining, oicr_settings
from weakly.methods.weaksam.wsod_training import (
    WsodFiles,
    load_detector,
    train_detector,
    training_identity,
)


def train(
    folder: Path,
    training: WsodTraining = TRAINING,
    settings: WsodSettings = SETTINGS,
    data: WsodData | None = None,
    progress: Any = None,
) -> tuple[WsodDetector, WsodFiles]:
    detector = tiny_detector(settings=settings)
    files = WsodFiles(folder, training_identity(detector, training))
    train_detector(detector, data or tiny_data(), training, files, progress)
    return detector, files


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[WsodDetector, WsodFiles]:
    """A training that was not stopped."""
    return train(tmp_path_factory.mktemp("whole"))


def weights(detector: WsodDetector) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mist", "oicr"])
def test_training_fits_the_tags(tmp_path: Path, head: str) -> None:
    settings = SETTINGS if head == "mist" else oicr_settings(SETTINGS)
    training = replace(TRAINING, iterations=40, batch=4, lr=2e-3, steps=(35,), warmup=5, sizes=(48,), save_every=100)
    detector, files = train(tmp_path, training, settings, tiny_data(24))
    rows = [json.loads(line) for line in files.log.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 10, 20, 30, 40]
    assert tag_loss(detector) < 0.6 * tag_loss(tiny_detector(settings=settings))


@torch.no_grad()
def tag_loss(detector: WsodDetector) -> float:
    """The image loss of all training images in evaluation, where nothing is dropped or hidden."""
    batch = load_batch(tiny_data(24), 0, replace(TRAINING, batch=24, sizes=(48,), flip=0))
    outputs = detector.eval()(detector.prepare(batch.inputs), batch.boxes)
    return float(wsod_losses(outputs, batch.boxes, batch.tags, detector.settings)["image"])


@pytest.mark.slow
def test_tags_alone_teach_oicr_where_things_are(tmp_path: Path) -> None:
    """Against the same detector untrained, which finds some squares by their contrast.

    Of OICR alone: with so few RoIs and updates MIST finds the squares with some seeds and loses a colour with others.
    """
    settings = replace(oicr_settings(SETTINGS), width=64)
    training = replace(TRAINING, iterations=90, batch=4, lr=2e-3, steps=(70,), warmup=5, sizes=(48,), save_every=100)
    detector, _ = train(tmp_path, training, settings, tiny_data(24))
    shown = [(index, kind) for index in range(24, 48) for kind in TAGS[index % 3].nonzero()[0]]  # unseen images
    trained, untrained = (
        sum(best_overlap(model, *each) > 0.5 for each in shown)
        for model in (detector, tiny_detector(settings=settings))
    )
    assert len(shown) == 32 and trained >= 20 and trained > untrained + 5


def best_overlap(detector: WsodDetector, index: int, kind: int) -> float:
    """IoU of a square with the best detection of its colour."""
    found = detect(detector, tiny_views(index), WsodInference((48,), 96))
    best = found.boxes[found.labels == kind][:1]
    return float(box_iou(torch.from_numpy(best), torch.from_numpy(tiny_boxes(index)[kind][None])))


@pytest.mark.parametrize("stop_at", [2, 3, 7])
def test_a_stopped_training_ends_with_the_same_bytes(
    trained: tuple[WsodDetector, WsodFiles], tmp_path: Path, stop_at: int
) -> None:
    _, whole = trained

    def stop(done: int, _: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", progress=stop)
    seen: list[int] = []
    _, stopped = train(tmp_path / "stopped", progress=lambda done, _: seen.append(done))
    assert seen[0] == stop_at // 3 * 3, "the checkpoint is used"
    assert stopped.detector.read_bytes() == whole.detector.read_bytes()
    assert stopped.log.read_bytes() == whole.log.read_bytes()
    assert sorted(path.name for path in stopped.folder.iterdir()) == sorted([stopped.detector.name, stopped.log.name])


def test_a_checkpoint_of_other_images_is_left_aside(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, progress=stop)
    seen: list[int] = []
    train(tmp_path, data=tiny_data(6), progress=lambda done, _: seen.append(done))
    assert seen[0] == 0


def test_a_stored_detector_is_loaded_and_rebuilt(trained: tuple[WsodDetector, WsodFiles], tmp_path: Path) -> None:
    detector, files = trained
    again, _ = train(files.folder, progress=lambda *_: pytest.fail("nothing trains"))
    rebuilt = load_detector(files.detector)
    assert rebuilt.settings == SETTINGS and not rebuilt.training
    for other in (again, rebuilt):
        assert all(torch.equal(value, detector.state_dict()[name]) for name, value in other.state_dict().items())
    damaged = tmp_path / "detector.safetensors"
    damaged.write_bytes(files.detector.read_bytes()[:100])
    with pytest.raises(UserError, match="cannot be read as a detector.*delete it"):
        load_detector(damaged)


def test_each_pass_trains_its_own_network(tmp_path: Path) -> None:
    once = replace(TRAINING, iterations=1, warmup=0)
    start = weights(tiny_detector())
    trained = weights(train(tmp_path / "both", once)[0])
    still = weights(train(tmp_path / "gate", replace(once, gate_lr=0))[0])
    gate = {name for name in start if name.startswith("drop_block.")}
    assert any(not torch.equal(trained[name], start[name]) for name in gate)
    assert all(torch.equal(still[name], start[name]) for name in gate)
    assert all(torch.equal(still[name], trained[name]) for name in start if name not in gate)
    assert all(
        not torch.equal(trained[name], start[name]) for name in ("neck.0.weight", "cls.weight", "regress.2.bias")
    )


def test_biases_and_refinement_have_their_own_rates(tmp_path: Path) -> None:
    """Adam's first update moves every weight by its learning rate, whatever the gradient."""
    once = replace(TRAINING, iterations=1, warmup=0, lr=1e-4, bias_lr=2, refine_lr=10, weight_decay=0)
    start, trained = weights(tiny_detector()), weights(train(tmp_path, once)[0])
    for name, factor in {"cls.weight": 1, "cls.bias": 2, "refine.0.weight": 10, "refine.0.bias": 20}.items():
        moved = (trained[name] - start[name]).abs().max()
        assert float(moved) == pytest.approx(1e-4 * factor, rel=0.02), name


def test_the_rate_rises_in_a_line_and_falls_in_steps() -> None:
    training = WsodTraining()
    assert [training.factor(step) for step in (0, 100, 200, 19_999)] == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert [training.factor(step) for step in (20_000, 26_699, 26_700)] == pytest.approx([0.1, 0.1, 0.01])


def test_without_a_usable_image_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the 4 training images has both tags and proposals"):
        train(tmp_path, data=tiny_data(4, tags=np.zeros((4, 2), bool)))


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path: Path) -> None:
    with pytest.raises(WeaklyError, match="is nan at update 1; lower lr"):
        detector = tiny_detector()
        torch.nn.init.constant_(detector.cls.bias, float("nan"))
        train_detector(detector, tiny_data(), TRAINING, WsodFiles(tmp_path, "a" * 64))
    assert not list(tmp_path.iterdir())


def test_the_checkpoint_holds_tensors_alone(tmp_path: Path) -> None:
    def stop(done: int, _: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, progress=stop)
    (checkpoint,) = tmp_path.glob("*.checkpoint.safetensors")
    with safetensors.safe_open(checkpoint, "pt") as stored:
        assert json.loads(stored.metadata()["about"])["step"] == 3
        assert {name.split(".")[0] for name in stored.keys()} == {"weights", "detector", "gate"}  # noqa: SIM118


@pytest.mark.parametrize(
    "wrong", [{"iterations": 0}, {"flip": 2}, {"sizes": ()}, {"steps": (5, 3)}, {"lr": 0}, {"warmup_factor": -1}]
)
def test_wrong_settings_name_their_remedy(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(wrong))}.*give"):
        replace(TRAINING, **wrong)
