"""Checkpoints without pickle: one safetensors file with the student, the optimiser, the schedule and the loop.

Lightning hands over one nested dictionary. Its tensors become safetensors entries; everything else (step counters,
learning rates, which batch comes next) becomes JSON in the header of the same file, so that a checkpoint is replaced
in one move and a kill at any moment leaves either the old one or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from weakly.errors import UserError
from weakly.files import write_atomic

_KEPT = (
    "epoch",
    "global_step",
    "pytorch-lightning_version",
    "state_dict",
    "loops",
    "callbacks",
    "optimizer_states",
    "lr_schedulers",
    "MixedPrecision",
)


class SafetensorsCheckpoints(CheckpointIO):
    """Lightning's reading and writing of checkpoints, as safetensors and JSON, atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write the parts of ``checkpoint`` that a resume needs."""
        del storage_options
        write_atomic(Path(path), encode_checkpoint({key: checkpoint[key] for key in _KEPT if key in checkpoint}))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read what :meth:`save_checkpoint` wrote; tensors arrive on the CPU.

        Raises:
            UserError: the file is damaged or is no checkpoint of this package.
        """
        del map_location, weights_only
        return read_checkpoint(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete a checkpoint."""
        Path(path).unlink(missing_ok=True)


def encode_checkpoint(checkpoint: Mapping[str, Any]) -> bytes:
    """A nested dictionary of tensors and plain values as the bytes of one safetensors file."""
    tensors: dict[str, torch.Tensor] = {}
    tree = _encode(checkpoint, tensors, "checkpoint")
    header = {"format": "weakly-checkpoint-1", "tree": json.dumps(tree)}
    return safetensors.torch.save(tensors, metadata=header)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The nested dictionary of :func:`encode_checkpoint`, read back from a file."""
    try:
        with safetensors.safe_open(str(path), framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        tree = json.loads(header["tree"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(
            f"{path} cannot be read as a checkpoint ({error}); remove it to train this run from the start."
        ) from error
    decoded: dict[str, Any] = _decode(tree, tensors)
    return decoded


def _encode(value: Any, tensors: dict[str, torch.Tensor], name: str) -> Any:
    """JSON with tagged containers; tensors are set aside under running names."""
    if isinstance(value, torch.Tensor):
        key = f"{len(tensors):05d}"
        tensors[key] = value.detach().cpu().clone().contiguous()
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(k, tensors, name), _encode(v, tensors, f"{name}.{k}")] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors, f"{name}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, list):
        return [_encode(item, tensors, f"{name}[{i}]") for i, item in enumerate(value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"{name} is a {type(value).__name__}: a checkpoint holds tensors, containers and plain values only")


def _decode(tree: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(tree, list):
        return [_decode(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if "tensor" in tree:
        return tensors[tree["tensor"]]
    if "tuple" in tree:
        return tuple(_decode(item, tensors) for item in tree["tuple"])
    return {_decode(key, tensors): _decode(value, tensors) for key, value in tree["dict"]}
