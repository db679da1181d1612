"""Training of the prompts: only contexts move, towards less loss, and a stopped training ends with the same bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from tiny_clip import tiny_clip

from weakly.errors import UserError, WeaklyError
from weakly.foundation.clip import Clip
from weakly.methods.fma import prompts as module
from weakly.methods.fma.cam import GradCam, positives_of
from weakly.methods.fma.losses import activation_loss, binary_loss, contrastive_loss, map_cross_entropy
from weakly.methods.fma.model import PromptContext
from weakly.methods.fma.prompts import (
    PromptFiles,
    batch_of,
    classification_loss,
    data_digest,
    load_context,
    segmentation_loss,
    train_context,
)
from weakly.methods.fma.schedule import learning_rate
from weakly.methods.fma.settings import PromptSettings, SegmentationPromptSettings, ViewSettings
from weakly.methods.fma.views import Views, encode_views, seed_view

NAMES = ["cow", "dog", "bus", "grass", "tree"]
VIEWS = ViewSettings(count=2, crop=32, long=(40, 60))
SETTINGS = PromptSettings(iterations=60, warmup=5, batch_size=4, length=4, lr=0.05)
SIZE = (6, 2)


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


@pytest.fixture(scope="module")
def views(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Views:
    """Six noisy images of two views."""
    folder = tmp_path_factory.mktemp("views")
    paths = [folder / f"{index}.png" for index in range(6)]
    for index, path in enumerate(paths):
        pixels = np.random.default_rng(index).integers(0, 256, (48, 48, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path)
    return encode_views(folder, clip, paths, [f"{index:032x}" for index in range(6)], VIEWS, inputs=True)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Seed maps of the six images: the left half is class ``i % 3``, a row is void."""
    folder = tmp_path_factory.mktemp("seeds")
    for index in range(6):
        seed = np.zeros((48, 48), np.uint8)
        seed[:, :24] = index % 3 + 1
        seed[-1] = 255
        Image.fromarray(seed).save(folder / f"{index}.png")
    return [folder / f"{index}.png" for index in range(6)]


TAGS = torch.eye(3, dtype=torch.bool).repeat(2, 1)


def files(folder: Path, stage: str = "classification", identity: str = "ab" * 32) -> PromptFiles:
    return PromptFiles(folder / "prompts", stage, identity)


def context_of(clip: Clip, settings: PromptSettings) -> PromptContext:
    return PromptContext(clip, NAMES, per_class=settings.per_class, position=settings.position, length=4, std=0.05)


def train(
    clip: Clip, loss: Any, folder: Path, settings: PromptSettings = SETTINGS, progress: Any = None, data: str = "d"
) -> PromptContext:
    context = context_of(clip, settings)
    train_context(context, clip, loss, SIZE, settings, files(folder), data, progress)
    return context


@pytest.mark.parametrize("stage", ["classification", "segmentation"])
def test_training_lowers_the_loss_and_moves_the_context_alone(
    clip: Clip, views: Views, seeds: list[Path], tmp_path: Path, stage: str
) -> None:
    settings: PromptSettings = SETTINGS
    loss = classification_loss(views, TAGS, clip.logit_scale)
    if stage == "segmentation":
        settings = SegmentationPromptSettings(iterations=30, warmup=2, batch_size=6, length=4, lr=0.2, std=0.05)
        loss = segmentation_loss(views, TAGS, seeds, clip, settings)
    before = {name: value.clone() for name, value in clip.state_dict().items()}
    start = context_of(clip, settings)
    trained = train(clip, loss, tmp_path, settings)
    assert not torch.equal(start.context, trained.context)
    assert all(torch.equal(before[name], value) for name, value in clip.state_dict().items())
    images, numbers = torch.arange(6), torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        first, last = (float(loss(context(clip), images, numbers)) for context in (start, trained))
    assert last < first
    rows = [json.loads(line) for line in files(tmp_path).log.read_text().splitlines()]
    assert rows[0]["step"] == 1 and rows[-1]["step"] == settings.iterations
    for row in rows:
        rate = learning_rate(row["step"] - 1, total=settings.iterations, warmup=settings.warmup, peak=settings.lr)
        assert row["lr"] == rate


