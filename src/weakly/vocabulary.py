"""The category names, the objects they belong to, and the colours they are drawn in."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from weakly.errors import UserError

_OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}

_SIDES = rf"(?<![a-zA-Z])({'|'.join(_OTHER_SIDE)})(?![a-zA-Z])"
"""Those words, whole: ``front_left_door`` has one, ``bright light`` has none."""


@dataclass(frozen=True, slots=True)
class Category:
    """One category.

    Attributes:
        name: what the dataset calls it, e.g. ``"Quadruped Head"``.
        object: the whole it is a part of, e.g. ``"Quadruped"``; None for whole things.
        source_id: the id in the dataset's own files (COCO ids have gaps); written back on export.
    """

    name: str
    object: str | None = None
    source_id: int | None = None


@dataclass(frozen=True)
class Vocabulary:
    """Contiguous categories 0..C-1; index C is "no part" (background) everywhere in the package."""

    categories: tuple[Category, ...]
    _index: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        index = {category.name: i for i, category in enumerate(self.categories)}
        if len(index) != len(self.categories):
            names = [category.name for category in self.categories]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise UserError(f"The category name {twice[0]!r} is declared twice; give every category its own name.")
        object.__setattr__(self, "_index", index)

    @classmethod
    def from_names(cls, names: Iterable[str]) -> Vocabulary:
        """Categories without objects, numbered in the order given."""
        return cls(tuple(Category(name) for name in names))

    def __len__(self) -> int:
        return len(self.categories)

    @property
    def names(self) -> tuple[str, ...]:
        """Category names in index order."""
        return tuple(category.name for category in self.categories)

    @property
    def background(self) -> int:
        """The index that means "no part": C."""
        return len(self.categories)

    def index(self, name: str) -> int:
        """Index of a category name.

        Raises:
            UserError: the name is unknown.
        """
        if name not in self._index:
            known = ", ".join(self.names[:8]) + (", ..." if len(self) > 8 else "")
            raise UserError(f"Unknown category {name!r}; this vocabulary has {known}.")
        return self._index[name]

    def source_id(self, index: int) -> int:
        """The id of category ``index`` in the dataset's own files; its index where the dataset states none."""
        source_id = self.categories[index].source_id
        return index if source_id is None else source_id

    def by_source_id(self) -> dict[int, int]:
        """{id in the dataset's own files: index}, in index order."""
        return {self.source_id(index): index for index in range(len(self))}

    def mirrored(self) -> NDArray[np.int64]:
        """(C,) the category of every part in the mirrored image: names that say left and right swap, others stay."""
        swapped = (re.sub(_SIDES, lambda side: _OTHER_SIDE[side.group()], name) for name in self.names)
        return np.array([self._index.get(name, i) for i, name in enumerate(swapped)], np.int64)

    def palette(self) -> NDArray[np.uint8]:
        """(C + 1, 3) uint8 RGB: hues by golden ratio, parts of one object alternating in value; last row black."""
        saturations, values = (0.85, 0.55, 0.7), (1.0, 0.95, 0.8)
        colours = [
            colorsys.hsv_to_rgb((0.61803398875 * i + 0.05) % 1.0, saturations[i % 3], values[i // 3 % 3])
            for i in range(len(self))
        ]
        return (np.array([*colours, (0.0, 0.0, 0.0)]) * 255).round().astype(np.uint8)

    def to_dict(self) -> list[dict[str, str | int | None]]:
        """JSON form: ``[{"name", "object", "source_id"}, ...]`` in index order."""
        return [{"name": c.name, "object": c.object, "source_id": c.source_id} for c in self.categories]

    @classmethod
    def from_dict(cls, rows: Iterable[dict[str, str | int | None]]) -> Vocabulary:
        """The inverse of :meth:`to_dict`."""
        return cls(
            tuple(
                Category(
                    str(row["name"]),
                    None if row.get("object") is None else str(row["object"]),
                    None if row.get("source_id") is None else int(row["source_id"]),  # type: ignore[arg-type]
                )
                for row in rows
            )
        )
