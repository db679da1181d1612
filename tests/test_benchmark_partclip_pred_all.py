"""The benchmark of PartCLIPSeg's rules of Pred-All, run end to end on a run of tests' size."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pred_all():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        patch.syspath_prepend(ROOT / "tests" / "methods")
        import partclip_pred_all

        yield partclip_pred_all


@pytest.fixture(scope="module")
def run(pred_all, tmp_path_factory) -> Path:
    from tiny_partclip import tiny_clipseg_folder

    from weakly.engine.fit import fit
    from weakly.engine.recipe import load_recipe

    root = tmp_path_factory.mktemp("pred-all")
    render = {"layout": "kinds", "train": 8, "val": 4, "seed": 1, "size": 64}
    recipe = {
        "method": "partclip",
        "data": {"kind": "menagerie", "root": str(root / "world"), "render": render},
        "settings": {"clipseg": str(tiny_clipseg_folder(root / "clipseg")), "unseen": ["zebra", "truck"]},
        "optimisation": {"epochs": 1, "batch_size": 2},
        "features": {"root": str(root / "features")},
    }
    (root / "recipe.yaml").write_text(json.dumps(recipe))
    fit(load_recipe(root / "recipe.yaml"), root / "run")
    return root / "run"


def test_every_rule_is_scored_on_a_world_of_another_seed(pred_all, run, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert pred_all.compare_rules([run], seed=5, images=3, out=tmp_path / "out.json") == 0
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["command"] == f"python benchmarks/partclip_pred_all.py '[{run}]'"
    assert [(row["pred_all"], row["background_above"]) for row in result["rows"]] == list(pred_all.RULES)
    for row in result["rows"]:
        for pixels in ("part_pixels", "strict"):
            assert set(row[pixels]) == {"seen", "unseen", "harmonic"}
            assert 0 <= row[pixels]["seen"] <= 1
    assert (tmp_path / "worlds" / "other-5").is_dir()
    assert capsys.readouterr().out.count("background_above") == len(pred_all.RULES)


def test_a_run_of_another_method_is_one_sentence(pred_all, run, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "run"
    other.mkdir()
    recipe = {"method": "wps", "data": {"kind": "menagerie", "root": "world"}}
    (other / "recipe.yaml").write_text(json.dumps(recipe))
    (other / "run.json").write_text((run / "run.json").read_text())
    monkeypatch.setattr(sys, "argv", ["partclip_pred_all.py", f"[{other}]"])
    assert pred_all.run_command(pred_all.compare_rules, as_positional=True) == 2
    assert "is a run of wps; give runs of partclip" in capsys.readouterr().err
