"""Tags as people keep them: a CSV beside images, and folders per class."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.class_names import hint
from weakly.data.dataset import Dataset
from weakly.data.tags import numbered_vocabulary, read_class_folders, read_class_list, read_tag_csv
from weakly.errors import UserError

Save = Callable[..., Path]
SIZE = (20, 30)


@pytest.fixture
def root(tmp_path: Path, save_image: Save) -> Path:
    for name in ("a.jpg", "b.png", "trip/c.jpg"):
        save_image(tmp_path / "images" / name)
    return tmp_path


def tags(dataset: Dataset) -> dict[str, set[str]]:
    names = dataset.vocabulary.names
    return {str(s.image_id): {names[i] for i in s.tags.labels} for s in dataset if s.tags is not None}


def from_csv(root: Path, text: str, *, split: str = "train") -> Dataset:
    (root / f"{split}.csv").write_text(text, encoding="utf-8")
    return open_dataset("tags", root, split)


def checks(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(p.check, p.severity, p.index) for p in dataset.problems]


class TestCsv:
    @pytest.mark.parametrize("header", ["", "file,tags\n", "\ufeffFile, Tags\n"])
    @pytest.mark.parametrize("separator", [";", "|", " ; "])
    def test_a_row_is_a_file_and_its_tags(self, root: Path, header: str, separator: str) -> None:
        dataset = from_csv(root, f"{header}a.jpg,dog{separator}cat\nb.png,cat\n\n")
        assert dataset.vocabulary.names == ("cat", "dog")
        assert tags(dataset) == {"a": {"cat", "dog"}, "b": {"cat"}}
        assert [s.size for s in dataset] == [SIZE] * 2
        assert dataset.problems == ()
        assert not dataset.has_truth()

    def test_the_class_list_states_the_order(self, root: Path) -> None:
        (root / "classes.txt").write_text("zebra\n\ncat\n")
        dataset = from_csv(root, "a.jpg,cat\n")
        assert dataset.vocabulary.names == ("zebra", "cat")
        assert dataset[0].tags.labels.tolist() == [1]

    def test_an_unknown_name_is_a_problem_with_a_suggestion(self, root: Path) -> None:
        (root / "classes.txt").write_text("zebra\ncat\n")
        dataset = from_csv(root, "a.jpg,Zebras;cat\nb.png,quince\n")
        assert checks(dataset) == [
            ("unknown-class", "error", "line 1"),
            ("unknown-class", "error", "line 2"),
            ("no-tag", "warning", "image id b"),
        ]
        assert "no class 'Zebras'; did you mean 'zebra'?" in dataset.problems[0].message
        assert dataset.problems[1].message == "There is no class 'quince'."
        assert tags(dataset) == {"a": {"cat"}, "b": set()}

    def test_no_tag_is_kept_with_a_warning(self, root: Path) -> None:
        dataset = from_csv(root, "a.jpg,cat\nb.png\ntrip/c.jpg,\n")
        assert tags(dataset) == {"a": {"cat"}, "b": set(), "trip/c": set()}
        assert [p.check for p in dataset.problems] == ["no-tag", "no-tag"]

    def test_repeated_rows_are_one_record_with_all_tags(self, root: Path) -> None:
        dataset = from_csv(root, "a.jpg,cat\ntrip/../a.jpg,dog\na.jpg,owl\n")
        assert tags(dataset) == {"a": {"cat", "dog", "owl"}}
        assert checks(dataset) == [("duplicate-row", "warning", "line 2"), ("duplicate-row", "warning", "line 3")]

    def test_missing_damaged_and_outside_files_cost_their_row(self, root: Path) -> None:
        (root / "images/b.png").write_bytes(b"no image")
        Image.new("RGB", (3, 3)).save(root / "secret.png")
        dataset = from_csv(root, "gone.jpg,cat\nb.png,cat\n../secret.png,cat\n/etc/hosts,cat\na.jpg,cat\n")
        assert list(tags(dataset)) == ["a"]
        assert checks(dataset) == [
            ("path-outside", "error", "line 3"),
            ("path-outside", "error", "line 4"),
            ("missing-image", "error", "line 1 (gone.jpg)"),
            ("unreadable-image", "error", "line 2 (b.png)"),
        ]
        assert all(p.remedy for p in dataset.problems)

    def test_malformed_rows_cost_themselves(self, root: Path) -> None:
        dataset = from_csv(root, f"a.jpg,cat,dog\n,cat\nb.png,{'x' * 200_000}\ntrip/c.jpg,cat\n")
        assert list(tags(dataset)) == ["trip/c"]
        assert [p.check for p in dataset.problems] == ["malformed-row"] * 3

    def test_ids_are_unique(self, root: Path, save_image: Save) -> None:
        save_image(root / "images/a.png")
        assert list(tags(from_csv(root, "a.jpg,cat\na.png,cat\n"))) == ["a", "a.png"]

    def test_the_test_split_has_no_tags(self, root: Path) -> None:
        dataset = from_csv(root, "a.jpg,cat\n", split="test")
        assert dataset[0].tags is None
        assert dataset.problems == ()

    def test_nothing_to_read_is_an_error(self, root: Path) -> None:
        with pytest.raises(UserError, match="no file .*train.csv"):
            open_dataset("tags", root, "train")
        with pytest.raises(UserError, match="No class is named"):
            from_csv(root, "a.jpg\n")
        (root / "train.csv").write_bytes(b"a.jpg,\xff\xfe")
        with pytest.raises(UserError, match="not text in UTF-8"):
            open_dataset("tags", root, "train")
        with pytest.raises(UserError, match="no image folder"):
            read_tag_csv(root / "train.csv", root / "nowhere")

    def test_the_check_counts_tags(self, root: Path) -> None:
        (root / "train.csv").write_text("a.jpg,cat;dog\nb.png,cat\ntrip/c.jpg\n")
        report = check("tags", root, "train", workers=1)
        assert (report.images, report.annotations, report.unannotated) == (3, 3, 1)
        assert [(c.name, c.images) for c in report.categories] == [("cat", 2), ("dog", 1)]
        assert report.counts == {"no-tag": 1}


class TestLabelMaps:
    """Optional truth: 0 background, k class k, 255 void."""

    @pytest.fixture
    def labelled(self, root: Path) -> Path:
        (root / "classes.txt").write_text("cat\ndog\n")
        (root / "label_maps/trip").mkdir(parents=True)
        label_map = np.zeros(SIZE, np.uint8)
        label_map[:5], label_map[5:7] = 2, 255
        Image.fromarray(label_map).save(root / "label_maps/trip/c.png")
        Image.fromarray(label_map[:4]).save(root / "label_maps/a.png")
        return root

    def test_they_are_truth_for_evaluation(self, labelled: Path) -> None:
        dataset = from_csv(labelled, "trip/c.jpg,cat\n")
        assert np.unique(dataset.truth(0).label_map).tolist() == [1, 2, 255]
        assert dataset.vocabulary.background == 2
        assert tags(dataset) == {"trip/c": {"cat"}}

    def test_missing_and_unfitting_ones_are_warnings(self, labelled: Path) -> None:
        dataset = from_csv(labelled, "a.jpg,cat\nb.png,dog\n")
        assert checks(dataset) == [
            ("label-map-size", "warning", "line 1 (a.jpg)"),
            ("label-map-missing", "warning", "line 2 (b.png)"),
        ]
        assert not dataset.has_truth()

    def test_they_mean_nothing_without_a_class_list(self, labelled: Path) -> None:
        (labelled / "classes.txt").unlink()
        with pytest.raises(UserError, match=r"write classes.txt"):
            from_csv(labelled, "a.jpg,cat\n")


class TestClassFolders:
    @pytest.fixture
    def folders(self, tmp_path: Path, save_image: Save) -> Path:
        for name in ("dog/1.jpg", "dog/more/2.jpg", "cat/1.jpg"):
            save_image(tmp_path / "train" / name)
        return tmp_path

    def test_the_folder_is_the_tag(self, folders: Path) -> None:
        dataset = open_dataset("class-folders", folders, "train")
        assert dataset.vocabulary.names == ("cat", "dog")
        assert tags(dataset) == {"cat/1": {"cat"}, "dog/1": {"dog"}, "dog/more/2": {"dog"}}
        assert dataset.problems == ()

    def test_a_link_gives_an_image_both_tags(self, folders: Path) -> None:
        (folders / "train/cat/too.jpg").symlink_to(folders / "train/dog/1.jpg")
        assert {"cat", "dog"} in tags(open_dataset("class-folders", folders, "train")).values()

    def test_links_that_lead_outside_are_refused(self, folders: Path, save_image: Save) -> None:
        save_image(folders / "secret.jpg")
        (folders / "train/cat/x.jpg").symlink_to(folders / "secret.jpg")
        assert checks(open_dataset("class-folders", folders, "train")) == [("path-outside", "error", "cat/x.jpg")]

    def test_unknown_and_empty_folders_are_problems(self, folders: Path) -> None:
        (folders / "train/owl").mkdir()
        (folders / "classes.txt").write_text("dogs\ncat\nowl\n")
        dataset = open_dataset("class-folders", folders, "train")
        assert [(p.check, Path(p.file).name) for p in dataset.problems] == [
            ("unknown-class", "dog"),
            ("empty-class", "owl"),
        ]
        assert "did you mean 'dogs'" in dataset.problems[0].message
        assert dataset.vocabulary.names == ("dogs", "cat", "owl")
        assert tags(dataset) == {"cat/1": {"cat"}}

    def test_label_maps_mirror_the_folders(self, folders: Path) -> None:
        (folders / "classes.txt").write_text("cat\ndog\n")
        (folders / "label_maps/train/cat").mkdir(parents=True)
        Image.fromarray(np.ones(SIZE, np.uint8)).save(folders / "label_maps/train/cat/1.png")
        dataset = open_dataset("class-folders", folders, "train")
        assert (dataset.truth(0).label_map == 0).all()
        assert [p.check for p in dataset.problems] == ["label-map-missing"] * 2

    def test_same_stems_in_two_classes_are_no_leak(self, folders: Path) -> None:
        assert check("class-folders", folders, "train", workers=1).problems == ()

    def test_no_folder_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no folder"):
            read_class_folders(tmp_path / "nowhere")
        with pytest.raises(UserError, match="has no class folder"):
            read_class_folders(tmp_path)


def test_class_lists_are_names_alone(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    for text, message in (("", "is empty"), ("__background__\ncat\n", "begins with '__background__'")):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_class_list(path)
    path.write_text("cat\ncat\n")
    with pytest.raises(UserError, match="declared twice"):
        numbered_vocabulary(read_class_list(path))


@given(st.lists(st.text(min_size=1), unique_by=str.casefold, min_size=1, max_size=5), st.data())
def test_a_name_in_other_case_is_always_suggested(names: list[str], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(names))
    assert hint(name.casefold(), names) == f"; did you mean {name!r}?"
