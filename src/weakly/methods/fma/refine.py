"""Post-processing of the network's probabilities, by automatic masks or by the CRF (spec fma-wsss, section 6)."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.methods.dense_crf import CrfSettings, dense_crf
from weakly.methods.fma.masks import MaskStore
from weakly.methods.fma.settings import RefineSettings, SuperpixelSettings
from weakly.methods.fma.superpixels import quasi_superpixels, refine
from weakly.methods.semantic_predictor import Refine


def by_masks(masks: MaskStore, settings: RefineSettings, superpixels: SuperpixelSettings) -> Refine:
    """SAMS. Masks of pictures that were met before are read from the store, others are added to it."""
    return partial(_refine_by_masks, masks, settings, superpixels)


def by_crf(settings: CrfSettings) -> Refine:
    """The CRF over the classes that win a pixel, and background; those alone keep it fast with many categories."""
    return partial(_refine_by_crf, settings)


def _refine_by_masks(
    masks: MaskStore,
    settings: RefineSettings,
    superpixels: SuperpixelSettings,
    image: NDArray[np.uint8],
    probabilities: Tensor,
) -> Tensor:
    """(h, w, 3) and (C + 1, h, w) with background last, to (h, w) categories."""
    pixels = quasi_superpixels(
        masks.of(image), superpixels.ratio, against=superpixels.against, device=probabilities.device
    )
    background_first = probabilities.roll(1, 0)
    values = refine(background_first, pixels, alpha=settings.alpha, uncovered=settings.uncovered)
    return (values - 1) % len(probabilities)  # 0, the background, becomes C


def _refine_by_crf(settings: CrfSettings, image: NDArray[np.uint8], probabilities: Tensor) -> Tensor:
    """(h, w, 3) and (C + 1, h, w) with background last, to (h, w) categories."""
    background = probabilities.new_full((1,), len(probabilities) - 1, dtype=torch.int64)
    competing = torch.cat([probabilities.argmax(0).flatten(), background]).unique()
    return competing[dense_crf(image, probabilities[competing], settings).argmax(0)]
