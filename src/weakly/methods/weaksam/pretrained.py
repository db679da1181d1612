"""Students of WeakSAM on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from weakly.methods.student_folder import ModelCard, StudentKind, load_student, save_student
from weakly.methods.weaksam.detectors import Detector
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.students import NAMES, rebuild_student
from weakly.vocabulary import Vocabulary

KIND = StudentKind(
    "weaksam",
    "WeakSAM",
    "WeakSAM: Segment Anything Meets Weakly-supervised Instance-level Recognition, 2024",
    WeakSamSettings,
)


class Pretrained(NamedTuple):
    """A student as it lies on disk.

    Attributes:
        student: with its weights, in evaluation mode.
        settings: of the method.
        vocabulary: C categories.
    """

    student: Detector
    settings: WeakSamSettings
    vocabulary: Vocabulary


def save_pretrained(
    folder: Path,
    student: Detector,
    settings: WeakSamSettings,
    vocabulary: Vocabulary,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the student folder, see :func:`weakly.methods.student_folder.save_student`.

    Args:
        folder: made if it is not there.
        student: trained.
        settings: that built it.
        vocabulary: its categories.
        card: what the model card states beyond that: data, metrics (with protocol and split), command ...
    """
    architecture = student.architecture()
    learnt, task, pipeline = (
        ("masks", "instance-segmentation", "image-segmentation")
        if student.makes_masks
        else ("boxes", "object-detection", "object-detection")
    )
    what = f"{NAMES[architecture['kind']]}, trained on pseudo {learnt} made from image tags."
    save_student(
        folder,
        KIND,
        student,
        settings,
        vocabulary,
        ModelCard(task, (what,), card or {}, pipeline),
        {"architecture": architecture},
    )


def from_pretrained(folder: Path, settings: WeakSamSettings | None = None) -> Pretrained:
    """Read what :func:`save_pretrained` wrote; nothing is fetched, torch's random state is left alone.

    Args:
        folder: of the student.
        settings: in place of those in the folder; they differ in what prediction alone reads.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    saved = load_student(folder, KIND, settings)
    described = {} if settings is None else {"settings": asdict(settings.architecture)}
    student = saved.build(
        lambda config: rebuild_student({**config["architecture"], **described}, len(saved.vocabulary))
    )
    return Pretrained(student, saved.settings, saved.vocabulary)
