"""Charts as inline SVG: small line plots for training curves, bullet bars for per-class scores.

Everything is drawn in view-box units and coloured by CSS classes (``s0`` .. ``s3`` for series, ``ref`` for the
reference), so one chart serves light and dark pages and any width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

SERIES_COLOURS = 4
"""Number of series colours the style sheet defines."""

MISSING = "\N{EN DASH}"
"""Stands where there is no number."""

_Place = Callable[[float, float], tuple[float, float]]
_WIDTH, _HEIGHT = 340, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 24
_MOST_POINTS = 240


@dataclass(frozen=True)
class Curve:
    """One quantity over training.

    Attributes:
        name: e.g. ``"train/loss"``; the part before the last ``/`` is its group.
        x: optimiser steps, ascending.
        y: values, one per step; NaN leaves a gap.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class BarRow:
    """One category of a bar chart.

    Attributes:
        name: full category name, shown on hover.
        label: short name, shown beside the bars.
        values: one fraction in [0, 1] per series; None where it was not measured.
        reference: the upper bound's fraction, drawn as a pale bar behind; None where there is none.
    """

    name: str
    label: str
    values: tuple[float | None, ...]
    reference: float | None = None

    @property
    def gap(self) -> float:
        """Reference minus the first series; minus infinity where either is missing."""
        first = self.values[0] if self.values else None
        return -math.inf if first is None or self.reference is None else self.reference - first


