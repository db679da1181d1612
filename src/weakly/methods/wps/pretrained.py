"""Students on disk: safetensors, a config that says what they belong to, and a model card; official weights too."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weakly.errors import UserError
from weakly.files import write_atomic, write_json
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.wps.learner import build_prompter
from weakly.methods.wps.model import Prompter
from weakly.methods.wps.settings import WpsSettings
from weakly.vocabulary import Vocabulary

FORMAT = "weakly-wps-1"

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
        state: weights of the prompter.
    """

    settings: WpsSettings
    vocabulary: Vocabulary
    segmenter: tuple[str, str]
    state: dict[str, Tensor]

    def prompter(self, segmenter: PromptableSegmenter) -> Prompter:
        """The prompter with its weights.

        Raises:
            UserError: ``segmenter`` is another one than the student was trained on.
        """
        name, fingerprint = self.segmenter
        if segmenter.fingerprint != fingerprint:
            raise UserError(
                f"This student was trained on segmenter {name!r} (fingerprint {fingerprint[:12]}), but"
                f" {segmenter.name!r} here has fingerprint {segmenter.fingerprint[:12]}; use the same weights and"
                " padding, or train again."
            )
        student = build_prompter(self.settings, len(self.vocabulary), segmenter)
        _load(student, self.state)
        return student.eval()


def save_pretrained(
    folder: Path,
    student: Prompter,
    settings: WpsSettings,
    vocabulary: Vocabulary,
    segmenter_fingerprint: str,
    card: Mapping[str, Any] | None = None,
) -> None:
    """Write ``student.safetensors``, ``config.json`` and ``README.md``, each atomically, the config last.

    Args:
        folder: made if it is not there.
        student: its weights.
        settings: that built it.
        vocabulary: its categories.
        segmenter_fingerprint: of the segmenter it was trained on.
        card: what the model card states beyond that: data, metrics (with protocol and split), command ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    weights = safetensors.torch.save(state, metadata={"format": FORMAT})
    config = {
        "format": FORMAT,
        "method": "wps",
        "settings": asdict(settings),
        "vocabulary": vocabulary.to_dict(),
        "segmenter": {"name": settings.segmenter, "fingerprint": segmenter_fingerprint},
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "versions": {name: _version(name) for name in ("weakly", "torch")},
    }
    write_atomic(folder / "student.safetensors", weights)
    write_atomic(folder / "README.md", model_card(config, sum(t.numel() for t in student.parameters()), card or {}))
    write_json(folder / "config.json", config)


def from_pretrained(folder: Path) -> Pretrained:
    """Read what :func:`save_pretrained` wrote.

    Raises:
        UserError: a file is missing, damaged, of another method, or the two do not belong together.
    """
    config = _read_config(folder / "config.json")
    path = folder / "student.safetensors"
    try:
        weights = path.read_bytes()
        state = safetensors.torch.load(weights)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path} cannot be read ({error}); copy the student folder again or train it again.") from error
    if hashlib.sha256(weights).hexdigest() != config.get("weights_sha256"):
        raise UserError(f"{path} does not belong to the config.json beside it; copy the whole student folder again.")
    try:
        return Pretrained(
            settings=WpsSettings(**config["settings"]),
            vocabulary=Vocabulary.from_dict(config["vocabulary"]),
            segmenter=(str(config["segmenter"]["name"]), str(config["segmenter"]["fingerprint"])),
            state=state,
        )
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{folder / 'config.json'} lacks or has an unknown key ({error}); use a matching version."
        ) from error


def model_card(config: Mapping[str, Any], parameters: int, card: Mapping[str, Any]) -> str:
    """Markdown: what the student is, what it was trained on, and whatever ``card`` states."""
    settings, segmenter = config["settings"], config["segmenter"]
    names = [str(row["name"]) for row in config["vocabulary"]]
    shown = ", ".join(names[:60]) + (f" and {len(names) - 60} more" if len(names) > 60 else "")
    lines = [
        "---",
        "library_name: weakly",
        "pipeline_tag: image-segmentation",
        "tags: [weakly-supervised, part-segmentation, wps-sam]",
        "---",
        "",
        "# WPS-SAM student",
        "",
        f"A prompter ({parameters:,} parameters) that segments parts without a prompt, in front of the frozen",
        f"promptable segmenter `{segmenter['name']}` (fingerprint `{segmenter['fingerprint'][:12]}`).",
        f"It was trained from weak labels alone: **{settings['supervision']}**.",
        "",
        f"Categories ({len(names)}): {shown}.",
        "",
    ]
    if settings["supervision"] != "box" and settings["point_source"] in ("mask_centroid", "inner_point"):
        lines += [
            f"**Its points were taken from masks ({settings['point_source']}), which is strong supervision.**",
            "",
        ]
    flat = _flatten(card)
    if flat:
        lines += ["| | |", "|---|---|", *(f"| {key} | {_cell(value)} |" for key, value in flat.items()), ""]
    lines += ["Method: WPS-SAM: Towards Weakly-Supervised Part Segmentation with Foundation Models, ECCV 2024.", ""]
    return "\n".join(lines)


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
    _load(student, renamed)
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


def _load(student: Prompter, state: Mapping[str, Tensor]) -> None:
    try:
        student.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split("\n\t")[1].split()) if "\n\t" in str(error) else str(error)
        raise UserError(f"The weights do not fit the student: {reason} Use weights and settings of one run.") from error


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); give a folder that a WPS-SAM run has written.") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise UserError(f"{path} does not describe a WPS-SAM student ({FORMAT}); give a folder that such a run wrote.")
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


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
