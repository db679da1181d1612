"""COCO results made by any program, as segmentations aligned with a data set."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.segmentation import Rle, Segmentation, rle_from_coco


def read_coco_results(path: Path, dataset: Dataset) -> list[Segmentation]:
    """Read a COCO results file: a JSON list of ``{"image_id", "category_id", "segmentation", "score"}``.

    A whole COCO document (``predictions.json`` of `weakly predict`) is read too: its image ids are its own, so its
    images are told by their file names. Every result is checked, masks included, before any is scored. ``score`` is 1
    where it is absent.

    Args:
        path: the results file.
        dataset: the data set that was predicted; its image ids and the vocabulary's source ids are the file's.

    Returns:
        One segmentation per image of the data set, in its order; empty for an image without results.

    Raises:
        UserError: the file is unreadable, or a result has an unknown image or category, no mask, or a mask of another
            size; the sentence names the file and the result.
    """
    results, ids = _read(path)
    positions = {sample.image_id: position for position, sample in enumerate(dataset)}
    if ids is not None:
        positions = _by_file_name(path, ids, dataset)
    sizes = [sample.size for sample in dataset]
    known = set(dataset.vocabulary.by_source_id())
    by_image: list[list[Mapping[str, Any]]] = [[] for _ in sizes]
    for index, result in enumerate(results):
        try:
            position = _position(result, positions)
            by_image[position].append(_checked(result, known, sizes[position]))
        except ValueError as error:
            raise UserError(f"{path}: results[{index}]: {error}.") from error
    return [
        Segmentation.from_coco(of_image, size, dataset.vocabulary)
        for of_image, size in zip(by_image, sizes, strict=True)
    ]


def _read(path: Path) -> tuple[list[Any], dict[int | str, str] | None]:
    """The results, and {image id: file name} where the file is a whole document."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a COCO results file.") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error}); give a COCO results file.") from error
    if isinstance(content, list):
        return content, None
    try:
        names = {image["id"]: Path(image["file_name"]).name for image in content["images"]}
        return list(content["annotations"]), names
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{path}: is neither a list nor a COCO document; COCO results are a JSON list with one object per mask."
        ) from error


def _by_file_name(path: Path, names: Mapping[int | str, str], dataset: Dataset) -> dict[int | str, int]:
    """{image id of the file: position in the data set}; images of the file that the data set lacks are left out."""
    known: dict[str, int] = {}
    for position, sample in enumerate(dataset):
        if known.setdefault(sample.path.name, position) != position:
            raise UserError(
                f"{path}: the data set has two images named {sample.path.name}, so file names do not tell its images; "
                "give a JSON list of results with the data set's own image ids."
            )
    return {image_id: known[name] for image_id, name in names.items() if name in known}


def _position(result: Any, positions: Mapping[int | str, int]) -> int:
    """Position of the result's image in the data set."""
    if not isinstance(result, dict):
        raise ValueError(  # noqa: TRY004 - wrong content of a file, not of a call
            "is not an object; COCO results are a JSON list with one object per mask"
        )
    image_id = result.get("image_id")
    if not isinstance(image_id, int | str) or image_id not in positions:
        raise ValueError(f"image_id {image_id!r} is not in the data set; predict on the split that is scored")
    return positions[image_id]


def _checked(result: Mapping[str, Any], known: set[int], size: tuple[int, int]) -> dict[str, Any]:
    """The fields that a segmentation is made of."""
    category = result.get("category_id")
    if not isinstance(category, int) or category not in known:
        raise ValueError(f"category_id {category!r} is not in the vocabulary; use the source ids of the data set")
    score = result.get("score", 1.0)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"score {score!r} is not a number; give a number or leave it out")
    return {"category_id": category, "segmentation": _checked_mask(result.get("segmentation"), size), "score": score}


def _checked_mask(segmentation: Any, size: tuple[int, int]) -> Rle:
    if not segmentation:
        raise ValueError("has no segmentation; boxes alone cannot be scored, write masks")
    try:
        return rle_from_coco(segmentation, size)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("segmentation is neither run lengths nor polygons; write one of the two") from error
    except ValueError as error:
        raise ValueError(f"{error}; write the mask at the size of its image, {size[1]} x {size[0]}") from error
