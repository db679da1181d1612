"""PartImageNet-40: the parts of 40 of PartImageNet's object classes, from its published "Seg" layout.

The files are those of :mod:`weakly.data.partimagenet`; an image shows one object, whose class its name begins with
(``n02129604_*.JPEG`` is a tiger), and its parts are that object's: value 0 ("Quadruped Head") is ``"tiger's head"``
there. Images of PartImageNet's other classes are left out. Splits are its own; the images of unseen objects stay in
train, and which objects are trained on is the method's business.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from weakly.data.dataset import Dataset, Record
from weakly.data.object_parts import object_and_part
from weakly.data.part_lists import part_list
from weakly.data.partimagenet import read_partimagenet
from weakly.errors import UserError
from weakly.vocabulary import Vocabulary


def read_partimagenet40(root: Path, split: str, *, name: str = "partimagenet-40", **options: Any) -> Dataset:
    """Read one split.

    Args:
        root: the folder with ``images/`` and ``annotations/``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        name: what tables call the dataset.
        options: ``allow_ood`` and ``bad_polygons`` of :func:`~weakly.data.partimagenet.read_partimagenet`.

    Returns:
        Records of the 40 classes, without weak labels: part maps, or polygons where the release has none, are the
        truth. ``extra``: as the reader of PartImageNet, and ``unseen``, ``list_version`` and ``left_out`` (number of
        images of other classes).

    Raises:
        UserError: as :func:`~weakly.data.partimagenet.read_partimagenet`; a category of the files has no part in the
            list; no image is of one of the 40 classes.
    """
    whole = read_partimagenet(root, split, name=name, **options)
    classes = part_list("partimagenet_40")
    vocabulary = classes.vocabulary()
    objects = {synset: whole for whole, synset in classes.synsets.items()}
    words = [object_and_part(category)[1].lower() for category in whole.vocabulary.categories]
    unknown = sorted({*words} - {part for parts in classes.objects.values() for part in parts})
    if unknown:
        raise UserError(
            f"The annotations of {root} have parts {', '.join(unknown[:4])}, which PartImageNet-40 does not; give "
            "PartImageNet's own files."
        )
    shown = [objects.get(record.sample.path.stem.split("_")[0]) for record in whole.records]
    records = tuple(
        _of_object(record, owner, words, whole.vocabulary, vocabulary)
        for record, owner in zip(whole.records, shown, strict=True)
        if owner is not None
    )
    if not records:
        raise UserError(
            f"No image of {split!r} in {root} is named after one of PartImageNet-40's classes; their names begin with "
            f"ids such as {next(iter(objects))}_."
        )
    extra = {"unseen": classes.unseen, "list_version": classes.version, "left_out": shown.count(None)}
    return replace(whole, vocabulary=vocabulary, records=records, extra={**whole.extra, **extra})


def _of_object(record: Record, owner: str, words: list[str], source: Vocabulary, vocabulary: Vocabulary) -> Record:
    """The record with its parts named as those of ``owner``; parts that the owner does not have are void."""
    own = {word: vocabulary.index(f"{owner}'s {word}") for word in part_list("partimagenet_40").objects[owner]}
    values = {source.source_id(label): own[word] for label, word in enumerate(words) if word in own}
    truth = tuple((own[words[label]], mask) for label, mask in record.truth if words[label] in own)
    sample = replace(record.sample, boxes=None, points=None)
    return replace(record, sample=sample, truth=truth, instances=None, label_values=values)
