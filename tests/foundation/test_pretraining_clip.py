"""How the bundled CLIP is made: facts and captions, tokenizer, batches, the loss, training that resumes, release."""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_captions import small_bank
from torch.nn import functional
from transformers import AutoTokenizer, CLIPModel, CLIPProcessor, CLIPTokenizer

from weakly.data.menagerie import scene as scenes
from weakly.data.menagerie.kinds import KINDS, PART_NAMES, SUPER_CATEGORIES
from weakly.errors import UserError, WeaklyError
from weakly.foundation.pretraining import captioned, clip_command
from weakly.foundation.pretraining.captioned import (
    CaptionBatch,
    CaptionBatches,
    CaptionedBank,
    draw_view,
    mild_change,
    render_captioned,
    resized,
)
from weakly.foundation.pretraining.captions import (
    CAPTION_TOKENS,
    MAX_BLANKS,
    ORIGAMI,
)
from weakly.foundation.pretraining.clip import MAX_LOGIT_SCALE, contrastive_loss, train_clip, training_losses
from weakly.foundation.pretraining.clip_command import load_released, make_clip, release_clip
from weakly.foundation.pretraining.clip_measure import (
    TAG_GROUPS,
    TagScores,
    average_precision,
    measure_tags,
    world_tags,
)
from weakly.foundation.pretraining.clip_recipe import ClipStage, ClipTraining
from weakly.foundation.pretraining.measure import MEASURING_SEED
from weakly.foundation.pretraining.pictures import PRETRAINING_SEED
from weakly.foundation.pretraining.scene_facts import (
    BACKGROUND_WORDS,
    backdrop_of,
    take_inventory,
)
from weakly.foundation.pretraining.small_clip import (
    SmallClipConfig,
    build_small_clip,
    build_tokenizer,
    image_features,
    sine_positions,
    text_features,
    tokenise,
)

torch.set_num_threads(1)

CONFIG = SmallClipConfig(
    image_size=64, width=32, layers=4, heads=2, text_width=32, text_layers=2, text_heads=2, projection=16
)
TRAINING = ClipTraining(stages=(ClipStage(32, 4, 6), ClipStage(64, 8, 6)), warmup=2)


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> CaptionedBank:
    return small_bank(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer) -> CLIPModel:
    torch.manual_seed(0)
    return build_small_clip(CONFIG, tokenizer).eval()


