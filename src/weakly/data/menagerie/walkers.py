"""Articulated sketches of the animals that walk: quadrupeds, bipeds and reptiles.

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
    stroke,
)

Proportions = Mapping[str, float]
DOWN = np.pi / 2


def add_eye(s: Sketch, at: Points, r: float) -> None:
    """An eye with a catch light, one detail of the head."""
    s.add("Head", ellipse(at, r, r, n=14), paint="eye", detail=True, clip=True)
    s.add(
        "Head",
        ellipse(at + point(r * 0.25, -r * 0.3), r * 0.4, r * 0.4, n=10),
        paint="white",
        clip=True,
    )


def _leg(
    s: Sketch,
    root: Points,
    angles: tuple[float, float, float],
    lengths: tuple[float, float, float],
    radii: tuple[float, float, float],
    n: int,
    tone: float,
) -> None:
    """Thigh (counted as body), then lower leg and paw (the foot).

    Args:
        s: Sketch to draw into.
        root: Hip or shoulder.
        angles: Directions of thigh, shin and paw, radians.
        lengths: Lengths of the same.
        radii: Half widths at hip, knee and ankle.
        n: Number of the foot.
        tone: Brightness; below one on the far side.
    """
    knee = root + polar(angles[0], lengths[0])
    ankle = knee + polar(angles[1], lengths[1])
    toe = ankle + polar(angles[2], lengths[2])
    s.add(
        "Body",
        stroke([root, (root + knee) / 2, knee], [radii[0], radii[0] * 0.85, radii[1]]),
        detail=True,
        tone=tone,
    )
    shin = stroke([knee, (knee + ankle) / 2, ankle], [radii[1], radii[1] * 0.75, radii[2]])
    paw = stroke([ankle, (ankle + toe) / 2, toe], [radii[2], radii[2] * 1.15, radii[2] * 0.9])
    s.add("Foot", shin, n=n, paint="limb", tone=tone)
    s.add("Foot", paw, n=n, paint="paw", detail=True, tone=tone)


def quadruped(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Fox, horse, bear...: four legs in mid-stride, a neck that reaches up or down."""
    s = Sketch()
    girth, length = p["girth"], p["leg"]
    hip, shoulder = point(-0.4, 0.0), point(0.4, -p.get("rise", 0.02))
    phase, stride = rng.uniform(0, 2 * np.pi), rng.uniform(0.1, 0.5)
    neck_angle = -p["neck_angle"] + rng.uniform(-0.3, 0.35)
    gaze = rng.uniform(0.0, 0.5) + p.get("gaze", 0.0)
    thick = p.get("thick", 0.075)

    def leg(n: int, *, front: bool, near: bool) -> None:
        turn = stride * np.sin(phase + np.pi * (front ^ near) + 0.6 * front)
        root = (shoulder if front else hip) + point(-0.02 if near else 0.07, girth * 0.35)
        bend = 0.25 * stride * np.cos(phase + front)
        thigh = DOWN + turn * 0.8 + (0.12 if front else -0.3)
        shin = DOWN + turn * 0.7 + (-0.05 + bend if front else 0.32 + bend)
        fat = 1.25 if front else 1.7
        _leg(
            s,
            root,
            (thigh, shin, 0.35 + 0.3 * turn),
            (length * 0.5, length * 0.5, p["paw"]),
            (thick * fat, thick * 0.85, thick * 0.6),
            n,
            1.0 if near else 0.72,
        )

    leg(0, front=False, near=False)
    leg(1, front=True, near=False)
    wag, tail = rng.uniform(-0.5, 0.5), p["tail"]
    tip = p.get("tail_drop", 0.4) + wag
    root = hip + point(-girth * 0.75, -girth * 0.45)
    mid = root + polar(np.pi - tip * 0.5, tail * 0.5)
    end = mid + polar(np.pi - tip * 1.6, tail * 0.5)
    width = p["tail_width"]
    s.add("Tail", stroke([root, mid, end], [width * 0.6, width, width * 0.35]), paint="tail")
    s.add("Tail", ellipse(end, width * 0.95, width * 0.95), paint="accent", detail=True, clip=True)
    head = shoulder + point(girth * 0.35, -girth * 0.3) + polar(neck_angle, p["neck"])
    throat = p["head"] * 0.85
    body = stroke(
        [hip, (hip + shoulder) / 2 + point(0, p.get("belly", 0.0)), shoulder],
        [girth * p.get("rump", 0.95), girth * 0.92, girth * 1.05],
    )
    neck = stroke(
        [shoulder + point(-0.04, 0), shoulder + polar(neck_angle, p["neck"] * 0.5), head],
        [girth * 0.85, (girth + throat) * 0.45, throat],
    )
    s.add("Body", body, neck)
    s.add(
        "Body",
        stroke(
            [
                hip + point(0, girth * 1.1),
                (hip + shoulder) / 2 + point(0, girth * 0.95),
                shoulder + point(girth, girth * 0.5),
            ],
            [girth * 0.2, girth * 0.3, girth * 0.2],
        ),
        paint="accent",
        detail=True,
        clip=True,
        opacity=0.75,
    )
    if p.get("mane", 0.0) > 0:
        crest = [
            shoulder + point(-0.02, -girth * 0.9),
            (shoulder + head) / 2 + polar(neck_angle - DOWN, throat * 1.1),
            head + polar(neck_angle - DOWN, throat * 0.9),
        ]
        s.add(
            "Body",
            stroke(crest, [p["mane"] * 0.6, p["mane"], p["mane"] * 0.6]),
            paint="dark",
            detail=True,
        )
    leg(2, front=False, near=True)
    leg(3, front=True, near=True)
    _quadruped_head(s, head, gaze, p)
    return s


