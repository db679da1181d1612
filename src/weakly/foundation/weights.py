"""Which weights a name means: ``bundled`` is another model once this repository has trained it longer."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

BUNDLED_SAM = Path(__file__).parent / "bundled" / "sam"

DIGITS = 12


def segmenter_weights(segmenter: str) -> str | None:
    """First 12 hex digits of the SHA-256 of a segmenter's file of weights, as ``sha256sum`` and its model card say.

    Args:
        segmenter: ``"bundled"``, a folder, a file, or a hub id.

    Returns:
        None where no single local file holds the weights, e.g. of a hub id.
    """
    path = BUNDLED_SAM if segmenter == "bundled" else Path(segmenter)
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
