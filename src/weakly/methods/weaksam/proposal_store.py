"""Proposals on disk: made once per image and points, shared by all runs, so that a killed run goes on where it was.

    <root>/proposals/<name>-<id>/
        settings.json                     what made them
        <image>-<points>.safetensors      proposals of one image; names: SHA-256 of the file's bytes and of the points

Files are whole or absent; a damaged one is made again. Memory: one image and what
:func:`~weakly.methods.weaksam.proposals.decode_proposals` needs for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.weaksam.proposal_settings import ProposalSettings
from weakly.methods.weaksam.proposals import GRID, PointPrompts, Proposals, decode_proposals
from weakly.methods.weaksam.selective_search import SelectiveSearchSettings
from weakly.methods.weaksam.stored_arrays import open_store, stored_arrays

VERSION = 1
"""Raise it when the procedure changes its proposals."""

MEMORY_KNOBS = ("prompts_per_batch",)
"""Settings that change memory and speed, not proposals (beyond rounding)."""

POINTS_DIGITS = 16
"""Hex digits of the points' digest in a file name: 64 bits, and an image has few files."""


class ProposalStore:
    """Proposals of one segmenter under one setting.

    Several processes may use one store at once: at worst they make the same file twice.

    Attributes:
        identity: hex digest of all that decides the proposals of an image with given points.
        folder: where they lie.

    Args:
        root: folder of all stores, shared between runs.
        segmenter: frozen; decodes what is missing.
        settings: of the proposals.
        embedding: from the key of an image to its (1, C, h, w) embedding.
    """

    def __init__(
        self,
        root: Path,
        segmenter: PromptableSegmenter,
        settings: ProposalSettings,
        embedding: Callable[[str], Tensor],
    ) -> None:
        self._segmenter, self._settings, self._embedding = segmenter, settings, embedding
        told = {key: value for key, value in asdict(settings).items() if key not in MEMORY_KNOBS}
        about = {"version": VERSION, "segmenter": segmenter.fingerprint, "settings": told}
        self.folder, self.identity = open_store(root / "proposals", segmenter.name, about)

    def of_image(self, key: str, size: tuple[int, int], points: PointPrompts) -> Proposals:
        """Proposals of an image with these points, stored or made now.

        Args:
            key: of the file's bytes.
            size: (height, width) of the stored pixels.
            points: in these pixels.
        """

        def make() -> dict[str, NDArray[Any]]:
            embedding = self._embedding(key)
            made = decode_proposals(self._segmenter, embedding, size, points, self._settings)
            return {"boxes": made.boxes, "source": made.source}

        return Proposals(**stored_arrays(self.folder / f"{key}-{points.digest[:POINTS_DIGITS]}.safetensors", make))


class SearchStore:
    """Boxes of selective search under one setting, as proposals.

    Attributes:
        folder: where they lie.

    Args:
        root: folder of all stores, shared between runs.
        settings: of the search.
        search: from an image and the settings to (n, 4) boxes.
    """

    def __init__(
        self,
        root: Path,
        settings: SelectiveSearchSettings,
        search: Callable[[NDArray[np.uint8], SelectiveSearchSettings], NDArray[np.float32]],
    ) -> None:
        self._settings, self._search = settings, search
        about = {"version": VERSION, "settings": asdict(settings)}
        self.folder, self.identity = open_store(root / "proposals", "selective-search", about)

    def of_image(self, key: str, read: Callable[[], NDArray[np.uint8]]) -> Proposals:
        """Proposals of an image, stored or made now; ``read`` gives its (H, W, 3) uint8 RGB pixels."""

        def make() -> dict[str, NDArray[Any]]:
            return {"boxes": self._search(read(), self._settings)}

        boxes = stored_arrays(self.folder / f"{key}.safetensors", make)["boxes"]
        return Proposals(boxes, np.full(len(boxes), GRID, np.uint8))
