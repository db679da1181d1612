"""How the bundled SAM is made: pictures, prompts, the loss, training that resumes, and the release."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from weakly.data.dataset import Dataset, Record
from weakly.errors import UserError, WeaklyError
from weakly.foundation.pretraining import pictures, release
from weakly.foundation.pretraining.command import make_sam
from weakly.foundation.pretraining.dead_leaves import dead_leaves
from weakly.foundation.pretraining.grouping import GroupingHead, grouping_loss
from weakly.foundation.pretraining.measure import PromptScores, best_iou, dataset_masks, measure_prompts, world_parts
from weakly.foundation.pretraining.pictures import PictureBank, render_bank, world
from weakly.foundation.pretraining.prompts import (
    PromptBatch,
    StepBatches,
    centre_points,
    draw_batch,
    inner_points,
    jitter_boxes,
    photometric,
    tight_boxes,
)
from weakly.foundation.pretraining.recipe import RECIPES, SamStage, SamTraining
from weakly.foundation.pretraining.release import release_sam
from weakly.foundation.pretraining.sam import all_masks, prompt_tokens, sam_loss, train_sam, training_losses
from weakly.foundation.sam import SamSegmenter, load_segmenter
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam
from weakly.foundation_commands import foundation_train_sam
from weakly.labels import Boxes, Sample
from weakly.vocabulary import Vocabulary

torch.set_num_threads(1)

CONFIG = SmallSamConfig(image_size=64, width=32, stem=8, stages=(8, 16, 24, 32), blocks=(1, 1, 1, 1), mlp_dim=64)
TRAINING = SamTraining(
    stages=(SamStage(32, 4, pictures=2, prompts=3), SamStage(64, 8, pictures=2, prompts=3)), warmup=2
)


@pytest.fixture(scope="module")
def leaves() -> PictureBank:
    return bank([dead_leaves(1, index, 64) for index in range(6)])


@pytest.fixture(scope="module")
def worlds() -> PictureBank:
    return bank([world(1, index, 64) for index in range(3)])


@pytest.fixture(scope="module")
def segmenter() -> SamSegmenter:
    torch.manual_seed(0)
    return SamSegmenter(build_small_sam(CONFIG), "tiny")


def bank(made: list) -> PictureBank:
    return PictureBank(np.stack([p.image for p in made]), np.stack([p.levels for p in made]))


def batch_of(leaves: PictureBank, seed: int = 0, size: int = 64) -> PromptBatch:
    return draw_batch(np.random.default_rng(seed), [(leaves, 1.0)], size, pictures=4, prompts=5)


class TestPictures:
    def test_dead_leaves_are_a_function_of_their_arguments(self):
        first, again, other = (dead_leaves(7, index, 64) for index in (3, 3, 4))
        assert first.image.shape == (64, 64, 3)
        assert first.levels.shape == (3, 64, 64)
        assert np.array_equal(first.image, again.image)
        assert np.array_equal(first.levels, again.levels)
        assert not np.array_equal(first.image, other.image)

    @pytest.mark.parametrize("make", [dead_leaves, world])
    def test_every_part_lies_in_one_whole_and_every_sub_part_in_one_part(self, make):
        for index in range(3):
            wholes, parts, details = make(2, index, 96).levels
            for outer, inner in ((wholes, parts), (parts, details)):
                for region in np.unique(inner[inner > 0]):
                    owners = np.unique(outer[inner == region])
                    assert len(owners) == 1
                    assert owners[0] > 0

    def test_a_killed_rendering_goes_on_with_the_chunks_it_has(self, tmp_path, monkeypatch):
        monkeypatch.setattr(pictures, "CHUNK", 4)
        seen: list[tuple[int, int]] = []
        whole = render_bank(tmp_path, "leaves", 7, seed=5, size=32, progress=lambda *done: seen.append(done))
        assert whole.images.shape == (8, 32, 32, 3)
        assert whole.levels.shape == (8, 3, 32, 32)
        assert seen == [(0, 8), (4, 8), (8, 8)]
        kept, lost = sorted((tmp_path / "leaves-5-32").glob("*.npy"))
        lost.unlink()
        before = kept.stat().st_mtime_ns
        resumed = render_bank(tmp_path, "leaves", 8, seed=5, size=32)
        assert kept.stat().st_mtime_ns == before
        assert np.array_equal(resumed.images, whole.images)
        assert np.array_equal(resumed.levels, whole.levels)
        assert np.array_equal(whole.images[5], dead_leaves(5, 5, 32).image)

    def test_processes_render_the_same_pictures(self, tmp_path):
        made = render_bank(tmp_path, "leaves", 1, seed=5, size=32, workers=2)
        assert len(made) == pictures.CHUNK
        assert np.array_equal(made.images[9], dead_leaves(5, 9, 32).image)

    def test_worlds_keep_regions_and_lose_names(self, worlds):
        assert worlds.levels.dtype == np.uint8
        assert len(worlds) == 3
        assert all(levels[1].any() for levels in worlds.levels)


class TestPrompts:
    def test_a_batch(self, leaves):
        batch = batch_of(leaves)
        n = len(batch.masks)
        assert batch.pixels.shape == (4, 3, 64, 64)
        assert 0 <= batch.pixels.min() < batch.pixels.max() <= 1
        assert batch.masks.shape == (n, 64, 64)
        assert batch.masks.dtype == torch.bool
        assert (batch.masks.sum((1, 2)) >= 24).all()
        assert batch.image_index.unique().tolist() == [0, 1, 2, 3]
        assert batch.image_index.bincount().tolist() == [5, 5, 5, 5]
        assert batch.levels.shape == (4, 3, 64, 64)
        assert batch.is_part.any()
        assert not batch.is_part.all()
        for field in fields(batch):
            assert torch.equal(getattr(batch.to(torch.device("cpu")), field.name), getattr(batch, field.name))

    def test_boxes_are_tight_and_points_inside(self, leaves):
        batch = batch_of(leaves)
        for mask, box, point in zip(batch.masks, batch.boxes.int().tolist(), batch.points.int().tolist(), strict=True):
            rows, columns = mask.nonzero().T
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert mask[point[1], point[0]]

    def test_the_same_seed_draws_the_same_batch(self, leaves, worlds):
        banks = [(leaves, 0.5), (worlds, 0.5)]
        first, again = (draw_batch(np.random.default_rng(3), banks, 32, 3, 4) for _ in range(2))
        assert torch.equal(first.pixels, again.pixels)
        assert torch.equal(first.masks, again.masks)
        assert torch.equal(first.points, again.points)

    def test_pictures_without_regions_are_passed_over(self, leaves):
        images = np.concatenate([np.full((1, 64, 64, 3), 255, np.uint8), leaves.images[:1] // 2])
        levels = np.concatenate([np.zeros((1, 3, 64, 64), np.uint8), leaves.levels[:1]])
        batch = draw_batch(np.random.default_rng(0), [(PictureBank(images, levels), 1.0)], 64, 6, 2)
        assert batch.pixels.max() <= 0.5

    def test_a_share_of_the_pictures_is_shown_whole(self):
        image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
        levels = np.zeros((1, 3, 64, 64), np.uint8)
        levels[:, 1, 20:28, 30:38] = 1  # 8 px close up are at most 40 px of the picture
        values = torch.from_numpy(np.sort(image.reshape(-1)))

        def seen_whole(share: float) -> int:
            batch = draw_batch(np.random.default_rng(5), [(PictureBank(image, levels), 1.0)], 64, 24, 2, whole=share)
            drawn = (batch.pixels * 255).round().to(torch.uint8).flatten(1).sort(1).values
            return int((drawn == values).all(1).sum())

        assert [seen_whole(share) for share in (0.0, 1.0)] == [0, 24]
        assert 4 <= seen_whole(0.4) <= 16

    @pytest.mark.parametrize(("power", "low", "high"), [(0.0, 0.35, 0.65), (1.0, 0.0, 0.15)])
    def test_how_often_small_regions_are_asked_for(self, power, low, high):
        levels = np.zeros((1, 3, 64, 64), np.uint8)
        levels[:, 1, :, :31], levels[:, 1, 10:20, 40:50] = 1, 2
        images = np.zeros((1, 64, 64, 3), np.uint8)
        bank = [(PictureBank(images, levels), 1.0)]
        batch = draw_batch(np.random.default_rng(0), bank, 64, 200, 1, whole=1.0, area_power=power)
        assert low <= float((batch.masks.sum((1, 2)) == 100).float().mean()) <= high

    def test_steps_of_a_stage_take_its_sizes_in_turn(self, leaves):
        stage = SamStage(64, 4, pictures=1, prompts=1, turns=(32,))
        batches = StepBatches(leaves, None, SamTraining(stages=(stage,)))
        assert [batches[step].pixels.shape[-1] for step in range(4)] == [64, 32, 64, 32]

    @given(st.integers(0, 2**32 - 1))
    def test_points_lie_inside_any_mask(self, seed):
        rng = np.random.default_rng(seed)
        masks = rng.random((3, 12, 17)) < rng.uniform(0.02, 0.9)
        masks[:, 5, 9] = True
        for points in (centre_points(masks), inner_points(rng, masks)):
            x, y = points.astype(int).T
            assert masks[np.arange(3), y, x].all()
        boxes = tight_boxes(masks)
        assert (boxes[:, :2] < boxes[:, 2:]).all()

    def test_the_centre_point_of_a_ring_is_on_the_ring(self):
        y, x = np.mgrid[:21, :21] - 10
        ring = (abs(np.hypot(x, y) - 8) < 1)[None]
        px, py = centre_points(ring)[0].astype(int)
        assert ring[0, py, px]
        assert centre_points(np.ones((1, 5, 7), bool)).tolist() == [[3, 2]]

    def test_jitter_is_in_proportion_and_leaves_some_boxes_exact(self):
        boxes = torch.tensor([[100.0, 100, 110, 200]]).expand(2000, 4)
        moved = jitter_boxes(boxes, torch.Generator().manual_seed(0))
        exact = (moved == boxes).all(1)
        assert 0.35 < exact.float().mean() < 0.45
        deviation = (moved - boxes)[~exact].std(0)
        torch.testing.assert_close(deviation, torch.tensor([0.6, 6, 0.6, 6]), rtol=0.1, atol=0)

    def test_photometric_change_keeps_range_and_geometry(self):
        """A black square on white stays where it is: its edges keep the strongest gradients."""
        pixels = torch.full((64, 3, 32, 32), 0.9)
        pixels[..., 8:20, 12:28] = 0.1
        changed = photometric(pixels, torch.Generator().manual_seed(0))
        assert changed.shape == pixels.shape
        assert changed.min() >= 0
        assert changed.max() <= 1
        assert not torch.equal(changed[0], changed[1])
        gradient = (changed.mean(1)[:, :, 1:] - changed.mean(1)[:, :, :-1]).abs()[:, 9:19].mean((0, 1))
        assert set(gradient.topk(2).indices.tolist()) == {11, 27}
        assert torch.equal(changed, photometric(pixels, torch.Generator().manual_seed(0)))


class TestAgainstTheAdapter:
    """Training computes prompts and masks for itself, batched; the numbers are those of the adapter and the library."""

    def test_all_masks_are_the_single_and_the_three_masks_of_the_decoder(self, segmenter):
        generator = torch.Generator().manual_seed(0)
        embeddings = torch.randn(2, *segmenter.embedding_shape, generator=generator)
        tokens = torch.randn(5, 2, 32, generator=generator)
        image = torch.tensor([1, 0, 0, 1, 1])
        logits, iou = all_masks(segmenter.model, embeddings, tokens, image)
        assert logits.shape == (5, 4, 32, 32)
        for multimask, rows in ((False, slice(0, 1)), (True, slice(1, 4))):
            expected, expected_iou = segmenter.decode(embeddings, tokens, image, multimask=multimask)
            torch.testing.assert_close(logits[:, rows], expected, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(iou[:, rows], expected_iou, atol=1e-5, rtol=1e-5)

    def test_prompt_tokens_are_the_box_and_point_tokens(self, segmenter):
        boxes = torch.tensor([[3.0, 4, 30, 40], [10, 10, 60.5, 64]])
        points = torch.tensor([[7.0, 8], [20, 63]])
        for is_box, expected in ((True, segmenter.box_tokens(boxes)), (False, segmenter.point_tokens(points))):
            tokens = prompt_tokens(segmenter.model, boxes, points, torch.tensor([is_box] * 2), 64)
            torch.testing.assert_close(tokens, expected, atol=1e-5, rtol=0)

    def test_the_encoder_takes_other_sizes(self, segmenter):
        assert segmenter.model.vision_encoder(torch.zeros(1, 3, 96, 32)).last_hidden_state.shape == (1, 32, 12, 4)


class TestLoss:
    def losses(self, leaves: PictureBank, logits_of: object) -> dict[str, Tensor]:
        batch = batch_of(leaves)
        is_box = torch.arange(len(batch.masks)) % 2 == 0
        truth = torch.nn.functional.interpolate(batch.masks[:, None].float(), (32, 32), mode="area")
        logits, iou = logits_of(truth)
        return sam_loss(logits, iou, replace(batch, is_box=is_box))

    def test_it_falls_when_the_truth_is_predicted(self, leaves):
        def predict(gain: float, iou: float) -> object:
            return lambda truth: (gain * (truth - 0.5).expand(-1, 4, -1, -1), torch.full((len(truth), 4), iou))

        right, unsure, wrong = (self.losses(leaves, predict(*p)) for p in ((12, 1.0), (0.0, 0.5), (-12, 1.0)))
        assert right["loss"] < unsure["loss"] < wrong["loss"]
        assert right["box_iou"] == right["point_iou"] == 1
        assert right["iou_loss"] == 0
        assert wrong["box_iou"] < 0.1
        assert wrong["iou_loss"] > 0.8

    def test_points_train_the_best_of_three_masks_only(self, leaves):
        """One right mask among three is enough for a point, and gets all of the gradient."""
        batch = replace_is_part(batch_of(leaves), part=False)
        n = len(batch.masks)
        truth = torch.nn.functional.interpolate(batch.masks[:, None].float(), (32, 32), mode="area")
        logits = (8 * (truth - 0.5) * torch.tensor([-1.0, -1, 1, -1]).view(1, 4, 1, 1)).requires_grad_()
        points = replace(batch, is_box=torch.zeros(n, dtype=torch.bool))
        sam_loss(logits, torch.ones(n, 4), points)["loss"].backward()
        assert (logits.grad[:, 2] != 0).any()
        assert (logits.grad[:, [0, 1, 3]] == 0).all()


def replace_is_part(batch: PromptBatch, *, part: bool) -> PromptBatch:
    return replace(batch, is_part=torch.full_like(batch.is_part, part))


class TestGrouping:
    """Pixels of one region are to share a vector, neighbours across a boundary are not."""

    def regions(self) -> Tensor:
        regions = torch.zeros(1, 3, 24, 24, dtype=torch.uint8)
        regions[:, :, :, 10:] = 1
        return regions

    def vectors(self, step: float) -> Tensor:
        return step * self.regions()[:, :, None].float().expand(-1, -1, 8, -1, -1)

    def test_it_falls_as_regions_move_apart(self):
        together, near, far = (grouping_loss(self.vectors(step), self.regions()) for step in (0.0, 0.3, 2.0))
        assert together > near > far
        assert far < 1e-3

    def test_it_rises_when_one_region_has_two_vectors(self):
        noise = torch.randn(1, 3, 8, 24, 24, generator=torch.Generator().manual_seed(0))
        assert grouping_loss(self.vectors(2.0) + noise, self.regions()) > grouping_loss(
            self.vectors(2.0), self.regions()
        )

    def test_the_gradient_is_finite_where_two_regions_share_a_vector(self):
        vectors = torch.zeros(1, 3, 8, 24, 24, requires_grad=True)
        (gradient,) = torch.autograd.grad(grouping_loss(vectors + 1e-3 * self.vectors(1.0), self.regions()), vectors)
        assert gradient.isfinite().all()
        assert (gradient != 0).any()

    def test_a_head_gives_a_vector_per_level_and_decoder_pixel(self):
        assert GroupingHead(32)(torch.zeros(2, 32, 4, 6)).shape == (2, 3, 8, 16, 24)


class TestTraining:
    def test_a_stopped_training_ends_with_the_same_weights(self, leaves, worlds, tmp_path):
        seen: list[int] = []
        report = lambda step, values: seen.append(step)
        straight = train_sam(leaves, worlds, tmp_path / "straight", CONFIG, TRAINING, report=report)
        train_sam(leaves, worlds, tmp_path / "stopped", CONFIG, TRAINING, until=6)
        resumed = train_sam(leaves, worlds, tmp_path / "stopped", CONFIG, TRAINING)
        for name, value in straight.state_dict().items():
            assert torch.equal(value, resumed.state_dict()[name]), name
        start = build_small_sam(CONFIG).state_dict()
        assert not torch.equal(start["mask_decoder.iou_token.weight"], straight.mask_decoder.iou_token.weight)
        assert seen == [10]
        (line,) = (tmp_path / "straight" / "log.jsonl").read_text().splitlines()
        assert {"step", "size", "loss", "box_iou", "point_iou", "iou_loss", "grouping_loss", "seconds"} == json.loads(
            line
        ).keys()

    def test_the_gaussian_matrix_does_not_train(self, leaves, tmp_path):
        torch.manual_seed(TRAINING.seed)
        before = build_small_sam(CONFIG).shared_image_embedding.positional_embedding
        model = train_sam(leaves, None, tmp_path, CONFIG, TRAINING, until=2)
        assert torch.equal(model.shared_image_embedding.positional_embedding, before)
        assert torch.equal(model.prompt_encoder.shared_embedding.positional_embedding, before)

    def test_another_recipe_is_refused(self, leaves, tmp_path):
        train_sam(leaves, None, tmp_path, CONFIG, TRAINING, until=1)
        with pytest.raises(UserError, match="another recipe"):
            train_sam(leaves, None, tmp_path, CONFIG, replace(TRAINING, lr=1e-3), until=2)

    def test_stages_and_learning_rate(self):
        assert [TRAINING.stage_at(step).size for step in (0, 3, 4, 11, 99)] == [32, 32, 64, 64, 64]
        assert TRAINING.rate(0) == TRAINING.lr / 2
        rates = [TRAINING.rate(step) for step in range(1, 13)]
        assert rates == sorted(rates, reverse=True)
        assert rates[-1] == pytest.approx(0, abs=1e-9)
        assert TRAINING.scaled(None) is TRAINING
        assert [stage.steps for stage in TRAINING.scaled(3).stages] == [1, 2]


class TestMeasuring:
    def test_best_iou_worked_out(self):
        truth = torch.zeros(1, 4, 4, dtype=torch.bool)
        truth[:, :2] = True
        predicted = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
        predicted[0, 0, 0] = True
        predicted[0, 1, :3] = True
        assert best_iou(predicted, truth).tolist() == pytest.approx([2 / 3])
        assert best_iou(~truth[:, None], truth).tolist() == [0]

    def test_masks_of_worlds_and_datasets(self, tmp_path):
        dataset = rectangles(tmp_path)
        ((image, masks),) = dataset_masks(dataset)
        assert image.shape == (40, 60, 3)
        assert masks.sum((1, 2)).tolist() == [20 * 20, 10 * 30]
        assert list(dataset_masks(dataset, limit=0)) == []
        (world_image, parts), *_ = world_parts(2, seed=1, size=64)
        assert world_image.shape == (64, 64, 3)
        assert parts.any((1, 2)).all()
        assert (parts.sum(0) <= 1).all()

    def test_scores_of_a_segmenter(self, segmenter, tmp_path):
        scores = measure_prompts(segmenter, dataset_masks(rectangles(tmp_path)))
        assert (scores.images, scores.masks) == (1, 2)
        assert 0 <= scores.point_single <= 1
        assert 0 <= scores.box <= 1


def rectangles(folder: Path) -> Dataset:
    """One readable image with two rectangles, and one without truth."""
    pixels = np.full((40, 60, 3), 90, np.uint8)
    boxes = np.array([[5, 5, 25, 25], [30, 2, 40, 32]], np.float32)
    rings = tuple((0, [[x0, y0, x1, y0, x1, y1, x0, y1]]) for x0, y0, x1, y1 in boxes.tolist())
    path = folder / "a.png"
    Image.fromarray(pixels).save(path)
    sample = Sample(0, path, (40, 60), boxes=Boxes(boxes, np.zeros(2, np.int64)))
    return Dataset("rectangles", "val", Vocabulary.from_names(["Part"]), (Record(sample, rings), Record(sample)))


class TestRelease:
    scores = {"unseen": PromptScores(0.8125, 0.75, 0.625, masks=17, images=3)}

    def test_the_folder_loads_and_its_card_tells_figures_and_hash(self, segmenter, tmp_path):
        sources = {"dead-leaves pictures": 6}
        folder = release_sam(segmenter.model, tmp_path / "sam", CONFIG, TRAINING, sources, self.scores)
        assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.safetensors", "small_sam.json"]
        card = (folder / "README.md").read_text()
        assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() in card
        assert "| unseen | 3 | 17 | 0.812 | 0.750 | 0.625 |" in card
        assert "6 dead-leaves pictures" in card
        loaded = load_segmenter(str(folder))
        pixels = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(loaded.encode(pixels), segmenter.encode(pixels), atol=0.02, rtol=0.02)
        boxes = torch.tensor([[3.0, 4, 30, 40]])
        torch.testing.assert_close(loaded.box_tokens(boxes), segmenter.box_tokens(boxes), atol=2e-3, rtol=0)
        assert torch.equal(
            loaded.model.shared_image_embedding.positional_embedding,
            segmenter.model.shared_image_embedding.positional_embedding,
        )

    def test_the_card_names_the_weights_it_went_on_from(self, segmenter, tmp_path):
        first = release_sam(segmenter.model, tmp_path / "first", CONFIG, TRAINING, {}, {})
        second = release_sam(segmenter.model, tmp_path / "second", CONFIG, TRAINING, {}, {}, first)
        started = hashlib.sha256((first / "model.safetensors").read_bytes()).hexdigest()
        assert f"from the weights whose SHA-256 is `{started}`" in (second / "README.md").read_text()
        assert "from the weights" not in (first / "README.md").read_text()

    def test_too_large_a_file_is_not_written(self, segmenter, tmp_path, monkeypatch):
        monkeypatch.setattr(release, "MAX_BYTES", 1000)
        with pytest.raises(WeaklyError, match="keep it under 1,000"):
            release_sam(segmenter.model, tmp_path / "sam", CONFIG, TRAINING, {}, {})
        assert not (tmp_path / "sam").exists()


def test_make_sam_from_nothing_to_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "CHUNK", 4)
    monkeypatch.setitem(RECIPES, "cpu", replace(TRAINING, stages=(replace(TRAINING.stages[0], turns=(64,)),)))
    told: list[str] = []
    scores = make_sam(
        tmp_path,
        steps=12,
        leaves=4,
        worlds=4,
        measured=1,
        config=replace(CONFIG, image_size=32),
        photographs=rectangles(tmp_path),
        progress=lambda what, done, total: told.append(what),
    )
    assert list(scores) == [
        "parts of unseen Menagerie worlds",
        "rectangles, val split (photographs, never trained on)",
        "parts of unseen Menagerie worlds, at 64 px",
        "rectangles, val split (photographs, never trained on), at 64 px",
    ]
    card = (tmp_path / "sam" / "README.md").read_text()
    for name, figures in scores.items():
        assert f"| {name} | {figures.images} | {figures.masks} | {figures.box:.3f} |" in card
    assert {"rendering leaves", "rendering worlds", "training"} == set(told)
    assert load_segmenter(str(tmp_path / "sam")).side == 32


def test_training_can_start_from_earlier_weights(leaves, tmp_path):
    torch.manual_seed(99)
    earlier = build_small_sam(CONFIG)
    still = replace(TRAINING, lr=0.0)
    model = train_sam(leaves, None, tmp_path, CONFIG, still, until=1, start=earlier)
    assert all(torch.equal(value, earlier.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_step_has_the_losses_of_an_ordinary_one(leaves):
    torch.manual_seed(0)
    trainee = torch.nn.ModuleDict({"model": build_small_sam(CONFIG), "head": GroupingHead(CONFIG.width)})
    ordinary = training_losses(trainee, batch_of(leaves), TRAINING)
    compiled = torch.compile(training_losses, dynamic=False)(trainee, batch_of(leaves), TRAINING)
    for name, value in ordinary.items():
        torch.testing.assert_close(compiled[name], value, atol=1e-4, rtol=1e-3)


def test_an_unknown_recipe_is_named(tmp_path):
    with pytest.raises(UserError, match="no recipe 'tpu'.*cpu, cpu-more, cpu-fine, gpu"):
        make_sam(tmp_path, recipe="tpu")


def test_the_command_takes_every_recipe_there_is():
    assert get_args(get_type_hints(foundation_train_sam)["recipe"]) == tuple(RECIPES)
