"""The palette: what the parts of a sketch are painted in, given the colours of an instance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

RGB = tuple[int, int, int]


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
