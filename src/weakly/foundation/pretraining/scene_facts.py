"""What a view of a rendered picture shows, as facts: true, false or unclear.

Unclear is a fox half outside the view, a hue between red and orange, a tree that may stand in the meadow. The maps
behind a picture are read here and go no further.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.kinds import KINDS, PART_NAMES, SUPER_CATEGORIES
from weakly.data.menagerie.scene import Scene
from weakly.data.menagerie.textures import DRY, SETTINGS

Fact: TypeAlias = tuple[str, ...]
"""A family and its words: ``("noun", "fox")``, ``("part", "fox", "head")`` (owner empty: any), ``("colour", "red",
"fox")``, ``("position", "left", "fox")``, ``("count", "two", "fox")``, ``("word", "sky")``, ``("place", "meadow")``.
"""

NOUNS: tuple[str, ...] = (*KINDS, *(name.lower() for name in SUPER_CATEGORIES))
COUNTS = ("one", "two", "three")

# True and unclear ranges of an object's centre along an axis (0 across, 1 down), as fractions of the view.
POSITIONS = {
    "left": ("on the left", 0, (0.0, 0.38), (0.0, 0.48)),
    "right": ("on the right", 0, (0.62, 1.0), (0.52, 1.0)),
    "middle": ("in the middle", 0, (0.43, 0.57), (0.32, 0.68)),
    "top": ("at the top", 1, (0.0, 0.38), (0.0, 0.5)),
    "bottom": ("at the bottom", 1, (0.62, 1.0), (0.5, 1.0)),
}
_OBJECT_FLOOR = 0.003  # smallest clear object and part, as fractions of the view
_PART_FLOOR = 0.002
_SEEN = 0.5  # share of an object's pixels that must lie in the view ...
_LARGE = 0.08  # ... unless what is in the view fills this much of it
_COLOUR_TRUE, _COLOUR_UNCLEAR = 0.45, 0.15  # share of the object's pixels


@dataclass(frozen=True)
class Backdrop:
    """The words a setting stands for.

    Attributes:
        phrase: where a thing in it is.
        above: words true of what lies above the horizon.
        below: words true of what lies below it.
        perhaps: words of what may stand about; never stated, never held against a caption.
    """

    phrase: str
    above: tuple[str, ...]
    below: tuple[str, ...]
    perhaps: tuple[str, ...] = ()


BACKDROPS: dict[str, Backdrop] = {
    "meadow": Backdrop("in a meadow", ("sky",), ("grass", "ground", "land"), ("tree", "cloud")),
    "forest": Backdrop("in a forest", ("tree",), ("ground", "land"), ("grass",)),
    "savanna": Backdrop("on the savanna", ("sky",), ("ground", "land", "sand"), ("grass", "cloud")),
    "snow": Backdrop("in the snow", ("sky",), ("snow", "ground"), ("tree", "cloud", "land")),
    "sky": Backdrop("in the sky", ("sky", "cloud"), ("sky",)),
    "lake": Backdrop("at a lake", (), ("lake", "water"), ("sky", "grass", "tree", "river")),
    "ocean": Backdrop("on the ocean", ("sky",), ("ocean", "sea", "water"), ("cloud", "land")),
    "sea": Backdrop("under the sea", ("sea", "water"), ("sea", "water"), ("ocean", "grass", "ground")),
    "road": Backdrop("on a road", ("sky",), ("road", "street"), ("ground", "cloud", "tree")),
    "wall": Backdrop("by a wall", ("wall",), ("ground",), ("road", "street")),
    "room": Backdrop("in a room", ("wall",), ("floor",), ("ground",)),
}
BACKGROUND_WORDS: tuple[str, ...] = tuple(
    dict.fromkeys(word for backdrop in BACKDROPS.values() for word in (*backdrop.above, *backdrop.below))
)
"""Names of what is not an object: those of FMA spec 8.2 that occur in the menagerie, and sand, snow, floor."""

_PAINTS: tuple[tuple[str, tuple[int, int, int]], ...] = (
    ("black", (22, 22, 24)),
    ("grey", (128, 128, 130)),
    ("grey", (80, 82, 86)),
    ("grey", (176, 178, 182)),
    ("white", (240, 238, 232)),
    ("red", (200, 36, 36)),
    ("red", (128, 24, 28)),
    ("orange", (230, 126, 36)),
    ("yellow", (238, 204, 72)),
    ("green", (84, 140, 66)),
    ("green", (44, 78, 46)),
    ("green", (96, 104, 62)),
    ("blue", (46, 96, 180)),
    ("blue", (36, 56, 100)),
    ("blue", (140, 180, 220)),
    ("turquoise", (88, 170, 164)),
    ("purple", (130, 40, 110)),
    ("pink", (236, 160, 160)),
    ("brown", (112, 74, 46)),
    ("brown", (66, 46, 34)),
    ("brown", (158, 110, 68)),
    ("beige", (206, 174, 130)),
)
COLOURS: tuple[str, ...] = tuple(dict.fromkeys(name for name, _ in _PAINTS))


@dataclass(frozen=True)
class Inventory:
    """What a rendered picture contains, by name.

    Attributes:
        place: key of :data:`BACKDROPS`.
        horizon: its height as a fraction of the picture, from the top; above 1 for none.
        kinds: kind of each object.
        areas: visible pixels of each object, as fractions of the picture.
        parts: (index into ``PART_NAMES``, object) of part map values 1, 2, ...
    """

    place: str
    horizon: float
    kinds: tuple[str, ...]
    areas: tuple[float, ...]
    parts: tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class View:
    """A square cut out of a picture, perhaps mirrored, before it is resized.

    Attributes:
        image: (H, H, 3) uint8 RGB.
        part_map: (H, H) uint8, values as in ``inventory.parts``. Read for the captions only, never trained on.
        inventory: of the whole picture.
        top: of the view, as a fraction of the picture.
        side: of the view, as a fraction of the picture.
    """

    image: NDArray[np.uint8]
    part_map: NDArray[np.uint8]
    inventory: Inventory
    top: float = 0.0
    side: float = 1.0


@dataclass(frozen=True)
class Facts:
    """Attributes: ``true`` facts of a view, and those ``possible``: true or unclear. All others are false."""

    true: frozenset[Fact]
    possible: frozenset[Fact]


def backdrop_of(seed: int, index: int) -> tuple[str, float]:
    """Place and horizon of ``render_scene(seed, index)``, which draws them first and does not tell them."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    count = int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))
    names = list(KINDS)
    settings = KINDS[names[rng.integers(len(names))]].settings
    place = settings[rng.integers(len(settings))]
    if place in DRY and rng.random() < 0.15:
        place = DRY[rng.integers(len(DRY))]
    for _ in range(count - 1):
        rng.integers(len(names))
    return place, float(rng.uniform(*SETTINGS[place].horizon))


