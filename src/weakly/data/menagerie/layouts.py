"""How a world of the menagerie can be written to disk: one writer per layout, all with the same arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from weakly.data.menagerie.write import write_partimagenet
from weakly.data.menagerie.write_kinds import write_kinds
from weakly.data.menagerie.write_voc import write_voc

LayoutName = Literal["partimagenet", "voc", "kinds"]

WRITERS: Mapping[LayoutName, Callable[..., None]] = {
    "partimagenet": write_partimagenet,
    "voc": write_voc,
    "kinds": write_kinds,
}
"""``partimagenet``: parts of super-categories; ``voc``: whole things; ``kinds``: parts of kinds."""
