"""Two sides that do the same work, timed in turn in one process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

Result = TypeVar("Result")


class Seconds(NamedTuple):
    """Wall-clock and processor seconds (all threads of this process)."""

    wall: float
    cpu: float


Times = dict[str, list[Seconds]]
"""Seconds of every image, by what took them."""


def timed(call: Callable[[], Result], device: torch.device) -> tuple[Result, Seconds]:
    """What the call returns, and the time until all its work on the device is done."""
    start = _now(device)
    result = call()
    end = _now(device)
    return result, Seconds(end.wall - start.wall, end.cpu - start.cpu)


def in_turn(sides: Mapping[str, Callable[[], Any]], turn: int, times: Times, device: torch.device) -> list[Any]:
    """Results of the sides, in their order; every other turn the last begins, so that no side always comes first."""
    names = list(sides)
    results = {}
    for name in names if turn % 2 == 0 else reversed(names):
        results[name], seconds = timed(sides[name], device)
        times[name].append(seconds)
    return [results[name] for name in names]


def summary(times: Times, other: str, *, encoder_inside: bool, wanted: float) -> dict[str, Any]:
    """Mean seconds per image, and how many times faster ``weakly`` is than the ``other`` side, with the encoder or not.

    Args:
        times: of both sides and of the ``encoder``, which both sides need.
        other: name of the other side.
        encoder_inside: the times of the sides contain it.
        wanted: times faster that we want to be.
    """
    wall = {name: float(np.mean([each.wall for each in values])) for name, values in times.items()}
    cpu = {name: float(np.mean([each.cpu for each in values])) for name, values in times.items()}
    sign = -1 if encoder_inside else 1
    elsewhere = "without_encoder" if encoder_inside else "with_encoder"
    return {
        "seconds_per_image": wall,
        "cpu_seconds_per_image": cpu,
        "times_faster": wall[other] / wall["weakly"],
        "times_faster_by_cpu": cpu[other] / cpu["weakly"],
        f"times_faster_by_cpu_{elsewhere}": (cpu[other] + sign * cpu["encoder"])
        / (cpu["weakly"] + sign * cpu["encoder"]),
        "wanted": wanted,
    }


def _now(device: torch.device) -> Seconds:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return Seconds(time.perf_counter(), time.process_time())
