"""Training curves from a run's log of JSON lines."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weakly.report.charts import Curve

_CLOCKS = frozenset({"step", "epoch", "time", "seconds", "timestamp", "elapsed"})


@dataclass(frozen=True)
class Panel:
    """Curves that share one small plot, e.g. training and validation loss."""

    title: str
    curves: tuple[Curve, ...]


def read_curves(path: Path) -> list[Curve]:
    """Every numeric key of a log of JSON objects, one per line, as a curve over ``step``.

    A step logged twice (a resumed run repeats the steps after its last checkpoint) counts once, the later value
    winning. A line that is not a JSON object (the last one of a killed run) is left out; a missing file gives no curve.
    """
    if not path.is_file():
        return []
    values: dict[str, dict[float, float]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if not isinstance(entry, dict):
                continue
            step = entry.get("step")
            at = float(step) if isinstance(step, int | float) and math.isfinite(step) else float(number)
            for key, value in entry.items():
                if key not in _CLOCKS and _is_number(value):
                    values.setdefault(key, {})[at] = float(value)
    return [Curve(key, *map(list, zip(*sorted(points.items()), strict=True))) for key, points in values.items()]


def group_curves(curves: Sequence[Curve]) -> list[Panel]:
    """One panel per quantity: ``train/loss`` and ``val/loss`` share the panel ``loss``.

    Order: losses, everything else as first logged, learning rates last.
    """
    panels: dict[str, list[Curve]] = {}
    for curve in curves:
        panels.setdefault(curve.name.rsplit("/", 1)[-1], []).append(curve)
    titles = sorted(panels, key=_rank)
    return [Panel(title, tuple(panels[title])) for title in titles]


def _rank(title: str) -> int:
    """0 the loss itself, 1 its parts, 2 everything else, 3 the learning rate (stable sort keeps the log's order)."""
    lowered = title.lower()
    if lowered == "lr" or lowered.startswith(("lr-", "learning_rate")):
        return 3
    if lowered == "loss":
        return 0
    return 1 if "loss" in lowered else 2


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
