"""The one dataset type every reader returns: records in memory, pixels and truth on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.geometry import Box
from weakly.data.images import read_image
from weakly.data.object_parts import object_table
from weakly.labels import Sample
from weakly.segmentation import (
    Rle,
    Segmentation,
    decode_masks,
    encode_masks,
    rle_areas,
    rle_boxes,
    rle_from_coco,
)
from weakly.vocabulary import Vocabulary

VOID = 255
"""Value in label maps that no score counts; :data:`WIDE_VOID` where 255 is a category or the background."""

WIDE_VOID = 65535
"""Value in 16-bit label maps and in object maps that no score counts."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a dataset, as ``weakly data check`` reports it.

    Attributes:
        check: stable machine name, e.g. ``"degenerate-polygon"``.
        severity: ``"error"`` (the record is unusable and left out), ``"warning"`` (used, but repaired or suspect).
        file: the file at fault, as the user knows it.
        index: position or id inside that file, e.g. ``"annotations[17] (id 204)"``; empty for a whole file.
        message: what is wrong.
        remedy: what to do about it.
    """

    check: str
    severity: str
    file: str
    index: str
    message: str
    remedy: str

    def __str__(self) -> str:
        where = f"{self.file} {self.index}".strip()
        return f"{self.severity}: {where}: {self.message} {self.remedy}"


@dataclass(frozen=True, eq=False, slots=True)
class Instance:
    """A true object as its annotation states it. Evaluation alone asks for it.

    Attributes:
        label: category index.
        box: ``x0, y0, x1, y1`` in image pixels, x1 and y1 exclusive.
        segmentation: its mask in any of COCO's forms, where the annotation has one.
        number: its place among the objects of its annotation, from 1: its value in the object map.
        difficult: it counts neither as found nor as missed.
        crowd: it is a region of many objects, which counts as little.
    """

    label: int
    box: Box
    segmentation: Any = None
    number: int = 0
    difficult: bool = False
    crowd: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class TruthInstances:
    """The N true objects of one image.

    Attributes:
        boxes: (N, 4) float32 ``x0, y0, x1, y1`` in image pixels, as annotated: not the extents of the masks.
        labels: (N,) int64 category indices.
        difficult: (N,) bool: counts neither as found nor as missed; crowd regions are difficult too.
        crowd: (N,) bool: a region of many objects.
        rles: N masks at original size, empty where an object has none; None where no object of the image has one.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    rles: tuple[Rle, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: NDArray[np.bool_]) -> TruthInstances:
        """The objects that an (N,) bool array marks."""
        rles = None if self.rles is None else tuple(rle for rle, kept in zip(self.rles, keep, strict=True) if kept)
        return TruthInstances(self.boxes[keep], self.labels[keep], self.difficult[keep], self.crowd[keep], rles)


