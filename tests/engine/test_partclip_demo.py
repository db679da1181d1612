"""The demo of PartCLIPSeg end to end on a CLIPSeg with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from tiny_partclip import tiny_clipseg_folder

from weakly.cli import DONE, main
from weakly.engine import demo as demonstration
from weakly.engine.demo import demo_recipes
from weakly.engine.recipe import load_recipe
from weakly.evaluation.records import read_records

FULL = Path(__file__).parents[2] / "recipes" / "partclip" / "menagerie.yaml"


def test_the_demo_is_the_recipe_with_fewer_images(tmp_path: Path) -> None:
    """The same model, losses, seen and unseen kinds, and scoring; all kinds are drawn."""
    (recipe,) = demo_recipes("partclip", tmp_path / "1").values()
    full = load_recipe(FULL)
    assert recipe.settings == full.settings and recipe.settings.clipseg == "bundled"
    assert recipe.evaluation == full.evaluation
    render, whole = recipe.data.render, full.data.render
    assert render is not None and whole is not None
    assert (render.layout, render.size, render.kinds) == (whole.layout, whole.size, None)
    assert render.train < whole.train and render.val < whole.val
    assert Path(recipe.data.root) == tmp_path / "1" / "world"


def test_the_demo_scores_seen_and_unseen_kinds_in_both_settings(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    render = {"layout": "kinds", "train": 6, "val": 4, "seed": 5, "size": 64, "kinds": ["dog", "fox"], "workers": 1}
    changes = {
        "device": "cpu",
        "data.render": render,
        "settings.clipseg": str(tiny_clipseg_folder(tmp_path / "clipseg")),
        "settings.side": None,
        "optimisation.epochs": 1,
    }
    small = [(key, json.dumps(value)) for key, value in changes.items()]
    whole = demonstration.demo
    monkeypatch.setattr(
        demonstration, "demo", lambda out, method, command: whole(out, method, overrides=small, command=command)
    )
    assert main(["demo", "--method", "partclip", "--out", "demo"]) == DONE
    records = read_records(work / "demo" / "metrics.json")
    assert [(r.method, r.row, r.setting) for r in records] == [
        ("partclip", "final", "oracle-obj"), ("partclip", "final", "pred-all"),
    ]  # fmt: skip
    assert {(r.split, r.images, r.data, r.supervision, r.command) for r in records} == {
        ("val", 4, "menagerie", "masks", "weakly demo --method partclip --out demo")
    }
    for record in records:
        assert record.seen is not None and record.unseen is not None
        assert {row["object"]: row["seen"] for row in record.per_class if row["true_pixels"]} == {
            "dog": False, "fox": True,
        }  # fmt: skip
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("pred-all", "oracle-obj", "harmonic", "report.html"))
    assert (work / "demo" / "report.html").is_file() and (work / "demo" / "parts" / "report.html").is_file()