class TestTokenizer:
    def test_layout_is_clips(self, tokenizer):
        assert len(tokenizer) <= 2000
        assert tokenizer.eos_token_id == len(tokenizer) - 1 == tokenizer.pad_token_id
        assert tokenizer.bos_token_id == len(tokenizer) - 2
        assert tokenizer.model_max_length == 77
        (ids,) = tokenise(tokenizer, ["a fox."]).tolist()
        assert ids == [tokenizer.bos_token_id, *tokenizer.convert_tokens_to_ids(["a</w>", "fox</w>", ".</w>"]), ids[-1]]
        assert ids[-1] == tokenizer.eos_token_id

    def test_names_are_one_token_and_leave_room_for_contexts(self, tokenizer):
        """FMA spec 2.1: 16 placeholders, a name of n tokens and a full stop end at index n + 18."""
        for name in (*KINDS, *(name.lower() for name in SUPER_CATEGORIES), *BACKGROUND_WORDS):
            (ids,) = tokenise(tokenizer, [" ".join(["X"] * MAX_BLANKS) + f" {name}."]).tolist()
            assert ids.index(tokenizer.eos_token_id) == 1 + 18
        dot = tokenizer.convert_tokens_to_ids(".</w>")
        assert tokenise(tokenizer, ["fox.", "fox ."])[:, 2].tolist() == [dot, dot]

    def test_it_is_always_the_same(self, tokenizer):
        assert build_tokenizer().get_vocab() == tokenizer.get_vocab()
        assert build_tokenizer(["b a", "c"]).get_vocab() == build_tokenizer(["c", "b a"]).get_vocab()

    @given(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"]), min_size=1, max_size=12))
    @settings(deadline=None)
    def test_any_text_is_spelled(self, tokenizer, text):
        ids = tokenizer(text).input_ids
        assert tokenizer.eos_token_id not in ids[1:-1]
        assert max(ids) == tokenizer.eos_token_id

    def test_padding_and_cutting(self, tokenizer):
        ids = tokenise(tokenizer, ["fox", "a red fox on the left"], 5)
        assert ids.shape == (2, 5)
        assert (ids[:, -1] == tokenizer.eos_token_id).all()
        assert ids.dtype == torch.int64


class TestModel:
    def test_the_bundled_sizes_fit_the_package(self, tokenizer):
        with torch.device("meta"):
            parameters = sum(p.numel() for p in CLIPModel(build_small_clip(CONFIG, tokenizer).config).parameters())
        assert parameters < 200_000
        full = build_small_clip(SmallClipConfig(), tokenizer)
        assert 2 * sum(p.numel() for p in full.parameters()) < clip_command.MAX_BYTES == 9_000_000
        assert full.config.vision_config.num_hidden_layers >= 4

    @torch.no_grad()
    def test_both_poolings_are_those_of_the_library(self, model):
        """FMA spec 3.6: the class token as ``get_image_features``, the patches as its table says."""
        pixels = torch.randn(2, 3, 64, 64)
        found = image_features(model, pixels)
        cls = functional.normalize(model.get_image_features(pixels).pooler_output, dim=-1)
        torch.testing.assert_close(found.cls, cls)
        hidden = model.vision_model(pixels).last_hidden_state
        patches = model.visual_projection(model.vision_model.post_layernorm(hidden)[:, 1:].mean(1))
        torch.testing.assert_close(found.patches, functional.normalize(patches, dim=-1))
        assert image_features(model, torch.randn(1, 3, 32, 48)).patches.shape == (1, 16)

    @torch.no_grad()
    def test_texts_are_those_of_the_library_whatever_follows_them(self, model, tokenizer):
        short, long = tokenise(tokenizer, ["a red fox."]), tokenise(tokenizer, ["a red fox."], 20)
        found = text_features(model, short)
        expected = functional.normalize(model.get_text_features(short).pooler_output, dim=-1)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(text_features(model, long), found)

    def test_neighbouring_positions_are_alike(self):
        positions = sine_positions(6, 34).view(6, 6, 34)
        assert torch.equal(positions[..., 32:], torch.zeros(6, 6, 2))
        distance = (positions - positions[2, 2]).norm(dim=-1)
        assert distance[2, 3] < distance[2, 5]
        assert distance[3, 2] < distance[5, 2]
        torch.testing.assert_close(distance, distance.T)


class TestPictures:
    def test_a_killed_rendering_goes_on_with_the_chunks_it_has(self, tmp_path, monkeypatch):
        monkeypatch.setattr(captioned, "CHUNK", 4)
        seen: list[tuple[int, int]] = []
        whole = render_captioned(tmp_path, 7, seed=5, size=32, progress=lambda *done: seen.append(done))
        assert len(whole) == 8
        assert seen == [(0, 8), (4, 8), (8, 8)]
        kept, lost = whole.files
        lost.unlink()
        before = kept.stat().st_mtime_ns
        again = render_captioned(tmp_path, 8, seed=5, size=32)
        assert kept.stat().st_mtime_ns == before
        assert again == whole
        scene = scenes.render_scene(5, 6, 32)
        assert np.array_equal(again.view(6).image, scene.image)
        assert np.array_equal(again.view(6).part_map, scene.part_map)
        assert again.view(6).inventory == take_inventory(scene, *backdrop_of(5, 6))

    def test_views_are_cut_before_they_are_told(self, bank):
        rng = np.random.default_rng(1)
        whole = bank.view(2)
        for view in (draw_view(rng, whole) for _ in range(20)):
            side = view.image.shape[0]
            assert view.image.shape == (side, side, 3)
            assert view.part_map.shape == (side, side)
            assert 0.5 < view.side == side / 64 <= 1
            assert 0 <= view.top <= 1 - view.side
            assert resized(view.image, 48).shape == (48, 48, 3)

    def test_colours_keep_their_names(self):
        """The mean of a red, a green and a blue picture stays so."""
        pixels = torch.eye(3)[:, :, None, None].repeat(8, 1, 4, 4) * 0.6 + 0.2
        changed = mild_change(pixels, torch.Generator().manual_seed(0))
        assert torch.equal(changed.mean((2, 3)).argmax(1), torch.arange(3).repeat(8))
        assert not torch.equal(changed[0], changed[3])


class TestBatches:
    def test_a_batch_is_a_function_of_recipe_and_step(self, bank, tokenizer):
        batches = CaptionBatches(bank, tokenizer, TRAINING)
        first, again, other = batches[5], CaptionBatches(bank, tokenizer, TRAINING)[5], batches[6]
        for field in fields(CaptionBatch):
            assert torch.equal(getattr(first, field.name), getattr(again, field.name))
            assert torch.equal(getattr(first.to(torch.device("cpu")), field.name), getattr(first, field.name))
        assert not torch.equal(first.pixels, other.pixels)
        assert len(batches) == 12
        assert batches[3].pixels.shape[-1] == 32

    def test_texts_and_pictures_reach_the_loss_and_no_map_does(self, bank, tokenizer):
        batch = CaptionBatches(bank, tokenizer, TRAINING)[5]
        assert {field.name for field in fields(batch)} == {"pixels", "tokens", "true", "false"}
        assert batch.pixels.shape == (6, 3, 64, 64)
        assert batch.tokens.shape == (18, CAPTION_TOKENS)
        assert not (batch.true & batch.false).any()
        own = torch.arange(6).repeat_interleave(3)
        assert batch.true[own, torch.arange(18)].all()
        assert batch.false.any()


class TestLoss:
    def test_worked_out(self):
        """Two pictures, three captions; the second is true of both, the third unclear of the first."""
        s = torch.tensor([[2.0, 1.0, 5.0], [0.5, -1.0, 3.0]])
        true = torch.tensor([[True, True, False], [False, True, True]])
        false = torch.tensor([[False, False, False], [True, False, False]])
        pair = lambda own, rivals: -np.log(np.exp(own) / (np.exp(own) + sum(np.exp(r) for r in rivals)))
        pictures = (0 + (pair(-1.0, [0.5]) + pair(3.0, [0.5])) / 2) / 2
        captions = (pair(2.0, [0.5]) + 0 + 0) / 3
        assert float(contrastive_loss(s, true, false)) == pytest.approx((pictures + captions) / 2, abs=1e-6)

    def test_with_one_true_caption_each_it_is_clips(self):
        s = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
        eye = torch.eye(5, dtype=torch.bool)
        target = torch.arange(5)
        clips = (functional.cross_entropy(s, target) + functional.cross_entropy(s.T, target)) / 2
        torch.testing.assert_close(contrastive_loss(s, eye, ~eye), clips)

    def test_unclear_pairs_count_for_nothing(self):
        s = torch.randn(4, 6, requires_grad=True)
        true = torch.zeros(4, 6, dtype=torch.bool)
        true[:, 0] = true[1, 3] = True
        false = ~true
        false[2, 1:4] = False
        contrastive_loss(s, true, false).backward()
        assert s.grad is not None
        assert s.grad.isfinite().all()
        assert (s.grad[2, 1:4] == 0).all()
        assert (s.grad[true & false.any(1, keepdim=True)] < 0).all()

    def test_the_step_sums_both_poolings(self, bank, tokenizer, model):
        batch = CaptionBatches(bank, tokenizer, TRAINING)[0]
        losses = training_losses(model, batch, TRAINING)
        together = losses["patch_loss"] + TRAINING.cls * losses["cls_loss"]
        torch.testing.assert_close(losses["loss"].detach(), together)
        assert 0 <= losses["hits"] <= 1
        assert float(losses["scale"]) == pytest.approx(1 / 0.07, rel=1e-3)


class TestTraining:
    def test_names_are_learned(self, bank, model, tokenizer, tmp_path):
        """A few steps on sixteen pictures: both losses of a batch fall well below those of a guess."""
        training = ClipTraining(stages=(ClipStage(64, 1000, 12),), lr=3e-3, warmup=10)
        trained = train_clip(bank, tmp_path, CONFIG, training, until=60)
        batch = CaptionBatches(bank, tokenizer, training)[0]
        with torch.no_grad():
            before, after = (training_losses(clip, batch, training) for clip in (model, trained))
        assert after["patch_loss"] < 0.75 * before["patch_loss"]
        assert after["cls_loss"] < 0.75 * before["cls_loss"]
        assert after["hits"] > before["hits"]

    def test_every_tenth_step_is_logged(self, bank, tmp_path):
        seen: list[int] = []
        train_clip(bank, tmp_path, CONFIG, TRAINING, report=lambda step, _: seen.append(step))
        (line,) = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
        assert seen == [line["step"]] == [10]
        assert line["size"] == 64
        assert line.keys() == {"step", "size", "loss", "patch_loss", "cls_loss", "hits", "scale", "seconds"}

    def test_a_killed_training_ends_with_the_same_bytes(self, bank, tmp_path):
        train_clip(bank, tmp_path / "straight", CONFIG, TRAINING, until=6, save_every=2)
        train_clip(bank, tmp_path / "resumed", CONFIG, TRAINING, until=3)
        train_clip(bank, tmp_path / "resumed", CONFIG, TRAINING, until=6, workers=1)
        straight, resumed = (
            (tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("straight", "resumed")
        )
        assert straight == resumed

    def test_another_recipe_or_model_is_refused(self, bank, tmp_path):
        train_clip(bank, tmp_path, CONFIG, TRAINING, until=1)
        with pytest.raises(UserError, match="another recipe"):
            train_clip(bank, tmp_path, CONFIG, replace(TRAINING, lr=2e-3), until=2)
        with pytest.raises(UserError, match="another recipe"):
            train_clip(bank, tmp_path, replace(CONFIG, width=64), TRAINING, until=2)

    def test_it_starts_from_given_weights_and_bounds_the_scale(self, bank, model, tokenizer, tmp_path):
        start = build_small_clip(CONFIG, tokenizer)
        with torch.no_grad():
            start.logit_scale.fill_(6.0)
        training = replace(TRAINING, lr=0.0, bf16=True)
        trained = train_clip(bank, tmp_path, CONFIG, training, until=1, start=start)
        assert float(trained.logit_scale.detach()) == pytest.approx(MAX_LOGIT_SCALE)
        assert torch.equal(trained.visual_projection.weight, start.visual_projection.weight)

    def test_stages_and_learning_rate(self):
        assert [TRAINING.stage_at(step).size for step in (0, 3, 4, 11, 99)] == [32, 32, 64, 64, 64]
        assert TRAINING.rate(0) == TRAINING.lr / 2
        assert TRAINING.rate(12) == pytest.approx(0, abs=1e-9)
        assert TRAINING.scaled(None) is TRAINING
        assert [stage.steps for stage in TRAINING.scaled(3).stages] == [1, 2]


class TestMeasuring:
    def test_average_precision_worked_out(self):
        scores = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
        truth = torch.tensor([[True, False], [False, False], [True, False]])
        assert average_precision(scores, truth).tolist() == pytest.approx([(1 / 1 + 2 / 3) / 2, 0])

    @given(st.lists(st.booleans(), min_size=2, max_size=20))
    @settings(deadline=None)
    def test_a_perfect_ranking_is_one_and_the_worst_is_known(self, truth):
        found = torch.tensor(truth)[:, None]
        n, positives = len(truth), sum(truth)
        best = average_precision(found.float(), found)
        worst = average_precision(-found.float(), found)
        assert float(best) == pytest.approx(float(positives > 0))
        expected = np.mean([(k + 1) / (n - positives + k + 1) for k in range(positives)]) if positives else 0
        assert float(worst) == pytest.approx(expected)

    def test_unseen_worlds_and_their_tags(self):
        ((image, tags),) = world_tags(1, seed=9, size=64)
        scene = scenes.render_scene(9, 0, 64)
        assert np.array_equal(image, scene.image)
        assert {thing.kind for thing in scene.objects} == tags & set(KINDS)
        assert {thing.super_category.lower() for thing in scene.objects} == tags & set(TAG_GROUPS["super-categories"])
        assert {PART_NAMES[part.category].lower() for part in scene.parts} == tags & set(TAG_GROUPS["parts"])
        assert MEASURING_SEED != PRETRAINING_SEED

    def test_scores_are_those_of_the_library(self, model, tokenizer):
        pictures = list(world_tags(7, seed=9, size=64))
        scores = measure_tags(model, tokenizer, pictures, batch=3)
        assert scores.keys() == TAG_GROUPS.keys()
        kinds = sorted(set().union(*(tags for _, tags in pictures)) & set(KINDS))
        assert (scores["kinds"].tags, scores["kinds"].images) == (len(kinds), 7)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (captioned.OPENAI_CLIP_MEAN, captioned.OPENAI_CLIP_STD))
        pixels = torch.stack([(torch.from_numpy(i).permute(2, 0, 1) / 255 - mean) / std for i, _ in pictures])
        with torch.no_grad():
            prompts = tokenizer([ORIGAMI.format(kind) for kind in kinds], padding=True, return_tensors="pt")
            logits = model(pixel_values=pixels, **prompts).logits_per_image
        truth = torch.tensor([[kind in tags for kind in kinds] for _, tags in pictures])
        assert scores["kinds"].cls == pytest.approx(float(average_precision(logits, truth).mean()), abs=1e-6)
        assert 0 < scores["parts"].patches <= 1


class TestRelease:
    scores = {"kinds": TagScores(0.8125, 0.75, tags=39, images=500)}

    def test_the_folder_is_a_clip_of_the_library_and_its_card_tells_figures_and_hash(self, model, tmp_path):
        folder = release_clip(model, tmp_path / "clip", CONFIG, TRAINING, 64, self.scores)
        weights = (folder / "model.safetensors").read_bytes()
        assert len(weights) < 2.2 * sum(p.numel() for p in model.parameters()) + 20_000
        card = (folder / "README.md").read_text()
        assert hashlib.sha256(weights).hexdigest() in card
        assert "| kinds | 500 | 39 | 0.812 | 0.750 |" in card
        assert "64 Menagerie worlds" in card
        loaded = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        built = build_tokenizer()
        assert tokenizer.get_vocab() == built.get_vocab()
        assert tokenizer.model_max_length == 77
        texts = ["a fox's head.", "x x zebra", "Gürteltier 42!"]
        assert torch.equal(tokenise(tokenizer, texts), tokenise(built, texts))
        pixels = torch.randn(2, 3, 64, 64)
        with torch.no_grad():
            for got, expected in zip(image_features(loaded, pixels), image_features(model, pixels), strict=True):
                torch.testing.assert_close(got, expected, atol=5e-3, rtol=0)
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        inputs = processor(text=["a fox"], images=[np.zeros((80, 60, 3), np.uint8)], return_tensors="pt")
        assert inputs["pixel_values"].shape == (1, 3, 64, 64)
        assert loaded(**inputs).logits_per_image.shape == (1, 1)

    def test_too_large_a_file_is_not_written(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr(clip_command, "MAX_BYTES", 1000)
        with pytest.raises(WeaklyError, match="keep it under 1,000"):
            release_clip(model, tmp_path / "clip", CONFIG, TRAINING, 0, {})
        assert not (tmp_path / "clip").exists()

    def test_a_folder_without_a_clip_is_refused(self, tmp_path):
        with pytest.raises(UserError, match=r"config\.json"):
            load_released(tmp_path)


def test_make_clip_from_nothing_to_a_folder_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "CHUNK", 8)
    monkeypatch.setattr(clip_command, "CLIP_RECIPES", {"cpu": TRAINING})
    told: set[str] = set()
    make = lambda: make_clip(
        tmp_path, steps=3, worlds=8, measured=6, config=CONFIG, progress=lambda what, *_: told.add(what)
    )
    scores = make()
    card = (tmp_path / "clip" / "README.md").read_text()
    assert f"| kinds | 6 | {scores['kinds'].tags} | {scores['kinds'].patches:.3f} |" in card
    assert told == {"rendering captioned worlds"}
    before = (tmp_path / "clip" / "model.safetensors").read_bytes()
    assert make() == scores
    assert (tmp_path / "clip" / "model.safetensors").read_bytes() == before
    model, tokenizer = load_released(Path(tmp_path / "clip"))
    assert model.dtype == torch.float32
    assert measure_tags(model, tokenizer, world_tags(6, size=64)) == scores


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(UserError, match="no recipe 'tpu'"):
        make_clip(tmp_path, recipe="tpu")
