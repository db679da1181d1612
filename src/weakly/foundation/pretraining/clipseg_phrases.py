"""What the bundled CLIPSeg's decoder learns from: views of pre-training worlds, phrases, and the objects they mean.

A phrase names whole objects: a kind or super-category, perhaps with a colour or a position; or something that is not
there, whose mask is empty. Parts are never named and their borders never seen: segmenting parts is what methods learn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from weakly.foundation.pretraining.captioned import CaptionedBank, draw_view, mild_change, normalised, resized
from weakly.foundation.pretraining.captions import TEMPLATES
from weakly.foundation.pretraining.recipe import ClipSegTraining
from weakly.foundation.pretraining.scene_facts import COLOURS, NOUNS, POSITIONS, Fact, Facts, View, read_facts

VOID = 255
"""In a target: the phrase may or may not mean this object (a hue between red and orange), so its pixels count nothing.
"""

_FAMILIES = {"noun": 0.6, "colour": 0.2, "position": 0.2}  # shares of the phrases
_BARE_SHARE = 0.5  # phrases that are the name alone, as downstream vocabularies are


@dataclass(frozen=True)
class Phrase:
    """A text that means some objects of a view.

    Attributes:
        text: the name in a template.
        meaning: of each object 1 (meant), 0 (not meant) or ``VOID``.
    """

    text: str
    meaning: tuple[int, ...]


def object_facts(view: View) -> list[Facts]:
    """Of each object what is true and what possible of it: the facts of the view that shows this object alone."""
    owners = owners_of(view)
    alone = (np.where(owners == number + 1, view.part_map, 0) for number in range(len(view.inventory.kinds)))
    return [read_facts(replace(view, part_map=part_map)) for part_map in alone]


def owners_of(view: View) -> NDArray[np.uint8]:
    """(H, H) uint8: 0 where no object is, else 1 + its index in the inventory."""
    table = np.array([0, *(owner + 1 for _, owner in view.inventory.parts)], np.uint8)
    return table[view.part_map]


def draw_phrases(rng: np.random.Generator, objects: Sequence[Facts], count: int, absent: int) -> list[Phrase]:
    """``count`` phrases about a view, the last ``absent`` of them (all, in an empty view) true of no object.

    Args:
        rng: where chance comes from.
        objects: :func:`object_facts` of the view.
        count: phrases in all.
        absent: phrases whose mask is empty.
    """
    present = sorted({fact for facts in objects for fact in facts.possible if _meaning(fact, facts) == 1})
    possible = set().union(*(facts.possible for facts in objects))
    nouns = sorted({fact[1] for fact in present if fact[0] == "noun"})
    told = [(family, word, noun) for family, words in _ADJECTIVES.items() for word in words for noun in nouns]
    # Names of what is not there, and what is there under another colour or at another place.
    missing = [fact for fact in [*(("noun", noun) for noun in NOUNS), *told] if fact not in possible]
    true = count - absent if present else 0
    facts = [*_draw(rng, present, true), *_draw(rng, missing, count - true)]
    return [Phrase(_say(rng, fact), tuple(_meaning(fact, known) for known in objects)) for fact in facts]


_ADJECTIVES = {"colour": COLOURS, "position": tuple(POSITIONS)}


def _meaning(fact: Fact, facts: Facts) -> int:
    """Whether a fact means the object of ``facts``. However little of a fox is seen, it is a fox."""
    if fact[0] not in _FAMILIES or fact not in facts.possible:
        return 0
    return 1 if fact[0] == "noun" or fact in facts.true else VOID


def _draw(rng: np.random.Generator, facts: Sequence[Fact], count: int) -> list[Fact]:
    """``count`` facts, families in their shares, none twice while there are enough."""
    if count == 0:
        return []
    families = [fact[0] for fact in facts]
    weights = np.array([_FAMILIES[family] / families.count(family) for family in families])
    rows = rng.choice(len(facts), count, replace=len(facts) < count, p=weights / weights.sum())
    return [facts[int(row)] for row in rows]


def _say(rng: np.random.Generator, fact: Fact) -> str:
    match fact:
        case ("position", position, noun):
            name = f"{noun} {POSITIONS[position][0]}"
        case _:
            name = " ".join(fact[1:])
    return name if rng.random() < _BARE_SHARE else TEMPLATES[int(rng.integers(len(TEMPLATES)))].format(name)


@dataclass(frozen=True, eq=False)
class PhraseBatch:
    """A training step's input: B pictures, P phrases of each.

    Attributes:
        pixels: (B, 3, S, S) float32, normalised as CLIP's.
        texts: B * P texts, picture by picture.
        targets: (B, P, S, S) uint8: 1 on the objects a phrase means, 0 elsewhere, ``VOID`` where that is unclear.
    """

    pixels: Tensor
    texts: tuple[str, ...]
    targets: Tensor

    def to(self, device: torch.device) -> PhraseBatch:
        """The same batch on another device."""
        return replace(self, pixels=self.pixels.to(device), targets=self.targets.to(device))


class PhraseBatches(Dataset[PhraseBatch]):
    """The batch of every training step, a pure function of (recipe, step): order and resuming change nothing.

    Args:
        bank: rendered worlds.
        training: the recipe.
    """

    def __init__(self, bank: CaptionedBank, training: ClipSegTraining) -> None:
        self.bank, self.training = bank, training

    def __len__(self) -> int:
        return self.training.total_steps

    def __getitem__(self, step: int) -> PhraseBatch:
        training, stage = self.training, self.training.stage_at(step)
        rng = np.random.default_rng(np.random.SeedSequence([training.seed, step]))
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + step)
        views = [draw_view(rng, self.bank.view(int(row))) for row in rng.integers(len(self.bank), size=stage.pictures)]
        phrases = [draw_phrases(rng, object_facts(view), training.phrases, training.absent) for view in views]
        pixels = torch.from_numpy(np.stack([resized(view.image, stage.size) for view in views]))
        targets = np.stack([targets_of(view, said, stage.size) for view, said in zip(views, phrases, strict=True)])
        return PhraseBatch(
            normalised(mild_change(pixels.permute(0, 3, 1, 2).float() / 255, generator)),
            tuple(phrase.text for said in phrases for phrase in said),
            torch.from_numpy(targets),
        )


def targets_of(view: View, phrases: Sequence[Phrase], size: int) -> NDArray[np.uint8]:
    """(P, size, size) uint8 targets of a view's phrases, resized to the nearest pixel."""
    owners = cv2.resize(owners_of(view), (size, size), interpolation=cv2.INTER_NEAREST_EXACT)
    meanings = np.array([(0, *phrase.meaning) for phrase in phrases], np.uint8)
    return meanings[:, owners]
