"""Prediction on people's own images: good ones give masks, bad ones give a line, nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from weakly import load
from weakly.cli import WRONG_USE, main
from weakly.engine import predict as predicting
from weakly.engine.fit import fit
from weakly.engine.predict import predict
from weakly.engine.recipe import load_recipe
from weakly.errors import UserError


@pytest.fixture
def run(recipe_file: Path, work: Path) -> Path:
    recipe = load_recipe(
        recipe_file, [("settings.presence", "0.0"), ("optimisation.epochs", "5"), ("optimisation.lr", "0.2")]
    )
    return fit(recipe, work / "run").folder


@pytest.fixture
def photos(work: Path) -> Path:
    folder = work / "photos"
    (folder / "more").mkdir(parents=True)
    rng = np.random.default_rng(1)
    for name in ("a.png", "b.jpg", "more/a.png"):
        Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8)).save(folder / name)
    return folder


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_are_coco_label_maps_and_overlays_at_the_original_size(run: Path, photos: Path, work: Path) -> None:
    before = snapshot(photos)
    found = predict(run, [photos], work / "out")
    assert (found.done, found.earlier, found.skipped) == (3, 0, ())
    assert snapshot(photos) == before, "inputs are read-only"

    content = json.loads((work / "out" / "predictions.json").read_text())
    assert len(content["images"]) == 3 and {c["name"] for c in content["categories"]} == {"Cat Head", "Cat Body"}
    assert {c["id"] for c in content["categories"]} == {5, 9}
    assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"]) == 6
    for annotation in content["annotations"]:
        assert coco_mask.decode(annotation["segmentation"]).shape == (24, 32)

    label_map = Image.open(work / "out" / "label-maps" / "more" / "a.png")
    assert label_map.mode == "P" and label_map.size == (32, 24)
    assert set(np.unique(np.asarray(label_map))) <= {0, 1, 2} and 2 in np.asarray(label_map), "2 is background"
    assert Image.open(work / "out" / "overlays" / "b.jpg").size == (32, 24)


def test_bad_image_is_one_line_and_nothing_else_is_lost(run: Path, photos: Path, work: Path) -> None:
    (photos / "broken.jpg").write_bytes((photos / "b.jpg").read_bytes()[:200])
    (photos / "text.png").write_text("no image")
    found = predict(run, [photos], work / "out")
    assert found.done == 3
    rows = json.loads((work / "out" / "skipped.json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["broken.jpg", "text.png"]
    assert all(row["reason"] for row in rows)


def test_second_call_does_only_what_is_left(
    run: Path, photos: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = predicting._write_image
    calls: list[str] = []

    def die_at_second(out: Path, task: predicting._Task, *rest: object) -> str | None:
        calls.append(task.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return write(out, task, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(predicting, "_write_image", die_at_second)
        with pytest.raises(KeyboardInterrupt):
            predict(run, [photos], work / "out")
    journal = work / "out" / "journal.jsonl"
    journal.write_text(journal.read_text() + '{"id": 2, "file": "cut o')  # a line that a kill cut off
    found = predict(run, [photos], work / "out")
    assert (found.earlier, found.done) == (1, 2)
    predict(run, [photos], work / "whole")
    parts = [json.loads((work / name / "predictions.json").read_text()) for name in ("out", "whole")]
    assert parts[0]["annotations"] == parts[1]["annotations"] and parts[0]["images"] == parts[1]["images"]
    assert predict(run, [photos], work / "out").done == 0


def test_same_name_from_another_folder_gets_its_own_files(run: Path, photos: Path, work: Path) -> None:
    predict(run, [photos / "a.png"], work / "out")
    predict(run, [photos / "more" / "a.png"], work / "out")
    assert len(list((work / "out" / "label-maps").iterdir())) == 2


def test_results_of_another_student_and_other_files_are_never_overwritten(
    run: Path, photos: Path, work: Path, recipe_file: Path
) -> None:
    predict(run, [photos], work / "out")
    other = fit(load_recipe(recipe_file, [("optimisation.seed", "5")]), work / "other").folder
    before = snapshot(work / "out")
    with pytest.raises(UserError, match=r"predictions of another student.*--overwrite"):
        predict(other, [photos], work / "out")
    assert snapshot(work / "out") == before
    (work / "out" / "notes.txt").write_text("mine")
    predict(other, [photos], work / "out", overwrite=True)
    assert (work / "out" / "notes.txt").read_text() == "mine"

    with pytest.raises(UserError, match=r"is not empty.*--overwrite"):
        predict(run, [photos], photos)


def test_best_student_and_missing_run(run: Path, photos: Path, work: Path) -> None:
    assert predict(run, [photos], work / "best", student="best", device="cpu", batch_size=1).done == 3
    with pytest.raises(UserError, match="is no run"):
        predict(work / "nowhere", [photos], work / "out")
    with pytest.raises(UserError, match="nothing"):
        predict(run, [work / "nothing"], work / "out")


def test_larger_images_than_allowed_are_left_out_and_the_option_is_named(run: Path, photos: Path, work: Path) -> None:
    found = predict(run, [photos], work / "capped", max_pixels=10)
    assert found.done == 0 and found.skipped
    assert any("--max_pixels" in one.reason for one in found.skipped)


def test_settings_of_prediction_may_change_and_results_are_kept_apart(run: Path, photos: Path, work: Path) -> None:
    def found(folder: str) -> int:
        return len(json.loads((work / folder / "predictions.json").read_text())["annotations"])

    predict(run, [photos], work / "own")
    silent = [("settings.presence", "1.1")]
    predict(run, [photos], work / "silent", overrides=silent)
    predict(run / "student", [photos], work / "folder", overrides=silent)
    assert found("own") > 0 and found("silent") == found("folder") == 0
    assert predict(run, [photos], work / "silent", overrides=silent).done == 0, "the same settings go on"
    with pytest.raises(UserError, match="--overwrite"):
        predict(run, [photos], work / "silent")
    assert len(load(run, overrides=silent).predict_images([np.zeros((8, 8, 3), np.uint8)])[0]) == 0


def test_a_setting_that_training_fixed_is_refused(
    run: Path, photos: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for key, value, said in (
        ("settings.hidden", "8", "settings.hidden cannot be changed"),
        ("data.root", "elsewhere", "data.root cannot be changed"),
        ("settings.presence", "often", "settings.presence"),
    ):
        command = ["predict", str(run), str(photos), "--out", str(work / "out"), f"--{key}", value]
        assert main(command) == WRONG_USE
        assert said in capsys.readouterr().err


def test_a_damaged_student_folder_is_one_sentence(run: Path, photos: Path, work: Path) -> None:
    (run / "student" / "config.json").write_text('{"method": "tiny"}')
    with pytest.raises(UserError, match="states no settings"):
        predict(run, [photos], work / "out", overrides=[("settings.presence", "0.9")])
