"""Articulated sketches of birds, perched or flying.

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
    spline,
    stroke,
)
from weakly.data.menagerie.walkers import DOWN, Proportions, add_eye


def bird(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Eagle, duck, heron...: perched with folded wings, or flying with both spread."""
    s = Sketch()
    girth, flying = p["girth"], rng.random() < p["flies"]
    tilt = rng.uniform(-0.25, 0.05) if flying else -p["tilt"] + rng.uniform(-0.12, 0.12)
    ahead, up = polar(tilt), polar(tilt - DOWN)
    chest, rump = ahead * 0.25, -ahead * 0.28
    neck_angle = (tilt if flying else -p["neck_angle"]) + rng.uniform(-0.15, 0.15)
    head = chest + up * girth * 0.4 + polar(neck_angle, p["neck"] + girth * 0.5)
    r = p["head"]

    fan, tail = rng.uniform(0.08, 0.2) + p.get("fan", 0.0), p["tail"]
    back = tilt + np.pi
    s.add(
        "Tail",
        polygon(
            rump + up * girth * 0.3,
            *(rump + polar(back + fan * k, tail + 0.1) for k in (1, 0.55, 0.0, -0.55, -1)),
            rump - up * girth * 0.3,
        ),
        paint="tail",
    )
    for k in (-0.5, 0.0, 0.5):
        s.add(
            "Tail",
            stroke([rump, rump + polar(back + fan * k, tail + 0.1)], [0.006, 0.006]),
            paint="dark",
            detail=True,
            clip=True,
        )
    if flying:
        _spread_wing(
            s,
            0,
            chest * 0.5 + up * girth * 0.4,
            tilt - rng.uniform(0.9, 1.5),
            p["wing"] * 0.9,
            p,
            0.72,
        )
    trail = rng.uniform(0.2, 0.5)
    for n, dx in enumerate((0.08, -0.04)):
        root = ahead * dx - up * girth * 0.75
        aim = back - trail if flying else DOWN + rng.uniform(-0.2, 0.25)
        ankle = root + polar(aim, p["leg"])
        toes = [ankle + polar(aim - 1.4 + k, p["toe"]) for k in (0.35, 0.0, -0.35)]
        w, tone = p["shank"], 0.75 if n == 0 else 1.0
        s.add(
            "Foot",
            stroke([root, (root + ankle) / 2 + point(-0.01, 0), ankle], [w * 1.3, w, w]),
            *(stroke([ankle, t], [w, w * 0.7]) for t in toes),
            n=n,
            paint="beak",
            tone=tone,
        )
    s.add(
        "Body",
        stroke([rump, (chest + rump) / 2, chest], [girth * 0.55, girth, girth * 0.85]),
        stroke(
            [chest, (chest + head) / 2 + polar(neck_angle + DOWN, -p.get("bend", 0.0)), head],
            [girth * 0.7, r * 0.8 + girth * 0.1, r * 0.75],
        ),
    )
    s.add(
        "Body",
        stroke([rump * 0.6 - up * girth * 0.7, chest - up * girth * 0.45], [girth * 0.35, girth * 0.6]),
        paint="accent",
        detail=True,
        clip=True,
    )
    _bird_head(s, head, rng.uniform(-0.15, 0.25) + 0.2 * tilt, p)
    if flying:
        _spread_wing(
            s,
            1,
            chest * 0.4 + up * girth * 0.2,
            tilt - np.pi + rng.uniform(0.4, 1.2),
            p["wing"],
            p,
            1.0,
        )
    else:
        base, tip = chest * 0.8 + up * girth * 0.2, rump + polar(back + 0.05, p["wing"] * 0.45)
        mid = (base + tip) / 2
        s.add(
            "Wing",
            blob(
                base + ahead * 0.05,
                base + up * girth * 0.45,
                mid + up * girth * 0.5,
                tip,
                mid - up * girth * 0.42,
                base - up * girth * 0.4,
            ),
            paint="wing",
        )
        for k in (0.3, 0.0, -0.3):
            a = mid + up * girth * k
            s.add(
                "Wing",
                stroke([a, (a + tip) / 2 - up * girth * 0.08, tip], [0.012, 0.012, 0.006]),
                paint="dark",
                detail=True,
                clip=True,
            )
        s.add("Wing", ellipse(base, 0.13, girth * 0.42, tilt), paint="head", detail=True, clip=True)
    return s


def _spread_wing(s: Sketch, n: int, root: Points, angle: float, span: float, p: Proportions, tone: float) -> None:
    """A spread wing: an arm edge and a row of flight feathers behind it."""
    chord = p["chord"]
    wrist = root + polar(angle, span * 0.45)
    tip = wrist + polar(angle - 0.35 * np.sign(np.cos(angle) + 0.3), span * 0.55)
    rear = polar(np.pi * 0.92)
    edge = spline([root, wrist, tip], 6)
    depth = np.linspace(1.0, 0.35, len(edge))[:, None] * chord
    ragged = 1 + 0.16 * (np.arange(len(edge)) % 2)[:, None]
    outline = np.concatenate([edge, (edge + rear * depth * ragged)[::-1]])
    s.add("Wing", outline, stroke(edge, np.full(len(edge), 0.022), 1), n=n, paint="wing", tone=tone)
    for i in range(2, len(edge) - 1, 2):
        s.add(
            "Wing",
            stroke([edge[i], edge[i] + rear * depth[i] * 1.1], [0.004, 0.009]),
            n=n,
            paint="dark",
            detail=True,
            clip=True,
            tone=tone,
        )
    covert = np.concatenate([edge, (edge + rear * depth * 0.42)[::-1]])
    s.add("Wing", covert, n=n, paint="limb", detail=True, clip=True, tone=tone)


def _bird_head(s: Sketch, at: Points, gaze: float, p: Proportions) -> None:
    """Round head, beak of the kind's length and hook, cap and eye."""
    r, beak = p["head"], p["beak"]
    base, down = at + polar(gaze, r * 0.8), polar(gaze + DOWN)
    thick = p["beak_width"]
    tip = base + polar(gaze, beak) + down * p.get("hook", 0.0)
    s.add("Head", ellipse(at, r * 1.08, r), paint="head")
    s.add(
        "Head",
        ellipse(at - down * r * 0.7, r * 0.9, r * 0.55, gaze),
        paint="cap",
        detail=True,
        clip=True,
    )
    if p.get("crest", 0.0) > 0:
        start = at + polar(gaze + np.pi, r * 0.6) - down * r * 0.4
        s.add(
            "Head",
            stroke([start, start + polar(gaze + np.pi - 0.2, p["crest"])], [0.02, 0.006]),
            paint="cap",
            detail=True,
        )
    s.add(
        "Head",
        blob(
            base - down * thick,
            base + polar(gaze, beak * 0.6) - down * thick * 0.7,
            tip,
            base + polar(gaze, beak * 0.5) + down * thick * 0.6,
            base + down * thick,
            per_span=4,
        ),
        paint="beak",
        detail=True,
    )
    add_eye(s, at + polar(gaze - 0.4, r * 0.4), r * 0.2)
