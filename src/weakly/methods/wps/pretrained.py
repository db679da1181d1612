"""Students of WPS-SAM on disk, and the weights of the released code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from weakly.errors import UserError
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.frozen import check_segmenter
from weakly.methods.student_folder import (
    ModelCard,
    StudentFolder,
    StudentKind,
    load_student,
    load_weights,
    save_student,
)
from weakly.methods.wps.learner import build_prompter
from weakly.methods.wps.model import Prompter
from weakly.methods.wps.region_learner import build_region_prompter
from weakly.methods.wps.regions import RegionPrompter
from weakly.methods.wps.settings import WpsSettings
from weakly.vocabulary import Vocabulary

KIND = StudentKind(
    "wps",
    "WPS-SAM",
    "WPS-SAM: Towards Weakly-Supervised Part Segmentation with Foundation Models, ECCV 2024",
    WpsSettings,
)

_OFFICIAL_NAMES = (
    ("conv_layers.", "downsample."),
    ("prompter.encoder.", "encoder."),
    ("prompter.decoder.", "decoder."),
    ("pos_embed", "position"),
    ("query_embed.", "queries."),
    ("class_embed.", "class_head."),
    ("coords_embed.", "prompt_head."),
)
"""Prefixes in the released checkpoints, and here. ``SAM_model.`` is the frozen SAM and is left out."""


@dataclass(frozen=True, eq=False, slots=True)
class Pretrained:
    """A student as it lies on disk.

    Attributes:
        settings: of the method.
        vocabulary: C categories.
        segmenter: name and fingerprint of the segmenter it belongs to.
        folder: its folder, weights included.
    """

    settings: WpsSettings
    vocabulary: Vocabulary
    segmenter: tuple[str, str]
    folder: StudentFolder[WpsSettings]

    def prompter(self, segmenter: PromptableSegmenter) -> Prompter | RegionPrompter:
        """The prompter with its weights.

        Raises:
            UserError: ``segmenter`` is another one than the student was trained on.
        """
        check_segmenter(segmenter, *self.segmenter)
        return self.folder.build(lambda _: build_student(self.settings, len(self.vocabulary), segmenter))


def build_student(settings: WpsSettings, classes: int, segmenter: PromptableSegmenter) -> Prompter | RegionPrompter:
    """The prompter that settings ask for, with random weights."""
    build = build_region_prompter if settings.prompter == "regions" else build_prompter
    return build(settings, classes, segmenter)


def save_pretrained(
    folder: Path,
    student: nn.Module,
    settings: WpsSettings,
    vocabulary: Vocabulary,
    segmenter_fingerprint: str,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write the student folder, see :func:`weakly.methods.student_folder.save_student`.

    Args:
        folder: made if it is not there.
        student: its weights.
        settings: that built it.
        vocabulary: its categories.
        segmenter_fingerprint: of the segmenter it was trained on.
        card: what the model card states beyond that: data, metrics (with protocol and split), command ...
    """
    what = (
        "A prompter that segments parts without a prompt, in front of the frozen promptable segmenter"
        f" `{settings.segmenter}` (fingerprint `{segmenter_fingerprint[:12]}`).\n"
        f"It was trained from weak labels alone: **{settings.supervision}**."
    )
    strong = f"**Its points were taken from masks ({settings.point_source}), which is strong supervision.**"
    masks_used = settings.supervision != "box" and settings.point_source in ("mask_centroid", "inner_point")
    save_student(
        folder,
        KIND,
        student,
        settings,
        vocabulary,
        ModelCard("part-segmentation", (what, strong) if masks_used else (what,), card or {}),
        {"segmenter": {"name": settings.segmenter, "fingerprint": segmenter_fingerprint}},
    )


def from_pretrained(folder: Path, settings: WpsSettings | None = None) -> Pretrained:
    """Read what :func:`save_pretrained` wrote.

    Args:
        folder: of the student.
        settings: in place of those in the folder; they differ in what prediction alone reads.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    saved = load_student(folder, KIND, settings)
    segmenter = saved.read(lambda config: (config["segmenter"]["name"], config["segmenter"]["fingerprint"]))
    return Pretrained(saved.settings, saved.vocabulary, segmenter, saved)


def import_official(state: Mapping[str, Tensor], *, heads: int = 8) -> Prompter:
    """The prompter of a checkpoint that the released WPS-SAM code wrote; all sizes come from the weights.

    Args:
        state: its state dictionary; ``SAM_model.*`` (the frozen SAM) is ignored.
        heads: attention heads, the one size that weights do not show.

    Raises:
        UserError: a weight is missing, unknown or of the wrong shape.
    """
    renamed = {_new_name(name): tensor for name, tensor in state.items() if not name.startswith("SAM_model.")}
    try:
        width, rows, columns = renamed["position"].shape[1:]
        downsamples = sum(name.startswith("downsample.") and tensor.ndim == 4 for name, tensor in renamed.items())
        token_values = renamed["prompt_head.2.weight"].shape[0]
        student = Prompter(
            embedding_channels=renamed["downsample.0.weight"].shape[1],
            grid=(rows << downsamples, columns << downsamples),
            token_width=width,
            classes=renamed["class_head.weight"].shape[0] - 1,
            queries=renamed["queries.weight"].shape[0],
            tokens=token_values // width,
            width=width,
            heads=heads,
            layers=len({name.split(".")[2] for name in renamed if name.startswith("encoder.layers.")}),
            ffn=renamed["encoder.layers.0.linear1.weight"].shape[0],
            downsamples=downsamples,
        )
    except (KeyError, ValueError) as error:
        raise UserError(
            f"This is no WPS-SAM checkpoint ({error}); give the state dictionary of a released model."
        ) from error
    load_weights(student, renamed)
    return student.eval()


def read_official(path: Path) -> Prompter:
    """:func:`import_official` of a ``.pth`` file.

    Raises:
        UserError: the file is missing, holds more than weights, or is no WPS-SAM checkpoint.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as weights ({error}); give a checkpoint of the released code."
        ) from error
    except UnpicklingError as error:
        raise UserError(
            f"{path} holds more than weights and is not opened; save its state dictionary alone."
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dictionary; give a checkpoint of the released code.")
    nested = content.get("model", content.get("state_dict", content))
    return import_official(nested)


def _new_name(name: str) -> str:
    for old, new in _OFFICIAL_NAMES:
        if name.startswith(old):
            return new + name[len(old) :]
    return name
