"""How a student is optimised: the settings every method shares, the learning-rate schedule and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from weakly.errors import UserError

Schedule = Literal["cosine", "constant", "cosine_unclamped"]
SamplerSeed = Literal["shared", "per_rank"]


@dataclass(frozen=True)
class Optimisation:
    """The ``optimisation:`` section of a recipe.

    Attributes:
        lr: peak learning rate.
        weight_decay: coupled L2 with ``adam``, decoupled with ``adamw``; on every trained tensor.
        optimizer: ``adam`` or ``adamw``, default betas and epsilon.
        warmup_steps: linear warm-up from 0; the first update has learning rate 0.
        schedule: after the warm-up, ``cosine`` falls to 0 at the last step and stays there; ``cosine_unclamped``
            rises again after ``t_total`` steps; ``constant`` stays at ``lr``.
        t_total: the step at which the cosine reaches 0; None: the last step of the run.
        epochs: passes over the training images.
        batch_size: images per step over all processes together.
        precision: what Lightning calls it: ``"32-true"``, ``"bf16-mixed"`` ...
        grad_clip: largest norm of the whole gradient; None: no clipping.
        seed: seeds initial weights and the order of the images.
        sampler_seed: ``shared``: all processes shard one permutation, so every image is seen once per epoch.
            ``per_rank``: every process shuffles for itself, as the released WPS-SAM code does.
    """

    lr: float = 1e-4
    weight_decay: float = 1e-4
    optimizer: Literal["adam", "adamw"] = "adam"
    warmup_steps: int = 250
    schedule: Schedule = "cosine"
    t_total: int | None = None
    epochs: int = 150
    batch_size: int = 8
    precision: str = "32-true"
    grad_clip: float | None = None
    seed: int = 1337
    sampler_seed: SamplerSeed = "shared"

    def __post_init__(self) -> None:
        for name in ("lr", "epochs", "batch_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"optimisation.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("weight_decay", "warmup_steps", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"optimisation.{name} is {getattr(self, name)}; give 0 or more.")


def lr_multiplier(step: int, *, warmup_steps: int, t_total: int, schedule: Schedule) -> float:
    """What the peak learning rate is multiplied by at update ``step`` (0 is the first update).

    WPS-SAM's released schedule is ``cosine_unclamped`` with ``warmup_steps=250`` and ``t_total=38370``: it reaches 0
    after about 15 of its 149 epochs, rises again and ends at the full rate.

    Args:
        step: number of updates done before this one.
        warmup_steps: length of the linear warm-up.
        t_total: step at which the cosine reaches 0.
        schedule: see :class:`Optimisation`.

    Returns:
        A factor in [0, 1].
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, t_total - warmup_steps)
    if schedule == "cosine":
        progress = min(progress, 1.0)
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def build_optimizer(parameters: Iterable[nn.Parameter], optimisation: Optimisation) -> torch.optim.Optimizer:
    """Adam or AdamW over all of ``parameters`` in one group."""
    kind = torch.optim.Adam if optimisation.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=optimisation.lr, weight_decay=optimisation.weight_decay)


def build_schedule(optimizer: torch.optim.Optimizer, optimisation: Optimisation, total_steps: int) -> LambdaLR:
    """The schedule of ``optimisation`` for a run of ``total_steps`` updates; step it after every update."""
    multiplier = partial(
        lr_multiplier,
        warmup_steps=optimisation.warmup_steps,
        t_total=optimisation.t_total or total_steps,
        schedule=optimisation.schedule,
    )
    return LambdaLR(optimizer, multiplier)
