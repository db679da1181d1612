"""Settings of FMA-WSSS: what presets say, what is refused, what JSON gives back."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from weakly.engine.recipe import Recipe, load_recipe
from weakly.engine.typed import build, to_plain
from weakly.errors import UserError
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.methods.fma.presets import PRESETS
from weakly.methods.fma.settings import (
    FmaSettings,
    PromptSettings,
    RefineSettings,
    SeedSettings,
    SegmentationPromptSettings,
    SuperpixelSettings,
    ViewSettings,
)
from weakly.methods.student_folder import from_plain


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    """A recipe of FMA-WSSS with one preset."""

    def make(preset: str) -> Recipe:
        path = tmp_path / "r.yaml"
        path.write_text(f"method: fma\npreset: {preset}\ndata: {{kind: voc, root: VOC2012}}\n")
        return load_recipe(path)

    return make


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_resolves_and_json_gives_it_back(recipe: Any, preset: str) -> None:
    settings = recipe(preset).settings
    assert isinstance(settings, FmaSettings)
    assert from_plain(FmaSettings, json.loads(json.dumps(asdict(settings)))) == settings
    errors: list[str] = []
    assert build(FmaSettings, to_plain(settings), "settings", errors) == settings and not errors


def test_voc_is_the_published_table(recipe: Any) -> None:
    """Section 0 of the specification."""
    settings = recipe("voc").settings
    first, second = settings.classification, settings.segmentation
    assert (first.iterations, first.warmup, first.batch_size, first.lr) == (1800, 500, 16, 1e-3)
    assert (first.per_class, first.position, first.named_backgrounds, first.std) == (False, "append", True, 0.015)
    assert (second.iterations, second.warmup, second.batch_size) == (17_000, 500, 16)
    assert (second.per_class, second.position, second.named_backgrounds, second.std) == (True, "prepend", False, 0.0125)
    assert (first.seed, second.seed, second.classes_from) == ("真", "机", "crop")
    assert (settings.views.crop, settings.views.long) == (224, (288, 480))
    coarse, fine = settings.coarse, settings.fine
    assert (coarse.spread, coarse.sinkhorn, coarse.threshold, coarse.power, coarse.alpha) == ("score", 1, 0.4, 2, 0.6)
    assert (fine.spread, fine.sinkhorn, fine.threshold, fine.alpha) == ("cam", 1, 0.5, 0.6)
    es = settings.clip_es
    assert (es.spread, es.sinkhorn, es.threshold, es.finish, es.confidence) == ("score", 3, 0.4, "crf", 0.95)
    assert settings.architecture is settings.deeplab and settings.deeplab.encoder == "tu-resnet101c.gluon_in1k"
    official = recipe("official_voc").settings
    assert official.fine.alpha == 0.7 and official.parity and official.refine.uncovered == "background"


def test_coco_is_the_published_table(recipe: Any) -> None:
    settings = recipe("coco").settings
    first, second = settings.classification, settings.segmentation
    assert (first.iterations, first.warmup, first.batch_size // first.micro_batches) == (20_500, 1000, 4)
    assert (second.iterations, second.warmup, second.batch_size // second.micro_batches) == (75_000, 1000, 2)
    assert (second.per_class, second.position, second.named_backgrounds) == (False, "append", True)
    assert second.classes_from == "tags" and second.seed == "真"
    assert (settings.coarse.spread, settings.coarse.threshold) == ("cam", 0.6)
    assert (settings.fine.spread, settings.fine.alpha, settings.clip_es.threshold) == ("none", 1.0, 0.7)
    assert (first.stop, second.stop) == (None, None), "the published stops were chosen on true masks"
    official = recipe("official_coco").settings
    assert (official.classification.updates, official.segmentation.updates) == (6150, 45_000)


def test_presets_with_mask2former_change_network_and_optimiser_together(recipe: Any) -> None:
    loaded = recipe("voc_mask2former")
    assert loaded.settings.architecture is loaded.settings.mask2former
    assert (loaded.optimisation.optimizer, loaded.optimisation.lr, loaded.optimisation.grad_clip) == (
        "adamw",
        1e-4,
        0.01,
    )


def test_the_defaults_are_scale_free_and_the_same_for_both_stages() -> None:
    settings = FmaSettings()
    assert settings.epsilons == (0.0, 0.0, None)
    assert settings.coarse == settings.fine
    assert replace(settings, parity=True).epsilons == (1e-5, 1e-7, 1e-7)


def test_an_option_changes_one_key_of_a_section(recipe: Any, tmp_path: Path) -> None:
    recipe("voc")
    loaded = load_recipe(
        tmp_path / "r.yaml", [("settings.segmentation.iterations", "9"), ("settings.masks.min_region", "0")]
    )
    assert loaded.settings.segmentation == replace(SegmentationPromptSettings(), iterations=9)
    assert loaded.settings.masks.min_region == 0
    assert load_recipe(tmp_path / "r.yaml", [("settings.segmentation", "null")]).settings.segmentation is None


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ViewSettings(count=0), r"views\.count is 0; give a number of at least 1"),
        (lambda: ViewSettings(long=(9, 3)), r"views\.long is \[9, 3\]"),
        (lambda: ViewSettings(flip=2), r"views\.flip is 2"),
        (lambda: PromptSettings(iterations=0), "iterations is 0"),
        (lambda: PromptSettings(stop=1801), "stop is 1801; give 1 to iterations=1800"),
        (lambda: PromptSettings(batch_size=2, micro_batches=3), "no 3 parts"),
        (lambda: PromptSettings(momentum=1), "momentum is 1"),
        (lambda: PromptSettings(loss="cal"), "loss is 'cal'; these know mcl and bce"),
        (lambda: SegmentationPromptSettings(loss="mcl"), "loss is 'mcl'; these know cal and ce"),
        (lambda: SeedSettings(alpha=0), "alpha is 0"),
        (lambda: SeedSettings(threshold=1.5), "threshold is 1.5"),
        (lambda: SeedSettings(long_side=3), "long_side is 3"),
        (lambda: SuperpixelSettings(ratio=0), "ratio is 0"),
        (lambda: RefineSettings(alpha=-1), "alpha is -1"),
        (lambda: FmaSettings(backgrounds=()), "backgrounds is empty"),
    ],
)
def test_impossible_values_are_refused(make: Any, match: str) -> None:
    with pytest.raises(UserError, match=match):
        make()


def test_masks_are_asked_for_only_where_they_decide() -> None:
    crf = SeedSettings(finish="crf")
    masks = AutomaticMaskSettings()
    assert FmaSettings().seed_masks == (masks,)
    assert FmaSettings(fine=crf).seed_masks == (masks,), "the coarse seeds need them"
    assert FmaSettings(fine=SeedSettings(finish="voting"), coarse=crf).seed_masks == (masks,)
    assert FmaSettings(fine=crf, coarse=crf).seed_masks == ()
    assert FmaSettings(fine=crf, segmentation=None).seed_masks == ()


def test_fine_seeds_may_have_masks_and_superpixels_of_their_own() -> None:
    other, all_stay = AutomaticMaskSettings(min_region=0), SuperpixelSettings(ratio=None)
    settings = FmaSettings(fine_masks=other, fine_superpixels=all_stay)
    assert settings.seed_masks == (settings.masks, other)
    assert (settings.for_fine.masks, settings.for_fine.superpixels) == (other, all_stay)
    assert replace(settings, segmentation=None).seed_masks == (other,)
    assert replace(settings, fine_masks=settings.masks).seed_masks == (settings.masks,)
