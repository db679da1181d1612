"""Raw Pascal-Part annotations (``Annotations_Part/<stem>.mat``, images of VOC 2010) -> layouts that open quickly.

* ``pascal-part-60``: a COCO file with a box and a mask for every merged part of every object
  (:mod:`weakly.data.pascal_part_60`);
* ``pascal-part-116``: the label maps of :mod:`weakly.data.pascal_part`. The published ones came without their
  conversion.

Both follow a versioned merge table of our own (``part_names/*_merges.yaml``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from weakly.data.class_names import VOC_NAMES
from weakly.data.coco_writing import write_coco
from weakly.data.dataset import VOID, Problem
from weakly.data.images import confined, image_size
from weakly.data.menagerie.world import png, write_if_changed
from weakly.data.part_lists import merge_table, part_list
from weakly.data.pascal_part import OBJECT_MAPS, PART_MAPS
from weakly.data.pascal_part_60 import RAW_FOLDER, read_pascal_part_mat, stems_file
from weakly.data.pascal_part_annotation import paint_annotation, read_annotation
from weakly.data.voc import image_set_entries
from weakly.errors import UserError

Layout = Literal["pascal-part-60", "pascal-part-116"]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        images: converted, earlier calls included.
        merges_version: of the merge table.
        problems: annotations and images that could not be used (errors), part names that the table lacks (warnings).
    """

    images: int
    merges_version: int
    problems: tuple[Problem, ...]


def convert_split(
    root: Path,
    out: Path,
    split: str,
    layout: Layout,
    *,
    annotations: Path | None = None,
    image_set: Path | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write one split of VOC 2010 with Pascal-Part's annotations in one of the two layouts.

    Inputs are only read; images are copied. A stopped conversion goes on.

    Args:
        root: the folder with ``JPEGImages/`` and ``ImageSets/`` (``VOC2010``).
        out: root of the new layout.
        split: ``"train"`` or ``"val"``.
        layout: see above.
        annotations: the folder of ``.mat`` files; None: ``Annotations_Part`` below the root.
        image_set: a text file of stems; None: that of the split, from ``ImageSets/Main`` first.
        progress: called with (images done, images in all).

    Raises:
        UserError: a folder or the image set is missing, or there is nothing to convert.
        WeaklyError: the files cannot be written.
    """
    if layout == "pascal-part-116":
        entries, problems = image_set_entries(root, stems_file(root, split, image_set))
        folder, stems = annotations or root / RAW_FOLDER, [entry.stem for entry in entries]
        done = convert_pascal_part(folder, root / "JPEGImages", out, split, stems=stems, progress=progress)
        return replace(done, problems=(*problems, *done.problems))
    dataset = read_pascal_part_mat(root, split, annotations=annotations, image_set=image_set, progress=progress)
    if not dataset.records:
        first = f" First problem: {dataset.problems[0].message}" if dataset.problems else ""
        raise UserError(f"There is no image of {split!r} to convert in {root}.{first}")
    version = merge_table("pascal_part_60").version
    write_coco(dataset, out, info={"description": f"{dataset.name}, merge table {version}"})
    return Conversion(len(dataset), version, dataset.problems)


def convert_pascal_part(
    annotations: Path,
    images: Path,
    out: Path,
    split: str,
    *,
    stems: Sequence[str] | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write one split of the layout that :func:`~weakly.data.pascal_part.read_pascal_part` reads.

    Inputs are only read; images are copied. A stopped conversion goes on: what it wrote is not written again.

    Args:
        annotations: the folder of ``.mat`` files.
        images: the folder of JPEG files.
        out: root of the new layout.
        split: ``"train"`` or ``"val"``.
        stems: the images of the split, e.g. the lines of ``ImageSets/Main/train.txt``; None: all annotated ones.
        progress: called with (images done, images in all).

    Raises:
        UserError: a folder is missing, there is nothing to convert, or ``split`` is no name.
        WeaklyError: the files cannot be written.
    """
    for folder in (annotations, images):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; name the folders of .mat files and of JPEG images.")
    if Path(split).name != split:
        raise UserError(f"The split {split!r} is a path; name it 'train' or 'val'.")
    wanted = sorted(path.stem for path in annotations.glob("*.mat")) if stems is None else list(dict.fromkeys(stems))
    if not wanted:
        raise UserError(f"There is no annotation (.mat) to convert in {annotations}; name the folder Annotations_Part.")
    converted = 0
    problems: list[Problem] = []
    for done, stem in enumerate(wanted, 1):
        try:
            problems += _convert(annotations, images, out, split, stem)
            converted += 1
        except UserError as error:
            remedy = "Restore the file; until then the image is left out."
            problems.append(Problem("not-converted", "error", str(annotations), stem, str(error), remedy))
        if progress is not None:
            progress(done, len(wanted))
    return Conversion(converted, merge_table("pascal_part_116").version, tuple(problems))


def _convert(annotations: Path, images: Path, out: Path, split: str, stem: str) -> list[Problem]:
    """Write the files of one image."""
    image, file = confined(images, f"{stem}.jpg"), confined(annotations, f"{stem}.mat")
    painted = paint_annotation(read_annotation(file), image_size(image), merge_table("pascal_part_116"))
    index = part_list("pascal_part_116").vocabulary().index
    objects = np.array([VOID, *(VOC_NAMES.index(whole) for whole in painted.classes)], np.uint8)
    parts = np.array([VOID, *(index(f"{whole}'s {part}") for whole, part in painted.names)], np.uint8)
    write_if_changed(out / "images" / split / f"{stem}.jpg", image.read_bytes())
    write_if_changed(out / OBJECT_MAPS / split / f"{stem}.png", png(objects[painted.objects]))
    write_if_changed(out / PART_MAPS / split / f"{stem}.png", png(parts[painted.parts]))
    return painted.problems(file, stem)
