"""PartCLIPSeg through the whole engine on a rendered world of kinds, on a CLIPSeg with random weights."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from tiny_partclip import tiny_clipseg_folder

from weakly.cli import DONE, DONE_WITH_SKIPS, WRONG_USE, main
from weakly.engine.fit import fit
from weakly.engine.recipe import load_recipe
from weakly.engine.splits import open_split
from weakly.evaluation.records import read_records
from weakly.methods.partclip import untrained_student
from weakly.methods.partclip.settings import PartClipSettings
from weakly.methods.partclip.taps import TapEncoder

RECIPE = """\
method: partclip
data:
  kind: menagerie
  root: {root}/world
  render: {{layout: kinds, train: 6, val: 3, seed: 5, size: 64, kinds: [dog, bear, sedan], workers: 1}}
settings:
  clipseg: {root}/clipseg
  unseen: [bear]
optimisation:
  epochs: 2
  batch_size: 4
  lr: 0.003
features:
  root: {root}/features
evaluation:
  frame_side: 64
device: cpu
"""


@pytest.fixture
def partclip_recipe(tmp_path: Path) -> Path:
    tiny_clipseg_folder(tmp_path / "clipseg")
    path = tmp_path / "partclip.yaml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


def seen_images(recipe: Path, split: str) -> int:
    """Images of a split that show a part of a dog or of a sedan."""
    dataset = open_split(load_recipe(recipe).data, split)
    seen = [i for i, c in enumerate(dataset.vocabulary.categories) if c.object in ("dog", "sedan")]
    background = dataset.vocabulary.background
    return sum(bool(np.isin(dataset.truth(i).to_label_map(background), seen).any()) for i in range(len(dataset)))


def test_a_run_is_trained_scored_in_both_settings_and_asked_for_other_names(
    partclip_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = []
    encode = TapEncoder.encode
    monkeypatch.setattr(TapEncoder, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    assert main(["features", "build", str(partclip_recipe)]) == DONE
    trained = seen_images(partclip_recipe, "train")
    assert sum(encoded) == 2 * trained + seen_images(partclip_recipe, "val"), "mirror images are for training alone"
    assert main(["fit", str(partclip_recipe), "--out", "run"]) == DONE
    assert main(["fit", str(partclip_recipe), "--out", "base", "--settings.architecture", "clipseg"]) == DONE
    for run, method in (("run", "partclip"), ("base", "clipseg")):
        records = read_records(work / run / "metrics.json")
        assert {(r.method, r.supervision, r.setting, r.data, r.split, r.images) for r in records} == {
            (method, "masks", setting, "menagerie", "val", 3) for setting in ("pred-all", "oracle-obj")
        }
        for record in records:
            assert record.seen is not None and record.unseen is not None
            assert {row["object"] for row in record.per_class if not row["seen"]} == {"bear"}
        assert (work / run / "report.html").is_file()
    assert main(["evaluate", "run", "--student", "best"]) == DONE
    assert main(["report", "run"]) == DONE

    (work / "photos").mkdir()
    for name, size in (("wide", (10, 90)), ("dot", (1, 1))):
        noise = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(noise).save(work / "photos" / f"{name}.png")
    (work / "photos" / "bad.jpg").write_bytes(b"no image")
    asked = ["predict", "run", "photos", "--out", "masks", "--names", "bear: head, body; Lampe: Fuß"]
    assert main(asked) == DONE_WITH_SKIPS
    content = json.loads((work / "masks" / "predictions.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["bear's head", "bear's body", "Lampe's Fuß"]
    assert [row["supercategory"] for row in content["categories"]] == ["bear", "bear", "Lampe"]
    for name, size in (("wide", (90, 10)), ("dot", (1, 1))):
        with Image.open(work / "masks" / "label-maps" / f"{name}.png") as picture:
            assert picture.size == size and np.asarray(picture).max() <= 3
    capsys.readouterr()
    assert main([*asked[:-1], "bear: head"]) == WRONG_USE
    assert "of other names" in capsys.readouterr().err
    assert main([*asked[:-1], "bear"]) == WRONG_USE


def test_a_run_is_scored_on_other_data_by_their_names(partclip_recipe: Path, work: Path) -> None:
    assert main(["fit", str(partclip_recipe), "--out", "run", "--evaluation.references", "false"]) == DONE
    shutil.copytree(partclip_recipe.parent / "world", work / "other")
    for file in (work / "other" / "annotations").rglob("*.json"):
        file.write_text(file.read_text().replace("dog's ", "wolf's ").replace('"dog"', '"wolf"'))
    before = sorted(str(path) for path in (work / "other").rglob("*"))
    assert main(["evaluate", "run", "--data.root", "other"]) == DONE
    assert sorted(str(path) for path in (work / "other").rglob("*")) == before, "nothing is drawn there"
    last = [record for record in read_records(work / "run" / "metrics.json") if record.setting == "pred-all"][-1]
    assert "wolf" in {row["object"] for row in last.per_class}


def test_an_interrupted_run_ends_with_the_same_bytes(
    partclip_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(partclip_recipe, [("preset", "compat"), ("optimisation.batch_size", "2")])
    whole = fit(recipe, work / "whole")
    with monkeypatch.context() as patch:

        def stop(self: object, trainer: object, *_: object, **__: object) -> None:
            if trainer.global_step == 4:  # type: ignore[attr-defined]
                raise RuntimeError

        patch.setattr("weakly.engine.logs.TrainingBar.on_train_batch_end", stop)
        with pytest.raises(RuntimeError):
            fit(recipe, work / "stopped")
    assert not (work / "stopped" / "student").exists()
    stopped = fit(recipe, work / "stopped")
    for name in ("student", "best"):
        first, second = (run.folder / name / "student.safetensors" for run in (whole, stopped))
        assert first.read_bytes() == second.read_bytes()


def test_a_checkpoint_segments_without_a_run_and_a_student_without_its_run(
    partclip_recipe: Path, work: Path, tmp_path: Path
) -> None:
    settings = PartClipSettings(clipseg=str(tmp_path / "clipseg"))
    untrained_student(work / "student", "dog: head, torso", settings)
    (work / "photos").mkdir()
    Image.new("RGB", (30, 20), (200, 30, 30)).save(work / "photos" / "red.png")
    assert main(["predict", "student", "photos", "--out", "own", "--device", "cpu"]) == DONE
    assert main(["predict", "student", "photos", "--out", "other", "--names", "cat: tail", "--device", "cpu"]) == DONE
    names = [json.loads((work / out / "predictions.json").read_text())["categories"] for out in ("own", "other")]
    assert [[row["name"] for row in rows] for rows in names] == [["dog's head", "dog's torso"], ["cat's tail"]]


def test_a_wrong_unseen_object_is_one_sentence(
    partclip_recipe: Path, work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(partclip_recipe), "--settings.unseen", "[unicorn]", "--out", "run"]) == WRONG_USE
    error = capsys.readouterr().err
    assert "settings.unseen names 'unicorn'" in error and "Traceback" not in error
