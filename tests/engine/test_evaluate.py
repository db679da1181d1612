"""Scoring students, other programs and upper bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import weakly.methods
from weakly.engine.evaluate import evaluate
from weakly.engine.fit import fit
from weakly.engine.recipe import load_recipe
from weakly.errors import UserError
from weakly.evaluation.records import read_records
from weakly.report import build_run_report


@pytest.fixture
def run(recipe_file: Path, work: Path) -> Path:
    return fit(
        load_recipe(recipe_file, [("optimisation.epochs", "5"), ("optimisation.lr", "0.2")]), work / "run"
    ).folder


def test_student_comes_with_its_upper_bound(run: Path) -> None:
    found = evaluate(run)
    assert [(r.method, r.supervision, r.row) for r in found.records] == [
        ("tiny", "box", "final"),
        ("oracle", "box", "final"),
    ]
    assert set(found.records[0].protocols or {}) == {"dataset41", "dataset40", "pair_binary", "official_rowwise"}
    assert all(
        (r.data, r.split, r.images, r.resolution, r.seed) == ("coco", "val", 4, "32x24", 1337) for r in found.records
    )
    assert [r.to_dict() for r in read_records(run / "metrics.json")] == [r.to_dict() for r in found.records]
    images = json.loads((run / "images-val.json").read_text())["images"]
    assert [row["image_id"] for row in images] == [1, 2, 3, 4] and all(0 <= row["miou"] <= 1 for row in images)


def test_coco_results_of_any_program_score_as_the_same_masks_do(run: Path, work: Path) -> None:
    own, _ = evaluate(run).records
    theirs = work / "theirs.json"
    theirs.write_text((run / "predictions-val.json").read_text())
    scored = evaluate(run, results=theirs).records[0]
    assert scored.method == "theirs" and scored.protocols == own.protocols
    named = evaluate(run, results=theirs, name="rival").records[0]
    assert named.method == "rival" and (run / "predictions-val-rival.json").is_file()
    assert {r.method for r in read_records(run / "metrics.json")} == {"tiny", "oracle", "theirs", "rival"}


def test_results_for_other_images_are_refused(run: Path, work: Path) -> None:
    (work / "r.json").write_text(json.dumps([{"image_id": 99, "category_id": 5, "segmentation": [[0, 0, 1, 0, 1, 1]]}]))
    with pytest.raises(UserError, match=r"r\.json: results\[0\]: image_id 99"):
        evaluate(run, results=work / "r.json")


def test_upper_bound_is_computed_once_per_data_and_settings(
    run: Path, recipe_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = evaluate(run).records[1]
    method = __import__("weakly.methods.tiny", fromlist=["METHOD"])
    calls = []
    fill = method._fill_boxes
    monkeypatch.setattr(method, "_fill_boxes", lambda *a: (calls.append(a), fill(*a))[1])
    assert evaluate(run).records[1] == first and not calls
    world = Path(load_recipe(recipe_file).data.root)
    picture = world / "images" / "val" / "val0.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    evaluate(run)
    assert len(calls) == 4, "a changed image is a changed dataset"


def test_unreadable_image_counts_as_a_miss_and_is_listed(run: Path, recipe_file: Path) -> None:
    whole = evaluate(run).records[0]
    broken = Path(load_recipe(recipe_file).data.root) / "images" / "val" / "val1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    found = evaluate(run)
    assert [one.path for one in found.skipped] == [broken]
    assert found.records[0].images == 4 and found.records[0].null_images == 1
    assert found.records[0].protocols["pair_binary"]["miou"] < whole.protocols["pair_binary"]["miou"]
    assert json.loads((run / "skipped.json").read_text())[0]["file"] == str(broken)


def test_other_data_other_student_no_references(run: Path, recipe_file: Path) -> None:
    found = evaluate(run, split="train", student="best", overrides=[("evaluation.references", "false")])
    assert [(r.row, r.split, r.images) for r in found.records] == [("best", "train", 10)]


def test_other_settings_of_prediction_are_a_row_of_their_own(run: Path) -> None:
    before = list(evaluate(run).records)
    found = evaluate(run, overrides=[("settings.presence", "1.1")]).records
    assert [record.row for record in found] == ["final with presence=1.1"], "upper bounds are of the data alone"
    assert found[0].null_images == found[0].images > before[0].null_images
    kept = [record.identity for record in read_records(run / "metrics.json")]
    assert kept == [record.identity for record in (*before, *found)], "nothing measured before is lost"
    assert len(list(run.glob("predictions-val-final-with-presence-1.1-*.json"))) == 1
    assert (run / "predictions-val.json").is_file()
    page = build_run_report(run).read_text()
    assert "final with presence=1.1" in page


def test_what_training_fixed_is_no_option_of_scoring(run: Path, work: Path) -> None:
    with pytest.raises(UserError, match=r"settings\.hidden cannot be changed .* settings\.presence"):
        evaluate(run, overrides=[("settings.hidden", "8")])
    with pytest.raises(UserError, match=r"optimisation\.epochs cannot be changed"):
        evaluate(run, overrides=[("optimisation.epochs", "8")])
    with pytest.raises(UserError, match="leave settings.presence out"):
        evaluate(run, overrides=[("settings.presence", "1.1")], results=run / "predictions-val.json")


def test_what_cannot_be_scored_is_one_sentence(run: Path, recipe_file: Path, work: Path) -> None:
    root = Path(load_recipe(recipe_file).data.root)
    annotations = root / "annotations" / "val.json"
    content = json.loads(annotations.read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]
    annotations.write_text(json.dumps(content))
    with pytest.raises(UserError, match="no true masks"):
        evaluate(run)
    (work / "empty").mkdir()
    with pytest.raises(UserError, match="is no run"):
        evaluate(work / "empty")
    with pytest.raises(UserError, match="nosplit"):
        evaluate(run, split="nosplit")


def test_other_categories_are_refused(run: Path, recipe_file: Path) -> None:
    annotations = Path(load_recipe(recipe_file).data.root) / "annotations" / "val.json"
    annotations.write_text(annotations.read_text().replace("Cat Head", "Dog Head"))
    with pytest.raises(UserError, match="other categories"):
        evaluate(run)


def test_method_folders_are_all_that_registers_a_method() -> None:
    assert any(str(path).endswith("extra_methods") for path in weakly.methods.__path__)
