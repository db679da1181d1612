"""Every benchmark is a command that runs end to end, here on models small enough for a test."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from weakly.foundation.sam import SamSegmenter

torch.set_num_threads(1)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def wps_training() -> ModuleType:
    return load_benchmark("wps_training")


def tiny_sam() -> SamModel:
    torch.manual_seed(0)
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
        initializer_range=0.02,  # the library's 1e-10 makes embeddings of zeros
    )
    prompt = SamPromptEncoderConfig(**sizes, hidden_size=32)
    decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=32)
    return SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompt.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )


def test_wps_training_on_a_tiny_sam(wps_training, tmp_path, capsys):
    tiny_sam().save_pretrained(tmp_path / "sam")
    out = tmp_path / "results.json"
    options = ["--segmenter", str(tmp_path / "sam"), "--images", "3", "--device", "cpu", "--store_epochs", "1"]
    assert wps_training.main([*options, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["images"] == 3
    assert result["ratio_of_epochs"] > 0
    seconds = result["seconds"]
    assert result["ratio_of_epochs"] == pytest.approx(
        seconds["epoch_with_encoder_in_the_loop"] / seconds["epoch_from_store"]
    )
    differences = {dtype: loss["largest_relative_difference"] for dtype, loss in result["losses"].items()}
    assert differences["float32"] < differences["float16"]
    for loss in result["losses"].values():
        assert loss["same"]
        assert len(loss["encoder_in_the_loop"]) == 2
        assert loss["largest_relative_difference"] <= loss["tolerance"]
    drifts = {dtype: store["relative_l2"] for dtype, store in result["store"].items()}
    assert drifts["float32"] == 0 < drifts["float16"] < drifts["int8"] < 0.02
    assert result["gpu"] is None
    assert len(result["not_measured"]) == 3
    printed = capsys.readouterr().out
    assert "not measured (no GPU)" in printed
    assert "float32 store: same" in printed


def test_wps_training_counts_the_flops_of_the_paper(wps_training):
    """972 GFLOP for SAM ViT-B at 1024 px, about 5 forward for the student: 45 times less over 150 epochs."""
    with torch.device("meta"):
        segmenter = SamSegmenter(SamModel(SamConfig()), "ViT-B")
    flops = wps_training.count_flops(segmenter, wps_training.WpsSettings(), classes=40)
    assert flops["encoder"] == pytest.approx(972, abs=1)
    assert flops["student_forward_and_backward"] == pytest.approx(14, abs=1.5)
    assert flops["ratio_of_paper_training"] == pytest.approx(48, abs=4)


def test_wps_training_throughput_has_the_figures_of_a_gpu(wps_training, tmp_path):
    segmenter = SamSegmenter(tiny_sam(), "tiny")
    dataset = wps_training.rendered(tmp_path, 2, seed=3)
    settings = wps_training.WpsSettings(layers=1, width=32, ffn=32)
    flops = {"encoder": 1.0}
    cpu = torch.device("cpu")
    result = wps_training.throughput(segmenter, dataset, settings, flops, cpu, 790.0, batches=(1, 3), steps=1)
    assert [row["batch"] for row in result["encoder"]] == [1, 3, 1, 3]
    best = max(row["images_per_second"] for row in result["student"])
    training = result["extrapolated_paper_training"]
    assert training["hours"]["epochs"] == pytest.approx(150 * 20_466 / best / 3600)
    assert training["ratio"] == pytest.approx(59 / training["hours"]["total"])
    row = result["encoder"][-1]
    assert row["fraction_of_bf16_peak"] == pytest.approx(row["images_per_second"] / 1e3 / 790)


def test_wps_training_tells_losses_that_differ(wps_training):
    one, other = wps_training.Epoch(1.0, [4.0, 2.0]), wps_training.Epoch(1.0, [4.0, 2.1])
    compared = wps_training.compare_losses(one, other, 0.01)
    assert compared["largest_relative_difference"] == pytest.approx(0.05)
    assert not compared["same"]
    assert wps_training.compare_losses(one, one, 0.0)["same"]


def test_wps_training_help_and_user_errors(wps_training, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        wps_training.main(["--help"])
    assert stopped.value.code == 0
    assert "--peak_tflops" in capsys.readouterr().out
    assert wps_training.main(["--segmenter", str(tmp_path / "absent.pth")]) == 1
    assert capsys.readouterr().err.strip().count("\n") == 0
