"""Which weights a name means: ``bundled`` is another model once this repository has trained it longer."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path

BUNDLED_SAM = Path(__file__).parent / "bundled" / "sam"

DIGITS = 12

_BUNDLED = re.compile(r"bundled(?:-(\d+))?")


def is_bundled(segmenter: str) -> bool:
    """Whether a name means the bundled SAM, at its own side (``"bundled"``) or another (``"bundled-384"``)."""
    return _BUNDLED.fullmatch(segmenter) is not None


def bundled_side(segmenter: str) -> int | None:
    """The side in pixels that a name of the bundled SAM asks for; None: the model's own."""
    found = _BUNDLED.fullmatch(segmenter)
    return None if found is None or found[1] is None else int(found[1])


def segmenter_path(segmenter: str) -> Path:
    """Where a segmenter's files are, if its name is no hub id: the package's folder or the path that the name is."""
    return BUNDLED_SAM if is_bundled(segmenter) else Path(segmenter)


def segmenter_weights(segmenter: str) -> str | None:
    """First 12 hex digits of the SHA-256 of a segmenter's file of weights, as ``sha256sum`` and its model card say.

    Args:
        segmenter: ``"bundled"``, ``"bundled-384"``, a folder, a file, or a hub id.

    Returns:
        None where no single local file holds the weights, e.g. of a hub id.
    """
    path = segmenter_path(segmenter)
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        return None
    status = file.stat()
    return _digest(file, status.st_size, status.st_mtime_ns)[:DIGITS]


@lru_cache
def _digest(file: Path, size: int, time: int) -> str:  # noqa: ARG001 - a file that changed is another key
    """Every record of an evaluation asks, and a full-size SAM is gigabytes."""
    with file.open("rb") as weights:
        return hashlib.file_digest(weights, "sha256").hexdigest()
