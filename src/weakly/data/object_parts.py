"""Which object a part category belongs to, and what the part is called (spec partclipseg section 2)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weakly.vocabulary import Category, Vocabulary

_OF = "'s"


def object_and_part(category: Category) -> tuple[str | None, str]:
    """``("dog", "head")`` of a category named ``"dog's head"``, or of ``"dog head"`` or ``"head"`` of the object dog.

    The words of the category's object are taken off its name, else the name is split at its first ``'s``
    (``"chest of drawers's leg"`` belongs to ``"chest of drawers"``). Underscores count as spaces. The object is None
    where neither name nor category states one.
    """
    name, whole = _words(category.name), _words(category.object or "")
    start, rest = name[: len(whole)], name[len(whole) :]
    if whole and start.casefold() == whole.casefold() and rest.startswith((" ", _OF)):
        return whole, rest.removeprefix(_OF).strip()
    owner, _, part = (piece.strip() for piece in name.partition(_OF))
    if owner and part:
        return owner, part
    return whole or None, name


def object_table(vocabulary: Vocabulary) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """The objects that own a category, and the owner of each category.

    Returns:
        N_o names in code-point order, and (C,) int64 indices among them; N_o for a category without an object.
    """
    owners = [object_and_part(category)[0] for category in vocabulary.categories]
    objects = tuple(sorted({owner for owner in owners if owner is not None}))
    index = {name: i for i, name in enumerate(objects)}
    return objects, np.array([len(objects) if o is None else index[o] for o in owners], np.int64)


def _words(text: str) -> str:
    return " ".join(text.replace("_", " ").split())
