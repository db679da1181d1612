"""How the bundled CLIPSeg's decoder is made: phrases and their masks, batches, loss, resuming, measuring, release."""

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
from torch import Tensor
from torch.nn import functional

from weakly.data.menagerie.kinds import KINDS, PART_NAMES
from weakly.data.menagerie.scene import render_scene
from weakly.errors import UserError, WeaklyError
from weakly.foundation import clip as clip_module
from weakly.foundation.clip import Clip, load_clip
from weakly.foundation.clipseg import DECODER, ClipSeg, read_bundled
from weakly.foundation.pretraining import captioned, clipseg_command
from weakly.foundation.pretraining.captioned import CaptionedBank, draw_view, render_captioned
from weakly.foundation.pretraining.clip_command import release_clip
from weakly.foundation.pretraining.clip_recipe import ClipTraining
from weakly.foundation.pretraining.clipseg import (
    DecoderConfig,
    decode,
    mask_loss,
    new_clipseg,
    train_decoder,
    training_losses,
)
from weakly.foundation.pretraining.clipseg_command import make_clipseg, release_clipseg
from weakly.foundation.pretraining.clipseg_measure import NAMES, NameScores, measure_names, world_objects
from weakly.foundation.pretraining.clipseg_phrases import (
    VOID,
    Phrase,
    PhraseBatch,
    PhraseBatches,
    draw_phrases,
    object_facts,
    owners_of,
    targets_of,
)
from weakly.foundation.pretraining.recipe import CLIPSEG_RECIPES, ClipSegStage, ClipSegTraining
from weakly.foundation.pretraining.scene_facts import Inventory, View, read_facts
from weakly.foundation.pretraining.small_clip import SmallClipConfig, build_small_clip, build_tokenizer

torch.set_num_threads(1)

TOWERS = SmallClipConfig(
    image_size=64, width=32, layers=4, heads=2, text_width=32, text_layers=1, text_heads=2, projection=16
)
CONFIG = DecoderConfig((0, 1, 2), reduce_dim=8, heads=2, hidden=16)
TRAINING = ClipSegTraining(stages=(ClipSegStage(32, 4, 3), ClipSegStage(64, 8, 3)), warmup=2, phrases=4, absent=1)
HEAD, BODY = PART_NAMES.index("Quadruped Head"), PART_NAMES.index("Quadruped Body")
WHEEL = PART_NAMES.index("Car Tier")


@pytest.fixture(scope="module")
def bank(tmp_path_factory) -> CaptionedBank:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captioned, "CHUNK", 16)
        return render_captioned(tmp_path_factory.mktemp("pictures"), 16, seed=3, size=64)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A CLIP in the bundled form."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("towers") / "clip"
    return release_clip(build_small_clip(TOWERS, build_tokenizer()), folder, TOWERS, ClipTraining(), 0, {})


@pytest.fixture
def clip(home, monkeypatch) -> Clip:
    monkeypatch.setattr(clip_module, "BUNDLED", home)
    return load_clip("bundled")


@pytest.fixture
def clipseg(clip) -> ClipSeg:
    torch.manual_seed(0)
    return new_clipseg(clip, CONFIG)


def fox_and_van() -> View:
    """A red fox (head and body) on the left; at the right edge two pixels of a van half grey and half beige; 32 px."""
    image, part_map = np.full((32, 32, 3), 250, np.uint8), np.zeros((32, 32), np.uint8)
    part_map[8:12, 4:8], part_map[12:24, 4:12], part_map[20:22, 31] = 1, 2, 3
    image[(part_map == 1) | (part_map == 2)] = (200, 36, 36)
    image[20, 31], image[21, 31] = (128, 128, 130), (206, 174, 130)
    parts = ((HEAD, 0), (BODY, 0), (WHEEL, 1))
    return View(image, part_map, Inventory("road", 0.5, ("fox", "van"), (112 / 1024, 40 / 1024), parts))


