"""COCO's figures of boxes and masks, by pycocotools, from the pairs of :mod:`~weakly.evaluation.detection`.

A true instance whose provenance says ``{"crowd": True}`` counts neither as found nor as missed, and may be found any
number of times.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from weakly.evaluation.detection import DetectionScores, Pairs, class_table, mean
from weakly.segmentation import Segmentation, rle_areas
from weakly.vocabulary import Vocabulary

COCO_SIDES = {"small": (0, 32), "medium": (32, 96), "large": (96, 1e5)}
"""Square roots of COCO's area ranges."""


def coco_detection_ap(pairs: Pairs, vocabulary: Vocabulary) -> DetectionScores:
    """COCO's average precision of boxes, by pycocotools: see :func:`coco_scores`."""
    return coco_scores(pairs, vocabulary, "bbox")


def coco_scores(pairs: Pairs, vocabulary: Vocabulary, kind: Literal["bbox", "segm"]) -> DetectionScores:
    """COCO's figures, as pycocotools computes them with up to 100 predictions per image.

    Memory: boxes, and of ``segm`` the run-length encoded masks, of all images.

    Returns:
        ``ap`` over IoU 0.5 to 0.95, ``ap50``, ``ap75``, ``ap_small``, ``ap_medium``, ``ap_large``, and the average
        recall ``ar``: means over the categories that have a true instance.
    """
    truth_rows: list[dict[str, Any]] = []
    found_rows: list[dict[str, Any]] = []
    sizes: list[dict[str, Any]] = []
    for image, (truth, prediction) in enumerate(pairs):
        sizes.append({"id": image, "height": truth.size[0], "width": truth.size[1]})
        truth_rows += _rows(truth, image, kind)
        found_rows += _rows(prediction, image, kind)
    for number, row in enumerate(truth_rows):
        row["id"] = number + 1  # pycocotools takes 0 for "no match"
    categories = [{"id": i, "name": name} for i, name in enumerate(vocabulary.names)]
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        evaluation = _evaluate(sizes, truth_rows, found_rows, categories, kind)
    precision, recall = evaluation["precision"], evaluation["recall"]  # (T, R, C, areas, limits), (T, C, areas, limits)
    by_class = {
        "ap": precision[:, :, :, 0, -1],
        "ap50": precision[:1, :, :, 0, -1],
        "ap75": precision[5:6, :, :, 0, -1],
        **{f"ap_{name}": precision[:, :, :, i + 1, -1] for i, name in enumerate(COCO_SIDES)},
        "ar": recall[:, None, :, 0, -1],
    }
    figures = {name: _class_means(values) for name, values in by_class.items()}
    truths, found = (
        np.bincount([row["category_id"] for row in rows if not row["iscrowd"]], minlength=len(vocabulary))
        for rows in (truth_rows, found_rows)
    )
    return DetectionScores(
        {name: mean(values) for name, values in figures.items()},
        class_table(vocabulary, figures, truths, found),
        len(sizes),
    )


def _class_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """(C,) means of (T, R, C) figures; pycocotools writes -1 for a category without a true instance."""
    flat = values.reshape(-1, values.shape[2])
    return np.where((flat > -1).all(0), flat.mean(0), np.nan)


def _rows(segmentation: Segmentation, image: int, kind: str) -> list[dict[str, Any]]:
    """COCO annotations or results of an image; the area is that of what is scored."""
    sides = segmentation.boxes[:, 2:] - segmentation.boxes[:, :2]
    areas = rle_areas(segmentation.rles) if kind == "segm" else sides.prod(1)
    return [
        {
            "image_id": image,
            "category_id": int(label),
            "bbox": [float(box[0]), float(box[1]), float(side[0]), float(side[1])],
            "area": float(area),
            "iscrowd": int(bool(origin.get("crowd"))),
            "score": float(score),
            **({"segmentation": dict(rle)} if kind == "segm" else {}),
        }
        for rle, box, side, area, label, score, origin in zip(
            segmentation.rles,
            segmentation.boxes,
            sides,
            areas,
            segmentation.labels,
            segmentation.scores,
            segmentation.provenance,
            strict=True,
        )
    ]


def _evaluate(
    images: list[dict[str, Any]],
    truth: list[dict[str, Any]],
    found: list[dict[str, Any]],
    categories: list[dict[str, Any]],
    kind: str,
) -> Mapping[str, NDArray[np.float64]]:
    documents = []
    for rows in (truth, [{**row, "id": number + 1, "iscrowd": 0} for number, row in enumerate(found)]):
        document = COCO()
        document.dataset = {"info": {}, "images": images, "annotations": rows, "categories": categories}
        document.createIndex()
        documents.append(document)
    evaluation = COCOeval(*documents, kind)
    evaluation.evaluate()
    evaluation.accumulate()
    result: Mapping[str, NDArray[np.float64]] = evaluation.eval
    return result
