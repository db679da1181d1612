"""The full-size benchmarks: what they would run is a recipe's command, and every stage is a process of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamPromptEncoderConfig, SamVisionConfig

from weakly.engine.recipe import load_recipe
from weakly.foundation.sam import load_segmenter

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
METHODS = ("fma", "weaksam")


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)


@pytest.mark.parametrize("method", METHODS)
def test_stages_are_commands_of_the_recipe(method, tmp_path, monkeypatch, capsys):
    full_size = __import__("full_size")
    benchmark = __import__(f"{method}_full_size")
    commands: list[list[str]] = []
    monkeypatch.setattr(benchmark, "save_models", lambda root, seed: None)
    monkeypatch.setattr(
        full_size, "measured", lambda words: commands.append(words) or {"seconds": 1.0, "peak_gib": 2.0}
    )
    out = tmp_path / "figures.json"
    assert benchmark.benchmark(size=64, out=out) == 0
    stages = [*sys.modules[f"weakly.methods.{method}.pipeline"].STAGES, "network"]
    assert [row["stage"] for row in json.loads(out.read_text())["stages"]] == stages
    assert capsys.readouterr().out.count("2.00 GiB") == len(stages)

    untils = [words[words.index("--until") + 1] if "--until" in words else None for words in commands]
    assert untils == [*stages[:-1], None]
    recipe, *options = commands[-1][4:]
    overrides = [tuple(word.removeprefix("--").split("=", 1)) for word in options if "=" in word]
    resolved = load_recipe(Path(recipe), overrides)
    assert resolved.method == method and resolved.settings.segmenter.endswith("/sam"), "all options are keys"
    assert resolved.optimisation.epochs == 1 and resolved.evaluation.references is False


def test_a_sam_that_finds_every_mask_good_is_saved_as_published(tmp_path):
    sizes = {"image_size": 64, "patch_size": 8}
    vision = SamVisionConfig(
        **sizes,
        hidden_size=32,
        output_channels=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_pos_feats=16,
        global_attn_indexes=[1],
        window_size=4,
    )
    config = SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**sizes, hidden_size=32).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=32).to_dict(),
    )
    __import__("full_size").save_sam(tmp_path / "sam", config, seed=0)
    segmenter = load_segmenter(str(tmp_path / "sam"))
    embedding = segmenter.encode(torch.zeros(1, 3, 64, 64))
    tokens = segmenter.point_tokens(torch.tensor([[10.0, 20.0], [40.0, 50.0]]))
    _, scores = segmenter.decode(embedding, tokens, torch.zeros(2, dtype=torch.int64), multimask=True)
    assert scores.shape == (2, 3) and scores.allclose(torch.tensor(0.95))


def test_a_process_is_measured_alone_and_its_failure_is_told():
    full_size = __import__("full_size")
    small, large = (
        full_size.measured([sys.executable, "-c", f"x = bytearray({mebibytes} << 20); print(len(x))"])
        for mebibytes in (1, 400)
    )
    assert small["peak_gib"] < 0.2 < 0.39 < large["peak_gib"] < small["peak_gib"] + 0.5
    with pytest.raises(full_size.UserError, match="`raise SystemExit"):
        full_size.measured([sys.executable, "-c", "raise SystemExit(3)"])


def test_help_names_the_sizes(capsys):
    for method in METHODS:
        module = __import__(f"{method}_full_size")
        with pytest.raises(SystemExit):
            module.run_command(module.benchmark, ["--help"])
        assert "--size" in capsys.readouterr().out
