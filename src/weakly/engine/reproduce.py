"""A paper's tables, measured: every cell a run of its own, computed once, ours beside theirs.

=====================  ===================================================================================
``base.yaml``          the resolved recipe that all cells depart from
``cells/<cell>/``      an ordinary run per figure; cells with equal recipes are one
``shared/``            what cells have in common, linked from their folders
``metrics.json``       a record per figure and repetition, the paper's figure in ``published``
``orderings.json``     what the paper claims, and whether it holds here
=====================  ===================================================================================
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from weakly.engine.logs import console
from weakly.engine.orderings import Judgement, Measured, figure_of, judge
from weakly.engine.recipe import Override, Recipe, differences, load_recipe
from weakly.engine.reproduce_cells import Job, cell_key, cell_recipe, compute, is_computed
from weakly.engine.runs import lock
from weakly.engine.typed import to_plain
from weakly.errors import UserError, WeaklyError
from weakly.evaluation.records import Record, write_records
from weakly.files import write_atomic, write_json
from weakly.methods.base import find_method
from weakly.methods.tables import Cell, Measure, Table, Tables

Budget = Literal["small", "full"]

SMALL = {"train": 200, "val": 100, "epochs": 10}
"""Most images of each split, and most epochs, within a small budget; methods add settings of their own."""


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
        repetitions: runs per figure.
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
    command: str = "",
    tell: Callable[[Reproduction], object] = lambda _: None,
) -> Reproduction:
    """Measure the tables of a method's paper; what an earlier call has measured in ``out`` is read.

    Args:
        method: its name.
        recipe: a recipe of that method: data, models and settings that the tables depart from.
        out: folder of the reproduction.
        overrides: dotted keys over the recipe.
        budget: ``small`` lowers images, epochs and what the method says; ``full`` is the recipe as it is.
        tables: their numbers; None: all.
        repetitions: runs per figure, with different seeds.
        command: what records state as their command.
        tell: called with all that is known after every cell, e.g. to write pages.

    Raises:
        UserError: the recipe is of another method, the method states no tables, a table or number is wrong, or ``out``
            holds another reproduction. A cell that cannot be measured is no error: it is named in the result.
    """
    if repetitions < 1:
        raise UserError(f"--seeds is {repetitions}; give a whole number of at least 1.")
    base = base_recipe(method, recipe, overrides, budget)
    paper = _paper(base)
    chosen = paper.choose(tables)
    with lock(out):
        _claim(out, base)
        jobs = _plan(out, paper, repetitions)
        state = Reproduction(out, paper, base, budget, repetitions, command)
        done: dict[_Scored, Record | str] = {}
        shown = [t for t in paper.tables if t in chosen or _is_measured(_jobs_of(t, jobs))]
        wanted = {_scored(job): job for table in shown for job in _jobs_of(table, jobs)}
        for number, (scored, job) in enumerate(wanted.items(), 1):
            told = f", {job.measure.setting}" if job.measure.setting else ""
            console.print(f"[{number}/{len(wanted)}] {job.folder.name}{told}", markup=False)
            done[scored] = _try(job, partial(compute, job, out / "shared", paper.shared, command))
            state = replace(state, results=tuple(_result(table, jobs, done, out) for table in shown))
            _write(state)
            tell(state)
    return state


def base_recipe(method: str, path: Path, overrides: tuple[Override, ...], budget: Budget) -> Recipe:
    """The recipe that the cells of a reproduction depart from.

    Raises:
        UserError: it is of another method, or an option is wrong.
    """
    base = load_recipe(path, overrides)
    if base.method != method:
        raise UserError(f"{path} is a recipe of {base.method}, not of {method}; give one of that method.")
    if budget == "full":
        return base
    small = {**_paper(base).small, **_fewer_images(base)}
    changes = [(key, json.dumps(value)) for key, value in small.items()]
    return load_recipe(path, [*overrides, *changes])


def _paper(base: Recipe) -> Tables:
    paper = find_method(base.method).tables(base.settings)
    if not paper.tables:
        raise UserError(f"The method {base.method} states no tables to reproduce yet; `weakly fit` trains it.")
    return paper


def _fewer_images(base: Recipe) -> dict[str, Any]:
    """The first images of a world that is drawn, beside the recipe's own, or a seeded choice of any other data."""
    changes: dict[str, Any] = {"optimisation.epochs": min(base.optimisation.epochs, SMALL["epochs"])}
    for split in ("train", "val"):
        limit = getattr(base.data, f"limit_{split}")
        if base.data.render is not None and limit is None:
            drawn = getattr(base.data.render, split)
            changes[f"data.render.{split}"] = min(drawn, SMALL[split])
            if drawn > SMALL[split]:
                changes["data.root"] = f"{base.data.root}-small"
        else:
            changes[f"data.limit_{split}"] = SMALL[split] if limit is None else min(limit, SMALL[split])
    return changes


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


