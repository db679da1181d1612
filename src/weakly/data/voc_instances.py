"""PASCAL VOC 2007 and 2012 for detection and instance segmentation from tags: tags to learn from, objects to score.

    JPEGImages/<stem>.jpg
    Annotations/<stem>.xml                  objects: their names are the tags; boxes and difficult flags are truth
    SegmentationObject/<stem>.png           optional masks: 0 background, o the o-th object of the XML, 255 void
    SegmentationClass/<stem>.png            optional label map: 0 background, k class k, 255 void
    ImageSets/Main/{split}.txt              stems: detection (2007: trainval 5,011, test 4,952; 2012: trainval 11,540)
    ImageSets/Segmentation/{split}.txt      stems of the images with masks (2012: val 1,449)
    ImageSets/SegmentationAug/{split}.txt   stems with SBD's label maps, which come without object maps
    classes.txt                             optional: the names, one per line, where they are not VOC's

**Tags are those of objects that are not difficult**, as detectors learn from them (MIST); an image that shows difficult
objects alone has no tag. Classification literature counts all objects: ``difficult_tags``. The images of ``test`` have
no tags, whatever lies in the folder; their truth is read where there is one. Samples never carry boxes.

Object maps are opened when somebody asks for the truth of an image; ``weakly data check`` compares them with the XML.
In published maps a difficult object may be void.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.images import confined, image_size
from weakly.data.tags import HIDDEN_SPLIT, Read, image_problem, label_map_problem, no_tag_problem, read_records
from weakly.data.voc import VocEntry, image_set_entries, image_set_file, voc_vocabulary
from weakly.data.voc_objects import read_objects
from weakly.errors import UserError
from weakly.labels import Sample
from weakly.vocabulary import Vocabulary

DETECTION_SETS = ("Main", "Segmentation", "SegmentationAug")
"""Where detection looks for an image set: ``train`` are the 5,717 images of VOC 2012."""

INSTANCE_SETS = ("Segmentation", "SegmentationAug", "Main")
"""Where instance segmentation looks: ``train`` are the 1,464 images with masks."""


def read_voc_instances(
    root: Path,
    split: str,
    *,
    sets: Sequence[str] = DETECTION_SETS,
    difficult_tags: bool = False,
    name: str = "voc",
) -> Dataset:
    """Read one split; image headers are read for their sizes.

    Args:
        root: the folder with ``JPEGImages/``, ``Annotations/`` and ``ImageSets/`` (``VOC2007`` or ``VOC2012``).
        split: name of an image set; ``trainaug`` and ``train_aug`` are the same.
        sets: folders of ``ImageSets/`` that are looked through for it, in this order.
        difficult_tags: difficult objects give tags too.
        name: what tables call the dataset.

    Returns:
        Records in the order of the image set, ids are stems. Samples have tags alone; ``Record.instances`` are the
        objects with a usable box, None where a test image has no annotation. ``extra``: ``annotations`` (the image
        set) and ``difficult_tags``.

    Raises:
        UserError: a folder or the image set is missing or not UTF-8.
    """
    image_set = image_set_file(root, split, sets)
    if not (root / "Annotations").is_dir() and split != HIDDEN_SPLIT:
        raise UserError(f"There is no folder {root / 'Annotations'}; the objects of the images are read from its XML.")
    vocabulary = voc_vocabulary(root)
    entries, problems = image_set_entries(root, image_set)
    read = partial(_read, root=root, vocabulary=vocabulary, hidden=split == HIDDEN_SPLIT, difficult_tags=difficult_tags)
    records, found = read_records(read, entries)
    extra = {"annotations": image_set, "difficult_tags": difficult_tags}
    return Dataset(name, split, vocabulary, records, (*problems, *found), 0, extra)


def _read(entry: VocEntry, root: Path, vocabulary: Vocabulary, *, hidden: bool, difficult_tags: bool) -> Read:
    try:
        size = image_size(entry.image)
    except UserError as error:
        return None, [image_problem(entry.image, entry.index, error)]
    problems: list[Problem] = []
    try:
        objects = read_objects(entry.annotation, size, vocabulary, entry.index, problems)
    except UserError as error:
        problem = annotation_problem(entry.annotation, entry.index, error, is_needed=not hidden)
        # A test image is there to be predicted; without an annotation it cannot be scored, which is no problem.
        record = Record(Sample(entry.stem, entry.image, size)) if hidden else None
        return record, [] if hidden and problem.check == "annotation-missing" else [problem]
    sample = Sample(entry.stem, entry.image, size, tags=None if hidden else objects.tags(difficult=difficult_tags))
    record = Record(
        sample,
        label_map_path=_map(entry.label_map, size, entry, problems, what="label map"),
        instances=objects.instances,
        object_map_path=_object_map(root, size, entry, problems),
    )
    return record, [*problems, *no_tag_problem(sample, entry.file)]


def annotation_problem(path: Path, index: str, error: UserError, *, is_needed: bool = True) -> Problem:
    """An annotation that is missing or unreadable: nobody knows what its image shows."""
    check = "annotation-unreadable" if path.is_file() else "annotation-missing"
    cost = "the image is left out" if is_needed else "the image is used without truth"
    severity = "error" if is_needed else "warning"
    return Problem(check, severity, str(path), index, str(error), f"Restore the annotation; until then {cost}.")


def _object_map(root: Path, size: tuple[int, int], entry: VocEntry, problems: list[Problem]) -> Path | None:
    try:
        path = confined(root / "SegmentationObject", f"{entry.stem}.png")
    except UserError as error:
        remedy = "Move the object map inside."
        problems.append(Problem("path-outside", "warning", str(root), entry.index, str(error), remedy))
        return None
    return _map(path, size, entry, problems, what="object map")


def _map(path: Path, size: tuple[int, int], entry: VocEntry, problems: list[Problem], *, what: str) -> Path | None:
    """The map if its header says that it can be used. Most images have none; those of Segmentation should."""
    problem = label_map_problem(path, size, entry.index, "warning", what=what)
    if problem is None:
        return path
    if entry.file.parent.name == "Segmentation" or not problem.check.endswith("-missing"):
        problems.append(problem)
    return None