@dataclass(frozen=True, eq=False, slots=True)
class Record:
    """A sample and the raw truth that belongs to it.

    Attributes:
        sample: image and weak labels.
        truth: per truth mask ``(category index, COCO segmentation)``; None where the annotation has no mask.
        label_map_path: palette or grey PNG of category *source* ids, where the dataset ships one.
        instances: the true objects, boxes included; None where nobody says which there are.
        object_map_path: palette or grey PNG with the masks of ``instances``: value o is the object of number o.
        label_values: {value in ``label_map_path``: category index} where it differs between images; None: source ids.
        whole_map_path: PNG of the whole objects that the categories are parts of: indices of ``Dataset.wholes``.
        wholes: the same as ``(index of Dataset.wholes, COCO segmentation)``, later ones on top; None where unknown.
    """

    sample: Sample
    truth: tuple[tuple[int, Any], ...] = ()
    label_map_path: Path | None = None
    instances: tuple[Instance, ...] | None = None
    object_map_path: Path | None = None
    label_values: Mapping[int, int] | None = None
    whole_map_path: Path | None = None
    wholes: tuple[tuple[int, Any], ...] | None = None

    @property
    def masked_instances(self) -> tuple[Instance, ...]:
        """The true objects and crowd regions that have a mask; with an object map, which is not opened, all of them."""
        return tuple(i for i in self.instances or () if self.object_map_path or i.segmentation is not None)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with weak labels, and truth masks where the dataset has them.

    Attributes:
        name: what tables call it, e.g. ``"menagerie"``.
        split: ``"train"``, ``"val"``, ``"test"`` ...: a number without its split does not exist.
        vocabulary: the categories; index C is background.
        records: one per usable image.
        problems: what the reader found and repaired or left out.
        label_map_background: value that means background in the label PNGs (source ids elsewhere); 255 is void. None
            where they leave out what has no category: that is background outside the whole objects and void on them.
        wholes: names of whole objects, those without a category too, as the records number them.
    """

    name: str
    split: str
    vocabulary: Vocabulary
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    label_map_background: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    wholes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        return self.records[index].sample

    def __iter__(self) -> Iterator[Sample]:
        return (record.sample for record in self.records)

    def image(self, index: int) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB of the stored frame."""
        return read_image(self[index].path)

    def has_truth(self) -> bool:
        """Whether any image has true masks or a true label map. Boxes alone are no masks: :meth:`has_instances`."""
        stated = any(record.truth or record.label_map_path for record in self.records)
        return stated or self.has_instances(masks=True)

    def truth(self, index: int) -> Segmentation:
        """True masks of one image at original size; its ``label_map`` is the dataset's own PNG where there is one.

        Where a record states no masks of its own they are those of its instances, crowd regions left out.
        """
        record = self.records[index]
        size = record.sample.size
        rles = tuple(rle_from_coco(segmentation, size) for _, segmentation in record.truth)
        labels = np.asarray([label for label, _ in record.truth], np.int64)
        if not rles and record.masked_instances:
            found = self.instances(index, masks=True)
            found = found.select(~found.crowd)
            rles, labels = found.rles or (), found.labels
        return Segmentation(
            size=size,
            rles=rles,
            boxes=rle_boxes(rles),
            labels=labels,
            scores=np.ones(len(rles), np.float32),
            provenance=tuple({"source": "truth"} for _ in rles),
            label_map=self.label_map(index),
        )

    def has_instances(self, *, masks: bool = False) -> bool:
        """Whether any image has true objects; with ``masks``, objects with a mask. Crowd regions are none."""
        found = (record.masked_instances if masks else record.instances or () for record in self.records)
        return any(not instance.crowd for instances in found for instance in instances)

    def instances(self, index: int, *, masks: bool = False) -> TruthInstances:
        """True objects of one image; none where they are unknown too (see :meth:`with_instances`).

        Args:
            index: of the image.
            masks: leave out objects without a mask, or with an empty one.

        Raises:
            UserError: the object map cannot be read.
        """
        record = self.records[index]
        stated = record.instances or ()
        crowd = np.array([i.crowd for i in stated], bool)
        found = TruthInstances(
            boxes=np.array([i.box for i in stated], np.float32).reshape(-1, 4),
            labels=np.array([i.label for i in stated], np.int64),
            difficult=np.array([i.difficult for i in stated], bool) | crowd,
            crowd=crowd,
            rles=_instance_rles(record),
        )
        if not masks:
            return found
        drawn = np.zeros(len(found), bool) if found.rles is None else rle_areas(found.rles) > 0
        kept = found.select(drawn)
        return replace(kept, rles=kept.rles or ())

    def with_instances(self, *, masks: bool = False) -> Dataset:
        """The images whose true objects are known, those that show none included; with ``masks``, their masks too.

        What is found in an image whose truth is unknown would count as wrong.
        """
        known = (r.instances is not None and (not masks or not r.instances or r.masked_instances) for r in self.records)
        return self.select([index for index, is_known in enumerate(known) if is_known])

    def label_map(self, index: int) -> NDArray[Any] | None:
        """(H, W) category per pixel, background C, void 255, of the dataset's own PNG; None where there is none.

        uint8; from 255 categories on uint16, and void is 65535.
        """
        record = self.records[index]
        if record.label_map_path is None:
            return None
        stored = read_image(record.label_map_path, mode="index")
        meaning = self.label_values(index)
        wide = self.vocabulary.background >= VOID
        void = WIDE_VOID if wide else VOID
        lookup = np.full(max(int(stored.max()), *meaning, 0) + 1, void, np.uint16 if wide else np.uint8)
        lookup[list(meaning)] = list(meaning.values())
        labels = lookup[stored]
        if self.label_map_background is None and _states_wholes(record):
            elsewhere = self.object_map(index) == len(object_table(self.vocabulary)[0])
            labels[(labels == void) & elsewhere] = self.vocabulary.background
        return labels

    def label_values(self, index: int) -> dict[int, int]:
        """{value in the label PNG of an image: category, or C for background}; other values are void."""
        record, vocabulary = self.records[index], self.vocabulary
        own = record.label_values
        meaning = vocabulary.by_source_id() if own is None else dict(own)
        if self.label_map_background is not None:
            meaning[self.label_map_background] = vocabulary.background
        return meaning

    def object_map(self, index: int) -> NDArray[np.uint16]:
        """(H, W) uint16 object per pixel, with a part label or without one.

        From the dataset's own masks of whole objects where it has them, else from its part masks.

        Returns:
            Indices into the sorted names of the objects that own a category
            (:func:`~weakly.data.object_parts.object_table`); their number where none of them is; 65535 where nobody
            knows.
        """
        record = self.records[index]
        objects, owners = object_table(self.vocabulary)
        if not _states_wholes(record):
            labels = self.truth(index).to_label_map(self.vocabulary.background)
            lookup = np.append(owners, [len(objects), WIDE_VOID]).astype(np.uint16)
            return lookup[np.minimum(labels, len(lookup) - 1)]
        numbers = {name: number for number, name in enumerate(objects)}
        own = np.array([numbers.get(name, len(objects)) for name in self.wholes] + [len(objects)], np.uint16)
        return own[np.minimum(_stored_wholes(record, len(self.wholes)), len(self.wholes))]

    def select(self, indices: Sequence[int]) -> Dataset:
        """The same dataset with only these images, in this order."""
        return replace(self, records=tuple(self.records[i] for i in indices))


