"""WeakSAM through the whole engine on a rendered world in VOC's layout, on models with random weights."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakly.cli import DONE, DONE_WITH_SKIPS, WRONG_USE, main
from weakly.engine.fit import fit
from weakly.engine.panels import read_panels
from weakly.engine.recipe import load_recipe
from weakly.engine.runs import open_run
from weakly.errors import UserError
from weakly.evaluation.records import read_records
from weakly.foundation.sam import SamSegmenter
from weakly.methods.weaksam import pipeline
from weakly.methods.weaksam.proposal_settings import GridSettings

RECIPE = """\
method: weaksam
data:
  kind: voc-instances
  root: {root}/world
  render: {{layout: voc, train: 4, val: 2, seed: 5, size: 64, kinds: [dog, bear, sedan], workers: 1}}
settings:
  segmenter: {root}/sam
  clues:
    vit: {{width: 24, depth: 2, heads: 2, patch: 8, image: 16}}
    scales: [1.0]
    train: {{epochs: 2, batch: 4, lr: 0.01, lr_base_batch: 4, warmup: 1, augmentation: {{crop: 16, scale: [0.5, 1.0]}}}}
  peaks: {{cam: {{kernel: 9}}, cross: {{kernel: 17}}}}
  proposals: {{level_of: area, grid: {{side: 3, pred_iou: 0.0, stability: 0.0, nms: 0.9}}}}
  load: {{min_side: 4}}
  wsod: {{backbone: resnet10t, stages: 2, pool: align, width: 32}}
  wsod_training: {{iterations: 8, batch: 2, lr: 0.001, gate_lr: 0.001, steps: [6], warmup: 2, sizes: [32, 48],
                  max_size: 96, save_every: 3}}
  wsod_inference: {{sizes: [48], max_size: 96, flip: false}}
  detector: {{backbone: resnet18, width: 32, hidden: 32, anchors: [8, 16, 32, 64, 128], pre_nms: 100, proposals: 50,
             rois: 32, roi_scale: 56, mask_width: 16, min_score: 0.0, detections: 5, drop: {{start: 1}}}}
  augmentation: {{side: 64, scale: [0.8, 1.4]}}
  inference: {{short: [64], long: 64}}
optimisation:
  epochs: 2
  batch_size: 2
  lr: 0.001
  warmup_steps: 0
  optimizer: adamw
features:
  root: {root}/features
device: cpu
"""


@pytest.fixture
def weaksam_recipe(small_sam: Path, tmp_path: Path) -> Path:
    path = tmp_path / "weaksam.yaml"
    path.write_text(RECIPE.format(root=small_sam.parent))
    return path


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Images that the promptable segmenter has encoded, a number per call."""
    counts: list[int] = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda self, x: (counts.append(len(x)), encode(self, x))[1])
    return counts


