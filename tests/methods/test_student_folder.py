"""Student folders: what comes back, what the card says, and how damage is named."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from weakly.errors import UserError
from weakly.methods.student_folder import (
    ModelCard,
    StudentKind,
    from_plain,
    load_student,
    load_weights,
    save_student,
)
from weakly.vocabulary import Category, Vocabulary


@dataclass(frozen=True)
class Section:
    rate: float = 0.125
    sides: tuple[int, ...] = (32, 64)


@dataclass(frozen=True)
class Settings:
    teacher: str = "bundled"
    section: Section = field(default_factory=Section)
    other: Section | None = None

    def __post_init__(self) -> None:
        if not self.teacher:
            raise UserError("settings.teacher is empty; name a teacher.")


class Student(nn.Module):
    """Two layers that share their bias."""

    def __init__(self, width: int = 3) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, width), nn.Linear(2, width)
        self.second.bias = self.first.bias


KIND = StudentKind("tiny", "Tiny-SEG", "Tiny Students of Great Teachers, 2030", Settings)
SETTINGS = Settings(other=Section(0.5, (7,)))
VOCABULARY = Vocabulary((Category("Head", "Dog", 7), Category("Tail", "Dog", 9), Category("Wing")))
CARD = ModelCard("toy-segmentation", ("A toy.", "**Not for use.**"), {"data": {"name": "a|b"}, "mIoU, val": 0.51239})


def save(folder: Path, student: Student, kind: StudentKind[Settings] = KIND) -> Path:
    save_student(folder, kind, student, SETTINGS, VOCABULARY, CARD, {"width": student.first.out_features})
    return folder


def build(folder: Path) -> Student:
    return load_student(folder, KIND).build(lambda config: Student(config["width"]))


@pytest.fixture
def student() -> Student:
    torch.manual_seed(0)
    return Student()


@pytest.fixture
def folder(student: Student, tmp_path: Path) -> Path:
    return save(tmp_path / "student", student)


def test_everything_comes_back_and_no_random_number_is_drawn(folder: Path, student: Student) -> None:
    before = torch.random.get_rng_state()
    saved = load_student(folder, KIND)
    back = saved.build(lambda config: Student(config["width"]))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert saved.settings == SETTINGS
    assert saved.vocabulary == VOCABULARY
    assert saved.read(lambda config: config["width"]) == 3
    assert not back.training
    assert all(torch.equal(back.state_dict()[name], value) for name, value in student.state_dict().items())


def test_three_files_without_pickle_and_the_same_student_is_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["README.md", "config.json", "student.safetensors"]
    again = save(tmp_path / "again", build(folder))
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in files)


def test_the_format_on_disk(folder: Path, student: Student) -> None:
    """Folders of earlier versions of the package hold these keys, in any order."""
    weights = (folder / "student.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    assert config.pop("versions").keys() == {"weakly", "torch", "torchvision", "transformers"}
    assert config == {
        "format": "weakly-tiny-1",
        "method": "tiny",
        "width": 3,
        "settings": {
            "teacher": "bundled",
            "section": {"rate": 0.125, "sides": [32, 64]},
            "other": {"rate": 0.5, "sides": [7]},
        },
        "vocabulary": VOCABULARY.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
    }
    with safetensors.safe_open(folder / "student.safetensors", "pt") as file:
        assert file.metadata() == {"format": "weakly-tiny-1"}
        assert set(file.keys()) == set(student.state_dict())


def test_the_card_says_what_the_student_is(folder: Path) -> None:
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: weakly\npipeline_tag: image-segmentation\n")
    for statement in (
        "tags: [weakly-supervised, toy-segmentation, tiny-seg]",
        "# Tiny-SEG student\n\nA toy.\n\n**Not for use.**\n\nCategories (3): Head, Tail, Wing.\n",
        "| data.name | a\\|b |",
        "| mIoU, val | 0.5124 |",
        "| parameters | 15 |",
        "| settings.other.sides | (7,) |",
        "Method: Tiny Students of Great Teachers, 2030.",
    ):
        assert statement in card


def test_a_card_counts_the_categories_it_does_not_list(student: Student, tmp_path: Path) -> None:
    many = Vocabulary.from_names(f"c{i}" for i in range(63))
    save_student(tmp_path, KIND, student, SETTINGS, many, CARD, {})
    assert "Categories (63): c0, c1" in (tmp_path / "README.md").read_text()
    assert "c58, c59 and 3 more." in (tmp_path / "README.md").read_text()


def change_config(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe"), r"config\.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "describes no Tiny-SEG student"),
        (lambda folder: (folder / "student.safetensors").unlink(), r"student\.safetensors cannot be read"),
        (lambda folder: (folder / "student.safetensors").write_bytes(b"x"), r"student\.safetensors cannot be read"),
        (lambda folder: save_other_weights(folder), "does not belong to the config.json"),
        (change_config(lambda config: config.update(format="else")), r"no Tiny-SEG student \(weakly-tiny-1\)"),
        (change_config(lambda config: config.update(weights_sha256="0")), "does not belong to the config.json"),
        (change_config(lambda config: config["settings"].update(magic=1)), "unknown one.*magic"),
        (change_config(lambda config: config["settings"]["section"].update(magic=1)), "unknown one.*magic"),
        (change_config(lambda config: config["settings"].update(teacher="")), "teacher is empty"),
        (change_config(lambda config: config.update(settings=None)), "lacks a key"),
        (change_config(lambda config: config.pop("vocabulary")), "lacks a key.*vocabulary"),
        (change_config(lambda config: config.update(vocabulary=["Head"])), "lacks a key"),
        (change_config(lambda config: config.pop("width")), "lacks a key.*width"),
        (change_config(lambda config: config.update(width="three")), "lacks a key"),
        (change_config(lambda config: config.update(width=4)), "weights do not fit the student: size mismatch"),
    ],
)
def test_damage_is_one_sentence(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(folder)
    with pytest.raises(UserError, match=message) as found:
        build(folder)
    assert "\n" not in str(found.value)


def save_other_weights(folder: Path) -> None:
    other = save(folder.parent / "other", Student())
    (folder / "student.safetensors").write_bytes((other / "student.safetensors").read_bytes())


def test_another_version_and_another_method_are_refused(folder: Path) -> None:
    for kind in (
        StudentKind("tiny", "Tiny-SEG", KIND.paper, Settings, version=2),
        StudentKind("huge", "Huge-SEG", "-", Settings),
    ):
        with pytest.raises(UserError, match=f"describes no {kind.title} student .{kind.format}"):
            load_student(folder, kind)


def test_missing_and_unknown_weights_are_named(student: Student) -> None:
    state = dict(student.state_dict())
    with pytest.raises(UserError, match=r"do not fit the student: .*Missing.*first\.weight"):
        load_weights(Student(), {name: value for name, value in state.items() if name != "first.weight"})
    with pytest.raises(UserError, match=r"do not fit the student: .*Unexpected.*third"):
        load_weights(Student(), {**state, "third": torch.zeros(1)})


@given(
    st.builds(
        Settings,
        st.text(min_size=1),
        st.builds(Section, st.floats(allow_nan=False), st.lists(st.integers()).map(tuple)),
        st.none() | st.builds(Section),
    )
)
def test_settings_come_back_from_json(settings: Settings) -> None:
    assert from_plain(Settings, json.loads(json.dumps(asdict(settings)))) == settings
