"""A paper's tables, measured: every cell a run of its own, computed once, ours beside theirs.

=====================  ===================================================================================
``base.yaml``          the resolved recipe that all cells of the paper's method depart from
``cells/<cell>/``      an ordinary run per figure; cells with equal recipes are one
``shared/``            what cells have in common, linked from their folders
``metrics.json``       a record per figure and repetition, the paper's figure in ``published``
``orderings.json``     what the paper claims, and whether it holds here
=====================  ===================================================================================
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import yaml

from weakly.engine.logs import console
from weakly.engine.orderings import Judgement, Measured, figure_of, judge
from weakly.engine.recipe import Override, Recipe, differences
from weakly.engine.reproduce_cells import Job, compute, is_computed
from weakly.engine.reproduce_plan import (
    Budget,
    Jobs,
    Planned,
    Scored,
    base_recipe,
    baseline_recipes,
    elsewhere,
    is_measured,
    jobs_of,
    measured,
    of_baselines,
    paper_tables,
    plan,
    scored,
)
from weakly.engine.runs import FolderInUseError
from weakly.engine.typed import to_plain
from weakly.errors import UserError, WeaklyError
from weakly.evaluation.records import Record, write_records
from weakly.files import alone, write_atomic, write_json
from weakly.methods.base import find_method
from weakly.methods.tables import Cell, Measure, Table, Tables

WAIT = 10.0
"""Seconds between two looks at cells that another process is computing."""


@dataclass(frozen=True, eq=False)
class TableResult:
    """A table and what was measured for it.

    Attributes:
        table: as the paper has it.
        figures: {place: what was measured}, of cells that have a measure.
        judgements: of its orderings.
    """

    table: Table
    figures: Mapping[str, Measured]
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, eq=False)
class Reproduction:
    """A reproduction so far.

    Attributes:
        folder: where it lies.
        paper: the method's tables.
        recipe: the base recipe.
        budget: ``small`` or ``full``.
        repetitions: most runs per figure.
        command: that repeats it.
        results: one per chosen table, and per table that earlier calls have measured whole.
    """

    folder: Path
    paper: Tables
    recipe: Recipe
    budget: Budget
    repetitions: int
    command: str
    results: tuple[TableResult, ...] = ()

    @property
    def missing(self) -> dict[str, str]:
        """{table and place: why it was not measured}."""
        found = (
            (f"Table {r.table.number}, {place}", m.missing) for r in self.results for place, m in r.figures.items()
        )
        return {place: reason for place, reason in found if reason}

    def records(self) -> list[Record]:
        """A record per figure and repetition: its row is the table's, its seed the number of the repetition."""
        return [record for result in self.results for record in _records(result)]


def reproduce(
    method: str,
    recipe: Path,
    out: Path,
    *,
    overrides: tuple[Override, ...] = (),
    budget: Budget = "small",
    tables: tuple[str, ...] | None = None,
    repetitions: int = 1,
    hours: float | None = None,
    known: Sequence[Record] = (),
    command: str = "",
    tell: Callable[[Reproduction], object] = lambda _: None,
) -> Reproduction:
    """Measure the tables of a method's paper; what an earlier call has measured in ``out`` is read.

    First comes one run of every figure, then further runs of the method's own, then of its baselines. Several processes
    may do this at once, on one machine or on many that share a disk: each takes cells that no other is computing.

    Args:
        method: its name.
        recipe: a recipe of that method: data, models and settings that the tables depart from.
        out: folder of the reproduction.
        overrides: dotted keys over the recipe; those of a baseline's begin with its name, ``det_sam.optimisation.lr``.
        budget: ``small`` lowers images, epochs and what the method says; ``full`` is the recipe as it is.
        tables: their numbers; None: all.
        repetitions: runs per figure, with different seeds.
        hours: after so many no further run begins; the next call goes on. None: all of them.
        known: records of another folder, with this recipe and budget; what they hold is not computed again.
        command: what records state as their command.
        tell: called with all that is known after every cell, e.g. to write pages.

    Raises:
        UserError: the recipe is of another method, the method states no tables, a table or number is wrong, or ``out``
            holds another reproduction. A cell that cannot be measured is no error: it is named in the result.
    """
    if repetitions < 1:
        raise UserError(f"--seeds is {repetitions}; give a whole number of at least 1.")
    own, others = of_baselines(overrides)
    base = base_recipe(method, recipe, own, budget)
    paper = paper_tables(base)
    baselines = baseline_recipes(base, paper, others, budget)
    chosen = paper.choose(tables)
    started = time.monotonic()
    with alone(out):
        _claim(out, base)
    jobs = plan(out, paper, base, baselines, repetitions)
    before = elsewhere(jobs, known)
    shown = [table for table in paper.tables if table in chosen or is_measured(table, jobs, before)]
    wanted = {scored(job): job for job in _in_order(shown, jobs, repetitions)}
    compute_cell = partial(compute, shared=out / "shared", names=find_method(method).shared, command=command)
    until = math.inf if hours is None else started + 3600 * hours
    done: dict[Scored, Record | str] = {**before, **_stored(wanted, compute_cell)}
    state = Reproduction(out, paper, base, budget, repetitions, command, _results(shown, jobs, done, out))
    _write(state)
    tell(state)
    for cell, outcome in _outcomes(wanted, done, compute_cell, until):
        done.update({**_stored(wanted, compute_cell), cell: outcome})
        state = replace(state, results=_results(shown, jobs, done, out))
        _write(state)
        tell(state)
    return state


