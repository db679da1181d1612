"""Student folders of FMA-WSSS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from weakly.errors import UserError
from weakly.methods.fma.deeplab import DeepLabSettings
from weakly.methods.fma.mask2former import Mask2FormerSettings
from weakly.methods.fma.networks import build_network
from weakly.methods.fma.pretrained import from_pretrained, save_pretrained
from weakly.methods.fma.settings import FmaSettings
from weakly.methods.semantic_predictor import Inference, SemanticPredictor
from weakly.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
SETTINGS = FmaSettings(inference=Inference(short=32, long=128))
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
    decoder_layers=1,
    decoder_ffn=16,
    attention_heads=2,
    points=64,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    save_pretrained(
        tmp_path / "student", build_network(MASK2FORMER, 3), SETTINGS, VOCABULARY, {"data": {"name": "voc"}}
    )
    return tmp_path / "student"


@pytest.mark.parametrize("architecture", [DEEPLAB, MASK2FORMER], ids=["deeplab", "mask2former"])
def test_a_saved_network_predicts_the_same(tmp_path: Path, architecture: Any) -> None:
    torch.manual_seed(2)
    network = build_network(architecture, 3)
    save_pretrained(tmp_path / "a", network, SETTINGS, VOCABULARY)
    before = torch.random.get_rng_state()
    back, settings, vocabulary = from_pretrained(tmp_path / "a")
    assert torch.equal(torch.random.get_rng_state(), before), "loading draws no random number"
    assert vocabulary == VOCABULARY
    assert settings == SETTINGS
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    old, new = (
        SemanticPredictor(one, VOCABULARY, SETTINGS.inference, method="fma").probabilities([image])[0]
        for one in (network, back)
    )
    assert torch.equal(old, new)


def test_the_model_card_says_what_it_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    for statement in (
        "Mask2Former",
        "image tags",
        "Red, Green, Blue",
        "| data.name | voc |",
        "| settings.inference.short | 32 |",
    ):
        assert statement in card


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format": "weakly-wps-1"}, "describes no FMA-WSSS student"),
        ({"vocabulary": [{"name": "One"}]}, "4 outputs, not 2"),
        ({"architecture": {"kind": "unheard"}}, "network"),
        ({"architecture": None}, "description is damaged"),
    ],
)
def test_a_config_of_something_else_is_one_sentence(folder: Path, change: dict[str, Any], sentence: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=sentence):
        from_pretrained(folder)
