"""Training: a recipe in, a run folder out. Killed at any moment, the next call goes on and ends with the same bytes."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, LearningRateMonitor
from lightning.pytorch.loggers import TensorBoardLogger

from weakly.data.dataset import Dataset
from weakly.engine.checkpoint import SafetensorsCheckpoints, read_checkpoint
from weakly.engine.logs import JsonLines, TrainingBar, console
from weakly.engine.recipe import Recipe
from weakly.engine.runs import Run, claim, fit_command, machine, package_version, versions, workspace
from weakly.engine.splits import open_split
from weakly.engine.stages import take_stages
from weakly.engine.typed import to_plain
from weakly.errors import UserError, WeaklyError
from weakly.files import one_sentence_errors, write_folder
from weakly.methods.base import Learner, Method, StageDone, Workspace, find_method

_BESIDE_THE_POINT = (
    ".*does not have many workers.*",  # batches are gathered from memory: workers would only copy them
    ".*isinstance\\(treespec, LeafSpec\\).*",  # between Lightning and torch
    ".*smaller than the logging interval.*",  # curves have the epoch's end anyway
)
"""Warnings of Lightning that a user can do nothing about."""


def fit(recipe: Recipe, folder: Path, *, stages_from: Path | None = None) -> Run:
    """Train the student of ``recipe`` in ``folder``, from where a stopped run of the same recipe left off.

    Args:
        recipe: the resolved recipe.
        folder: the run folder; made if it is not there.
        stages_from: see :func:`~weakly.engine.stages.take_stages`.

    Returns:
        The run; its ``student/`` folder is complete, and ``best/`` where there is a validation split.

    Raises:
        UserError: the data, the recipe or the folder cannot be used.
        KeyboardInterrupt: training was stopped; the last checkpoint is kept.
    """
    run = Run(folder)
    with claim(run, recipe):
        if not run.student.is_dir():
            _take(run, recipe, stages_from)
            train(recipe, run)
    return run


def fit_until(recipe: Recipe, folder: Path, stage: str, *, stages_from: Path | None = None) -> Run:
    """Do the stages of ``recipe`` up to one of them, on both splits, and stop before training.

    :func:`fit`, or this with a later stage, goes on from there.

    Args:
        recipe: the resolved recipe.
        folder: the run folder; made if it is not there.
        stage: one of the method's.
        stages_from: see :func:`~weakly.engine.stages.take_stages`.

    Raises:
        UserError: the method has no such stage, or the data, the recipe or the folder cannot be used.
    """
    method = find_method(recipe.method)
    if stage not in method.stages:
        known = f"its stages are {', '.join(method.stages)}" if method.stages else "its stages cannot be run one by one"
        raise UserError(f"The method {method.name} has no stage {stage!r}; {known}.")
    run = Run(folder)
    with claim(run, recipe):
        _take(run, recipe, stages_from)
        torch.manual_seed(recipe.optimisation.seed)
        _prepare(method, recipe, run, stage)
    return run


def _take(run: Run, recipe: Recipe, other: Path | None) -> None:
    if other is not None:
        console.print(f"Stages of {other}: {take_stages(run, recipe, other)} files")


def train(recipe: Recipe, run: Run) -> None:
    """Prepare, train and save; the folder is held by the caller."""
    method = find_method(recipe.method)
    torch.manual_seed(recipe.optimisation.seed)
    data = _prepare(method, recipe, run)
    torch.manual_seed(recipe.optimisation.seed)  # a resumed preparation draws fewer random numbers than a fresh one
    optimisation = recipe.optimisation
    steps = optimisation.epochs * math.ceil(data.train_size / optimisation.batch_size)
    learner = method.learner(recipe.settings, data.vocabulary, optimisation, steps)
    local_batch = _local_batch(optimisation.batch_size, recipe.devices)
    loader = learner.loader(data.train, batch_size=local_batch, shuffle=True, seed=optimisation.seed)
    validation = None
    if data.val is not None:
        validation = learner.loader(data.val, batch_size=local_batch, shuffle=False, seed=optimisation.seed)

    keeper = StudentKeeper(run, method, recipe)
    done = read_checkpoint(run.checkpoint)["global_step"] if run.checkpoint.is_file() else 0
    if done:
        console.print(f"Going on from step {done} of {steps}")
    trainer = build_trainer(recipe, run, keeper, done)
    started = time.monotonic()
    try:
        with one_sentence_errors(run.folder):
            trainer.fit(learner, loader, validation, ckpt_path=run.checkpoint if done else None)
    except SystemExit as stop:  # how Lightning leaves after Ctrl-C
        raise KeyboardInterrupt from stop
    if trainer.interrupted:
        raise KeyboardInterrupt
    if not trainer.is_global_zero:
        return
    seconds = float(run.info().get("seconds", 0.0)) + time.monotonic() - started
    run.update_info(seconds=round(seconds, 1), steps=trainer.global_step, best=keeper.summary())
    save_student(method, learner, run.student, model_card(recipe, run, epoch=optimisation.epochs))


def build_trainer(recipe: Recipe, run: Run, keeper: StudentKeeper, steps_done: int) -> Trainer:
    """Lightning, with our checkpoints, logs and progress bar in place of its own."""
    optimisation = recipe.optimisation
    device = workspace(run, recipe).device
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _BESIDE_THE_POINT:
        warnings.filterwarnings("ignore", message=message)
    return Trainer(
        accelerator=device.split(":")[0],
        devices=recipe.devices,
        strategy="ddp" if recipe.devices > 1 else "auto",
        precision=optimisation.precision,
        gradient_clip_val=optimisation.grad_clip,
        max_epochs=optimisation.epochs,
        callbacks=[keeper, TrainingBar(), LearningRateMonitor("step")],
        logger=[
            JsonLines(run.log, keep_until=steps_done),
            TensorBoardLogger(run.log.parent, name="", version="tensorboard"),
        ],
        plugins=[SafetensorsCheckpoints()],
        default_root_dir=run.folder,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class StudentKeeper(Checkpoint):
    """Checkpoints after every epoch and every few minutes, and the student of the best epoch.

    Randomness during a step (dropout) depends on the seed, the process and the step number alone, so no generator
    state has to be stored for a resumed run to end with the same bytes.
    """

    def __init__(self, run: Run, method: Method, recipe: Recipe) -> None:
        self.run, self.method, self.recipe = run, method, recipe
        self.best_value: float | None = None
        self.best_epoch: int | None = None
        self._saved = time.monotonic()

    def summary(self) -> dict[str, Any] | None:
        """Which epoch was best by which criterion; None without a validation split."""
        if self.best_epoch is None:
            return None
        return {"criterion": self.recipe.evaluation.criterion, "value": self.best_value, "epoch": self.best_epoch}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know about earlier epochs."""
        return {"best_value": self.best_value, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.best_value, self.best_epoch = state_dict["best_value"], state_dict["best_epoch"]

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Seed the step."""
        seed = self.recipe.optimisation.seed
        torch.manual_seed((seed * 1_000_003 + trainer.global_step) * 1_009 + trainer.global_rank)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """A checkpoint inside long epochs, where one process trains (several would have to agree on the time)."""
        due = time.monotonic() - self._saved >= 60 * self.recipe.checkpoint_minutes
        if due and trainer.world_size == 1 and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Best student first, checkpoint second: a kill in between repeats the epoch and writes the same best."""
        epoch = trainer.current_epoch + 1
        value = trainer.callback_metrics.get(self.recipe.evaluation.criterion)
        if value is not None and math.isfinite(float(value)):
            self._keep_best(trainer, pl_module, float(value), epoch)
        elif trainer.val_dataloaders is not None and value is None:
            raise UserError(
                f"evaluation.criterion is {self.recipe.evaluation.criterion!r}, which {self.recipe.method} does not "
                f"log; it logs {', '.join(sorted(trainer.callback_metrics))}."
            )
        self._save(trainer)

    def _keep_best(self, trainer: Trainer, pl_module: LightningModule, value: float, epoch: int) -> None:
        if self.best_value is not None and value >= self.best_value:
            return
        self.best_value, self.best_epoch = value, epoch
        if trainer.is_global_zero:
            card = model_card(self.recipe, self.run, epoch=epoch)
            save_student(self.method, pl_module, self.run.best, card)

    def _save(self, trainer: Trainer) -> None:
        trainer.save_checkpoint(self.run.checkpoint, weights_only=False)  # False: with optimiser and loop
        self._saved = time.monotonic()


@dataclass(frozen=True)
class _Prepared:
    """Training data of both splits, all frozen work done."""

    train: Any
    val: Any
    train_size: int
    vocabulary: Any


def _prepare(method: Method, recipe: Recipe, run: Run, until: str | None = None) -> _Prepared:
    """Open both splits, check that they fit together, and compute everything frozen once.

    With ``until``, no further than that stage; there are then no data.
    """
    space = replace(workspace(run, recipe), until=until)
    train_set = open_split(recipe.data, recipe.data.train)
    val_set = None if recipe.data.val is None else open_split(recipe.data, recipe.data.val)
    if len(train_set) == 0:
        raise UserError(
            f"{recipe.data.root} has no usable image in split {recipe.data.train!r}; run `weakly data check`."
        )
    if val_set is not None and val_set.vocabulary.names != train_set.vocabulary.names:
        raise UserError(
            f"The splits {train_set.split!r} and {val_set.split!r} of {recipe.data.root} name different categories; "
            "give both the same list."
        )
    run.update_info(
        method=recipe.method,
        command=fit_command(run),
        versions=versions(),
        machine=machine(),
        vocabulary=train_set.vocabulary.to_dict(),
        data=_describe(train_set, val_set),
    )
    train = _prepared(method, recipe.settings, train_set, space)
    seen_only = method.unaugmented(recipe.settings)
    val = None if val_set is None else _prepared(method, seen_only, val_set, space)
    if until is not None:
        return _Prepared(train, val, len(train_set), train_set.vocabulary)
    run.record_skipped("train", [one for data in (train, val) for one in getattr(data, "skipped", ())])
    size = len(train) if isinstance(train, Sized) else len(train_set)
    return _Prepared(train, val, size, train_set.vocabulary)


def _prepared(method: Method, settings: Any, dataset: Dataset, space: Workspace) -> Any:
    try:
        return method.prepare(settings, dataset, space)
    except StageDone:
        return None


def _describe(train_set: Dataset, val_set: Dataset | None) -> dict[str, Any]:
    present = [dataset for dataset in (train_set, val_set) if dataset is not None]
    return {
        "name": train_set.name,
        "splits": {dataset.split: {"images": len(dataset), "problems": len(dataset.problems)} for dataset in present},
    }


def _local_batch(batch_size: int, devices: int) -> int:
    if batch_size % devices:
        raise UserError(
            f"optimisation.batch_size is {batch_size}, no multiple of devices={devices}; change one of them."
        )
    return batch_size // devices


def save_student(method: Method, learner: LightningModule, folder: Path, card: dict[str, Any]) -> None:
    """Let the method write its student to a fresh folder, then put that in the place of ``folder``."""
    if not isinstance(learner, Learner):
        raise WeaklyError(f"{type(learner).__name__} is no Learner.")
    write_folder(folder, lambda fresh: method.save(learner, fresh, card))


def model_card(recipe: Recipe, run: Run, *, epoch: int) -> dict[str, Any]:
    """What a model card states about where a student comes from; nothing in it depends on the time of day."""
    info = run.info()
    return {
        "method": recipe.method,
        "preset": recipe.preset,
        "epoch": epoch,
        "version": package_version(),
        "data": info.get("data", {}),
        "command": info.get("command", ""),
        "recipe": to_plain(recipe),
    }