class TestPhrases:
    def test_facts_are_told_object_by_object(self):
        fox, van = object_facts(fox_and_van())
        assert {
            ("noun", "fox"),
            ("noun", "quadruped"),
            ("colour", "red", "fox"),
            ("position", "left", "fox"),
        } <= fox.true
        assert not any("van" in fact for fact in fox.possible)
        assert ("noun", "van") in van.possible - van.true
        assert ("position", "right", "van") in van.possible - van.true

    @given(st.integers(0, 15), st.integers(0, 2**32 - 1), st.integers(0, 3))
    @settings(max_examples=40)
    def test_what_they_mean_is_what_the_facts_say(self, bank, row, seed, absent):
        """Read from the text alone, so that the words and the mask cannot drift apart."""
        rng = np.random.default_rng(seed)
        view = draw_view(rng, bank.view(row))
        objects = object_facts(view)
        phrases = draw_phrases(rng, objects, 5, absent)
        assert len(phrases) == 5
        seen = any(read_facts(view).possible & {("noun", kind) for kind in KINDS})
        for number, phrase in enumerate(phrases):
            meant = 1 in phrase.meaning
            assert meant == (seen and number < 5 - absent)
            assert meant or not any(phrase.meaning)
            for kind, facts, meaning in zip(view.inventory.kinds, objects, phrase.meaning, strict=True):
                if meaning:
                    assert {kind, KINDS[kind].super_category.lower()} & set(phrase.text.replace(".", "").split())
                    assert ("noun", kind) in facts.possible

    def test_however_little_of_it_is_seen_a_van_is_a_van_but_its_colour_is_unclear(self):
        objects = object_facts(fox_and_van())
        rng = np.random.default_rng(0)
        phrases = {phrase.text: phrase for _ in range(200) for phrase in draw_phrases(rng, objects, 4, 2)}
        assert phrases["van"].meaning == phrases["car"].meaning == (0, 1)
        assert phrases["red fox"].meaning == phrases["fox on the left"].meaning == (1, 0)
        assert phrases["blue fox"].meaning == phrases["fox on the right"].meaning == (0, 0)
        assert not {"grey van", "beige van", "van on the right"} & phrases.keys()  # not true and not false
        assert not any("head" in text or "body" in text for text in phrases)

    def test_one_phrase_for_two_objects_leaves_the_unclear_one_out(self):
        view = fox_and_van()
        part_map = view.part_map.copy()
        part_map[20:22, 31] = 3
        image = view.image.copy()
        image[part_map == 3] = (200, 36, 36)
        inventory = replace(view.inventory, kinds=("fox", "fox"), parts=((HEAD, 0), (BODY, 0), (BODY, 1)))
        objects = object_facts(View(image, part_map, inventory))
        rng = np.random.default_rng(0)
        phrases = {phrase.text: phrase for _ in range(100) for phrase in draw_phrases(rng, objects, 4, 0)}
        assert phrases["fox"].meaning == (1, 1)
        assert phrases["red fox"].meaning == (1, VOID)

    def test_an_empty_view_has_absent_phrases_only(self):
        view = View(np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8), Inventory("sky", 0.5, (), (), ()))
        phrases = draw_phrases(np.random.default_rng(0), object_facts(view), 6, 2)
        assert [phrase.meaning for phrase in phrases] == [()] * 6
        assert targets_of(view, phrases, 16).shape == (6, 16, 16)
        assert not targets_of(view, phrases, 16).any()

    def test_targets_are_whole_objects(self, bank):
        """At the view's own size: the object map of the renderer, with no border between parts."""
        scene = render_scene(3, 5, 64)
        view = bank.view(5)
        count = len(scene.objects)
        assert np.array_equal(owners_of(view), scene.object_map)
        phrases = [Phrase("", tuple(int(i == j) for j in range(count))) for i in range(count)]
        phrases.append(Phrase("", (VOID,) * count))
        targets = targets_of(view, phrases, 64)
        assert np.array_equal(targets[:count] == 1, scene.object_map == np.arange(1, count + 1)[:, None, None])
        assert np.array_equal(targets[count] == VOID, scene.object_map > 0)


