"""Menagerie: a rendered world of animals and things with exact part masks.

Eleven super-categories and forty parts in the order of PartImageNet, several kinds each. A scene
is a pure function of (seed, index, size, kinds).
"""

from weakly.data.menagerie.kinds import (
    KINDS,
    PART_NAMES,
    PART_SUPER_CATEGORIES,
    PARTS_OF,
    SUPER_CATEGORIES,
    Kind,
)
from weakly.data.menagerie.scene import Scene, SceneObject, ScenePart, render_scene

__all__ = [
    "KINDS",
    "PARTS_OF",
    "PART_NAMES",
    "PART_SUPER_CATEGORIES",
    "SUPER_CATEGORIES",
    "Kind",
    "Scene",
    "SceneObject",
    "ScenePart",
    "render_scene",
]
