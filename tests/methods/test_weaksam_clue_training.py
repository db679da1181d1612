"""Training of the clue networks: it learns from tags, is a function of its settings, and resumes to the same bytes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from weakly.errors import UserError, WeaklyError
from weakly.methods.weaksam import clue_training as module
from weakly.methods.weaksam.class_tokens import ClueNetwork, VitSettings
from weakly.methods.weaksam.clue_data import ClueAugmentation, ClueBatches, ImageBank, TaggedImages
from weakly.methods.weaksam.clue_training import (
    ClueFiles,
    ClueTraining,
    load_weights,
    mean_average_precision,
    tag_scores,
    train_network,
    training_identity,
    weights_digest,
)
from weakly.methods.weaksam.mctformer import Mctformer
from weakly.methods.weaksam.weaktr import WeakTr

TINY = VitSettings(width=24, depth=2, heads=2, patch=8, image=16)
QUICK = ClueTraining(
    epochs=10,
    batch=4,
    lr=0.64,
    warmup=1,
    weight_decay=0.01,
    augmentation=ClueAugmentation(crop=16, scale=(0.5, 1.0), jitter=0.1),
)
IMAGES = 12


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noisy images of several sizes with a coloured disc: red, green, blue, or none."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(IMAGES):
        rng = np.random.default_rng(index)
        height, width = rng.integers(20, 40, 2)
        pixels = rng.integers(80, 160, (height, width, 3))
        disc = (np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2).astype(float)
        if index % 4 < 3:
            pixels[np.hypot(*disc) < 8] = np.eye(3)[index % 4] * 255
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(IMAGES)]


TAGS = torch.tensor([[index % 4 == c for c in range(3)] for index in range(IMAGES)])
"""Every fourth image shows no class."""


@pytest.fixture(scope="module")
def data(paths: list[Path]) -> TaggedImages:
    return TaggedImages(ImageBank(paths), TAGS)


def fresh(kind: type[ClueNetwork] = WeakTr) -> ClueNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(TINY, 3)


def files_of(folder: Path, training: ClueTraining, kind: type[ClueNetwork] = WeakTr) -> ClueFiles:
    return ClueFiles(folder, kind.__name__.lower(), training_identity(fresh(kind), training))


def train(
    data: TaggedImages,
    folder: Path,
    training: ClueTraining = QUICK,
    kind: type[ClueNetwork] = WeakTr,
    identity: str = "images",
    **more: Any,
) -> ClueNetwork:
    network = fresh(kind)
    train_network(network, data, training, files_of(folder, training, kind), identity, **more)
    return network


@pytest.mark.parametrize("kind", [WeakTr, Mctformer])
def test_training_on_tags_tells_the_classes_apart(data: TaggedImages, tmp_path: Path, kind: type[ClueNetwork]) -> None:
    training = replace(QUICK, epochs=30, validate_every=10)
    network = train(data, tmp_path, training, kind, validation=data)
    assert not network.training
    before = mean_average_precision(tag_scores(fresh(kind), data.images, training), TAGS)
    after = mean_average_precision(tag_scores(network, data.images, training), TAGS)
    assert after > 0.95 > before
    rows = [json.loads(line) for line in files_of(tmp_path, training, kind).log.read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert losses[0]["step"] == 1 and losses[-1]["step"] == 90 and losses[-1]["loss"] < losses[0]["loss"]
    parts = [losses[0][name] for name in ("z_cls", "z_pat", "z_fine") if name in losses[0]]
    assert sum(parts) == pytest.approx(losses[0]["loss"], abs=1e-5) and len(parts) == (3 if kind is WeakTr else 2)
    assert len([row for row in rows if "val_map" in row]) == 3
    assert rows[-1]["val_map"] == pytest.approx(after, abs=1e-6)


@pytest.mark.parametrize(("stop_at", "select"), [(3, "last"), (8, "best"), (11, "best")])
def test_a_stopped_training_ends_with_the_same_bytes(
    data: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, select: Any
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    training = replace(QUICK, epochs=4, select=select)
    train(data, tmp_path / "whole", training, validation=data)

    def stop(done: int, _: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "stopped", training, validation=data, progress=stop)
    torch.rand(7)  # whatever else has drawn random numbers
    seen: list[int] = []
    train(data, tmp_path / "stopped", training, validation=data, progress=lambda done, _: seen.append(done))
    assert seen[0] == stop_at // 4 * 4 and seen[-1] == 12, "the checkpoint is used"
    whole, stopped = files_of(tmp_path / "whole", training), files_of(tmp_path / "stopped", training)
    assert whole.weights.read_bytes() == stopped.weights.read_bytes()
    assert whole.log.read_bytes() == stopped.log.read_bytes()
    assert not stopped.checkpoint.exists()


def test_a_checkpoint_of_other_images_is_left_aside(
    data: TaggedImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAVE_EVERY", 4)
    training = replace(QUICK, epochs=3)

    def stop(done: int, _: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path, training, progress=stop)
    assert files_of(tmp_path, training).checkpoint.is_file()
    seen: list[int] = []
    train(data, tmp_path, training, identity="others", progress=lambda done, _: seen.append(done))
    assert seen[0] == 0


def test_the_best_weights_are_those_of_the_best_validation(data: TaggedImages, tmp_path: Path) -> None:
    training = replace(QUICK, epochs=4, select="best")
    network = train(data, tmp_path, training, validation=data)
    rows = [json.loads(line) for line in files_of(tmp_path, training).log.read_text().splitlines()]
    best = max(row["val_map"] for row in rows if "val_map" in row)
    found = mean_average_precision(tag_scores(network, data.images, training), TAGS)
    assert found == pytest.approx(best, abs=1e-6)
    with pytest.raises(UserError, match="select is 'best' but there is no validation split"):
        train(data, tmp_path / "without", training)


def test_trained_weights_are_used_again_and_damaged_ones_are_told(data: TaggedImages, tmp_path: Path) -> None:
    training = replace(QUICK, epochs=1)
    network = train(data, tmp_path, training)
    again = train(data, tmp_path, training, progress=lambda *_: pytest.fail("trained twice"))
    assert weights_digest(network) == weights_digest(again) != weights_digest(fresh())
    path = files_of(tmp_path, training).weights
    with pytest.raises(UserError, match="does not fit the network .*delete it to train again"):
        load_weights(fresh(Mctformer), path)
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="delete it to train again"):
        load_weights(fresh(), path)
    assert not load_weights(fresh(), tmp_path / "none.safetensors")


def test_training_leaves_the_random_state_alone(data: TaggedImages, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    train(data, tmp_path, replace(QUICK, epochs=1))
    assert torch.equal(before, torch.get_rng_state())


def test_images_that_show_no_class_are_negatives(data: TaggedImages, tmp_path: Path) -> None:
    training = replace(QUICK, epochs=6)
    network = train(TaggedImages(data.images, torch.zeros_like(TAGS)), tmp_path, training, validation=data)
    scores = tag_scores(network, data.images, training)
    assert torch.isfinite(scores).all() and (scores < tag_scores(fresh(), data.images, training)).all()


def test_an_infinite_loss_is_told(data: TaggedImages, tmp_path: Path) -> None:
    network = fresh()
    with torch.no_grad():
        network.head.bias.fill_(math.nan)
    with pytest.raises(WeaklyError, match="loss of weaktr is nan at update 1"):
        train_network(network, data, QUICK, files_of(tmp_path, QUICK), "images")


def test_the_rate_rises_in_a_line_and_falls_along_the_cosine_of_all_epochs() -> None:
    training = ClueTraining()
    rate = lambda epoch, batch=64: training.rate(int(epoch * 10), 10, batch)
    peak = 4e-4 * 64 / 512
    assert rate(0) == 1e-6 and rate(2.5) == pytest.approx((1e-6 + peak) / 2)
    assert rate(5) == pytest.approx(1e-5 + (peak - 1e-5) / 2 * (1 + math.cos(math.pi * 5 / 60)))
    assert rate(30) == pytest.approx((peak + 1e-5) / 2) and rate(60) == pytest.approx(1e-5)
    assert rate(30, batch=8) == rate(60, batch=8) == pytest.approx(peak / 8), "never above the peak"


def test_a_batch_is_a_function_of_seed_and_step(data: TaggedImages) -> None:
    batches = ClueBatches(data, QUICK.augmentation, batch=5, seed=1)
    before = torch.get_rng_state()
    pixels, tags = batches[7]
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(3)
    again = ClueBatches(data, QUICK.augmentation, batch=5, seed=1)[7]
    assert torch.equal(pixels, again[0]) and torch.equal(tags, again[1])
    assert pixels.shape == (5, 3, 16, 16) and torch.equal(tags, TAGS[batches.indices(7)].float())
    assert not torch.equal(pixels, ClueBatches(data, QUICK.augmentation, batch=5, seed=2)[7][0])
    for epoch in range(3):
        drawn = torch.cat([batches.indices(2 * epoch + place) for place in range(2)])
        assert len(set(drawn.tolist())) == 10, "an image at most once per epoch"
    assert ClueBatches(data, QUICK.augmentation, batch=50, seed=1).batch == IMAGES


def test_views_are_drawn_for_every_image_by_itself(paths: list[Path]) -> None:
    same = TaggedImages(ImageBank([paths[0]] * 8), TAGS[:8])
    strong = ClueAugmentation(crop=16, rand_augment=9, erasing=1.0)
    views, _ = ClueBatches(same, strong, batch=8, seed=0)[0]
    assert len({view.numpy().tobytes() for view in views}) == 8 and torch.isfinite(views).all()
    plain = ClueAugmentation(crop=16, scale=(1.0, 1.0), flip=0.0, jitter=0.0, erasing=0.0)
    assert not torch.equal(ClueBatches(same, plain, batch=8, seed=0)[0][0], views)


def test_images_beyond_the_budget_are_read_again_and_are_the_same(paths: list[Path], tmp_path: Path) -> None:
    sizes = [np.asarray(Image.open(path)).nbytes for path in paths]
    some, everything = ImageBank(paths, budget=sum(sizes[:5])), ImageBank(paths)
    assert some.kept == 5 and everything.kept == len(everything) == IMAGES and ImageBank(paths, budget=0).kept == 0
    for index, path in enumerate(paths):
        assert torch.equal(some.image(index), everything.image(index))
        assert np.array_equal(some.image(index).permute(1, 2, 0).numpy(), np.asarray(Image.open(path)))
    Image.new("RGB", (100, 50)).save(tmp_path / "large.png")
    assert ImageBank([tmp_path / "large.png"], side=40).image(0).shape == (3, 20, 40)
    with pytest.raises(UserError, match=r"no image file .*absent.png"):
        ImageBank([tmp_path / "absent.png"])
    with pytest.raises(UserError, match="no tagged image"):
        TaggedImages(ImageBank([]), TAGS[:0])


def test_average_precision_counts_the_classes_that_are_shown() -> None:
    scores = torch.tensor([[3.0, 1.0, 9.0], [2.0, 2.0, 9.0], [1.0, 3.0, 9.0]])
    tags = torch.tensor([[True, False, False], [False, False, False], [True, True, False]])
    assert mean_average_precision(scores, tags) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 2)
    assert mean_average_precision(scores, torch.zeros_like(tags)) == 0.0


def test_the_identity_knows_network_and_settings_but_not_how_images_are_kept() -> None:
    training = QUICK
    first = training_identity(fresh(), training)
    assert first == training_identity(fresh(), replace(training, memory=1, workers=3))
    changed = [
        training_identity(fresh(), replace(training, lr=0.1)),
        training_identity(fresh(Mctformer), training),
        training_identity(WeakTr(TINY, 3), training),
    ]
    assert len({first, *changed}) == 4


def test_biases_norms_tokens_and_positions_do_not_decay() -> None:
    network = fresh()
    decayed = {name for name, _ in network.named_parameters()} - network.undecayed()
    assert {"head.weight", "fusion.squeeze.weight", "encoder.blocks.0.attn.qkv.weight"} <= decayed
    assert all(name.endswith("weight") and "norm" not in name for name in decayed)
    assert {"encoder.cls_token", "encoder.pos_embed", "head.bias"} <= network.undecayed()


@pytest.mark.parametrize(
    "make",
    [
        lambda: ClueTraining(epochs=0),
        lambda: ClueTraining(memory=-1),
        lambda: ClueAugmentation(scale=(0.0, 1.0)),
        lambda: ClueAugmentation(rand_augment=31),
        lambda: ClueAugmentation(erasing=2.0),
    ],
)
def test_impossible_settings_are_refused(make: Any) -> None:
    with pytest.raises(UserError, match="; give "):
        make()
