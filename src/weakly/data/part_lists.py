"""Class lists of the published part datasets, and how the raw part names of Pascal-Part merge into one of them.

They are YAML files in ``part_names/``, each with its own version: changed names or orders are another version, because
the numbers in published label maps mean positions in these lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

from weakly.vocabulary import Category, Vocabulary

ListName = Literal["pascal_part_116", "ade20k_part_234", "partimagenet_40"]


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
        pairs = [(whole, part) for whole, parts in self.objects.items() for part in parts]
        return Vocabulary(tuple(Category(f"{whole}'s {part}", whole, k) for k, (whole, part) in enumerate(pairs)))


@cache
def part_list(name: ListName) -> PartList:
    """The class list of a published dataset."""
    content = _load(name)
    objects = {str(whole): tuple(map(str, parts)) for whole, parts in content["objects"].items()}
    return PartList(content["version"], objects, tuple(content["unseen"]), content.get("synsets", {}))


@cache
def pascal_part_merges() -> tuple[int, Mapping[tuple[str, str], str]]:
    """Version of the merge table, and {(VOC class, raw part name): part}; ``_*`` stands for a number."""
    content = _load("pascal_part_merges")
    merges = {
        (whole, raw): part
        for whole, parts in content["objects"].items()
        for part, raws in parts.items()
        for raw in raws
    }
    return content["version"], merges


def _load(name: str) -> dict[str, Any]:
    text = resources.files("weakly.data").joinpath(f"part_names/{name}.yaml").read_text("utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
