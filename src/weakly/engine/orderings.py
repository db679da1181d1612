"""Figures of a reproduction, and what they say about the orderings that a paper claims. Pure arithmetic."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from weakly.errors import UserError
from weakly.evaluation.records import Record
from weakly.methods.tables import Ordering, Table

PRINTED_AS_ZERO = 0.0005
"""Half of the last digit of a figure in per cent."""

Verdict = Literal["reproduced", "not reproduced", "not decidable here"]


@dataclass(frozen=True, eq=False)
class Measured:
    """One cell as it was measured.

    Attributes:
        values: {repetition: figure as a fraction}.
        records: {repetition: the record of the run behind it}.
        folder: of the first run, as a reader of the tables finds it.
        missing: why a repetition has no figure; empty where all have one.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    records: Mapping[int, Record] = field(default_factory=dict)
    folder: str = ""
    missing: str = ""

    @property
    def mean(self) -> float | None:
        """Over the repetitions; None where none was measured."""
        return statistics.fmean(self.values.values()) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation over the repetitions; None for one of them."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Step:
    """Two neighbours of an ordering.

    Attributes:
        lower: place that is claimed to be lower.
        higher: place that is claimed to be higher.
        margin: by how much it is, the mean over the repetitions that both have; None: one of them is not measured.
        spread: standard deviation of that difference; None for one repetition.
    """

    lower: str
    higher: str
    margin: float | None
    spread: float | None

    @property
    def verdict(self) -> Verdict:
        """A difference that is within its own spread, or that tables print as zero, decides nothing."""
        if self.margin is None or abs(self.margin) <= max(self.spread or 0.0, PRINTED_AS_ZERO):
            return "not decidable here"
        return "reproduced" if self.margin > 0 else "not reproduced"


@dataclass(frozen=True)
class Judgement:
    """An ordering and what was found.

    Attributes:
        table: number of its table.
        ordering: the claim.
        steps: its neighbours, from the lowest on.
    """

    table: str
    ordering: Ordering
    steps: tuple[Step, ...]

    @property
    def verdict(self) -> Verdict:
        """Reproduced if every step is; not reproduced if any is reversed."""
        verdicts = {step.verdict for step in self.steps}
        for verdict in ("not reproduced", "not decidable here"):
            if verdict in verdicts:
                return verdict
        return "reproduced"

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        steps = [{**vars(step), "verdict": step.verdict} for step in self.steps]
        return {"table": self.table, "claim": self.ordering.claim, "verdict": self.verdict, "steps": steps}


def judge(table: Table, figures: Mapping[str, Measured]) -> list[Judgement]:
    """Every ordering of a table.

    Args:
        table: whose orderings are judged.
        figures: {place: what was measured}.
    """
    found = []
    for ordering in table.orderings:
        pairs = zip(ordering.ascending[:-1], ordering.ascending[1:], strict=True)
        steps = tuple(_step(lower, higher, figures) for lower, higher in pairs)
        found.append(Judgement(table.number, ordering, steps))
    return found


def figure_of(record: Record, name: str) -> float:
    """A figure of a record: ``miou``, ``dataset41.miou`` of a protocol, ``details.recall.unseen`` of its details.

    Raises:
        UserError: the record has none of that name.
    """
    value = _found(record, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{record.data} {record.split!r} gave no {name}; its truth shows none of the categories.")
    return float(value)


def _found(record: Record, name: str) -> Any:
    """Whatever a record has under a name, at any depth of its details; None for nothing."""
    if name.startswith("details."):
        value: Any = record.details
        for key in name.split(".")[1:]:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value
    protocol, _, figure = name.rpartition(".")
    return (record.protocols or {}).get(protocol, {}).get(figure) if protocol else getattr(record, name, None)


def _step(lower: str, higher: str, figures: Mapping[str, Measured]) -> Step:
    low, high = (figures.get(place, Measured()).values for place in (lower, higher))
    differences = [high[repetition] - low[repetition] for repetition in sorted(low.keys() & high.keys())]
    margin = statistics.fmean(differences) if differences else None
    return Step(lower, higher, margin, statistics.stdev(differences) if len(differences) > 1 else None)
