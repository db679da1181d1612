"""What ``weakly data check`` finds in the object maps of one record: whether they mean the objects of the labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import VOID, Dataset, Instance, Problem, Record
from weakly.data.geometry import box_difference
from weakly.data.images import image_header, read_image
from weakly.data.object_parts import object_table
from weakly.errors import UserError
from weakly.segmentation import encode_masks, rle_boxes

BORDER_PIXELS = 6.0
BORDER_SHARE = 0.2
"""A box side may differ from its mask's extent by 6 pixels (VOC's maps leave a void border of 5 around objects) or 20 %
of the box's longer side, whichever is more."""


def object_map_problems(dataset: Dataset, position: int, *, fast: bool = False) -> list[Problem]:
    """Problems of the object map of one record; none if the record has none.

    Args:
        dataset: its label map, where it has one, is compared too.
        position: of the record.
        fast: read the header only.
    """
    record = dataset.records[position]
    path = record.object_map_path
    if path is None:
        return []
    index = f"image id {record.sample.image_id}"
    remedy = "Export the object map again; until then its masks cannot be scored."
    try:
        size = image_header(path).size
        if size != record.sample.size:
            (height, width), (own_height, own_width) = size, record.sample.size
            message = f"The object map is {height} x {width} but the image is {own_height} x {own_width}."
            return [Problem("object-map-size", "error", str(path), index, message, remedy)]
        if fast:
            return []
        object_map = read_image(path, mode="index")
    except UserError as error:
        return [Problem("object-map-unreadable", "error", str(path), index, str(error), remedy)]
    remedy = "Check that value o of the map is the o-th object of the annotation."
    found = [*_strange_values(record, object_map), *_boxes_that_differ(record, object_map)]
    found += _other_categories(dataset, position, object_map)
    return [Problem("object-map-disagrees", "warning", str(path), index, message, remedy) for message in found]


def _strange_values(record: Record, object_map: NDArray[Any]) -> list[str]:
    numbers = {instance.number for instance in record.instances or ()}
    strange = sorted(set(np.unique(object_map).tolist()) - numbers - {0, VOID})
    if not strange:
        return []
    return [f"The object map holds the values {strange[:8]}, which are no usable object of the annotation."]


def _boxes_that_differ(record: Record, object_map: NDArray[Any]) -> list[str]:
    instances = record.instances or ()
    if not instances:
        return []
    numbers = np.array([instance.number for instance in instances])
    extents = rle_boxes(encode_masks(object_map[None] == numbers[:, None, None]))
    return [
        message
        for instance, extent in zip(instances, extents.tolist(), strict=True)
        for message in _difference(instance, extent)
    ]


def _difference(instance: Instance, extent: list[float]) -> list[str]:
    x0, y0, x1, y1 = extent
    if x1 == x0:
        # Difficult objects may be void.
        return [] if instance.difficult else [f"Object {instance.number} has no pixel in the object map."]
    box = instance.box
    tolerance = max(BORDER_PIXELS, BORDER_SHARE * max(box[2] - box[0], box[3] - box[1]))
    difference = box_difference(box, (x0, y0, x1, y1))
    if difference <= tolerance:
        return []
    return [f"The pixels of object {instance.number} and its box differ by {difference:.0f} pixels."]


def _other_categories(dataset: Dataset, position: int, object_map: NDArray[Any]) -> list[str]:
    """Objects of which most pixels belong to another category in the label map."""
    record = dataset.records[position]
    if record.label_map_path is None:
        return []
    try:
        label_map = dataset.label_map(position)
    except UserError:
        return []  # reported as a problem of the label map
    if label_map is None or label_map.shape != object_map.shape:
        return []
    names = (*dataset.vocabulary.names, "background")
    messages = []
    for instance in record.instances or ():
        values = label_map[object_map == instance.number]
        values = values[values != VOID]
        most = int(np.bincount(values).argmax()) if len(values) else instance.label
        if most != instance.label:
            stated, shown = names[instance.label], names[most]
            messages.append(f"Object {instance.number} is a {stated!r} but its pixels are {shown!r} in the label map.")
    return messages


MIN_SAME_OBJECT = 0.8
"""Share of the pixels with a part label that must lie on the whole object the part belongs to."""


def whole_problems(dataset: Dataset, position: int, *, fast: bool = False) -> list[Problem]:
    """Problems of the masks of whole objects of one record; none if the record has none.

    Args:
        dataset: its part labels are compared with them.
        position: of the record.
        fast: read the header only.
    """
    record = dataset.records[position]
    path, index = record.whole_map_path, f"image id {record.sample.image_id}"
    if path is None and record.wholes is None:
        return []
    file = str(record.sample.path if path is None else path)
    remedy = "Export the object map again."
    try:
        if path is not None and (size := image_header(path).size) != record.sample.size:
            (height, width), (own_height, own_width) = size, record.sample.size
            message = f"The object map is {height} x {width} but the image is {own_height} x {own_width}."
            return [Problem("object-map-size", "error", file, index, message, remedy)]
        if fast:
            return []
        object_map = dataset.object_map(position)
        strange = [] if path is None else np.unique(read_image(path, mode="index")).tolist()
    except UserError as error:
        return [Problem("object-map-unreadable", "error", file, index, str(error), remedy)]
    strange = [value for value in strange if value >= len(dataset.wholes) and value != VOID]
    if strange:
        message = f"The object map holds the values {strange[:8]}, which are no objects."
        return [Problem("object-map-value", "error", file, index, message, remedy)]
    share = _on_own_object(dataset, position, object_map)
    if share >= MIN_SAME_OBJECT:
        return []
    message = f"Only {share:.0%} of the pixels with a part label lie on the object that the part belongs to."
    return [Problem("object-map-disagrees", "warning", file, index, message, "Check that both maps are of one image.")]


def _on_own_object(dataset: Dataset, position: int, object_map: NDArray[Any]) -> float:
    try:
        label_map = dataset.label_map(position)
    except UserError:
        return 1.0  # reported as a problem of the label map
    if label_map is None or label_map.shape != object_map.shape:
        return 1.0
    labelled = label_map < len(dataset.vocabulary)
    same = object_table(dataset.vocabulary)[1][label_map[labelled]] == object_map[labelled]
    return float(same.mean()) if same.size else 1.0
