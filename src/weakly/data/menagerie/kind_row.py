"""A row of the tables of kinds."""

from __future__ import annotations

from collections.abc import Mapping

from weakly.data.menagerie.roles import RGB

KindRow = tuple[
    str,
    str,
    str,
    Mapping[str, float],
    Mapping[str, float],
    tuple[tuple[RGB, RGB], ...],
    tuple[str, ...],
    tuple[str, ...],
    Mapping[str, RGB],
]
"""Name, super-category, builder, shared proportions; its own proportions; coats; patterns; settings; roles with colours
of their own. As the attributes of :class:`~weakly.data.menagerie.kinds.Kind`."""
