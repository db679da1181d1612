"""Students of the pseudo-mask baseline on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weakly.methods.baselines.pseudo_mask.model import MaskFormer, rebuild_maskformer
from weakly.methods.baselines.pseudo_mask.settings import PseudoMaskSettings
from weakly.methods.student_folder import ModelCard, StudentKind, load_student, save_student
from weakly.vocabulary import Vocabulary

KIND = StudentKind(
    "pseudo-mask",
    "MaskFormer on pseudo-masks",
    "a baseline of WPS-SAM (ECCV 2024, Table 5): MaskFormer (NeurIPS 2021) on the masks that SAM draws in true boxes",
    PseudoMaskSettings,
)

TRAINED_ON = {
    "box": "the masks that a frozen segmenter drew in boxes that a person gave",
    "mask": "masks that a person drew: strong labels",
}


class Pretrained(NamedTuple):
    """A student as it lies on disk.

    Attributes:
        network: with its weights, in evaluation mode.
        settings: of the method.
        vocabulary: C categories.
    """

    network: MaskFormer
    settings: PseudoMaskSettings
    vocabulary: Vocabulary


def save_pretrained(
    folder: Path,
    network: MaskFormer,
    settings: PseudoMaskSettings,
    vocabulary: Vocabulary,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the student folder, see :func:`weakly.methods.student_folder.save_student`.

    Args:
        folder: made if it is not there.
        network: trained.
        settings: that built it.
        vocabulary: its categories.
        card: what the model card states beyond that: data, metrics (with protocol and split), command ...
    """
    what = f"MaskFormer, trained on {TRAINED_ON[settings.supervision]}. What belongs to no category is background."
    described = {"architecture": network.architecture()}
    about = ModelCard("semantic-segmentation", (what,), card or {})
    save_student(folder, KIND, network, settings, vocabulary, about, described)


def from_pretrained(folder: Path, settings: PseudoMaskSettings | None = None) -> Pretrained:
    """Read what :func:`save_pretrained` wrote; nothing is fetched, torch's random state is left alone.

    Args:
        folder: of the student.
        settings: in place of those in the folder; they differ in what prediction alone reads.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    saved = load_student(folder, KIND, settings)
    network = saved.build(lambda config: rebuild_maskformer(config["architecture"], len(saved.vocabulary)))
    return Pretrained(network, saved.settings, saved.vocabulary)
