"""What a person gets: the one result type of every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from weakly.vocabulary import Vocabulary

Rle = Mapping[str, Any]
"""COCO run-length encoding: ``{"size": [h, w], "counts": bytes}``."""

MAX_COORDINATE = 1e6
"""Largest polygon coordinate in pixels that is rasterised; the COCO code allocates by the length of an edge."""


@dataclass(frozen=True, eq=False)
class Segmentation:
    """Instance masks of one image at its original size.

    Attributes:
        size: (height, width) in pixels of the original image.
        rles: N masks, COCO run-length encoded; they may overlap.
        boxes: (N, 4) float32 ``x0, y0, x1, y1`` in image pixels: the tight extents of the masks.
        labels: (N,) int64 category indices.
        scores: (N,) float32 in [0, 1].
        provenance: N small JSON-able mappings: what made each mask (method, query, prompt ...).
        label_map: optional (H, W) uint8 or uint16 category per pixel, background = C, where a method fuses its
            masks more finely than painting them by score.
    """

    size: tuple[int, int]
    rles: tuple[Rle, ...] = ()
    boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), np.float32))
    labels: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    scores: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    provenance: tuple[Mapping[str, Any], ...] = ()
    label_map: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        lengths = {len(self.rles), len(self.boxes), len(self.labels), len(self.scores), len(self.provenance)}
        if len(lengths) != 1:
            raise ValueError(f"fields of different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_masks(
        cls,
        masks: NDArray[Any],
        labels: Sequence[int] | NDArray[Any],
        scores: Sequence[float] | NDArray[Any] | None = None,
        provenance: Sequence[Mapping[str, Any]] | None = None,
        label_map: NDArray[Any] | None = None,
    ) -> Segmentation:
        """Encode (N, H, W) boolean masks; boxes are their tight extents (zero for an empty mask)."""
        n, height, width = masks.shape
        rles = encode_masks(masks)
        return cls(
            size=(height, width),
            rles=rles,
            boxes=rle_boxes(rles),
            labels=np.asarray(labels, np.int64).reshape(n),
            scores=np.ones(n, np.float32) if scores is None else np.asarray(scores, np.float32).reshape(n),
            provenance=tuple({} for _ in range(n)) if provenance is None else tuple(provenance),
            label_map=label_map,
        )

    def masks(self) -> NDArray[np.bool_]:
        """Decode all masks: (N, H, W) bool."""
        return decode_masks(self.rles, self.size)

    def category_masks(self) -> dict[int, NDArray[np.bool_]]:
        """Union of the masks of each category present: {category index: (H, W) bool}, ascending."""
        unions: dict[int, NDArray[np.bool_]] = {}
        for label in np.unique(self.labels):
            merged = coco_mask.merge([dict(self.rles[i]) for i in np.flatnonzero(self.labels == label)])
            unions[int(label)] = coco_mask.decode(merged).astype(bool)
        return unions

    def to_label_map(self, background: int) -> NDArray[Any]:
        """(H, W) category per pixel, ``background`` elsewhere: the method's own fusion, else painted by score.

        Without a stored ``label_map`` masks are painted from the lowest score to the highest, so the most certain
        mask wins a contested pixel; ties go to the smaller mask.
        """
        if self.label_map is not None:
            return self.label_map
        canvas = np.full(self.size, background, np.uint8 if background < 256 else np.uint16)
        areas = rle_areas(self.rles)
        for i in np.lexsort((-np.asarray(areas, np.int64), self.scores)):
            canvas[coco_mask.decode(dict(self.rles[i])).astype(bool)] = self.labels[i]
        return canvas

    def to_coco(self, image_id: int | str, vocabulary: Vocabulary) -> list[dict[str, Any]]:
        """COCO results: one dict per mask with a string RLE, an xywh box, score and provenance."""
        results = []
        for rle, box, label, score, origin in zip(
            self.rles, self.boxes, self.labels, self.scores, self.provenance, strict=True
        ):
            x0, y0, x1, y1 = (float(v) for v in box)
            results.append(
                {
                    "image_id": image_id,
                    "category_id": vocabulary.source_id(int(label)),
                    "segmentation": rle_to_json(rle),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(coco_mask.area(dict(rle))),
                    "score": round(float(score), 6),
                    "provenance": dict(origin),
                }
            )
        return results

    @classmethod
    def from_coco(
        cls, results: Sequence[Mapping[str, Any]], size: tuple[int, int], vocabulary: Vocabulary
    ) -> Segmentation:
        """The inverse of :meth:`to_coco`; polygons and uncompressed RLE are accepted too.

        Raises:
            ValueError: a category id is not in the vocabulary, or a mask has another size.
        """
        by_source = vocabulary.by_source_id()
        rles = tuple(rle_from_coco(result["segmentation"], size) for result in results)
        labels = []
        for result in results:
            if result["category_id"] not in by_source:
                raise ValueError(f"category_id {result['category_id']} is not in the vocabulary")
            labels.append(by_source[result["category_id"]])
        return cls(
            size=size,
            rles=rles,
            boxes=rle_boxes(rles),
            labels=np.asarray(labels, np.int64),
            scores=np.asarray([result.get("score", 1.0) for result in results], np.float32),
            provenance=tuple(dict(result.get("provenance", {})) for result in results),
        )

    def overlay(self, image: NDArray[np.uint8], vocabulary: Vocabulary, opacity: float = 0.55) -> NDArray[np.uint8]:
        """(H, W, 3) uint8: the label map in the vocabulary's colours over the image, with thin outlines."""
        return overlay_label_map(image, self.to_label_map(vocabulary.background), vocabulary, opacity)

    def without_label_map(self) -> Segmentation:
        """The same masks, to be painted by score."""
        return replace(self, label_map=None)


