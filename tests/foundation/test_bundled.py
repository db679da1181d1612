"""The bundled SAM, CLIP and CLIPSeg are there, are the files their cards describe, and do what the cards say."""

from __future__ import annotations

import hashlib
import re

import pytest
import torch

from weakly.foundation import clip, clipseg
from weakly.foundation.pretraining import clip_command, clipseg_command, release
from weakly.foundation.pretraining.clip_command import load_released
from weakly.foundation.pretraining.clip_measure import measure_tags, world_tags
from weakly.foundation.pretraining.clipseg_measure import measure_names, world_objects
from weakly.foundation.pretraining.measure import measure_prompts, world_parts
from weakly.foundation.sam import load_segmenter
from weakly.foundation.weights import BUNDLED_SAM

torch.set_num_threads(1)

WEIGHTS = {
    "sam": BUNDLED_SAM / "model.safetensors",
    "clip": clip.BUNDLED / "model.safetensors",
    "clipseg": clipseg.BUNDLED / "decoder.safetensors",
}
LIMITS = {"sam": release.MAX_BYTES, "clip": clip_command.MAX_BYTES, "clipseg": clipseg_command.MAX_BYTES}


@pytest.mark.parametrize("model", WEIGHTS)
class TestFiles:
    def test_are_those_of_the_card(self, model):
        (stated,) = re.findall(r"SHA-256 `([0-9a-f]{64})`", (WEIGHTS[model].parent / "README.md").read_text())
        assert hashlib.sha256(WEIGHTS[model].read_bytes()).hexdigest() == stated

    def test_fit_the_package(self, model):
        assert WEIGHTS[model].stat().st_size <= LIMITS[model]


def test_limits_are_those_of_the_package():
    assert LIMITS == {"sam": 16_000_000, "clip": 9_000_000, "clipseg": 1_000_000}


@pytest.mark.parametrize(("name", "row"), [("bundled", ""), ("bundled-384", ", at 384 px")])
def test_the_sam_does_what_its_card_says(name, row):
    """On 20 of the card's unseen worlds: broken weights or preprocessing would cost far more than the tolerance."""
    card = (BUNDLED_SAM / "README.md").read_text()
    figures = rf"\| parts of unseen Menagerie worlds{row} \| \d+ \| \d+ \| ([\d.]+) \| ([\d.]+) \|"
    ((box, point),) = re.findall(figures, card)
    scores = measure_prompts(load_segmenter(name), world_parts(20))
    assert abs(scores.box - float(box)) < 0.05
    assert abs(scores.point - float(point)) < 0.07


def test_a_point_finds_its_part_on_finer_images():
    """The aim for points, as the card states it: 0.75 for the best of three masks."""
    card = (BUNDLED_SAM / "README.md").read_text()
    (point,) = re.findall(r"Menagerie worlds, at 384 px \| \d+ \| \d+ \| [\d.]+ \| ([\d.]+) \|", card)
    assert float(point) >= 0.75


def test_the_clip_does_what_its_card_says():
    """On 60 of the card's unseen worlds; a tag that few images show makes the mean uncertain."""
    card = (clip.BUNDLED / "README.md").read_text()
    ((patches, cls),) = re.findall(r"\| super-categories \| \d+ \| \d+ \| ([\d.]+) \| ([\d.]+) \|", card)
    scores = measure_tags(*load_released(clip.BUNDLED), world_tags(60))["super-categories"]
    assert abs(scores.patches - float(patches)) < 0.06
    assert abs(scores.cls - float(cls)) < 0.06


def test_the_clip_reaches_its_target():
    """Zero-shot mean average precision over all tags of unseen worlds, as its card states it."""
    card = (clip.BUNDLED / "README.md").read_text()
    ((patches, cls),) = re.findall(r"\| all of these \| \d+ \| 90 \| ([\d.]+) \| ([\d.]+) \|", card)
    assert min(float(patches), float(cls)) >= 0.85


def test_the_clipseg_does_what_its_card_says():
    """On 30 of the card's unseen worlds."""
    card = (clipseg.BUNDLED / "README.md").read_text()
    ((iou, wrong),) = re.findall(r"\| super-categories \| \d+ \| \d+ \| ([\d.]+) \| ([\d.]+) \|", card)
    scores = measure_names(clipseg.load_clipseg("bundled"), world_objects(30))["super-categories"]
    assert abs(scores.iou - float(iou)) < 0.1
    assert abs(scores.false_positives - float(wrong)) < 0.06
