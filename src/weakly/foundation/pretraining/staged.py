"""What the trainings of the bundled models share: stages of growing pictures, one schedule, one kind of checkpoint."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Generic, Self, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from weakly.errors import UserError

CHECKPOINT = "checkpoint.safetensors"


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one picture size.

    Attributes:
        size: S in pixels.
        steps: optimiser steps.
    """

    size: int
    steps: int


StageT = TypeVar("StageT", bound=Stage)


@dataclass(frozen=True, kw_only=True)
class StagedTraining(Generic[StageT]):
    """A recipe in stages, coarse to fine: AdamW, linear warm-up, then cosine to zero over all stages.

    Attributes:
        stages: in order.
        lr: peak learning rate.
        warmup: steps.
        weight_decay: on weights of two or more dimensions.
        clip: largest gradient norm.
        bf16: train in bfloat16 autocast.
        seed: of weights and batches.
    """

    stages: tuple[StageT, ...]
    lr: float
    warmup: int
    weight_decay: float
    clip: float = 1.0
    bf16: bool = False
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> StageT:
        """The stage that step ``step`` (0-based) belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``."""
        warm = min(1.0, (step + 1) / self.warmup)
        return self.lr * warm * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / self.total_steps))))

    def scaled(self, steps: int | None) -> Self:
        """The recipe with its stages shortened or lengthened in proportion to ``steps`` in all."""
        if steps is None:
            return self
        factor = steps / self.total_steps
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * factor))) for stage in self.stages)
        return replace(self, stages=stages)

    def optimiser(self, parameters: Iterable[nn.Parameter], betas: tuple[float, float] = (0.9, 0.999)) -> Any:
        """AdamW; norms and biases do not decay."""
        trained = list(parameters)
        groups = [
            {"params": [p for p in trained if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas)

    def update(self, optimiser: torch.optim.Optimizer, loss: Tensor, step: int) -> None:
        """One step down the gradient of ``loss``."""
        for group in optimiser.param_groups:
            group["lr"] = self.rate(step)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_((p for group in optimiser.param_groups for p in group["params"]), self.clip)
        optimiser.step()


def identity_of(*settings: Any) -> str:
    """JSON of the dataclasses a training depends on; what a checkpoint is told from another's by."""
    return json.dumps([asdict(each) for each in settings], sort_keys=True)


def save_checkpoint(
    folder: Path, weights: dict[str, Tensor], optimiser: torch.optim.Optimizer, identity: str, step: int
) -> None:
    """Weights, state of the optimiser and the steps done, in one file that is replaced as a whole."""
    tensors = {f"model.{key}": value.contiguous() for key, value in weights.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors.update({f"optimiser.{index}.{key}": value for key, value in state.items()})
    temporary = folder / "checkpoint.tmp"
    # One entry: several would be written in any order, and the bytes would differ.
    save_file(tensors, temporary, metadata={"state": json.dumps({"step": step, "identity": identity})})
    temporary.replace(folder / CHECKPOINT)


def read_checkpoint(
    folder: Path, optimiser: torch.optim.Optimizer, identity: str
) -> tuple[dict[str, Tensor], int] | None:
    """Weights and steps done of a checkpoint, the optimiser's state restored; None if there is none.

    Raises:
        UserError: it belongs to another recipe.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    with safe_open(path, "pt") as file:
        known = json.loads((file.metadata() or {}).get("state", "{}"))
    if known.get("identity") != identity:
        raise UserError(f"{path} belongs to another recipe; give another folder or the same options.")
    tensors = load_file(path)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            state.setdefault(int(index), {})[name] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    weights = {key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")}
    return weights, int(known["step"])
