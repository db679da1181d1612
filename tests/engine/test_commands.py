"""Commands on tiny data, beginning to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import weakly
from weakly.cli import DONE, DONE_WITH_SKIPS, FAILED, WRONG_USE, main
from weakly.engine.recipe import load_recipe
from weakly.engine.splits import open_split
from weakly.foundation.pretraining.clip_measure import TagScores
from weakly.foundation.pretraining.measure import PromptScores


def test_world_is_drawn_once_and_can_grow(recipe_file: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make = ["data", "make", "world", "--size", "48", "--workers", "1", "--seed", "3"]
    assert main([*make, "--train", "2", "--val", "1"]) == DONE
    assert "2 train, 1 val images" in capsys.readouterr().out
    text = recipe_file.read_text().replace("kind: coco", "kind: menagerie")
    lines = [line for line in text.splitlines() if "annotations:" not in line and "images:" not in line]
    render = "  render: {train: 3, val: 1, seed: 3, size: 48, workers: 1}"
    at = next(i for i, line in enumerate(lines) if "root:" in line)
    recipe_file.write_text("\n".join([*lines[:at], "  root: world", render, *lines[at + 1 :]]))
    data = load_recipe(recipe_file).data
    assert [len(open_split(data, split)) for split in ("train", "val")] == [3, 1]
    assert main(["data", "check", "menagerie", "--root", "world", "--json", "check.json"]) == DONE
    assert json.loads((work / "check.json").read_text())["images"] == 3
    (work / "world" / "images" / "train").rename(work / "gone")
    assert main(["data", "check", "menagerie", "--root", "world"]) == WRONG_USE


def test_voc_layout(work: Path) -> None:
    words = ["--layout", "voc", "--train", "2", "--val", "0", "--size", "48", "--workers", "1"]
    assert main(["data", "make", "voc", *words]) == DONE
    assert len(list((work / "voc" / "JPEGImages").iterdir())) == 2


def test_damaged_annotations_are_done_with_skips(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(load_recipe(recipe_file).data.root)
    annotations = root / "annotations" / "val.json"
    content = json.loads(annotations.read_text())
    content["annotations"][0]["category_id"] = 77
    annotations.write_text(json.dumps(content))
    words = ["--annotations", str(annotations), "--images", str(root / "images" / "val")]
    assert main(["data", "check", "coco", *words]) == DONE_WITH_SKIPS
    assert "77" in capsys.readouterr().out


def test_unreadable_training_image_is_a_line_and_exit_code_3(
    recipe_file: Path, small_sam: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "queries: 4, width: 16, heads: 2, layers: 1, ffn: 16, downsamples: 0"
    settings = f"method: wps\nsettings: {{segmenter: {small_sam}, {sizes}}}\n"
    recipe_file.write_text(recipe_file.read_text().replace("method: tiny\n", settings))
    root = Path(load_recipe(recipe_file).data.root)
    (root / "images" / "train" / "train3.png").write_bytes(b"\x89PNG broken")
    assert main(["features", "build", str(recipe_file), "--split", "train"]) == DONE_WITH_SKIPS
    assert "train3.png" in capsys.readouterr().err
    assert main(["fit", str(recipe_file), "--out", "run", "--device", "cpu"]) == DONE_WITH_SKIPS
    assert "train3.png" in capsys.readouterr().err
    rows = json.loads((work / "run" / "skipped.json").read_text())
    assert [(Path(row["file"]).name, row["step"]) for row in rows] == [("train3.png", "train")]

    store = next(path for path in (root / "features").iterdir() if (path / "store.json").is_file())
    shard = next(store.glob("shard-*"))
    damaged = bytearray(shard.read_bytes())
    damaged[-1] ^= 1
    shard.write_bytes(bytes(damaged))
    assert main(["features", "verify", "--root", str(root / "features")]) == FAILED
    assert main(["features", "remove", str(store)]) == WRONG_USE
    assert "--yes" in capsys.readouterr().err and store.is_dir()
    assert main(["features", "remove", str(store), "--yes"]) == DONE
    assert not store.exists()


def test_boxes_without_any_mask_train_and_are_not_scored(
    recipe_file: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (Path(load_recipe(recipe_file).data.root) / "annotations").iterdir():
        content = json.loads(path.read_text())
        for annotation in content["annotations"]:
            del annotation["segmentation"]
        path.write_text(json.dumps(content))
    assert main(["fit", str(recipe_file), "--out", "run"]) == DONE
    assert "no truth" in capsys.readouterr().out
    assert (work / "run" / "report.html").is_file() and not (work / "run" / "metrics.json").exists()

    predictor = weakly.load(work / "run", device="cpu")
    assert predictor.vocabulary.names == ("Cat Head", "Cat Body")


def test_training_a_sam_reports_its_figures(
    work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {}
    scores = {"worlds": PromptScores(box=0.9, point=0.8, point_single=0.5, masks=7, images=2)}
    make = "weakly.foundation.pretraining.command.make_sam"
    monkeypatch.setattr(make, lambda out, **options: (asked.update(options, out=out), scores)[1])
    assert main(["foundation", "train-sam", "sam", "--steps", "5", "--device", "cpu"]) == DONE
    assert asked["out"] == Path("sam") and asked["steps"] == 5 and asked["device"] == "cpu"
    assert "worlds: box 0.900, point 0.800" in capsys.readouterr().out


def test_train_clip_hands_its_options_on_and_prints_the_figures(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}
    scores = {"kinds": TagScores(patches=0.9, cls=0.8, tags=39, images=2)}
    make = "weakly.foundation.pretraining.clip_command.make_clip"
    monkeypatch.setattr(make, lambda out, **options: (asked.update(options, out=out), scores)[1])
    assert main(["foundation", "train-clip", "clip", "--worlds", "64", "--device", "cpu"]) == DONE
    assert asked["out"] == Path("clip") and asked["worlds"] == 64 and asked["recipe"] == "cpu"
    assert "kinds: mAP 0.900 (patches), 0.800 (class token), 2 images" in capsys.readouterr().out


def test_doctor_prints_one_line_per_check(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) in (DONE, FAILED)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 and all(line.startswith(("ok", "FAIL")) for line in lines)


def test_a_method_without_stages_takes_none(recipe_file: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(recipe_file), "--out", "run", "--stages_from", "other"]) == WRONG_USE
    assert "leave --stages_from out" in capsys.readouterr().err
