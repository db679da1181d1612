"""The fine-tuned encoder: what trains at which rate, what it costs in memory, what is kept and what is frozen."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import quiet_trainer, same_segmentation
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder
from torch.autograd.graph import saved_tensors_hooks
from transformers import SamVisionConfig
from transformers.models.sam.modeling_sam import SamVisionEncoder

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.methods.base import Workspace
from weakly.methods.baselines.fine_tuned import METHOD, FineTunedSettings
from weakly.methods.baselines.fine_tuned.learner import FineTunedLearner
from weakly.methods.baselines.fine_tuned.model import (
    FineTunedPrompter,
    blocks,
    build_student,
    checkpoint_blocks,
    sam,
    tuned_segmenter,
)
from weakly.methods.baselines.fine_tuned.targets import readable
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.wps import METHOD as WPS
from weakly.methods.wps.learner import prompter_sizes
from weakly.methods.wps.settings import Jitter

Make = Callable[..., FineTunedLearner]
SIZES = {"queries": 5, "width": 32, "heads": 4, "layers": 1, "ffn": 32, "downsamples": 1}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> FineTunedSettings:
    folder = tiny_sam_folder(tmp_path_factory.mktemp("sam"))
    return FineTunedSettings(segmenter=str(folder), checkpointing=False, **SIZES)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path / "images", 8)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "run", tmp_path / "features", feature_dtype="float32")


@pytest.fixture
def make(settings: FineTunedSettings, dataset: Dataset) -> Make:
    def fresh(lr: float = 1e-3, schedule: Any = "constant", **changes: Any) -> FineTunedLearner:
        torch.manual_seed(0)
        optimisation = Optimisation(lr=lr, warmup_steps=0, schedule=schedule, epochs=2, batch_size=4)
        return METHOD.learner(replace(settings, **changes), dataset.vocabulary, optimisation, 100)

    return fresh


def fit(learner: FineTunedLearner, data: Any, folder: Path, epochs: int) -> None:
    quiet_trainer(folder, max_epochs=epochs).fit(learner, learner.loader(data, batch_size=4, shuffle=True, seed=7))


def test_encoder_and_prompter_are_two_groups_with_a_rate_each(make: Make) -> None:
    learner = make(lr=1e-3, schedule="cosine", encoder_lr=2e-5)
    configured = learner.configure_optimizers()
    prompter, encoder = configured["optimizer"].param_groups
    assert {id(p) for p in encoder["params"]} == {id(p) for p in learner.student.image_encoder.parameters()}
    assert {id(p) for p in encoder["params"] + prompter["params"]} == {id(p) for p in learner.student.parameters()}
    assert not {id(p) for p in encoder["params"]} & {id(p) for p in prompter["params"]}
    assert (encoder["lr"], prompter["lr"]) == (pytest.approx(2e-5), pytest.approx(1e-3))
    for _ in range(50):
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert (encoder["lr"], prompter["lr"]) == (pytest.approx(1e-5), pytest.approx(5e-4))


def test_before_training_it_is_wps_sam_on_the_frozen_encoder(
    make: Make, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace
) -> None:
    """The same prompter says the same; only where embeddings come from differs."""
    learner = make()
    batch = METHOD.prepare(settings, dataset, workspace).__getitems__([1, 2, 3])
    stored = WPS.prepare(settings, dataset, workspace).__getitems__([1, 2, 3])
    with torch.no_grad():
        embedded = learner.embedded(batch)
    assert torch.allclose(embedded.embeddings, stored.embeddings, atol=1e-5)
    assert torch.equal(embedded.tokens, stored.tokens)
    assert embedded.counts == stored.counts


def test_training_moves_the_encoder_and_learns(
    make: Make, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace, tmp_path: Path
) -> None:
    learner, data = make(encoder_lr=3e-4), METHOD.prepare(settings, dataset, workspace)
    before = copy.deepcopy(learner.student.image_encoder.state_dict())
    batch = data.__getitems__(list(range(8)))
    first = learner.loss(learner.embedded(batch)).total
    fit(learner, data, tmp_path, 10)
    assert learner.loss(learner.embedded(batch)).total < 0.8 * first
    moved = learner.student.image_encoder.state_dict()
    assert not any(torch.equal(before[name], value) for name, value in moved.items())


def test_the_tuned_encoder_predicts_and_the_frozen_decoder_decodes(
    make: Make, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace, tmp_path: Path
) -> None:
    learner = make(encoder_lr=1e-3)
    fit(learner, METHOD.prepare(settings, dataset, workspace), tmp_path, 2)
    METHOD.save(learner, tmp_path / "student", {})
    frozen = frozen_segmenter(settings.segmenter, pad=settings.pad)
    predictor = METHOD.load(tmp_path / "student", workspace)
    assert predictor.segmenter.fingerprint != frozen.fingerprint
    images = frozen.preprocess([dataset.image(0), dataset.image(1)])
    with torch.no_grad():
        embeddings = learner.student.eval().embed(images)
    assert torch.allclose(predictor.segmenter.encode(images), embeddings, atol=1e-5)
    assert not torch.allclose(frozen.encode(images), embeddings, atol=1e-3)
    tokens, image = frozen.box_tokens(torch.tensor([[5.0, 5, 30, 40]])), torch.tensor([0])
    for ours, theirs in zip(
        predictor.segmenter.decode(embeddings, tokens, image), frozen.decode(embeddings, tokens, image), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_features_of_the_frozen_encoder_are_not_used(
    make: Make, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace, tmp_path: Path
) -> None:
    learner = make()
    with torch.no_grad():
        learner.student.class_head.bias[-1] -= 100
        next(learner.student.image_encoder.parameters()).mul_(1.5)
    METHOD.save(learner, tmp_path / "student", {})
    plain = list(METHOD.load(tmp_path / "student", workspace).predict(sources_of(dataset), batch_size=4))
    frozen = frozen_segmenter(settings.segmenter, pad=settings.pad)
    FeatureStore.open(workspace.features, frozen, "float32").build([sample.path for sample in dataset])
    again = METHOD.load(tmp_path / "student", workspace).predict(sources_of(dataset), batch_size=4)
    assert all(same_segmentation(a, b) for a, b in zip(plain, again, strict=True))
    assert {origin["method"] for result in plain for origin in result.provenance} == {"fine-tuned"}


def saved_values(step: Callable[[], torch.Tensor]) -> tuple[int, list[torch.Tensor]]:
    """Floats that autograd keeps for the backward pass of a step, and the step's result."""
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = step()
    return sum(kept.values()), [result]


