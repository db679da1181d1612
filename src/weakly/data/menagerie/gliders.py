"""Articulated sketches of the animals without legs: fish, rays and snakes.

Each function draws one pose, facing right: ``rng`` moves the joints, ``p`` holds the kind's
proportions.
"""

from __future__ import annotations

import numpy as np

from weakly.data.menagerie.shapes import (
    Points,
    Sketch,
    blob,
    ellipse,
    point,
    polar,
    polygon,
    ribbon,
    spline,
    stroke,
)
from weakly.data.menagerie.walkers import DOWN, Proportions, add_eye


def fish(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Shark, goldfish, angelfish: a spindle that bends, with fins as fans."""
    s = Sketch()
    deep, sway = p["deep"], rng.uniform(-0.09, 0.09)
    spine = polygon((0.5, sway * 0.3), (0.25, 0), (-0.05, -sway * 0.4), (-0.35, sway * 0.5), (-0.5, sway * 1.2))
    radii = np.array([p.get("snout", 0.3), p.get("brow", 0.85), 1.0, 0.42, 0.2]) * deep

    def fin(n: int, base: Points, width: float, angle: float, length: float, tone: float) -> None:
        tip = base + polar(angle, length)
        half = point(width / 2, 0)
        trail = tip + polar(angle + 0.9 * np.sign(np.sin(angle) + 1e-6), length * 0.25)
        s.add(
            "Fin",
            blob(base + half, (base + half + tip) / 2, tip, trail, base - half, per_span=4),
            n=n,
            paint="fin",
            tone=tone,
        )
        for k in (-0.5, 0.0, 0.5):
            s.add(
                "Fin",
                stroke([base + half * k, (tip + trail) / 2 + half * k * 0.5], [0.006, 0.004]),
                n=n,
                paint="tail",
                detail=True,
                clip=True,
            )

    tail, root = p["tail"], spine[-1]
    lift = rng.uniform(-0.25, 0.25)
    upper = root + polar(np.pi + 0.75 + lift, tail * p.get("upper", 1.0))
    lower = root + polar(np.pi - 0.75 + lift, tail * p.get("lower", 1.0))
    notch = root + polar(np.pi + lift, tail * p.get("notch", 0.45))
    s.add(
        "Tail",
        blob(
            root + point(0.05, 0),
            (root + upper) / 2 + point(0.02, -0.02),
            upper,
            notch,
            lower,
            (root + lower) / 2 + point(0.02, 0.02),
            per_span=5,
        ),
        paint="tail",
    )
    for angle in (-0.5, 0.0, 0.5):
        s.add(
            "Tail",
            stroke([root, root + polar(np.pi + angle + lift, tail * 0.75)], [0.008, 0.004]),
            paint="fin",
            detail=True,
            clip=True,
        )
    fin(
        0,
        point(p.get("dorsal_x", 0.02), -deep * 0.75),
        p["dorsal_width"],
        -DOWN - 0.5 + rng.uniform(-0.2, 0.2),
        p["dorsal"] + deep * 0.25,
        0.95,
    )
    fin(1, point(-0.2, deep * 0.45), p["pelvic"] * 0.9, DOWN + 0.6, p["pelvic"] + deep * 0.1, 0.9)
    s.add("Body", stroke(spine, radii))
    s.add(
        "Body",
        stroke(spine + point(0, deep * 0.75), radii * 0.55),
        paint="accent",
        detail=True,
        clip=True,
    )
    if p.get("bands", 0.0) > 0:
        for x in (0.1, -0.12, -0.33):
            s.add(
                "Body",
                stroke([(x, -deep), (x - 0.03, 0), (x, deep)], [0.03, 0.045, 0.03]),
                paint="band",
                detail=True,
                clip=True,
            )
    gill = 0.5 - p["head"]
    s.add(
        "Head",
        stroke(spine[:2], radii[:2] * 0.98),
        ellipse((gill + 0.08, 0), 0.1, deep * 0.82),
        paint="head",
    )
    s.add(
        "Head",
        stroke(
            [(gill + 0.03, -deep * 0.5), (gill, 0), (gill + 0.03, deep * 0.5)],
            [0.008, 0.012, 0.008],
        ),
        paint="dark",
        detail=True,
        clip=True,
    )
    nose = spine[0] + point(radii[0] * 0.9, radii[0] * 0.5)
    s.add(
        "Head",
        stroke([nose, nose + point(-0.09, 0.025)], [0.007, 0.007]),
        paint="dark",
        detail=True,
        clip=True,
    )
    add_eye(s, point(0.5 - p["head"] * 0.35, -deep * 0.3 + sway * 0.2), p.get("eye", 0.03))
    fin(
        2,
        point(gill - 0.06, deep * 0.35),
        p["pectoral"] * 0.5,
        DOWN + 0.7 + rng.uniform(-0.3, 0.3),
        p["pectoral"],
        1.1,
    )
    return s


def ray(rng: np.random.Generator, p: Proportions) -> Sketch:
    """A ray seen from above: two broad wing-like fins around a narrow trunk."""
    s = Sketch()
    whip = rng.uniform(-0.2, 0.2)
    s.add(
        "Tail",
        stroke([(-0.2, 0), (-0.55, whip * 0.4), (-0.55 - p["tail"], whip)], [0.045, 0.025, 0.01]),
        paint="tail",
    )
    for n, side in enumerate((-1.0, 1.0)):
        flap = rng.uniform(0.75, 1.1) * p["span"] * side
        s.add(
            "Fin",
            blob(
                (0.36, 0.04 * side),
                (0.2, flap * 0.5),
                (-0.02, flap),
                (-0.16, flap * 0.55),
                (-0.28, 0.03 * side),
            ),
            n=n,
            paint="fin",
            tone=1.0 if side > 0 else 0.88,
        )
        for x in (0.12, 0.0, -0.12):
            s.add(
                "Fin",
                stroke([(x, 0), (x - 0.06, flap * 0.75)], [0.012, 0.006]),
                n=n,
                paint="tail",
                detail=True,
                clip=True,
            )
    s.add("Body", stroke([(0.3, 0), (0.05, 0), (-0.3, 0)], [0.13, 0.15, 0.06]))
    s.add(
        "Body",
        stroke([(0.15, 0), (-0.3, 0)], [0.025, 0.012]),
        paint="accent",
        detail=True,
        clip=True,
    )
    s.add(
        "Head",
        blob((0.5, 0), (0.42, 0.11), (0.24, 0.13), (0.19, 0), (0.24, -0.13), (0.42, -0.11)),
        paint="head",
    )
    for side in (-1.0, 1.0):
        add_eye(s, point(0.37, 0.075 * side), 0.024)
    return s


def _wave(rng: np.random.Generator, rear: float) -> Points:
    """Centre line of a snake on the move, tail first, (m, 2)."""
    t = np.linspace(0, 1, 60)
    waves, high = rng.uniform(1.2, 2.2), rng.uniform(0.08, 0.15)
    swing = np.sin(2 * np.pi * waves * t + rng.uniform(0, 2 * np.pi))
    path = np.stack([t - 0.6, high * swing], axis=1)
    return np.concatenate([path, path[-1] + polygon((0.07, -0.05), (0.11, -0.1 - rear), (0.2, -0.14 - rear))])


def _coil(rng: np.random.Generator, rear: float) -> Points:
    """Centre line of a coiled snake, from the tail outside to the head inside, (m, 2)."""
    t = np.linspace(0, 1, 60)
    spin = 2 * np.pi * rng.uniform(1.6, 2.3) * t + rng.uniform(0, 2 * np.pi)
    radius = 0.5 - 0.36 * t
    path = np.stack([radius * np.cos(spin), 0.5 * radius * np.sin(spin) - 0.18 * t], axis=1)
    return np.concatenate([path, path[-1] + polygon((0.03, -0.1), (0.1, -0.22 - rear), (0.24, -0.26 - rear))])


def snake(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Viper, cobra, python: a travelling wave or a coil, with the head raised or low."""
    s = Sketch()
    line = (_coil if rng.random() < p["coils"] else _wave)(rng, p["rear"])
    path = np.concatenate([line[:-4], spline(line[-4:], 5)])  # the neck needs more samples
    along = np.linspace(0, 1, len(path))
    taper = np.clip(np.minimum(0.15 + 3.0 * along, 1.0 - 0.45 * along**4), 0.1, 1.0)
    radii = p["width"] * taper
    s.add("Body", *ribbon(path, radii))
    for i in range(4, len(path) - 8, int(p["step"])):
        wide = float(radii[i]) * 0.8
        dx, dy = path[i + 1] - path[i - 1]
        s.add(
            "Body",
            ellipse(path[i], wide * p["mark"], wide, float(np.arctan2(dy, dx)), 14),
            paint="band",
            detail=True,
            clip=True,
        )
    neck, head = path[-7], path[-1]
    hood = p.get("hood", 0.0)
    if hood > 0:
        s.add(
            "Body",
            blob(
                path[-12],
                neck + point(-hood, 0.02),
                path[-3] + point(-0.01, -0.02),
                head,
                neck + point(hood, 0.05),
            ),
            detail=True,
        )
        s.add("Body", ellipse(neck, hood * 0.4, hood * 0.75), paint="accent", detail=True)
    r, gaze = p["head"], rng.uniform(-0.25, 0.35)
    fork = head + polar(gaze, r * 1.9)
    s.add(
        "Head",
        *(stroke([head, fork, fork + polar(gaze + k, r * 0.8)], [0.006, 0.006, 0.004]) for k in (-0.4, 0.4)),
        paint="tongue",
        detail=True,
    )
    s.add(
        "Head",
        stroke(
            [head - polar(gaze, r * 0.6), head, head + polar(gaze, r * 1.2)],
            [r * 0.75, r * 0.95, r * 0.5],
        ),
        paint="head",
    )
    s.add(
        "Head",
        stroke([head, head + polar(gaze + 0.25, r * 1.6)], [r * 0.05, r * 0.06]),
        paint="dark",
        detail=True,
        clip=True,
    )
    add_eye(s, head + polar(gaze - 0.6, r * 0.6), r * 0.2)
    return s
