"""What the tables of results share: where they stand on a page, and how a figure over seeds is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from statistics import mean, stdev


def with_table(text: str, name: str, content: str) -> str:
    """The page with what stands between its markers replaced; a page without them stays as it is."""
    pattern = re.compile(rf"(<!-- table: {re.escape(name)} -->\n).*?(<!-- end -->)", re.DOTALL)
    return pattern.sub(lambda match: f"{match[1]}\n{content}\n\n{match[2]}", text)


def spread(values: Sequence[float | None]) -> str:
    """``12.3``, or ``12.3 ± 0.4`` of several runs, in percent; a dash where a run has no such figure, or none is."""
    known = [100 * value for value in values if value is not None]
    if not known or len(known) < len(values):
        return "-"
    return f"{mean(known):.1f}" + (f" ± {stdev(known):.1f}" if len(known) > 1 else "")
