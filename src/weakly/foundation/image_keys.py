"""Which image a file holds: the SHA-256 of its bytes, remembered while the file does not change."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from weakly.foundation.feature_shards import write_atomic

KEY_DIGITS = 32
"""Hex digits of a key: 128 bits."""

Stamp: TypeAlias = tuple[int, int, int]
"""(bytes, modification time, change time) of a file; times in nanoseconds."""

# A file that changed so shortly before it was read could change again under the same time stamp.
_SETTLED_NS = 2_000_000_000


def stamp(path: Path) -> Stamp:
    """The stamp of a file.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


class ImageKeys:
    """Keys of image files, so that unchanged files are not read again.

    The memory is one JSON file that may be deleted, or lost to another process that saves at the same time: then
    files are hashed again.
    """

    def __init__(self, memory: Path) -> None:
        self._memory = memory
        self._known = _load(memory)
        self._new: dict[str, list[Any]] = {}

    def key(self, path: Path) -> tuple[str, Stamp]:
        """The key of a file's bytes, and the file's stamp from before they were read.

        Raises:
            OSError: the file cannot be read.
        """
        now = stamp(path)
        name = str(path.absolute())
        known = self._known.get(name)
        if isinstance(known, list) and known[:-1] == list(now):
            return str(known[-1]), now
        started = time.time_ns()
        with path.open("rb") as file:
            key = hashlib.file_digest(file, "sha256").hexdigest()[:KEY_DIGITS]
        if started - max(now[1:]) > _SETTLED_NS:
            self._known[name] = self._new[name] = [*now, key]
        return key, now

    def save(self) -> None:
        """Write what is new. A folder that cannot be written costs time on the next run, nothing else."""
        if not self._new:
            return
        files = _load(self._memory) | self._new
        with contextlib.suppress(OSError):
            write_atomic(self._memory, json.dumps(files).encode())
        self._new = {}


def image_keys(root: Path, paths: Sequence[Path]) -> list[str | None]:
    """Keys of the bytes of image files, remembered in ``root``; None where a file cannot be opened."""
    keys = ImageKeys(root / "image-keys.json")
    found: list[str | None] = []
    for path in paths:
        try:
            found.append(keys.key(path)[0])
        except OSError:
            found.append(None)
    keys.save()
    return found


def _load(memory: Path) -> dict[str, Any]:
    try:
        files = json.loads(memory.read_bytes())
    except (OSError, ValueError):
        return {}
    return files if isinstance(files, dict) else {}
