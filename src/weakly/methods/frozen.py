"""Frozen models by name, loaded once per process; the last of a kind stays in memory, on the last device asked for.

Loading leaves the random state alone, so that a student's first weights do not depend on it.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from weakly.errors import UserError
from weakly.foundation.clip import Clip, load_clip
from weakly.foundation.promptable import Pad, PromptableSegmenter
from weakly.foundation.sam import load_segmenter


def frozen_segmenter(name: str, device: str | None = None, *, pad: Pad = "sam") -> PromptableSegmenter:
    """The promptable segmenter of a name, see :func:`~weakly.foundation.sam.load_segmenter`."""
    segmenter = _segmenter(name, pad)
    return segmenter if device is None else segmenter.to(device)


def frozen_clip(name: str, device: str | None = None) -> Clip:
    """The CLIP of a name, see :func:`~weakly.foundation.clip.load_clip`."""
    clip = _clip(name)
    return clip if device is None else clip.to(device)


def check_segmenter(segmenter: PromptableSegmenter, name: str, fingerprint: str) -> None:
    """Refuse another segmenter than the one, of this name and fingerprint, that a student was trained on.

    Raises:
        UserError: its weights or its padding are others.
    """
    if segmenter.fingerprint != fingerprint:
        raise UserError(
            f"This student was trained on segmenter {name!r} (fingerprint {fingerprint[:12]}), but"
            f" {segmenter.name!r} here has fingerprint {segmenter.fingerprint[:12]}; use the same weights and"
            " padding, or train again."
        )


@lru_cache(maxsize=1)
def _segmenter(name: str, pad: Pad) -> PromptableSegmenter:
    with torch.random.fork_rng(devices=[]):
        return load_segmenter(name, pad=pad)


@lru_cache(maxsize=1)
def _clip(name: str) -> Clip:
    with torch.random.fork_rng(devices=[]):
        return load_clip(name)
