"""Bring the tables of a reproduction into docs/results: the page, its records, and the verdicts on the orderings.

    python benchmarks/collect_tables.py runs/reproduce-wps-menagerie wps-tables

writes ``NAME.md``, ``NAME.json`` and ``NAME-orderings.json``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from command import run_command
from weakly.errors import UserError
from weakly.evaluation.records import read_records, write_records
from weakly.files import write_atomic

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def collect(run: Path, name: str, results: Path = RESULTS) -> int:
    """Write the three files.

    Args:
        run: folder of `weakly reproduce`.
        name: of the result.
        results: where they go.
    """
    for file in ("tables.md", "metrics.json", "orderings.json"):
        if not (run / file).is_file():
            raise UserError(f"{run} has no {file}; give a folder that `weakly reproduce` wrote.")
    write_records(results / f"{name}.json", read_records(run / "metrics.json"))
    for source, target in (("tables.md", f"{name}.md"), ("orderings.json", f"{name}-orderings.json")):
        write_atomic(results / target, (run / source).read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(collect, as_positional=True))
