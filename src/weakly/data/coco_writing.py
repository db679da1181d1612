"""Dataset -> COCO instance file and images, in the layout that ``kind: coco`` reads by default.

annotations/{split}.json
images/{split}/<file name>
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from weakly.data.dataset import Dataset, Record
from weakly.data.menagerie.world import write_if_changed
from weakly.errors import UserError
from weakly.files import write_json
from weakly.segmentation import rle_areas, rle_from_coco, rle_to_json


def write_coco(
    dataset: Dataset,
    root: Path,
    *,
    info: Mapping[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the true instances of a dataset. Inputs are only read; a stopped writing goes on.

    Args:
        dataset: every record states its instances; their masks, where there are any, become RLE.
        root: folder to write into.
        info: what the file says about itself.
        progress: called with (images done, images in all).

    Returns:
        The annotation file, which is written last: where it is, everything is.

    Raises:
        UserError: two images have the same file name, or a record does not know its instances.
        WeaklyError: the files cannot be written.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    taken: dict[str, Path] = {}
    for number, record in enumerate(dataset.records, 1):
        path = record.sample.path
        if record.instances is None:
            raise UserError(f"Nobody knows which instances {path} shows; only data with boxes can be written as COCO.")
        if taken.setdefault(path.name, path) != path:
            raise UserError(f"Two images are called {path.name}: {taken[path.name]} and {path}; rename one of them.")
        write_if_changed(root / "images" / dataset.split / path.name, path.read_bytes())
        height, width = record.sample.size
        images.append({"id": number, "file_name": path.name, "height": height, "width": width})
        annotations += _annotations(dataset, record, number, len(annotations) + 1)
        if progress is not None:
            progress(number, len(dataset))
    categories = [
        {"id": dataset.vocabulary.source_id(label), "name": category.name, "supercategory": category.object}
        for label, category in enumerate(dataset.vocabulary.categories)
    ]
    file = root / "annotations" / f"{dataset.split}.json"
    document = {"info": dict(info or {}), "images": images, "annotations": annotations, "categories": categories}
    write_json(file, document, indent=None)
    return file


def _annotations(dataset: Dataset, record: Record, image_id: int, first_id: int) -> list[dict[str, Any]]:
    rows = []
    for identity, instance in enumerate(record.instances or (), first_id):
        x0, y0, x1, y1 = instance.box
        row: dict[str, Any] = {
            "id": identity,
            "image_id": image_id,
            "category_id": dataset.vocabulary.source_id(instance.label),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "area": (x1 - x0) * (y1 - y0),
            "iscrowd": int(instance.crowd),
        }
        if instance.segmentation is not None:
            rle = rle_from_coco(instance.segmentation, record.sample.size)
            row |= {"segmentation": rle_to_json(rle), "area": int(rle_areas((rle,))[0])}
        rows.append(row)
    return rows