def _plan(out: Path, paper: Tables, repetitions: int) -> dict[tuple[str, str], list[Job]]:
    """The jobs of every cell of every table, so that a folder's name does not depend on what is asked for today.

    A folder is named for the first place that its recipe has.
    """
    folders: dict[str, Path] = {}
    recipe_of = partial(cell_recipe, out / "base.yaml")

    def folder(recipe: Recipe, measure: Measure, name: str) -> Path:
        key = cell_key(recipe, measure)
        return folders.setdefault(key, out / "cells" / f"{name}-{key[:8]}")

    jobs: dict[tuple[str, str], list[Job]] = {}
    for repetition in range(repetitions):
        for table in paper.tables:
            for place, measure in _measured(table).items():
                name = _slug(f"table-{table.number}-{place}" + (f"-{repetition}" if repetition else ""))
                recipe = recipe_of(measure.changed(repetition))
                job = Job(folder(recipe, measure, name), recipe, measure)
                jobs.setdefault((table.number, place), []).append(job)
    for each in jobs.values():
        for repetition, job in enumerate(each):
            if job.measure.after:
                before = recipe_of(job.measure.before(repetition))
                trained = folder(before, job.measure, f"training-{job.folder.name}")
                each[repetition] = replace(job, trained=(trained, before))
    return jobs


def _jobs_of(table: Table, jobs: Mapping[tuple[str, str], list[Job]]) -> list[Job]:
    return [job for place in _measured(table) for job in jobs[table.number, place]]


_Scored = tuple[Path, str | None]
"""A run, and the setting that its student is scored in."""


def _scored(job: Job) -> _Scored:
    return job.folder, job.measure.setting


def _is_measured(jobs: list[Job]) -> bool:
    """Whether a table has cells, and earlier calls have computed all of them."""
    return bool(jobs) and all(is_computed(job) for job in jobs)


def _measured(table: Table) -> dict[str, Measure]:
    return {place: cell.measure for place, cell in table.places() if cell.measure is not None}


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _try(job: Job, compute_cell: Callable[[], Record]) -> Record | str:
    """The record of a cell, or one sentence why there is none: a missing model costs its cells, not the tables."""
    try:
        return compute_cell()
    except WeaklyError as error:
        console.print(f"{job.folder.name} is left out: {error}", markup=False)
        return str(error)


def _result(
    table: Table,
    jobs: Mapping[tuple[str, str], list[Job]],
    done: Mapping[_Scored, Record | str],
    out: Path,
) -> TableResult:
    figures = {
        place: _measurement(jobs[table.number, place], measure, done, out)
        for place, measure in _measured(table).items()
    }
    return TableResult(table, figures, tuple(judge(table, figures)))


def _measurement(jobs: list[Job], measure: Measure, done: Mapping[_Scored, Record | str], out: Path) -> Measured:
    values, records, missing = {}, {}, ""
    for repetition, job in enumerate(jobs):
        record = done.get(_scored(job), "not reached yet")
        if isinstance(record, str):
            missing = missing or record
            continue
        try:
            values[repetition] = figure_of(record, measure.figure)
            records[repetition] = record
        except UserError as error:
            missing = missing or str(error)
    return Measured(values, records, jobs[0].folder.relative_to(out).as_posix(), missing)


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


__all__ = ["SMALL", "Budget", "Measured", "Reproduction", "TableResult", "base_recipe", "reproduce"]
