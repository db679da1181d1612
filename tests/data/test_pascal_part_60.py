"""Pascal-Part with merged parts: one box per object and merged part, from raw annotations or converted ones."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_pascal import SIZE, region, whole, write_voc2010
from scipy.io import savemat

from weakly.cli import DONE, DONE_WITH_SKIPS, WRONG_USE, main
from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.dataset import Dataset
from weakly.data.part_lists import merge_table
from weakly.errors import UserError

VOCABULARY = merge_table("pascal_part_60").vocabulary()


def boxes_of(dataset: Dataset, index: int = 0) -> list[tuple[str, list[float]]]:
    boxes = dataset[index].boxes
    assert boxes is not None
    return [(VOCABULARY.names[label], box) for label, box in zip(boxes.labels, boxes.xyxy.tolist(), strict=True)]


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """A dog half behind a second one, a sofa; an image without any part in each split."""
    first = whole(
        "dog", region(slice(0, 12), slice(0, 12)),
        head=region(slice(0, 5), slice(0, 5)), leye=region(slice(1, 2), slice(1, 2)),
        lfleg=region(slice(9, 12), slice(0, 2)), rbpa=region(slice(10, 12), slice(6, 8)),
        torso=region(slice(5, 9), slice(0, 12)),
    )  # fmt: skip
    second = whole("dog", region(slice(4, 20), slice(8, 30)), tail=region(slice(4, 6), slice(8, 12)))
    sofa = whole("sofa", region(slice(0, 3), slice(20, 30)))
    nothing = [whole("sofa", region(slice(0, 9), slice(0, 9)))]
    return write_voc2010(
        tmp_path / "VOC2010", train={"b": [first, second, sofa], "a": nothing}, val={"c": [second], "d": nothing}
    )


def test_a_box_per_object_and_merged_part(voc: Path) -> None:
    dataset = open_dataset("pascal-part-mat", voc, "train")
    assert (dataset.name, dataset.vocabulary, dataset.problems) == ("pascal-part-60", VOCABULARY, ())
    assert dataset.extra["merges_version"] == 1
    assert [sample.image_id for sample in dataset] == ["b", "a"], "the order of the image set"
    assert boxes_of(dataset) == [
        ("dog's head", [0, 0, 5, 5]),
        ("dog's leg", [0, 9, 8, 12]),  # two legs of one dog; the second dog hides nothing of them
        ("dog's torso", [0, 5, 8, 9]),  # cut where the second dog stands in front
        ("dog's tail", [8, 4, 12, 6]),
    ]
    assert boxes_of(dataset, 1) == []


def test_parts_of_two_objects_are_two_boxes(tmp_path: Path) -> None:
    dogs = [
        whole("dog", region(rows, slice(0, 30)), head=region(rows, slice(0, 4)))
        for rows in (slice(0, 5), slice(10, 15))
    ]
    dataset = open_dataset("pascal-part-mat", write_voc2010(tmp_path / "v", train={"a": dogs}), "train")
    assert boxes_of(dataset) == [("dog's head", [0, 0, 4, 5]), ("dog's head", [0, 10, 4, 15])]


def test_a_part_that_is_hidden_altogether_has_no_box(tmp_path: Path) -> None:
    dog = whole("dog", region(slice(0, 8), slice(0, 8)), head=region(slice(0, 3), slice(0, 3)))
    table = whole("table", region(slice(0, 10), slice(0, 10)))
    dataset = open_dataset("pascal-part-mat", write_voc2010(tmp_path / "v", train={"a": [dog, table]}), "train")
    assert boxes_of(dataset) == [] and dataset.truth(0).rles == ()


@given(seed=st.integers(0, 10**6), objects=st.integers(0, 4))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truth_is_what_painting_in_the_published_order_leaves(tmp_path: Path, seed: int, objects: int) -> None:
    """Pixel by pixel: the last object that covers a pixel owns it, and of its parts there the last one."""
    generator = np.random.default_rng(seed)

    def mask() -> np.ndarray:
        y, x = generator.integers(0, 15), generator.integers(0, 25)
        return region(slice(y, y + generator.integers(2, 12)), slice(x, x + generator.integers(2, 20)))

    raws = {"dog": ["head", "leye", "muzzle", "neck", "tail"], "car": ["wheel_1", "wheel_2", "door_1", "roofside"]}
    scene = []
    for _ in range(objects):
        name = str(generator.choice([*raws]))
        own = mask()
        chosen = generator.permutation(raws[name])[: generator.integers(0, 5)]
        scene.append(whole(name, own, **{str(raw): own & mask() for raw in chosen}))
    expected = np.full(SIZE, len(VOCABULARY))
    owner = np.zeros(SIZE, int)
    for y, x in np.ndindex(*SIZE):
        covering = [(number, one) for number, one in enumerate(scene, 1) if one["mask"][y, x]]
        if not covering:
            continue
        owner[y, x], one = covering[-1]
        parts = one["parts"].ravel() if one["parts"].size else []
        names = [str(part["part_name"]) for part in parts if part["mask"][y, x]]
        if names:
            merged = merge_table("pascal_part_60").part(one["class"], names[-1])
            expected[y, x] = VOCABULARY.index(f"{one['class']}'s {merged}")

    dataset = open_dataset("pascal-part-mat", write_voc2010(tmp_path / "v", train={"a": scene}), "train")
    truth = dataset.truth(0)
    assert np.array_equal(truth.to_label_map(len(VOCABULARY)), expected)
    assert truth.masks().sum(0).max(initial=0) <= 1, "no two masks share a pixel"
    shown = [(number, label) for number in range(1, objects + 1) for label in np.unique(expected[owner == number])]
    assert len(truth) == sum(label < len(VOCABULARY) for _, label in shown)
    boxes = dataset[0].boxes
    assert np.array_equal(boxes.labels, truth.labels)
    for mask_, box in zip(truth.masks(), boxes.xyxy, strict=True):
        rows, columns = np.nonzero(mask_)
        assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_converted_annotations_are_the_same_dataset(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    before = {path: path.read_bytes() for path in voc.rglob("*") if path.is_file()}
    for split in ("train", "val"):
        assert main(["data", "convert", str(voc), str(out), "--split", split]) == DONE
        assert f"2 {split} images as pascal-part-60" in capsys.readouterr().out
        raw, converted = (open_dataset(kind, root, split) for kind, root in
                          (("pascal-part-mat", voc), ("pascal-part-60", out)))  # fmt: skip
        assert (converted.name, converted.vocabulary) == (raw.name, raw.vocabulary)
        assert [sample.path.name for sample in converted] == [sample.path.name for sample in raw]
        for index in range(len(raw)):
            assert boxes_of(converted, index) == boxes_of(raw, index)
            assert np.array_equal(converted.truth(index).masks(), raw.truth(index).masks())
            assert len(converted.instances(index)) == len(raw.instances(index))
        assert converted.problems == () and check("pascal-part-60", out, split, workers=1).problems == ()
    assert before == {path: path.read_bytes() for path in voc.rglob("*") if path.is_file()}
    assert len(open_dataset("coco", out, "val")) == 2, "any COCO reader will do"
    written = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    main(["data", "convert", str(voc), str(out), "--split", "val"])
    assert written == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_the_other_layout_has_a_command_too(voc: Path, tmp_path: Path) -> None:
    stems = tmp_path / "mine.txt"
    stems.write_text("c\n")
    words = ["--layout", "pascal-part-116", "--split", "val", "--image_set", str(stems)]
    assert main(["data", "convert", str(voc), str(tmp_path / "out"), *words]) == DONE
    dataset = open_dataset("pascal-part-116", tmp_path / "out", "val")
    assert (len(dataset), (dataset.label_map(0) == dataset.vocabulary.index("dog's tail")).sum()) == (1, 8)


def test_one_bad_file_is_one_line_and_exit_code_3(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (voc / "Annotations_Part/b.mat").write_bytes(b"nothing")
    (voc / "ImageSets/Main/train.txt").write_text("b\na\ngone\nc\n../x\n")
    savemat(voc / "Annotations_Part/c.mat", {"anno": {"imname": "c", "objects": np.zeros((1, 1), [("class", object)])}})
    dataset = open_dataset("pascal-part-mat", voc, "train")
    assert [sample.image_id for sample in dataset] == ["a"]
    assert sorted(problem.check for problem in dataset.problems) == [
        "annotation-unreadable", "annotation-unreadable", "missing-image", "path-outside",
    ]  # fmt: skip
    for layout in ("pascal-part-60", "pascal-part-116"):
        words = ["data", "convert", str(voc), str(tmp_path / layout), "--layout", layout]
        assert main(words) == DONE_WITH_SKIPS
        assert "b.mat" in capsys.readouterr().out


def test_masks_of_another_size_and_unknown_names(tmp_path: Path) -> None:
    small = {**whole("dog", np.ones((4, 4), np.uint8)), "parts": np.zeros((0, 0))}
    strange = whole("cat", region(slice(0, 9), slice(0, 9)), muzzle=region(slice(0, 2), slice(0, 2)))
    root = write_voc2010(tmp_path / "v", train={"a": [small], "b": [strange]})
    problems = {problem.check: problem for problem in open_dataset("pascal-part-mat", root, "train").problems}
    assert "4 x 4 but its image is 20 x 30" in problems["annotation-unreadable"].message
    assert "'muzzle' of a cat (1)" in problems["unknown-part"].message


def test_data_check_finds_leaks_and_crowded_images(voc: Path) -> None:
    assert check("pascal-part-mat", voc, "train", workers=1).problems == ()
    crowded = check("pascal-part-mat", voc, "train", workers=1, queries=3)
    assert (crowded.over_queries, crowded.counts) == (1, {"more-parts-than-queries": 1})
    (voc / "ImageSets/Main/val.txt").write_text("b\n")
    assert check("pascal-part-mat", voc, "train", workers=1).counts == {"split-leak": 1}


def test_the_content_hash_follows_the_annotations(voc: Path) -> None:
    before = check("pascal-part-mat", voc, "val", workers=1).content_hash
    dog = whole("dog", region(slice(0, 9), slice(0, 9)), tail=region(slice(0, 2), slice(0, 9)))
    write_voc2010(voc, val={"c": [dog], "d": []})
    assert check("pascal-part-mat", voc, "val", workers=1).content_hash != before


def test_folders_and_files_that_are_missing(voc: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(UserError, match="no image set 'test'"):
        open_dataset("pascal-part-mat", voc, "test")
    (voc / "Annotations_Part").rename(tmp_path / "parts")
    with pytest.raises(UserError, match="no folder .*Annotations_Part"):
        open_dataset("pascal-part-mat", voc, "train")
    assert len(open_dataset("pascal-part-mat", voc, "train", annotations=tmp_path / "parts")) == 2
    words = ["data", "convert", str(voc), str(tmp_path / "out"), "--annotations", str(tmp_path / "parts")]
    assert main([*words, "--image_set", str(tmp_path / "no.txt")]) == WRONG_USE
    assert "no file" in capsys.readouterr().err


def test_a_file_of_another_merge_table_is_refused(voc: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    main(["data", "convert", str(voc), str(out)])
    document = json.loads((out / "annotations/train.json").read_text())
    document["categories"][3]["name"] = "aeroplane's undercarriage"
    (out / "annotations/train.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="not those of the merge table"):
        open_dataset("pascal-part-60", out, "train")
