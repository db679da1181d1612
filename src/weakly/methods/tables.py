"""A paper's tables as data: which settings make every figure, what the paper prints, and which orderings it claims.

A method states them (:meth:`weakly.methods.base.Method.tables`), ``weakly reproduce`` measures them, the report prints
them in the paper's layout. Nothing here computes anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from weakly.errors import UserError

Scored = Literal["student", "targets", "reference"]

Split = Literal["train", "evaluated"]


@dataclass(frozen=True, eq=False)
class Measure:
    """How one figure is made: a recipe with changes, and what of it is scored.

    Attributes:
        changes: {dotted recipe key: plain value} over the base recipe, e.g. ``{"settings.fine.finish": "crf"}``.
        scored: ``student``: train, then score the student on the recipe's evaluated split. ``targets``: prepare the
            training split and score, on it, the reference that the method then has; no student is trained.
            ``reference``: the reference alone; nothing is prepared.
        reference: method and row of that :class:`~weakly.methods.base.Score`, and its supervision where several share
            the two; for a student None.
        after: changes that matter after training alone; cells that differ in nothing else train once.
        seeds: keys that get the number of the repetition, from the second one on; none: repetitions are equal.
        figure: of the record, as a fraction: ``"miou"``, ``"ap50"`` ..., ``"dataset41.miou"`` of a protocol, or
            ``"details.recall.unseen"`` of its details.
        setting: of the record, where a student is scored in several: ``"pred-all"``, ``"oracle-obj"``; None: its own.
        baseline: one of :attr:`Tables.baselines`, from whose recipe ``changes`` depart; None: the paper's own method.
        split: that a reference is scored on: the training split, or the one that students are scored on.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    scored: Scored = "student"
    reference: tuple[str, ...] | None = None
    after: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[str, ...] = ()
    figure: str = "miou"
    setting: str | None = None
    baseline: str | None = None
    split: Split = "train"

    def __post_init__(self) -> None:
        if (self.scored == "student") != (self.reference is None):
            raise ValueError(f"a measure of a {self.scored} with the reference {self.reference}")
        if self.split == "evaluated" and self.scored != "reference":
            raise ValueError("a reference alone has a choice of splits")
        if (self.after or self.setting) and self.scored != "student":
            raise ValueError("changes after training, and settings, need a student")

    def changed(self, repetition: int = 0) -> dict[str, Any]:
        """All changes to the base recipe of one repetition; the first keeps the recipe's own seeds."""
        return {**self.before(repetition), **self.after}

    def before(self, repetition: int = 0) -> dict[str, Any]:
        """The changes that training knows."""
        return {**self.changes, **(dict.fromkeys(self.seeds, repetition) if repetition else {})}


@dataclass(frozen=True, eq=False)
class Cell:
    """One figure of a row.

    Attributes:
        published: the paper's, as a fraction; None: it prints none.
        measure: how ours is made; None: somebody else's method, nothing is measured.
    """

    published: float | None = None
    measure: Measure | None = None

    @classmethod
    def of(cls, percent: float | None, measure: Measure | None) -> Cell:
        """A cell of a figure as papers print it, in percent."""
        return cls(None if percent is None else round(percent / 100, 6), measure)


@dataclass(frozen=True, eq=False)
class Row:
    """One row.

    Attributes:
        key: short name within the table, e.g. ``"m3"``.
        words: what stands in the columns left of the figures.
        cells: one per column of figures.
    """

    key: str
    words: tuple[str, ...]
    cells: tuple[Cell, ...]

    @classmethod
    def of(
        cls,
        key: str,
        words: Iterable[str],
        percent: Sequence[float | None],
        measures: Sequence[Measure | None] | None = None,
    ) -> Row:
        """A row of published figures in percent, of measures, or of as many of both.

        Raises:
            ValueError: there are both, and not as many.
        """
        measures = measures or [None] * len(percent)
        figures = percent or [None] * len(measures)
        cells = tuple(Cell.of(figure, measure) for figure, measure in zip(figures, measures, strict=True))
        return cls(key, tuple(words), cells)