class TestBatches:
    def test_a_batch_is_a_function_of_recipe_and_step(self, bank):
        batches = PhraseBatches(bank, TRAINING)
        first, again, other = batches[5], PhraseBatches(bank, TRAINING)[5], batches[6]
        assert torch.equal(first.pixels, again.pixels)
        assert torch.equal(first.targets, again.targets)
        assert first.texts == again.texts != other.texts
        assert len(batches) == 12
        assert batches[3].pixels.shape == (3, 3, 32, 32)

    def test_shapes(self, bank):
        batch = PhraseBatches(bank, TRAINING)[5].to(torch.device("cpu"))
        assert {field.name for field in fields(PhraseBatch)} == {"pixels", "texts", "targets"}
        assert (batch.pixels.shape, batch.targets.shape) == ((3, 3, 64, 64), (3, 4, 64, 64))
        assert (len(batch.texts), batch.targets.dtype) == (12, torch.uint8)
        assert not batch.targets[:, -1].any()
        assert set(batch.targets.unique().tolist()) <= {0, 1, VOID}


def inputs(clipseg: ClipSeg, batch: PhraseBatch) -> tuple[Tensor, Tensor]:
    taps = clipseg.taps(batch.pixels)
    texts = clipseg.encode_text(clipseg.tokenize(batch.texts), *clipseg.token_embedding_weights())
    return taps, texts.unflatten(0, (len(taps), -1))


class TestLoss:
    @torch.no_grad()
    def test_every_pair_is_decoded_as_the_library_would(self, clipseg, bank):
        taps, texts = inputs(clipseg, PhraseBatches(bank, TRAINING)[5])
        decoder = clipseg.new_decoder()
        found = decode(decoder, taps, texts)
        assert found.shape == (3, 4, 64, 64)
        for phrase in range(4):
            expected = decoder(taps.unbind(1), texts[:, phrase]).logits
            torch.testing.assert_close(found[:, phrase], expected, atol=1e-5, rtol=1e-4)

    def test_worked_out(self):
        """Two clear pixels of three: -(log s(2) + log s(-1)) / 2, and no gradient where it is unclear."""
        logits = torch.tensor([2.0, 1.0, 5.0]).view(1, 1, 1, 3).requires_grad_()
        targets = torch.tensor([1, 0, VOID], dtype=torch.uint8).view(1, 1, 1, 3)
        loss = mask_loss(logits, targets)
        loss.backward()
        expected = -(functional.logsigmoid(torch.tensor(2.0)) + functional.logsigmoid(torch.tensor(-1.0))) / 2
        assert loss.item() == pytest.approx(expected.item(), abs=1e-6)
        assert logits.grad is not None
        assert logits.grad.flatten()[2] == 0
        assert (logits.grad.flatten()[:2] != 0).all()

    def test_without_unclear_pixels_it_is_clipsegs(self):
        logits, targets = torch.randn(2, 3, 4, 4), torch.randint(0, 2, (2, 3, 4, 4), dtype=torch.uint8)
        expected = functional.binary_cross_entropy_with_logits(logits, targets.float())
        torch.testing.assert_close(mask_loss(logits, targets), expected)

    def test_only_the_decoder_gets_gradients_and_all_of_it(self, clipseg, bank):
        batch = PhraseBatches(bank, TRAINING)[5]
        decoder = clipseg.new_decoder()
        losses = training_losses(decoder, *inputs(clipseg, batch), batch.targets, TRAINING)
        losses["loss"].backward()
        assert losses.keys() == {"loss", "iou", "leaks"}
        assert 0 <= float(losses["iou"]) <= 1
        assert all(parameter.grad is not None for parameter in decoder.parameters())
        assert all(parameter.grad is None for parameter in clipseg.parameters())