def _quadruped_head(s: Sketch, at: Points, gaze: float, p: Proportions) -> None:
    """Skull, muzzle, ears, nose and eye; `gaze` is the direction of the muzzle, radians."""
    r, muzzle, ear = p["head"], p["muzzle"], p["ear"]
    nose = at + polar(gaze, muzzle)
    up, blunt = gaze - DOWN, p.get("blunt", 0.4)

    def ear_at(along: float, tone: float) -> None:
        base = at + polar(gaze, along * r) + polar(up, r * 0.6)
        tip = base + polar(up - 0.35, ear)
        half = polar(gaze, p["ear_width"])
        outline = [base - half, tip - half * 0.35, tip + half * 0.2, base + half]
        s.add("Head", blob(*outline, per_span=4), paint="head", detail=True, tone=tone)
        inner = (polygon(*outline) - base) * 0.6 + base
        s.add("Head", blob(*inner, per_span=4), paint="dark", detail=True, tone=tone)

    ear_at(0.35, 0.75)
    s.add(
        "Head",
        ellipse(at, r * 1.05, r),
        stroke([at, (at + nose) / 2, nose], [r * 0.85, r * (0.4 + blunt * 0.6), r * blunt]),
        paint="head",
    )
    s.add(
        "Head",
        stroke(
            [at + polar(gaze + 0.6, r * 0.6), nose + polar(gaze + DOWN, r * 0.25)],
            [r * 0.4, r * blunt * 0.8],
        ),
        paint="accent",
        detail=True,
        clip=True,
    )
    s.add(
        "Head",
        ellipse(nose + polar(gaze, r * blunt * 0.6) + polar(up, r * 0.08), r * 0.24, r * 0.2),
        paint="dark",
        detail=True,
        clip=True,
    )
    ear_at(-0.3, 1.0)
    add_eye(s, at + polar(gaze, r * 0.4) + polar(up, r * 0.3), r * 0.17)


