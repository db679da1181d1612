"""The kinds of animals, a row each."""

from __future__ import annotations

from weakly.data.menagerie.kind_row import KindRow

# One row per kind reads better as a table.
# fmt: off
_LAND = ("meadow", "forest", "savanna", "snow")
_AIR = ("sky", "forest", "meadow", "lake")
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
ANIMALS: tuple[KindRow, ...] = (
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
)
# fmt: on
