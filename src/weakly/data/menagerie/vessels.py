"""Sketches of the vessels: boats, aeroplanes and bottles.

Each function draws one pose, facing right: ``rng`` moves the joints, ``p`` holds the kind's
proportions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from weakly.data.menagerie.shapes import (
    Points,
    Sketch,
    blob,
    ellipse,
    point,
    polar,
    polygon,
    rectangle,
    spline,
    stroke,
    tube,
)

Proportions = Mapping[str, float]


def boat(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Sailboat, schooner, dinghy, motor yacht: a hull, and sails that belly in the wind."""
    s = Sketch()
    deep, bow = p["deep"], p["bow"]
    wind = rng.uniform(0.02, 0.1)
    masts = int(p["masts"])
    number = 0
    for m in range(masts):
        x = 0.08 if masts == 1 else -0.2 + 0.34 * m
        height = p["mast"] * (1.0 if m == 0 or masts == 1 else 0.88)
        s.add("Body", stroke([(x, 0.03), (x, -height)], [0.013, 0.008]), paint="wood", detail=True)
        foot, peak = -0.08, -height * 0.96
        aft = x - p["boom"]
        main = blob(
            (x - 0.01, foot),
            (x - 0.01, (foot + peak) / 2),
            (x - 0.012, peak),
            (x - p["boom"] * 0.45 - wind, (foot + peak) * 0.55),
            (aft, foot - 0.01),
            ((aft + x) / 2, foot + 0.015),
        )
        s.add("Sail", main, n=number, paint="sail")
        _seams(s, number, (aft, x, foot, peak))
        number += 1
    if p["jib"] > 0 and masts > 0:
        x = 0.08 if masts == 1 else -0.2 + 0.34 * (masts - 1)
        peak = -p["mast"] * 0.85
        s.add(
            "Sail",
            blob(
                (x + 0.025, -0.07),
                (x + 0.02, peak * 0.5),
                (x + 0.015, peak),
                (x + 0.2 + wind, peak * 0.45),
                (x + p["jib"], -0.06),
                (x + p["jib"] * 0.5, -0.05),
            ),
            n=number,
            paint="jib",
        )
        _seams(s, number, (x, x + p["jib"], -0.06, peak))
    if p["cabin"] > 0:
        high = -p["cabin"]
        s.add(
            "Body",
            polygon((-0.33, 0.03), (-0.3, high), (0.08, high), (0.2, 0.03)),
            paint="white",
            detail=True,
        )
        for x in (-0.22, -0.1, 0.02):
            s.add(
                "Body",
                rectangle(x - 0.04, high * 0.75, x + 0.04, high * 0.35),
                paint="glass",
                detail=True,
            )
    hull = blob(
        (-0.5, 0.0),
        (-0.2, 0.02),
        (0.2, 0.015),
        (0.5, -bow),
        (0.44, deep * 0.45),
        (0.3, deep * 0.95),
        (0, deep),
        (-0.38, deep * 0.95),
        (-0.48, deep * 0.5),
    )
    s.add("Body", hull)
    s.add(
        "Body",
        stroke([(-0.55, 0.03), (0, 0.045), (0.5, 0.02 - bow)], [0.02, 0.016, 0.02]),
        paint="wood",
        detail=True,
        clip=True,
    )
    s.add(
        "Body",
        rectangle(-0.6, deep * 0.68, 0.6, deep * 1.2),
        paint="accent",
        detail=True,
        clip=True,
    )
    for x in np.linspace(-0.3, 0.25, int(p["ports"])):
        s.add(
            "Body",
            ellipse((x, deep * 0.4), 0.02, 0.02, n=14),
            paint="glass",
            detail=True,
            clip=True,
        )
    return s


def _seams(s: Sketch, n: int, box: tuple[float, float, float, float]) -> None:
    """Panels of a sail, between its horizontal seams."""
    x0, x1, foot, peak = box
    for k in (0.2, 0.45, 0.7):
        y = foot + (peak - foot) * k
        s.add(
            "Sail",
            tube((x0 - 0.1, y + 0.03), (x1 + 0.1, y), 0.005),
            n=n,
            paint="wood",
            detail=True,
            clip=True,
        )
    if n == 0:
        s.add(
            "Sail",
            ellipse((x0 + (x1 - x0) * 0.62, foot + (peak - foot) * 0.32), 0.05, 0.05),
            n=n,
            paint="accent",
            detail=True,
            clip=True,
        )


