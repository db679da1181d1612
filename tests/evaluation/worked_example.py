"""The 8 x 8 worked example of the protocols: categories A, B, C and background, two images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

A, B, C, BACKGROUND = range(4)
VOCABULARY = Vocabulary.from_names("ABC")
NULL = Segmentation((8, 8))


def block(rows: tuple[int, int], columns: tuple[int, int], size: tuple[int, int] = (8, 8)) -> NDArray[np.bool_]:
    """A mask of rows first..last and columns first..last, both inclusive."""
    mask = np.zeros(size, bool)
    mask[rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
    return mask


def segmentation(masks: dict[int, NDArray[Any]]) -> Segmentation:
    return Segmentation.from_masks(np.stack(list(masks.values())), list(masks))


TRUTHS = (segmentation({A: block((1, 4), (1, 4)), B: block((6, 7), (0, 7))}), segmentation({A: block((4, 5), (0, 7))}))
PREDICTIONS = (
    segmentation({A: block((2, 5), (1, 4)), C: block((0, 0), (0, 7))}),
    segmentation({A: block((4, 5), (0, 3))}),
)
