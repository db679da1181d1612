"""Automatic masks on disk: made once per image, shared by all runs, looked up by what the pixels are.

    <root>/masks/<segmenter>-<id>/
        settings.json             segmenter and settings that made them
        files.json                which pixels an image file holds (a memory, may be deleted)
        <key>.json                masks of one image, COCO run-length encoded; key: SHA-256 of its pixels

Keyed by pixels, not by file, so that post-processing, which sees a photograph as a viewer would turn it, finds the
masks of the same picture and never those of another rotation. Files are whole or absent; a damaged one is made again.
Memory: one image and what :func:`~weakly.foundation.automatic_masks.generate_masks` needs for it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.files import write_json
from weakly.foundation.automatic_masks import AutomaticMasks, generate_masks
from weakly.foundation.image_keys import KEY_DIGITS, ImageKeys
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.foundation.promptable import PromptableSegmenter

VERSION = 1
"""Raise it when the procedure changes its masks."""

MEMORY_KNOBS = ("prompts_per_batch", "crops_per_batch")
"""Settings that change memory and speed, not masks (beyond rounding)."""

SAVE_EVERY = 50
"""Images after which the memory of files is written."""


@dataclass(frozen=True)
class MaskReport:
    """What :meth:`MaskStore.build` found.

    Attributes:
        counts: masks per path, in order; None where the image cannot be read.
        skipped: {path: why it has no masks}, one sentence each.
        made: distinct images whose masks this call made.
    """

    counts: tuple[int | None, ...]
    skipped: dict[Path, str]
    made: int


class MaskStore:
    """Automatic masks of one segmenter under one setting.

    Several processes may use one store at once: at worst they make the same file twice.

    Attributes:
        identity: hex digest of all that decides the masks of an image.
        folder: where they lie.

    Args:
        root: folder of all stores, shared between runs.
        segmenter: frozen; makes what is missing.
        settings: of the masks.
    """

    def __init__(self, root: Path, segmenter: PromptableSegmenter, settings: AutomaticMaskSettings) -> None:
        self._segmenter, self._settings = segmenter, settings
        told = {key: value for key, value in asdict(settings).items() if key not in MEMORY_KNOBS}
        content = {"version": VERSION, "segmenter": segmenter.fingerprint, "settings": told}
        self.identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9]+", "-", segmenter.name).strip("-").lower()[:40] or "segmenter"
        self.folder = root / "masks" / f"{name}-{self.identity[:12]}"
        self._images = ImageKeys(root / "image-keys.json")
        self._description = {"name": segmenter.name, **content}
        self._made = 0

    def build(self, paths: Sequence[Path], progress: Callable[[int, int], None] | None = None) -> MaskReport:
        """Make the masks that are missing; every distinct picture once. Each is on disk when the next one begins.

        Args:
            paths: image files.
            progress: called with (images done, images in all), at the start and after every image.
        """
        tell = progress or (lambda _done, _total: None)
        counts: list[int | None] = []
        skipped: dict[Path, str] = {}
        before = self._made
        tell(0, len(paths))
        try:
            for done, path in enumerate(paths, 1):
                try:
                    counts.append(len(self.of_file(path)))
                except UserError as error:
                    counts.append(None)
                    skipped[path] = str(error)
                if done % SAVE_EVERY == 0:
                    self._save()
                tell(done, len(paths))
        finally:
            self._save()
        return MaskReport(tuple(counts), skipped, self._made - before)

    def of_file(self, path: Path) -> AutomaticMasks:
        """Masks of an image file, stored or made now.

        Raises:
            UserError: the file cannot be read.
        """
        try:
            file_key, _ = self._images.key(path)
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror or error}); restore the file or drop its record."
            ) from error
        known = self._files.get(file_key)
        stored = None if known is None else self._read(known)
        if stored is not None:
            return stored
        image = read_image(path)
        self._files[file_key] = pixel_key(image)
        return self.of(image)

    def of(self, image: NDArray[np.uint8]) -> AutomaticMasks:
        """Masks of a (H, W, 3) uint8 RGB image, stored or made now."""
        key = pixel_key(image)
        stored = self._read(key)
        if stored is not None:
            return stored
        masks = generate_masks(self._segmenter, image, self._settings)
        if not (self.folder / "settings.json").is_file():
            write_json(self.folder / "settings.json", self._description)
        write_json(self.folder / f"{key}.json", masks.to_dict(), indent=None)
        self._made += 1
        return masks

    @cached_property
    def _files(self) -> dict[str, str]:
        """{key of a file's bytes: key of its pixels}."""
        try:
            files = json.loads((self.folder / "files.json").read_bytes())
        except (OSError, ValueError):
            return {}
        return {str(file): str(pixels) for file, pixels in files.items()} if isinstance(files, dict) else {}

    def _save(self) -> None:
        self._images.save()
        write_json(self.folder / "files.json", self._files, indent=None)

    def _read(self, key: str) -> AutomaticMasks | None:
        """Stored masks; None where there are none or the file is damaged."""
        try:
            return AutomaticMasks.from_dict(json.loads((self.folder / f"{key}.json").read_bytes()))
        except (OSError, ValueError, KeyError, TypeError):
            return None


def pixel_key(image: NDArray[np.uint8]) -> str:
    """Hex digest of a (H, W, 3) uint8 image: its size and its pixels."""
    digest = hashlib.sha256(str(image.shape).encode())
    digest.update(np.ascontiguousarray(image))
    return digest.hexdigest()[:KEY_DIGITS]
