"""The files of a feature store: whole shards, written atomically, and claims on the work still to do.

A shard is one safetensors file: the coded features of a few images, and in its header the images' keys and a SHA-256
over keys and tensors. It is written to a temporary file in the same folder, flushed to disk and renamed, so that a
shard is there whole or not at all. There is no index file: the index of a store is the union of its shards' headers.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import platform
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from weakly.foundation.feature_codec import Coded, Drift, FeatureDtype, Shape, layout

if sys.platform != "win32":
    import fcntl

VERSION = 1
SHARD_PATTERN = "shard-*.safetensors"
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_TEMPORARY = re.compile(r"\..+\.(?P<host>[0-9a-f]{8})\.(?P<pid>\d+)\.\d+\.tmp")


class DamagedShard(ValueError):  # noqa: N818 - a state of the file; the sentence is its message
    """A shard that cannot be used; the message says why."""


@dataclass(frozen=True, eq=False, slots=True)
class Shard:
    """One shard on disk.

    Attributes:
        path: the file.
        keys: image keys, one per row.
        digest: hex SHA-256 over keys and tensors, as the header states it.
        drift: what the coding changed when the features were computed.
        coded: the tensors, memory-mapped: rows are read from disk when they are selected.
    """

    path: Path
    keys: tuple[str, ...]
    digest: str
    drift: Drift
    coded: Coded


def write_atomic(target: Path, content: bytes) -> None:
    """Put ``content`` at ``target`` whole or not at all; on any failure the temporary file is removed.

    Raises:
        OSError: as the operating system says.
    """
    temporary = target.with_name(f".{target.name}.{_HOST}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the platform can."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse; the file itself is safe
            os.fsync(handle)
    finally:
        os.close(handle)


def remove_stale_temporaries(folder: Path) -> None:
    """Delete temporary files of processes of this machine that no longer live."""
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match["host"] == _HOST and not _alive(int(match["pid"])):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if sys.platform == "win32":  # signal 0 would end the process there
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def shard_id(keys: Sequence[str]) -> str:
    """Sixteen hex digits that name an ordered list of keys."""
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]


def write_shard(folder: Path, keys: Sequence[str], coded: Coded, drift: Drift) -> Path:
    """Write one shard atomically. The bytes depend on the arguments alone.

    Raises:
        OSError: the file could not be written; nothing of it is left.
    """
    header = {
        "version": VERSION,
        "keys": list(keys),
        "sha256": _digest(keys, coded),
        "drift": [drift.max_abs, drift.squared_error, drift.squared_norm],
    }
    # One metadata entry: the order in which safetensors writes several differs from run to run.
    content = save(coded, {"weakly": json.dumps(header)})
    path = folder / f"shard-{shard_id(keys)}.safetensors"
    write_atomic(path, content)
    return path


def read_shard(path: Path, dtype: FeatureDtype, shape: Shape) -> Shard:
    """Read a shard's header and map its tensors; no feature is read yet.

    Raises:
        DamagedShard: the file is cut short, is no shard, or holds other tensors than ``dtype`` and ``shape`` say.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header: dict[str, Any] = json.loads((file.metadata() or {})["weakly"])
            coded = {name: file.get_tensor(name) for name in sorted(file.keys())}
        version = header["version"]
        keys = tuple(map(str, header["keys"]))
        shard = Shard(path, keys, str(header["sha256"]), Drift(*map(float, header["drift"])), coded)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise DamagedShard(f"it cannot be read ({error})") from error
    if version != VERSION:
        raise DamagedShard(f"it has format version {version}, this program reads {VERSION}")
    found = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in coded.items()}
    if found != layout(dtype, shape, len(keys)):
        raise DamagedShard(f"its tensors are not {dtype} features of shape {shape} for {len(keys)} images")
    return shard


def check_shard(shard: Shard) -> None:
    """Read every byte of a shard and compare with its header.

    Raises:
        DamagedShard: a key or a feature is not what was written.
    """
    if _digest(shard.keys, shard.coded) != shard.digest:
        raise DamagedShard("its content does not match its SHA-256")


def _digest(keys: Sequence[str], coded: Coded) -> str:
    digest = hashlib.sha256(json.dumps(list(keys)).encode())
    for name in sorted(coded):
        digest.update(name.encode())
        digest.update(coded[name].contiguous().numpy().data)
    return digest.hexdigest()


class Claims:
    """Which process works on which chunk: one locked byte per chunk in one file, so that processes share the work.

    The operating system drops the locks of a process that ends in whatever way, so no claim can go stale. Claims only
    save work: where locks do not exist (Windows, some network disks, threads of one process) two workers may compute
    the same shard, and the second rename replaces it by the same content.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    @contextlib.contextmanager
    def claim(self, chunk: str, *, wait: bool) -> Iterator[bool]:
        """Hold ``chunk`` (a :func:`shard_id`); yields False if another process holds it and ``wait`` is off."""
        if sys.platform == "win32":
            yield True
            return
        start = int(chunk[:15], 16)  # below 2**60, a valid file offset
        try:
            fcntl.lockf(self._handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB), 1, start)
            locked = True
        except OSError as error:
            locked = False
            busy = error.errno in {errno.EACCES, errno.EAGAIN}  # else this disk has no locks
        if not locked:
            yield not busy
            return
        try:
            yield True
        finally:
            fcntl.lockf(self._handle, fcntl.LOCK_UN, 1, start)
