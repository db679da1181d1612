"""Writing files so that a kill or a full disk never leaves half of one behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from weakly.errors import WeaklyError

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write ``content`` beside ``path``, flush it to disk, then move it into place.

    Raises:
        WeaklyError: the disk is full or the folder cannot be written; ``path`` is as it was before.
    """
    data = content.encode() if isinstance(content, str) else content
    with one_sentence_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as JSON, atomically; keys keep their order."""
    write_atomic(path, json.dumps(value, indent=indent, ensure_ascii=False) + "\n")


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a whole folder, then move it to ``path`` in place of the one that was there."""
    with one_sentence_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            fresh.chmod(0o777 & ~_umask())
            fill(fresh)
            if path.exists():
                old = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
                path.replace(old)
                fresh.replace(path)
                shutil.rmtree(old)
            else:
                fresh.replace(path)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders a killed process left directly in ``folder``."""
    for leftover in [*folder.glob(".*.tmp"), *folder.glob(".*.old")]:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One process at a time; another waits. The lock ends with the process, however that ends."""
    with one_sentence_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def one_sentence_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or a closed folder into one sentence that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise WeaklyError(
                f"There is no room left to write {path}: nothing half-written was kept; free some space and run the "
                "same command again."
            ) from error
        raise WeaklyError(
            f"{path} cannot be written ({error.strerror or error}); check the folder and its permissions."
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
