"""Students of the anchor-based prompter on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.baselines.anchor_prompter.learner import build_prompter
from weakly.methods.baselines.anchor_prompter.model import AnchorPrompter
from weakly.methods.baselines.anchor_prompter.settings import AnchorPrompterSettings
from weakly.methods.student_folder import ModelCard, StudentFolder, StudentKind, save_student
from weakly.methods.wps.pretrained import KIND as WPS_KIND
from weakly.methods.wps.pretrained import check_segmenter
from weakly.vocabulary import Vocabulary

KIND = StudentKind("anchor-prompter", "Anchor-based prompter of WPS-SAM", WPS_KIND.paper, AnchorPrompterSettings)


def save_pretrained(
    folder: Path,
    student: AnchorPrompter,
    settings: AnchorPrompterSettings,
    vocabulary: Vocabulary,
    segmenter_fingerprint: str,
    card: Mapping[str, Any],
) -> None:
    """Write the student folder, see :func:`weakly.methods.student_folder.save_student`.

    Args:
        folder: made if it is not there.
        student: its weights.
        settings: that built it.
        vocabulary: its categories.
        segmenter_fingerprint: of the segmenter it was trained on.
        card: what the model card states beyond that.
    """
    what = (
        "A convolutional prompter with anchors that segments parts without a prompt, in front of the frozen promptable"
        f" segmenter `{settings.segmenter}` (fingerprint `{segmenter_fingerprint[:12]}`).\n"
        f"It was trained from weak labels alone: **{settings.supervision}**."
    )
    described = {"segmenter": {"name": settings.segmenter, "fingerprint": segmenter_fingerprint}}
    save_student(folder, KIND, student, settings, vocabulary, ModelCard("part-segmentation", (what,), card), described)


def build_pretrained(saved: StudentFolder[AnchorPrompterSettings], segmenter: PromptableSegmenter) -> AnchorPrompter:
    """The student of a folder.

    Raises:
        UserError: ``segmenter`` is another one than the student was trained on, or the folder is damaged.
    """
    check_segmenter(
        segmenter, *saved.read(lambda config: (config["segmenter"]["name"], config["segmenter"]["fingerprint"]))
    )
    return saved.build(lambda _: build_prompter(saved.settings, len(saved.vocabulary), segmenter))
