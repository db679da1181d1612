"""What the trainings inside a method's stages keep on disk: trained tensors, checkpoints, logs.

A training is a pure function of what it starts from, so whoever finds its checkpoint goes on from there. The log is
written before the checkpoint; rows beyond a checkpoint are cut when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weakly.files import write_atomic

UNREADABLE = (OSError, KeyError, ValueError, safetensors.SafetensorError)
"""What reading a missing or damaged file raises."""

Tensors = dict[str, Tensor]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors`` atomically as safetensors; the same tensors are the same bytes.

    Args:
        path: to write.
        tensors: by name, on any device.
        about: what they are, as values that JSON can hold.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    # The library writes several entries of metadata in random order; one entry has none.
    write_atomic(path, safetensors.torch.save(plain, {"about": json.dumps(about)}))


def read_tensors(path: Path) -> tuple[Tensors, dict[str, Any]]:
    """The tensors and the ``about`` of :func:`write_tensors`.

    Raises:
        OSError | KeyError | ValueError | SafetensorError: see :data:`UNREADABLE`.
    """
    with safetensors.safe_open(path, "pt") as stored:
        about = json.loads((stored.metadata() or {})["about"])
        return {name: stored.get_tensor(name) for name in stored.keys()}, about  # noqa: SIM118 - no mapping


def read_checkpoint(path: Path, **expected: Any) -> tuple[Tensors, dict[str, Any]] | None:
    """:func:`read_tensors` of an unfinished training; None where there is none, a damaged one, or another training's.

    Args:
        path: of the checkpoint.
        **expected: entries of its ``about`` that tell this training from others.
    """
    try:
        tensors, about = read_tensors(path)
    except UNREADABLE:
        return None
    return (tensors, about) if all(about.get(name) == value for name, value in expected.items()) else None


def below(tensors: Mapping[str, Tensor], prefix: str) -> Tensors:
    """The tensors whose names begin with ``prefix``, named without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> Tensors:
    """The state of an optimizer: ``{"<index of the parameter>.<name>": tensor}``."""
    states = optimizer.state_dict()["state"]
    return {f"{index}.{name}": value for index, state in states.items() for name, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put :func:`optimizer_tensors` of an optimizer of the same parameters into ``optimizer``."""
    state: dict[int, Tensors] = {}
    for key, value in tensors.items():
        index, name = key.split(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def write_log(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write ``rows``, each with its ``step``, as lines of JSON."""
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_log(path: Path, step: int) -> list[dict[str, Any]]:
    """The rows up to update ``step``; none where there is no log."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return [row for row in rows if row["step"] <= step]
