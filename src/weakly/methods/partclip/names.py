"""Names of object-specific parts: what is asked for, and the generalised parts and objects it is made of.

A class is called ``"<object>'s <part>"`` (spec partclipseg section 2). The model is asked neither for "dog's head" nor
for "cat's head" but for "head", "dog" and "cat", and composes the rest; this file says which is made of which.
Symbols: K classes, N_p distinct parts, N_o distinct objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from weakly.data.object_parts import object_and_part
from weakly.errors import UserError
from weakly.vocabulary import Category, Vocabulary

_OF = "'s"

REQUEST_FORM = '"dog: head, torso; cat: tail"'
"""How a person asks for names: objects before colons, their parts between commas, semicolons in between."""


@dataclass(frozen=True)
class PartNames:
    """K object-specific part classes, each a pair of an object and a generalised part.

    Attributes:
        objects: the N_o distinct objects, by code point (``"American alligator"`` precedes ``"ape"``).
        parts: the N_p distinct parts, by code point.
        object_of: (K,) index along ``objects``, in the order of the classes.
        part_of: (K,) index along ``parts``.
    """

    objects: tuple[str, ...]
    parts: tuple[str, ...]
    object_of: tuple[int, ...]
    part_of: tuple[int, ...]

    @classmethod
    def from_pairs(cls, pairs: Sequence[tuple[str, str]]) -> PartNames:
        """Names of (object, part) pairs, in their order.

        Raises:
            UserError: there is none, one is empty, or one is given twice.
        """
        if not pairs:
            raise UserError(f"There is no part class; give objects and their parts, such as {REQUEST_FORM}.")
        for index, (whole, part) in enumerate(pairs):
            if not whole or not part:
                raise UserError(f"Class {index} has object {whole!r} and part {part!r}; neither may be empty.")
        pair, times = Counter(pairs).most_common(1)[0]
        if times > 1:
            raise UserError(f"The class {_join(*pair)!r} is given {times} times; give every class once.")
        objects, parts = (tuple(sorted(set(names))) for names in zip(*pairs, strict=True))
        object_at, part_at = ({name: index for index, name in enumerate(names)} for names in (objects, parts))
        return cls(
            objects,
            parts,
            tuple(object_at[whole] for whole, _ in pairs),
            tuple(part_at[part] for _, part in pairs),
        )

    @classmethod
    def from_classes(cls, names: Sequence[str]) -> PartNames:
        """Names of classes called ``"<object>'s <part>"``; the first ``'s`` divides.

        Raises:
            UserError: a name has another form, or is given twice.
        """
        return cls.from_pairs([_pair_of(index, Category(name)) for index, name in enumerate(names)])

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names, ``"<object>'s <part>"``."""
        return tuple(_join(whole, part) for whole, part in self.pairs)

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """The K pairs of an object and a part."""
        return tuple(
            (self.objects[whole], self.parts[part]) for whole, part in zip(self.object_of, self.part_of, strict=True)
        )

    def __len__(self) -> int:
        return len(self.object_of)

    def select(self, indices: Sequence[int]) -> PartNames:
        """Names of some classes, in the order of ``indices``; objects and parts that none of them needs are gone.

        Raises:
            UserError: there is no index.
        """
        pairs = self.pairs
        return PartNames.from_pairs([pairs[index] for index in indices])


def class_pairs(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The (object, part) pair of every category, see :func:`~weakly.data.object_parts.object_and_part`.

    Raises:
        UserError: a category tells no object, or nothing but its object.
    """
    return [_pair_of(index, category) for index, category in enumerate(vocabulary.categories)]


def part_names(vocabulary: Vocabulary) -> PartNames:
    """The names of :func:`class_pairs`: class ``k`` is category ``k``.

    Raises:
        UserError: as :func:`class_pairs`, or two categories are the same part of the same object.
    """
    return PartNames.from_pairs(class_pairs(vocabulary))


def parse_request(text: str) -> Vocabulary:
    """What a person asks for, ``"dog: head, torso; cat: tail"``, as categories ``"dog's head"`` with their object.

    White space around names does not count, nor does a semicolon at the end; a line break is a semicolon.

    Raises:
        UserError: the text has another form, or a name is empty or given twice (upper and lower case are one name).
    """
    groups = [group for group in text.replace("\n", ";").split(";") if group.strip()]
    if not groups:
        raise UserError(f"The names are empty; write objects and their parts as {REQUEST_FORM}.")
    pairs = [pair for group in groups for pair in _parse_group(group)]
    names = Counter(_join(*pair).casefold() for pair in pairs)
    name, times = names.most_common(1)[0]
    if times > 1:
        raise UserError(f"The names ask for {name!r} {times} times; ask for every part once.")
    return Vocabulary(tuple(Category(_join(whole, part), object=whole) for whole, part in pairs))


def _parse_group(group: str) -> list[tuple[str, str]]:
    """``"dog: head, torso"`` to its pairs."""
    whole, *rest = (_squeeze(piece) for piece in group.split(":"))
    if len(rest) != 1:
        raise UserError(f"The names {_squeeze(group)!r} have {len(rest)} colons; write them as {REQUEST_FORM}.")
    if not whole:
        raise UserError(f"The names {_squeeze(group)!r} lack the object before the colon; write {REQUEST_FORM}.")
    if _OF in whole:
        raise UserError(f"The object {whole!r} contains {_OF!r}, which divides object and part; name it without.")
    parts = [_squeeze(part) for part in rest[0].split(",")]
    if not all(parts):
        raise UserError(f"The object {whole!r} has an empty part name; write its parts as {REQUEST_FORM}.")
    return [(whole, part) for part in parts]


def _pair_of(index: int, category: Category) -> tuple[str, str]:
    whole, part = object_and_part(category)
    if whole is None:
        raise UserError(
            f'Category {index} ({category.name!r}) names no object; call it "<object>\'s <part>" or give its object.'
        )
    if part == whole == category.name:
        raise UserError(f"Category {index} ({category.name!r}) is the whole {whole!r} and no part of it; leave it out.")
    return whole, part


def _join(whole: str, part: str) -> str:
    return f"{whole}{_OF} {part}"


def _squeeze(text: str) -> str:
    return " ".join(text.split())
