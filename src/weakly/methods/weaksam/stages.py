"""What every stage of a trained run makes of a dataset: to be scored, and to be looked at."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.labels import Sample
from weakly.methods.base import NO_CATEGORY, Panel
from weakly.methods.weaksam.clues import ClueExtractor
from weakly.methods.weaksam.detectors import Detections
from weakly.methods.weaksam.pipeline import Pipeline, Usable
from weakly.methods.weaksam.pseudo_truth import PseudoTruth
from weakly.segmentation import Segmentation, box_masks

SHOWN = 10
"""Detections of an image that are looked at."""

Boxes = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]
"""(n, 4) boxes, (n,) labels and (n,) scores of an image."""


class Stages:
    """The stages of a trained run over a dataset, computed when the first of them is asked for."""

    def __init__(self, pipeline: Pipeline, dataset: Dataset) -> None:
        self.pipeline, self.dataset = pipeline, dataset

    def results(self, stage: Callable[[], Sequence[Boxes]]) -> Iterator[Segmentation]:
        """One segmentation per image of the dataset; images that could not be used have no instance."""
        found = {s.image_id: boxes for s, boxes in zip(self._images.samples, stage(), strict=True)}
        for sample in self.dataset:
            boxes, labels, scores = found.get(sample.image_id, _NOTHING)
            origin = tuple({"method": "weaksam", "mask": "box"} for _ in labels)
            yield Segmentation(sample.size, box_masks(boxes, sample.size), boxes, labels, scores, origin)

    def identity(self, row: str) -> str:
        """Digest of the run's detector, settings and tags."""
        pipeline, images = self.pipeline, self._images
        weights = sorted(path.name for path in (pipeline.workspace.run / "wsod").glob("detector-*.safetensors"))
        about = [row, weights, str(pipeline.workspace.run.resolve()), asdict(pipeline.settings)]
        digest = hashlib.sha256(json.dumps(about, default=str).encode())
        digest.update(images.digest(len(pipeline.vocabulary)).encode())
        return digest.hexdigest()

    def proposals(self) -> list[Boxes]:
        """What the detector chooses from, in its order."""
        return [(b, np.zeros(len(b), np.int64), np.ones(len(b), np.float32)) for b in self._boxes]

    def detections(self) -> list[Boxes]:
        """What the weakly supervised detector finds, told no tag."""
        return [(each.boxes, each.labels, each.scores.clip(0, 1)) for each in self._found]

    def pseudo_truth(self) -> list[Boxes]:
        """What counts as truth, ranked by what the detector said, so that all rules are compared by their choice."""
        return [(each.boxes, each.labels, each.confidence.clip(0, 1)) for each in self._truths]

    def panels(self, sample: Sample) -> list[Panel]:
        """What every stage makes of one image of the dataset, in order; stages without anything have no panel.

        ``clue map`` and ``peaks`` are of one class: the one with the largest pseudo truth. ``detections`` are the
        :data:`SHOWN` best of tagged classes.
        """
        row = self._rows.get(sample.image_id)
        if row is None or not len(self._images.tags[row]):
            return []
        tags, truth, found = self._images.tags[row], self._truths[row], self._found[row]
        chosen = int(max(tags, key=lambda tag: _area(truth.boxes[truth.labels == tag])))
        tagged = np.flatnonzero(np.isin(found.labels, tags))
        best = tagged[np.argsort(-found.scores[tagged], kind="stable")[:SHOWN]]
        anything = np.full(len(self._boxes[row]), NO_CATEGORY)
        return [
            *self._clue_panels(row, chosen),
            *_rows_panel("proposals", "boxes", self._boxes[row], anything),
            *_rows_panel("detections", "boxes", found.boxes[best], found.labels[best]),
            *_rows_panel("pseudo truth", "boxes", truth.boxes, truth.labels),
        ]

    def _clue_panels(self, row: int, chosen: int) -> list[Panel]:
        """Fine map and peaks of a class; none where selective search asks no clue."""
        if self._extractor is None:
            return []
        pipeline, images, name = self.pipeline, self._images, self.pipeline.vocabulary.names[chosen]
        tags, path = images.tags[row], images.samples[row].path
        clues = self._extractor.extract(read_image(path), tags)
        fine = clues.fine[int((clues.classes == chosen).nonzero()[0, 0])].cpu().numpy()
        points = pipeline.points(self._extractor).of_image(path, images.keys[row], tags)
        peaks = np.concatenate([points.coarse, points.fine])
        peaks = peaks[peaks[:, 2] == chosen]
        return [
            Panel(f"clue map of {name}", "heat", (255 * fine).round().astype(np.uint8)),
            *_rows_panel(f"peaks of {name}", "points", peaks[:, :2], peaks[:, 2]),
        ]

    @cached_property
    def _rows(self) -> dict[int | str, int]:
        return {sample.image_id: row for row, sample in enumerate(self._images.samples)}

    @cached_property
    def _extractor(self) -> ClueExtractor | None:
        return self.pipeline.extractor()

    @cached_property
    def _truths(self) -> list[PseudoTruth]:
        return self.pipeline.pseudo_truth(self._images, self._found)

    @cached_property
    def _images(self) -> Usable:
        return self.pipeline.usable(self.dataset)

    @cached_property
    def _boxes(self) -> list[NDArray[np.float32]]:
        return self.pipeline.loaded(self._images, self.pipeline.proposals(self._images, self._extractor))

    @cached_property
    def _found(self) -> list[Detections]:
        return self.pipeline.detections(self._images, self.pipeline.detector(), self._boxes)


_NOTHING: Boxes = (np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))


def _rows_panel(
    title: str, kind: Literal["boxes", "points"], places: NDArray[np.floating], labels: NDArray[Any]
) -> list[Panel]:
    """A panel of boxes or points; none of nothing."""
    if not len(labels):
        return []
    rows = np.concatenate([places.round(), labels[:, None]], 1)
    return [Panel(title, kind, rows.clip(0, NO_CATEGORY).astype(np.uint16))]


def _area(boxes: NDArray[np.float32]) -> float:
    return float((boxes[:, 2:] - boxes[:, :2]).prod(1).sum())
