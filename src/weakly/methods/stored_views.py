"""Features of a training set in the feature store, in one or more views (mirrored ...), for any frozen encoder."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, cast

import torch
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.images import read_image, read_mirrored
from weakly.errors import UserError
from weakly.foundation.feature_build import ReadImage
from weakly.foundation.feature_codec import FeatureDtype
from weakly.foundation.features import BuildReport, Features, FeatureStore
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import Skipped, Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, slots=True)
class StoredViews:
    """Every view of the images that can be read.

    Attributes:
        kept: their indices in the dataset.
        features: of these images, one collection per view.
        skipped: the other images, and why.
    """

    kept: tuple[int, ...]
    features: tuple[Features, ...]
    skipped: tuple[Skipped, ...]


def store_views(
    encoder: PromptableSegmenter,
    dataset: Dataset,
    views: Mapping[str, ReadImage],
    workspace: Workspace,
    *,
    channels: int | None = None,
) -> StoredViews:
    """Encode what the stores of the views lack, and hold the features of the images that every view could read.

    Args:
        encoder: has the attributes that :class:`~weakly.foundation.features.FeatureStore` asks for.
        dataset: its images.
        views: {variant of the store: how a file is read}, e.g. ``{"": read_image, "hflip": read_mirrored}``.
        workspace: where the stores are; its budget is shared by the views.
        channels: the first channels of the features that are held; all if None.

    Raises:
        UserError: no image can be read, or the disk is full.
    """
    paths = [sample.path for sample in dataset]
    dtype = cast("FeatureDtype", workspace.feature_dtype)
    built: list[tuple[FeatureStore, BuildReport]] = []
    for variant, read in views.items():
        store = FeatureStore.open(workspace.features, encoder, dtype, variant=variant)
        progress = partial(workspace.progress, " ".join(filter(None, ("features", dataset.split, variant))))
        report = store.build(paths, read=read, progress=progress)
        workspace.note(
            f"Features of {dataset.split}{variant and f', {variant}'}: {report.encoded} images encoded, {report.reused}"
            f" found; {dtype} against float32: {report.drift}"
        )
        built.append((store, report))
    kept = [i for i in range(len(paths)) if all(report.keys[i] is not None for _, report in built)]
    if not kept:
        raise UserError(f"No image of {dataset.name} ({dataset.split}) can be read; run `weakly data check` on it.")
    budget = workspace.feature_budget // len(built)
    features = [
        store.hold([report.keys[i] for i in kept], budget, workspace.device, channels=channels)
        for store, report in built
    ]
    return StoredViews(tuple(kept), tuple(features), _skipped(dataset, [report for _, report in built]))


def image_views(mirrored: Sequence[bool]) -> dict[str, ReadImage]:
    """What :func:`store_views` asks for, of images as they are or mirrored left to right."""
    return {"hflip" if flip else "": read_mirrored if flip else read_image for flip in mirrored}


class Inputs(Protocol):
    """What a network looks at, of n images: stored features, or images that are read when they are asked for."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Those of (B,) int64 images, float32."""
        ...


def gather_views(views: Sequence[Inputs], view: Tensor, rows: Tensor) -> Tensor:
    """(B, ...) of a batch whose images are each seen in a view of their own.

    Args:
        views: the images in every view.
        view: (B,) int64 on the CPU, which view.
        rows: (B,) int64 on the CPU, which image.

    Raises:
        IndexError: there is no such view.
    """
    if int(view.max()) >= len(views):
        raise IndexError(f"view {int(view.max())} of {len(views)} views")
    chosen = [(view == number).nonzero()[:, 0] for number in range(len(views))]
    parts = [each[rows[where]] for each, where in zip(views, chosen, strict=True) if len(where)]
    if len(parts) == 1:  # as they are, without a copy
        return parts[0]
    return torch.cat(parts)[torch.cat(chosen).argsort().to(parts[0].device)]


def _skipped(dataset: Dataset, reports: Sequence[BuildReport]) -> tuple[Skipped, ...]:
    reasons = {path: reason for report in reports for path, reason in report.skipped}
    for reason in reasons.values():
        log.warning("Left out of training: %s", reason)
    return tuple(Skipped(s.image_id, s.path, reasons[s.path]) for s in dataset if s.path in reasons)
