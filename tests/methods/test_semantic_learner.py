"""Training a semantic segmenter: groups, curves, learning, and resuming with the same bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import quiet_trainer
from lightning import Callback
from PIL import Image

from weakly.engine.checkpoint import SafetensorsCheckpoints
from weakly.methods.fma.deeplab import DeepLabSettings
from weakly.methods.fma.mask2former import Mask2FormerSettings
from weakly.methods.fma.networks import build_network
from weakly.methods.image_views import VOID, Augmentation
from weakly.methods.optimisation import Optimisation
from weakly.methods.semantic_learner import SemanticLearner
from weakly.methods.semantic_targets import SemanticData, write_label_map
from weakly.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
COLOURS = np.array([[220, 30, 30], [30, 200, 40], [40, 50, 230], [90, 90, 90]], np.uint8)
DEEPLAB = DeepLabSettings("resnet18", output_stride=16, decoder_channels=16, atrous_rates=(1, 2, 3), aux_channels=8)
MASK2FORMER = Mask2FormerSettings(
    embed_dim=8,
    depths=(1, 1, 1, 1),
    heads=(1, 1, 2, 2),
    window=4,
    queries=6,
    width=64,
    encoder_layers=1,
    encoder_ffn=16,
    decoder_layers=2,
    decoder_ffn=16,
    attention_heads=2,
    points=64,
)
OPTIMISATION = Optimisation(
    lr=0.01, weight_decay=5e-4, optimizer="sgd", schedule="poly", lr_end=1e-4, warmup_steps=0, epochs=2, batch_size=2
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SemanticData:
    """Five images whose colours are their labels, with a void column."""
    folder = tmp_path_factory.mktemp("labels")
    rng = np.random.default_rng(0)
    images, label_maps = [], []
    for index in range(5):
        labels = rng.integers(0, 4, (2, 2)).astype(np.uint8).repeat(20, 0).repeat(16 + index, 1)
        images.append(folder / f"{index}.png")
        label_maps.append(folder / f"{index}-labels.png")
        Image.fromarray(COLOURS[labels]).save(images[-1])
        labels[:, 0] = VOID
        write_label_map(label_maps[-1], labels, VOCABULARY)
    return SemanticData(tuple(images), tuple(label_maps), 3, Augmentation(crop=32, short=32, long=128))


def learner(settings: Any, optimisation: Optimisation = OPTIMISATION, steps: int = 6) -> SemanticLearner:
    torch.manual_seed(0)
    return SemanticLearner(build_network(settings, 3), settings, VOCABULARY, optimisation, steps)


class SeedSteps(Callback):
    """What the engine does: randomness of a step depends on its number alone."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        torch.manual_seed(trainer.global_step)