@dataclass(frozen=True)
class Ordering:
    """A claim of the paper that any data can confirm or refute.

    Attributes:
        claim: one sentence.
        ascending: places of cells from the lowest figure to the highest: ``"m3"``, or ``"fma:Seed"`` where a table has
            several columns of figures.
    """

    claim: str
    ascending: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Table:
    """One table of a paper.

    Attributes:
        number: as printed, ``"1"``.
        title: what it compares.
        head: headings of the columns of words.
        figures: headings of the columns of figures.
        rows: in the paper's order.
        orderings: what the paper reads from it.
        data: on what the published figures were measured.
        notes: where ours departs from the paper's, a sentence each.
    """

    number: str
    title: str
    head: tuple[str, ...]
    figures: tuple[str, ...]
    rows: tuple[Row, ...]
    orderings: tuple[Ordering, ...] = ()
    data: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.words) != len(self.head) or len(row.cells) != len(self.figures):
                raise ValueError(f"table {self.number}: the row {row.key} does not fit its head")
        places = dict(self.places())
        if len(places) != len(self.rows) * len(self.figures):
            raise ValueError(f"table {self.number}: two rows have the same key")
        for ordering in self.orderings:
            for place in ordering.ascending:
                if place not in places or places[place].measure is None:
                    raise ValueError(f"table {self.number}: {ordering.claim!r} names {place}, which is not measured")

    def places(self) -> Iterator[tuple[str, Cell]]:
        """Every cell with its place, row by row."""
        for row in self.rows:
            for figure, cell in zip(self.figures, row.cells, strict=True):
                yield (row.key if len(self.figures) == 1 else f"{row.key}:{figure}"), cell


@dataclass(frozen=True)
class Limits:
    """What a small budget allows at most; a recipe that asks for less stays as it is.

    Attributes:
        train, val: images of each split.
        epochs: passes over the training images.
        warmup_steps: updates of the learning rate's warm-up; None: the recipe's.
        kinds: object kinds of a world that is drawn with all of them; None: all of them.
    """

    train: int = 200
    val: int = 100
    epochs: int = 10
    warmup_steps: int | None = None
    kinds: tuple[str, ...] | None = None


@dataclass(frozen=True, eq=False)
class Baseline:
    """The recipe of another method in a paper's tables: data, features, scoring and device of the paper's recipe.

    Attributes:
        method: its name.
        keeps: dotted keys and sections that it has from the paper's recipe too, e.g. ``"optimisation.seed"``.
        changes: {dotted recipe key: plain value} over the method's own defaults and what it keeps.
    """

    method: str
    keeps: tuple[str, ...] = ()
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Tables:
    """What a method can reproduce.

    Attributes:
        paper: title, authors, venue.
        source: where the published figures are from.
        tables: in the paper's order.
        small: changes of the settings that make a smaller budget, as :attr:`Measure.changes`.
        limits: of a smaller budget.
        baselines: {name: recipe} of the other methods that stand in the tables.
        small_baselines: those that take their place within a smaller budget.
        base: changes of the settings that make the recipe the paper's, as :attr:`Measure.changes`.
    """

    paper: str = ""
    source: str = ""
    tables: tuple[Table, ...] = ()
    small: Mapping[str, Any] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    baselines: Mapping[str, Baseline] = field(default_factory=dict)
    small_baselines: Mapping[str, Baseline] = field(default_factory=dict)
    base: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table in self.tables:
            for place, cell in table.places():
                baseline = cell.measure.baseline if cell.measure else None
                if baseline is not None and baseline not in self.baselines:
                    raise ValueError(f"table {table.number}: {place} is of {baseline}, which has no recipe")

    def choose(self, numbers: tuple[str, ...] | None) -> tuple[Table, ...]:
        """The tables of these numbers, in the paper's order; None: all.

        Raises:
            UserError: there is no such table.
        """
        known = [table.number for table in self.tables]
        for number in numbers or ():
            if number not in known:
                raise UserError(f"There is no table {number!r} to reproduce; choose from {', '.join(known)}.")
        return tuple(table for table in self.tables if numbers is None or table.number in numbers)
