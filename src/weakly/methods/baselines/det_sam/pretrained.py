"""Students of Det-SAM on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.baselines.det_sam.detectors import rebuild_detector
from weakly.methods.baselines.det_sam.model import Detector
from weakly.methods.baselines.det_sam.settings import DetSamSettings
from weakly.methods.frozen import check_segmenter
from weakly.methods.student_folder import ModelCard, StudentFolder, StudentKind, load_student, save_student
from weakly.vocabulary import Vocabulary

KIND = StudentKind(
    "det-sam",
    "Det-SAM",
    "Det-SAM, a baseline of WPS-SAM: Towards Weakly-Supervised Part Segmentation with Foundation Models, ECCV 2024",
    DetSamSettings,
)

NAMES = {"faster-rcnn": "Faster R-CNN", "detr": "DETR"}


@dataclass(frozen=True, eq=False, slots=True)
class Pretrained:
    """A student as it lies on disk.

    Attributes:
        settings: of the method.
        vocabulary: C categories.
        threshold: least score of a detection that prompts the segmenter.
        segmenter: name and fingerprint of the segmenter it was trained for.
        folder: its folder, weights included.
    """

    settings: DetSamSettings
    vocabulary: Vocabulary
    threshold: float
    segmenter: tuple[str, str]
    folder: StudentFolder[DetSamSettings]

    def detector(self, segmenter: PromptableSegmenter) -> Detector:
        """The detector with its weights. Boxes found in images may prompt any segmenter.

        Raises:
            UserError: it looks at embeddings, and ``segmenter`` makes others than it was trained on.
        """
        if self.settings.on_embeddings:
            check_segmenter(segmenter, *self.segmenter)
        classes = len(self.vocabulary)
        return self.folder.build(lambda config: rebuild_detector(self.settings, config["detector"], classes, segmenter))


def save_pretrained(
    folder: Path,
    student: Detector,
    settings: DetSamSettings,
    vocabulary: Vocabulary,
    threshold: float,
    segmenter_fingerprint: str,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the student folder, see :func:`weakly.methods.student_folder.save_student`.

    Args:
        folder: made if it is not there.
        student: its weights.
        settings: that built it.
        vocabulary: its categories.
        threshold: least score of a detection that prompts the segmenter.
        segmenter_fingerprint: of the segmenter it was trained for.
        card: what the model card states beyond that: data, metrics (with protocol and split), command ...
    """
    seen = "its embeddings" if settings.on_embeddings else f"images, by a {settings.backbone}"
    what = (
        f"A {NAMES[settings.detector]} that finds parts in {seen}. Its boxes with a score of {threshold:.3f} or more"
        f" prompt the frozen promptable segmenter `{settings.segmenter}` (fingerprint `{segmenter_fingerprint[:12]}`)."
        "\n"
        "It was trained from weak labels alone: **box**."
    )
    save_student(
        folder,
        KIND,
        student,
        settings,
        vocabulary,
        ModelCard("part-segmentation", (what,), card or {}),
        {
            "segmenter": {"name": settings.segmenter, "fingerprint": segmenter_fingerprint},
            "score_threshold": threshold,
            "detector": dict(student.described()),
        },
    )


def from_pretrained(folder: Path, settings: DetSamSettings | None = None) -> Pretrained:
    """Read what :func:`save_pretrained` wrote.

    Args:
        folder: of the student.
        settings: in place of those in the folder; they differ in what prediction alone reads.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    saved = load_student(folder, KIND, settings)
    found = saved.read(lambda config: float(config["score_threshold"]))
    threshold = found if saved.settings.score_threshold == "auto" else float(saved.settings.score_threshold)
    segmenter = saved.read(lambda config: (config["segmenter"]["name"], config["segmenter"]["fingerprint"]))
    return Pretrained(saved.settings, saved.vocabulary, threshold, segmenter, saved)
