"""Sketches of the things on wheels: cars and bicycles.

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


def car(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Sedan, van, truck, beetle: a body with a cabin, two wheels and a side mirror."""
    s = Sketch()
    wheel, top, deck = p["wheel"], -p["height"], -p["deck"]
    a, b, c, d = p["rear_base"], p["rear_top"], p["front_top"], p["front_base"]
    axles = (p["rear_axle"], p["front_axle"])
    for x in axles:  # the wheels of the far side, seen under the sill
        s.add(
            "Body",
            ellipse((x + 0.05, -wheel * 0.75), wheel * 0.8, wheel * 0.8),
            paint="dark",
            tone=0.6,
        )
    sill = -wheel * 0.62
    lower = blob(
        (-0.5, sill),
        (-0.51, deck * 0.75),
        (-0.48, deck),
        (a, deck - 0.01),
        (0, deck - 0.01),
        (d, deck),
        (0.42, deck + p["hood_drop"]),
        (0.5, deck * 0.62),
        (0.51, sill),
        (0, sill),
    )
    cabin = spline(
        polygon(
            (a, deck + 0.03),
            (b, top + 0.015),
            (b + 0.05, top),
            (c - 0.05, top),
            (c, top + 0.015),
            (d, deck + 0.03),
        ),
        4,
    )
    s.add("Body", lower, cabin)
    s.add(
        "Body",
        rectangle(-0.6, sill - 0.045, 0.6, sill + 0.1),
        paint="accent",
        detail=True,
        clip=True,
    )
    _windows(s, (a, b, c, d), (deck, top), int(p["windows"]))
    for x in np.linspace(a, d, int(p["windows"]) + 1)[1:-1]:
        s.add(
            "Body",
            tube((x, deck + 0.01), (x, sill - 0.03), 0.004),
            paint="dark",
            detail=True,
            clip=True,
        )
        s.add(
            "Body",
            tube((x - 0.09, deck + 0.05), (x - 0.05, deck + 0.05), 0.007),
            paint="metal",
            detail=True,
            clip=True,
        )
    s.add("Body", ellipse((0.48, deck * 0.68), 0.035, 0.03), paint="lamp", detail=True, clip=True)
    s.add("Body", ellipse((-0.5, deck * 0.78), 0.03, 0.035), paint="red", detail=True, clip=True)
    s.add(
        "Body",
        tube((0.43, sill - 0.02), (0.55, sill - 0.02), 0.02),
        paint="metal",
        detail=True,
        clip=True,
    )
    for n, x in enumerate(axles):
        hub = point(x, -wheel)
        s.add("Body", ellipse(hub, wheel * 1.18, wheel * 1.18), paint="dark", clip=True)
        _wheel(s, hub, wheel, n, rng.uniform(0, 1.2), int(p["spokes"]))
    at = point(d - 0.035, deck - 0.035)
    size = p.get("mirror", 0.042)
    s.add(
        "Side Mirror",
        blob(
            at + point(-size, -size * 0.55),
            at + point(size * 0.7, -size * 0.7),
            at + point(size, size * 0.4),
            at + point(-size, size * 0.6),
            per_span=4,
        ),
        tube(at, at + point(0.03, 0.04), 0.01),
        paint="mirror",
    )
    s.add(
        "Side Mirror",
        rectangle(at[0] - size * 0.8, at[1] - size * 0.35, at[0] - size * 0.1, at[1] + size * 0.35),
        paint="glass",
        detail=True,
        clip=True,
    )
    return s


def _windows(s: Sketch, pillars: tuple[float, float, float, float], rows: tuple[float, float], count: int) -> None:
    """Side windows between the pillars (rear base, rear top, front top, front base)."""
    a, b, c, d = pillars
    deck, top = rows
    low, high = deck - 0.005, top + 0.035
    for k in range(count):
        u, v = k / count, (k + 1) / count
        gap = 0.012
        s.add(
            "Body",
            polygon(
                (a + 0.045 + (d - a - 0.09) * u + gap, low),
                (b + 0.03 + (c - b - 0.06) * u + gap, high),
                (b + 0.03 + (c - b - 0.06) * v - gap, high),
                (a + 0.045 + (d - a - 0.09) * v - gap, low),
            ),
            paint="glass",
            detail=True,
            clip=True,
        )