def _in_order(tables: Sequence[Table], jobs: Jobs, repetitions: int) -> list[Job]:
    """The first run of every figure; then the further runs, first of the paper's method: baselines take longer."""
    first, *more = ([job for table in tables for job in jobs_of(table, jobs, n)] for n in range(repetitions))
    further = list(chain.from_iterable(more))
    return [*first, *sorted(further, key=lambda job: job.measure.baseline is not None)]


def _stored(wanted: Mapping[Scored, Job], compute_cell: Callable[[Job], Record]) -> dict[Scored, Record]:
    """Cells that earlier calls and other processes have computed."""
    return {cell: compute_cell(job) for cell, job in wanted.items() if is_computed(job)}


def _outcomes(
    wanted: Mapping[Scored, Job],
    done: Mapping[Scored, object],
    compute_cell: Callable[[Job], Record],
    until: float,
) -> Iterator[tuple[Scored, Record | str]]:
    """What comes of every cell that is not done; those that another process is computing come last."""
    titles = {cell: _title(n, len(wanted), job) for n, (cell, job) in enumerate(wanted.items(), 1)}
    waiting = [cell for cell in wanted if cell not in done]
    while waiting:
        in_use = []
        for cell in waiting:
            job = wanted[cell]
            if cell in done or time.monotonic() > until:
                continue
            if cell in titles:
                console.print(titles.pop(cell), markup=False)
            try:
                outcome = _try(job, compute_cell)
            except FolderInUseError:
                in_use.append(cell)
                continue
            yield cell, outcome
        if in_use == waiting:
            time.sleep(WAIT)
        elif in_use:
            console.print(f"{len(in_use)} cells are being computed by another process.", markup=False)
        waiting = in_use


def _title(number: int, total: int, job: Job) -> str:
    setting = f", {job.measure.setting}" if job.measure.setting else ""
    return f"[{number}/{total}] {job.folder.name}{setting}"


def _claim(out: Path, base: Recipe) -> None:
    file = out / "base.yaml"
    if not file.is_file():
        others = sorted(path.name for path in out.iterdir() if path.name != ".lock")
        if others:
            raise UserError(
                f"{out} is not empty and is no reproduction (it holds {others[0]}); choose another folder with --out."
            )
        write_atomic(file, base.to_yaml())
        return
    changed = differences(yaml.safe_load(file.read_text(encoding="utf-8")), to_plain(base))
    if changed:
        raise UserError(
            f"{out} holds a reproduction from another recipe or budget: {'; '.join(changed)}; choose another folder "
            "with --out, or remove this one."
        )


def _try(job: Job, compute_cell: Callable[[Job], Record]) -> Record | str:
    """The record of a cell, or one sentence why there is none: a missing model costs its cells, not the tables."""
    try:
        return compute_cell(job)
    except FolderInUseError:
        raise
    except WeaklyError as error:
        console.print(f"{job.folder.name} is left out: {error}", markup=False)
        return str(error)


def _results(
    tables: list[Table], jobs: Jobs, done: Mapping[Scored, Record | str], out: Path
) -> tuple[TableResult, ...]:
    return tuple(_result(table, jobs, done, out) for table in tables)


def _result(table: Table, jobs: Jobs, done: Mapping[Scored, Record | str], out: Path) -> TableResult:
    figures = {
        place: _measurement(jobs[table.number, place], measure, done, out) for place, measure in measured(table).items()
    }
    return TableResult(table, figures, tuple(judge(table, figures)))


def _measurement(jobs: Sequence[Planned], measure: Measure, done: Mapping[Scored, Record | str], out: Path) -> Measured:
    values, records, folder, missing = {}, {}, "", ""
    for repetition, job in enumerate(jobs):
        record = job if isinstance(job, str) else done.get(scored(job), "not reached yet")
        if isinstance(job, str) or isinstance(record, str):
            missing = missing or str(record)
            continue
        try:
            values[repetition] = figure_of(record, measure.figure)
            records[repetition] = record
            if not folder and job.folder.is_dir():
                folder = job.folder.relative_to(out).as_posix()
        except UserError as error:
            missing = missing or str(error)
    if missing and values:
        missing = f"{len(jobs) - len(values)} of {len(jobs)} runs: {missing}"
    return Measured(values, records, folder, missing)


def _records(result: TableResult) -> list[Record]:
    found = []
    for place, cell in result.table.places():
        measured = result.figures.get(place)
        if measured is not None:
            found += [_record(result.table, place, cell, n, record) for n, record in measured.records.items()]
    return found


def _record(table: Table, place: str, cell: Cell, repetition: int, record: Record) -> Record:
    """The cell's record under its place in the table; details by class stay with the cell."""
    return replace(
        record, row=f"table {table.number}: {place}", seed=repetition, published=cell.published, per_class=None
    )


def _write(state: Reproduction) -> None:
    write_records(state.folder / "metrics.json", state.records())
    judgements = [judgement.to_dict() for result in state.results for judgement in result.judgements]
    content = {"paper": state.paper.paper, "source": state.paper.source, "orderings": judgements}
    write_json(state.folder / "orderings.json", {**content, "missing": state.missing})


__all__ = ["Budget", "Measured", "Reproduction", "TableResult", "reproduce"]
