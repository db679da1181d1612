"""How a student is optimised: the settings every method shares, the learning-rate schedule and the optimizer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from weakly.errors import UserError

Schedule = Literal["cosine", "constant", "cosine_unclamped", "poly"]
SamplerSeed = Literal["shared", "per_rank"]

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""Normalisation layers, whose scales and shifts many methods exempt from weight decay."""


@dataclass(frozen=True)
class Optimisation:
    """The ``optimisation:`` section of a recipe.

    Attributes:
        lr: peak learning rate.
        weight_decay: coupled L2 with ``adam`` and ``sgd``, decoupled with ``adamw``; on every trained tensor that the
            method does not exempt.
        optimizer: ``adam`` or ``adamw``, default betas and epsilon; ``sgd`` with ``momentum``.
        momentum: of ``sgd``.
        warmup_steps: linear warm-up from 0; the first update has learning rate 0.
        schedule: after the warm-up, ``cosine`` falls to 0 at the last step and stays there; ``cosine_unclamped``
            rises again after ``t_total`` steps; ``poly`` falls to ``lr_end`` as (1 - progress)^``power`` and stays
            there; ``constant`` stays at ``lr``.
        power: of ``poly``.
        lr_end: learning rate at the end of ``poly``, where the peak is ``lr``.
        t_total: the step at which the schedule reaches its end; None: the last step of the run.
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
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    momentum: float = 0.9
    warmup_steps: int = 250
    schedule: Schedule = "cosine"
    power: float = 0.9
    lr_end: float = 0.0
    t_total: int | None = None
    epochs: int = 150
    batch_size: int = 8
    precision: str = "32-true"
    grad_clip: float | None = None
    seed: int = 1337
    sampler_seed: SamplerSeed = "shared"

    def __post_init__(self) -> None:
        for name in ("lr", "power", "epochs", "batch_size"):
            if getattr(self, name) <= 0:
                raise UserError(f"optimisation.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("weight_decay", "warmup_steps", "lr_end", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"optimisation.{name} is {getattr(self, name)}; give 0 or more.")
        if not 0 <= self.momentum < 1:
            raise UserError(f"optimisation.momentum is {self.momentum}; give a number of at least 0 and below 1.")
        if self.lr_end > self.lr:
            raise UserError(f"optimisation.lr_end is {self.lr_end}, above lr={self.lr}; give a lower end.")


def lr_multiplier(
    step: int, *, warmup_steps: int, t_total: int, schedule: Schedule, power: float = 0.9, end: float = 0.0
) -> float:
    """What the peak learning rate is multiplied by at update ``step`` (0 is the first update).

    WPS-SAM's released schedule is ``cosine_unclamped`` with ``warmup_steps=250`` and ``t_total=38370``: it reaches 0
    after about 15 of its 149 epochs, rises again and ends at the full rate.

    Args:
        step: number of updates done before this one.
        warmup_steps: length of the linear warm-up.
        t_total: step at which the schedule reaches its end.
        schedule: see :class:`Optimisation`.
        power: of ``poly``.
        end: the last factor of ``poly``: ``lr_end / lr``.

    Returns:
        A factor in [0, 1].
    """
    if step < warmup_steps:
        return step / warmup_steps
    if schedule == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, t_total - warmup_steps)
    if schedule in ("cosine", "poly"):
        progress = min(progress, 1.0)
    if schedule == "poly":
        return end + (1.0 - end) * (1.0 - progress) ** power
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def build_optimizer(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]], optimisation: Optimisation
) -> torch.optim.Optimizer:
    """The optimizer over all of ``parameters`` in one group, or over the groups of :func:`parameter_groups`."""
    given: list[Any] = list(parameters)
    if optimisation.optimizer == "sgd":
        return torch.optim.SGD(
            given, lr=optimisation.lr, momentum=optimisation.momentum, weight_decay=optimisation.weight_decay
        )
    kind = torch.optim.Adam if optimisation.optimizer == "adam" else torch.optim.AdamW
    # On a CPU the fused update takes a quarter of the time; on a GPU it would refuse to clip scaled gradients.
    tensors = [tensor for item in given for tensor in (item["params"] if isinstance(item, dict) else [item])]
    on_cpu = all(tensor.device.type == "cpu" for tensor in tensors)
    return kind(given, lr=optimisation.lr, weight_decay=optimisation.weight_decay, fused=on_cpu)


def parameter_groups(
    module: nn.Module,
    optimisation: Optimisation,
    *,
    lr_factors: Mapping[str, float] | None = None,
    undecayed: Collection[str] = (),
) -> list[dict[str, Any]]:
    """The trained parameters of ``module``, grouped by learning rate and weight decay.

    Args:
        module: whose parameters that require a gradient are taken, in their order.
        optimisation: its ``lr`` and ``weight_decay`` are those of parameters that nothing else is said of.
        lr_factors: beginning of parameter names, e.g. ``"backbone."``, to what their ``lr`` is multiplied by; the
            first that fits counts.
        undecayed: full names of the parameters without weight decay, e.g. :func:`norm_parameters`.

    Returns:
        Groups for :func:`build_optimizer`: ``params``, ``lr`` and ``weight_decay`` of each.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        factor = next((f for prefix, f in (lr_factors or {}).items() if name.startswith(prefix)), 1.0)
        decay = 0.0 if name in undecayed else optimisation.weight_decay
        groups.setdefault((optimisation.lr * factor, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def norm_parameters(module: nn.Module) -> set[str]:
    """Names of the scales and shifts of all normalisation layers inside ``module``."""
    return _parameters_of(module, NORMS)


def embedding_parameters(module: nn.Module) -> set[str]:
    """Names of the tables of all embedding layers inside ``module``."""
    return _parameters_of(module, (nn.Embedding, nn.EmbeddingBag))


def _parameters_of(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> set[str]:
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, layer in module.named_modules()
        if isinstance(layer, kinds)
        for name, _ in layer.named_parameters(recurse=False)
    }


def build_schedule(optimizer: torch.optim.Optimizer, optimisation: Optimisation, total_steps: int) -> LambdaLR:
    """The schedule of ``optimisation`` for a run of ``total_steps`` updates; step it after every update."""
    multiplier = partial(
        lr_multiplier,
        warmup_steps=optimisation.warmup_steps,
        t_total=optimisation.t_total or total_steps,
        schedule=optimisation.schedule,
        power=optimisation.power,
        end=optimisation.lr_end / optimisation.lr,
    )
    return LambdaLR(optimizer, multiplier)
