"""The demo of WeakSAM end to end on models with random weights, and its tables through the whole engine."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from test_weaksam_run import RECIPE
from tiny_clip import tiny_clip

from weakly.cli import DONE, main
from weakly.engine import demo as demonstration
from weakly.engine.demo import demo_recipes
from weakly.engine.panels import read_panels
from weakly.engine.runs import Run
from weakly.evaluation.records import read_records
from weakly.methods.tables import Ordering, Tables
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.tables import paper_tables

ROWS = ["proposals", "wsod", "pseudo-truth", "retrained"]


@pytest.fixture
def models(small_sam: Path) -> Path:
    """A folder with ``sam/`` and ``clip/``."""
    torch.set_num_threads(1)
    clip, folder = tiny_clip(), small_sam.parent / "clip"
    clip.model.save_pretrained(folder)
    clip.tokenizer.save_pretrained(folder)
    return small_sam.parent


def small(models: Path) -> list[tuple[str, str]]:
    changes: dict[str, object] = {
        "device": "cpu",
        "data.render": {
            "layout": "voc",
            "train": 6,
            "val": 3,
            "seed": 5,
            "size": 64,
            "kinds": ["dog", "bear", "sedan"],
        },
        "settings.segmenter": str(models / "sam"),
        "settings.clues.clip": str(models / "clip"),
        "settings.wsod.weights": str(models / "clip"),
        "settings.backgrounds": ["grass", "tree"],
        "settings.proposals.grid": {"side": 3, "pred_iou": 0.0, "stability": 0.0, "nms": 0.9},
        "settings.load.min_side": 4,
        "settings.wsod.stages": 2,
        "settings.wsod.width": 32,
        "settings.wsod_training": {"iterations": 6, "batch": 2, "steps": [4], "sizes": [32, 48], "max_size": 96},
        "settings.wsod_inference": {"sizes": [48], "max_size": 96, "flip": False},
        **{f"settings.detector.{key}": value for key, value in {"width": 32, "hidden": 32, "rois": 32}.items()},
        "settings.augmentation": {"side": 64, "scale": [0.8, 1.4]},
        "settings.inference": {"short": [64], "long": 64},
        "optimisation.epochs": 1,
    }
    return [(key, json.dumps(value)) for key, value in changes.items()]


def test_the_demo_is_offline_and_draws_its_own_world(tmp_path: Path) -> None:
    (recipe,) = demo_recipes("weaksam", tmp_path / "1").values()
    settings = recipe.settings
    assert (settings.segmenter, settings.clues.clip, settings.wsod.weights) == ("bundled",) * 3
    assert settings.detector.weights is None and settings.clues.vit.pretrained is None
    assert recipe.data.render is not None and Path(recipe.data.root) == tmp_path / "1" / "world"
    assert recipe.data.kind == "voc-instances" and len(recipe.data.render.kinds or ()) == 5
    assert settings.detector.drop.mode == "none", "a network that has learned nothing would lose every object to it"


def test_the_demo_goes_from_tags_to_boxes_and_shows_every_stage(
    models: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = demonstration.demo
    monkeypatch.setattr(
        demonstration, "demo", lambda out, method, command: whole(out, method, overrides=small(models), command=command)
    )
    assert main(["demo", "--method", "weaksam", "--out", "demo"]) == DONE
    records = read_records(work / "demo" / "metrics.json")
    assert [(r.method, r.row) for r in records] == [("weaksam", row) for row in ROWS], "the student comes last"
    assert {(r.split, r.images, r.data, r.supervision, r.command) for r in records} == {
        ("val", 3, "menagerie", "tags", "weakly demo --method weaksam --out demo")
    }
    assert all(0 <= (r.recall if r.row == "proposals" else r.ap50) <= 1 for r in records)
    printed = capsys.readouterr().out
    assert "report.html" in printed and "retrained" in printed
    assert (work / "demo" / "report.html").is_file() and (work / "demo" / "boxes" / "report.html").is_file()
    titles = {p.title for panels in read_panels(Run(work / "demo" / "boxes"), "val").values() for p in panels}
    assert "proposals" in titles and any(title.startswith("clue map of ") for title in titles)


def test_stages_and_students_are_measured_and_what_no_proposal_decides_is_trained_once(
    small_sam: Path, tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Recall in two rows of Table A, and two rows of Table C."""
    path = tmp_path / "weaksam.yaml"
    path.write_text(RECIPE.format(root=small_sam.parent))

    def fewer(settings: WeakSamSettings) -> Tables:
        tables = paper_tables(settings)
        recall, _, drop = tables.tables[-3:]
        rows = tuple(replace(r, cells=r.cells[:1]) for r in recall.rows if r.key in ("selective-search", "all"))
        recall = replace(
            recall, figures=("Recall",), rows=rows, orderings=(Ordering("More.", (rows[0].key, rows[1].key)),)
        )
        return replace(tables, tables=(recall, replace(drop, rows=(drop.rows[0], drop.rows[2]))))

    monkeypatch.setattr("weakly.methods.weaksam.paper_tables", fewer)
    assert main(["reproduce", "weaksam", "--recipe", str(path), "--out", "out"]) == DONE
    printed = capsys.readouterr().out
    assert "| Selective Search | " in printed and "Recall, here" in printed and "Recall, published" not in printed
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    assert {(r.row, r.method, r.split, r.images) for r in records.values()} == {
        ("table A: selective-search", "selective-search", "train", 4),
        ("table A: all", "weaksam", "train", 4),
        *((f"table C: {m}:{f}", "weaksam", "val", 2) for m in ("none", "independent") for f in ("AP50", "AP")),
    }
    assert all((r.recall is None) == (r.ap50 is not None) for r in records.values())
    assert len(list((work / "out" / "cells").iterdir())) == 4, "AP50 and AP of a student are one run"
    assert len(list((work / "out" / "shared" / "clues").glob("weaktr-*.safetensors"))) == 1
    judged = json.loads((work / "out" / "orderings.json").read_text())["orderings"]
    assert [judgement["table"] for judgement in judged] == ["A", "C"]
