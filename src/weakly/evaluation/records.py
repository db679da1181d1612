"""A measurement as it is written down: one flat record per row of a table.

``docs/results/<method>-<data>.json`` and ``runs/<run>/metrics.json`` are ``{"records": [...]}``. A figure without its
split, its number of images and its name does not exist: such a record can neither be built nor be read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from weakly.errors import UserError
from weakly.files import write_atomic

IDENTITY = ("method", "preset", "supervision", "row", "setting", "segmenter", "data", "split", "seed")
"""The fields that make two records the same measurement."""

FLAT_FIGURES = ("miou", "ap50", "ap", "corloc", "recall", "seen", "unseen", "harmonic")
"""Figures of methods that are not scored by named protocols."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One measured row. What was not measured or does not apply is None and is not written.

    Attributes:
        method: ``"wps"``, ``"fma"``, ... or a baseline such as ``"oracle"``.
        preset: named configuration, e.g. ``"paper"``.
        supervision: ``"box"``, ``"point"``, ``"tags"`` ...
        row: stage or table row, e.g. ``"final"``.
        setting: ``"pred-all"`` or ``"oracle-obj"``.
        segmenter: the frozen promptable segmenter.
        segmenter_weights: first digits of the SHA-256 of its file of weights, where it is a local one.
        data: name of the data set.
        split: split of the data set.
        images: number of images scored.
        resolution: longest side in pixels that the model sees, or a name such as ``"original"``.
        seed: seed of the run.
        seconds: wall time.
        command: the command that repeats it.
        version: version of this package.
        published: the paper's figure or figures, if any, as fractions.
        protocols: ``{"dataset41": {"miou": ..., "macc": ...}, ...}`` as fractions.
        miou: mean IoU of a method that has one protocol; all following figures are fractions too.
        ap50: average precision at IoU 0.5.
        ap: average precision over IoU 0.5 to 0.95.
        corloc: correct localisation.
        recall: recall.
        seen: mIoU of seen categories.
        unseen: mIoU of unseen categories.
        harmonic: harmonic mean of seen and unseen.
        per_class: one mapping per class.
        null_images: images without any prediction.
        details: further counts and figures, by name.

    Raises:
        UserError: split, data or method is empty, images is not positive, or no figure is a fraction under a name.
    """

    method: str
    data: str
    split: str
    images: int
    preset: str | None = None
    supervision: str | None = None
    row: str | None = None
    setting: str | None = None
    segmenter: str | None = None
    segmenter_weights: str | None = None
    resolution: int | str | None = None
    seed: int | None = None
    seconds: float | None = None
    command: str | None = None
    version: str | None = None
    published: float | Mapping[str, Any] | None = None
    protocols: Mapping[str, Mapping[str, float]] | None = None
    miou: float | None = None
    ap50: float | None = None
    ap: float | None = None
    corloc: float | None = None
    recall: float | None = None
    seen: float | None = None
    unseen: float | None = None
    harmonic: float | None = None
    per_class: Sequence[Mapping[str, Any]] | None = None
    null_images: int | None = None
    details: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name in ("method", "data", "split"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name):
                raise UserError(f"A record needs a {name}; name the {name} that was scored.")
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise UserError(f"A record needs a positive number of images, not {self.images!r}.")
        figures = self._figures()
        if not figures:
            raise UserError(
                f"A record needs a figure with its name: protocols such as 'dataset41' with 'miou' and 'macc', or one "
                f"of {', '.join(FLAT_FIGURES)}."
            )
        for name, value in figures.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value > 1:
                raise UserError(f"The figure {name} of a record is {value!r}; write a fraction from 0 to 1.")

    @property
    def identity(self) -> tuple[Any, ...]:
        """What makes it the same measurement as another: see :data:`IDENTITY`."""
        return tuple(getattr(self, name) for name in IDENTITY)

    def to_dict(self) -> dict[str, Any]:
        """JSON form without anything that is None, NaN or empty, at any depth."""
        written: dict[str, Any] = _without_nothing({item.name: getattr(self, item.name) for item in fields(self)})
        return written

    def _figures(self) -> dict[str, Any]:
        """Every defined figure under its full name, e.g. ``dataset41.miou``."""
        figures = {name: getattr(self, name) for name in FLAT_FIGURES}
        protocols = {} if self.protocols is None else self.protocols
        if not isinstance(protocols, Mapping) or not all(isinstance(item, Mapping) for item in protocols.values()):
            raise UserError(
                f"The protocols of a record are {protocols!r}; map each protocol's name to its 'miou' and 'macc'."
            )
        for protocol, values in protocols.items():
            figures.update({f"{protocol}.{name}": value for name, value in values.items()})
        undefined = {name for name, value in figures.items() if value is None or value != value}  # noqa: PLR0124 - NaN
        return {name: value for name, value in figures.items() if name not in undefined}


def write_records(path: Path, records: Iterable[Record]) -> None:
    """Write ``{"records": [...]}`` atomically; an earlier file is replaced as a whole.

    Raises:
        WeaklyError: the file cannot be written.
    """
    text = json.dumps({"records": [record.to_dict() for record in records]}, indent=1, allow_nan=False)
    write_atomic(path, text + "\n")


def update_records(path: Path, records: Iterable[Record]) -> list[Record]:
    """Add records to a file: one with the identity of an earlier record takes its place, others stay.

    Returns:
        All records now in the file, in its order.

    Raises:
        UserError: the file is there but malformed.
    """
    kept = {record.identity: record for record in (read_records(path) if path.exists() else [])}
    kept.update({record.identity: record for record in records})
    merged = list(kept.values())
    write_records(path, merged)
    return merged


def read_records(path: Path) -> list[Record]:
    """The records of a file.

    Raises:
        UserError: the file cannot be read, is not ``{"records": [...]}``, or a record is incomplete; the sentence names
            the file and the record.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of records.") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); write it again with the command that made it.") from error
    rows = content.get("records") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise UserError(f'{path}: has no list of records; it must be {{"records": [...]}}.')
    return [_read_record(path, index, row) for index, row in enumerate(rows)]


def _read_record(path: Path, index: int, row: Any) -> Record:
    where = f"{path}: records[{index}]"
    if not isinstance(row, dict):
        raise UserError(f"{where}: is not an object; it must map field names to values.")
    known = [item.name for item in fields(Record)]
    unknown = sorted(row.keys() - set(known))
    if unknown:
        raise UserError(f"{where}: has an unknown field {unknown[0]!r}; known fields are {', '.join(known)}.")
    missing = [name for name in ("method", "data", "split", "images") if name not in row]
    if missing:
        raise UserError(f"{where}: has no {missing[0]}; a figure without it cannot be compared.")
    try:
        return Record(**row)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _without_nothing(value: Any) -> Any:
    """The value without None, NaN, infinities and empty mappings inside its mappings, and with plain numbers."""
    if isinstance(value, Mapping):
        cleaned = {str(name): _without_nothing(item) for name, item in value.items()}
        return {name: item for name, item in cleaned.items() if item is not None and item != {}}
    if isinstance(value, list | tuple):
        return [_without_nothing(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
