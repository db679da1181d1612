"""The folder of a run: what lies where, who may write, and how it can be repeated.

========================  ==========================================================================
``recipe.yaml``           the resolved recipe
``run.json``              versions, machine, data, vocabulary, progress and the command that repeats it
``checkpoint.safetensors``  student, optimiser, schedule and position: where a stopped run goes on
``student/``, ``best/``   the student after the last epoch, and of the epoch with the best criterion
``logs/log.jsonl, .csv``  one row per logged step; ``logs/tensorboard/`` the same for TensorBoard
``metrics.json``          records: every score with its protocol, split, images and resolution
``predictions-*.json``    COCO results; ``images-*.json``: scores per image
``skipped.json``          images that could not be read
``report.html``           everything on one page
========================  ==========================================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import json
import os
import platform
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import weakly
from weakly.engine.logs import console, show_progress
from weakly.engine.recipe import Recipe, differences, load_recipe
from weakly.engine.typed import to_plain
from weakly.errors import UserError, WeaklyError
from weakly.files import one_sentence_errors, remove_leftovers, write_atomic, write_json
from weakly.methods.base import Skipped, Workspace


class FolderInUseError(UserError):
    """Another process is working on a folder."""


@dataclass(frozen=True)
class Run:
    """Paths inside one run folder."""

    folder: Path

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @property
    def info_file(self) -> Path:
        """Versions, machine, data, progress."""
        return self.folder / "run.json"

    @property
    def checkpoint(self) -> Path:
        """Where a stopped run goes on."""
        return self.folder / "checkpoint.safetensors"

    @property
    def student(self) -> Path:
        """The student after the last epoch; there once training has ended."""
        return self.folder / "student"

    @property
    def best(self) -> Path:
        """The student of the epoch with the best criterion."""
        return self.folder / "best"

    @property
    def log(self) -> Path:
        """One JSON row per logged step."""
        return self.folder / "logs" / "log.jsonl"

    @property
    def metrics(self) -> Path:
        """Records."""
        return self.folder / "metrics.json"

    def predictions(self, name: str) -> Path:
        """COCO results of one evaluation, e.g. ``name="val"`` or ``"val-oracle-box"``."""
        return self.folder / f"predictions-{name}.json"

    def image_scores(self, name: str) -> Path:
        """Scores per image of the same evaluation."""
        return self.folder / f"images-{name}.json"

    def recipe(self) -> Recipe:
        """The resolved recipe.

        Raises:
            UserError: this is no run folder.
        """
        if not self.recipe_file.is_file():
            raise UserError(f"{self.folder} is no run: it holds no recipe.yaml; give a folder that `weakly fit` wrote.")
        return load_recipe(self.recipe_file)

    def info(self) -> dict[str, Any]:
        """What ``run.json`` holds; empty before the run has started."""
        if not self.info_file.is_file():
            return {}
        loaded: dict[str, Any] = json.loads(self.info_file.read_text(encoding="utf-8"))
        return loaded

    def update_info(self, **values: Any) -> None:
        """Put keys into ``run.json``, keeping the others; the first process alone writes."""
        if main_process():
            write_json(self.info_file, {**self.info(), **values})

    def skipped(self) -> list[dict[str, str]]:
        """Images that a step of the run could not read: ``{"file", "reason", "step"}``."""
        path = self.folder / "skipped.json"
        rows: list[dict[str, str]] = read_json(path) if path.is_file() else []
        return rows

    def record_skipped(self, step: str, skipped: Iterable[Skipped]) -> None:
        """Replace the rows of one step, e.g. ``"train"``; the first process alone writes."""
        if not main_process():
            return
        others = [row for row in self.skipped() if row["step"] != step]
        rows = [{"file": str(one.path), "reason": one.reason, "step": step} for one in skipped]
        write_json(self.folder / "skipped.json", [*others, *rows])

    def chosen_student(self, which: str) -> Path:
        """The folder of the ``last`` or ``best`` student.

        Raises:
            UserError: training has not got that far.
        """
        folder = self.student if which == "last" else self.best
        if not folder.is_dir():
            raise UserError(
                f"{self.folder} holds no {which} student yet ({folder.name}/ is missing); run "
                f"`weakly fit {self.recipe_file} --out {self.folder}` to finish its training."
            )
        return folder


def main_process() -> bool:
    """False in the further processes that DDP starts on this or other machines."""
    return all(os.environ.get(name, "0") in ("", "0") for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK"))


@contextlib.contextmanager
def claim(run: Run, recipe: Recipe) -> Iterator[None]:
    """Hold a run folder for one command, for one recipe; the further processes of DDP belong to the first.

    Raises:
        FolderInUseError: another process works on it.
        UserError: it was made with another recipe, or it is a folder of other things.
    """
    if not main_process():
        yield
        return
    with lock(run.folder):
        remove_leftovers(run.folder)
        if run.recipe_file.is_file():
            stored = yaml.safe_load(run.recipe_file.read_text(encoding="utf-8"))
            changed = differences(stored, to_plain(recipe))
            if changed:
                raise UserError(
                    f"{run.folder} was made with another recipe: {'; '.join(changed)}; choose another folder with "
                    "--out, or remove this one."
                )
        else:
            others = sorted(path.name for path in run.folder.iterdir() if path.name != ".lock")
            if others:
                raise UserError(
                    f"{run.folder} is not empty and is no run (it holds {others[0]}); choose another folder with --out."
                )
            write_atomic(run.recipe_file, recipe.to_yaml())
        yield


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """One process per folder; the lock ends with the process, however that ends.

    Raises:
        FolderInUseError: another process works on it.
    """
    with one_sentence_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / ".lock").open("a+")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderInUseError(
                f"Another process is working on {folder}; wait until it has ended or choose another folder with --out."
            ) from error
        yield


def open_run(folder: Path) -> Run:
    """A run folder that exists."""
    run = Run(Path(folder))
    run.recipe()
    return run


def workspace(run: Run, recipe: Recipe) -> Workspace:
    """Where this run keeps features, and the device its frozen models use."""
    return Workspace(
        run=run.folder,
        features=Path(recipe.features.root),
        device=resolve_device(recipe.device),
        feature_dtype=recipe.features.dtype,
        feature_budget=int(recipe.features.budget_gb * (1 << 30)),
        progress=show_progress,
        note=console.print,
    )


def resolve_device(name: str) -> str:
    """``auto`` to the best device there is; others are checked.

    Raises:
        UserError: the device is not there.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = name.split(":", maxsplit=1)[0]
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in present:
        raise UserError(f"Unknown device {name!r}; use auto, cpu, cuda or mps.")
    if not present[kind]:
        raise UserError(f"This machine has no {kind} device that torch can use; use `--device cpu` or `--device auto`.")
    return name


def fit_command(run: Run) -> str:
    """The command that repeats this run from its own recipe."""
    again = run.folder.with_name(run.folder.name + "-again")
    return f"weakly fit {shlex.quote(str(run.recipe_file))} --out {shlex.quote(str(again))}"


def versions() -> dict[str, str]:
    """Of everything that decides the numbers."""
    found = {"python": platform.python_version()}
    for package in ("weakly", "torch", "torchvision", "lightning", "transformers", "numpy", "safetensors"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def package_version() -> str:
    """Version of this package."""
    return weakly.__version__


def machine() -> dict[str, Any]:
    """What the run was computed on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"system": platform.platform(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def read_json(path: Path) -> Any:
    """JSON of one of the run's own files.

    Raises:
        WeaklyError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeaklyError(f"{path} cannot be read ({error}); run the command that writes it again.") from error