def _states_wholes(record: Record) -> bool:
    return record.whole_map_path is not None or record.wholes is not None


def _stored_wholes(record: Record, nothing: int) -> NDArray[Any]:
    """(H, W) index of the whole object as a record numbers them; any value from ``nothing`` on where there is none."""
    if record.whole_map_path is not None:
        return read_image(record.whole_map_path, mode="index")
    canvas = np.full(record.sample.size, nothing, np.uint16)
    for number, segmentation in record.wholes or ():
        (mask,) = decode_masks((rle_from_coco(segmentation, record.sample.size),), record.sample.size)
        canvas[mask] = number
    return canvas


def _instance_rles(record: Record) -> tuple[Rle, ...] | None:
    """One mask per true object, empty where it has none; None where no object has one."""
    stated, size = record.instances or (), record.sample.size
    if not record.masked_instances:
        return None
    if record.object_map_path is not None:
        object_map = read_image(record.object_map_path, mode="index")
        numbers = np.array([i.number for i in stated])
        return encode_masks(object_map[None] == numbers[:, None, None])
    (empty,) = encode_masks(np.zeros((1, *size), bool))
    return tuple(empty if i.segmentation is None else rle_from_coco(i.segmentation, size) for i in stated)


__all__ = ["Dataset", "Instance", "Problem", "Record", "TruthInstances", "encode_masks"]
