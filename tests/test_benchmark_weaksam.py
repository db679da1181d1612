"""The benchmark of WeakSAM's proposals and peaks, run end to end on a model small enough for a test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from weakly.engine.recipe import load_recipe
from weakly.methods.weaksam.proposals import Proposals

torch.set_num_threads(1)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def weaksam():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import weaksam

        yield weaksam


@pytest.fixture(scope="module")
def options(weaksam, tmp_path_factory) -> list[str]:
    """Options that name a SAM of tests' size and sizes to go with it."""
    folder = tmp_path_factory.mktemp("sam")
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
    sys.modules["fma_masks"].randomise(SamModel(config), seed=0).model.save_pretrained(folder)
    sizes = {"height": 96, "width": 128, "points_per_side": 4, "kernel": 17, "device": "cpu"}
    return [f"--segmenter={folder}", *[f"--{key}={value}" for key, value in sizes.items()]]


def test_a_tiny_run(weaksam, options, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert weaksam.main([*options, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    points, whole, peaks = (result[key] for key in ("points", "points_and_grid", "peaks"))
    assert points["same"] and whole["same"] and peaks["same"]
    assert points["pixels_that_agree"] >= 0.9999
    assert points["boxes"]["both"] > 20
    assert points["prompts"] == 2 * (2 * 4 + 2) + 12
    assert (points["grid_prompts"], whole["grid_prompts"]) == (0, 16)
    assert points["encodes"] == {"one_at_a_time": 2 * (1 + 2) + 1, "weakly": 1}
    assert whole["encodes"] == {"one_at_a_time": 4 + 2 * 2, "weakly": 1}
    assert whole["boxes"]["both"] > points["boxes"]["both"] / 2 - 1, "one image instead of two, and a grid"
    assert (points["wanted"], whole["wanted"], peaks["wanted"]) == (3, None, 10)
    for part, other in ((points, "one_at_a_time"), (whole, "one_at_a_time"), (peaks, "two_dimensional")):
        assert part["times_faster"] == pytest.approx(part["seconds"][other] / part["seconds"]["weakly"])
    assert peaks["points"] > 2
    printed = capsys.readouterr().out
    assert "NOT the same" not in printed
    assert "encoded: one at a time 8, weakly 1" in printed


def test_boxes_that_differ_are_told(weaksam, options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["weaksam_proposals"], "AGREEMENT", 1.1)
    assert weaksam.main([*options, "--grid_images", "0", "--out", str(tmp_path / "results.json")]) == 1
    assert "NOT the same" in capsys.readouterr().out


def test_common_boxes_are_counted_with_their_source(weaksam):
    compare = sys.modules["weaksam_proposals"].compare_boxes
    one = Proposals(np.array([(0, 0, 4, 4), (0, 0, 4, 4), (1, 1, 5, 5)]), np.array([0, 0, 1]))
    other = Proposals(np.array([(0, 0, 4, 4), (1, 1, 5, 5)]), np.array([0, 2]))
    assert compare(one, other) == {"one_at_a_time": 3, "weakly": 2, "both": 1}


def test_help_and_user_errors(weaksam, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        weaksam.main(["--help"])
    assert stopped.value.code == 0
    assert "--points_per_side" in capsys.readouterr().out
    for wrong in (["--segmenter", str(tmp_path / "absent.pth")], ["--images", "0"]):
        assert weaksam.main(wrong) == 2
        assert capsys.readouterr().err.strip().count("\n") == 0


def test_a_grid_of_the_recall_benchmark_is_what_its_overrides_ask_for(weaksam):
    import weaksam_recall

    assert [weaksam_recall.told(grid) for grid in weaksam_recall.GRIDS] == [
        "grid of 12 x 12, NMS 0.6, 50 by votes, borders 1",
        "grid of 8 x 8, NMS 0.5, 50 by votes",
        "grid of 8 x 8, NMS 0.3",
        "grid of 8 x 8, NMS 0.5",
        "grid of 16 x 16, NMS 0.7",
    ]
    recipe = BENCHMARKS.parent / "recipes" / "weaksam" / "menagerie-boxes.yaml"
    assert load_recipe(recipe, ()).settings.proposals.grid == weaksam_recall.GRIDS[0]
    for grid in weaksam_recall.GRIDS:
        assert load_recipe(recipe, weaksam_recall.overrides_of(grid)).settings.proposals.grid == grid
