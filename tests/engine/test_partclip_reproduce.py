"""Tables of PartCLIPSeg through the whole engine on a rendered world of kinds, on a CLIPSeg with random weights."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from test_partclip_run import RECIPE
from tiny_partclip import tiny_clipseg_folder

from weakly.cli import DONE, main
from weakly.evaluation.records import read_records


def test_both_settings_of_a_student_are_figures_of_one_run(
    tmp_path: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_clipseg_folder(tmp_path / "clipseg")
    recipe = tmp_path / "partclip.yaml"
    recipe.write_text(RECIPE.format(root=tmp_path))
    command = ["reproduce", "partclip", "--recipe", str(recipe), "--out", "out", "--optimisation.epochs", "1"]
    assert main([*command, "--tables", "6"]) == DONE
    printed = capsys.readouterr().out
    assert "## Table 6" in printed and "## Table 4" not in printed and "| ZSSeg+ |  |  |  | " in printed
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    groups = ("seen", "unseen", "harmonic")
    assert {row: (r.method, r.setting) for row, r in records.items()} == {
        f"table 6: {method}:{setting} {group}": (method, setting.lower())
        for method in ("clipseg", "partclip")
        for setting in ("Pred-All", "Oracle-Obj")
        for group in groups
    }
    assert records["table 6: partclip:Oracle-Obj unseen"].published == 0.3907
    assert len(list((work / "out" / "cells").iterdir())) == 2, "a run per row"
    told, known = (records[f"table 6: partclip:{setting} seen"].details for setting in ("Oracle-Obj", "Pred-All"))
    assert told["boundary_iou_compat"] != known["boundary_iou_compat"]

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("it was computed again")

    monkeypatch.setattr("weakly.engine.reproduce_cells.fit", refuse)
    monkeypatch.setattr("weakly.engine.reproduce_cells.scoring.evaluate", refuse)
    assert main([*command, "--tables", "1,4,B"]) == DONE
    printed = capsys.readouterr().out
    assert all(f"## Table {number}:" in printed for number in ("1", "2", "3", "4", "6", "B")), "the same runs"
