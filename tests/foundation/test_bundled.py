"""The bundled SAM is there, is the file its card describes, and does what the card says."""

from __future__ import annotations

import hashlib
import re

import torch

from weakly.foundation.pretraining.measure import measure_prompts, world_parts
from weakly.foundation.pretraining.release import MAX_BYTES
from weakly.foundation.sam import BUNDLED, load_segmenter

torch.set_num_threads(1)

WEIGHTS = BUNDLED / "model.safetensors"


def test_the_file_is_the_one_of_its_card():
    (stated,) = re.findall(r"SHA-256 `([0-9a-f]{64})`", (BUNDLED / "README.md").read_text())
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == stated


def test_it_fits_the_package():
    assert WEIGHTS.stat().st_size <= MAX_BYTES == 16_000_000


def test_it_does_what_its_card_says():
    """On 20 of the card's unseen worlds: broken weights or preprocessing would cost far more than the tolerance."""
    card = (BUNDLED / "README.md").read_text()
    ((box, point),) = re.findall(r"\| parts of unseen Menagerie worlds \| \d+ \| \d+ \| ([\d.]+) \| ([\d.]+) \|", card)
    scores = measure_prompts(load_segmenter("bundled"), world_parts(20))
    assert abs(scores.box - float(box)) < 0.05
    assert abs(scores.point - float(point)) < 0.07