class TestTraining:
    def test_it_learns_four_phrases(self, clipseg, bank):
        batch = PhraseBatches(bank, TRAINING)[5]
        taps, texts = inputs(clipseg, batch)
        decoder = clipseg.new_decoder()
        optimiser = torch.optim.Adam(decoder.parameters(), 1e-2)
        seen = []
        for _ in range(60):
            losses = training_losses(decoder, taps, texts, batch.targets, TRAINING)
            optimiser.zero_grad()
            losses["loss"].backward()
            optimiser.step()
            seen.append(float(losses["loss"].detach()))
        assert seen[-1] < 0.5 * seen[0]

    def test_a_killed_training_ends_with_the_same_bytes(self, clip, bank, tmp_path):
        told: list[int] = []
        train_decoder(
            clip, bank, tmp_path / "straight", CONFIG, TRAINING, save_every=2, report=lambda s, _: told.append(s)
        )
        train_decoder(clip, bank, tmp_path / "resumed", CONFIG, TRAINING, until=3)
        train_decoder(clip, bank, tmp_path / "resumed", CONFIG, TRAINING, workers=1)
        straight, resumed = (
            (tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("straight", "resumed")
        )
        assert straight == resumed
        (line,) = [json.loads(line) for line in (tmp_path / "straight" / "log.jsonl").read_text().splitlines()]
        assert told == [line["step"]] == [10]
        assert line.keys() == {"step", "size", "loss", "iou", "leaks", "seconds"}

    def test_the_towers_do_not_move_and_the_decoder_does(self, clip, bank, tmp_path):
        torch.manual_seed(TRAINING.seed)
        fresh = new_clipseg(clip, CONFIG)
        trained = train_decoder(clip, bank, tmp_path, CONFIG, TRAINING, until=2)
        before, after = fresh.state_dict(), trained.state_dict()
        changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
        assert changed
        assert all(".decoder." in f".{key}" for key in changed)
        assert not any(parameter.requires_grad for parameter in trained.parameters())

    def test_another_recipe_other_sizes_or_other_towers_are_refused(self, clip, bank, tmp_path):
        train_decoder(clip, bank, tmp_path, CONFIG, TRAINING, until=1)
        torch.manual_seed(1)
        other = Clip(build_small_clip(TOWERS, build_tokenizer()), clip.tokenizer, "other")
        for towers, config, training in (
            (clip, CONFIG, replace(TRAINING, lr=2e-3)),
            (clip, replace(CONFIG, hidden=8), TRAINING),
            (other, CONFIG, TRAINING),
        ):
            with pytest.raises(UserError, match="another recipe"):
                train_decoder(towers, bank, tmp_path, config, training, until=2)

    def test_the_bundled_sizes_skip_a_block_and_keep_clipsegs_width(self):
        config = DecoderConfig()
        assert config.layers_tapped[-1] < SmallClipConfig().layers - 1
        assert (config.reduce_dim, config.heads, len(config.layers_tapped)) == (64, 4, 3)
        for recipe in CLIPSEG_RECIPES.values():
            assert recipe.stages[-1].size == SmallClipConfig().image_size
            assert 0 < recipe.absent < recipe.phrases


class TestMeasuring:
    def test_unseen_worlds_and_their_objects(self):
        ((image, masks),) = world_objects(1, seed=9, size=64)
        scene = render_scene(9, 0, 64)
        assert np.array_equal(image, scene.image)
        assert masks.keys() == {name for thing in scene.objects for name in (thing.kind, thing.super_category.lower())}
        union = np.any([mask for name, mask in masks.items() if name in KINDS], axis=0)
        assert np.array_equal(union, scene.object_map > 0)

    def test_a_perfect_and_a_blind_decoder(self, clipseg, monkeypatch):
        """Logits set by hand: the truth of two present kinds, everything lit for one absent kind of the 39."""
        masks = {"fox": np.zeros((64, 64), np.bool_), "duck": np.zeros((64, 64), np.bool_)}
        masks["fox"][:32], masks["duck"][:, 32:] = True, True
        logits = torch.full((1, len(NAMES), 64, 64), -9.0)
        logits[0, NAMES.index("fox")][:32] = 9
        logits[0, NAMES.index("duck")][:, 48:] = 9
        logits[0, NAMES.index("van")] = 9
        monkeypatch.setattr("weakly.foundation.pretraining.clipseg_measure.decode", lambda *_: logits)
        scores = measure_names(clipseg, [(np.zeros((64, 64, 3), np.uint8), masks)])["kinds"]
        assert scores.iou == pytest.approx((1 + 0.5) / 2)
        assert scores.false_positives == pytest.approx(1 / 37)
        assert scores.lit == pytest.approx(1 / 37)
        assert (scores.present, scores.images) == (2, 1)


class TestRelease:
    def test_the_folder_holds_the_decoder_alone_and_its_card_tells_figures_and_hash(self, clipseg, tmp_path):
        scores = {"kinds": NameScores(0.8125, 0.25, 0.0625, present=301, images=200)}
        folder = release_clipseg(clipseg, tmp_path / "clipseg", CONFIG, TRAINING, 64, scores)
        payload = (folder / DECODER).read_bytes()
        card = (folder / "README.md").read_text()
        assert hashlib.sha256(payload).hexdigest() in card
        assert "| kinds | 200 | 301 | 0.812 | 0.250 | 0.0625 |" in card
        assert "64 Menagerie worlds" in card
        assert {path.name for path in folder.iterdir()} == {"config.json", DECODER, "README.md"}
        loaded = read_bundled(folder)
        assert loaded.fingerprint == clipseg.fingerprint
        pixels = torch.randn(1, 3, 64, 64)
        texts = torch.randn(1, 2, 16)
        with torch.no_grad():
            found, expected = (decode(c.new_decoder(), c.taps(pixels), texts) for c in (loaded, clipseg))
        torch.testing.assert_close(found, expected, atol=5e-3, rtol=0)

    def test_too_large_a_file_is_not_written(self, clipseg, tmp_path, monkeypatch):
        monkeypatch.setattr(clipseg_command, "MAX_BYTES", 1000)
        with pytest.raises(WeaklyError, match="keep it under 1,000"):
            release_clipseg(clipseg, tmp_path / "clipseg", CONFIG, TRAINING, 0, {})
        assert not (tmp_path / "clipseg").exists()

    def test_the_bundled_sizes_fit_the_package(self, clip):
        towers = build_small_clip(SmallClipConfig(), build_tokenizer())
        decoder = new_clipseg(Clip(towers, clip.tokenizer, "full"), DecoderConfig()).new_decoder()
        assert 2 * sum(p.numel() for p in decoder.parameters()) + 10_000 < clipseg_command.MAX_BYTES


def test_make_clipseg_from_nothing_to_a_folder_that_loads(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(captioned, "CHUNK", 8)
    monkeypatch.setattr(clipseg_command, "CLIPSEG_RECIPES", {"cpu": TRAINING})
    told: set[str] = set()
    make = lambda: make_clipseg(
        tmp_path, steps=10, worlds=8, measured=3, config=CONFIG, progress=lambda what, *_: told.add(what)
    )
    scores = make()
    card = (tmp_path / "clipseg" / "README.md").read_text()
    assert f"| kinds | 3 | {scores['kinds'].present} | {scores['kinds'].iou:.3f} |" in card
    assert told == {"rendering worlds", "training"}
    before = (tmp_path / "clipseg" / DECODER).read_bytes()
    assert make() == scores
    assert (tmp_path / "clipseg" / DECODER).read_bytes() == before


def test_an_unknown_recipe_is_refused(tmp_path):
    with pytest.raises(UserError, match="no recipe 'tpu' for a CLIPSeg"):
        make_clipseg(tmp_path, recipe="tpu")
