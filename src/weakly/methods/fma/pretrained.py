"""Students of FMA-WSSS on disk."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from weakly.methods.fma.networks import rebuild_network
from weakly.methods.fma.settings import FmaSettings
from weakly.methods.semantic_network import SemanticNetwork
from weakly.methods.student_folder import ModelCard, StudentKind, load_student, save_student
from weakly.vocabulary import Vocabulary

KIND = StudentKind(
    "fma", "FMA-WSSS", "Foundation Model Assisted Weakly Supervised Semantic Segmentation, WACV 2024", FmaSettings
)

NAMES: dict[str, str] = {
    "deeplab": "DeepLabV3+",
    "mask2former": "Mask2Former",
    "pyramid": "A pyramid on the embeddings of a frozen segmenter",
}


class Pretrained(NamedTuple):
    """A student as it lies on disk.

    Attributes:
        network: with its weights, in evaluation mode.
        settings: of the method.
        vocabulary: C categories.
    """

    network: SemanticNetwork
    settings: FmaSettings
    vocabulary: Vocabulary


def save_pretrained(
    folder: Path,
    network: SemanticNetwork,
    settings: FmaSettings,
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
    architecture = network.architecture()
    what = (
        f"{NAMES[architecture['kind']]}, trained on seed maps that frozen foundation models drew from image tags. What"
        " belongs to no category is background."
    )
    save_student(
        folder,
        KIND,
        network,
        settings,
        vocabulary,
        ModelCard("semantic-segmentation", (what,), card or {}),
        {"architecture": architecture},
    )


def from_pretrained(folder: Path, settings: FmaSettings | None = None) -> Pretrained:
    """Read what :func:`save_pretrained` wrote; nothing is fetched, torch's random state is left alone.

    Args:
        folder: of the student.
        settings: in place of those in the folder; they differ in what prediction alone reads.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    saved = load_student(folder, KIND, settings)
    network = saved.build(lambda config: rebuild_network(config["architecture"], len(saved.vocabulary)))
    return Pretrained(network, saved.settings, saved.vocabulary)
