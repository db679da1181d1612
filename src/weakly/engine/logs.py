"""The training log: one JSON line per logged step, the same as CSV, and a progress bar that says how long it takes."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only as _lightning_rank_zero_only
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from weakly.files import one_sentence_errors, write_atomic

console = Console(stderr=True)

P = ParamSpec("P")


def _first_process(method: Callable[P, None]) -> Callable[P, None]:
    """The method in the first process; nothing in the others."""
    wrapped: Callable[P, None] = _lightning_rank_zero_only(method)
    return wrapped


class JsonLines(Logger):
    """Rows ``{"step", "epoch", "seconds", "train/loss", ...}``; ``log.csv`` beside it is written at every save.

    Args:
        path: the ``.jsonl`` file. Rows after ``keep_until`` (steps of a killed run that are about to be repeated) go.
        keep_until: number of training steps already done.
    """

    def __init__(self, path: Path, keep_until: int = 0) -> None:
        super().__init__()
        self.path = path
        self._start = time.monotonic()
        rows = [row for row in read_rows(path) if row.get("step", 0) <= keep_until]
        self._before = max((float(row.get("seconds", 0.0)) for row in rows), default=0.0)
        self._keep(rows)

    @_first_process
    def _keep(self, rows: list[dict[str, Any]]) -> None:
        if self.path.is_file():
            write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    @property
    def name(self) -> str:
        """What Lightning calls this log."""
        return "jsonl"

    @property
    def version(self) -> str:
        """One log per run: no versions."""
        return ""

    @_first_process
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the recipe lies beside the log."""

    @_first_process
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append one row; values that are no numbers (a diverged loss) become null."""
        row: dict[str, Any] = {"step": step, "seconds": round(self._before + time.monotonic() - self._start, 3)}
        for key, value in metrics.items():
            number = float(value)
            row[key] = number if math.isfinite(number) else None
        with one_sentence_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    @_first_process
    def save(self) -> None:
        """Bring ``log.csv`` up to date."""
        rows = list(read_rows(self.path))
        if rows:
            write_atomic(self.path.with_suffix(".csv"), to_csv(rows))

    @_first_process
    def finalize(self, status: str) -> None:
        """Bring ``log.csv`` up to date."""
        del status
        self.save()


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a log of JSON lines; a line cut off by a kill is left out."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows with different keys as one table; missing values are empty."""
    rows = list(rows)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


class TrainingBar(Callback):
    """One bar over the whole training with the time that is left, and the latest losses beside it."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._task = TaskID(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step a resumed run starts from."""
        del pl_module
        if not trainer.is_global_zero:
            return
        total = int(trainer.num_training_batches) * int(trainer.max_epochs or 1)
        self._bar = progress_bar()
        self._bar.start()
        self._task = self._bar.add_task("training", total=total, completed=trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """One step further."""
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Name the epoch and its losses."""
        del pl_module
        if self._bar is None:
            return
        latest = trainer.callback_metrics
        losses = [f"{key} {float(latest[key]):.3f}" for key in ("train/loss", "val/loss") if key in latest]
        text = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(losses)}"
        self._bar.update(self._task, description=text)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the terminal back, also after an error."""
        del trainer, pl_module, stage
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def progress_bar() -> Progress:
    """A bar on standard error: done, total, elapsed and remaining time."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=not console.is_terminal,
    )


@contextmanager
def ticking(description: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar around a loop; call what it yields once per item."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total)
        yield lambda: bar.advance(task)


_bars: dict[str, tuple[Progress, TaskID]] = {}


def show_progress(title: str, done: int, total: int) -> None:
    """Progress of a long computation that reports ``(title, done, total)``; its bar closes when done equals total."""
    if title not in _bars:
        if done >= total:
            return  # all of it was stored before: nothing to show
        bar = progress_bar()
        bar.start()
        _bars[title] = (bar, bar.add_task(title, total=total))
    bar, task = _bars[title]
    bar.update(task, completed=done, total=total)
    if done >= total:
        bar.stop()
        del _bars[title]
