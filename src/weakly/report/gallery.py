"""The gallery: which images are shown, and the pictures of each: weak labels, stages, upper bound, results, truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.methods.base import Panel
from weakly.report.charts import percent
from weakly.report.draw import draw_boxes, draw_label_map, draw_points, draw_stage, fit_panel
from weakly.report.page import MOST_GALLERY_ROWS, GalleryRow
from weakly.segmentation import Segmentation

ImageId = int | str


@dataclass(frozen=True)
class Column:
    """One column of masks in the gallery.

    Attributes:
        title: e.g. ``"wps · box"``.
        results: COCO results of the image of each id; an image without an entry has no mask.
        scores: score of each image as a fraction, where it was measured.
    """

    title: str
    results: Mapping[ImageId, Sequence[Mapping[str, Any]]]
    scores: Mapping[ImageId, float | None] = field(default_factory=dict)

    def title_of(self, image_id: ImageId) -> str:
        """The title with the image's score."""
        score = self.scores.get(image_id)
        return self.title if score is None else f"{self.title} · {percent(score)} %"


@dataclass(frozen=True)
class Case:
    """An image chosen for the gallery; ``group`` is ``"best"``, ``"median"``, ``"worst"`` or empty."""

    image_id: ImageId
    score: float | None
    group: str


def by_image(results: Sequence[Mapping[str, Any]]) -> dict[ImageId, list[Mapping[str, Any]]]:
    """COCO results by image id."""
    grouped: dict[ImageId, list[Mapping[str, Any]]] = {}
    for result in results:
        grouped.setdefault(result["image_id"], []).append(result)
    return grouped


def choose_cases(scores: Mapping[ImageId, float | None], each: int = 4) -> list[Case]:
    """The ``each`` best, median and worst images by score, best first; no image twice.

    Images without a finite score are left out. With no more than ``3 * each`` images all are shown, without groups.
    """
    ranked = sorted(
        ((image_id, score) for image_id, score in scores.items() if score is not None and math.isfinite(score)),
        key=lambda item: (-item[1], str(item[0])),
    )
    if len(ranked) <= 3 * each:
        return [Case(image_id, score, "") for image_id, score in ranked]
    middle = len(ranked) // 2 - each // 2
    starts = {"best": 0, "median": min(max(middle, each), len(ranked) - 2 * each), "worst": len(ranked) - each}
    return [Case(*ranked[i], group) for group, start in starts.items() for i in range(start, start + each)]


def gallery_rows(
    dataset: Dataset,
    columns: Sequence[Column],
    cases: Sequence[Case],
    supervisions: Sequence[str] = ("box",),
    stages: Mapping[ImageId, Sequence[Panel]] | None = None,
) -> list[GalleryRow]:
    """Pictures of the chosen cases: image, weak labels, stages, one per column, truth where there is one.

    Args:
        dataset: what the results were predicted on.
        columns: masks, left to right.
        cases: which images; those the dataset does not hold, or whose file cannot be read, are left out.
        supervisions: ``"box"`` draws the sample's boxes, ``"point"`` its points (box centres where it has none),
            ``"point+box"`` both, ``"tags"`` names its tags in the caption.
        stages: of a method, by image.
    """
    positions = {sample.image_id: i for i, sample in enumerate(dataset)}
    rows = []
    for case in cases[:MOST_GALLERY_ROWS]:
        if case.image_id not in positions:
            continue
        try:
            of_image = (stages or {}).get(case.image_id, ())
            rows.append(_gallery_row(dataset, positions[case.image_id], columns, case, supervisions, of_image))
        except UserError:  # the run has listed the file among its problems already
            continue
    return rows


def _gallery_row(
    dataset: Dataset,
    position: int,
    columns: Sequence[Column],
    case: Case,
    supervisions: Sequence[str],
    stages: Sequence[Panel],
) -> GalleryRow:
    image = dataset.image(position)
    vocabulary = dataset.vocabulary
    label_maps = [
        (column.title_of(case.image_id), _label_map(column.results.get(case.image_id, ()), dataset, position))
        for column in columns
    ]
    if dataset.has_truth():
        label_maps.append(("truth", dataset.truth(position).to_label_map(vocabulary.background)))
    panels = [("image", fit_panel(image)), *_weak_labels(dataset, position, image, supervisions)]
    panels += [(stage.title, draw_stage(image, stage, vocabulary)) for stage in stages]
    panels += [(title, draw_label_map(image, label_map, vocabulary)) for title, label_map in label_maps]
    drawn = [label_map for _, label_map in label_maps] + [stage.values for stage in stages if stage.kind == "labels"]
    seen = sorted({int(k) for label_map in drawn for k in np.unique(label_map)})
    palette = vocabulary.palette()
    legend = [
        (vocabulary.names[k], (int(palette[k, 0]), int(palette[k, 1]), int(palette[k, 2])))
        for k in seen
        if k < len(vocabulary)
    ]
    return GalleryRow(
        caption=f"image {case.image_id} · {dataset[position].path.name}{_tags(dataset, position, supervisions)}",
        score=case.score,
        panels=panels,
        legend=legend,
        group=case.group,
    )


def _weak_labels(
    dataset: Dataset, position: int, image: NDArray[np.uint8], supervisions: Sequence[str]
) -> list[tuple[str, NDArray[np.uint8]]]:
    sample, vocabulary = dataset[position], dataset.vocabulary
    panels = []
    if any("box" in supervision for supervision in supervisions) and sample.boxes is not None:
        panels.append(("boxes", draw_boxes(image, sample.boxes, vocabulary)))
    points = sample.points if sample.points is not None or sample.boxes is None else sample.boxes.centers()
    if any("point" in supervision for supervision in supervisions) and points is not None:
        panels.append(("points", draw_points(image, points, vocabulary)))
    return panels


def _tags(dataset: Dataset, position: int, supervisions: Sequence[str]) -> str:
    """The image's tags for its caption, where they were learned from."""
    tags = dataset[position].tags
    if tags is None or "tags" not in supervisions:
        return ""
    return " · tags: " + (", ".join(dataset.vocabulary.names[label] for label in tags.labels.tolist()) or "none")


def _label_map(results: Sequence[Mapping[str, Any]], dataset: Dataset, position: int) -> NDArray[Any]:
    """(H, W) category per pixel, painted by score.

    Raises:
        UserError: the masks are of another size or vocabulary than the dataset's.
    """
    sample, vocabulary = dataset[position], dataset.vocabulary
    try:
        return Segmentation.from_coco(results, sample.size, vocabulary).to_label_map(vocabulary.background)
    except ValueError as error:
        raise UserError(
            f"The results of image {sample.image_id} do not fit the data: {error}; evaluate again."
        ) from error
