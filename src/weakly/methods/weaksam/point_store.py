"""Points on disk (stage B): from the clue maps of an image, made once and kept in the run.

    <folder>/<image>-<id>.safetensors    coarse, fine, cross: (n, 5) float32 rows x, y, class, score, map

``image`` is the key of the file's bytes, ``id`` a digest of the tags, the extractor and the settings.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from weakly.data.images import read_image
from weakly.methods.weaksam.clues import ClueExtractor, Clues
from weakly.methods.weaksam.peaks import PeakSettings, Points, cluster, peak_points
from weakly.methods.weaksam.proposals import PointPrompts
from weakly.methods.weaksam.stored_arrays import stored_arrays

DIGITS = 16
"""Hex digits of the digest in a file name: 64 bits."""


class PointStore:
    """Points of one extractor under one setting.

    Args:
        folder: where they lie.
        extractor: makes the clues of what is missing.
        settings: of peaks.
    """

    def __init__(self, folder: Path, extractor: ClueExtractor, settings: PeakSettings) -> None:
        self.folder, self._extractor, self._settings = folder, extractor, settings
        self.identity = hashlib.sha256(json.dumps([extractor.identity, asdict(settings)]).encode()).hexdigest()

    def of_image(self, path: Path, key: str, tags: NDArray[np.int64] | None) -> PointPrompts:
        """The points of an image file, stored or made now; pixels as the file stores them.

        Args:
            path: the file.
            key: of its bytes.
            tags: (P,) category indices; None: the extractor says which classes the image shows.

        Raises:
            UserError: the file cannot be read, or the extractor needs tags.
        """
        told = None if tags is None else np.unique(tags).tolist()
        digest = hashlib.sha256(json.dumps([self.identity, told]).encode()).hexdigest()[:DIGITS]

        def make() -> dict[str, Points]:
            return dict(image_points(self._extractor.extract(read_image(path), tags), self._settings).items())

        return PointPrompts(**stored_arrays(self.folder / f"{key}-{digest}.safetensors", make))


def image_points(clues: Clues, settings: PeakSettings) -> PointPrompts:
    """The peaks of all maps of one image (spec weaksam, sections 2.1 and 2.2).

    Attention maps are enlarged a few at a time; see :meth:`~weakly.methods.weaksam.clues.CrossMaps.chunks`.
    """
    classes = clues.classes.cpu().numpy()
    coarse, fine = (peak_points(maps, classes, settings.cam) for maps in (clues.coarse, clues.fine))
    found = [np.zeros((0, 5), np.float32)]
    for first, maps in clues.cross.chunks():
        numbers = np.repeat(np.arange(first, first + len(maps)), len(classes)).tolist()
        found.append(peak_points(maps.flatten(0, 1), np.tile(classes, len(maps)), settings.cross, numbers))
    cross = np.concatenate(found)
    if settings.cross.clustered:
        cross = cluster(cross, settings.cross.cluster_div)
    return PointPrompts(coarse, fine, cross)
