"""Car Parts Dataset (Pasupa et al., 2021), release V.2: 18 car parts, 400 training and 100 test photographs.

    trainingset/annotations.json    trainingset/JPEGImages/*.jpg
    testset/annotations.json        testset/JPEGImages/*.jpg

Left and right are the driver's: a horizontal flip must swap the names. About half of the wheel annotations hold
several wheels in one box.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weakly.data.coco import read_coco
from weakly.data.dataset import Dataset
from weakly.errors import UserError

FOLDERS = {"train": "trainingset", "val": "trainingset", "trainval": "trainingset", "test": "testset"}

HOLD_OUT = 10
"""The publication has no validation set: every 10th training image in order of image id (0th, 10th ...) is ``val``."""


def read_carparts(root: Path, split: str) -> Dataset:
    """Read one split; nothing is copied.

    Args:
        root: the folder with ``trainingset/`` and ``testset/``.
        split: ``"test"`` (100 images), ``"trainval"`` (all 400 training images), ``"val"`` (the 40 of them that
            :data:`HOLD_OUT` picks) or ``"train"`` (the other 360).

    Raises:
        UserError: an unknown split, or a folder or file is missing.
    """
    if split not in FOLDERS:
        raise UserError(f"Car-parts has no split {split!r}; choose one of {', '.join(FOLDERS)}.")
    folder = root / FOLDERS[split]
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; the data folder must hold trainingset/ and testset/.")
    dataset = read_coco(
        folder / "annotations.json",
        folder / "JPEGImages",
        name="carparts",
        split=split,
        drop=("_background_",),
        default_object="car",
    )
    if split not in {"train", "val"}:
        return dataset
    # Ranks among all image ids of the file, so that a missing image moves no other one between the splits.
    rank = {image_id: i for i, image_id in enumerate(dataset.extra["image_ids"])}
    held_out = split == "val"
    keep = tuple(r for r in dataset.records if (rank[r.sample.image_id] % HOLD_OUT == 0) == held_out)
    kept_ids = {r.sample.image_id for r in keep}
    no_mask = tuple(pair for pair in dataset.extra["no_mask"] if pair[0] in kept_ids)
    return replace(dataset, records=keep, extra={**dataset.extra, "no_mask": no_mask})
