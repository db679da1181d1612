"""Label maps to train on: the segmenter's masks of true boxes painted over each other, or the truth itself.

    <features>/label-maps/<what>/<image>-<id>.png

``what`` is the segmenter or ``truth``, ``image`` the key of the file's bytes, ``id`` a digest of what the map was made
of; PNGs are as :mod:`weakly.methods.semantic_targets` writes them. They depend on nothing that is learned, so all runs
share them. Symbols: n masks of one image, (H, W) its size, C categories.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.image_keys import image_keys
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.labels import Boxes
from weakly.methods.base import ImageSource, Skipped, Workspace
from weakly.methods.decoding import MASK_PIXELS, decode_prompts
from weakly.methods.embedding import Embedder, find_store
from weakly.methods.semantic_targets import check_categories, write_label_map

log = logging.getLogger(__name__)

DIGITS = 16
"""Hex digits of the digest in a file name: 64 bits."""

BATCH = 8
"""Images whose boxes are decoded together."""


class LabelMaps(NamedTuple):
    """Label maps of the usable images of a dataset.

    Attributes:
        images: their files.
        maps: their PNGs.
        skipped: the other images, and why.
    """

    images: tuple[Path, ...]
    maps: tuple[Path, ...]
    skipped: tuple[Skipped, ...]


def box_label_maps(
    segmenter: PromptableSegmenter, dataset: Dataset, workspace: Workspace, *, max_prompts: int = 64
) -> LabelMaps:
    """Pseudo-masks (WPS-SAM, Table 5): every true box prompts the segmenter, smaller masks are painted over larger.

    Stored features serve where there are any; other images are encoded, and nothing but their map is kept. Each map is
    on disk when the next batch begins, and is not made again.

    Raises:
        UserError: the dataset has no boxes, too many categories, or no image can be used.
    """
    check_categories(len(dataset.vocabulary))
    if all(sample.boxes is None for sample in dataset):
        raise UserError(
            f"The split {dataset.split!r} of {dataset.name} has no boxes, which pseudo-masks are made from; choose "
            "another split, or, if it is the validation split, set data.val to null."
        )
    folder = _folder(workspace, f"{segmenter.name}-{segmenter.fingerprint[:8]}")
    paths: dict[int, Path] = {}
    reasons: dict[int, str] = {}
    for index, (sample, key) in enumerate(zip(dataset, _keys(dataset, workspace), strict=True)):
        if key is None or sample.boxes is None:
            what = "cannot be read" if key is None else "has no boxes"
            reasons[index] = f"{sample.path} {what}; restore it or drop its record."
            continue
        boxes = sample.boxes
        about = [segmenter.fingerprint, list(sample.size), boxes.xyxy.tolist(), boxes.labels.tolist()]
        paths[index] = folder / f"{key}-{_digest(json.dumps(about).encode())}.png"
    missing = [index for index, path in paths.items() if not path.is_file()]
    embedder = Embedder(segmenter, find_store(workspace.features, segmenter, workspace.feature_dtype))
    tell = partial(workspace.progress, f"pseudo-masks {dataset.split}")
    for done, (index, made) in enumerate(_made(embedder, dataset, missing, max_prompts), 1):
        if isinstance(made, Skipped):
            reasons[index] = made.reason
        else:
            write_label_map(paths[index], made, dataset.vocabulary)
        tell(done, len(missing))
    return _usable(dataset, paths, reasons)


def true_label_maps(dataset: Dataset, workspace: Workspace) -> LabelMaps:
    """The true masks as label maps: strong labels, for the fully supervised row of the tables.

    Raises:
        UserError: the dataset has no true masks, too many categories, or no image can be used.
    """
    check_categories(len(dataset.vocabulary))
    if not dataset.has_truth():
        raise UserError(
            f"The split {dataset.split!r} of {dataset.name} has no true masks, which settings.supervision=mask learns "
            "from; choose another split, or, if it is the validation split, set data.val to null."
        )
    folder = _folder(workspace, "truth")
    paths: dict[int, Path] = {}
    reasons: dict[int, str] = {}
    keys = _keys(dataset, workspace)
    for index, (sample, key) in enumerate(zip(dataset, keys, strict=True)):
        try:
            labels = dataset.truth(index).to_label_map(dataset.vocabulary.background)
            path = folder / f"{key}-{_digest(repr(labels.shape).encode() + labels.tobytes())}.png"
            if not path.is_file():
                read_image(sample.path)  # an image that cannot be decoded has no use for a map
                write_label_map(path, labels, dataset.vocabulary)
            paths[index] = path
        except UserError as error:
            reasons[index] = str(error)
        workspace.progress(f"true masks {dataset.split}", index + 1, len(dataset))
    return _usable(dataset, paths, reasons)


def paint(masks: Tensor, labels: NDArray[np.int64], background: int) -> NDArray[np.uint8]:
    """Masks painted over each other from the largest to the smallest, so that parts within parts are seen.

    The paper does not say how its pseudo-masks become one map; this is the rule of ours. Of equally large masks the
    earlier one is seen. Memory: ``3 n H W`` bytes beside the masks.

    Args:
        masks: (n, H, W) bool.
        labels: (n,) categories.
        background: C, the label of pixels in no mask.

    Returns:
        (H, W) uint8.
    """
    order = masks.flatten(1).sum(1).flip(0).argsort(descending=True, stable=True)
    order = len(masks) - 1 - order  # from the last seen to the first, the earlier of equals after the later
    places = torch.arange(1, len(masks) + 1, dtype=torch.int16, device=masks.device)
    none = torch.zeros(1, *masks.shape[1:], dtype=torch.int16, device=masks.device)
    seen = torch.cat([none, masks[order] * places[:, None, None]]).amax(0)
    lookup = np.append(background, labels[order.cpu().numpy()]).astype(np.uint8)
    return lookup[seen.cpu().numpy()]


def _made(
    embedder: Embedder, dataset: Dataset, indices: Sequence[int], max_prompts: int
) -> Iterator[tuple[int, NDArray[np.uint8] | Skipped]]:
    """The label map of every image at ``indices``, in order, or why there is none."""
    segmenter, background = embedder.segmenter, dataset.vocabulary.background
    samples = [dataset[index] for index in indices]
    sources = [ImageSource(s.image_id, s.path, partial(read_image, s.path)) for s in samples]
    position = 0
    for batch in embedder.batches(sources, BATCH):
        here = list(zip(indices, samples, strict=True))[position : position + len(batch.outcomes)]
        position += len(here)
        usable = [s for (_, s), row in zip(here, batch.outcomes, strict=True) if not isinstance(row, Skipped)]
        boxes = [sample.boxes or Boxes(np.zeros((0, 4), np.float32), np.zeros(0, np.int64)) for sample in usable]
        logits = _logits(segmenter, batch.embeddings, batch.frames, boxes, max_prompts)
        for (index, _), outcome in zip(here, batch.outcomes, strict=True):
            if isinstance(outcome, Skipped):
                yield index, outcome
                continue
            masks = _masks(batch.frames[outcome], logits[outcome])
            yield index, paint(masks, boxes[outcome].labels, background)


@torch.no_grad()
def _logits(
    segmenter: PromptableSegmenter,
    embeddings: Tensor,
    frames: Sequence[Frame],
    boxes: Sequence[Boxes],
    max_prompts: int,
) -> tuple[Tensor, ...]:
    """Per image the (n, h, w) mask logits of its boxes."""
    counts = [len(one) for one in boxes]
    placed = [frame.boxes_to_frame(one.xyxy) for frame, one in zip(frames, boxes, strict=True)]
    flat = torch.from_numpy(np.concatenate([np.zeros((0, 4)), *placed])).float().to(segmenter.device)
    image = torch.repeat_interleave(torch.arange(len(frames)), torch.tensor(counts, dtype=torch.int64))
    tokens = segmenter.box_tokens(flat)
    logits, _ = decode_prompts(segmenter, embeddings, tokens, image.to(segmenter.device), max_prompts=max_prompts)
    return logits.split(counts)


def _masks(frame: Frame, logits: Tensor) -> Tensor:
    """(n, H, W) bool masks of (n, h, w) logits, :data:`MASK_PIXELS` worked on at once."""
    per_chunk = max(1, MASK_PIXELS // max(frame.side**2, frame.size[0] * frame.size[1]))
    empty = torch.zeros(0, *frame.size, dtype=torch.bool, device=logits.device)
    return torch.cat([empty, *(frame.logits_to_image(chunk) >= 0 for chunk in logits.split(per_chunk) if len(chunk))])


def _keys(dataset: Dataset, workspace: Workspace) -> list[str | None]:
    return image_keys(workspace.features, [sample.path for sample in dataset])


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _folder(workspace: Workspace, what: str) -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in what).strip("-").lower()
    return workspace.features / "label-maps" / name


def _usable(dataset: Dataset, paths: dict[int, Path], reasons: dict[int, str]) -> LabelMaps:
    for reason in reasons.values():
        log.warning("Left out of training: %s", reason)
    kept = [index for index in paths if index not in reasons]
    if not kept:
        raise UserError(f"No image of {dataset.name} ({dataset.split}) can be used; run `weakly data check` on it.")
    skipped = (Skipped(dataset[i].image_id, dataset[i].path, reason) for i, reason in sorted(reasons.items()))
    return LabelMaps(tuple(dataset[i].path for i in kept), tuple(paths[i] for i in kept), tuple(skipped))
