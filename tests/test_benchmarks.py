"""Every benchmark is a command that runs end to end, here on models small enough for a test."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    SamConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)

from weakly.errors import UserError
from weakly.evaluation.records import Record, read_records, write_records
from weakly.foundation.automatic_masks import AutomaticMasks, generate_masks
from weakly.foundation.sam import SamSegmenter
from weakly.segmentation import encode_masks

torch.set_num_threads(1)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def load_benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def beside_each_other() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield


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
    assert wps_training.main(["--segmenter", str(tmp_path / "absent.pth")]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


@pytest.fixture(scope="module")
def fma() -> ModuleType:
    return load_benchmark("fma")


@pytest.fixture(scope="module")
def tiny_models(fma, tmp_path_factory) -> list[str]:
    """Options that name a SAM and a CLIP of tests' sizes, with the benchmark's own random weights."""
    folder = tmp_path_factory.mktemp("models")
    sys.modules["fma_masks"].randomise(tiny_sam(), seed=0).model.save_pretrained(folder / "sam")
    sizes = {"image_size": 64, "patch_size": 16, "hidden_size": 48, "intermediate_size": 96}
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=3, num_attention_heads=2)
    clip = sys.modules["fma_maps"].random_clip(vision, seed=0)
    clip.model.save_pretrained(folder / "clip")
    clip.tokenizer.save_pretrained(folder / "clip")
    sizes = {"images": 2, "map_images": 4, "height": 96, "width": 128, "points_per_side": 8}
    options = {**sizes, "nms_threshold": 0.95, "passing": 0.5, "stable": 0.7, "device": "cpu"}
    named = [f"--{key}={value}" for key, value in options.items()]
    return [f"--segmenter={folder / 'sam'}", f"--clip={folder / 'clip'}", *named]


def test_fma_on_tiny_models(fma, tiny_models, tmp_path, capsys):
    out = tmp_path / "results.json"
    assert fma.main([*tiny_models, "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    masks, maps = result["masks"], result["maps"]
    assert masks["same"]
    assert maps["same"]
    kept = masks["masks_kept"]
    assert 10 < kept["both"] <= min(kept["pipeline"], kept["weakly"]) < 2 * 8 * 8 * 3 * 0.5
    assert masks["largest_difference_of_predicted_iou"] < 1e-4
    assert maps["classes_per_image"] == [1, 2, 3, 4]
    assert list(maps["times_faster_by_cpu_of_classes"]) == ["1", "2", "3", "4"]
    assert 0 < max(maps["largest_relative_difference"].values()) < 1e-4
    for part, other in ((masks, "pipeline"), (maps, "reference")):
        seconds = part["seconds_per_image"]
        assert part["times_faster"] == pytest.approx(seconds[other] / seconds["weakly"])
    seconds = masks["cpu_seconds_per_image"]
    assert masks["times_faster_by_cpu_without_encoder"] == pytest.approx(
        (seconds["pipeline"] - seconds["encoder"]) / (seconds["weakly"] - seconds["encoder"])
    )
    printed = capsys.readouterr().out
    assert "not measured (no GPU)" in printed
    assert f"pipeline {kept['pipeline']}, weakly {kept['weakly']}, both {kept['both']} (the same" in printed


def test_fma_tells_masks_that_differ(fma, tiny_models, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["fma_masks"], "SAME_MASK", 1.1)
    assert fma.main([*tiny_models, "--out", str(tmp_path / "results.json")]) == 1
    assert "NOT the same" in capsys.readouterr().out


def masks_of(boxes: list[tuple[int, int, int, int]], scores: list[float]) -> AutomaticMasks:
    """Filled rectangles on 32 x 32 pixels."""
    drawn = np.zeros((len(boxes), 32, 32), bool)
    for mask, (x0, y0, x1, y1) in zip(drawn, boxes, strict=True):
        mask[y0:y1, x0:x1] = True
    return AutomaticMasks.from_rles((32, 32), encode_masks(drawn), [0] * len(boxes), scores, scores)


def test_fma_counts_common_masks_and_explains_the_others(fma):
    """10 x 10 in 10 x 14 pixels: the IoU is 0.71 with exclusive bounds and 81 / 117 = 0.69 with inclusive ones."""
    compare = sys.modules["fma_masks"].compare_masks
    theirs = masks_of([(0, 0, 10, 14), (0, 0, 10, 10), (20, 20, 30, 30)], [0.9, 0.8, 0.7])
    ours = masks_of([(20, 20, 30, 30), (0, 0, 10, 14)], [0.7, 0.95])
    compared = compare(theirs, ours, threshold=0.7)
    assert (compared["pipeline"], compared["weakly"], compared["both"]) == (3, 2, 2)
    assert compared["box_convention"] == 1
    assert compared["least_iou"] == 1
    assert compared["score_difference"] == pytest.approx(0.05)
    assert compare(theirs, ours, threshold=0.5)["box_convention"] == 0
    assert compare(theirs, masks_of([], []), threshold=0.7)["both"] == 0


@pytest.mark.parametrize(("box", "lengths"), [((0, 0, 32, 32), 2), ((3, 0, 5, 32), 3), ((3, 4, 5, 9), 5)])
def test_fma_counts_the_runs_of_a_mask(fma, box, lengths):
    """Column by column and beginning with what is not the mask, be it nothing."""
    assert sys.modules["fma_masks"].runs(masks_of([box], [1.0]).rles[0]) == lengths


def test_fma_thresholds_let_the_given_fractions_pass(fma):
    masks = sys.modules["fma_masks"]
    segmenter = masks.randomise(tiny_sam(), seed=0)
    image = fma.rendered(0, 0, (96, 128))
    settings = fma.AutomaticMaskSettings(
        points_per_side=8, crop_layers=0, whole_iou_offset=0, whole_nms_offset=0, min_region=0
    )
    chosen = masks.with_thresholds(segmenter, image, settings, (0.5, 0.7))
    every = {"iou_threshold": 0, "stability_threshold": 0, "nms_threshold": 1}
    found = generate_masks(segmenter, image, replace(settings, **every))
    assert len(found) > 150
    kept = generate_masks(segmenter, image, replace(chosen, nms_threshold=1))
    assert len(kept) == pytest.approx(0.35 * len(found), abs=2)


def test_fma_reference_on_a_worked_example(fma):
    """Of a map of ones, all but the last row and column spreads; attention to oneself alone keeps it where it is."""
    maps = sys.modules["fma_maps"]
    values = torch.ones(6, 8)
    values[2, 3] = 0  # a constant map has no score
    after = maps.reference_spread(values, torch.eye(48), maps.SeedSettings())
    wanted = values.clone()
    wanted[-1], wanted[:, -1] = 0, 0
    assert torch.equal(after, wanted)


def test_fma_reference_gradient_is_that_of_the_score(fma, tiny_models):
    """The map is linear in the gradient: along F itself it is the derivative of the score, as differences find it."""
    maps = sys.modules["fma_maps"]
    clip = maps.load_clip(tiny_models[1].removeprefix("--clip="))
    torch.manual_seed(0)
    features = clip.encode(torch.randn(1, 3, 64, 96), 2)
    present = torch.nn.functional.normalize(torch.randn(5, clip.joint_width), dim=-1)
    found = maps.reference_map(clip, features, present, 1)
    normed = clip.last_norm(features.last_input)
    direction = normed[:, 1:].mean(1, keepdim=True)

    def score(step: float) -> torch.Tensor:
        moved = torch.cat([normed[:, :1], normed[:, 1:] + step * direction], 1)
        embedding = torch.nn.functional.normalize(clip.tail(features.last_input, moved), dim=-1)
        return (clip.logit_scale * embedding @ present.T).double().softmax(1)[0, 1]

    slope = (score(1e-2) - score(-1e-2)) / 2e-2
    assert found.mean().item() * found.numel() == pytest.approx(slope.item(), rel=1e-2)


def test_fma_sides_take_turns_to_begin(fma):
    order: list[str] = []
    times = {"a": [], "b": []}
    in_turn = sys.modules["side_by_side"].in_turn
    for turn in range(3):
        sides = {name: partial(lambda name: order.append(name) or name, name) for name in times}
        assert in_turn(sides, turn, times, torch.device("cpu")) == ["a", "b"]
    assert "".join(order) == "abbaab"
    assert all(seconds.wall >= 0 and seconds.cpu >= 0 for seconds in times["a"] + times["b"])


def test_fma_help_and_user_errors(fma, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        fma.main(["--help"])
    assert stopped.value.code == 0
    assert "--points_per_side" in capsys.readouterr().out
    assert fma.main(["--segmenter", str(tmp_path / "absent.pth")]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_tables_of_a_reproduction_are_collected(tmp_path: Path) -> None:
    collect_tables = load_benchmark("collect_tables")
    run, results = tmp_path / "run", tmp_path / "results"
    run.mkdir()
    with pytest.raises(UserError, match="run has no tables.md"):
        collect_tables.collect(run, "x", results)
    (run / "tables.md").write_text("# Paper\n")
    (run / "orderings.json").write_text("{}\n")
    write_records(run / "metrics.json", [])
    assert collect_tables.collect(run, "x", results) == 0
    assert {path.name for path in results.iterdir()} == {"x.md", "x.json", "x-orderings.json"}
    assert (results / "x.md").read_text() == "# Paper\n"


def test_results_grow_by_runs_and_the_last_measurement_counts(tmp_path: Path, monkeypatch) -> None:
    collect_results = load_benchmark("collect_results")
    monkeypatch.setattr(collect_results, "REPOSITORY", tmp_path)
    (tmp_path / "docs" / "results").mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "page.md").write_text("A\n<!-- table: x -->\nold\n<!-- end -->\nB\n")

    def record(method: str, miou: float) -> Record:
        return Record(method=method, data="d", split="val", images=2, row="final", miou=miou, command=f"c {method}")

    earlier = tmp_path / "docs" / "results" / "x.json"
    write_records(earlier, [record("fma", 0.1), record("clip-es", 0.2)])
    write_records(tmp_path / "run" / "metrics.json", [record("fma", 0.3)])
    assert collect_results.collect([earlier, tmp_path / "run"], "x", ("page.md",)) == 0
    assert {r.method: r.miou for r in read_records(earlier)} == {"fma": 0.3, "clip-es": 0.2}
    page = (tmp_path / "page.md").read_text()
    assert "| fma | 30.0 |" in page and "old" not in page and page.endswith("<!-- end -->\nB\n")


def test_runs_that_differ_in_their_seeds_are_one_row_with_its_spread() -> None:
    collect_results = load_benchmark("collect_results")

    def record(method: str, seed: int, miou: float, strict: float | None = None) -> Record:
        details = {} if strict is None else {"strict": {"miou": {"harmonic": strict}}}
        same = {"data": "d", "split": "val", "images": 2, "row": "final", "command": "c"}
        return Record(method=method, seed=seed, miou=miou, details=details, **same)

    records = [record("a", 1, 0.1, 0.5), record("a", 2, 0.3, 0.7), record("b", 1, 0.25), record("b", 2, 0.25)]
    text = collect_results.stages(records)
    assert "| method | miou | strict |" in text
    assert "| a | 20.0 ± 14.1 | 60.0 ± 14.1 |" in text
    assert "| b | 25.0 ± 0.0 | - |" in text
    assert "seeds 1, 2." in text
    with pytest.raises(UserError, match="differ in nothing"):
        collect_results.stages([*records, record("b", 2, 0.5)])


def test_a_table_tells_figures_on_different_weights_apart() -> None:
    collect_results = load_benchmark("collect_results")

    def record(method: str, miou: float, weights: str | None, segmenter: str | None = "bundled") -> Record:
        known = {"data": "d", "split": "val", "images": 2, "command": "c", "segmenter": segmenter}
        return Record(method=method, miou=miou, segmenter_weights=weights, **known)

    same = collect_results.stages([record("a", 0.1, "abc"), record("b", 0.2, "abc"), record("c", 0.3, None, None)])
    assert "| method | miou |" in same and "segmenter `bundled` (weights `abc`)" in same
    mixed = collect_results.stages([record("a", 0.1, "abc"), record("b", 0.2, None)])
    assert "| a | abc | 10.0 |" in mixed and "| b | - | 20.0 |" in mixed
    assert "(weights `abc`, others not named)" in mixed


class TestSummary:
    @pytest.fixture
    def results(self, tmp_path: Path) -> Path:
        same = {"data": "d", "split": "val", "images": 5, "row": "final"}
        records = [
            *(
                Record(method="a", preset="default", seed=seed, miou=miou, **same)
                for seed, miou in ((1, 0.1), (2, 0.3))
            ),
            Record(method="a", preset="plus", miou=0.5, **same),
            Record(method="bound", protocols={"p": {"miou": 0.9}}, **same),
        ]
        write_records(tmp_path / "a-d.json", records)
        return tmp_path

    def row(self, **changes: object) -> object:
        summary = load_benchmark("summary")
        known = {
            "give": "tags",
            "get": "masks",
            "method": "A",
            "result": "a-d",
            "figure": "miou",
            "figure_name": "mIoU",
        }
        return summary.Row(**{**known, "published": {"method": "a", "preset": "default"}, **changes})

    def test_a_line_has_the_method_our_variant_and_what_to_compare_with(self, results: Path) -> None:
        row = self.row(plus={"preset": "plus"}, beside={"method": "bound"}, beside_name="truth")
        text = load_benchmark("summary").summary(results, [row])
        assert "| tags | masks (A) | d `val`, 5 images | mIoU | 20.0 ± 14.1 | 50.0 | -, truth |" in text

    def test_a_figure_of_a_protocol_is_found_by_both_names(self, results: Path) -> None:
        text = load_benchmark("summary").summary(results, [self.row(published={"method": "bound"}, figure="p.miou")])
        assert "| 90.0 | - | - |" in text

    def test_a_row_without_its_record_is_an_error(self, results: Path) -> None:
        with pytest.raises(UserError, match=r"a-d\.json: no record of .*'rival'"):
            load_benchmark("summary").summary(results, [self.row(published={"method": "rival"})])

    def test_the_readme_shows_what_the_committed_records_say(self) -> None:
        summary = load_benchmark("summary")
        assert (
            summary.summary(summary.REPOSITORY / "docs" / "results") in (summary.REPOSITORY / "README.md").read_text()
        )