def _wheel(s: Sketch, hub: Points, r: float, n: int, spin: float, spokes: int) -> None:
    """Tyre with rim, hubcap and spokes; one instance per wheel."""
    s.add("Tier", ellipse(hub, r, r, n=36), n=n, paint="tyre")
    s.add("Tier", ellipse(hub, r * 0.62, r * 0.62), n=n, paint="metal", detail=True)
    for k in range(spokes):
        angle = spin + 2 * np.pi * k / spokes
        s.add(
            "Tier",
            ellipse(hub + polar(angle, r * 0.36), r * 0.16, r * 0.09, angle, 12),
            n=n,
            paint="dark",
            detail=True,
            clip=True,
        )
    s.add("Tier", ellipse(hub, r * 0.14, r * 0.14, n=14), n=n, paint="mirror", detail=True)


def bicycle(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Road bike, cruiser, tandem: a frame of tubes between two spoked wheels."""
    s = Sketch()
    r, base, w = p["wheel"], p["base"], p["tube"]
    rear, front = point(-base / 2, -r), point(base / 2, -r)
    for n, hub in enumerate((rear, front)):
        spin = rng.uniform(0, 1)
        s.add("Tier", ellipse(hub, r, r, n=44), n=n, paint="tyre", opacity=0.22)
        ring = [hub + polar(t, r - p["tyre"]) for t in np.linspace(0, 2 * np.pi, 25)]
        for k in range(9):
            s.add(
                "Tier",
                tube(hub, hub + polar(spin + k * 2 * np.pi / 9, r * 0.95), 0.003),
                n=n,
                paint="metal",
            )
        for half in (ring[:13], ring[12:]):
            s.add("Tier", stroke(half, np.full(13, p["tyre"]), 2), n=n, paint="tyre", detail=True)
        s.add("Tier", ellipse(hub, 0.025, 0.025), n=n, paint="metal", detail=True)
    crank = point(p["crank"], -r * 0.92)
    saddle = point(p["crank"] - p["slant"], -p["seat"])
    stem = point(base / 2 - p["rake"], -p["stem"])
    lug = stem + point(0.02, 0.1)
    tubes = [
        tube(crank, rear, w * 0.7),
        tube(saddle + point(0, 0.06), rear, w * 0.6),
        tube(crank, saddle, w),
        tube(saddle + point(0.02, 0.1), lug, w),
        tube(crank, lug + point(0.01, 0.04), w * 1.1),
        stroke([stem, lug, (lug + front) / 2 + point(0.02, 0), front], [w, w, w * 0.8, w * 0.6]),
    ]
    second = crank + point(p["gap"], 0.0)
    if p["gap"] > 0:
        tubes += [
            tube(crank, second, w),
            tube(second, second + point(-p["slant"], -0.36), w),
            tube(second, lug + point(0, 0.03), w),
        ]
    s.add("Body", *tubes)
    for gear in (crank, second) if p["gap"] > 0 else (crank,):
        s.add("Body", ellipse(gear, 0.06, 0.06), paint="metal", detail=True)
        turn = rng.uniform(0, np.pi)
        for angle in (turn, turn + np.pi):
            foot = gear + polar(angle, 0.11)
            s.add(
                "Body",
                tube(gear, foot, 0.011),
                tube(foot - point(0.035, 0), foot + point(0.035, 0), 0.014),
                paint="dark",
                detail=True,
            )
    seats = [saddle] + ([second + point(-p["slant"], -0.38)] if p["gap"] > 0 else [])
    pad = p["pad"]
    for n, at in enumerate(seats):
        s.add(
            "Seat",
            blob(
                at + point(-pad, -0.03),
                at + point(-pad * 0.2, -0.025),
                at + point(pad, -0.015),
                at + point(pad * 0.9, 0.012),
                at + point(-pad * 0.3, 0.025),
                at + point(-pad * 0.9, 0.025),
            ),
            n=n,
            paint="seat",
        )
        s.add(
            "Seat",
            tube(at + point(-pad * 0.7, 0.0), at + point(pad * 0.5, 0.0), 0.006),
            n=n,
            paint="tyre",
            detail=True,
            clip=True,
        )
    reach, drop = p["reach"], p["drop"]
    bar = [
        stem,
        stem + point(reach * 0.6, -0.04 - p["raise"]),
        stem + point(reach, drop * 0.4),
        stem + point(reach * 0.5, drop),
    ]
    s.add("Head", stroke(bar, [0.02, 0.019, 0.022, 0.022]), ellipse(stem, 0.03, 0.035), paint="bar")
    s.add("Head", tube(bar[2], bar[3], 0.026), paint="seat", detail=True, clip=True)
    s.add("Head", ellipse(stem + point(0.055, 0.03), 0.03, 0.03), paint="lamp", detail=True)
    return s