def biped(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Monkey, ape, kangaroo: an upright trunk with swinging arms."""
    s = Sketch()
    lean = p["lean"] + rng.uniform(-0.15, 0.15)
    girth, trunk = p["girth"], p["trunk"]
    hip = point(0.0, 0.0)
    chest = hip + polar(-DOWN + lean, trunk)
    head = chest + polar(-DOWN + lean * 1.4 + rng.uniform(-0.15, 0.15), p["neck"])
    phase = rng.uniform(-1, 1)

    def leg(n: int, side: float) -> None:
        crouch = p["crouch"] + rng.uniform(-0.1, 0.15)
        _leg(
            s,
            hip + point(0.03 * -side, girth * 0.25),
            (DOWN - crouch + 0.25 * phase * side, DOWN + crouch * 0.8 + 0.1 * phase * side, 0.08),
            (p["leg"] * 0.5, p["leg"] * 0.5, p["foot"]),
            (girth * p.get("thigh", 0.6), p["limb"], p["limb"] * 0.75),
            n,
            1.0 if side > 0 else 0.74,
        )

    def arm(n: int, side: float) -> None:
        root = chest + polar(lean + DOWN, girth * 0.25)
        swing = DOWN - 0.35 + rng.uniform(-1.0, 0.5) * p.get("reach", 1.0)
        elbow = root + polar(swing, p["arm"] * 0.5)
        fold = swing - rng.uniform(0.1, 1.0)
        hand = elbow + polar(fold, p["arm"] * 0.45)
        limb, tone = p["limb"], 1.0 if side > 0 else 0.74
        s.add("Body", stroke([root, elbow], [limb * 1.6, limb]), detail=True, tone=tone)
        s.add(
            "Hand",
            stroke([elbow, (elbow + hand) / 2, hand], [limb, limb * 0.95, limb * 0.7]),
            n=n,
            paint="limb",
            tone=tone,
        )
        fingers = [hand + polar(fold + spread, limb * 1.7) for spread in (-0.6, 0.0, 0.6)]
        s.add(
            "Hand",
            ellipse(hand, limb * 0.95, limb * 0.95),
            *(stroke([hand, f], [limb * 0.5, limb * 0.3]) for f in fingers),
            n=n,
            paint="paw",
            detail=True,
            tone=tone,
        )

    if p["tail"] > 0:
        sag = rng.uniform(-0.3, 0.4)
        root = hip + point(-girth * 0.5, girth * 0.3)
        mid = root + polar(np.pi - 0.7 - sag, p["tail"] * 0.5)
        end = mid + polar(np.pi + p.get("curl", 0.0) + sag, p["tail"] * 0.5)
        width = p["tail_width"]
        s.add("Tail", stroke([root, mid, end], [width, width * 0.7, width * 0.35]), paint="tail")
    arm(0, -1.0)
    leg(0, -1.0)
    s.add(
        "Body",
        stroke(
            [hip, (hip + chest) / 2 + point(girth * 0.1, 0), chest, head],
            [girth, girth * p.get("waist", 0.95), girth * p.get("chest", 0.9), p["head"] * 0.7],
        ),
    )
    belly = (hip + chest) / 2 + point(girth * 0.55, 0.0)
    s.add(
        "Body",
        ellipse(belly, trunk * 0.48, girth * 0.5, DOWN + lean),
        paint="accent",
        detail=True,
        clip=True,
    )
    leg(1, 1.0)
    _biped_head(s, head, rng.uniform(-0.15, 0.35), p)
    arm(1, 1.0)
    return s


def _biped_head(s: Sketch, at: Points, gaze: float, p: Proportions) -> None:
    """A round skull with a muzzle and either round or upright ears."""
    r, muzzle, up = p["head"], p["muzzle"], gaze - DOWN
    nose = at + polar(gaze + 0.3, muzzle)
    upright = p.get("upright", 0.0) > 0
    ear_at = at + (polar(up - 0.35, r * 0.9) if upright else polar(gaze + np.pi + 0.2, r * 0.35))
    rx, ry = (p["ear"], p["ear"] * 0.4) if upright else (p["ear"], p["ear"] * 1.1)
    if upright:
        far = ear_at + polar(gaze, r * 0.5) + polar(up, rx * 0.7)
        s.add("Head", ellipse(far, rx, ry, up + 0.1), paint="head", detail=True, tone=0.75)
        s.add(
            "Head",
            ellipse(ear_at + polar(up, rx * 0.7), rx, ry, up - 0.2),
            paint="head",
            detail=True,
        )
    s.add(
        "Head",
        ellipse(at, r, r * 1.05),
        stroke([at + polar(gaze + 0.3, r * 0.3), nose], [r * 0.7, r * p.get("blunt", 0.5)]),
        paint="head",
    )
    if upright:
        s.add(
            "Head",
            ellipse(nose + polar(gaze, r * 0.3), r * 0.22, r * 0.2),
            paint="dark",
            detail=True,
            clip=True,
        )
    else:
        face = at + polar(gaze + 0.1, r * 0.5)
        s.add(
            "Head",
            ellipse(face, r * 0.62, r * 0.7),
            ellipse(nose, r * 0.6, r * 0.48),
            paint="skin",
            detail=True,
            clip=True,
        )
        s.add(
            "Head",
            stroke(
                [nose + polar(gaze + 1.5, r * 0.25), nose + polar(gaze + 0.5, r * 0.5)],
                [r * 0.05, r * 0.05],
            ),
            paint="dark",
            detail=True,
            clip=True,
        )
        s.add("Head", ellipse(ear_at, rx, ry), paint="head", detail=True)
        s.add("Head", ellipse(ear_at, rx * 0.6, ry * 0.65), paint="skin", detail=True)
    add_eye(s, at + polar(gaze - 0.3, r * 0.5), r * 0.14)


def reptile(rng: np.random.Generator, p: Proportions) -> Sketch:
    """Lizard, crocodile, turtle: low body, bent legs, a long or a stubby tail."""
    s = Sketch()
    girth, leg = p["girth"], p["leg"]
    hip, shoulder = point(-0.28, 0.0), point(0.28, 0.0)
    phase = rng.uniform(0, 2 * np.pi)
    shell = p.get("shell", 0.0)

    def limb(n: int, root: Points, *, front: bool, tone: float) -> None:
        turn = 0.45 * np.sin(phase + 1.7 * n)
        thigh = DOWN + (-0.5 if front else 0.6) + turn
        shin = DOWN + (0.35 if front else -0.35) + 0.5 * turn
        _leg(
            s,
            root,
            (thigh, shin, 0.15),
            (leg * 0.5, leg * 0.5, p["paw"]),
            (p["thick"] * 1.3, p["thick"], p["thick"] * 0.75),
            n,
            tone,
        )

    side = point(0.08, -girth * 0.1)
    limb(0, hip + side, front=False, tone=0.7)
    limb(1, shoulder + side, front=True, tone=0.7)
    tail, wave = p["tail"], rng.uniform(-0.5, 0.5)
    root = hip + point(-0.08, girth * 0.1)
    bend = [
        root,
        root + polar(np.pi + wave * 0.5, tail * 0.35),
        root + polar(np.pi - wave * 0.2, tail * 0.7),
        root + polar(np.pi + wave * 0.5, tail),
    ]
    radii = np.array([0.65, 0.5, 0.28, 0.08]) * girth * p.get("tail_fat", 1.0)
    s.add("Tail", stroke(bend, radii), paint="tail")
    for k in (1, 2):
        s.add("Tail", ellipse(bend[k], 0.03, radii[k] * 1.1), paint="band", detail=True, clip=True)
    look = -p["look"] + rng.uniform(-0.2, 0.2)
    head = shoulder + point(girth * 0.5, -girth * 0.1) + polar(look, p["neck"])
    r, jaw = p["head"], p["jaw"]
    s.add(
        "Body",
        stroke(
            [hip, (hip + shoulder) / 2, shoulder, head],
            [girth * 0.75, girth, girth * 0.75, r * 0.8],
        ),
    )
    s.add(
        "Body",
        stroke(
            [hip + point(0, girth * 0.6), shoulder + point(0, girth * 0.6)],
            [girth * 0.3, girth * 0.3],
        ),
        paint="accent",
        detail=True,
        clip=True,
    )
    if p.get("spikes", 0.0) > 0:
        for x in np.linspace(-0.32, 0.3, 7):
            y = -girth * (0.98 - 2.0 * x * x)
            s.add(
                "Body",
                polygon((x - 0.035, y + 0.03), (x - 0.01, y - p["spikes"]), (x + 0.035, y + 0.03)),
                paint="limb",
                detail=True,
            )
    gaze = rng.uniform(-0.15, 0.15)
    nose = head + polar(gaze, jaw)
    s.add("Head", stroke([head, (head + nose) / 2, nose], [r, r * 0.72, r * p["snout"]]), paint="head")
    s.add(
        "Head",
        stroke(
            [head + polar(gaze + 0.9, r * 0.6), nose + polar(gaze + 0.9, r * 0.25)],
            [r * 0.06, r * 0.06],
        ),
        paint="dark",
        detail=True,
        clip=True,
    )
    add_eye(s, head + polar(gaze - 0.9, r * 0.55), r * 0.2)
    limb(2, hip + point(-0.02, girth * 0.2), front=False, tone=1.0)
    limb(3, shoulder + point(-0.02, girth * 0.2), front=True, tone=1.0)
    if shell > 0:
        s.add(
            "Body",
            blob(
                (-0.46, 0.05),
                (-0.36, -shell * 0.6),
                (0, -shell),
                (0.32, -shell * 0.6),
                (0.44, 0.05),
                (0, 0.1),
            ),
            paint="shell",
            detail=True,
        )
        for x, y in ((-0.24, 0.42), (0.0, 0.5), (0.23, 0.4)):
            hexagon = ellipse((x, -shell * y), 0.1, shell * 0.27, 0.0, 6)
            s.add("Body", hexagon, paint="band", detail=True, clip=True)
    return s
