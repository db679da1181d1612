"""Files appear whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from weakly import files
from weakly.errors import WeaklyError
from weakly.files import remove_leftovers, write_atomic, write_folder, write_json


def test_content_replaces_the_old_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    write_atomic(path, "old")
    write_atomic(path, b"new")
    write_json(tmp_path / "value.json", {"name": "Möwe"})
    assert path.read_bytes() == b"new" and "Möwe" in (tmp_path / "value.json").read_text(encoding="utf-8")
    assert [entry.name for entry in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize(
    ("code", "phrase"), [(errno.ENOSPC, "There is no room left to write"), (errno.EACCES, "cannot be written")]
)
def test_failure_keeps_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, phrase: str
) -> None:
    path = tmp_path / "file.txt"
    write_atomic(path, "old")

    def fail(_: int) -> None:
        raise OSError(code, "the reason")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(WeaklyError, match=phrase) as caught:
        write_atomic(path, "new")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.txt"] and path.read_text() == "old"


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "student"
    write_folder(target, lambda folder: write_atomic(folder / "a", "1"))
    write_folder(target, lambda folder: write_atomic(folder / "b", "2"))
    assert [entry.name for entry in target.iterdir()] == ["b"]

    def half(folder: Path) -> None:
        write_atomic(folder / "c", "3")
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_folder(target, half)
    assert [entry.name for entry in target.iterdir()] == ["b"] and len(list(tmp_path.iterdir())) == 1


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".student.x.tmp").mkdir()
    (tmp_path / ".file.y.tmp").write_text("half")
    (tmp_path / ".student.z.old").mkdir()
    (tmp_path / ".hidden").write_text("mine")
    remove_leftovers(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [".hidden"]
