"""From one image's taps to a label map (spec partclipseg section 5), asking for no part of an object that is not there.

Objects are run first; then only the parts of the objects found, or given, and only their masks. The result is that of
asking for everything. :func:`all_at_once` alone is another rule, and does ask for everything. Symbols as in
:mod:`~weakly.methods.partclip.model`; (H, W) is the image's original size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.methods.partclip.model import ClipSegBaseline, NameEmbeddings, PartClipSeg
from weakly.methods.partclip.trunk import ClipSegStudent, Trunk

PROMPTS_AT_ONCE = 32
"""Prompts the decoder runs on together: about ten tensors of 32 T d floats, 40 MB each at 352 pixels."""

PIXELS_AT_ONCE = 2**25
"""Upsampled logits held at once, 128 MiB; an image larger than that is held one class at a time."""


class LabelMap(NamedTuple):
    """A prediction.

    Attributes:
        labels: (H, W) int64 class of every pixel, K for the background.
        scores: (H, W) float32 sigmoid of the label's own mask; of the object mask where the background won.
    """

    labels: Tensor
    scores: Tensor


@torch.no_grad()
def pred_all(
    model: PartClipSeg,
    taps: Tensor,
    names: NameEmbeddings,
    size: tuple[int, int],
    chunk: int = 16,
    background_above: float | None = None,
) -> LabelMap:
    """Pred-All: the best object of every pixel, then the best part of that object; the background is an object.

    So the background of the class masks never competes, and a wrong object cannot be recovered (spec section 5).

    Args:
        model: in eval mode or not, it has no dropout.
        taps: (1, D, T, K_v) float32.
        names: of any vocabulary.
        size: (H, W).
        chunk: masks made at once.
        background_above: see :func:`best_or_background`.
    """
    reduced = model.reduce(taps)
    prompts = torch.arange(names.parts, names.prompts, device=taps.device)
    wholes = run_prompts(model, reduced, names.embeddings, prompts)
    rows = torch.arange(len(prompts), device=taps.device)
    found = best_or_background(lambda part: model.prompt_logits(wholes, part), rows, size, chunk, background_above)
    parts = _parts_within(model, reduced, names, found.labels, chunk, (wholes, prompts))
    return LabelMap(parts.labels, torch.where(parts.labels < names.classes, parts.scores, found.scores))


@torch.no_grad()
def all_at_once(
    model: PartClipSeg,
    taps: Tensor,
    names: NameEmbeddings,
    size: tuple[int, int],
    chunk: int = 16,
    background_above: float | None = None,
) -> LabelMap:
    """Pred-All without a choice of objects: all K classes compete, and the background of the class masks with them.

    As the baseline predicts. An object mask that is wrong costs nothing here, but all classes' masks are made, and four
    tensors of N T d floats are held.

    Args:
        model: see :func:`pred_all`.
        taps: (1, D, T, K_v) float32.
        names: of any vocabulary.
        size: (H, W).
        chunk: masks made at once.
        background_above: see :func:`best_or_background`.
    """
    prompts = torch.arange(names.prompts, device=taps.device)
    decoded = model.compose(run_prompts(model, model.reduce(taps), names.embeddings, prompts), names)
    classes = torch.arange(names.classes + 1, device=taps.device)
    return best_or_background(lambda part: model.class_logits(decoded, part), classes, size, chunk, background_above)


@torch.no_grad()
def parts_within(
    model: PartClipSeg, taps: Tensor, names: NameEmbeddings, object_map: Tensor, chunk: int = 16
) -> LabelMap:
    """The best part of a given object at every pixel: Oracle-Obj of all objects of an image in one label map.

    Args:
        model: the student.
        taps: (1, D, T, K_v) float32.
        names: of any vocabulary.
        object_map: (H, W) int64 object of every pixel, N_o for none: background, with score 0.
        chunk: masks made at once.
    """
    return _parts_within(model, model.reduce(taps), names, object_map, chunk)


@torch.no_grad()
def oracle_obj(
    model: PartClipSeg,
    taps: Tensor,
    names: NameEmbeddings,
    size: tuple[int, int],
    objects: Sequence[int],
    chunk: int = 16,
) -> LabelMap:
    """Oracle-Obj: the best of the classes of the objects that an image is known to show, without background.

    Args:
        model: the student.
        taps: (1, D, T, K_v) float32.
        names: of any vocabulary.
        size: (H, W).
        objects: indices along the names' objects; without any, everything is background, with score 0.
        chunk: masks made at once.
    """
    if not objects:
        nothing = torch.zeros(size, device=taps.device)
        return LabelMap(torch.full_like(nothing, names.classes, dtype=torch.int64), nothing)
    known = torch.tensor(sorted(set(objects)), device=taps.device)
    classes = torch.isin(names.object_of, known).nonzero()[:, 0]
    prompts = torch.cat([names.part_prompt[classes], names.object_prompt[classes]]).unique()
    trunk = run_prompts(model, model.reduce(taps), names.embeddings, prompts)
    decoded = model.compose(trunk, names, prompts)
    return best_of(lambda part: model.class_logits(decoded, part), classes, size, chunk)


@torch.no_grad()
def predict_phrases(
    model: ClipSegBaseline,
    taps: Tensor,
    names: Tensor,
    size: tuple[int, int],
    classes: Tensor | None = None,
    chunk: int = 16,
    background_above: float | None = None,
) -> LabelMap:
    """The baseline's prediction: the best class or background, or the best of ``classes`` (spec section 9).

    Args:
        model: the baseline.
        taps: (1, D, T, K_v) float32.
        names: (K + 1, E) prompts.
        size: (H, W).
        classes: (C,) int64, those of known objects for Oracle-Obj; all K + 1 by default, for Pred-All.
        chunk: prompts run and masks made at once.
        background_above: see :func:`best_or_background`.
    """
    reduced = model.reduce(taps)

    def logits_of(part: Tensor) -> Tensor:
        return model.prompt_logits(model.run(reduced, names[part]))

    if classes is not None:
        return best_of(logits_of, classes, size, chunk)
    return best_or_background(logits_of, torch.arange(len(names), device=taps.device), size, chunk, background_above)


def run_prompts(model: ClipSegStudent, reduced: Tensor, embeddings: Tensor, prompts: Tensor) -> Trunk:
    """The decoder on some prompts, (n,) int64, :data:`PROMPTS_AT_ONCE` of them at a time."""
    runs = [model.run(reduced, embeddings[part]) for part in prompts.split(PROMPTS_AT_ONCE)]
    return Trunk(*(torch.cat(pieces, 1) for pieces in zip(*runs, strict=True)))


def best_of(
    logits_of: Callable[[Tensor], Tensor],
    channels: Tensor,
    size: tuple[int, int],
    chunk: int,
    allowed: Callable[[Tensor], Tensor] | None = None,
    otherwise: int = -1,
) -> LabelMap:
    """The channel with the highest upsampled logit at every pixel; memory does not grow with their number.

    Two tensors of at most :data:`PIXELS_AT_ONCE` floats (or of H W, if larger) are held besides the masks of a chunk.

    Args:
        logits_of: (c,) channels to (1, c, S, S) logits.
        channels: (C,) int64 in rising order; the first of equals wins.
        size: (H, W).
        chunk: channels at once at most.
        allowed: (c,) channels to (c, H, W) bool, where they may win; everywhere by default.
        otherwise: label of pixels where none may, with score 0.
    """
    best = torch.full(size, -math.inf, device=channels.device)
    labels = torch.full(size, otherwise, device=channels.device)
    for part in channels.split(max(1, min(chunk, PIXELS_AT_ONCE // math.prod(size)))):
        logits = functional.interpolate(logits_of(part).float(), size, mode="bilinear", align_corners=False)[0]
        if allowed is not None:
            logits = logits.masked_fill(~allowed(part), -math.inf)
        highest, row = logits.max(0)
        better = highest > best
        best, labels = torch.where(better, highest, best), torch.where(better, part[row], labels)
    return LabelMap(labels, best.sigmoid())


def best_or_background(
    logits_of: Callable[[Tensor], Tensor],
    channels: Tensor,
    size: tuple[int, int],
    chunk: int,
    background_above: float | None,
) -> LabelMap:
    """:func:`best_of` where the last channel is background.

    Sigmoids of masks share no scale: where a model hesitates between many objects, none of them is above a background
    that it hardly believes in. With a threshold the background answers for itself, and objects compete with objects.

    Args:
        logits_of: as for :func:`best_of`.
        channels: (C,) int64 in rising order, the background last.
        size: (H, W).
        chunk: channels at once at most.
        background_above: sigmoid from which a pixel is background; None: where its logit is the highest, as published.
    """
    if background_above is None:
        return best_of(logits_of, channels, size, chunk)
    found, background = (best_of(logits_of, part, size, chunk) for part in (channels[:-1], channels[-1:]))
    wins = background.scores > background_above
    return LabelMap(*(theirs.where(wins, ours) for theirs, ours in zip(background, found, strict=True)))


def _parts_within(
    model: PartClipSeg,
    reduced: Tensor,
    names: NameEmbeddings,
    object_map: Tensor,
    chunk: int,
    done: tuple[Trunk, Tensor] | None = None,
) -> LabelMap:
    """As :func:`parts_within`; ``done`` has the objects, where they have been run, and which prompts they are."""
    owners = names.object_of[:-1]
    present = object_map.flatten().bincount(minlength=names.objects + 1) > 0
    classes = present[owners].nonzero()[:, 0]
    if len(classes) == 0:
        background = torch.full_like(object_map, names.classes)
        return LabelMap(background, torch.zeros_like(background, dtype=torch.float32))
    prompts = names.part_prompt[classes].unique()
    if done is None:
        prompts = torch.cat([names.object_prompt[classes].unique(), prompts])
    trunk = run_prompts(model, reduced, names.embeddings, prompts)
    if done is not None:
        trunk, prompts = done[0].join(trunk), torch.cat([done[1], prompts])
    decoded = model.compose(trunk, names, prompts)
    return best_of(
        lambda part: model.class_logits(decoded, part),
        classes,
        (object_map.shape[0], object_map.shape[1]),
        chunk,
        allowed=lambda part: owners[part, None, None] == object_map,
        otherwise=names.classes,
    )
