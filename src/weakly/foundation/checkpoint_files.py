"""Weights of frozen models in ``.pth`` and ``.pt`` files: read as plain tensors, and put into a model without a gap."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from weakly.errors import UserError

Renames = Iterable[tuple[str, str]]
"""(old, new) beginnings of parameter names; # is a number. The first that fits counts."""

FASTSAM = (
    "is FastSAM or another YOLO: its prompts only choose among masks that were made without them, so there is nothing"
    " to learn a prompt for; give a SAM, SAM-HQ, SAM 2, MobileSAM or EfficientSAM"
)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, also where they lie under ``model``, as in EfficientSAM's.

    Raises:
        UserError: no such file, or it holds more than tensors (read with ``weights_only``).
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; check the path.")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        if "ultralytics" in str(error):
            raise UserError(f"{path} {FASTSAM}.") from error
        raise UserError(f"{path} is not a checkpoint of plain tensors; only such files are loaded.") from error
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} is not a dictionary of tensors; give an original SAM checkpoint.")
    return {str(key): value for key, value in state.items()}


def rename(key: str, renames: Renames) -> str:
    """The new name of a parameter; its own where no beginning fits."""
    for old, new in renames:
        pattern = re.escape(old).replace(r"\#", r"(\d+)")
        renamed, hits = re.subn(f"^{pattern}", new.replace("#", r"\1"), key)
        if hits:
            return renamed
    return key


def fill(model: nn.Module, state: Mapping[str, Tensor], path: Path, kind: str) -> None:
    """Put the weights of ``path`` into ``model``, in place of its own; every parameter, and no other.

    Args:
        model: may be on the ``meta`` device.
        state: under the model's names.
        path: for the message.
        kind: what the file should be, for the message.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    wanted = model.state_dict()
    wrong = [f"lacks parameter {key}" for key in wanted if key not in state]
    wrong += [f"has an unknown parameter {key}" for key in state if key not in wanted]
    wrong += [
        f"has parameter {key} in shape {tuple(state[key].shape)} instead of {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in state and state[key].shape != value.shape
    ]
    if wrong:
        raise UserError(f"{path} {wrong[0]}; give an unmodified {kind} checkpoint.")
    model.load_state_dict(state, assign=True)