def test_only_the_context_is_stored(clip: Clip, views: Views, tmp_path: Path) -> None:
    context = train(clip, classification_loss(views, TAGS, clip.logit_scale), tmp_path)
    stored = safetensors.torch.load_file(files(tmp_path).context)
    assert set(stored) == {"context"} and torch.equal(stored["context"], context.context)
    assert sorted(path.suffixes[-1] for path in (tmp_path / "prompts").iterdir()) == [".jsonl", ".safetensors"]


@pytest.mark.parametrize("stop_at", [3, 25, 26, 59])
def test_a_stopped_training_ends_with_the_same_bytes(clip: Clip, views: Views, tmp_path: Path, stop_at: int) -> None:
    loss = classification_loss(views, TAGS, clip.logit_scale)
    train(clip, loss, tmp_path / "whole")

    def stop(done: int, _: int) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(clip, loss, tmp_path / "stopped", progress=stop)
    assert not files(tmp_path / "stopped").context.exists()
    seen: list[int] = []
    train(clip, loss, tmp_path / "stopped", progress=lambda done, _: seen.append(done))
    assert seen[0] == stop_at // module.SAVE_EVERY * module.SAVE_EVERY, "the checkpoint is used"
    for name in ("context", "log"):
        whole, stopped = (getattr(files(tmp_path / run), name).read_bytes() for run in ("whole", "stopped"))
        assert whole == stopped


def test_a_checkpoint_of_other_images_is_left_aside(clip: Clip, views: Views, tmp_path: Path) -> None:
    loss = classification_loss(views, TAGS, clip.logit_scale)

    def stop(done: int, _: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(clip, loss, tmp_path, progress=stop)
    seen: list[int] = []
    train(clip, loss, tmp_path, progress=lambda done, _: seen.append(done), data="other")
    assert seen[0] == 0


def test_a_trained_context_is_used_again_whatever_the_images(clip: Clip, views: Views, tmp_path: Path) -> None:
    trained = train(clip, classification_loss(views, TAGS, clip.logit_scale), tmp_path)
    again = train(clip, lambda *_: pytest.fail("trained twice"), tmp_path, data="other")
    assert torch.equal(trained.context, again.context)


def test_a_damaged_context_is_one_sentence(clip: Clip, tmp_path: Path) -> None:
    context, place = context_of(clip, SETTINGS), files(tmp_path)
    assert not load_context(context, place)
    place.folder.mkdir()
    place.context.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"cannot be read .*delete it to train the prompts again"):
        load_context(context, place)
    place.context.write_bytes(safetensors.torch.save({"context": torch.zeros(2, 2)}))
    with pytest.raises(UserError, match=r"shape \(2, 2\), not \(4, 64\)"):
        load_context(context, place)


def test_stop_ends_the_training_on_the_schedule_of_the_whole(clip: Clip, views: Views, tmp_path: Path) -> None:
    """The context of update 20 of 60 is the one that a whole training passes through."""
    loss = classification_loss(views, TAGS, clip.logit_scale)
    stopped = train(clip, loss, tmp_path / "a", replace(SETTINGS, stop=20))
    context, passed = context_of(clip, SETTINGS), []

    def look(done: int, _: int) -> None:
        if done == 20:
            passed.append(context.context.detach().clone())

    train_context(context, clip, loss, SIZE, SETTINGS, files(tmp_path / "b"), "d", look)
    assert torch.equal(stopped.context, passed[0])


