"""The demos: a recipe per run in a method's own folder, a run and a report each; the semantic one looked at closely."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from tiny_fma import tiny_models

from weakly.cli import DONE, WRONG_USE, main
from weakly.data.dataset import Dataset
from weakly.engine import demo as demonstration
from weakly.engine.demo import Demo, demo, demo_recipes
from weakly.engine.evaluate import evaluate
from weakly.engine.panels import read_panels, spread_out
from weakly.engine.runs import Run
from weakly.engine.splits import open_split
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.evaluation.records import Record, read_records
from weakly.methods.base import method_names
from weakly.report import build_run_report

WPS_SMALL = [
    ("data.render", "{train: 6, val: 3, size: 64, kinds: [sedan, flask], workers: 1}"),
    *((f"settings.{key}", value) for key, value in {"width": "16", "heads": "2", "layers": "1", "ffn": "16"}.items()),
    ("settings.regions", "{width: 16, hidden: 16, pre_nms: 20, proposals: 10, rois: 8}"),
    ("settings.queries", "25"),
    ("settings.downsamples", "0"),
    ("optimisation.epochs", "1"),
    ("evaluation.frame_side", "64"),
]
MASKS = {
    "points_per_side": 3,
    "crop_layers": 0,
    "iou_threshold": 0.0,
    "whole_iou_offset": 1.0,
    "level_of": "area",
    "stability_threshold": 0.0,
    "nms_threshold": 1.0,
    "min_region": 4,
}
"""So permissive that a SAM with random weights finds masks."""

FMA_SMALL = [
    ("data.render", "{layout: voc, train: 6, val: 4, seed: 5, size: 64, kinds: [dog, bear, sedan], workers: 1}"),
    ("settings.backgrounds", "[grass, tree]"),
    ("settings.masks", json.dumps(MASKS)),
    ("settings.views", "{count: 2, crop: 32, long: [40, 60]}"),
    ("settings.classification", "{iterations: 8, warmup: 2, batch_size: 4, length: 4, lr: 0.05}"),
    ("settings.segmentation", "{iterations: 6, warmup: 2, batch_size: 4, length: 4, lr: 0.05}"),
    ("settings.deeplab.decoder_channels", "16"),
    ("settings.deeplab.aux_channels", "8"),
    ("settings.augmentation", "{crop: 32, short: 32, long: 64}"),
    ("settings.inference", "{short: 32, long: 64}"),
    ("optimisation.epochs", "1"),
]
ROWS = [("clip-es", "seeds"), ("fma", "coarse-seeds"), ("fma", "seeds"), ("fma", "final")]


@pytest.fixture(scope="module")
def semantic(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """The demo of FMA-WSSS on models with random weights."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("semantic")
    models = tiny_models(root / "models")
    frozen = [("settings.clip", str(models / "clip")), ("settings.segmenter", str(models / "sam")), ("device", "cpu")]
    return demo(root / "demo", "fma", overrides=[*frozen, *FMA_SMALL], command="weakly demo --method fma")


@pytest.fixture
def run(semantic: Demo) -> Iterator[Path]:
    """Its one run; what a test does to the label maps and scores is undone."""
    folder = semantic.runs[0]
    kept = {path: path.read_bytes() for path in [*_label_maps(folder), folder / "metrics.json"]}
    yield folder
    for path, content in kept.items():
        path.write_bytes(content)


def _label_maps(run: Path) -> list[Path]:
    return sorted((run.parent / "world" / "SegmentationClass").glob("*.png"))


def _val(run: Path) -> Dataset:
    return open_split(Run(run).recipe().data, "val")


def _row(records: tuple[Record, ...], method: str, row: str) -> Record:
    return next(record for record in records if (record.method, record.row) == (method, row))


