"""True prompts in front of the same segmenter: how good the masks could be if the student made no mistake."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.labels import Boxes, Points, Sample
from weakly.methods.base import ImageSource, Score, Skipped
from weakly.methods.decoding import MASK_PIXELS, decode_multimask, decode_prompts, fuse
from weakly.methods.embedding import Embedder
from weakly.segmentation import Rle, Segmentation, encode_masks

log = logging.getLogger(__name__)

Supervision = Literal["box", "point", "point+box"]
Choice = Literal["single", "best-predicted", "best-true"]
"""Which mask of a prompt counts. ``single``: the segmenter's single-mask output (WPS-SAM, Table 1). The others choose
among its three masks: the one it predicts the highest IoU for, or the one that is nearest to a true mask."""

FindStore = Callable[[PromptableSegmenter], FeatureStore | None]
WIDTHS: dict[Supervision, int] = {"box": 4, "point": 2, "point+box": 6}
"""Coordinates of a prompt."""

ORACLES: dict[str, tuple[Supervision, Choice]] = {
    supervision if choice == "single" else f"{supervision}:{choice}": (supervision, choice)
    for supervision in get_args(Supervision)
    for choice in get_args(Choice)
}
"""By name: ``"box"``, ``"point"``, ``"point+box"`` with the single mask, ``"box:best-true"`` ... with one of three."""


@torch.no_grad()
def oracle(
    segmenter: PromptableSegmenter,
    dataset: Dataset,
    supervision: Supervision,
    choice: Choice = "single",
    *,
    store: FeatureStore | None = None,
    batch_size: int = 8,
) -> Iterator[Segmentation]:
    """Masks from true boxes or box centres with true categories (WPS-SAM, Table 1), one image after the other.

    Overlapping masks are fused by predicted IoU, which is also the score. An image that cannot be read, or has no
    labels, gives an empty segmentation.

    Args:
        segmenter: frozen.
        dataset: with boxes; for ``point``, points are used where a sample has no boxes.
        supervision: ``box``, ``point`` (the centre of the true box) or ``point+box`` (both in one prompt of T = 3).
        choice: see :data:`Choice`; ``best-true`` reads truth masks.
        store: embeddings that need not be computed again.
        batch_size: images at once.
    """
    samples = list(dataset)
    sources = [ImageSource(s.image_id, s.path, partial(read_image, s.path)) for s in samples]
    background = dataset.vocabulary.background
    position = 0
    for batch in Embedder(segmenter, store).batches(sources, batch_size):
        here = range(position, position + len(batch.outcomes))
        position += len(here)
        usable = [i for i, row in zip(here, batch.outcomes, strict=True) if not isinstance(row, Skipped)]
        prompts = [_prompts(samples[index], supervision) for index in usable]
        counts = [len(labels) for _, labels in prompts]
        places = [
            frame.points_to_frame(xy.reshape(-1, 2)).reshape(xy.shape)
            for frame, (xy, _) in zip(batch.frames, prompts, strict=True)
        ]
        flat = torch.from_numpy(np.concatenate([np.zeros((0, WIDTHS[supervision])), *places])).float()
        image = torch.repeat_interleave(torch.arange(len(usable)), torch.tensor(counts, dtype=torch.int64))
        tokens = _tokens(segmenter, flat.to(segmenter.device), supervision)
        decode = decode_multimask if choice != "single" else _single
        logits, iou = decode(segmenter, batch.embeddings, tokens, image.to(segmenter.device))
        parts = list(zip(logits.split(counts), iou.split(counts), strict=True))
        for index, outcome in zip(here, batch.outcomes, strict=True):
            if isinstance(outcome, Skipped):
                log.warning("%s is left out of the oracle: %s", outcome.path, outcome.reason)
                yield nothing(samples[index], background)
                continue
            frame, labels, (masks, predicted) = batch.frames[outcome], prompts[outcome][1], parts[outcome]
            best = predicted.argmax(1)
            if choice == "best-true":
                best = _nearest_to_truth(frame, masks, labels, dataset.truth(index), best, background)
            rows = torch.arange(len(labels), device=best.device)
            scores = predicted[rows, best].clamp(0, 1).cpu().numpy().astype(np.float32)
            origin = [{"method": "oracle", "prompt": supervision, "instance": i} for i in range(len(labels))]
            yield fuse(frame, masks[rows, best], labels, scores, origin, background=background)


def oracle_scores(
    segmenter: Callable[[], PromptableSegmenter],
    dataset: Dataset,
    find_store: FindStore,
    names: Sequence[str] = ("box", "point"),
) -> list[Score]:
    """The oracles of these names, as far as the labels of a dataset allow; nothing is loaded before it is needed.

    Args:
        segmenter: loads the segmenter.
        dataset: with boxes or points.
        find_store: stored features of a segmenter, if there are any.
        names: of :data:`ORACLES`.

    Raises:
        UserError: there is no such oracle.
    """
    unknown = [name for name in names if name not in ORACLES]
    if unknown:
        raise UserError(f"There is no oracle {unknown[0]!r}; give some of {', '.join(ORACLES)}.")
    boxes = any(sample.boxes is not None for sample in dataset)
    points = boxes or any(sample.points is not None for sample in dataset)
    kinds = [ORACLES[name] for name in names]
    possible = [(kind, choice) for kind, choice in kinds if (points if kind == "point" else boxes)]

    def results(kind: Supervision, choice: Choice) -> Iterator[Segmentation]:
        model = segmenter()
        return oracle(model, dataset, kind, choice, store=find_store(model))

    def identity(choice: Choice) -> str:
        return segmenter().fingerprint if choice == "single" else f"{segmenter().fingerprint} {choice}"

    return [
        Score("oracle", kind, partial(results, kind, choice), partial(identity, choice), _row(choice))
        for kind, choice in possible
    ]


def true_masks(truth: Segmentation, background: int) -> tuple[tuple[Rle, ...], NDArray[np.int64]]:
    """The T true masks of an image and their (T,) categories.

    Those of its instances; where a dataset states none, one per category of its label map.
    """
    if len(truth) or truth.label_map is None:
        return truth.rles, truth.labels
    present = np.unique(truth.label_map)
    present = present[present < background].astype(np.int64)
    return encode_masks(truth.label_map == present[:, None, None]), present


def mask_iou(found: Sequence[Rle], truth: Sequence[Rle]) -> NDArray[np.float64]:
    """(S, T) IoU of S masks with T others of the same size."""
    if not len(found) or not len(truth):
        return np.zeros((len(found), len(truth)))
    iou: Any = coco_mask.iou([dict(rle) for rle in found], [dict(rle) for rle in truth], [0] * len(truth))
    return np.asarray(iou, np.float64)


def nothing(sample: Sample, background: int) -> Segmentation:
    """The empty segmentation of an image that cannot be read."""
    canvas = np.full(sample.size, background, np.uint8 if background < 256 else np.uint16)
    return Segmentation(size=sample.size, label_map=canvas)


def _row(choice: Choice) -> dict[str, str]:
    return {} if choice == "single" else {"row": choice}


def _prompts(sample: Sample, supervision: Supervision) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Places (M, W) in image pixels, pairs of x and y, and labels (M,)."""
    boxes = sample.boxes or Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    if supervision == "box":
        return boxes.xyxy, boxes.labels
    if supervision == "point+box":
        return np.concatenate([boxes.xyxy, boxes.centers().xy], 1), boxes.labels
    points = sample.points if sample.boxes is None else boxes.centers()
    points = points or Points(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    return points.xy, points.labels


def _tokens(segmenter: PromptableSegmenter, places: Tensor, supervision: Supervision) -> Tensor:
    """(N, W) places in the frame to (N, T, D) tokens."""
    if supervision == "box":
        return segmenter.box_tokens(places)
    if supervision == "point":
        return segmenter.point_tokens(places)
    boxes, points = places.split([4, 2], dim=1)
    return segmenter.point_tokens(points, boxes)


def _single(
    segmenter: PromptableSegmenter, embeddings: Tensor, tokens: Tensor, image_index: Tensor
) -> tuple[Tensor, Tensor]:
    """As :func:`decode_multimask` with one mask per prompt."""
    logits, iou = decode_prompts(segmenter, embeddings, tokens, image_index)
    return logits[:, None], iou[:, None]


def _nearest_to_truth(
    frame: Frame, logits: Tensor, labels: NDArray[np.int64], truth: Segmentation, otherwise: Tensor, background: int
) -> Tensor:
    """(n,) int64: of the three masks of a prompt the one with the highest IoU with a true mask of its category.

    Args:
        frame: of the image.
        logits: (n, 3, h, w).
        labels: (n,) categories.
        truth: of the image.
        otherwise: (n,) the choice for prompts of which no mask overlaps the truth.
        background: C.
    """
    rles, categories = true_masks(truth, background)
    per_chunk = max(1, MASK_PIXELS // max(frame.side**2, frame.size[0] * frame.size[1]))
    found = [
        rle
        for chunk in logits.flatten(0, 1).split(per_chunk)
        if len(chunk)
        for rle in encode_masks((frame.logits_to_image(chunk) >= 0).cpu().numpy())
    ]
    iou = mask_iou(found, rles).reshape(len(labels), 3, len(rles)) * (labels[:, None, None] == categories)
    best = iou.max(2, initial=0.0)
    chosen = np.where(best.max(1, initial=0.0) > 0, best.argmax(1), otherwise.cpu().numpy())
    return torch.from_numpy(chosen).to(otherwise)
