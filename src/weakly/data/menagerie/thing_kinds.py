"""The kinds of things, a row each."""

from __future__ import annotations

from weakly.data.menagerie.kind_row import KindRow

# One row per kind reads better as a table.
# fmt: off
_ROAD = ("road", "road", "meadow", "snow", "wall")
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
THINGS: tuple[KindRow, ...] = (
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
