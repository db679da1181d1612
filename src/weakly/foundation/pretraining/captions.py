"""Captions of rendered views: texts that state true facts, and which texts are true of which views.

A caption is true of every view of which all its facts are true, and false of every view of which one is false, so
that which captions of a batch fit which pictures is known exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.kinds import PARTS_OF
from weakly.foundation.pretraining.scene_facts import (
    BACKDROPS,
    BACKGROUND_WORDS,
    COLOURS,
    COUNTS,
    NOUNS,
    POSITIONS,
    Fact,
    Facts,
)

ORIGAMI = "a clean origami {}."
"""CLIP-ES's prompt (FMA spec 8.2)."""
TEMPLATES = ("{}", "{}.", "a {}.", "the {}.", "a photo of a {}.", "a picture of a {}.", "an image of the {}.", ORIGAMI)
BLANK = "x"
"""Stands for nothing: blank words before or after a name prepare for learned contexts (FMA spec 2.1)."""
MAX_BLANKS = 16
CAPTION_TOKENS = 32
"""No caption is longer, its two special tokens included."""

_OPENERS = ("", "", "a photo of ", "a picture of ", "an image of ", "this shows ", "there is ")
_SYNONYMS = {"tier": ("tier", "tyre"), "aeroplane": ("aeroplane", "airplane"), "bicycle": ("bicycle", "bike")}
_NAME_FAMILIES = {"noun": 0.6, "part": 0.25, "word": 0.15}
_PHRASE_FAMILIES = {"noun": 0.2, "colour": 0.2, "position": 0.2, "count": 0.15, "part": 0.15, "word": 0.1}
_NAME_SHARE = 0.5  # captions that are a name in a template; the others are sentences
_BLANK_SHARE = 0.25  # of those


@dataclass(frozen=True)
class Caption:
    """A text and the facts it states."""

    text: str
    facts: tuple[Fact, ...]


def write_captions(rng: np.random.Generator, facts: Facts, count: int) -> list[Caption]:
    """``count`` captions that state true facts; a view without any object is told by its backdrop."""
    by_family: dict[str, list[Fact]] = {}
    for fact in sorted(facts.true):  # sets have no order of their own
        by_family.setdefault(fact[0], []).append(fact)
    return [_name(rng, by_family) if rng.random() < _NAME_SHARE else _sentence(rng, by_family) for _ in range(count)]


def _draw(rng: np.random.Generator, by_family: dict[str, list[Fact]], shares: dict[str, float]) -> Fact:
    families = [family for family in shares if family in by_family] or ["place"]
    weights = np.array([shares.get(family, 1.0) for family in families])
    facts = by_family[families[int(rng.choice(len(families), p=weights / weights.sum()))]]
    return facts[int(rng.integers(len(facts)))]


def _name(rng: np.random.Generator, by_family: dict[str, list[Fact]]) -> Caption:
    fact = _draw(rng, by_family, _NAME_FAMILIES)
    name = " ".join(_spoken(rng, word) for word in fact[1:] if word)
    if rng.random() < _BLANK_SHARE:
        blanks = " ".join([BLANK] * int(rng.integers(1, MAX_BLANKS + 1)))
        text = f"{blanks} {name}." if rng.random() < 0.5 else f"{name} {blanks}."
    else:
        text = _pick(rng, TEMPLATES).format(name)
    return Caption(text, (fact,))


def _sentence(rng: np.random.Generator, by_family: dict[str, list[Fact]]) -> Caption:
    facts = list(dict.fromkeys(_draw(rng, by_family, _PHRASE_FAMILIES) for _ in range(rng.integers(1, 4))))
    said = [_phrase(rng, fact) for fact in facts]
    text = _pick(rng, _OPENERS) + ", ".join(said[:-1]) + " and " * (len(said) > 1) + said[-1]
    (place,) = by_family["place"]
    if place not in facts and rng.random() < 0.35:
        text, facts = f"{text} {_phrase(rng, place)}", [*facts, place]
    return Caption(f"{text}.", tuple(facts))


def _phrase(rng: np.random.Generator, fact: Fact) -> str:
    """One fact in words; phrases joined state their facts together and nothing more."""
    match fact:
        case ("part", owner, part) if owner:
            owner, part = _spoken(rng, owner), _spoken(rng, part)
            return _pick(rng, (_a(f"{owner} {part}"), f"the {part} of {_a(owner)}", f"{_a(owner)}'s {part}"))
        case ("noun", noun) | ("part", "", noun):
            return _a(_spoken(rng, noun))
        case ("colour", colour, noun):
            return _a(f"{colour} {_spoken(rng, noun)}")
        case ("position", position, noun):
            return f"{_a(_spoken(rng, noun))} {POSITIONS[position][0]}"
        case ("count", count, noun):
            return f"{count} {_spoken(rng, noun) if count == COUNTS[0] else plural(_spoken(rng, noun))}"
        case ("place", place):
            return BACKDROPS[place].phrase
        case _:
            return fact[1]


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _spoken(rng: np.random.Generator, word: str) -> str:
    return _pick(rng, _SYNONYMS.get(word, (word,)))


def _a(name: str) -> str:
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def plural(noun: str) -> str:
    """``foxes``, ``dinghies``, ``angelfish``."""
    if noun.endswith("fish"):
        return noun
    if noun.endswith(("x", "s", "ch", "sh")):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"


def agreement(views: Sequence[Facts], captions: Sequence[Caption]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which captions are true, and which are false, of which views: two (B, T) maps; a pair in neither is unclear."""
    index = {fact: i for i, fact in enumerate(dict.fromkeys(fact for c in captions for fact in c.facts))}
    stated = _multi_hot([caption.facts for caption in captions], index)
    needed = stated.sum(1)
    true = _multi_hot([facts.true for facts in views], index) @ stated.T
    possible = _multi_hot([facts.possible for facts in views], index) @ stated.T
    return true == needed, possible < needed


def _multi_hot(rows: Iterable[Iterable[Fact]], index: dict[Fact, int]) -> NDArray[np.float32]:
    """(R, F) float32, so that the products run through BLAS."""
    columns = [[index[fact] for fact in row if fact in index] for row in rows]
    hot = np.zeros((len(columns), len(index)), np.float32)
    for row, found in enumerate(columns):
        hot[row, found] = 1
    return hot


def lexicon() -> tuple[str, ...]:
    """Texts that contain every word a caption may use."""
    spoken = [form for names in _SYNONYMS.values() for form in names]
    parts = sorted({part.lower() for parts in PARTS_OF.values() for part in parts})
    nouns = [*NOUNS, *spoken]
    return (
        *nouns,
        *(plural(noun) for noun in nouns),
        *(f"{noun}'s" for noun in nouns),
        *parts,
        *COLOURS,
        *COUNTS,
        *BACKGROUND_WORDS,
        *BACKDROPS,
        *(backdrop.phrase for backdrop in BACKDROPS.values()),
        *(phrase for phrase, *_ in POSITIONS.values()),
        *(template.format(BLANK) for template in (*TEMPLATES, *_OPENERS)),
        "the head of a fox, a fox and an ape.",
    )
