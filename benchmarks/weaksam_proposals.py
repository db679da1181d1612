"""Proposals beside the one-at-a-time way: the same segmenter, the same prompts, the same boxes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from side_by_side import Times, in_turn, timed
from weakly.foundation.automatic_masks import stability
from weakly.foundation.mask_boxes import nms, point_grid
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.weaksam.proposal_settings import ProposalSettings
from weakly.methods.weaksam.proposals import (
    COARSE,
    CROSS,
    GRID,
    SOURCES,
    PointPrompts,
    Prompt,
    Proposals,
    generate_proposals,
    point_prompts,
)
from weaksam_peaks import mean_times

WANTED = 3.0
"""Times faster that we want to be with the proposals of points."""

AGREEMENT = 0.9999
"""Least share of pixels on which the masks of both sides agree: logits at the threshold may round to either side, on
some processors ten in a million."""

TOLERANCE = 0.02
"""Largest share of boxes that one side alone may have, by such pixels."""


def compare_proposals(
    segmenter: PromptableSegmenter,
    images: Sequence[NDArray[np.uint8]],
    settings: ProposalSettings,
    counts: tuple[int, int, int],
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Time both sides, image after image in turn, and compare their boxes and the masks behind those of points."""
    times: Times = {"one_at_a_time": [], "weakly": [], "encoder": []}
    boxes: Counter[str] = Counter()
    agreement = []
    rng = np.random.default_rng(seed)
    for turn, image in enumerate(images):
        points = random_points(rng, image.shape[:2], *counts)
        sides = {
            "one_at_a_time": lambda image=image, points=points: one_at_a_time(segmenter, image, points, settings),
            "weakly": lambda image=image, points=points: generate_proposals(segmenter, image, points, settings),
        }
        reference, ours = in_turn(sides, turn, times, device)
        times["encoder"].append(timed(lambda image=image: encode(segmenter, image), device)[1])
        boxes.update(compare_boxes(reference, ours))
        agreement.append(pixels_that_agree(segmenter, image, points, settings))
    alone = boxes["one_at_a_time"] + boxes["weakly"] - 2 * boxes["both"]
    figures = mean_times(times, "one_at_a_time", None if settings.grid.side else WANTED)
    encodes = {"one_at_a_time": len(groups(points, settings)), "weakly": 1}
    encoder = figures["cpu_seconds"]["encoder"]
    decoding = {name: figures["cpu_seconds"][name] - count * encoder for name, count in encodes.items()}
    return {
        "images": len(images),
        "prompts": len(point_prompts(points, settings.class_joint)),
        "grid_prompts": settings.grid.side**2,
        **figures,
        "encodes": encodes,
        "times_faster_by_cpu_decoding_alone": decoding["one_at_a_time"] / decoding["weakly"],
        "boxes": {name: boxes[name] for name in ("one_at_a_time", "weakly", "both")},
        "pixels_that_agree": min(agreement),
        "tolerance": {"pixels_that_agree": AGREEMENT, "boxes_on_one_side": TOLERANCE},
        "same": min(agreement) >= AGREEMENT
        and boxes["both"] > 0
        and alone <= TOLERANCE * (boxes["one_at_a_time"] + boxes["weakly"]),
    }


@torch.no_grad()
def one_at_a_time(
    segmenter: PromptableSegmenter, image: NDArray[np.uint8], points: PointPrompts, settings: ProposalSettings
) -> Proposals:
    """The proposals of an image: an encoding per group, a decoding per prompt, full-size masks on the CPU.

    The grid is decoded in batches, as SAM's own generator does; its masks come to the CPU too.
    """
    frame = segmenter.frame((image.shape[0], image.shape[1]))
    xy = np.concatenate([each[:, :2] for _, each in points.items()])
    boxes: dict[int, list[tuple[int, int, int, int]]] = {source: [] for source in range(len(SOURCES))}
    for group in groups(points, settings):
        embedding = encode(segmenter, image)
        if group == [GRID]:
            boxes[GRID] += grid(segmenter, embedding, frame, settings)
            continue
        for source, rows in group:
            logits = decode_one(segmenter, embedding, frame, xy[list(rows)])
            masks = (frame.logits_to_image(logits) > 0).cpu().numpy()
            boxes[source] += [box_of(masks[level]) for level in settings.keep_masks if masks[level].any()]
    boxes[CROSS] = first_come(boxes[CROSS], settings.cross_nms)
    source = np.repeat(np.arange(len(SOURCES), dtype=np.uint8), [len(boxes[each]) for each in boxes])
    return Proposals(np.array([box for each in boxes.values() for box in each], np.float32), source)


def groups(points: PointPrompts, settings: ProposalSettings) -> list[Any]:
    """What shares an encoding: the grid; per source the points; every class of a source whose points are joined."""
    prompts = point_prompts(points, settings.class_joint)
    made: list[Any] = [[GRID]] if settings.grid.side else []
    first = 0
    for source, (_, each) in enumerate(points.items(), COARSE):
        own = [prompt for prompt in prompts if prompt.source == source]
        alone = [Prompt(source, (first + row,)) for row in range(len(each))]
        made += [alone, *([prompt] for prompt in own[len(alone) :])]
        first += len(each)
    return [group for group in made if group]


