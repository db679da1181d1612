"""Collect the records of runs into one file of docs/results, and write its table into the pages that show it.

    python benchmarks/collect_results.py '[runs/menagerie,runs/menagerie-point]' wps-menagerie

The README's table of all methods (``summary.py``) is made anew with it. Pages hold a pair of comments,
``<!-- table: NAME -->`` and ``<!-- end -->``; what stands between them is replaced.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from command import run_command
from pages import spread, with_table
from summary import PAGE, summarise
from weakly.errors import UserError
from weakly.evaluation.protocols import PROTOCOLS
from weakly.evaluation.records import FLAT_FIGURES, Record, read_records, write_records
from weakly.files import write_atomic

REPOSITORY = Path(__file__).parents[1]
PAGES = ("docs/results.md",)


def collect(runs: list[Path], name: str, pages: tuple[str, ...] = PAGES) -> int:
    """Write ``docs/results/NAME.json`` and the tables named NAME.

    Args:
        runs: run folders, each with a metrics.json, and files of records, e.g. the result of earlier runs; of the same
            measurement the last one counts.
        name: of the result, ``<method>-<data>``.
        pages: Markdown files relative to the repository.
    """
    files = [run if run.suffix == ".json" else run / "metrics.json" for run in runs]
    records = merged([record for file in files for record in read_records(file)])
    if not records:
        raise UserError(f"{', '.join(map(str, runs))}: no records; run `weakly evaluate` first.")
    write_records(REPOSITORY / "docs" / "results" / f"{name}.json", records)
    for page in pages:
        path = REPOSITORY / page
        text = path.read_text(encoding="utf-8")
        content = table(records) if all(p in (records[0].protocols or {}) for p in PROTOCOLS) else stages(records)
        write_atomic(path, with_table(text, name, content))
    return summarise(REPOSITORY) if (REPOSITORY / PAGE).is_file() else 0


def stages(records: Sequence[Record]) -> str:
    """A Markdown table of records with one figure each for several stages and splits, in percent.

    What differs between records has a column, what all have in common stands below. Records that differ in their seeds
    alone are one row, of means and, behind a sign, sample standard deviations.
    """
    seeds = {record.seed for record in records if record.seed is not None}
    words = [name for name in WORDS if name != "seed" and differs(records, name)]
    rows: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        rows.setdefault(tuple(getattr(record, name) for name in words), []).append(record)
    if any(len({record.seed for record in row}) < len(row) for row in rows.values()):
        raise UserError("Some records differ in nothing that the table shows; collect them under different names.")
    figures = [name for name in FIGURES if any(figure(record, name) is not None for record in records)]
    head = [WORDS[name] for name in words] + figures
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for known, row in rows.items():
        cells = ["-" if value is None else str(value) for value in known]
        cells += [spread([figure(record, name) for record in row]) for name in figures]
        lines.append("| " + " | ".join(cells) + " |")
    elsewhere = (*words, "seed", "segmenter_weights")
    shared = [f"{word} {first_of(records, name)}" for name, word in WORDS.items() if name not in elsewhere]
    shared = [words for words in shared if not words.endswith(" -")]
    named = f"seeds {', '.join(map(str, sorted(seeds)))}" if len(seeds) > 1 else f"seed {first_of(records, 'seed')}"
    segmenter = first_of(records, "segmenter")
    about = f"{records[0].data} at {records[0].resolution}"
    about += f", segmenter {segmenters(records)}" if segmenter != "-" else ""
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(record.command for record in records))
    lines += ["", f"{', '.join([about, *shared, named])}. In percent. Written by {commands}."]
    return "\n".join(lines)


FIGURES = (*FLAT_FIGURES, "strict")
"""What a table shows of a record; ``strict`` is the harmonic mean over all pixels, background too."""


def figure(record: Record, name: str) -> float | None:
    """A figure of a record, a fraction; None where it has none."""
    if name != "strict":
        return getattr(record, name)  # type: ignore[no-any-return]
    strict = (record.details or {}).get("strict")
    return strict["miou"]["harmonic"] if strict else None


WORDS = {
    "row": "row",
    "method": "method",
    "preset": "preset",
    "supervision": "labels",
    "segmenter_weights": "weights",
    "setting": "setting",
    "split": "split",
    "images": "images",
    "seed": "seed",
}
"""Fields of a record that tell it from others, and what tables call them."""


def differs(records: Sequence[Record], name: str) -> bool:
    """Whether a field has several values; weights that are not named are others than those that are."""
    if name == "segmenter_weights":
        return len({record.segmenter_weights for record in records if record.segmenter}) > 1
    return len({getattr(record, name) for record in records} - {None}) > 1


def segmenters(records: Sequence[Record]) -> str:
    """The records' segmenter, and where one file holds its weights, how the hash of that file begins."""
    found = dict.fromkeys(record.segmenter_weights for record in records if record.segmenter)
    named = [f"`{weights}`" for weights in found if weights]
    told = ", ".join([*named, *(["others not named"] if None in found else [])])
    return f"`{first_of(records, 'segmenter')}`" + (f" (weights {told})" if named else "")


def first_of(records: Sequence[Record], name: str) -> str:
    """The first value that a field has in any record; a dash where it has none."""
    return next((str(getattr(r, name)) for r in records if getattr(r, name) is not None), "-")


def merged(records: Sequence[Record]) -> list[Record]:
    """The last record of every measurement, upper bounds first."""
    unique = {record.identity: record for record in records}
    return sorted(
        unique.values(),
        key=lambda r: (
            r.method != "oracle",
            r.method,
            str(r.supervision),
            str(r.preset),
            str(r.row),
            str(r.setting),
            r.split,
        ),
    )


def table(records: Sequence[Record]) -> str:
    """A Markdown table: mIoU and mACC in percent under every protocol."""
    first = records[0]
    head = ["method", "labels", *(f"{protocol} mIoU / mACC" for protocol in PROTOCOLS)]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for record in records:
        protocols = record.protocols or {}
        cells = [percent(protocols.get(protocol)) for protocol in PROTOCOLS]
        remarks = [record.preset if record.preset != "default" else None, record.row if record.row != "final" else None]
        remark = ", ".join(filter(None, remarks))
        method = f"{record.method} ({remark})" if remark else record.method
        lines.append("| " + " | ".join([method, str(record.supervision), *cells]) + " |")
    commands = ", ".join(f"`{command}`" for command in dict.fromkeys(record.command for record in records))
    lines.append("")
    lines.append(
        f"{first.data}, split `{first.split}`, {first.images} images at {first.resolution}, "
        f"segmenter {segmenters(records)}, seed {records[-1].seed}. In percent. Written by {commands}."
    )
    return "\n".join(lines)


def percent(figures: Mapping[str, float | None] | None) -> str:
    """``12.3 / 45.6``, or a dash where a figure is undefined."""
    if not figures:
        return "-"
    return " / ".join("-" if figures.get(key) is None else f"{100 * figures[key]:.1f}" for key in ("miou", "macc"))


if __name__ == "__main__":
    sys.exit(run_command(collect, as_positional=True))
