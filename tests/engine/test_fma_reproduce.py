"""Tables of FMA-WSSS through the whole engine on a rendered world, on models with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from test_fma_run import RECIPE
from tiny_clip import tiny_clip

from weakly.cli import DONE, main
from weakly.evaluation.records import read_records


@pytest.fixture
def recipe(small_sam: Path, tmp_path: Path) -> Path:
    clip = tiny_clip()
    clip.model.save_pretrained(tmp_path / "clip")
    clip.tokenizer.save_pretrained(tmp_path / "clip")
    path = tmp_path / "fma.yaml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


def test_table_6_is_scored_on_tags_alone_and_prompts_are_trained_once(
    recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        pytest.fail("it was computed again")

    monkeypatch.setattr("weakly.engine.fit.train", refuse)
    command = ["reproduce", "fma", "--recipe", str(recipe), "--tables", "6", "--out", "out"]
    assert main(command) == DONE
    assert "| CLIP-ES | CAA+CRF | 58.6 |" in capsys.readouterr().out
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    assert {row: (r.method, r.published) for row, r in records.items()} == {
        "table 6: CLIP-ES:CAM": ("clip-es", 0.586),
        "table 6: CLIP-ES:Seed": ("clip-es", 0.75),
        "table 6: FMA-WSSS:CAM": ("fma", 0.626),
        "table 6: FMA-WSSS:Seed": ("fma", 0.804),
    }
    assert {(r.split, r.images, r.data) for r in records.values()} == {("train", 6, "menagerie")}
    judged = json.loads((work / "out" / "orderings.json").read_text())["orderings"]
    assert len(judged) == 3
    contexts = sorted(path.name for path in (work / "out" / "shared" / "prompts").glob("*.safetensors"))
    assert [name.split("-")[0] for name in contexts] == ["classification", "segmentation"], "two cells, one training"
    assert not list((work / "out" / "cells").glob("*/student"))
    monkeypatch.setattr("weakly.methods.fma.prompts._update", refuse)
    monkeypatch.setattr("weakly.methods.fma.seeds.SeedMaker.labels", refuse)
    assert main(command) == DONE
