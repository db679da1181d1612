"""Det-SAM through the whole engine, on a SAM with random weights: train, resume, score masks and boxes, report."""

from __future__ import annotations

from pathlib import Path

import pytest

from weakly.cli import DONE, main
from weakly.engine.fit import fit
from weakly.engine.recipe import load_recipe
from weakly.evaluation.records import read_records
from weakly.methods.baselines.det_sam.pretrained import from_pretrained

SETTINGS = """\
  detector: faster-rcnn
  backbone: segmenter
  faster_rcnn: {width: 32, hidden: 16, anchors: [8, 16, 32], scales: [2, 1, 0.5], roi_scale: 32, rois: 8, proposals: 20}
  min_score: 0.0
  detections: 4
"""


@pytest.fixture
def recipe(recipe_file: Path, small_sam: Path, tmp_path: Path) -> Path:
    path = tmp_path / "det-sam.yaml"
    settings = f"settings:\n  segmenter: {small_sam}\n{SETTINGS}"
    path.write_text(recipe_file.read_text().replace("method: tiny\n", f"method: det-sam\n{settings}"))
    return path


def test_it_is_trained_scored_used_and_reported(recipe: Path, work: Path) -> None:
    assert main(["fit", str(recipe), "--out", "run"]) == DONE
    assert main(["evaluate", "run"]) == DONE
    records = {(r.method, r.supervision, r.setting): r for r in read_records(work / "run" / "metrics.json")}
    assert records.keys() == {
        ("det-sam", "box", None), ("det-sam", "box", "boxes"), ("oracle", "box", None), ("oracle", "point", None),
    }  # fmt: skip
    masks, boxes = records["det-sam", "box", None], records["det-sam", "box", "boxes"]
    assert masks.protocols is not None and masks.ap is None
    assert boxes.protocols is None and boxes.ap is not None and boxes.images == masks.images == 4
    assert 0 <= from_pretrained(work / "run" / "student").threshold <= 1
    images = Path(load_recipe(recipe).data.root) / "images" / "val"
    assert main(["predict", "run", str(images), "--out", "masks"]) == DONE
    assert len(list((work / "masks" / "label-maps").iterdir())) == 4
    assert main(["report", "run"]) == DONE


def test_interrupted_it_ends_with_the_same_bytes(recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = load_recipe(recipe)
    whole = fit(plan, work / "whole")
    with monkeypatch.context() as patch:

        def stop(self: object, trainer: object, *_: object, **__: object) -> None:
            if trainer.global_step == 5:  # type: ignore[attr-defined]
                raise RuntimeError

        patch.setattr("weakly.engine.logs.TrainingBar.on_train_batch_end", stop)
        with pytest.raises(RuntimeError):
            fit(plan, work / "stopped")
    stopped = fit(plan, work / "stopped")
    for name in ("student", "best"):
        for file in ("student.safetensors", "config.json"):
            assert (whole.folder / name / file).read_bytes() == (stopped.folder / name / file).read_bytes()
