"""What a reproduction computes: the recipes that its cells depart from, and a job per figure and repetition."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from weakly.engine.recipe import Override, Recipe, load_recipe, resolve_recipe
from weakly.engine.reproduce_cells import Job, cell_key, cell_recipe, could_be, is_computed
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.evaluation.records import Record
from weakly.methods.base import find_method, method_names
from weakly.methods.tables import Baseline, Limits, Measure, Table, Tables

Budget = Literal["small", "full"]

COMMON = ("data", "features", "evaluation", "device", "devices", "checkpoint_minutes")
"""What all methods in a paper's tables have from the paper's recipe."""

Planned = Job | str
"""A cell to compute, or one sentence why it cannot be."""

Jobs = Mapping[tuple[str, str], Sequence[Planned]]
"""{(number of the table, place): a cell per repetition}."""

Scored = tuple[Path, str | None]
"""A run, and the setting that its student is scored in."""


def of_baselines(overrides: Iterable[Override]) -> tuple[list[Override], dict[str, list[Override]]]:
    """Overrides of the paper's recipe, and those of its baselines' by method.

    The latter begin with the method's name, its hyphens as underscores: ``det_sam.optimisation.epochs``.
    """
    names = {name.replace("-", "_"): name for name in method_names()}
    own: list[Override] = []
    others: dict[str, list[Override]] = {}
    for key, value in overrides:
        first, _, rest = key.partition(".")
        if first in names:
            others.setdefault(names[first], []).append((rest, value))
        else:
            own.append((key, value))
    return own, others


def base_recipe(method: str, path: Path, overrides: Sequence[Override], budget: Budget) -> Recipe:
    """The recipe that the cells of a reproduction depart from.

    Raises:
        UserError: it is of another method, that method states no tables, or an option is wrong.
    """
    base = load_recipe(path, overrides)
    if base.method != method:
        raise UserError(f"{path} is a recipe of {base.method}, not of {method}; give one of that method.")
    paper = paper_tables(base)
    small = {**paper.small, **_lowered(base, paper.limits)} if budget == "small" else {}
    return load_recipe(path, [*overrides, *_as_overrides({**paper.base, **small})])


def paper_tables(base: Recipe) -> Tables:
    """What the method of a recipe can reproduce.

    Raises:
        UserError: it states none.
    """
    paper = find_method(base.method).tables(base.settings)
    if not paper.tables:
        raise UserError(f"The method {base.method} states no tables to reproduce yet; `weakly fit` trains it.")
    return paper


def baseline_recipes(
    base: Recipe, paper: Tables, overrides: Mapping[str, Sequence[Override]], budget: Budget
) -> dict[str, Recipe | str]:
    """{name: the recipe that a baseline's cells depart from, or one sentence why there is none}.

    Args:
        base: the paper's recipe.
        paper: whose baselines they are.
        overrides: {method: dotted keys and values over all its recipes}.
        budget: see :func:`base_recipe`.

    Raises:
        UserError: an override is wrong, or of a method that is not in the tables.
    """
    baselines = {**paper.baselines, **(paper.small_baselines if budget == "small" else {})}
    methods = list(dict.fromkeys(baseline.method for baseline in baselines.values()))
    for method in overrides:
        if method not in methods:
            known = ", ".join(methods) or "none"
            raise UserError(f"--{method.replace('-', '_')}: the tables have no baseline {method}; they have {known}.")
    found: dict[str, Recipe | str] = {}
    for name, baseline in baselines.items():
        try:
            found[name] = _baseline_recipe(base, baseline, overrides.get(baseline.method, ()))
        except UserError as error:
            if baseline.method in overrides:
                raise
            found[name] = str(error)
    return found


def plan(
    out: Path, paper: Tables, base: Recipe, baselines: Mapping[str, Recipe | str], repetitions: int
) -> dict[tuple[str, str], list[Planned]]:
    """The cells of every table, so that a folder's name does not depend on what is asked for today.

    A folder is named for the first place that its recipe has.
    """
    folders: dict[str, Path] = {}

    def folder(recipe: Recipe, measure: Measure, name: str) -> Path:
        key = cell_key(recipe, measure)
        return folders.setdefault(key, out / "cells" / f"{name}-{key[:8]}")

    def recipe_of(measure: Measure, changes: Mapping[str, Any]) -> Recipe | str:
        start = base if measure.baseline is None else baselines[measure.baseline]
        try:
            return start if isinstance(start, str) else cell_recipe(start, changes)
        except UserError as error:
            return str(error)

    def planned(measure: Measure, repetition: int, name: str) -> Planned:
        recipe = recipe_of(measure, measure.changed(repetition))
        return recipe if isinstance(recipe, str) else Job(folder(recipe, measure, name), recipe, measure)

    def with_training(job: Planned, repetition: int) -> Planned:
        """What training alone knows gets a run of its own, after all cells have their names."""
        if isinstance(job, str) or not job.measure.after:
            return job
        before = recipe_of(job.measure, job.measure.before(repetition))
        if isinstance(before, str):
            return before
        return replace(job, trained=(folder(before, job.measure, f"training-{job.folder.name}"), before))

    jobs: dict[tuple[str, str], list[Planned]] = {}
    for repetition in range(repetitions):
        for table in paper.tables:
            for place, measure in measured(table).items():
                name = _slug(f"table-{table.number}-{place}" + (f"-{repetition}" if repetition else ""))
                jobs.setdefault((table.number, place), []).append(planned(measure, repetition, name))
    return {place: [with_training(job, n) for n, job in enumerate(each)] for place, each in jobs.items()}


def jobs_of(table: Table, jobs: Jobs, repetition: int | None = None) -> list[Job]:
    """The cells of a table that can be computed, of one repetition or of all."""
    each = [jobs[table.number, place] for place in measured(table)]
    chosen = [job for row in each for job in (row if repetition is None else row[repetition : repetition + 1])]
    return [job for job in chosen if isinstance(job, Job)]


def elsewhere(jobs: Jobs, records: Iterable[Record]) -> dict[Scored, Record]:
    """Cells that are in the records of another folder, found by table, place and repetition.

    Raises:
        UserError: a record is of another method, split or setting than its cell.
    """
    found: dict[Scored, Record] = {}
    for record in records:
        number, _, place = (record.row or "").removeprefix("table ").partition(": ")
        each = jobs.get((number, place))
        if each is None:
            raise UserError(
                f"The row {record.row!r} is in none of these tables; give the metrics.json of the same ones."
            )
        repetition = record.seed or 0
        job = each[repetition] if repetition < len(each) else None
        if not isinstance(job, Job):
            continue
        if not could_be(record, job):
            raise UserError(
                f"The row {record.row!r}, run {repetition}, is of {record.method} on {record.split!r}, unlike its "
                "cell; give records of the same recipe and budget."
            )
        found[scored(job)] = record
    return found


def scored(job: Job) -> Scored:
    """What a cell is known by."""
    return job.folder, job.measure.setting


def is_measured(table: Table, jobs: Jobs, known: Container[Scored] = ()) -> bool:
    """Whether a table has cells, and earlier calls have computed all of them, or they are known."""
    found = jobs_of(table, jobs)
    return bool(found) and all(scored(job) in known or is_computed(job) for job in found)


def measured(table: Table) -> dict[str, Measure]:
    """{place: how its figure is made} of the cells that are measured."""
    return {place: cell.measure for place, cell in table.places() if cell.measure is not None}


def _baseline_recipe(base: Recipe, baseline: Baseline, overrides: Sequence[Override]) -> Recipe:
    plain = to_plain(base)
    kept = {key: _value_of(plain, key) for key in (*COMMON, *baseline.keeps)}
    changes = _as_overrides({**kept, **baseline.changes})
    return resolve_recipe({"method": baseline.method}, [*changes, *overrides], f"The recipe of {baseline.method}")


def _value_of(plain: Mapping[str, Any], dotted: str) -> Any:
    value: Any = plain
    for key in dotted.split("."):
        value = value[key]
    return value


def _lowered(base: Recipe, limits: Limits) -> dict[str, Any]:
    """The first images of a world that is drawn, beside the recipe's own, or a seeded choice of any other data."""
    changes: dict[str, Any] = {"optimisation.epochs": min(base.optimisation.epochs, limits.epochs)}
    if limits.warmup_steps is not None:
        changes["optimisation.warmup_steps"] = min(base.optimisation.warmup_steps, limits.warmup_steps)
    if base.data.render is not None and base.data.render.kinds is None and limits.kinds is not None:
        changes["data.render.kinds"] = list(limits.kinds)
        changes["data.root"] = f"{base.data.root}-small"
    for split, most in (("train", limits.train), ("val", limits.val)):
        limit = getattr(base.data, f"limit_{split}")
        if base.data.render is not None and limit is None:
            drawn = getattr(base.data.render, split)
            changes[f"data.render.{split}"] = min(drawn, most)
            if drawn > most:
                changes["data.root"] = f"{base.data.root}-small"
        else:
            changes[f"data.limit_{split}"] = most if limit is None else min(limit, most)
    return changes


def _as_overrides(changes: Mapping[str, Any]) -> list[Override]:
    return [(key, json.dumps(value)) for key, value in changes.items()]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