def line_chart(title: str, curves: Sequence[Curve], x_label: str = "step") -> Markup:
    """Curves over one x axis, as an ``<svg>``; a loss that spans more than a factor of 20 gets a log axis.

    Args:
        title: accessible name of the chart.
        curves: at most :data:`SERIES_COLOURS` get their own colour. Long curves are averaged in equal groups of steps.
        x_label: unit of the x axis.
    """
    thinned = [thin(curve, _MOST_POINTS) for curve in curves]
    points = [(x, y) for curve in thinned for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(y)]
    if not points:
        return Markup('<p class="quiet">No finite value was logged.</p>')
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    log = "loss" in title.lower() and min(ys) > 0 and max(ys) / min(ys) > 20
    x_low, x_high = _padded(min(0.0, *xs), max(xs), 0.0)
    y_low, y_high = _padded(*((math.log10(min(ys)), math.log10(max(ys))) if log else (min(ys), max(ys))), 0.06)

    def place(x: float, y: float) -> tuple[float, float]:
        height = math.log10(y) if log else y
        return (
            _LEFT + (x - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT),
            _TOP + (y_high - height) / (y_high - y_low) * (_HEIGHT - _TOP - _BOTTOM),
        )

    parts = [
        Markup(
            '<svg class="plot" viewBox="0 0 {w} {h}" role="img" aria-label="{title}" data-x="{x0:.6g} {x1:.6g}" '
            'data-y="{y0:.6g} {y1:.6g}" data-log="{log}" data-area="{l} {t} {r} {b}">'
        ).format(
            w=_WIDTH, h=_HEIGHT, title=title, x0=x_low, x1=x_high, y0=y_low, y1=y_high, log=int(log),
            l=_LEFT, t=_TOP, r=_WIDTH - _RIGHT, b=_HEIGHT - _BOTTOM,
        )
    ]  # fmt: skip
    for tick in log_ticks(y_low, y_high) if log else ticks(y_low, y_high):
        _, y_pixel = place(x_low, 10**tick if log else tick)
        label = short_number(10**tick if log else tick)
        parts.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>').format(
            _LEFT, _WIDTH - _RIGHT, y=y_pixel))  # fmt: skip
        parts.append(Markup('<text class="tick" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            _LEFT - 6, y_pixel + 3.5, label))  # fmt: skip
    for tick in ticks(x_low, x_high, most=5):
        x_pixel, _ = place(tick, 10**y_low if log else y_low)
        anchor = "end" if x_pixel > _WIDTH - _RIGHT - 8 else "middle"
        parts.append(Markup('<text class="tick" x="{:.1f}" y="{}" text-anchor="{}">{}</text>').format(
            x_pixel, _HEIGHT - 8, anchor, short_number(tick)))  # fmt: skip
    for index, curve in enumerate(thinned):
        parts.extend(_polylines(curve, index, place))
    parts.append(Markup('<line class="cursor" y1="{}" y2="{}"/>').format(_TOP, _HEIGHT - _BOTTOM))
    parts.append(Markup("<desc>{} over {}</desc></svg>").format(title, x_label))
    return Markup("").join(parts)


def _polylines(curve: Curve, index: int, place: _Place) -> list[Markup]:
    """One polyline per unbroken stretch of finite values; a stretch of one value is a dot."""
    stretches: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(curve.x, curve.y, strict=True):
        if math.isfinite(y):
            stretches[-1].append(place(x, y))
        elif stretches[-1]:
            stretches.append([])
    marks = []
    colour = index % SERIES_COLOURS
    for stretch in filter(None, stretches):
        if len(stretch) == 1:
            marks.append(Markup('<circle class="dot s{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(colour, *stretch[0]))
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in stretch)
        marks.append(Markup('<polyline class="line s{}" data-name="{}" points="{}"/>').format(colour, curve.name, path))
    return marks


def bar_chart(title: str, rows: Sequence[BarRow], series: Sequence[str], reference: str | None) -> Markup:
    """Horizontal bars in [0, 1], one band per row: the reference pale and wide behind, the series narrow in front."""
    band, label_width, number_width, width = 12 + 11 * max(1, len(series)), 118, 44, 400
    span = width - label_width - number_width
    height = band * len(rows) + 18
    base = height - 18
    parts = [Markup('<svg class="bars" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = label_width + share * span
        parts.append(Markup('<line class="grid" x1="{x}" x2="{x}" y1="0" y2="{}"/>').format(base, x=x))
        parts.append(
            Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{:.0f}</text>').format(
                x, height - 4, 100 * share
            )
        )
    for i, row in enumerate(rows):
        top = i * band
        named = [(name, row.values[k]) for k, name in enumerate(series)]
        named += [(reference, row.reference)] if reference is not None else []
        hover = row.name + ": " + ", ".join(f"{name} {percent(value)}" for name, value in named)
        parts.append(Markup("<g><title>{}</title>").format(hover))
        parts.append(Markup('<rect class="hit" x="0" y="{}" width="{}" height="{}"/>').format(top, width, band))
        parts.append(Markup('<text class="name" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
            label_width - 8, top + band / 2 + 3.5, shorten(row.label, 18)))  # fmt: skip
        if _finite(row.reference):
            parts.append(Markup('<rect class="ref" x="{}" y="{}" width="{:.1f}" height="{}" rx="2"/>').format(
                label_width, top + 3, span * min(1.0, row.reference or 0.0), band - 6))  # fmt: skip
        for k, (_, value) in enumerate(named[: len(series)]):
            if _finite(value):
                parts.append(Markup('<rect class="bar s{}" x="{}" y="{}" width="{:.1f}" height="8" rx="2"/>').format(
                    k % SERIES_COLOURS, label_width, top + 7.5 + 11 * k, span * min(1.0, value or 0.0)))  # fmt: skip
            parts.append(Markup('<text class="value" x="{}" y="{:.1f}" text-anchor="end">{}</text>').format(
                width, top + 15.5 + 11 * k, percent(value)))  # fmt: skip
        parts.append(Markup("</g>"))
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def thin(curve: Curve, most: int) -> Curve:
    """The curve with at most ``most`` points: means over equal groups of consecutive points (NaN left out)."""
    count = len(curve.x)
    if count <= most:
        return curve
    edges = [round(i * count / most) for i in range(most + 1)]
    xs, ys = [], []
    for start, stop in itertools.pairwise(edges):
        values = [y for y in curve.y[start:stop] if math.isfinite(y)]
        xs.append(curve.x[stop - 1])
        ys.append(sum(values) / len(values) if values else math.nan)
    return Curve(curve.name, xs, ys)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers (1, 2, 2.5 or 5 times a power of ten) within [low, high], at most ``most``."""
    raw = (high - low) / most
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if (high - low) / (factor * power) < most)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Exponents (base 10) of decades within [low, high]; with 2 and 5 between them when there are few decades."""
    mantissas = (1, 2, 5) if high - low < 2 else (1,)
    exponents = range(math.floor(low), math.ceil(high) + 1)
    return [e + math.log10(m) for e in exponents for m in mantissas if low <= e + math.log10(m) <= high]


def short_number(value: float) -> str:
    """At most three significant digits: ``1200 -> "1.2k"``, ``0.00031 -> "3.1e-4"``."""
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    if abs(value) >= 1e3:
        return f"{value / 1e3:.3g}k"
    if abs(value) < 1e-3:
        return f"{value:.2e}".replace("e-0", "e-").replace(".00e", "e").replace("0e", "e")
    return f"{value:.3g}"


def percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal; a dash where there is none."""
    return f"{100 * value:.1f}" if value is not None and math.isfinite(value) else MISSING


def shorten(text: str, most: int) -> str:
    """The text, cut to ``most`` characters with an ellipsis."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """A non-empty interval around [low, high]."""
    if high - low < 1e-12 * max(1.0, abs(low)):
        half = abs(low) * 0.1 or 0.5
        return low - half, high + half
    return low - share * (high - low), high + share * (high - low)