def take_inventory(scene: Scene, place: str, horizon: float) -> Inventory:
    """The names of a rendered scene."""
    pixels = np.bincount(scene.object_map.ravel(), minlength=len(scene.objects) + 1)[1:]
    return Inventory(
        place,
        horizon,
        tuple(thing.kind for thing in scene.objects),
        tuple(float(area) for area in pixels / scene.object_map.size),
        tuple((part.category, part.object_index) for part in scene.parts),
    )


def read_facts(view: View) -> Facts:
    """The facts of a view: of its backdrop, of each object under its kind and super-category, and of each part."""
    inventory = view.inventory
    true, possible = _backdrop_facts(inventory.place, (inventory.horizon - view.top) / view.side)
    part_areas = np.bincount(view.part_map.ravel(), minlength=len(inventory.parts) + 1)[1:] / view.part_map.size
    areas = np.zeros(len(inventory.kinds))
    for (category, owner), area in zip(inventory.parts, part_areas, strict=True):
        areas[owner] += area
        super_category, part = _part_words(category)
        if area > 0:
            named = {("part", name, part) for name in ("", inventory.kinds[owner], super_category)}
            possible |= named
            true |= named if area >= _PART_FLOOR else set()
    whole = np.array(inventory.areas) / view.side**2
    clear = (areas >= _OBJECT_FLOOR) & ((areas >= _SEEN * whole) | (areas >= _LARGE))
    colours, centres = _look(view)
    counts: dict[str, list[bool]] = {}
    for number in np.flatnonzero(areas > 0):
        sure, unsure = _appearance(colours[number], centres[number])
        for noun in (inventory.kinds[number], KINDS[inventory.kinds[number]].super_category.lower()):
            counts.setdefault(noun, []).append(bool(clear[number]))
            possible |= {("noun", noun), *((family, word, noun) for family, word in (*sure, *unsure))}
            if clear[number]:
                true |= {("noun", noun), *((family, word, noun) for family, word in sure)}
    for noun, seen in counts.items():
        between = {("count", COUNTS[n - 1], noun) for n in range(max(sum(seen), 1), min(len(seen), len(COUNTS)) + 1)}
        possible |= between
        true |= between if all(seen) else set()
    return Facts(frozenset(true), frozenset(possible))