def test_tags_to_boxes_through_fit_evaluate_predict_and_report(
    weaksam_recipe: Path, work: Path, encoded: list[int]
) -> None:
    assert main(["fit", str(weaksam_recipe), "--out", "run"]) == DONE
    assert main(["evaluate", "run", "--split", "train"]) == DONE
    assert sum(encoded) == 6, "both splits, once; prediction reads them"
    records = read_records(work / "run" / "metrics.json")
    assert {(r.method, r.supervision, r.row, r.data, r.split, r.images) for r in records} == {
        ("weaksam", "tags", row, "menagerie", split, images)
        for row in ("proposals", "wsod", "pseudo-truth", "retrained")
        for split, images in (("val", 2), ("train", 4))
    }
    for record in records:
        if record.row == "proposals":
            assert 0 <= record.recall <= 1 and record.ap50 is None
        else:
            assert all(0 <= figure <= 1 for figure in (record.ap50, record.ap, record.corloc))

    titles = {panel.title for of_image in read_panels(open_run(work / "run"), "val").values() for panel in of_image}
    assert {"proposals", "detections", "pseudo truth"} <= titles
    assert {title.split(" of ")[0] for title in titles} >= {"clue map", "peaks"}
    (work / "run" / "report.html").unlink()
    assert main(["report", "run"]) == DONE
    page = (work / "run" / "report.html").read_text()
    assert "pseudo-truth" in page and "clue map of" in page

    (work / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    Image.fromarray(noise).save(work / "photos" / "good.png")
    (work / "photos" / "bad.jpg").write_bytes(b"no image")
    assert main(["predict", "run", "photos", "--out", "masks"]) == DONE_WITH_SKIPS
    content = json.loads((work / "masks" / "predictions.json").read_text())
    assert len(content["annotations"]) > 0 and sum(encoded) == 7


MOMENTS = (
    ("features train", 4),
    ("clue network", 1),
    ("proposals train", 2),
    ("weakly supervised detector", 5),
    ("detections train", 2),
    ("pseudo masks train", 1),
    ("proposals val", 1),
)
"""Where the run is stopped: in each stage of the training split, and once in the validation split."""


def stopping(title: str, moment: int) -> Callable[[str, int, int], None]:
    def told(now: str, done: int, _: int) -> None:
        if (now, done) == (title, moment):
            raise KeyboardInterrupt(title)

    return told


@pytest.mark.timeout(900)
def test_an_interrupted_run_ends_with_the_same_bytes(
    weaksam_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def recipe(features: str) -> object:
        changes = [("features.root", str(work / features)), ("settings.student", "mask_rcnn")]
        return load_recipe(weaksam_recipe, changes)

    whole = fit(recipe("features-a"), work / "whole")
    for title, moment in MOMENTS:
        with monkeypatch.context() as patch:
            patch.setattr("weakly.engine.runs.show_progress", stopping(title, moment))
            with pytest.raises(KeyboardInterrupt, match=title):
                fit(recipe("features-b"), work / "stopped")

    def stop_training(self: object, trainer: object, *_: object, **__: object) -> None:
        if trainer.global_step == 3:  # type: ignore[attr-defined]
            raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("weakly.engine.logs.TrainingBar.on_train_batch_end", stop_training)
        with pytest.raises(RuntimeError):
            fit(recipe("features-b"), work / "stopped")
    stopped = fit(recipe("features-b"), work / "stopped")
    stages = ("clues", "points", "wsod", "pseudo_truth", "pseudo_masks")
    names = ["student/student.safetensors", "best/student.safetensors"]
    names += [str(file.relative_to(whole.folder)) for stage in stages for file in (whole.folder / stage).iterdir()]
    assert len(names) == 2 + 2 + 6 + 4 + 2 + 6
    for name in names:
        assert (whole.folder / name).read_bytes() == (stopped.folder / name).read_bytes(), name


def test_stages_run_one_by_one(
    weaksam_recipe: Path, work: Path, encoded: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    made = {
        "clues": "clues/weaktr-*.safetensors",
        "proposals": "points/*.safetensors",
        "wsod": "wsod/detections-*.json",
        "pseudo-truth": "pseudo_truth/*.json",
        "targets": "pseudo_masks/*.json",
    }
    order = list(made)
    command = ["fit", str(weaksam_recipe), "--settings.student", "mask_rcnn", "--out", "run"]
    for place, stage in enumerate(order):
        assert main([*command, "--until", stage]) == DONE
        there = [name for name, pattern in made.items() if list((work / "run").glob(pattern))]
        assert there == order[: place + 1]
        assert not (work / "run" / "student").exists()
    assert sum(encoded) == 6, "no stage repeats an earlier one"
    assert main([*command, "--until", "masks"]) == WRONG_USE
    assert "no stage 'masks'; its stages are clues, proposals, wsod, pseudo-truth, targets" in capsys.readouterr().err


def test_what_one_run_learned_before_its_student_is_the_start_of_another(
    weaksam_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[str] = []
    for name in ("train_network", "train_detector"):
        train = getattr(pipeline, name)
        monkeypatch.setattr(pipeline, name, lambda *a, _n=name, _t=train, **k: (trained.append(_n), _t(*a, **k))[1])

    def run(out: str, *options: str) -> int:
        return main(["fit", str(weaksam_recipe), "--until", "pseudo-truth", "--out", out, *options])

    assert run("first") == DONE
    assert trained == ["train_network", "train_detector"]
    assert run("masks", "--settings.student", "mask_rcnn", "--stages_from", "first") == DONE
    assert trained == ["train_network", "train_detector"], "another student learns from the same stages"
    truth = [next((work / out / "pseudo_truth").glob("train-*")).read_bytes() for out in ("first", "masks")]
    assert truth[0] == truth[1]
    assert run("seed", "--settings.wsod_training.seed", "3", "--stages_from", "first") == DONE
    assert trained[2:] == ["train_detector"], "what the recipe does differently is computed anew"
    assert (work / "first" / "wsod").is_dir()
    assert run("moved", "--data.render.seed", "6", "--stages_from", "first") == WRONG_USE
    assert "data.render.seed (5 -> 6); give a run on the same data" in capsys.readouterr().err
    assert run("none", "--stages_from", "nowhere") == WRONG_USE


def test_true_boxes_and_masks_are_the_upper_bound(weaksam_recipe: Path, work: Path, encoded: list[int]) -> None:
    changes = ["--settings.truth", "true-boxes", "--settings.student", "mask_rcnn"]
    assert main(["fit", str(weaksam_recipe), *changes, "--out", "run"]) == DONE
    (record,) = read_records(work / "run" / "metrics.json")
    assert (record.method, record.supervision, record.row) == ("true-boxes", "box", "instance")
    assert 0 <= record.ap50 <= 1 and record.corloc is None
    assert not encoded


def test_selective_search_is_the_yardstick(weaksam_recipe: Path, work: Path) -> None:
    changes = ["--settings.proposals_by", "selective-search", "--settings.inference.boxes_to_masks", "box"]
    changes += ["--settings.segmenter", "nowhere"]
    assert main(["fit", str(weaksam_recipe), *changes, "--out", "run"]) == DONE
    records = read_records(work / "run" / "metrics.json")
    assert {(r.method, r.row) for r in records} == {
        ("selective-search", row) for row in ("proposals", "wsod", "pseudo-truth", "retrained")
    }


def test_no_proposal_is_one_sentence(weaksam_recipe: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(weaksam_recipe), "--settings.load.min_side", "500", "--out", "run"]) == WRONG_USE
    error = capsys.readouterr().err
    assert "None of the 4 training images has both tags and proposals" in error and "Traceback" not in error


def test_benchmarks_score_the_stages_of_an_unfinished_run(
    weaksam_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    recall, stages = (importlib.import_module(name) for name in ("weaksam_recall", "weaksam_stages"))
    monkeypatch.setattr(
        "weakly.methods.weaksam.pipeline.selective_search", lambda *_: np.array([[0, 0, 32, 32]], np.float32)
    )
    text = weaksam_recipe.read_text().replace("load: {", "load: {dedup: false, ")  # random masks often share a box
    weaksam_recipe.write_text(text)
    run = work / "run"
    assert main(["fit", str(weaksam_recipe), "--until", "proposals", "--out", "run"]) == DONE
    loose = GridSettings(side=2, pred_iou=0.0, stability=0.0)
    assert recall.score_proposals(run, "train", (loose, replace(loose, side=4, nms=0.9))) == 0
    dense = ("selective-search", None), ("weaksam", "grid of 2 x 2, NMS 0.3"), ("weaksam", "grid of 4 x 4, NMS 0.9")
    records = read_records(run / "metrics.json")
    assert {(r.method, r.setting) for r in records} == set(dense)
    assert {(r.row, r.split, r.images) for r in records} == {("proposals", "train", 4)}
    few, many = ((r.details or {})["proposals_per_image"] for r in records if r.method == "weaksam")
    assert few < many, "a denser grid with a laxer NMS proposes more"

    with pytest.raises(UserError, match="no stage proposals"):
        stages.score_stages(run, "train")
    assert main(["fit", str(weaksam_recipe), "--until", "pseudo-truth", "--out", "run"]) == DONE
    assert stages.score_stages(run, "train") == 0
    rules = {r.setting for r in read_records(run / "metrics.json") if r.row == "pseudo-truth"}
    assert rules == {"top1", "threshold", "released", "published", "adaptive"}
    assert capsys.readouterr().out.count("recall at IoU 0.5") == 3
