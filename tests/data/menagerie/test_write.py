"""Worlds on disk: what the readers see of them, and what a kill, a second call and a larger one do."""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.check_files import label_map_agreement
from weakly.data.menagerie import KINDS, PART_NAMES, PART_SUPER_CATEGORIES, Scene, render_scene
from weakly.data.menagerie import world as world_module
from weakly.data.menagerie.sheet import GAP, contact_sheet
from weakly.data.menagerie.write import RESERVED_SEEDS, instance_segmentation, write_partimagenet, write_voc
from weakly.data.menagerie.write_voc import VOC_CLASSES, voc_palette
from weakly.errors import UserError, WeaklyError
from weakly.files import alone
from weakly.segmentation import decode_masks, rle_from_coco

CHUNK = 4
SEED, SIZE, TRAIN, VAL = 5, 96, 2 * CHUNK + 2, 3
SPLITS = {"train": TRAIN, "val": VAL}
WRITERS = {"partimagenet": write_partimagenet, "voc": write_voc}


@pytest.fixture(scope="module", params=WRITERS)
def layout(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module", autouse=True)
def small_chunks() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(world_module, "CHUNK", CHUNK)
        yield


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One finished world per layout; tests only read them."""
    roots = {name: tmp_path_factory.mktemp("world") / name for name in WRITERS}
    for name, root in roots.items():
        WRITERS[name](root, SPLITS, seed=SEED, size=SIZE, workers=1)
    return roots


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render_scene(SEED, index, SIZE) for index in range(6)]


def content(root: Path) -> dict[str, str]:
    """{relative path: hash} of every file, hidden ones included."""
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mask_box(mask: np.ndarray) -> list[int]:
    rows, columns = np.nonzero(mask)
    return [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


class TestPartImageNet:
    def test_reader_sees_the_boxes_masks_and_maps_of_the_scenes(self, worlds, scenes) -> None:
        dataset = open_dataset("menagerie", worlds["partimagenet"], "train")
        assert len(dataset) == TRAIN
        assert dataset.vocabulary.names == PART_NAMES
        assert tuple(c.object for c in dataset.vocabulary.categories) == PART_SUPER_CATEGORIES
        for position, scene in enumerate(scenes):
            sample, truth = dataset[position], dataset.truth(position)
            masks = np.stack([scene.part_map == k for k in range(1, len(scene.parts) + 1)])
            categories = [part.category for part in scene.parts]
            assert sample.boxes.labels.tolist() == categories
            assert sample.boxes.xyxy.tolist() == [mask_box(m) for m in masks]
            assert truth.labels.tolist() == categories
            both, either = (truth.masks() & masks).sum((1, 2)), (truth.masks() | masks).sum((1, 2))
            assert (both >= 0.9 * either).all()
            expected = np.array([40, *categories], np.uint8)[scene.part_map]
            assert np.array_equal(truth.label_map, expected)
            assert label_map_agreement(dataset, position) > 0.95

    def test_pixels_are_those_of_the_scene_up_to_jpeg(self, worlds, scenes) -> None:
        stored = open_dataset("menagerie", worlds["partimagenet"], "train").image(0)
        assert stored.shape == (SIZE, SIZE, 3)
        assert np.abs(stored.astype(int) - scenes[0].image).mean() < 6

    @pytest.mark.parametrize("split", SPLITS)
    def test_data_check_is_clean(self, worlds, split) -> None:
        report = check("menagerie", worlds["partimagenet"], split, workers=1)
        assert report.exit_code == 0
        assert [p for p in report.problems if p.check != "more-parts-than-queries"] == []

    def test_files_are_named_after_the_first_objects_kind_and_the_scene(self, worlds, scenes) -> None:
        names = sorted(p.name for p in (worlds["partimagenet"] / "images/train").iterdir())
        assert len(names) == TRAIN
        assert f"{KINDS[scenes[3].objects[0].kind].wordnet_id}_3.JPEG" in names
        assert all(p.name.split("_")[1] >= "10000000" for p in (worlds["partimagenet"] / "images/val").iterdir())

    def test_size_files(self, worlds) -> None:
        labels = worlds["partimagenet"] / "annotations/train"
        stems = [p.stem for p in (worlds["partimagenet"] / "images/train").iterdir()]
        assert all(json.loads((labels / f"{s}.json").read_text()) == {"imgHeight": 96, "imgWidth": 96} for s in stems)

    def test_whole_maps_and_boxes_name_the_kinds(self, worlds, scenes) -> None:
        folder = worlds["partimagenet"] / "annotations/train_whole"
        document = json.loads((folder / "train.json").read_text())
        assert [c["name"] for c in document["categories"]] == list(KINDS)
        for image, scene in zip(document["images"], scenes, strict=False):
            found = [a for a in document["annotations"] if a["image_id"] == image["id"]]
            kinds = [list(KINDS).index(o.kind) for o in scene.objects]
            assert [a["category_id"] for a in found] == kinds
            assert [a["area"] for a in found] == [(scene.object_map == o + 1).sum() for o in range(len(kinds))]
            stored = np.asarray(Image.open(folder / f"{Path(image['file_name']).stem}.png"))
            assert np.array_equal(stored, np.array([len(KINDS), *kinds])[scene.object_map])

    def test_ids_are_unique_across_images(self, worlds) -> None:
        document = json.loads((worlds["partimagenet"] / "annotations/train/train.json").read_text())
        assert [a["id"] for a in document["annotations"]] == list(range(1, len(document["annotations"]) + 1))
        assert [i["id"] for i in document["images"]] == list(range(TRAIN))


class TestSegmentation:
    def overlap(self, mask: np.ndarray) -> tuple[object, float]:
        stored = instance_segmentation(mask)
        decoded = decode_masks((rle_from_coco(stored, mask.shape),), mask.shape)[0]
        return stored, (decoded & mask).sum() / (decoded | mask).sum()

    def test_solid_shapes_are_polygons_one_per_region(self) -> None:
        mask = np.zeros((40, 50), bool)
        mask[5:20, 3:10] = mask[30:32, 20:50] = True
        stored, overlap = self.overlap(mask)
        assert len(stored) == 2
        assert overlap == 1.0

    def test_a_line_of_one_pixel_survives(self) -> None:
        mask = np.zeros((40, 50), bool)
        mask[7, 3:45] = mask[20, 20] = True
        assert self.overlap(mask)[1] == 1.0

    def test_holes_become_run_lengths(self) -> None:
        mask = np.zeros((40, 50), bool)
        mask[5:30, 5:30] = True
        mask[8:27, 8:27] = False
        stored, overlap = self.overlap(mask)
        assert set(stored) == {"size", "counts"}
        assert overlap == 1.0


class TestVoc:
    def test_xml_states_objects_and_parts_with_inclusive_boxes_from_one(self, worlds, scenes) -> None:
        for index, scene in enumerate(scenes):
            top = ET.parse(worlds["voc"] / f"Annotations/2026_{index + 1:06d}.xml").getroot()
            assert top.findtext("filename") == f"2026_{index + 1:06d}.jpg"
            assert [top.findtext(f"size/{k}") for k in ("width", "height", "depth")] == ["96", "96", "3"]
            objects = top.findall("object")
            assert [o.findtext("name") for o in objects] == [o.kind for o in scene.objects]
            for number, element in enumerate(objects, 1):
                self.same_box(element, scene.object_map == number)
                own = [(k, p) for k, p in enumerate(scene.parts, 1) if p.object_index == number - 1]
                for part, (k, expected) in zip(element.findall("part"), own, strict=True):
                    whole = PART_SUPER_CATEGORIES[expected.category]
                    assert f"{whole} {part.findtext('name')}".lower() == PART_NAMES[expected.category].lower()
                    self.same_box(part, scene.part_map == k)

    @staticmethod
    def same_box(element: ET.Element, mask: np.ndarray) -> None:
        stated = [int(element.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
        x0, y0, x1, y1 = mask_box(mask)
        assert stated == [x0 + 1, y0 + 1, x1, y1]

    def test_truncated_means_touching_the_border_and_occluded_a_nearer_object(self, worlds) -> None:
        seen = set()
        for path in (worlds["voc"] / "Annotations").iterdir():
            objects = np.pad(np.asarray(Image.open(worlds["voc"] / f"SegmentationObject/{path.stem}.png")), 1)
            border = {*objects[1], *objects[-2], *objects[:, 1], *objects[:, -2]}
            for number, element in enumerate(ET.parse(path).getroot().iter("object"), 1):
                truncated, occluded = element.findtext("truncated"), element.findtext("occluded")
                assert truncated == str(int(number in border))
                mask = objects == number
                beside = np.concatenate([objects[np.roll(mask, s, a)] for s in (1, -1) for a in (0, 1)])
                assert occluded == str(int((beside > number).any()))
                seen |= {"t" + truncated, "o" + occluded}
        assert seen == {"t0", "t1", "o0", "o1"}

    def test_maps_are_palette_pngs_of_classes_and_objects(self, worlds, scenes) -> None:
        for index, scene in enumerate(scenes):
            classes, objects = (
                Image.open(worlds["voc"] / folder / f"2026_{index + 1:06d}.png")
                for folder in ("SegmentationClass", "SegmentationObject")
            )
            assert classes.mode == objects.mode == "P"
            assert np.array_equal(np.asarray(objects), scene.object_map)
            expected = np.array([0, *(VOC_CLASSES.index(o.kind) + 1 for o in scene.objects)])[scene.object_map]
            assert np.array_equal(np.asarray(classes), expected)

    def test_colour_map_is_vocs(self) -> None:
        palette = voc_palette()
        assert palette[[0, 1, 2, 15, 255]].tolist() == [
            [0, 0, 0],
            [128, 0, 0],
            [0, 128, 0],
            [192, 128, 128],
            [224, 224, 192],
        ]

    def test_image_sets(self, worlds) -> None:
        sets = worlds["voc"] / "ImageSets"
        stems = (sets / "Main/train.txt").read_text().split()
        assert stems == [f"2026_{n:06d}" for n in range(1, TRAIN + 1)]
        assert (sets / "Segmentation/train.txt").read_text().split() == stems
        assert (sets / "Main/val.txt").read_text().split() == [f"2026_{10_000_000 + n}" for n in range(1, VAL + 1)]
        for name in VOC_CLASSES:
            rows = [line.split() for line in (sets / f"Main/{name}_train.txt").read_text().splitlines()]
            assert [stem for stem, _ in rows] == stems
            for stem, presence in rows:
                objects = ET.parse(worlds["voc"] / f"Annotations/{stem}.xml").getroot().iter("object")
                flags = [o.findtext("difficult") for o in objects if o.findtext("name") == name]
                assert presence == ("-1" if not flags else "1" if "0" in flags else "0")


class TestResuming:
    def test_interrupted_then_resumed_gives_the_same_bytes(self, worlds, layout, tmp_path) -> None:
        def interrupt(done: int, total: int) -> None:
            assert total == TRAIN + VAL
            if done > CHUNK:
                raise KeyboardInterrupt

        root = tmp_path / "world"
        with pytest.raises(KeyboardInterrupt):
            WRITERS[layout](root, SPLITS, seed=SEED, size=SIZE, workers=1, progress=interrupt)
        kept = sorted((root / ("images/train" if layout == "partimagenet" else "JPEGImages")).iterdir())
        assert len(kept) == 2 * CHUNK
        kept[0].unlink()  # a file that vanished, and two half-written ones
        (root / ".world.json.abc.tmp").write_text("{")
        (kept[1].parent / ".x.JPEG.abc.tmp").write_bytes(b"\xff\xd8")
        seen: list[tuple[int, int]] = []
        WRITERS[layout](root, SPLITS, seed=SEED, size=SIZE, workers=1, progress=lambda *done: seen.append(done))
        assert content(root) == content(worlds[layout])
        assert seen[-1] == (TRAIN + VAL, TRAIN + VAL)
        assert len(seen) == 3  # the chunk that was complete is not drawn again

    def test_killed_before_the_chunk_files_were_removed(self, worlds, layout, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(world_module, "_remove_chunk_files", lambda *_: None)
        WRITERS[layout](tmp_path, {"val": 2}, seed=SEED, size=SIZE, workers=1)
        assert (tmp_path / ".parts").exists()
        monkeypatch.undo()
        WRITERS[layout](tmp_path, {"val": 2}, seed=SEED, size=SIZE, workers=1)
        assert not (tmp_path / ".parts").exists()

    def test_a_second_call_draws_nothing(self, worlds, layout, monkeypatch) -> None:
        monkeypatch.setattr(world_module, "_draw_chunk", None)
        before = content(worlds[layout])
        WRITERS[layout](worlds[layout], SPLITS, seed=SEED, size=SIZE)
        assert content(worlds[layout]) == before

    def test_one_process_draws_and_the_other_finds_the_world(self, worlds, layout, tmp_path) -> None:
        root = tmp_path / "world"
        drawing = threading.Thread(target=WRITERS[layout], args=(root, SPLITS), kwargs={"seed": SEED, "size": SIZE})
        with alone(root):
            drawing.start()
            drawing.join(0.5)
            assert drawing.is_alive() and not (root / "images").exists() and not (root / "JPEGImages").exists()
            shutil.copytree(worlds[layout], root, dirs_exist_ok=True)
            before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
        drawing.join(60)
        assert not drawing.is_alive()
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_growing_and_adding_splits_keeps_images_and_ends_with_the_same_bytes(
        self, worlds, layout, tmp_path
    ) -> None:
        def write(**splits: int) -> None:
            WRITERS[layout](tmp_path, splits, seed=SEED, size=SIZE, workers=1)

        write(train=3)
        times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.suffix in {".JPEG", ".jpg", ".png", ".xml"}}
        assert len(times) >= 9
        write(val=VAL)
        write(train=TRAIN)
        assert {p: p.stat().st_mtime_ns for p in times} == times
        assert content(tmp_path) == content(worlds[layout])

    @pytest.mark.slow
    def test_worker_processes_write_the_same_bytes(self, worlds, layout, tmp_path) -> None:
        WRITERS[layout](tmp_path, SPLITS, seed=SEED, size=SIZE, workers=2)
        assert content(tmp_path) == content(worlds[layout])


class TestRefusals:
    @pytest.mark.parametrize("seed", RESERVED_SEEDS)
    def test_reserved_seeds(self, layout, tmp_path, seed) -> None:
        with pytest.raises(UserError, match=f"seed {seed} is reserved"):
            WRITERS[layout](tmp_path, {"train": 1}, seed=seed)
        assert not list(tmp_path.iterdir())

    def test_reserved_seeds_are_those_of_the_bundled_models(self) -> None:
        measure = pytest.importorskip("weakly.foundation.pretraining.measure")
        pictures = pytest.importorskip("weakly.foundation.pretraining.pictures")
        assert {pictures.PRETRAINING_SEED, measure.MEASURING_SEED} <= set(RESERVED_SEEDS)

    @pytest.mark.parametrize(
        ("change", "named"),
        [({"seed": 6}, "seed 5, not 6"), ({"size": 128}, "size 96, not 128"), ({}, "10 train images, not 2")],
    )
    def test_another_world_in_the_root(self, worlds, layout, change, named) -> None:
        before = content(worlds[layout])
        with pytest.raises(UserError, match=named) as error:
            WRITERS[layout](worlds[layout], {"train": 2}, **{"seed": SEED, "size": SIZE, **change})
        assert str(worlds[layout]) in str(error.value)
        assert "choose another folder" in str(error.value)
        assert content(worlds[layout]) == before

    def test_another_layout_in_the_root(self, worlds) -> None:
        with pytest.raises(UserError, match="layout 'voc', not 'partimagenet'"):
            write_partimagenet(worlds["voc"], SPLITS, seed=SEED, size=SIZE)

    def test_a_folder_that_is_no_world(self, tmp_path) -> None:
        (tmp_path / "images").mkdir()
        with pytest.raises(UserError, match="holds images/ but no world.json"):
            write_partimagenet(tmp_path, {"train": 1}, seed=0)

    @pytest.mark.parametrize("text", ["{", "[]", '{"splits": {"train": 3}}'])
    def test_a_damaged_manifest(self, tmp_path, text) -> None:
        (tmp_path / "world.json").write_text(text)
        with pytest.raises(UserError, match=r"world\.json is no manifest"):
            write_voc(tmp_path, {"train": 1}, seed=0)

    @pytest.mark.parametrize(
        ("splits", "options", "named"),
        [
            ({"train": 1}, {"seed": -1}, "negative"),
            ({"train": 1}, {"seed": 0, "size": 8}, "8 px"),
            ({"train": 1}, {"seed": 0, "workers": 0}, "0 worker"),
            ({"train": 0}, {"seed": 0}, "cannot have 0 images"),
            ({"trian": 1}, {"seed": 0}, "no split 'trian'"),
            ({}, {"seed": 0}, "No split"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, splits, options, named) -> None:
        with pytest.raises(UserError, match=named):
            write_partimagenet(tmp_path, splits, **options)

    def test_files_that_vanish_while_drawing(self, tmp_path) -> None:
        def delete(*_: int) -> None:
            next((tmp_path / "JPEGImages").iterdir()).unlink()

        with pytest.raises(WeaklyError, match="run the same command again"):
            write_voc(tmp_path, {"train": 1}, seed=SEED, size=SIZE, workers=1, progress=delete)


def test_contact_sheet_shows_the_first_scenes_row_by_row() -> None:
    sheet = contact_sheet(SEED, 2, 3, 48)
    assert sheet.shape == (2 * 48 + GAP, 3 * 48 + 2 * GAP, 3)
    assert (sheet[48 : 48 + GAP] == 255).all()
    assert np.array_equal(sheet[48 + GAP :, 48 + GAP : 2 * 48 + GAP], render_scene(SEED, 4, 48).image)


class TestKinds:
    def test_a_world_of_some_kinds_shows_no_other(self, tmp_path):
        write_partimagenet(tmp_path, {"train": 6}, seed=1, size=64, kinds=["sedan", "sailboat"], workers=1)
        dataset = open_dataset("menagerie", tmp_path, "train")
        shown = {dataset.vocabulary.categories[label].object for sample in dataset for label in sample.boxes.labels}
        assert shown <= {"Car", "Boat"}

    def test_other_kinds_are_another_world(self, tmp_path):
        write_partimagenet(tmp_path, {"train": 1}, seed=1, size=64, kinds=["sedan"], workers=1)
        with pytest.raises(UserError, match="kinds"):
            write_partimagenet(tmp_path, {"train": 1}, seed=1, size=64, workers=1)

    @pytest.mark.parametrize("kinds", [["sedan", "unicorn"], []])
    def test_unknown_kinds_are_named(self, tmp_path, kinds):
        with pytest.raises(UserError, match="unicorn|empty"):
            write_partimagenet(tmp_path, {"train": 1}, seed=1, size=64, kinds=kinds, workers=1)