def _backdrop_facts(place: str, horizon: float) -> tuple[set[Fact], set[Fact]]:
    backdrop = BACKDROPS[place]
    true: set[Fact] = {("place", place)}
    true |= {("word", word) for word in backdrop.above if horizon > 0.15}
    true |= {("word", word) for word in backdrop.below if horizon < 0.85}
    return true, true | {("word", word) for word in (*backdrop.above, *backdrop.below, *backdrop.perhaps)}


def _part_words(category: int) -> tuple[str, str]:
    super_category, part = PART_NAMES[category].lower().split(" ", 1)
    return super_category, part


def _look(view: View) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Of each object in the view: shares of the colours (N, C), and its centre x, y (N, 2) in [0, 1]."""
    n, side = len(view.inventory.kinds), view.part_map.shape[0]
    rows, columns = np.nonzero(view.part_map)
    owners = np.array([owner for _, owner in view.inventory.parts], np.intp)
    owner = owners[view.part_map[rows, columns].astype(np.intp) - 1]
    bits = view.image[rows, columns].astype(np.intp) >> 3
    colour = _colour_table()[(bits[:, 0] << 10) | (bits[:, 1] << 5) | bits[:, 2]]
    pixels = np.bincount(owner * len(COLOURS) + colour, minlength=n * len(COLOURS)).reshape(n, len(COLOURS))
    total = pixels.sum(1, keepdims=True).clip(min=1)
    centres = np.stack([np.bincount(owner, weights=(at + 0.5) / side, minlength=n) for at in (columns, rows)], 1)
    return pixels / total, centres / total


@lru_cache(maxsize=1)
def _colour_table() -> NDArray[np.intp]:
    """Index into :data:`COLOURS` by 15-bit RGB: the name of the nearest paint in CIE Lab."""
    levels = (np.arange(32, dtype=np.float32) * 8 + 4) / 255
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(1, -1, 3)
    paints = np.array([rgb for _, rgb in _PAINTS], np.float32)[None] / 255
    lab, targets = (cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0] for colours in (cube, paints))
    nearest = ((lab[:, None] - targets[None]) ** 2).sum(-1).argmin(1)
    return np.array([COLOURS.index(name) for name, _ in _PAINTS], np.intp)[nearest]


def _appearance(
    shares: NDArray[np.float64], centre: NDArray[np.float64]
) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(family, word) pairs of an object's colour and position that are true, and those that are unclear."""
    sure = [("colour", COLOURS[i]) for i in np.flatnonzero(shares >= max(_COLOUR_TRUE, shares.max()))]
    unsure = [("colour", COLOURS[i]) for i in np.flatnonzero(shares >= _COLOUR_UNCLEAR)]
    for word, (_, axis, (low, high), (unclear_low, unclear_high)) in POSITIONS.items():
        if low <= centre[axis] <= high:
            sure.append(("position", word))
        elif unclear_low <= centre[axis] <= unclear_high:
            unsure.append(("position", word))
    return sure, unsure
