"""A method is one folder: fit, evaluate, predict and report serve it without any change elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakly.cli import DONE, DONE_WITH_SKIPS, main
from weakly.evaluation.records import read_records


def test_commands_serve_a_method_they_have_never_heard_of(
    recipe_file: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["fit", str(recipe_file), "--optimisation.epochs", "40", "--optimisation.lr=0.2", "--out", "run"]) == DONE
    )
    printed = capsys.readouterr().out
    assert "tiny" in printed and "oracle box" in printed and "dataset41" in printed
    run = work / "run"
    records = {record.method: record for record in read_records(run / "metrics.json")}
    assert set(records) == {"tiny", "oracle"}
    assert records["tiny"].supervision == "box" and records["tiny"].split == "val" and records["tiny"].images == 4
    assert records["oracle"].protocols["dataset41"]["miou"] == pytest.approx(1.0)
    assert 0.6 < records["tiny"].protocols["dataset40"]["miou"] < 1.0, "mean boxes are close to the truth, never exact"
    assert (
        records["tiny"].command == f"weakly fit {recipe_file} --out run --optimisation.epochs 40 --optimisation.lr 0.2"
    )

    assert main(["evaluate", "run", "--split", "train"]) == DONE
    assert {(r.method, r.split) for r in read_records(run / "metrics.json")} == {
        (method, split) for method in ("tiny", "oracle") for split in ("train", "val")
    }

    (work / "photos").mkdir()
    Image.fromarray(np.zeros((24, 32, 3), np.uint8)).save(work / "photos" / "good.png")
    (work / "photos" / "bad.jpg").write_bytes(b"no image")
    assert main(["predict", "run", "photos", "--out", "masks"]) == DONE_WITH_SKIPS
    content = json.loads((work / "masks" / "predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(work / "photos" / "good.png")]
    assert {a["category_id"] for a in content["annotations"]} == {5, 9}, "the dataset's own ids"

    (run / "report.html").unlink()
    assert main(["report", "run"]) == DONE
    assert "tiny" in (run / "report.html").read_text()


def test_unknown_method_names_those_there_are(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("method: tiny", "method: huge"))
    assert main(["fit", str(recipe_file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "'huge'" in error and "tiny" in error and "wps" in error
