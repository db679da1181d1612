"""True prompts in front of the same segmenter: how good the masks could be if the student made no mistake."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import PromptableSegmenter
from weakly.labels import Boxes, Points, Sample
from weakly.methods.base import ImageSource, Score, Skipped
from weakly.methods.decoding import decode_prompts, fuse
from weakly.methods.embedding import Embedder
from weakly.segmentation import Segmentation

log = logging.getLogger(__name__)
Supervision = Literal["box", "point"]


@torch.no_grad()
def oracle(
    segmenter: PromptableSegmenter,
    dataset: Dataset,
    supervision: Supervision,
    *,
    store: FeatureStore | None = None,
    batch_size: int = 8,
) -> Iterator[Segmentation]:
    """Masks from true boxes or box centres with true categories (WPS-SAM, Table 1), one image after the other.

    Single-mask output; overlapping masks are fused by predicted IoU, which is also the score. An image that cannot be
    read, or has no labels, gives an empty segmentation.

    Args:
        segmenter: frozen.
        dataset: with boxes; points are used where a sample has no boxes.
        supervision: ``box`` or ``point`` (the centre of the true box).
        store: embeddings that need not be computed again.
        batch_size: images at once.
    """
    samples = list(dataset)
    sources = [ImageSource(s.image_id, s.path, _reader(s)) for s in samples]
    background = dataset.vocabulary.background
    position = 0
    for batch in Embedder(segmenter, store).batches(sources, batch_size):
        here = samples[position : position + len(batch.outcomes)]
        position += len(here)
        usable = [(s, row) for s, row in zip(here, batch.outcomes, strict=True) if not isinstance(row, Skipped)]
        prompts = [_prompts(sample, supervision) for sample, _ in usable]
        places = [
            batch.frames[row].points_to_frame(places.reshape(-1, 2)).reshape(places.shape)
            for (_, row), (places, _) in zip(usable, prompts, strict=True)
        ]
        counts = [len(place) for place in places]
        image = torch.repeat_interleave(torch.arange(len(usable)), torch.tensor(counts, dtype=torch.int64))
        width = 4 if supervision == "box" else 2
        flat = torch.from_numpy(np.concatenate([np.zeros((0, width)), *places])).float().to(segmenter.device)
        tokens = segmenter.box_tokens(flat) if supervision == "box" else segmenter.point_tokens(flat)
        logits, iou = decode_prompts(segmenter, batch.embeddings, tokens, image.to(segmenter.device))
        scores = iou.clamp(0, 1).cpu().numpy().astype(np.float32)
        ends = np.cumsum([0, *counts])
        for sample, outcome in zip(here, batch.outcomes, strict=True):
            if isinstance(outcome, Skipped):
                log.warning("%s is left out of the oracle: %s", outcome.path, outcome.reason)
                yield _nothing(sample, background)
                continue
            rows = slice(ends[outcome], ends[outcome + 1])
            labels = prompts[outcome][1]
            origin = [{"method": "oracle", "prompt": supervision, "instance": i} for i in range(len(labels))]
            yield fuse(batch.frames[outcome], logits[rows], labels, scores[rows], origin, background=background)


def oracle_scores(
    segmenter: Callable[[], PromptableSegmenter],
    dataset: Dataset,
    find_store: Callable[[PromptableSegmenter], FeatureStore | None],
) -> list[Score]:
    """The box and the point oracle of a dataset, as far as its labels allow; nothing is loaded before it is needed."""
    boxes = any(sample.boxes is not None for sample in dataset)
    points = boxes or any(sample.points is not None for sample in dataset)
    possible: dict[Supervision, bool] = {"box": boxes, "point": points}

    def results(kind: Supervision) -> Iterator[Segmentation]:
        model = segmenter()
        return oracle(model, dataset, kind, store=find_store(model))

    return [
        Score("oracle", kind, partial(results, kind), identity=lambda: segmenter().fingerprint)
        for kind, there in possible.items()
        if there
    ]


def _prompts(sample: Sample, supervision: Supervision) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Places (M, 4) or (M, 2) in image pixels and labels (M,)."""
    if supervision == "box":
        boxes = sample.boxes or Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
        return boxes.xyxy, boxes.labels
    points = sample.boxes.centers() if sample.boxes is not None else sample.points
    points = points or Points(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))
    return points.xy, points.labels


def _reader(sample: Sample) -> Callable[[], NDArray[np.uint8]]:
    return partial(read_image, sample.path)


def _nothing(sample: Sample, background: int) -> Segmentation:
    canvas = np.full(sample.size, background, np.uint8 if background < 256 else np.uint16)
    return Segmentation(size=sample.size, label_map=canvas)