@pytest.mark.parametrize("family", ["bundled", "vit"])
def test_checkpointing_keeps_less_and_changes_no_gradient(settings: FineTunedSettings, family: str) -> None:
    torch.manual_seed(0)
    if family == "bundled":
        plain = copy.deepcopy(sam(frozen_segmenter(settings.segmenter)).model.vision_encoder)
        plain.requires_grad_(True).train()
        names = ["Sequential"] * 4 + ["ResidualBlock"] * 2
    else:
        config = SamVisionConfig(
            hidden_size=24,
            output_channels=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=64,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[2],
            mlp_dim=48,
        )
        plain = SamVisionEncoder(config).train()
        names = ["SamVisionLayer"] * 3
    assert [type(block).__name__ for block in blocks(plain)] == names
    lean = copy.deepcopy(plain)
    checkpoint_blocks(lean)
    images = torch.randn(2, 3, 64, 64)
    kept, gradients = [], []
    for encoder in (plain, lean):
        values, (embedding,) = saved_values(lambda encoder=encoder: encoder(images).last_hidden_state)
        embedding.square().sum().backward()
        kept.append(values)
        gradients.append({name: p.grad for name, p in encoder.named_parameters()})
    assert kept[1] < 0.6 * kept[0]
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_batch_norms_keep_the_statistics_they_came_with(settings: FineTunedSettings) -> None:
    encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    segmenter = frozen_segmenter(settings.segmenter)
    student = FineTunedPrompter(encoder, **prompter_sizes(settings, 3, segmenter)).train()
    student.image_encoder(torch.randn(2, 3, 8, 8) + 5)
    assert student.training and encoder[0].training
    assert not encoder[1].running_mean.any()


