"""Tables of WPS-SAM through the whole engine, baselines included, on a SAM with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from test_wps_run import wps_recipe  # noqa: F401 - a fixture

from weakly.cli import DONE, main
from weakly.engine.recipe import load_recipe
from weakly.evaluation.records import read_records

TINY_PROMPTERS = ("--anchor_prompter.settings.regions.width", "32", "--anchor_prompter.settings.regions.hidden", "16")
TINY_DETECTORS = (
    *("--det_sam.settings.side", "32", "--det_sam.settings.faster_rcnn.width", "32"),
    *("--det_sam.settings.faster_rcnn.proposals", "20", "--det_sam.settings.faster_rcnn.hidden", "16"),
    *(
        "--det_sam.settings.detr.width",
        "16",
        "--det_sam.settings.detr.layers",
        "1",
        "--det_sam.settings.detr.heads",
        "2",
    ),
)


def refuse(*_: object, **__: object) -> None:
    pytest.fail("it was computed again")


def test_prompters_stand_beside_each_other_and_below_true_prompts(
    wps_recipe: Path,  # noqa: F811
    work: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["reproduce", "wps", "--recipe", str(wps_recipe), "--out", "out", "--optimisation.epochs", "1"]
    command += TINY_PROMPTERS
    assert main([*command, "--tables", "1,A,B"]) == DONE
    printed = capsys.readouterr().out
    assert "val, 4 images at 32x24, dataset41." in printed and "| fine-tuned | 127 h | 65.2 |" in printed
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    assert {row.removesuffix(":mIoU"): (r.method, r.supervision) for row, r in records.items() if "mIoU" in row} == {
        **{f"table 1: {key}": ("oracle", key.split(":")[0]) for key in ("point", "box", "point+box")},
        **{f"table 1: {key}:best-predicted": ("oracle", key) for key in ("point", "box")},
        **{f"table 1: {key}:best-true": ("oracle", key) for key in ("point", "box")},
        "table 1: everything": ("everything", "mask"),
        "table A: fine-tuned": ("fine-tuned", "box"),
        "table A: frozen": ("wps", "box"),
        "table B: anchors": ("anchor-prompter", "box"),
        "table B: queries": ("wps", "box"),
    }  # fmt: skip
    assert {(r.split, r.images) for r in records.values()} == {("val", 4)}
    assert records["table A: frozen:mACC"].published == 0.7953
    judged = json.loads((work / "out" / "orderings.json").read_text())["orderings"]
    assert [row["table"] for row in judged] == ["1", "A", "B"] and all(
        s["margin"] is not None for r in judged for s in r["steps"]
    )
    trained = {load_recipe(path.parent / "recipe.yaml").method for path in (work / "out" / "cells").glob("*/student")}
    assert trained == {"wps", "fine-tuned", "anchor-prompter"}

    monkeypatch.setattr("weakly.engine.reproduce_cells.fit", refuse)
    monkeypatch.setattr("weakly.engine.reproduce_cells._score_stage", refuse)
    before = (work / "out" / "metrics.json").read_bytes()
    assert main([*command, "--tables", "1,A,B"]) == DONE
    assert (work / "out" / "metrics.json").read_bytes() == before


@pytest.mark.slow
def test_detectors_are_scored_by_their_boxes_and_by_the_masks_these_prompt(
    wps_recipe: Path,  # noqa: F811
    work: Path,
) -> None:
    command = ["reproduce", "wps", "--recipe", str(wps_recipe), "--out", "out", "--optimisation.epochs", "1"]
    assert main([*command, *TINY_DETECTORS, "--tables", "4,5"]) == DONE
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    for key in ("faster-rcnn", "detr", "faster-rcnn-sam", "detr-sam"):
        boxes, masks = records[f"table 4: {key}:mAP"], records[f"table 4: {key}:mIoU"]
        assert (boxes.method, boxes.setting, masks.method, masks.setting) == ("det-sam", "boxes", "det-sam", None)
        assert boxes.ap is not None and masks.protocols is not None
    assert records["table 4: wps:mIoU"].published == 0.6893 and "table 4: wps:mAP" not in records
    supervisions = [records[f"table 5: {key}:mIoU"].supervision for key in ("masks", "pseudo-masks", "wps")]
    assert supervisions == ["mask", "box", "box"]
    assert len(list((work / "out" / "cells").iterdir())) == 7, "a run per row"
