"""From a run folder to its page: whatever the run has got so far is shown, and no file of the run is changed."""

from __future__ import annotations

import base64
import io
import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from weakly.data.coco import read_coco
from weakly.engine.panels import store_panels
from weakly.engine.runs import Run
from weakly.errors import UserError
from weakly.evaluation.records import Record, write_records
from weakly.labels import Boxes, Points
from weakly.methods.base import Panel
from weakly.report.draw import (
    draw_boxes,
    draw_heat,
    draw_label_map,
    draw_points,
    draw_regions,
    draw_stage,
    fit_panel,
    picture_uri,
    short_name,
)
from weakly.report.gallery import Column, by_image, choose_cases, gallery_rows
from weakly.report.run_report import build_demo_report, build_run_report
from weakly.vocabulary import Category, Vocabulary

IMAGES = 5
NAMES = ("Fish Head", "Fish Tail")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A COCO dataset of grey 40 x 30 images: a head box at the left, a tail box at the right; one box is broken."""
    root = tmp_path_factory.mktemp("world")
    (root / "images/val").mkdir(parents=True)
    (root / "annotations").mkdir()
    annotations = []
    for i in range(IMAGES):
        Image.fromarray(np.full((30, 40, 3), 40 * i, np.uint8)).save(root / f"images/val/{i}.png")
        for category, x in ((1, 2), (2, 22)):
            square = [x, 5, x + 15, 5, x + 15, 25, x, 25]
            box = [x, 5, 15, 20]
            annotations.append(
                {"id": len(annotations) + 1, "image_id": i, "category_id": category, "bbox": box,
                 "segmentation": [square], "area": 300, "iscrowd": 0}
            )  # fmt: skip
    annotations.append({"id": 99, "image_id": 0, "category_id": 77, "bbox": [0, 0, 5, 5], "segmentation": []})
    document = {
        "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in range(IMAGES)],
        "annotations": annotations,
        "categories": [{"id": k + 1, "name": name, "supercategory": "Fish"} for k, name in enumerate(NAMES)],
    }
    (root / "annotations/val.json").write_text(json.dumps(document))
    return root


def dataset_of(world):
    return read_coco(world / "annotations/val.json", world / "images/val", split="val")


def coco_results(dataset, shift=0):
    """The truth moved sideways, as COCO results."""
    results = []
    for i, sample in enumerate(dataset):
        truth = dataset.truth(i)
        moved = type(truth).from_masks(np.roll(truth.masks(), shift, axis=2), truth.labels)
        results += moved.to_coco(sample.image_id, dataset.vocabulary)
    return results


def make_run(folder, world, *, supervision="box", evaluated=True):
    """A run folder as the engine leaves it."""
    folder.mkdir()
    run = Run(folder)
    run.recipe_file.write_text(
        f"method: wps\nsettings: {{supervision: {supervision}}}\n"
        f"data: {{kind: coco, root: '{world}', train: val, val: val}}\n"
    )
    if not evaluated:
        return run
    dataset = dataset_of(world)
    run.update_info(
        command="weakly fit recipe.yaml", seconds=90.0, steps=20, versions={"torch": "9.9"},
        vocabulary=dataset.vocabulary.to_dict(), machine={"gpu": None, "threads": 2},
    )  # fmt: skip
    run.log.parent.mkdir()
    run.log.write_text('{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": 1.0}\n')
    run.student.mkdir()
    (run.student / "model.safetensors").write_bytes(b"weights")
    common = {"data": "coco", "split": "val", "images": IMAGES, "row": "final", "command": "weakly evaluate run"}
    per_class = [{"name": name, "iou": 0.4} for name in NAMES]
    write_records(run.metrics, [
        Record(method=method, supervision=supervision, per_class=per_class, **common,
               protocols={name: {"miou": miou, "macc": 0.9} for name in ("dataset41", "dataset40")})
        for method, miou in (("wps", 0.4), ("oracle", 0.8))
    ])  # fmt: skip
    for label, shift in (("val", 3), (f"val-oracle-{supervision}", 0)):
        run.predictions(label).write_text(json.dumps(coco_results(dataset, shift)))
        scores = [{"image_id": i, "file": "x", "miou": 0.1 * i + 0.05, "pairs": 2} for i in range(IMAGES)]
        run.image_scores(label).write_text(json.dumps({"images": scores, "skipped": []}))
    (folder / "skipped.json").write_text(json.dumps([{"file": "broken.jpg", "reason": "is truncated"}]))
    return run


def pictures(text):
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    return [Image.open(io.BytesIO(base64.b64decode(data))) for data in found]


def test_a_run_becomes_one_page(tmp_path, world):
    run = make_run(tmp_path / "fish-box", world)
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    path = build_run_report(run.folder)
    text = path.read_text(encoding="utf-8")
    assert path == run.folder / "report.html"
    for expected in (
        "fish-box", "wps · box", "oracle · box", "50.0 %", "coco val · 5 images", "1.5 min, 20 steps", "2 CPU threads",
        "train/loss", "broken.jpg", "is truncated", "(id 99)", "weakly fit recipe.yaml", "weakly evaluate run",
        "9.9", "student/model.safetensors",
    ):  # fmt: skip
        assert expected in text
    assert len(pictures(text)) == IMAGES * 5  # image, boxes, upper bound, prediction, truth
    assert {max(picture.size) for picture in pictures(text)} == {320}
    assert all(path.read_bytes() == content for path, content in before.items())


def test_the_gallery_shows_the_best_case_first_with_scores_of_each_column(tmp_path, world):
    text = build_run_report(make_run(tmp_path / "run", world).folder).read_text(encoding="utf-8")
    captions = re.findall(r"<b>image (\d)", text)
    assert captions == ["4", "3", "2", "1", "0"]
    titles = re.findall(r"<figcaption>([^<]+)</figcaption>", text)[:5]
    assert titles == ["image", "boxes", "oracle · box · 45.0 %", "wps · box · 45.0 %", "truth"]


def test_runs_stand_side_by_side(tmp_path, world):
    runs = [make_run(tmp_path / f"fish-{s}", world, supervision=s).folder for s in ("box", "point")]
    text = build_demo_report(tmp_path / "demo", runs).read_text(encoding="utf-8")
    titles = [title.split(" · 4")[0] for title in re.findall(r"<figcaption>([^<]+)</figcaption>", text)[:6]]
    assert titles == ["image", "boxes", "oracle · box", "wps · box", "wps · point", "truth"]
    assert "fish-box/train/loss" in text
    assert "fish-point/train/loss" in text
    assert text.count("<tbody>\n        <tr") == 1
    assert text.count("broken.jpg") == 1


@pytest.mark.parametrize("recipe", [True, False])
def test_a_run_that_has_only_begun_gives_a_page(tmp_path, world, recipe):
    folder = tmp_path / "run"
    if recipe:
        make_run(folder, world, evaluated=False)
    else:
        folder.mkdir()
    text = build_run_report(folder).read_text(encoding="utf-8")
    assert "Nothing has been evaluated yet" in text
    assert ("Nothing has been trained" in text) is not recipe


def test_missing_data_is_a_line_on_the_page(tmp_path, world):
    run = make_run(tmp_path / "run", world)
    run.recipe_file.write_text("method: wps\ndata: {kind: coco, root: gone, train: val, val: val}\n")
    text = build_run_report(run.folder).read_text(encoding="utf-8")
    assert "data-not-readable" in text
    assert not pictures(text)
    assert "wps · box" in text


def test_an_unreadable_picture_is_left_out_of_the_gallery(tmp_path, world):
    dataset = dataset_of(world)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"not an image")
    record = dataset.records[0]
    sample = type(record.sample)(0, broken, record.sample.size)
    damaged = type(dataset)("coco", "val", dataset.vocabulary, (type(record)(sample), *dataset.records[1:]))
    column = Column("wps", by_image(coco_results(dataset)))
    cases = choose_cases({0: 0.9, 1: 0.8, "unknown": 0.7})
    assert [row.caption for row in gallery_rows(damaged, [column], cases)] == ["image 1 · 1.png"]


def test_a_folder_that_is_not_there_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="There is no run folder"):
        build_run_report(tmp_path / "nothing")
    with pytest.raises(UserError, match="at least one run"):
        build_demo_report(tmp_path, [])
    assert os.listdir(tmp_path) == []  # noqa: PTH208


def test_the_best_median_and_worst_images_are_chosen_once_each():
    scores = {i: i / 100 for i in range(100)} | {"nan": float("nan"), "none": None}
    cases = choose_cases(scores, each=3)
    assert [case.image_id for case in cases if case.group == "best"] == [99, 98, 97]
    assert [case.image_id for case in cases if case.group == "median"] == [50, 49, 48]
    assert [case.image_id for case in cases if case.group == "worst"] == [2, 1, 0]
    assert len({case.image_id for case in choose_cases(dict.fromkeys(range(10), 0.5), each=3)}) == 9


def test_pictures_are_scaled_and_drawn_in_the_colours_of_the_vocabulary():
    vocabulary = Vocabulary((Category("Fish Head", "Fish"), Category("Fish Tail", "Fish")))
    grey = np.full((50, 100, 3), 128, np.uint8)
    head = tuple(int(v) for v in vocabulary.palette()[0])
    boxes = draw_boxes(grey, Boxes([[10, 10, 60, 40]], [0]), vocabulary)
    points = draw_points(grey, Points([[50, 25]], [0]), vocabulary)
    assert boxes.shape == points.shape == (160, 320, 3)
    assert tuple(boxes[32, 100]) == head  # the upper edge of the box, scaled by 3.2
    assert tuple(points[80, 160]) == head
    assert (grey == 128).all()
    label_map = np.full((50, 100), 2, np.uint8)
    label_map[:, :50] = 0
    painted = draw_label_map(grey, label_map, vocabulary)
    assert (painted[80, 40] != 128).any()
    assert (painted[80, 280] == 128).all()  # background stays clear


def test_heat_is_red_where_it_is_strong_and_regions_have_a_colour_each():
    grey = np.full((50, 100, 3), 128, np.uint8)
    heat = draw_heat(grey, np.array([[0, 255]], np.uint8))
    assert heat.shape == (160, 320, 3)
    red, _, blue = (heat[80, 300].astype(int) - heat[80, 20].astype(int)).tolist()
    assert red > 0 > blue
    numbers = np.zeros((50, 100), np.uint16)
    numbers[:, 40:60], numbers[:, 60:] = 1, 300
    painted = draw_regions(grey, numbers)
    assert (painted[80, 60] == 128).all()  # no region
    assert len({tuple(painted[80, x]) for x in (60, 160, 280)}) == 3
    assert (draw_regions(grey, numbers * 0) == 128).all()
    vocabulary = Vocabulary.from_names(["a", "b"])
    for kind, values in (("heat", numbers.astype(np.uint8)), ("regions", numbers), ("labels", numbers % 3)):
        assert draw_stage(grey, Panel("stage", kind, values), vocabulary).shape == (160, 320, 3)


def test_stages_stand_between_the_image_and_the_final_result(tmp_path, world):
    run = make_run(tmp_path / "run", world)
    assert 'id="stages"' not in build_run_report(run.folder).read_text(encoding="utf-8")
    heat = Panel("CAM of <Fish>", "heat", np.arange(12, dtype=np.uint8).reshape(3, 4))
    store_panels(run, "val", {4: [heat], 0: [heat, Panel("seed", "labels", np.zeros((30, 40), np.uint8))]})
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.suffix != ".html"}
    text = build_run_report(run.folder).read_text(encoding="utf-8")
    section = text[text.index('id="stages"') : text.index('id="gallery"')]
    titles = re.findall(r"<figcaption>([^<]+)</figcaption>", section)
    cam = "CAM of &lt;Fish&gt;"
    final = ["wps · box · 45.0 %", "truth", "image", cam, "seed", "wps · box · 5.0 %", "truth"]
    assert titles == ["image", cam, *final]
    assert all(path.read_bytes() == content for path, content in before.items())
    (run.folder / "panels/val/00-0-heat.png").unlink()
    assert 'id="stages"' not in build_run_report(run.folder).read_text(encoding="utf-8")


def test_boxes_outside_the_image_and_crowded_names_do_not_fail():
    vocabulary = Vocabulary.from_names(["a long category name", "another long name"])
    crowd = Boxes([[-5, -5, 500, 500], [3, 3, 1, 1], *[[0, 0, 4, 4]] * 30], [0, 1] + [0] * 30)
    assert draw_boxes(np.zeros((8, 8, 3), np.uint8), crowd, vocabulary).shape == (320, 320, 3)
    assert draw_points(np.zeros((8, 8, 3), np.uint8), crowd.centers(), vocabulary).shape == (320, 320, 3)


def test_tall_and_wide_pictures_keep_their_shape():
    assert fit_panel(np.zeros((1000, 10, 3), np.uint8)).shape == (320, 3, 3)
    assert len(picture_uri(np.zeros((3000, 4000, 3), np.uint8))) < 5000


@pytest.mark.parametrize(("name", "whole", "short"), [
    ("Quadruped Head", "Quadruped", "Head"), ("car_door", "car", "door"), ("Fish", "Fish", "Fish"),
    ("Wing", None, "Wing"),
])  # fmt: skip
def test_the_object_is_left_out_of_part_names(name, whole, short):
    assert short_name(name, whole) == short
