"""Pseudo masks on disk (stage G): the segmenter's mask of every pseudo box, made once and kept in the run.

    <folder>/<image>-<id>.json    boxes, labels and run-length encoded masks

``image`` is the key of the file's bytes, ``id`` a digest of the boxes, the labels and the segmenter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from weakly.files import write_json
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.weaksam.pseudo_masks import decode_boxes
from weakly.methods.weaksam.targets import PseudoInstances
from weakly.segmentation import rle_from_coco, rle_to_json

DIGITS = 16
"""Hex digits of the digest in a file name: 64 bits."""


class PseudoMaskStore:
    """Masks of boxes by one segmenter.

    Args:
        folder: where they lie.
        segmenter: frozen.
        embedding: from the key of an image to its (1, C, h, w) embedding.
    """

    def __init__(self, folder: Path, segmenter: PromptableSegmenter, embedding: Callable[[str], Tensor]) -> None:
        self.folder, self._segmenter, self._embedding = folder, segmenter, embedding

    def of_image(
        self, key: str, size: tuple[int, int], boxes: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> PseudoInstances:
        """Instances of the boxes of one image, in their order; boxes without a mask are left out.

        Args:
            key: of the file's bytes.
            size: (height, width) of the image.
            boxes: (n, 4).
            labels: (n,).
        """
        about = [self._segmenter.fingerprint, list(size), boxes.tolist(), labels.tolist()]
        digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:DIGITS]
        path = self.folder / f"{key}-{digest}.json"
        stored = _read(path, size)
        if stored is not None:
            return stored
        made = self._make(key, size, boxes, labels)
        rles = [rle_to_json(rle)["counts"] for rle in made.rles or ()]
        write_json(path, {"boxes": made.boxes.tolist(), "labels": made.labels.tolist(), "counts": rles}, indent=None)
        return made

    def _make(
        self, key: str, size: tuple[int, int], boxes: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> PseudoInstances:
        if not len(boxes):
            return PseudoInstances(boxes, labels, ())
        found = decode_boxes(self._segmenter, self._embedding(key), self._segmenter.frame(size), boxes)
        kept = np.flatnonzero((found.boxes[:, 2:] > found.boxes[:, :2]).all(1))
        return PseudoInstances(found.boxes[kept], labels[kept], tuple(found.rles[row] for row in kept))


def _read(path: Path, size: tuple[int, int]) -> PseudoInstances | None:
    """Stored instances; None where there are none or the file is damaged."""
    try:
        stored: Any = json.loads(path.read_bytes())
        rles = [rle_from_coco({"size": list(size), "counts": counts}, size) for counts in stored["counts"]]
        boxes, labels = np.array(stored["boxes"], np.float32), np.array(stored["labels"], np.int64)
        return PseudoInstances(boxes, labels, tuple(rles))
    except (OSError, ValueError, KeyError, TypeError):
        return None
