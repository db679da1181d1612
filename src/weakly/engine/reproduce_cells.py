"""One cell of a table: an ordinary run, whose student or whose stages are scored; computed once.

A cell without a student is a run that has got as far as its targets: ``weakly fit CELL/recipe.yaml --out CELL`` would
go on and train the network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weakly.data.dataset import Dataset
from weakly.engine import evaluate as scoring
from weakly.engine.fit import fit
from weakly.engine.recipe import Recipe, resolve_recipe
from weakly.engine.runs import Run, claim, machine, versions, workspace
from weakly.engine.splits import open_split
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.evaluation.records import Record, read_records, update_records
from weakly.evaluation.scoring import Scoring
from weakly.files import write_atomic
from weakly.methods.base import Score, find_method
from weakly.methods.tables import Measure


@dataclass(frozen=True, eq=False)
class Job:
    """One cell to compute.

    Attributes:
        folder: its run.
        recipe: of the run.
        measure: what is scored.
        trained: run and recipe whose student it shares; None: it trains its own, or none.
    """

    folder: Path
    recipe: Recipe
    measure: Measure
    trained: tuple[Path, Recipe] | None = None


def cell_recipe(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe of a cell: its base recipe with changes.

    Raises:
        UserError: a change does not fit.
    """
    overrides = [(key, json.dumps(value)) for key, value in changes.items()]
    return resolve_recipe(to_plain(base), overrides, f"A cell of {base.method}")


def cell_key(recipe: Recipe, measure: Measure) -> str:
    """What tells two cells apart: recipe and what of it is scored; seeds by prompts and by the baseline differ."""
    content = [to_plain(recipe), measure.scored, measure.reference, measure.split]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def compute(job: Job, shared: Path, names: Sequence[str], command: str) -> Record:
    """The record of a cell; one that is stored is read.

    Args:
        job: the cell.
        shared: folder of what the cells of a reproduction share.
        names: folders of a run that lie there.
        command: what the record states as its command.

    Raises:
        WeaklyError: the cell cannot be computed.
    """
    run = Run(job.folder)
    stored = _stored(run, job)
    if stored is not None:
        return stored
    if job.measure.scored != "student":
        return _score_stage(run, job, shared, names, command)
    if job.trained is not None:
        folder, recipe = job.trained
        _train(Run(folder), recipe, shared, names)
        _go_on_from(Run(folder), run, job.recipe)
    _train(run, job.recipe, shared, names)
    wanted = "false" if job.measure.setting is None else "true"
    found = scoring.evaluate(run.folder, overrides=[("evaluation.references", wanted)], command=command).records
    return _in_setting(found, job)


def is_computed(job: Job) -> bool:
    """Whether the record of a cell is stored."""
    return _stored(Run(job.folder), job) is not None


def could_be(record: Record, job: Job) -> bool:
    """Whether a record of another folder, whose row is its place in a table, may be a cell's."""
    (method, *_), setting = job.measure.reference or _student_row(job.recipe), job.measure.setting
    return (record.method, record.split) == (method, _split(job)) and setting in (None, record.setting)


def _stored(run: Run, job: Job) -> Record | None:
    if not run.metrics.is_file():
        return None
    wanted, split, setting = job.measure.reference or _student_row(job.recipe), _split(job), job.measure.setting
    for record in read_records(run.metrics):
        named = (record.method, record.row, record.supervision)[: len(wanted)]
        if (named, record.split) == (wanted, split) and setting in (None, record.setting):
            return record
    return None


def _student_row(recipe: Recipe) -> tuple[str, ...]:
    """Method and row of a student's record."""
    named = find_method(recipe.method).final_row(recipe.settings)
    row = named.get("row", "final") if recipe.evaluation.student == "last" else "best"
    return named.get("method", recipe.method), row


def _split(job: Job) -> str:
    """That a job is scored on."""
    on_train = job.measure.scored != "student" and job.measure.split == "train"
    return job.recipe.data.train if on_train else job.recipe.evaluated_split()


def _in_setting(records: Sequence[Record], job: Job) -> Record:
    """The student's record in the setting that is asked for; its own result comes first."""
    for record in records:
        if job.measure.setting in (None, record.setting):
            return record
    raise UserError(f"The student of {job.folder} is not scored in the setting {job.measure.setting!r}.")


def _train(run: Run, recipe: Recipe, shared: Path, names: Sequence[str]) -> None:
    with claim(run, recipe):
        _share(run.folder, shared, names)
    fit(recipe, run.folder)


def _go_on_from(trained: Run, run: Run, recipe: Recipe) -> None:
    """Let a run start where another one ended: nothing is left to train, the student gets this run's settings."""
    with claim(run, recipe):
        if not run.checkpoint.is_file() and not run.student.is_dir():
            try:
                run.checkpoint.hardlink_to(trained.checkpoint)  # whoever writes one puts a new file in its place
            except OSError:
                write_atomic(run.checkpoint, trained.checkpoint.read_bytes())


def _share(folder: Path, shared: Path, names: Sequence[str]) -> None:
    """Links from a run to the common folders; where the file system has no links every run computes its own."""
    for name in names:
        link, target = folder / name, shared / name
        if link.exists() or link.is_symlink():
            continue
        target.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError, NotImplementedError):
            link.symlink_to(os.path.relpath(target, folder), target_is_directory=True)


def _score_stage(run: Run, job: Job, shared: Path, names: Sequence[str], command: str) -> Record:
    """Score a reference on the measure's split; targets are prepared before where the measure asks for them."""
    recipe, method = job.recipe, find_method(job.recipe.method)
    with claim(run, recipe):
        _share(run.folder, shared, names)
        torch.manual_seed(recipe.optimisation.seed)
        whole = open_split(recipe.data, _split(job))
        dataset = _with_truth(whole, method.scoring)
        space = workspace(run, recipe)
        run.update_info(
            method=recipe.method,
            command=command,
            versions=versions(),
            machine=machine(),
            vocabulary=whole.vocabulary.to_dict(),
            data={"name": whole.name, "splits": {whole.split: {"images": len(whole), "problems": len(whole.problems)}}},
        )
        if job.measure.scored == "targets":
            prepared = method.prepare(recipe.settings, whole, space)
            run.record_skipped("train", getattr(prepared, "skipped", ()))
        score = _chosen(method.references(recipe.settings, dataset, space), job.measure, dataset)
        record = scoring.score_reference(run, recipe, dataset, score, command, recipe.preset)
        update_records(run.metrics, [record])
    return record


def _with_truth(whole: Dataset, scoring_of_method: Scoring) -> Dataset:
    known = scoring_of_method.known(whole)
    if not scoring_of_method.has_truth(whole) or len(known) == 0:
        raise UserError(
            f"Split {whole.split!r} of {whole.name} has no truth against which {scoring_of_method.name} are scored; "
            "choose data that has some."
        )
    return known


def _chosen(scores: Sequence[Score], measure: Measure, dataset: Dataset) -> Score:
    for score in scores:
        named = (score.method, score.extra.get("row", "final"), score.supervision)
        if measure.reference == named[: len(measure.reference or ())]:
            return score
    raise UserError(
        f"Split {dataset.split!r} of {dataset.name} cannot be scored for {measure.reference}; give all its images weak "
        "labels, or drop those that have none."
    )
