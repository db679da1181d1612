"""The README's one table of figures, from the records of docs/results; ``collect_results.py`` makes it anew.

Alone: ``python benchmarks/summary.py``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from command import run_command
from pages import spread, with_table
from weakly.errors import UserError
from weakly.evaluation.records import Record, read_records
from weakly.files import write_atomic

REPOSITORY = Path(__file__).parents[1]
PAGE = "README.md"

Fields = Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        give: the weak labels.
        get: what is learned from them.
        method: the system's name.
        result: of docs/results, without its ending.
        figure: name of a figure of its records; ``protocol.figure`` where they have several.
        figure_name: what the table calls it.
        common: fields that all records of the row share.
        published: fields of the record of the published method.
        plus: of our variant of it, if it has one.
        beside: of the record to compare with, if there is one.
        beside_name: what that is.
    """

    give: str
    get: str
    method: str
    result: str
    figure: str
    figure_name: str
    published: Fields
    common: Fields = field(default_factory=dict)
    plus: Fields | None = None
    beside: Fields | None = None
    beside_name: str = ""


def wps(give: str, result: str, supervision: str, *, plus: bool) -> Row:
    """A row of WPS-SAM, whose upper bound is the same SAM with true prompts."""
    return Row(
        give=give,
        get="part masks",
        method="WPS-SAM",
        result=result,
        figure="dataset40.miou",
        figure_name="mIoU `dataset40`",
        common={"supervision": supervision, "row": "final"},
        published={"method": "wps", "preset": "default"},
        plus={"method": "wps", "preset": "plus"} if plus else None,
        beside={"method": "oracle"},
        beside_name="true boxes as prompts" if supervision == "box" else "true points as prompts",
    )


ROWS = (
    wps("boxes of parts", "wps-menagerie", "box", plus=True),
    wps("points on parts", "wps-menagerie", "point", plus=False),
    wps("boxes of parts", "wps-car-parts", "box", plus=True),
    Row(
        give="tags",
        get="semantic masks",
        method="FMA-WSSS",
        result="fma-menagerie",
        figure="miou",
        figure_name="mIoU",
        common={"row": "final", "split": "val"},
        published={"method": "fma", "preset": "default"},
        plus={"method": "fma", "preset": "plus"},
        beside={"method": "clip-es"},
        beside_name="seeds of CLIP-ES",
    ),
    Row(
        give="tags",
        get="boxes",
        method="WeakSAM",
        result="weaksam-menagerie",
        figure="ap50",
        figure_name="AP50",
        common={"row": "retrained", "split": "val"},
        published={"method": "weaksam"},
        beside={"method": "true-boxes"},
        beside_name="true boxes to learn from",
    ),
    Row(
        give="tags",
        get="instance masks",
        method="WeakSAM",
        result="weaksam-menagerie",
        figure="ap50",
        figure_name="AP50",
        common={"row": "instance", "split": "val"},
        published={"method": "weaksam"},
    ),
    Row(
        give="part masks of other objects",
        get="parts of unseen objects, by name",
        method="PartCLIPSeg",
        result="partclip-menagerie",
        figure="harmonic",
        figure_name="harmonic mIoU",
        common={"setting": "pred-all", "preset": "fixed"},
        published={"method": "partclip"},
        beside={"method": "clipseg"},
        beside_name="CLIPSeg",
    ),
)


def summarise(repository: Path = REPOSITORY, page: str = PAGE) -> int:
    """Write the table named ``summary`` into a page."""
    path = repository / page
    text = path.read_text(encoding="utf-8")
    write_atomic(path, with_table(text, "summary", summary(repository / "docs" / "results")))
    return 0


def summary(results: Path, rows: Sequence[Row] = ROWS) -> str:
    """A Markdown table in percent, a line per row, of means and sample standard deviations over seeds.

    Raises:
        UserError: a row has no record of its published method.
    """
    head = ["you give", "you get", "scored on", "figure", "as published", "*plus*", "beside it"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        records = read_records(results / f"{row.result}.json")
        published = chosen(records, row.common, row.published)
        if not published:
            raise UserError(f"{results / row.result}.json: no record of {row.published}; collect it first.")
        first = published[0]
        beside = told(chosen(records, row.common, row.beside), row.figure)
        cells = [
            row.give,
            f"{row.get} ({row.method})",
            f"{first.data} `{first.split}`, {first.images} images",
            row.figure_name,
            told(published, row.figure),
            told(chosen(records, row.common, row.plus), row.figure),
            f"{beside}, {row.beside_name}" if row.beside else "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def chosen(records: Sequence[Record], common: Fields, fields: Fields | None) -> list[Record]:
    """The records with these fields; none where ``fields`` is None."""
    wanted = None if fields is None else {**common, **fields}
    return [r for r in records if wanted is not None and all(getattr(r, k) == v for k, v in wanted.items())]


def told(records: Sequence[Record], name: str) -> str:
    """A figure of records that differ in their seeds, by its name, or by its protocol and name."""
    protocol, _, figure = name.rpartition(".")
    values: list[Any] = [(r.protocols or {}).get(protocol, {}) if protocol else vars(r) for r in records]
    return spread([each.get(figure) for each in values])


if __name__ == "__main__":
    sys.exit(run_command(summarise))