def aeroplane(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Airliner, propeller plane, jet: seen from the side and a little from above."""
    s = Sketch()
    girth, span, sweep = p["girth"], p["span"], p["sweep"]
    bank = rng.uniform(0.75, 1.15)
    root, chord = p.get("root", 0.05), p["chord"]

    def wing(n: int, side: float) -> None:
        tip = point(root - sweep, side * span * bank * (0.55 if side < 0 else 1.0))
        y = girth * 0.3 * side
        s.add(
            "Wing",
            polygon(
                (root + chord / 2, y),
                tip + point(chord * 0.2, 0),
                tip - point(chord * 0.2, 0),
                (root - chord / 2, y),
            ),
            n=n,
            paint="wing",
            tone=0.8 if side < 0 else 1.0,
        )
        mid = point(root - chord * 0.3, y)
        s.add(
            "Wing",
            tube(mid, tip - point(chord * 0.1, 0), 0.008),
            n=n,
            paint="dark",
            detail=True,
            clip=True,
        )
        s.add("Wing", ellipse(tip, chord * 0.4, 0.035), n=n, paint="accent", detail=True, clip=True)

    def engine(n: int, at: Points, tone: float) -> None:
        size = p["engine"]
        s.add(
            "Engine",
            stroke(
                [at + point(-size * 1.4, 0), at, at + point(size, 0)],
                [size * 0.45, size * 0.7, size * 0.72],
            ),
            n=n,
            paint="engine",
            tone=tone,
        )
        s.add(
            "Engine",
            ellipse(at + point(size * 1.35, 0), size * 0.35, size * 0.66),
            n=n,
            paint="dark",
            detail=True,
        )

    wing(0, -1.0)
    if p["pods"] > 0:
        engine(0, point(root - sweep * 0.4 + chord * 0.42, -span * 0.28 * bank), 0.75)
    s.add(
        "Tail",
        polygon((-0.3, -girth * 0.6), (-0.45, -girth - p["fin"]), (-0.55, -girth - p["fin"]), (-0.5, 0)),
        paint="tail",
    )
    s.add(
        "Tail",
        polygon(
            (-0.36, -girth * 0.3),
            (-0.56, -p["fin"] * 0.55),
            (-0.62, -p["fin"] * 0.55),
            (-0.5, -girth * 0.1),
        ),
        paint="tail",
        detail=True,
        tone=0.8,
    )
    s.add(
        "Tail",
        rectangle(-0.7, -girth - p["fin"] * 0.75, -0.2, -girth - p["fin"] * 0.45),
        paint="accent",
        detail=True,
        clip=True,
    )
    spine = [(-0.55, -girth * 0.45), (-0.3, -girth * 0.1), (0.0, 0), (0.34, 0)]
    s.add("Body", stroke(spine, [girth * 0.25, girth * 0.8, girth, girth]))
    s.add(
        "Body",
        stroke([(-0.6, 0.0), (0.45, girth * 0.25)], [0.018, 0.022]),
        paint="accent",
        detail=True,
        clip=True,
    )
    for x in np.linspace(-0.32, 0.26, int(p["windows"])):
        s.add(
            "Body",
            ellipse((x, -girth * 0.28), 0.014, 0.02, n=10),
            paint="glass",
            detail=True,
            clip=True,
        )
    s.add(
        "Head",
        stroke(
            [(0.34, 0), (0.42, girth * 0.06), (0.5, girth * 0.2)],
            [girth, girth * 0.82, girth * p["nose"]],
        ),
        paint="head",
    )
    s.add(
        "Head",
        polygon(
            (0.36, -girth * 0.75),
            (0.42, -girth * 0.72),
            (0.49, -girth * 0.2),
            (0.37, -girth * 0.25),
        ),
        paint="glass",
        detail=True,
        clip=True,
    )
    s.add(
        "Tail",
        polygon(
            (-0.36, girth * 0.05),
            (-0.55, p["fin"] * 0.62),
            (-0.64, p["fin"] * 0.62),
            (-0.52, -girth * 0.2),
        ),
        paint="tail",
        detail=True,
    )
    wing(1, 1.0)
    if p["pods"] > 0:
        engine(1, point(root - sweep * 0.4 + chord * 0.36, span * 0.45 * bank), 1.0)
    if p["pods"] > 1:
        engine(2, point(root - sweep * 0.75 + chord * 0.3, span * 0.72 * bank), 1.0)
    if p["propeller"] > 0:
        hub = point(0.53, girth * 0.2)
        s.add("Engine", ellipse(hub, 0.03, p["propeller"]), n=3, paint="metal", opacity=0.45)
        blade = polar(rng.uniform(1.2, 1.9), p["propeller"])
        s.add(
            "Engine",
            tube(hub - blade, hub + blade, 0.014),
            ellipse(hub, 0.045, 0.04),
            n=3,
            paint="engine",
            detail=True,
        )
    return s


def bottle(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Wine bottle, flask, soda bottle: a profile turned about its axis."""
    s = Sketch()
    r, neck, shoulder = p["radius"], p["neck_radius"], p["shoulder"]
    top, lip = -1.0, -1.0 + p["mouth"]
    half = polygon(
        (r * 0.9, 0.0),
        (r, -0.04),
        (r * p["waist"], -shoulder * 0.5),
        (r, -shoulder),
        (r * 0.72 + neck * 0.2, -shoulder - p["slope"] * 0.5),
        (neck, -shoulder - p["slope"]),
        (neck, lip),
    )
    curve = spline(half, 6)
    s.add("Body", np.concatenate([curve, (curve * (-1, 1))[::-1]]), paint="main", opacity=p["opaque"])
    level = -shoulder * rng.uniform(0.45, 1.1)
    s.add(
        "Body",
        rectangle(-r * 0.86, level, r * 0.86, -0.03),
        paint="liquid",
        detail=True,
        clip=True,
        opacity=0.75,
    )
    low, high = -shoulder * rng.uniform(0.15, 0.3), -shoulder * rng.uniform(0.62, 0.85)
    s.add("Body", rectangle(-r * 1.1, high, r * 1.1, low), paint="label", detail=True, clip=True)
    s.add(
        "Body",
        rectangle(-r * 1.1, high * 0.9 + low * 0.1, r * 1.1, high * 0.75 + low * 0.25),
        paint="accent",
        detail=True,
        clip=True,
    )
    s.add(
        "Body",
        ellipse((r * 0.15, high * 0.4 + low * 0.6), r * 0.35, abs(high - low) * 0.22),
        paint="accent",
        detail=True,
        clip=True,
    )
    s.add(
        "Body",
        stroke([(-r * 0.62, -0.08), (-r * 0.62, -shoulder * 0.95)], [r * 0.07, r * 0.06]),
        paint="white",
        clip=True,
        opacity=0.45,
    )
    wide = neck * p["cap"]
    s.add(
        "Mouth",
        blob(
            (-wide, lip + 0.02),
            (-wide, (lip + top) / 2),
            (-wide * 0.96, top),
            (wide * 0.96, top),
            (wide, (lip + top) / 2),
            (wide, lip + 0.02),
            per_span=3,
        ),
        paint="cap",
    )
    s.add(
        "Mouth",
        rectangle(-wide * 1.1, lip - 0.03, wide * 1.1, lip + 0.03),
        paint="dark",
        detail=True,
        clip=True,
    )
    s.add("Mouth", ellipse((0, top), wide * 0.8, 0.012), paint="metal", detail=True, clip=True)
    if p.get("handle", 0.0) > 0:
        loop = [
            (r * 0.7, -shoulder),
            (r + p["handle"], -shoulder * 0.85),
            (r + p["handle"], -0.4),
            (r * 0.8, -0.25),
        ]
        s.add("Body", stroke(loop, [0.03, 0.03, 0.03, 0.03]), detail=True)
    return s
