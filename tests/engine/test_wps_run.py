"""WPS-SAM through the whole engine, on a SAM with random weights: features once, resume, evaluate, predict."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from weakly.cli import DONE, main
from weakly.engine.fit import fit
from weakly.engine.recipe import load_recipe
from weakly.evaluation.records import read_records
from weakly.foundation.sam import SamSegmenter

SETTINGS = {"queries": 4, "width": 16, "heads": 2, "layers": 1, "ffn": 16, "downsamples": 0}


@pytest.fixture
def wps_recipe(recipe_file: Path, small_sam: Path, tmp_path: Path) -> Path:
    values = "".join(f"  {key}: {value}\n" for key, value in {"segmenter": small_sam, **SETTINGS}.items())
    path = tmp_path / "wps.yaml"
    path.write_text(recipe_file.read_text().replace("method: tiny\n", f"method: wps\nsettings:\n{values}"))
    return path


def test_every_image_is_encoded_once_by_all_commands_together(
    wps_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    assert main(["features", "build", str(wps_recipe)]) == DONE
    assert sum(encoded) == 14
    assert main(["fit", str(wps_recipe), "--out", "box"]) == DONE
    assert main(["fit", str(wps_recipe), "--out", "point", "--settings.supervision", "point"]) == DONE
    assert main(["evaluate", "box", "--student", "best"]) == DONE
    assert sum(encoded) == 14, "training, scoring and upper bounds all read the store"
    records = read_records(work / "box" / "metrics.json")
    assert {(r.method, r.supervision, r.row) for r in records} == {
        ("wps", "box", "final"), ("wps", "box", "best"), ("oracle", "box", "final"), ("oracle", "point", "final"),
    }  # fmt: skip
    weights = hashlib.sha256((Path(str(records[0].segmenter)) / "model.safetensors").read_bytes()).hexdigest()
    assert {r.segmenter_weights for r in records} == {weights[:12]}, "a figure names the weights it hangs on"
    root = Path(load_recipe(wps_recipe).features.root)
    assert len(list((root / "references").iterdir())) == 2, "both runs share the two upper bounds"
    assert main(["features", "verify", "--root", str(root)]) == DONE
    assert main(["features", "list", "--root", str(root)]) == DONE
    assert "14 images" in capsys.readouterr().out


def test_interrupted_wps_run_ends_with_the_same_bytes(
    wps_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(wps_recipe)
    whole = fit(recipe, work / "whole")
    with monkeypatch.context() as patch:

        def stop(self: object, trainer: object, *_: object, **__: object) -> None:
            if trainer.global_step == 5:  # type: ignore[attr-defined]
                raise RuntimeError

        patch.setattr("weakly.engine.logs.TrainingBar.on_train_batch_end", stop)
        with pytest.raises(RuntimeError):
            fit(recipe, work / "stopped")
    stopped = fit(recipe, work / "stopped")
    for name in ("student", "best"):
        first, second = (run.folder / name / "student.safetensors" for run in (whole, stopped))
        assert first.read_bytes() == second.read_bytes()
