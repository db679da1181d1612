"""Records as a text table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from weakly.evaluation.protocols import PROTOCOLS
from weakly.evaluation.records import FLAT_FIGURES, Record
from weakly.evaluation.semantic import SEMANTIC_PROTOCOLS


def protocol_table(records: Sequence[Record]) -> Table:
    """One row per record, one column per protocol that any record has: mIoU / mACC in per cent, or per other figure.

    The row names data, split, images and resolution, because a figure means nothing without them.
    """
    protocols, figures_alone = _protocols(records), _flat_figures(records)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("method", "data", "images"):
        table.add_column(name, justify="right" if name == "images" else "left")
    for name in protocols:
        table.add_column(f"{name}\nmIoU / mACC", justify="right", no_wrap=True)
    for name in figures_alone:
        table.add_column(name, justify="right", no_wrap=True)
    for record in records:
        figures = record.protocols or {}
        table.add_row(
            _method(record),
            _data(record),
            str(record.images),
            *(_cell(figures.get(p, {})) for p in protocols),
            *(_percent(getattr(record, name)) for name in figures_alone),
        )
    return table


def render_protocols(records: Sequence[Record], width: int = 140) -> str:
    """The table of :func:`protocol_table` as plain text."""
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(protocol_table(records))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n") + "\n"


def _protocols(records: Sequence[Record]) -> list[str]:
    """Known protocols first, in their own order, then others as they come."""
    used = dict.fromkeys(name for record in records for name in record.protocols or {})
    known = dict.fromkeys([*SEMANTIC_PROTOCOLS, *PROTOCOLS])
    return [name for name in known if name in used] + [name for name in used if name not in known]


def _flat_figures(records: Sequence[Record]) -> list[str]:
    """Figures of records that have no protocols, in the order of records."""
    alone = [record for record in records if not record.protocols]
    return [name for name in FLAT_FIGURES if any(getattr(record, name) is not None for record in alone)]


def _method(record: Record) -> str:
    parts = (record.method, record.preset, record.supervision, record.row, record.setting)
    return " ".join(part for part in parts if part)


def _data(record: Record) -> str:
    resolution = f" @ {record.resolution}" if record.resolution is not None else ""
    return f"{record.data} {record.split}{resolution}"


def _percent(figure: float | None) -> str:
    return "-" if figure is None else f"{100 * figure:.2f}"


def _cell(figures: Mapping[str, float]) -> str:
    return " / ".join(f"{100 * figures[name]:.2f}" if name in figures else "-" for name in ("miou", "macc"))
