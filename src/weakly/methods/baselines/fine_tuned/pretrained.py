"""Students on disk: prompter and image encoder. Prompts are decoded by the frozen segmenter they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.baselines.fine_tuned.model import FineTunedPrompter, build_student
from weakly.methods.baselines.fine_tuned.settings import FineTunedSettings
from weakly.methods.frozen import check_segmenter
from weakly.methods.student_folder import ModelCard, StudentFolder, StudentKind, save_student
from weakly.methods.wps.pretrained import KIND as WPS_KIND
from weakly.vocabulary import Vocabulary

KIND = StudentKind("fine-tuned", "WPS-SAM with a fine-tuned encoder", WPS_KIND.paper, FineTunedSettings)


def save_pretrained(
    folder: Path,
    student: FineTunedPrompter,
    settings: FineTunedSettings,
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
        segmenter_fingerprint: of the frozen segmenter whose encoder it started from and whose decoder it asks.
        card: what the model card states beyond that.
    """
    what = (
        "An image encoder and a prompter that segment parts without a prompt: the encoder is that of the promptable"
        f" segmenter `{settings.segmenter}` (fingerprint `{segmenter_fingerprint[:12]}`), fine-tuned; the segmenter's"
        f" decoder is not.\nBoth were trained from weak labels alone: **{settings.supervision}**."
    )
    described = {"segmenter": {"name": settings.segmenter, "fingerprint": segmenter_fingerprint}}
    save_student(folder, KIND, student, settings, vocabulary, ModelCard("part-segmentation", (what,), card), described)


def build_pretrained(saved: StudentFolder[FineTunedSettings], segmenter: PromptableSegmenter) -> FineTunedPrompter:
    """The student of a folder.

    Raises:
        UserError: ``segmenter`` is another one than the student was trained on, or the folder is damaged.
    """
    check_segmenter(
        segmenter, *saved.read(lambda config: (config["segmenter"]["name"], config["segmenter"]["fingerprint"]))
    )
    return saved.build(lambda _: build_student(saved.settings, len(saved.vocabulary), segmenter))