class SaveAt(Callback):
    """A checkpoint in the middle of an epoch."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(
    model: SemanticLearner, data: SemanticData, folder: Path, *callbacks: Callback, resume: Path | None = None
) -> Any:
    trainer = quiet_trainer(
        folder, max_epochs=2, callbacks=[SeedSteps(), *callbacks], plugins=[SafetensorsCheckpoints()]
    )
    batches = model.loader(data, batch_size=2, shuffle=True, seed=7)
    trainer.fit(model, batches, model.loader(data, batch_size=3, shuffle=False, seed=7), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize(
    ("settings", "stop"), [(DEEPLAB, 4), (MASK2FORMER, 1), (MASK2FORMER, 3)], ids=["deeplab-4", "m2f-1", "m2f-3"]
)
def test_stopping_anywhere_and_resuming_ends_with_the_same_bytes(
    data: SemanticData, tmp_path: Path, settings: Any, stop: int
) -> None:
    """Weights, running statistics and validation: three batches an epoch, the last of one image."""
    checkpoint = tmp_path / "stopped.ckpt"
    whole = learner(settings)
    finished = fit(whole, data, tmp_path, SaveAt(stop, checkpoint))
    resumed = learner(settings)
    again = fit(resumed, data, tmp_path, resume=checkpoint)
    assert finished.global_step == again.global_step == 6
    assert whole.state_dict().keys() == resumed.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert finished.callback_metrics["val/loss"] == again.callback_metrics["val/loss"]
    assert again.optimizers[0].param_groups[0]["lr"] == pytest.approx(
        OPTIMISATION.lr_end * (0.1 if settings is MASK2FORMER else 1)
    )


def test_learning_lowers_the_loss_and_the_error(data: SemanticData, tmp_path: Path) -> None:
    optimisation = Optimisation(lr=2e-3, optimizer="adamw", warmup_steps=0, schedule="constant")
    model = learner(DEEPLAB, optimisation)
    before = validate(model, data, tmp_path)
    batches = model.loader(data, batch_size=5, shuffle=True, seed=7)
    quiet_trainer(tmp_path, max_epochs=15, callbacks=[SeedSteps()]).fit(model, batches)
    after = validate(model, data, tmp_path)
    assert after["val/loss"] < 0.7 * before["val/loss"]
    assert after["val/error"] < before["val/error"]


def validate(model: SemanticLearner, data: SemanticData, folder: Path) -> dict[str, float]:
    batches = model.loader(data, batch_size=1, shuffle=False, seed=7)
    logged: dict[str, float] = quiet_trainer(folder).validate(model, batches, verbose=False)[0]
    return logged


@torch.no_grad()
def test_validation_compares_probabilities_of_whole_images_with_their_label_maps(
    data: SemanticData, tmp_path: Path
) -> None:
    model = learner(MASK2FORMER)
    logged = validate(model, data, tmp_path)
    losses, errors = [], []
    for index in range(5):
        pixels, labels = data.view(index)
        probabilities = model.student.eval()(pixels[None])[0].softmax(0)
        known = labels != VOID
        chosen = probabilities.gather(0, labels.where(known, 0)[None])[0]
        losses.append(-chosen.log()[known].mean())
        errors.append((probabilities.argmax(0) != labels)[known].double().mean())
    assert logged["val/loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    assert logged["val/error"] == pytest.approx(float(torch.stack(errors).mean()), abs=1e-4)
    assert validate(model, data, tmp_path) == logged, "no randomness"


def test_training_logs_the_loss_and_its_parts(data: SemanticData, tmp_path: Path) -> None:
    logged = fit(learner(MASK2FORMER), data, tmp_path).callback_metrics
    parts = [float(logged[f"train/{name}"]) for name in ("classification", "mask", "dice")]
    assert float(logged["train/loss"]) == pytest.approx(sum(parts), rel=1e-5)


def test_groups_are_those_the_network_asks_for() -> None:
    optimisation = replace(OPTIMISATION, optimizer="adamw", lr=1e-4, lr_end=0, weight_decay=0.05)
    optimizer = learner(MASK2FORMER, optimisation).configure_optimizers()["optimizer"]
    kinds = {(group["lr"], group["weight_decay"]) for group in optimizer.param_groups}
    assert kinds == {(1e-5, 0.05), (1e-5, 0.0), (1e-4, 0.05), (1e-4, 0.0)}
    (group,) = learner(DEEPLAB).configure_optimizers()["optimizer"].param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.01, 5e-4, 0.9)


def test_training_sees_random_views_and_validation_whole_images(data: SemanticData) -> None:
    model = learner(MASK2FORMER)
    train, val = (model.loader(data, batch_size=2, shuffle=shuffle, seed=7) for shuffle in (True, False))
    assert [tuple(batch.pixels.shape) for batch in train] == [(2, 3, 32, 32)] * 2 + [(1, 3, 32, 32)]
    first = next(iter(val))
    assert torch.equal(first.pixels[0, :, :, : data.view(0)[0].shape[-1]], data.view(0)[0])


def test_only_the_student_is_in_the_learner() -> None:
    assert all(name.startswith("student.") for name in learner(MASK2FORMER).state_dict())
