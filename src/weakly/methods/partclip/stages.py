"""What a trained student makes of an image, to be looked at: parts and objects found, and single parts as heat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.data.object_parts import object_table
from weakly.errors import UserError
from weakly.foundation.clipseg import ClipSeg
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import ImageSource, Panel, Skipped
from weakly.methods.embedding import Embedder
from weakly.methods.partclip.inference import run_prompts
from weakly.methods.partclip.model import PartClipSeg
from weakly.methods.partclip.names import PartNames, part_names
from weakly.methods.partclip.predictor import PartClipPredictor, Student, decoder
from weakly.vocabulary import Vocabulary

PARTS = 3
"""Parts of seen objects that are shown of an image, and as many of unseen ones."""

NAMED = 3
"""Objects that a title names."""

Heat = Callable[[Tensor, Sequence[int]], list[NDArray[np.uint8]]]
"""(1, D, T, K_v) taps and c classes to c maps of strengths, (S, S) each."""


def stage_panels(predictor: PartClipPredictor, dataset: Dataset, unseen: Sequence[str]) -> list[list[Panel]]:
    """The panels of every image of a (small) dataset; an image that cannot be read has none.

    ``parts found``, the result in Pred-All; ``objects found``, whose parts these are; and one heat map per part of the
    objects that are truly there (where nobody knows: that were found), the largest :data:`PARTS` of seen objects, then
    as many of unseen ones: ``zebra's head, unseen``. The heat is the sigmoid of the part's own mask, before any object
    was chosen.

    Args:
        predictor: of the dataset's vocabulary.
        dataset: images to look at.
        unseen: objects that were not trained on.
    """
    encoder, vocabulary = predictor.encoder, predictor.vocabulary
    names = part_names(vocabulary)
    decode = decoder(predictor.student, encoder, names, predictor.settings)
    heat = part_heat(predictor.student, encoder.clipseg, names)
    embedder = Embedder(cast("PromptableSegmenter", encoder), predictor.store)
    sources = [ImageSource(s.image_id, s.path, partial(read_image, s.path)) for s in dataset]
    shown: list[list[Panel]] = []
    for batch in embedder.batches(sources, 1):
        (outcome,) = batch.outcomes
        if isinstance(outcome, Skipped):
            shown.append([])
            continue
        taps = encoder.taps(batch.embeddings)
        found = decode(taps, batch.frames[0].size, None).labels.cpu().numpy()
        there = shown_parts(_truth(dataset, len(shown), found), vocabulary, unseen)
        maps = zip(there, heat(taps, there), strict=True)
        heats = [Panel(title_of(part, vocabulary, unseen), "heat", values) for part, values in maps]
        shown.append([*found_panels(found, vocabulary), *heats])
    return shown


@torch.no_grad()
def part_heat(student: Student, clipseg: ClipSeg, names: PartNames) -> Heat:
    """A student as a function of an image and some classes; the names are encoded here, once."""
    if isinstance(student, PartClipSeg):
        composer, embedded = student, student.encode_names(clipseg, names)

        def compose(taps: Tensor, classes: Tensor) -> Tensor:
            prompts = torch.cat([embedded.part_prompt[classes], embedded.object_prompt[classes]]).unique()
            trunk = run_prompts(composer, composer.reduce(taps), embedded.embeddings, prompts)
            return composer.class_logits(composer.compose(trunk, embedded, prompts), classes)

        return partial(_strengths, compose)

    baseline, phrases = student, student.encode_names(clipseg, names)
    return partial(_strengths, lambda taps, classes: baseline(taps, phrases[classes]))


@torch.no_grad()
def _strengths(
    logits_of: Callable[[Tensor, Tensor], Tensor], taps: Tensor, classes: Sequence[int]
) -> list[NDArray[np.uint8]]:
    if not classes:
        return []
    logits = logits_of(taps, torch.tensor(classes, device=taps.device))[0]
    return list((255 * logits.sigmoid()).round().to(torch.uint8).cpu().numpy())


def found_panels(label_map: NDArray[np.integer], vocabulary: Vocabulary) -> list[Panel]:
    """The (H, W) categories found, and the objects whose parts they are, by number from 1; 0 for background."""
    objects, owners = object_table(vocabulary)
    numbers = np.append(owners + 1, 0)[label_map]
    areas = np.bincount(numbers.ravel(), minlength=len(objects) + 1)[1:]
    largest = [objects[index] for index in _largest(areas, len(objects))]
    listed = ", ".join(largest[:NAMED]) + (", ..." if len(largest) > NAMED else "")
    return [
        Panel("parts found", "labels", _narrow(label_map, vocabulary.background)),
        Panel(f"objects found: {listed or 'none'}", "regions", _narrow(numbers, len(objects))),
    ]


def shown_parts(label_map: NDArray[np.integer], vocabulary: Vocabulary, unseen: Sequence[str]) -> list[int]:
    """The categories with most pixels of a label map: :data:`PARTS` of seen objects, then as many of unseen ones."""
    areas = np.bincount(label_map[label_map < len(vocabulary)], minlength=len(vocabulary))
    new = _is_unseen(vocabulary, unseen)
    return [category for group in (~new, new) for category in _largest(np.where(group, areas, 0), PARTS)]


def title_of(category: int, vocabulary: Vocabulary, unseen: Sequence[str]) -> str:
    """``"horse's head, seen"``."""
    return f"{vocabulary.names[category]}, {'unseen' if _is_unseen(vocabulary, unseen)[category] else 'seen'}"


def _truth(dataset: Dataset, index: int, otherwise: NDArray[np.integer]) -> NDArray[np.integer]:
    """(H, W) true categories, or ``otherwise`` where nobody knows them."""
    if not dataset.has_truth():
        return otherwise
    try:
        return dataset.truth(index).to_label_map(dataset.vocabulary.background)
    except UserError:
        return otherwise


def _is_unseen(vocabulary: Vocabulary, unseen: Sequence[str]) -> NDArray[np.bool_]:
    objects, owners = object_table(vocabulary)
    return np.asarray(np.isin(objects, unseen)[owners])


def _largest(areas: NDArray[np.integer], count: int) -> list[int]:
    """Indices of at most ``count`` areas above zero, the largest first."""
    order = np.argsort(-areas, kind="stable")[:count]
    return [int(index) for index in order if areas[index] > 0]


def _narrow(values: NDArray[np.integer], highest: int) -> NDArray[np.uint8] | NDArray[np.uint16]:
    return values.astype(np.uint8) if highest < 255 else values.astype(np.uint16)
