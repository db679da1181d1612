"""What drives the menagerie: super-categories, their parts, and the kinds.

To add a kind, add a row to `ANIMALS` or `THINGS`; to add a super-category, also add its parts to
`PARTS_OF` and the function that sketches it to `BUILDERS` in `scene.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from weakly.data.menagerie.animal_kinds import ANIMALS
from weakly.data.menagerie.roles import RGB
from weakly.data.menagerie.thing_kinds import THINGS

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
        ) in enumerate(ANIMALS + THINGS)
    }
)
