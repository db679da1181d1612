"""Which student, and how it lies on disk: its weights, its description and a model card."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import safetensors
import safetensors.torch
import torch

from weakly.errors import UserError
from weakly.files import write_atomic, write_json
from weakly.methods.fma.settings import from_plain
from weakly.methods.weaksam.detectors import Detector, DetectorSettings, FasterRcnn, MaskRcnn
from weakly.methods.weaksam.transformers_heads import (
    Mask2FormerSettings,
    RtDetrSettings,
    build_mask2former,
    build_rt_detr,
    rebuild_mask2former,
    rebuild_rt_detr,
)
from weakly.vocabulary import Vocabulary

FORMAT = "weakly-weaksam-1"

Student = Literal["faster_rcnn", "rt_detr", "mask_rcnn", "mask2former"]
StudentSettings = DetectorSettings | RtDetrSettings | Mask2FormerSettings

NAMES: dict[str, str] = {
    "faster_rcnn": "Faster R-CNN",
    "rt_detr": "RT-DETR",
    "mask_rcnn": "Mask R-CNN",
    "mask2former": "Mask2Former",
}


class SavedStudent(NamedTuple):
    """A student as it lies on disk.

    Attributes:
        student: with its weights, in evaluation mode.
        vocabulary: C categories.
        settings: of the method, as plain values.
    """

    student: Detector
    vocabulary: Vocabulary
    settings: dict[str, Any]


def build_student(kind: Student, settings: StudentSettings, classes: int) -> Detector:
    """A student of C categories; random weights are drawn from torch's generator.

    Raises:
        UserError: there is no such student, or its pretrained weights cannot be loaded.
    """
    if kind in ("faster_rcnn", "mask_rcnn") and isinstance(settings, DetectorSettings):
        return (FasterRcnn if kind == "faster_rcnn" else MaskRcnn)(settings, classes)
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
            return (FasterRcnn if kind == "faster_rcnn" else MaskRcnn)(settings, classes, fetch=False)
        if kind == "rt_detr":
            return rebuild_rt_detr(from_plain(RtDetrSettings, stored), architecture["config"], classes)
        if kind == "mask2former":
            return rebuild_mask2former(from_plain(Mask2FormerSettings, stored), architecture["config"], classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The student's description is damaged ({error}); copy the student folder again.") from error
    raise UserError(f"There is no student {kind!r}; use a version of weakly that has it.")


def save_student(
    folder: Path,
    student: Detector,
    vocabulary: Vocabulary,
    settings: Mapping[str, Any],
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write ``student.safetensors``, ``config.json`` and ``README.md`` (the model card); the config comes last.

    Args:
        folder: made if it is not there.
        student: trained.
        vocabulary: its categories.
        settings: of the method, as values that JSON can hold.
        card: what the model card states beyond that: data, metrics (with protocol and split), command ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Heads that share a tensor (Mask2Former's aliases) need copies, or safetensors refuses them.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in student.state_dict().items()}
    weights = safetensors.torch.save(state, metadata={"format": FORMAT})
    config = {
        "format": FORMAT,
        "method": "weaksam",
        "architecture": student.architecture(),
        "settings": dict(settings),
        "vocabulary": vocabulary.to_dict(),
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {
            name: importlib.metadata.version(name) for name in ("weakly", "torch", "torchvision", "transformers")
        },
    }
    write_atomic(folder / "student.safetensors", weights)
    write_atomic(folder / "README.md", model_card(config, sum(p.numel() for p in student.parameters()), card or {}))
    write_json(folder / "config.json", config)


def load_student(folder: Path) -> SavedStudent:
    """Read what :func:`save_student` wrote; torch's random state is left alone.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    config, path = _read_config(folder / "config.json"), folder / "student.safetensors"
    try:
        weights = path.read_bytes()
        state = safetensors.torch.load(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the student folder again or train it again.") from error
    if hashlib.sha256(weights).hexdigest() != config.get("weights_sha256"):
        raise UserError(f"{path} does not belong to the config.json beside it; copy the whole student folder again.")
    try:
        vocabulary = Vocabulary.from_dict(config["vocabulary"])
        with torch.random.fork_rng(devices=[]):
            student = rebuild_student(config["architecture"], len(vocabulary))
        student.load_state_dict(state)
        return SavedStudent(student.eval(), vocabulary, dict(config["settings"]))
    except (KeyError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{folder / 'config.json'} does not describe the weights beside it ({reason}); use a matching version."
        ) from error


def model_card(config: Mapping[str, Any], parameters: int, card: Mapping[str, Any]) -> str:
    """Markdown: what the student is, what it was trained on, and whatever ``card`` states."""
    names = [str(row["name"]) for row in config["vocabulary"]]
    shown = ", ".join(names[:60]) + (f" and {len(names) - 60} more" if len(names) > 60 else "")
    kind = config["architecture"]["kind"]
    masks = kind in ("mask_rcnn", "mask2former")
    learnt = "masks" if masks else "boxes"
    lines = [
        "---",
        "library_name: weakly",
        f"pipeline_tag: {'image-segmentation' if masks else 'object-detection'}",
        f"tags: [weakly-supervised, {'instance-segmentation' if masks else 'object-detection'}, weaksam]",
        "---",
        "",
        "# WeakSAM student",
        "",
        f"{NAMES[kind]} ({parameters:,} parameters), trained on pseudo {learnt} made from image tags.",
        "",
        f"Categories ({len(names)}): {shown}.",
        "",
    ]
    flat = _flatten({**card, "settings": config["settings"]})
    lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in flat.items()), ""]
    lines += ["Method: WeakSAM: Segment Anything Meets Weakly-supervised Instance-level Recognition, 2024.", ""]
    return "\n".join(lines)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder that a WeakSAM run has written.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a WeakSAM student ({FORMAT}); give a folder that such a run wrote.")
    return config


def _flatten(card: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in card.items():
        name = f"{prefix}{key}"
        flat |= _flatten(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return flat


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) and abs(value) >= 1e-3 else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
