"""The one table that drives the menagerie: super-categories, their parts, and the kinds.

To add a kind, add a row to `_ROWS`; to add a super-category, also add its parts to
`PARTS_OF` and the function that sketches it to `BUILDERS` in `scene.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

RGB = tuple[int, int, int]

# The names and their order are PartImageNet's ("Tier" is its spelling of tyre).
PARTS_OF: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "Quadruped": ("Head", "Body", "Foot", "Tail"),
        "Biped": ("Head", "Body", "Hand", "Foot", "Tail"),
        "Fish": ("Head", "Body", "Fin", "Tail"),
        "Bird": ("Head", "Body", "Wing", "Foot", "Tail"),
        "Snake": ("Head", "Body"),
        "Reptile": ("Head", "Body", "Foot", "Tail"),
        "Car": ("Body", "Tier", "Side Mirror"),
        "Bicycle": ("Body", "Head", "Seat", "Tier"),
        "Boat": ("Body", "Sail"),
        "Aeroplane": ("Head", "Body", "Engine", "Wing", "Tail"),
        "Bottle": ("Mouth", "Body"),
    }
)
SUPER_CATEGORIES: tuple[str, ...] = tuple(PARTS_OF)
PART_NAMES: tuple[str, ...] = tuple(f"{s} {part}" for s in PARTS_OF for part in PARTS_OF[s])
PART_SUPER_CATEGORIES: tuple[str, ...] = tuple(s for s in PARTS_OF for _ in PARTS_OF[s])


@dataclass(frozen=True)
class Kind:
    """One kind of object.

    Attributes:
        name: Unique lower-case name.
        wordnet_id: Pseudo WordNet id, ``n9`` and seven more digits.
        super_category: One of `SUPER_CATEGORIES`.
        builder: Key of the sketching function in `scene.BUILDERS`.
        coats: (main, accent) colours of which each instance takes one pair and jitters it.
        patterns: Names of `textures.PATTERNS` of which each instance takes one.
        settings: Names of `textures.SETTINGS` this kind is usually seen in.
        proportions: Lengths and angles for the builder, in sketch units and radians.
        roles: Colours of single roles (such as ``"beak"``) that differ from the general table.
    """

    name: str
    wordnet_id: str
    super_category: str
    builder: str
    coats: tuple[tuple[RGB, RGB], ...]
    patterns: tuple[str, ...]
    settings: tuple[str, ...]
    proportions: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, RGB] = field(default_factory=dict)


@dataclass(frozen=True)
class Role:
    """How a role of the palette derives from an instance's two colours.

    Attributes:
        colour: A colour of its own, or None to derive it from the coat.
        mix: Share of the accent colour, 0 to 1.
        tone: Brightness factor.
        pattern: How strongly the coat's pattern shows, 0 to 1.
        grain: How strongly its fine grain shows.
        gloss: Strength of highlights.
    """

    colour: RGB | None = None
    mix: float = 0.0
    tone: float = 1.0
    pattern: float = 0.0
    grain: float = 0.3
    gloss: float = 0.0


ROLES: Mapping[str, Role] = MappingProxyType(
    {
        "main": Role(pattern=1.0, grain=1.0),
        "accent": Role(mix=0.85, pattern=0.2, grain=0.8),
        "head": Role(mix=0.12, tone=1.06, pattern=0.5, grain=0.8),
        "limb": Role(mix=0.05, tone=0.82, pattern=0.6, grain=0.9),
        "paw": Role(mix=0.1, tone=0.6, grain=0.6),
        "tail": Role(mix=0.1, tone=0.9, pattern=0.8, grain=1.0),
        "fin": Role(mix=0.35, tone=0.92, pattern=0.4, grain=0.8),
        "wing": Role(mix=0.15, tone=0.82, pattern=0.8, grain=1.0),
        "band": Role(mix=0.9, tone=0.8, pattern=0.1, grain=0.8),
        "shell": Role(mix=0.6, tone=0.75, pattern=0.8, grain=1.0, gloss=0.2),
        "cap": Role(mix=0.6, tone=0.75, grain=0.7),
        "engine": Role(mix=0.3, tone=0.85, gloss=0.5),
        "mirror": Role(mix=0.25, tone=0.9, gloss=0.5),
        "bar": Role((70, 72, 78), gloss=0.5),
        "jib": Role((236, 230, 214), tone=0.95, grain=0.5),
        "sail": Role((243, 240, 230), grain=0.5),
        "label": Role((236, 226, 200), grain=0.4),
        "liquid": Role(mix=0.5, tone=0.7, gloss=0.4),
        "skin": Role((196, 152, 122), grain=0.4),
        "dark": Role((42, 36, 34), grain=0.5),
        "eye": Role((18, 15, 14), gloss=0.6, grain=0.0),
        "white": Role((246, 246, 242), grain=0.1),
        "beak": Role((222, 160, 52), grain=0.4, gloss=0.3),
        "tongue": Role((200, 50, 60)),
        "glass": Role((92, 122, 142), gloss=0.8, grain=0.2),
        "tyre": Role((38, 38, 41), grain=0.6),
        "metal": Role((176, 180, 186), gloss=0.8, grain=0.3),
        "lamp": Role((250, 236, 180), gloss=0.8, grain=0.1),
        "red": Role((196, 36, 32), gloss=0.6, grain=0.1),
        "wood": Role((126, 88, 54), grain=1.0),
        "seat": Role((74, 48, 34), grain=0.5, gloss=0.2),
    }
)

# As in the columns of `_ROWS`.
_Row = tuple[
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

# One row per kind reads better as a table.
# fmt: off
_LAND = ("meadow", "forest", "savanna", "snow")
_AIR = ("sky", "forest", "meadow", "lake")
_ROAD = ("road", "road", "meadow", "snow", "wall")
_FUR = ("fur", "fur", "patches")
_QUAD = {"girth": 0.2, "leg": 0.5, "paw": 0.06, "neck": 0.3, "neck_angle": 0.8, "head": 0.12,
  "muzzle": 0.2, "ear": 0.12, "ear_width": 0.05, "tail": 0.4, "tail_width": 0.05}
_BIPED = {"lean": 0.2, "girth": 0.16, "trunk": 0.42, "neck": 0.2, "head": 0.13, "muzzle": 0.1,
  "ear": 0.05, "crouch": 0.4, "leg": 0.5, "foot": 0.12, "limb": 0.05, "arm": 0.6, "tail": 0.6,
  "tail_width": 0.035}
_FISH = {"deep": 0.16, "head": 0.24, "tail": 0.26, "dorsal": 0.14, "dorsal_width": 0.22,
  "pelvic": 0.12, "pectoral": 0.18}
_BIRD = {"girth": 0.17, "flies": 0.5, "tilt": 0.35, "neck_angle": 0.9, "neck": 0.1, "head": 0.1,
  "tail": 0.18, "wing": 0.75, "chord": 0.3, "leg": 0.17, "toe": 0.08, "shank": 0.017, "beak": 0.1,
  "beak_width": 0.035}
_SNAKE = {"width": 0.05, "coils": 0.5, "rear": 0.05, "step": 3, "mark": 0.7, "head": 0.062}
_REPTILE = {"girth": 0.12, "leg": 0.22, "paw": 0.06, "thick": 0.035, "tail": 0.55, "look": 0.3,
  "neck": 0.12, "head": 0.085, "jaw": 0.12, "snout": 0.5}
_CAR = {"wheel": 0.095, "height": 0.36, "deck": 0.235, "rear_base": -0.42, "rear_top": -0.27,
  "front_top": 0.08, "front_base": 0.24, "rear_axle": -0.3, "front_axle": 0.31, "hood_drop": 0.03,
  "windows": 2, "spokes": 5, "mirror": 0.052}
_BIKE = {"wheel": 0.3, "base": 0.86, "tube": 0.02, "tyre": 0.02, "crank": -0.06, "slant": 0.12,
  "seat": 0.82, "rake": 0.16, "stem": 0.8, "gap": 0.0, "pad": 0.1, "reach": 0.14, "drop": 0.12,
  "raise": 0.0}
_BOAT = {"deep": 0.16, "bow": 0.07, "masts": 1, "mast": 1.0, "boom": 0.45, "jib": 0.36,
  "cabin": 0.0, "ports": 4}
_PLANE = {"girth": 0.075, "span": 0.36, "sweep": 0.26, "chord": 0.26, "engine": 0.055, "pods": 1,
  "fin": 0.2, "windows": 9, "nose": 0.35, "propeller": 0.0}
_BOTTLE = {"radius": 0.15, "neck_radius": 0.05, "shoulder": 0.55, "mouth": 0.12, "waist": 1.0,
  "slope": 0.16, "opaque": 0.92, "cap": 1.15}
# name, super-category, builder, shared proportions
# its own proportions; coats; patterns; settings; roles with colours of their own
_ROWS: tuple[_Row, ...] = (
    (
        "fox", "Quadruped", "quadruped", _QUAD,
        {"girth": 0.15, "leg": 0.38, "thick": 0.055, "neck": 0.2, "muzzle": 0.19, "blunt": 0.25,
         "ear": 0.17, "ear_width": 0.065, "tail": 0.6, "tail_width": 0.095, "tail_drop": 0.5,
         "paw": 0.05},
        (((206, 106, 44), (244, 232, 214)), ((188, 92, 46), (236, 224, 206)),
         ((140, 136, 134), (232, 230, 226))),
        ("fur",), _LAND, {"limb": (92, 52, 34)},
    ),
    (
        "horse", "Quadruped", "quadruped", _QUAD,
        {"girth": 0.185, "leg": 0.72, "thick": 0.06, "neck": 0.48, "neck_angle": 0.95,
         "gaze": 0.45, "head": 0.1, "muzzle": 0.27, "blunt": 0.58, "ear": 0.08, "ear_width": 0.03,
         "tail": 0.55, "tail_width": 0.05, "tail_drop": 1.1, "mane": 0.055},
        (((132, 78, 44), (112, 66, 40)), ((70, 48, 38), (60, 42, 36)),
         ((206, 200, 192), (180, 172, 166)), ((186, 134, 84), (226, 208, 180))),
        _FUR, ("meadow", "savanna", "forest"), {"tail": (48, 36, 30)},
    ),
    (
        "zebra", "Quadruped", "quadruped", _QUAD,
        {"girth": 0.2, "leg": 0.62, "thick": 0.058, "neck": 0.38, "neck_angle": 0.85,
         "gaze": 0.45, "head": 0.105, "muzzle": 0.23, "blunt": 0.55, "ear": 0.1,
         "ear_width": 0.04, "tail": 0.42, "tail_width": 0.025, "tail_drop": 1.1, "mane": 0.05},
        (((236, 232, 222), (38, 34, 34)),),
        ("stripes",), ("savanna", "meadow"), {"accent": (226, 220, 208)},
    ),
    (
        "bear", "Quadruped", "quadruped", _QUAD,
        {"girth": 0.275, "leg": 0.5, "thick": 0.1, "neck": 0.2, "neck_angle": 0.35, "gaze": 0.1,
         "head": 0.16, "muzzle": 0.21, "blunt": 0.45, "ear": 0.07, "ear_width": 0.055,
         "tail": 0.13, "tail_width": 0.06, "tail_drop": 0.8, "paw": 0.1},
        (((92, 62, 42), (112, 80, 56)), ((52, 44, 42), (110, 84, 62)),
         ((228, 222, 204), (238, 234, 222))),
        ("fur",), _LAND, {},
    ),
    (
        "tiger", "Quadruped", "quadruped", _QUAD,
        {"girth": 0.2, "leg": 0.46, "thick": 0.085, "neck": 0.22, "neck_angle": 0.5, "head": 0.15,
         "muzzle": 0.15, "blunt": 0.55, "ear": 0.07, "ear_width": 0.05, "tail": 0.62,
         "tail_width": 0.038, "tail_drop": 0.8, "paw": 0.09},
        (((216, 134, 52), (44, 34, 30)), ((206, 160, 84), (66, 46, 34))),
        ("stripes", "spots"), ("forest", "savanna", "meadow"), {"accent": (240, 228, 206)},
    ),
    (
        "dog", "Quadruped", "quadruped", _QUAD,
        {"girth": 0.17, "leg": 0.48, "thick": 0.06, "neck": 0.25, "head": 0.125, "muzzle": 0.21,
         "blunt": 0.48, "ear": 0.12, "ear_width": 0.06, "tail": 0.4, "tail_width": 0.042,
         "tail_drop": -0.5},
        (((190, 150, 98), (238, 226, 204)), ((60, 52, 48), (180, 120, 70)),
         ((232, 226, 214), (92, 60, 42)), ((128, 84, 52), (236, 226, 210))),
        ("fur", "patches", "spots"), (*_LAND, "room"), {},
    ),
    (
        "monkey", "Biped", "biped", _BIPED,
        {"girth": 0.14, "crouch": 0.75, "arm": 0.62, "tail": 0.75, "curl": 1.1, "reach": 1.4},
        (((140, 96, 58), (206, 176, 138)), ((92, 78, 66), (186, 166, 140)),
         ((190, 150, 88), (230, 208, 170))),
        ("fur",), ("forest", "forest", "meadow"), {},
    ),
    (
        "ape", "Biped", "biped", _BIPED,
        {"lean": 0.35, "girth": 0.22, "chest": 1.15, "trunk": 0.46, "head": 0.155, "muzzle": 0.12,
         "crouch": 0.45, "leg": 0.4, "limb": 0.075, "arm": 0.8, "tail": 0.0, "ear": 0.035,
         "foot": 0.15},
        (((56, 50, 50), (104, 98, 96)), ((150, 78, 40), (180, 110, 66)),
         ((78, 62, 52), (120, 104, 92))),
        ("fur",), ("forest", "meadow", "wall"), {"skin": (92, 74, 66)},
    ),
    (
        "kangaroo", "Biped", "biped", _BIPED,
        {"lean": 0.45, "girth": 0.2, "chest": 0.6, "trunk": 0.52, "neck": 0.24, "head": 0.1,
         "muzzle": 0.16, "blunt": 0.4, "ear": 0.1, "upright": 1, "crouch": 0.85, "leg": 0.46,
         "thigh": 0.75, "foot": 0.26, "arm": 0.34, "limb": 0.045, "tail": 0.75,
         "tail_width": 0.075, "curl": 0.1, "reach": 0.4},
        (((176, 130, 88), (224, 200, 168)), ((150, 140, 130), (214, 206, 196)),
         ((160, 92, 60), (222, 190, 160))),
        ("fur",), ("savanna", "meadow"), {},
    ),
    (
        "shark", "Fish", "fish", _FISH,
        {"deep": 0.125, "snout": 0.22, "brow": 0.8, "head": 0.24, "tail": 0.28, "upper": 1.15,
         "lower": 0.7, "notch": 0.28, "dorsal": 0.17, "dorsal_width": 0.15, "pelvic": 0.09,
         "pectoral": 0.24, "eye": 0.018},
        (((96, 116, 134), (226, 230, 230)), ((120, 122, 118), (228, 226, 218)),
         ((70, 92, 120), (210, 220, 226))),
        ("plain", "plain", "spots"), ("sea",), {},
    ),
    (
        "goldfish", "Fish", "fish", _FISH,
        {"deep": 0.2, "snout": 0.35, "head": 0.25, "tail": 0.36, "notch": 0.5, "dorsal": 0.12,
         "dorsal_width": 0.34, "pelvic": 0.16, "pectoral": 0.16, "eye": 0.036},
        (((240, 128, 30), (250, 206, 120)), ((226, 66, 40), (250, 240, 230)),
         ((246, 190, 60), (255, 236, 170))),
        ("scales", "scales", "patches"), ("sea", "room"), {},
    ),
    (
        "angelfish", "Fish", "fish", _FISH,
        {"deep": 0.29, "snout": 0.22, "brow": 0.75, "head": 0.25, "tail": 0.26, "dorsal": 0.34,
         "dorsal_width": 0.3, "dorsal_x": -0.05, "pelvic": 0.34, "pectoral": 0.14, "eye": 0.03,
         "bands": 1},
        (((232, 214, 90), (40, 50, 92)), ((200, 210, 216), (40, 40, 44)),
         ((64, 140, 206), (250, 206, 70))),
        ("scales", "plain"), ("sea",), {"accent": (240, 238, 226)},
    ),
    (
        "ray", "Fish", "ray", {"span": 0.46, "tail": 0.5},
        {},
        (((110, 98, 82), (172, 156, 130)), ((62, 76, 92), (190, 204, 210)),
         ((150, 126, 92), (92, 74, 56))),
        ("spots", "plain", "patches"), ("sea",), {},
    ),
    (
        "eagle", "Bird", "bird", _BIRD,
        {"flies": 0.6, "tilt": 0.75, "girth": 0.16, "head": 0.085, "beak": 0.085, "hook": 0.035,
         "wing": 0.85, "chord": 0.32, "leg": 0.12, "toe": 0.09, "shank": 0.024, "fan": 0.08},
        (((92, 64, 42), (70, 48, 34)), ((120, 88, 58), (84, 60, 42))),
        ("feathers",), _AIR, {"head": (238, 234, 224), "cap": (226, 220, 208)},
    ),
    (
        "duck", "Bird", "bird", _BIRD,
        {"flies": 0.2, "tilt": 0.12, "girth": 0.19, "neck": 0.14, "neck_angle": 1.1,
         "head": 0.095, "beak": 0.12, "beak_width": 0.03, "leg": 0.1, "toe": 0.08, "shank": 0.02,
         "tail": 0.12},
        (((150, 126, 98), (226, 218, 204)), ((236, 232, 222), (246, 242, 232)),
         ((110, 98, 88), (200, 190, 176))),
        ("feathers", "plain"), ("lake", "meadow", "sky"), {"head": (36, 92, 62), "cap": (30, 74,
         54)},
    ),
    (
        "heron", "Bird", "bird", _BIRD,
        {"flies": 0.2, "tilt": 0.5, "girth": 0.13, "neck": 0.42, "neck_angle": 1.25, "bend": 0.09,
         "head": 0.062, "beak": 0.21, "beak_width": 0.022, "leg": 0.46, "toe": 0.1,
         "shank": 0.013, "crest": 0.14},
        (((140, 156, 172), (228, 232, 234)), ((238, 238, 234), (220, 224, 226))),
        ("feathers", "plain"), ("lake", "meadow", "sky"), {"cap": (44, 48, 58)},
    ),
    (
        "songbird", "Bird", "bird", _BIRD,
        {"flies": 0.35, "tilt": 0.5, "girth": 0.2, "neck": 0.07, "head": 0.14, "beak": 0.075,
         "beak_width": 0.026, "tail": 0.24, "leg": 0.15, "wing": 0.6},
        (((70, 120, 190), (232, 150, 90)), ((190, 52, 44), (226, 120, 96)),
         ((210, 186, 60), (244, 230, 150)), ((110, 92, 76), (226, 112, 58))),
        ("feathers", "plain"), ("forest", "forest", "meadow", "snow"), {"beak": (70, 64, 60)},
    ),
    (
        "viper", "Snake", "snake", _SNAKE,
        {"width": 0.05, "mark": 0.9, "step": 4, "coils": 0.4},
        (((150, 132, 92), (66, 50, 38)), ((120, 124, 116), (46, 44, 46)),
         ((96, 140, 66), (52, 84, 40))),
        ("scales",), ("savanna", "forest", "meadow"), {},
    ),
    (
        "cobra", "Snake", "snake", _SNAKE,
        {"width": 0.04, "hood": 0.085, "rear": 0.22, "mark": 0.25, "step": 5, "coils": 0.6,
         "head": 0.056},
        (((122, 94, 62), (226, 204, 152)), ((60, 56, 54), (206, 190, 156)),
         ((160, 132, 80), (240, 222, 170))),
        ("scales", "plain"), ("savanna", "wall", "meadow"), {},
    ),
    (
        "python", "Snake", "snake", _SNAKE,
        {"width": 0.072, "mark": 0.7, "step": 4, "coils": 0.8, "rear": 0.0, "head": 0.075},
        (((196, 170, 106), (96, 64, 36)), ((240, 214, 110), (250, 242, 220)),
         ((84, 92, 56), (38, 40, 30))),
        ("scales", "spots"), ("forest", "meadow", "room"), {},
    ),
    (
        "lizard", "Reptile", "reptile", _REPTILE,
        {"girth": 0.095, "tail": 0.75, "thick": 0.03, "spikes": 0.035},
        (((96, 150, 62), (196, 206, 110)), ((150, 120, 76), (222, 190, 130)),
         ((60, 140, 140), (230, 170, 70))),
        ("scales", "spots"), ("savanna", "forest", "wall"), {},
    ),
    (
        "crocodile", "Reptile", "reptile", _REPTILE,
        {"girth": 0.13, "leg": 0.19, "thick": 0.045, "tail": 0.7, "tail_fat": 1.15, "look": 0.05,
         "head": 0.085, "jaw": 0.31, "snout": 0.42, "spikes": 0.03},
        (((92, 104, 66), (176, 176, 128)), ((78, 82, 70), (160, 154, 124))),
        ("scales",), ("lake", "savanna", "meadow"), {},
    ),
    (
        "turtle", "Reptile", "reptile", _REPTILE,
        {"girth": 0.12, "leg": 0.24, "thick": 0.055, "paw": 0.08, "tail": 0.16, "tail_fat": 0.7,
         "look": 0.35, "neck": 0.22, "head": 0.088, "jaw": 0.08, "snout": 0.7, "shell": 0.36},
        (((128, 140, 76), (96, 76, 44)), ((96, 120, 96), (140, 110, 62)),
         ((150, 150, 110), (70, 84, 52))),
        ("scales", "plain"), ("savanna", "meadow", "lake"), {},
    ),
    (
        "sedan", "Car", "car", _CAR,
        {},
        (((176, 36, 40), (60, 58, 60)), ((42, 82, 150), (52, 54, 60)),
         ((196, 200, 204), (70, 72, 76)), ((46, 48, 52), (70, 70, 74))),
        ("paint",), _ROAD, {},
    ),
    (
        "van", "Car", "car", _CAR,
        {"height": 0.46, "deck": 0.26, "rear_base": -0.49, "rear_top": -0.46, "front_top": 0.2,
         "front_base": 0.36, "wheel": 0.088, "windows": 3, "hood_drop": 0.05, "spokes": 6},
        (((234, 232, 226), (60, 120, 150)), ((226, 176, 60), (240, 232, 214)),
         ((86, 150, 140), (238, 232, 216))),
        ("paint",), _ROAD, {},
    ),
    (
        "truck", "Car", "car", _CAR,
        {"height": 0.4, "deck": 0.24, "rear_base": -0.1, "rear_top": -0.07, "front_top": 0.14,
         "front_base": 0.25, "wheel": 0.112, "windows": 1, "hood_drop": 0.01, "spokes": 8,
         "mirror": 0.058},
        (((60, 92, 66), (50, 50, 52)), ((180, 62, 36), (60, 56, 54)),
         ((62, 78, 110), (190, 190, 186))),
        ("paint",), _ROAD, {},
    ),
    (
        "beetle", "Car", "car", _CAR,
        {"height": 0.42, "deck": 0.25, "rear_base": -0.4, "rear_top": -0.2, "front_top": 0.06,
         "front_base": 0.2, "wheel": 0.105, "hood_drop": 0.07, "rear_axle": -0.29,
         "front_axle": 0.29, "spokes": 0},
        (((242, 196, 70), (240, 232, 214)), ((120, 190, 190), (244, 240, 228)),
         ((222, 92, 80), (244, 236, 220))),
        ("paint",), _ROAD, {},
    ),
    (
        "roadbike", "Bicycle", "bicycle", _BIKE,
        {"tyre": 0.015, "drop": 0.16, "reach": 0.16},
        (((206, 40, 44), (240, 240, 240)), ((40, 110, 190), (240, 240, 240)),
         ((52, 54, 58), (200, 60, 50)), ((240, 150, 40), (40, 40, 44))),
        ("paint",), (*_ROAD, "wall"), {"seat": (42, 40, 42)},
    ),
    (
        "cruiser", "Bicycle", "bicycle", _BIKE,
        {"tyre": 0.032, "tube": 0.026, "wheel": 0.28, "seat": 0.72, "stem": 0.84, "rake": 0.2,
         "slant": 0.16, "pad": 0.125, "reach": -0.05, "drop": 0.04, "raise": 0.09},
        (((110, 190, 176), (240, 230, 210)), ((236, 170, 160), (240, 230, 210)),
         ((70, 100, 76), (220, 200, 160))),
        ("paint",), (*_ROAD, "wall"), {"seat": (150, 96, 58)},
    ),
    (
        "tandem", "Bicycle", "bicycle", _BIKE,
        {"base": 1.3, "crank": -0.3, "gap": 0.42, "tyre": 0.018, "wheel": 0.27, "seat": 0.74,
         "stem": 0.74},
        (((150, 40, 90), (240, 240, 240)), ((30, 120, 110), (240, 240, 230)),
         ((210, 180, 60), (50, 50, 50))),
        ("paint",), (*_ROAD, "wall"), {},
    ),
    (
        "sailboat", "Boat", "boat", _BOAT,
        {},
        (((236, 234, 228), (40, 70, 130)), ((40, 60, 104), (190, 50, 44)),
         ((150, 50, 44), (230, 224, 210))),
        ("paint", "wood"), ("ocean",), {},
    ),
    (
        "schooner", "Boat", "boat", _BOAT,
        {"masts": 2, "mast": 0.85, "boom": 0.3, "jib": 0.3, "deep": 0.13, "bow": 0.1, "ports": 6},
        (((96, 62, 40), (60, 44, 34)), ((46, 52, 60), (170, 60, 50)),
         ((220, 212, 196), (96, 62, 40))),
        ("wood", "paint"), ("ocean",), {"sail": (222, 196, 156), "jib": (206, 150, 110)},
    ),
    (
        "dinghy", "Boat", "boat", _BOAT,
        {"mast": 0.75, "boom": 0.42, "jib": 0.0, "deep": 0.2, "bow": 0.05, "ports": 0},
        (((220, 120, 60), (240, 232, 214)), ((70, 150, 170), (240, 240, 236)),
         ((140, 98, 60), (90, 62, 42))),
        ("wood", "paint"), ("ocean",), {"sail": (220, 90, 70)},
    ),
    (
        "airliner", "Aeroplane", "aeroplane", _PLANE,
        {},
        (((240, 240, 242), (40, 80, 160)), ((232, 234, 238), (200, 50, 50)),
         ((210, 216, 222), (30, 130, 120))),
        ("paint",), ("sky",), {},
    ),
    (
        "propplane", "Aeroplane", "aeroplane", _PLANE,
        {"girth": 0.1, "span": 0.42, "sweep": 0.02, "chord": 0.2, "pods": 0, "root": 0.14,
         "windows": 3, "nose": 0.55, "propeller": 0.17, "fin": 0.17},
        (((230, 70, 52), (246, 240, 226)), ((250, 206, 70), (50, 60, 80)),
         ((90, 130, 90), (230, 226, 200))),
        ("paint",), ("sky",), {},
    ),
    (
        "jet", "Aeroplane", "aeroplane", _PLANE,
        {"girth": 0.062, "span": 0.28, "sweep": 0.3, "chord": 0.42, "engine": 0.05, "pods": 1,
         "fin": 0.17, "windows": 0, "nose": 0.12},
        (((132, 142, 152), (84, 94, 104)), ((96, 110, 90), (70, 76, 62)),
         ((60, 90, 140), (220, 220, 224))),
        ("paint", "patches"), ("sky",), {},
    ),
    (
        "winebottle", "Bottle", "bottle", _BOTTLE,
        {"radius": 0.14},
        (((42, 74, 46), (120, 30, 44)), ((62, 40, 28), (150, 40, 50)),
         ((170, 190, 150), (206, 170, 80))),
        ("glass",), ("room", "room", "wall"), {"cap": (110, 28, 40)},
    ),
    (
        "flask", "Bottle", "bottle", _BOTTLE,
        {"radius": 0.24, "neck_radius": 0.1, "shoulder": 0.66, "mouth": 0.16, "slope": 0.1,
         "cap": 1.1, "opaque": 1.0, "handle": 0.1},
        (((70, 110, 140), (230, 226, 214)), ((190, 70, 56), (240, 230, 210)),
         ((110, 124, 96), (226, 214, 180))),
        ("paint", "metal"), ("room", "wall", "meadow"), {"liquid": (130, 136, 140)},
    ),
    (
        "sodabottle", "Bottle", "bottle", _BOTTLE,
        {"radius": 0.17, "neck_radius": 0.055, "shoulder": 0.58, "waist": 0.82, "slope": 0.22,
         "mouth": 0.09, "opaque": 0.7, "cap": 1.25},
        (((150, 190, 180), (200, 40, 40)), ((186, 206, 216), (40, 120, 60)),
         ((120, 170, 210), (240, 150, 40))),
        ("glass",), ("room", "wall"), {},
    ),
)
# fmt: on

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        name: Kind(
            name,
            f"n9{SUPER_CATEGORIES.index(sup) + 1:02d}{number + 1:05d}",
            sup,
            builder,
            coats,
            patterns,
            settings,
            {**shared, **own},
            roles,
        )
        for number, (
            name,
            sup,
            builder,
            shared,
            own,
            coats,
            patterns,
            settings,
            roles,
        ) in enumerate(_ROWS)
    }
)