def grid(
    segmenter: PromptableSegmenter, embedding: Tensor, frame: Frame, settings: ProposalSettings
) -> list[tuple[int, int, int, int]]:
    """Boxes of the grid, from full-size masks."""
    height, width = frame.size
    xy = frame.points_to_frame(point_grid(settings.grid.side) * (width, height))
    boxes, scores = [], []
    for part in segmenter.point_tokens(torch.from_numpy(xy).float()).split(settings.prompts_per_batch):
        index = torch.zeros(len(part), dtype=torch.int64, device=part.device)
        logits, iou = (each.flatten(0, 1) for each in segmenter.decode(embedding, part, index, multimask=True))
        passed = iou > settings.grid.pred_iou
        for each, score in zip(logits[passed], iou[passed].tolist(), strict=True):
            upscaled = frame.logits_to_image(each[None])
            stable = stability(upscaled, settings.grid.stability_offset).item() >= settings.grid.stability
            mask = (upscaled[0] > 0).cpu().numpy()
            if stable and mask.any():
                boxes.append(box_of(mask))
                scores.append(score)
    kept = nms(np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32), settings.grid.nms)
    return [boxes[row] for row in kept]


def decode_one(segmenter: PromptableSegmenter, embedding: Tensor, frame: Frame, xy: NDArray[np.float32]) -> Tensor:
    """(3, 4h, 4w) logits of one prompt of some image points (k, 2)."""
    tokens = segmenter.point_tokens(torch.from_numpy(frame.points_to_frame(xy)).float())
    prompt = torch.cat([tokens[:, 0], tokens[0, 1:]])[None]
    index = torch.zeros(1, dtype=torch.int64, device=prompt.device)
    return segmenter.decode(embedding, prompt, index, multimask=True)[0][0]


def encode(segmenter: PromptableSegmenter, image: NDArray[np.uint8]) -> Tensor:
    """The embedding (1, C, h, w) of an image."""
    return segmenter.encode(segmenter.preprocess([image]))


def box_of(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The box of a mask that is not empty, exclusive upper bounds."""
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def first_come(boxes: list[tuple[int, int, int, int]], threshold: float) -> list[tuple[int, int, int, int]]:
    """Boxes whose IoU with no earlier one that is kept exceeds the threshold."""
    kept: list[tuple[int, int, int, int]] = []
    for box in boxes:
        if all(iou_of(box, other) <= threshold for other in kept):
            kept.append(box)
    return kept


def iou_of(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> float:
    """IoU of two boxes with exclusive upper bounds."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def compare_boxes(reference: Proposals, ours: Proposals) -> dict[str, int]:
    """How many boxes each side has, and how many of the same source and bounds both have."""
    theirs, mine = (
        Counter((int(source), *map(float, box)) for box, source in zip(side.boxes, side.source, strict=True))
        for side in (reference, ours)
    )
    return {"one_at_a_time": theirs.total(), "weakly": mine.total(), "both": (theirs & mine).total()}


@torch.no_grad()
def pixels_that_agree(
    segmenter: PromptableSegmenter, image: NDArray[np.uint8], points: PointPrompts, settings: ProposalSettings
) -> float:
    """The share of equal pixels in the masks of all points, decoded together and one by one."""
    frame = segmenter.frame((image.shape[0], image.shape[1]))
    embedding = encode(segmenter, image)
    xy = np.concatenate([each[:, :2] for _, each in points.items()])
    tokens = segmenter.point_tokens(torch.from_numpy(frame.points_to_frame(xy)).float())
    index = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
    together = torch.cat(
        [
            segmenter.decode(embedding, part, index[: len(part)], multimask=True)[0]
            for part in tokens.split(settings.prompts_per_batch)
        ]
    )
    shares = []
    for row, logits in enumerate(together):
        alone = decode_one(segmenter, embedding, frame, xy[[row]])
        equal = (frame.logits_to_image(logits) > 0) == (frame.logits_to_image(alone) > 0)
        shares.append(equal.double().mean().item())
    return float(np.mean(shares))


def random_points(
    rng: np.random.Generator, size: tuple[int, ...], classes: int, per_class: int, cross: int
) -> PointPrompts:
    """Points as the maps of one image might give them."""

    def rows(count: int, of_classes: int) -> NDArray[np.float32]:
        xy = rng.integers(0, [size[1], size[0]], (count * of_classes, 2))
        labels = np.repeat(np.arange(of_classes), count)
        columns = [xy, labels[:, None], np.ones((len(xy), 1)), np.zeros((len(xy), 1))]
        return np.concatenate(columns, 1).astype(np.float32)

    return PointPrompts(coarse=rows(per_class, classes), fine=rows(per_class, classes), cross=rows(cross, 1))
