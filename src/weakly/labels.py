"""What a person gives: boxes, points or tags for one image, and the Sample that carries them.

Coordinates are pixels of the *stored* image (no EXIF rotation applied), origin at the top-left corner of the
top-left pixel, x to the right, y down. Categories are contiguous indices into a :class:`~weakly.vocabulary.Vocabulary`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Boxes:
    """Part or object boxes.

    Attributes:
        xyxy: (M, 4) float32, ``x0, y0, x1, y1`` in image pixels, x1 and y1 exclusive.
        labels: (M,) int64 category indices.
    """

    xyxy: Floats
    labels: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "xyxy", np.asarray(self.xyxy, np.float32).reshape(-1, 4))
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64).reshape(-1))
        if len(self.xyxy) != len(self.labels):
            raise ValueError(f"{len(self.xyxy)} boxes but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def centers(self) -> Points:
        """Box centres: the paper's point supervision (spec wps-sam section 2). They may lie outside the part."""
        return Points((self.xyxy[:, :2] + self.xyxy[:, 2:]) / np.float32(2), self.labels)


@dataclass(frozen=True, eq=False, slots=True)
class Points:
    """One foreground click per part.

    Attributes:
        xy: (M, 2) float32 in image pixels.
        labels: (M,) int64 category indices.
    """

    xy: Floats
    labels: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "xy", np.asarray(self.xy, np.float32).reshape(-1, 2))
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64).reshape(-1))
        if len(self.xy) != len(self.labels):
            raise ValueError(f"{len(self.xy)} points but {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, slots=True)
class Tags:
    """Which categories an image shows.

    Attributes:
        labels: (K,) int64 distinct category indices, ascending.
    """

    labels: Ints

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.unique(np.asarray(self.labels, np.int64)))

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One image with its weak labels. Truth masks stay with the dataset: evaluation alone asks for them.

    Attributes:
        image_id: unique within the dataset; what COCO results call ``image_id``.
        path: absolute path of the image file.
        size: (height, width) of the stored image in pixels.
        boxes: part or object boxes, if a person gave any.
        points: clicks, if a person gave any.
        tags: image tags, if a person gave any (boxes and points imply them).
    """

    image_id: int | str
    path: Path
    size: tuple[int, int]
    boxes: Boxes | None = None
    points: Points | None = None
    tags: Tags | None = None