def test_the_parts_demo_is_the_one_that_was_measured() -> None:
    """Every value that decides its numbers; box and point see the same world through the same segmenter."""
    recipes = demo_recipes("wps", Path("out"))
    assert list(recipes) == ["box", "point"]
    box, point = (to_plain(recipe) for recipe in recipes.values())
    for recipe in (box, point):
        assert recipe["data"] == box["data"] and recipe["features"] == box["features"]
        assert (recipe["settings"]["segmenter"], recipe["settings"]["position"]) == ("bundled", "tokens")
        assert recipe["evaluation"]["frame_side"] == 256
        training = {"lr": 8e-4, "weight_decay": 1e-4, "optimizer": "adamw", "batch_size": 8}
        assert {key: recipe["optimisation"][key] for key in training} == training
    assert box["data"]["root"] == "out/world" and box["features"]["root"] == "out/features"
    render = box["data"]["render"]
    assert (render["layout"], render["train"], render["val"], render["seed"], render["size"]) == (
        "partimagenet", 1000, 100, 7, 256,
    )  # fmt: skip
    assert render["kinds"] == [
        *("sedan", "van", "truck", "beetle", "sailboat", "schooner", "airliner", "propplane", "winebottle", "flask")
    ]
    sizes = {"width": 96, "hidden": 256, "pre_nms": 150, "proposals": 75, "rois": 48}
    assert {key: box["settings"]["regions"][key] for key in sizes} == sizes
    assert (box["preset"], box["settings"]["supervision"], box["settings"]["prompter"]) == ("plus", "box", "regions")
    assert (box["optimisation"]["epochs"], box["optimisation"]["warmup_steps"]) == (3, 50)
    student = {"width": 128, "heads": 4, "layers": 3, "ffn": 384, "queries": 16, "downsamples": 2}
    student |= {"aux_weight": 1.0, "eos_weight": 0.3, "supervision": "point", "prompter": "queries"}
    assert {key: point["settings"][key] for key in student} == student
    assert (point["preset"], point["optimisation"]["epochs"], point["optimisation"]["warmup_steps"]) == (
        "default",
        12,
        100,
    )


def _frozen_models(settings: dict[str, Any]) -> list[str]:
    """Names of frozen models, at any depth."""
    nested = [_frozen_models(value) for value in settings.values() if isinstance(value, dict)]
    named = [settings.get(key) for key in ("segmenter", "clip", "clipseg")]
    return [name for name in named if isinstance(name, str)] + sum(nested, [])


@pytest.mark.parametrize("method", ["wps", "fma", "weaksam", "partclip"])
def test_every_demo_is_offline_and_draws_its_own_world(method: str, tmp_path: Path) -> None:
    for recipe in demo_recipes(method, tmp_path / "1").values():
        assert recipe.method == method and recipe.data.render is not None
        assert set(_frozen_models(to_plain(recipe.settings))) == {"bundled"}
        assert Path(recipe.data.root) == tmp_path / "1" / "world"