def overlay_label_map(
    image: NDArray[np.uint8], label_map: NDArray[Any], vocabulary: Vocabulary, opacity: float = 0.55
) -> NDArray[np.uint8]:
    """Blend a (H, W) label map (background = C) over a (H, W, 3) uint8 image; region borders are drawn white."""
    part = label_map < len(vocabulary)
    colours = vocabulary.palette()[np.minimum(label_map, len(vocabulary))]
    blended = np.where(part[..., None], image * (1 - opacity) + colours * opacity, image)
    border = np.zeros(label_map.shape, bool)
    border[:, 1:] |= label_map[:, 1:] != label_map[:, :-1]
    border[1:] |= label_map[1:] != label_map[:-1]
    blended[border] = 0.35 * blended[border] + 0.65 * 255
    return blended.round().astype(np.uint8)


def encode_masks(masks: NDArray[Any]) -> tuple[Rle, ...]:
    """COCO RLEs of (N, H, W) boolean masks."""
    if len(masks) == 0:
        return ()
    columns = np.asfortranarray(np.moveaxis(np.asarray(masks).astype(np.uint8), 0, -1))
    return tuple(coco_mask.encode(columns))


def decode_masks(rles: Sequence[Rle], size: tuple[int, int]) -> NDArray[np.bool_]:
    """(N, H, W) boolean masks of COCO RLEs."""
    if len(rles) == 0:
        return np.zeros((0, *size), bool)
    return np.moveaxis(coco_mask.decode([dict(rle) for rle in rles]), -1, 0).astype(bool)


def rle_boxes(rles: Sequence[Rle]) -> NDArray[np.float32]:
    """(N, 4) float32 tight ``x0, y0, x1, y1`` extents of COCO RLEs."""
    if len(rles) == 0:
        return np.zeros((0, 4), np.float32)
    xywh = coco_mask.toBbox([dict(rle) for rle in rles])
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1).astype(np.float32)


def box_masks(boxes: NDArray[np.float32], size: tuple[int, int]) -> tuple[Rle, ...]:
    """The pixels of (n, 4) boxes of an image of ``size``, corners rounded."""
    if not len(boxes):
        return ()
    corners = np.rint(np.clip(boxes, 0, np.array(size[::-1] * 2))).astype(np.float64)
    xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    return tuple(coco_mask.frPyObjects(xywh, *size))


def rle_areas(rles: Sequence[Rle]) -> NDArray[np.int64]:
    """(N,) int64 pixels of COCO RLEs."""
    # pycocotools 2.0.11 keeps the number of masks in a uint8 and fails on more than 255.
    chunks = [rles[start : start + 255] for start in range(0, len(rles), 255)]
    areas = [coco_mask.area([dict(rle) for rle in chunk]).astype(np.int64) for chunk in chunks]
    return np.concatenate(areas) if areas else np.zeros(0, np.int64)


def rle_to_json(rle: Rle) -> dict[str, Any]:
    """JSON form of an RLE: string counts."""
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(v) for v in rle["size"]], "counts": text}


def rle_from_coco(segmentation: Any, size: tuple[int, int]) -> Rle:
    """RLE of any COCO ``segmentation``: compressed or uncompressed RLE, or polygon rings of at least 3 points.

    Raises:
        ValueError: nothing usable is left, or the RLE is for another image size or damaged.
    """
    height, width = size
    if isinstance(segmentation, Mapping):
        if [int(v) for v in segmentation["size"]] != [height, width]:
            raise ValueError(f"mask of size {list(segmentation['size'])} for an image of size {[height, width]}")
        counts = segmentation["counts"]
        _check_runs(counts if isinstance(counts, list) else compressed_runs(counts), height * width)
        if isinstance(counts, list):
            encoded: Rle = coco_mask.frPyObjects(dict(segmentation), height, width)
            return encoded
        return {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    rings = [ring for ring in segmentation or () if len(ring) >= 6 and len(ring) % 2 == 0]
    if not rings:
        raise ValueError("no polygon ring with at least 3 points")
    if not all(abs(value) <= MAX_COORDINATE for ring in rings for value in ring):
        raise ValueError(f"a polygon coordinate is not a number up to {MAX_COORDINATE:.0e}")
    merged: Rle = coco_mask.merge(coco_mask.frPyObjects(rings, height, width))
    return merged


def compressed_runs(counts: str | bytes) -> list[int]:
    """Run lengths of a compressed COCO RLE: 5 bits a character, the third and later runs as differences.

    Raises:
        ValueError: the characters are not those of an RLE.
    """
    codes = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("the run lengths are damaged")
    starts = np.flatnonzero(np.append(True, codes[:-1] & 32 == 0))
    digit = np.arange(len(codes)) - np.repeat(starts, np.diff(np.append(starts, len(codes))))
    if digit.max() > 6:
        raise ValueError("the run lengths are damaged")
    values = np.add.reduceat((codes & 31) << 5 * digit, starts)
    last = np.append(starts[1:], len(codes)) - 1
    values -= np.where(codes[last] & 16, 1 << 5 * (digit[last] + 1), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return [int(value) for value in values]


def _check_runs(runs: Sequence[Any], pixels: int) -> None:
    """Run lengths that do not tile the image make the COCO code write outside its buffers: refuse them here."""
    if not all(isinstance(run, int) and run >= 0 for run in runs) or sum(runs) != pixels:
        raise ValueError(f"the run lengths are damaged: they do not add up to {pixels} pixels")
