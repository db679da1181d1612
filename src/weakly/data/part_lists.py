"""Class lists of the part datasets, and how the raw part names of Pascal-Part merge into two of them.

They are YAML files in ``part_names/``, each with its own version: changed names or orders are another version, because
the numbers in published label maps mean positions in these lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from weakly.vocabulary import Category, Vocabulary

ListName = Literal["pascal_part_116", "ade20k_part_234", "partimagenet_40"]
MergeName = Literal["pascal_part_116", "pascal_part_60"]

_NUMBER = re.compile(r"_\d+$")


@dataclass(frozen=True)
class PartList:
    """The part classes of a dataset.

    Attributes:
        version: of the list.
        objects: {object: its parts}, both in class order.
        unseen: objects that the published setting does not train on.
        synsets: {object: WordNet id its images are named after}, where the dataset names them so.
    """

    version: int
    objects: Mapping[str, tuple[str, ...]]
    unseen: tuple[str, ...]
    synsets: Mapping[str, str] = field(default_factory=dict)

    def vocabulary(self) -> Vocabulary:
        """Categories ``"<object>'s <part>"`` with their object; the source id of a class is its position."""
        return _vocabulary(self.objects)


@dataclass(frozen=True)
class MergeTable:
    """Which raw part names of Pascal-Part become one part.

    Attributes:
        version: of the table.
        objects: {VOC class: {part: raw names}}; a raw name that ends in ``_*`` stands for ``_1``, ``_2`` ...
    """

    version: int
    objects: Mapping[str, Mapping[str, tuple[str, ...]]]

    def part(self, whole: str, raw: str) -> str | None:
        """The part that a raw name of a VOC class belongs to; None where the table does not have it."""
        names = {raw, _NUMBER.sub("_*", raw)}
        return next((part for part, raws in self.objects.get(whole, {}).items() if names & {*raws}), None)

    def vocabulary(self) -> Vocabulary:
        """Categories ``"<object>'s <part>"`` in the table's order, as :meth:`PartList.vocabulary`."""
        return _vocabulary(self.objects)


@cache
def part_list(name: ListName) -> PartList:
    """The class list of a published dataset."""
    content = _load(name)
    objects = {str(whole): tuple(map(str, parts)) for whole, parts in content["objects"].items()}
    return PartList(content["version"], objects, tuple(content["unseen"]), content.get("synsets", {}))


@cache
def merge_table(name: MergeName) -> MergeTable:
    """How raw part names become the parts of Pascal-Part-116, or of the 60 classes for weak boxes."""
    content = _load(f"{name}_merges")
    objects = {
        str(whole): {str(part): tuple(map(str, raws)) for part, raws in parts.items()}
        for whole, parts in content["objects"].items()
    }
    return MergeTable(content["version"], objects)


def _vocabulary(objects: Mapping[str, Iterable[str]]) -> Vocabulary:
    pairs = [(whole, part) for whole, parts in objects.items() for part in parts]
    return Vocabulary(tuple(Category(f"{whole}'s {part}", whole, k) for k, (whole, part) in enumerate(pairs)))


def _load(name: str) -> dict[str, Any]:
    text = resources.files("weakly.data").joinpath(f"part_names/{name}.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