def test_a_method_without_a_demo_and_one_that_is_not_there(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "tiny" in method_names()
    with pytest.raises(UserError, match=r"'tiny' has no demo; put a recipe into the folder demo/"):
        demo(work / "demo", "tiny")
    assert main(["demo", "--method", "nothing"]) == WRONG_USE
    assert "There is no method 'nothing'" in capsys.readouterr().err
    assert not any(work.iterdir())


def test_a_new_method_brings_its_demo_in_its_own_folder(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "demo").mkdir()
    (work / "demo" / "short.yaml").write_text(recipe_file.read_text().replace("epochs: 3", "epochs: 1"))
    monkeypatch.setattr(demonstration, "_folder", lambda _: work / "demo")
    world = recipe_file.read_text().split("root: ")[1].splitlines()[0]
    made = demo(work / "out", "tiny", overrides=[("data.root", world)])
    assert made.runs == (work / "out" / "short",)
    assert [(r.method, r.row) for r in made.records] == [("oracle", "final"), ("tiny", "final")]


def test_the_parts_demo_scores_both_students_beside_both_upper_bounds(
    small_sam: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = demonstration.demo
    small = [("settings.segmenter", str(small_sam)), *WPS_SMALL]
    monkeypatch.setattr(
        demonstration, "demo", lambda out, method, command: whole(out, method, overrides=small, command=command)
    )
    assert main(["demo", "--out", "demo"]) == DONE
    records = read_records(work / "demo" / "metrics.json")
    assert [(r.method, r.supervision) for r in records] == [
        ("oracle", "box"), ("oracle", "point"), ("wps", "box"), ("wps", "point"),
    ]  # fmt: skip
    assert all(len(r.protocols or {}) == 4 and r.images == 3 and r.command == "weakly demo --out demo" for r in records)
    printed = capsys.readouterr().out
    assert "official_rowwise" in printed and "report.html" in printed
    assert (work / "demo" / "report.html").is_file() and (work / "demo" / "point" / "report.html").is_file()
    assert not np.isnan(records[0].protocols["dataset41"]["miou"])


def test_the_semantic_demo_shows_both_seeds_and_the_final_masks(semantic: Demo) -> None:
    assert [(r.method, r.row) for r in semantic.records] == ROWS
    assert {(r.split, r.images, r.data, r.supervision, r.command) for r in semantic.records} == {
        ("val", 4, "menagerie", "tags", "weakly demo --method fma")
    }
    assert all(set(r.protocols) == {"semantic", "dataset41"} for r in semantic.records)
    assert all(0 <= r.miou == r.protocols["semantic"]["miou"] <= 1 for r in semantic.records)
    stored = read_records(semantic.runs[0].parent / "metrics.json")
    assert [record.to_dict() for record in stored] == [record.to_dict() for record in semantic.records]
    coarse, fine = (_row(semantic.records, "fma", row) for row in ("coarse-seeds", "seeds"))
    assert coarse.per_class != fine.per_class, "two prompt sets, two rows"


def test_the_figure_is_that_of_one_confusion_matrix_over_the_split(run: Path, semantic: Demo) -> None:
    """Made again from the run's stored masks and the PNGs, with nothing of the package's scoring."""
    dataset, found = _val(run), json.loads((run / "predictions-val-clip-es-tags-seeds.json").read_text())
    hits, unions = np.zeros((2, len(dataset.vocabulary) + 1))
    for index, sample in enumerate(dataset):
        own = [row for row in found if row["image_id"] == sample.image_id]
        predicted = type(dataset.truth(index)).from_coco(own, sample.size, dataset.vocabulary).to_label_map(39)
        png = np.array(Image.open(dataset.records[index].label_map_path))
        true = np.where(png == 0, 39, png.astype(int) - 1)
        for label in range(len(unions)):
            hits[label] += ((true == label) & (predicted == label)).sum()
            unions[label] += ((true == label) | (predicted == label)).sum()
    true_classes = [row["true_pixels"] > 0 for row in _row(semantic.records, "clip-es", "seeds").per_class]
    expected = (hits[true_classes] / unions[true_classes]).mean()
    assert _row(semantic.records, "clip-es", "seeds").miou == pytest.approx(expected, rel=1e-12)


def test_void_is_not_counted_and_a_changed_label_map_is_scored_anew(run: Path, semantic: Demo) -> None:
    path = _val(run).records[0].label_map_path
    with Image.open(path) as picture:
        values, palette = np.array(picture), picture.getpalette()
    values[:20] = 255
    changed = Image.fromarray(values)
    changed.putpalette(palette)
    changed.save(path)
    after = evaluate(run).records
    for method, row in ROWS:
        pixels = [sum(c["true_pixels"] for c in _row(rs, method, row).per_class) for rs in (semantic.records, after)]
        assert pixels[0] - pixels[1] == 20 * 64, f"{method} {row}: stored figures of the old truth must not be used"


def test_an_image_without_a_label_map_is_left_out(run: Path) -> None:
    data = Run(run).recipe().data
    lost = _val(run).records[1]
    lost.label_map_path.unlink()
    changes = [("data.kind", "voc-xml"), ("data.render", "null"), ("data.root", data.root)]
    found = evaluate(run, overrides=changes)
    assert {(r.data, r.images) for r in found.records} == {("voc", 3)}
    scored = json.loads((run / "images-val.json").read_text())["images"]
    assert lost.sample.image_id not in {row["image_id"] for row in scored} and len(scored) == 3
    theirs = run / "theirs.json"
    theirs.write_text(json.dumps([]))
    assert evaluate(run, overrides=changes, results=theirs).records[0].images == 3


def test_other_tags_are_other_upper_bounds(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    score = "weakly.methods.fma.seed_results"
    whole = __import__("weakly.methods.fma", fromlist=["seed_results"]).seed_results
    monkeypatch.setattr(score, lambda *given: (calls.append(given[2]), whole(*given))[1])
    xml = sorted((run.parent / "world" / "Annotations").glob("*.xml"))
    changes = [("data.kind", "voc-xml")]
    evaluate(run, overrides=changes)
    calls.clear()
    evaluate(run, overrides=changes)
    assert not calls, "nothing has changed"
    tags = {sample.image_id: sample.tags.labels.tolist() for sample in _val(run)}
    stem = next(image_id for image_id, labels in tags.items() if labels)
    path = next(path for path in xml if path.stem == stem)
    content = path.read_text()
    try:
        path.write_text(re.sub(r"<name>(dog|bear|sedan)</name>", "<name>fox</name>", content))
        evaluate(run, overrides=changes)
    finally:
        path.write_text(content)
    assert [folder.name for folder in calls] == ["clip-es", "coarse", "fine"]


def test_the_report_shows_the_stages_of_a_few_images(run: Path) -> None:
    evaluate(run)
    panels = read_panels(Run(run), "val")
    assert 1 <= len(panels) <= 4
    sizes = {sample.image_id: sample.size for sample in _val(run)}
    for image_id, stages in panels.items():
        assert [stage.kind for stage in stages] == ["heat", "heat", "regions", "labels", "labels"]
        assert re.fullmatch(r"CAM of (dog|bear|sedan)", stages[0].title)
        assert stages[1].title == f"{stages[0].title} after affinity"
        assert [stage.title for stage in stages[2:]] == ["quasi-superpixels", "coarse seed", "fine seed"]
        assert {stage.values.shape for stage in stages[2:]} == {sizes[image_id]}
        assert stages[2].values.max() > 0
    text = build_run_report(run).read_text(encoding="utf-8")
    section = text[text.index('id="stages"') : text.index('id="gallery"')]
    titles = re.findall(r"<figcaption>([^<]+)</figcaption>", section)
    assert len(titles) == 8 * len(panels) and titles[0] == "image" and titles[7] == "truth"
    assert titles[6].startswith("fma · tags")
    assert "tags: " in section
    headline = text[text.index('class="headline"') : text.index("<table")]
    assert headline.count("semantic mIoU") == 1 and "dataset40" not in headline
    figures = re.findall(r"<figcaption>([^<]+)</figcaption>", text[text.index('id="gallery"') :])
    assert {title.rsplit(" · ", 1)[0] for title in figures if "%" in title} == {
        "fma · tags", "clip-es · tags · seeds", "fma · tags · coarse-seeds", "fma · tags · seeds",
    }  # fmt: skip


def test_stages_are_those_of_the_last_evaluation_and_need_references(run: Path) -> None:
    (run / "panels" / "val" / "left-over.png").write_bytes(b"")
    evaluate(run, overrides=[("evaluation.references", "false")])
    assert (run / "panels" / "val" / "left-over.png").is_file(), "nothing frozen is asked without references"
    evaluate(run)
    assert not (run / "panels" / "val" / "left-over.png").exists()


def test_images_are_spread_from_the_best_to_the_worst() -> None:
    scores = [0.1, None, 0.9, 0.5, 0.3, 0.7]
    assert spread_out(scores, 3) == [2, 3, 0]
    assert spread_out(scores, 9) == [2, 5, 3, 4, 0]
    assert spread_out([None, 0.0]) == [1] and spread_out([]) == []