def test_moved_views_are_moved_images(
    make: Make, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace
) -> None:
    """Jitter moves whatever the loader gives by whole cells, pixels here, and boxes with it."""
    learner = make(jitter=Jitter(shift=0.25))
    data = METHOD.prepare(settings, dataset, workspace)
    loader = learner.loader(data, batch_size=8, shuffle=True, seed=0)
    order = list(loader.sampler)
    moved, plain = next(iter(loader)), data.__getitems__([index % 8 for index in order])
    for after, before, motion in zip(
        moved.embeddings, plain.embeddings, loader.dataset.draw(order, (64, 64)).tolist(), strict=True
    ):
        right, down = round(motion[1]), round(motion[2])
        inside = after[:, max(0, down) : 64 + min(0, down), max(0, right) : 64 + min(0, right)]
        origin = before[:, max(0, -down) : 64 + min(0, -down), max(0, -right) : 64 + min(0, -right)]
        assert torch.allclose(inside, origin, atol=1e-3)
    assert not torch.allclose(moved.embeddings, plain.embeddings, atol=1e-3)


def test_an_image_that_cannot_be_read_is_named(dataset: Dataset, workspace: Workspace) -> None:
    dataset[2].path.write_bytes(dataset[2].path.read_bytes()[:200])
    told = []
    kept, skipped = readable(dataset, replace(workspace, progress=lambda *state: told.append(state)))
    assert kept == (0, 1, 3, 4, 5, 6, 7)
    assert [one.image_id for one in skipped] == [2]
    assert str(dataset[2].path) in skipped[0].reason
    assert told[-1] == ("images train", 8, 8)
    for sample in dataset:
        sample.path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"No image of rectangles \(train\)"):
        readable(dataset, workspace)


def test_a_student_of_another_segmenter_is_refused(make: Make, workspace: Workspace, tmp_path: Path) -> None:
    learner = make()
    other = tiny_sam_folder(tmp_path / "other", seed=1)
    learner.settings = replace(learner.settings, segmenter=str(other))
    METHOD.save(learner, tmp_path / "student", {})
    with pytest.raises(UserError, match="was trained on segmenter"):
        METHOD.load(tmp_path / "student", workspace)


def test_the_frozen_segmenter_stays_whole(settings: FineTunedSettings) -> None:
    frozen = sam(frozen_segmenter(settings.segmenter))
    student = build_student(settings, 3, frozen)
    tuned = tuned_segmenter(frozen, student.image_encoder)
    assert tuned.model.vision_encoder is student.image_encoder
    assert tuned.model.mask_decoder is not frozen.model.mask_decoder
    assert not any(p.requires_grad for p in tuned.parameters())
    assert not tuned.training
    assert tuned.fingerprint == frozen.fingerprint, "the same weights, until the encoder trains"


def test_what_cannot_be_fine_tuned_is_refused_by_name(settings: FineTunedSettings) -> None:
    class Other(type(frozen_segmenter(settings.segmenter))):
        """A relative whose embedding is more than its encoder's output."""

    other = Other(copy.deepcopy(frozen_segmenter(settings.segmenter).model), "relative")
    with pytest.raises(UserError, match="encoder of segmenter 'relative' cannot be fine-tuned"):
        build_student(settings, 3, other)
    with pytest.raises(UserError, match=r"settings\.encoder_lr is 0\.0.*method: wps"):
        FineTunedSettings(encoder_lr=0.0)