def test_an_infinite_loss_is_told(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(WeaklyError, match="loss of the classification prompts is nan at update 1"):
        train(clip, lambda text, *_: text.sum() * float("nan"), tmp_path)


def test_an_epoch_shows_every_image_once_and_incomplete_batches_never() -> None:
    settings = PromptSettings(batch_size=4)
    for epoch in range(5):
        drawn = torch.cat([batch_of(2 * epoch + place, (11, 3), settings)[0] for place in range(2)])
        assert len(drawn) == 8 == len(set(drawn.tolist()))
    views = torch.cat([batch_of(step, (11, 3), settings)[1] for step in range(40)])
    assert set(views.tolist()) == {0, 1, 2}
    assert len(batch_of(0, (3, 1), settings)[0]) == 3, "fewer images than a batch"
    assert not torch.equal(batch_of(0, (11, 3), settings)[0], batch_of(0, (11, 3), replace(settings, order_seed=1))[0])


def test_micro_batches_are_normalised_by_themselves_and_averaged(clip: Clip, views: Views, tmp_path: Path) -> None:
    loss = classification_loss(views, TAGS, clip.logit_scale)
    settings = replace(SETTINGS, iterations=1, warmup=0, micro_batches=2, weight_decay=0.0)
    trained, start = train(clip, loss, tmp_path, settings), context_of(clip, settings)
    images, numbers = batch_of(0, SIZE, settings)
    text = start(clip)
    mean = (loss(text, images[:2], numbers[:2]) + loss(text, images[2:], numbers[2:])) / 2
    mean.backward()
    expected = start.context.detach() - settings.lr * start.context.grad
    assert torch.allclose(trained.context, expected, atol=1e-6)


def test_losses_are_those_of_the_paper_on_what_is_stored(clip: Clip, views: Views, seeds: list[Path]) -> None:
    images, numbers = torch.tensor([4, 1]), torch.tensor([0, 1])
    text = context_of(clip, SETTINGS)(clip)
    stored = torch.from_numpy(views.embeddings[[4, 1], [0, 1]])
    logits = clip.logit_scale * torch.nn.functional.normalize(stored, dim=-1) @ text[:3].T
    found = classification_loss(views, TAGS, clip.logit_scale)(text, images, numbers)
    assert torch.allclose(found, contrastive_loss(logits, TAGS[images]))
    found = classification_loss(views, TAGS, clip.logit_scale, "bce")(text, images, numbers)
    assert torch.allclose(found, binary_loss(logits, TAGS[images]))

    settings = SegmentationPromptSettings(classes_from="tags", foreground_weight=2.0, background_weight=3.0)
    inputs = torch.from_numpy(views.inputs[[4, 1], [0, 1]]).float()
    with Image.open(seeds[4]) as a, Image.open(seeds[1]) as b:
        maps_of = [np.array(a), np.array(b)]
    cuts = [seed_view(seed, views.keys[i], v, VIEWS) for seed, i, v in zip(maps_of, (4, 1), (0, 1), strict=True)]
    maps = GradCam(clip, inputs, views.grid).maps(text, TAGS[images])
    parts = activation_loss(maps, torch.from_numpy(np.stack(cuts)), positives_of(TAGS[images]))
    found = segmentation_loss(views, TAGS, seeds, clip, settings)(text, images, numbers)
    assert torch.allclose(found, 2 * parts.foreground + 3 * parts.background)
    parts = map_cross_entropy(maps, torch.from_numpy(np.stack(cuts)), positives_of(TAGS[images]))
    found = segmentation_loss(views, TAGS, seeds, clip, replace(settings, loss="ce"))(text, images, numbers)
    assert torch.allclose(found, 2 * parts.foreground + 3 * parts.background)


def test_a_batch_whose_crops_show_no_class_changes_nothing(clip: Clip, views: Views, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((48, 48), np.uint8)).save(tmp_path / "empty.png")
    settings = SegmentationPromptSettings(iterations=3, warmup=0, batch_size=4, length=4)
    loss = segmentation_loss(views, TAGS, [tmp_path / "empty.png"] * 6, clip, settings)
    trained = train(clip, loss, tmp_path, settings)
    assert torch.equal(trained.context, context_of(clip, settings).context)


def test_the_digest_knows_images_tags_and_seeds() -> None:
    digests = {
        data_digest(["a", "b"], TAGS),
        data_digest(["a", "c"], TAGS),
        data_digest(["a", "b"], ~TAGS),
        data_digest(["a", "b"], TAGS, [Path("x.png")]),
    }
    assert len(digests) == 4
