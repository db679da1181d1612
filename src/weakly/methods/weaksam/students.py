"""The four students, by name: built from settings, or again from what a student says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from weakly.errors import UserError
from weakly.methods.embedding import EmbeddingSource
from weakly.methods.student_folder import from_plain
from weakly.methods.weaksam.detectors import Detector, DetectorSettings, FasterRcnn, MaskRcnn
from weakly.methods.weaksam.mask2former import Mask2FormerSettings, build_mask2former, rebuild_mask2former
from weakly.methods.weaksam.rt_detr import RtDetrSettings, build_rt_detr, rebuild_rt_detr

Student = Literal["faster_rcnn", "rt_detr", "mask_rcnn", "mask2former"]
StudentSettings = DetectorSettings | RtDetrSettings | Mask2FormerSettings

NAMES: dict[str, str] = {
    "faster_rcnn": "Faster R-CNN",
    "rt_detr": "RT-DETR",
    "mask_rcnn": "Mask R-CNN",
    "mask2former": "Mask2Former",
}


def build_student(
    kind: Student, settings: StudentSettings, classes: int, source: EmbeddingSource | None = None
) -> Detector:
    """A student of C categories; random weights are drawn from torch's generator.

    Args:
        kind: its name.
        settings: its sizes.
        classes: C.
        source: whose embeddings it looks at, if its backbone is the segmenter.

    Raises:
        UserError: there is no such student, or its pretrained weights cannot be loaded.
    """
    if kind in ("faster_rcnn", "mask_rcnn") and isinstance(settings, DetectorSettings):
        return (FasterRcnn if kind == "faster_rcnn" else MaskRcnn)(settings, classes, source)
    if kind == "rt_detr" and isinstance(settings, RtDetrSettings):
        return build_rt_detr(settings, classes)
    if kind == "mask2former" and isinstance(settings, Mask2FormerSettings):
        return build_mask2former(settings, classes)
    raise UserError(f"There is no student {kind!r} with {type(settings).__name__}; choose one of {', '.join(NAMES)}.")


def rebuild_student(architecture: Mapping[str, Any], classes: int) -> Detector:
    """The student that :meth:`Detector.architecture` describes, with random weights; fetches nothing.

    Raises:
        UserError: the description is of another version or damaged.
    """
    try:
        kind, stored = architecture["kind"], architecture["settings"]
        if kind in ("faster_rcnn", "mask_rcnn"):
            settings = from_plain(DetectorSettings, stored)
            source = EmbeddingSource(**architecture["source"]) if settings.on_embeddings else None
            return (FasterRcnn if kind == "faster_rcnn" else MaskRcnn)(settings, classes, source, fetch=False)
        if kind == "rt_detr":
            return rebuild_rt_detr(from_plain(RtDetrSettings, stored), architecture["config"], classes)
        if kind == "mask2former":
            return rebuild_mask2former(from_plain(Mask2FormerSettings, stored), architecture["config"], classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The student's description is damaged ({error}); copy the student folder again.") from error
    raise UserError(f"There is no student {kind!r}; use a version of weakly that has it.")
