"""The one dataset type every reader returns: records in memory, pixels and truth on demand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.images import read_image
from weakly.labels import Sample
from weakly.segmentation import Segmentation, encode_masks, rle_boxes, rle_from_coco
from weakly.vocabulary import Vocabulary


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
class Record:
    """A sample and the raw truth that belongs to it.

    Attributes:
        sample: image and weak labels.
        truth: per truth mask ``(category index, COCO segmentation)``; None where the annotation has no mask.
        label_map_path: palette or grey PNG of category *source* ids, where the dataset ships one.
    """

    sample: Sample
    truth: tuple[tuple[int, Any], ...] = ()
    label_map_path: Path | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with weak labels, and truth masks where the dataset has them.

    Attributes:
        name: what tables call it, e.g. ``"menagerie"``.
        split: ``"train"``, ``"val"``, ``"test"`` ...: a number without its split does not exist.
        vocabulary: the categories; index C is background.
        records: one per usable image.
        problems: what the reader found and repaired or left out.
        label_map_background: value that means background in the label PNGs (source ids elsewhere); 255 is void.
    """

    name: str
    split: str
    vocabulary: Vocabulary
    records: tuple[Record, ...]
    problems: tuple[Problem, ...] = ()
    label_map_background: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

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
        """Whether any image has true masks or a true label map."""
        return any(record.truth or record.label_map_path for record in self.records)

    def truth(self, index: int) -> Segmentation:
        """True masks of one image at original size; its ``label_map`` is the dataset's own PNG where there is one."""
        record = self.records[index]
        size = record.sample.size
        rles = tuple(rle_from_coco(segmentation, size) for _, segmentation in record.truth)
        return Segmentation(
            size=size,
            rles=rles,
            boxes=rle_boxes(rles),
            labels=np.asarray([label for label, _ in record.truth], np.int64),
            scores=np.ones(len(rles), np.float32),
            provenance=tuple({"source": "truth"} for _ in rles),
            label_map=self._label_map(record),
        )

    def _label_map(self, record: Record) -> NDArray[Any] | None:
        if record.label_map_path is None:
            return None
        stored = read_image(record.label_map_path, mode="index")
        lookup = np.full(max(256, int(stored.max()) + 1), 255, np.uint8)
        for index in range(len(self.vocabulary)):
            lookup[self.vocabulary.source_id(index)] = index
        if self.label_map_background is not None:
            lookup[self.label_map_background] = self.vocabulary.background
        return lookup[stored]

    def select(self, indices: Sequence[int]) -> Dataset:
        """The same dataset with only these images, in this order."""
        return replace(self, records=tuple(self.records[i] for i in indices))


__all__ = ["Dataset", "Problem", "Record", "encode_masks"]
