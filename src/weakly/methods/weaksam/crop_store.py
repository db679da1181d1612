"""Embeddings of crops on disk: made once per image and boxes, shared by all runs.

    <root>/crops/<clip>-<id>/
        settings.json                               what made them
        <image>-<boxes>[-mirrored].safetensors      of one image: (R, E) float16, in the order of its boxes

Files are whole or absent; a damaged one is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from weakly.foundation.clip import Clip
from weakly.methods.weaksam.stored_arrays import open_store, stored_arrays
from weakly.methods.weaksam.wsod_crops import CropSettings, embed_crops
from weakly.methods.weaksam.wsod_data import RoiView, mirror

VERSION = 1
"""Raise it when the procedure changes the embeddings."""

BOXES_DIGITS = 16
"""Hex digits of the boxes' digest in a file name: 64 bits, and an image has few files."""


Read = Callable[[], NDArray[np.uint8]]
Boxes = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class CropViews:
    """The views of an image as crops: upright and mirrored. Their size changes nothing, crops have their own.

    Attributes:
        embed: (R, E) embeddings of the crops, told whether they are mirrored.
        boxes: (R, 4) float32 in image pixels.
        size: (H, W) of the image.
    """

    embed: Callable[[bool], NDArray[np.floating]]
    boxes: NDArray[np.float32]
    size: tuple[int, int]

    def view(self, short: int, long: int, *, mirrored: bool) -> RoiView:  # noqa: ARG002 - see the class
        """The crops, with their boxes in pixels of the image."""
        embeddings = torch.from_numpy(self.embed(mirrored).astype(np.float32))
        boxes = torch.from_numpy(self.boxes)
        return RoiView(embeddings, mirror(boxes, self.size[1]) if mirrored else boxes, self.size)


class CropStore:
    """Crops of one CLIP under one setting.

    Several processes may use one store at once: at worst they make the same file twice.

    Attributes:
        identity: hex digest of all that decides the embeddings of an image with given boxes.
        folder: where they lie.

    Args:
        root: folder of all stores, shared between runs.
        clip: frozen; embeds what is missing.
        settings: of the crops.
    """

    def __init__(self, root: Path, clip: Clip, settings: CropSettings) -> None:
        self._clip, self._settings = clip, settings
        about = {"version": VERSION, "clip": clip.fingerprint, "settings": asdict(settings)}
        self.folder, self.identity = open_store(root / "crops", clip.name, about)

    def build(
        self,
        keys: Sequence[str],
        readers: Sequence[Read],
        boxes: Sequence[Boxes],
        *,
        mirrored: bool,
        progress: Callable[[int, int], None],
    ) -> None:
        """Store what is missing of n images, one after the other.

        Args:
            keys: of the files' bytes.
            readers: give (H, W, 3) uint8 RGB.
            boxes: (R, 4) in image pixels; an image without any is not opened.
            mirrored: the crops of the mirrored image as well.
            progress: called with (images done, images in all).
        """
        progress(0, len(keys))
        for done, (key, read, own) in enumerate(zip(keys, readers, boxes, strict=True), 1):
            if len(own):
                self.of_image(key, read, own)
            if len(own) and mirrored:
                self.of_image(key, read, own, mirrored=True)
            progress(done, len(keys))

    def views(
        self, keys: Sequence[str], readers: Sequence[Read], boxes: Sequence[Boxes], sizes: Sequence[tuple[int, int]]
    ) -> list[Callable[[], CropViews]]:
        """What opens n images as crops; of an image whose crops are not stored they are made when it is looked at.

        Args:
            keys: of the files' bytes.
            readers: give (H, W, 3) uint8 RGB.
            boxes: (R, 4) in image pixels, R > 0 of images that are opened.
            sizes: (H, W).
        """
        rows = zip(keys, readers, boxes, sizes, strict=True)
        return [partial(CropViews, partial(self.of_image, key, read, own), own, size) for key, read, own, size in rows]

    def of_image(self, key: str, read: Read, boxes: Boxes, mirrored: bool = False) -> NDArray[np.float16]:
        """(R, E) embeddings of an image's crops, stored or made now.

        Args:
            key: of the file's bytes.
            read: gives (H, W, 3) uint8 RGB; asked only where something is made.
            boxes: (R, 4) in image pixels, R > 0.
            mirrored: the crops of the image turned left to right.
        """

        def make() -> dict[str, NDArray[np.float16]]:
            made = embed_crops(self._clip, read(), boxes, self._settings, mirrored=mirrored)
            return {"embeddings": made.astype(np.float16)}

        digest = hashlib.sha256(np.ascontiguousarray(boxes, np.float32).tobytes()).hexdigest()[:BOXES_DIGITS]
        name = f"{key}-{digest}{'-mirrored' if mirrored else ''}.safetensors"
        return stored_arrays(self.folder / name, make)["embeddings"]
