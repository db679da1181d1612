"""A run that is stopped at any moment goes on and ends with the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from weakly.engine import fit as fitting
from weakly.engine.fit import fit
from weakly.engine.logs import TrainingBar, read_rows
from weakly.engine.recipe import Recipe, load_recipe
from weakly.engine.runs import Run
from weakly.errors import UserError, WeaklyError

STEPS_PER_EPOCH = 3  # 10 images in batches of 4


def student_bytes(run: Run) -> dict[str, bytes]:
    """Every file of both students."""
    return {
        str(path.relative_to(run.folder)): path.read_bytes()
        for folder in (run.student, run.best)
        for path in sorted(folder.iterdir())
    }


def stop_after(steps: int, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let training end with ``error`` once ``steps`` steps are done."""

    def check(self: Any, trainer: Any, *_: Any, **__: Any) -> None:
        if trainer.global_step >= steps:
            raise error

    monkeypatch.setattr(TrainingBar, "on_train_batch_end", check)


@pytest.fixture
def reference(recipe_file: Path, work: Path) -> dict[str, bytes]:
    """The students of a run that nobody stopped."""
    return student_bytes(fit(load_recipe(recipe_file), work / "whole"))


@pytest.mark.parametrize("minutes", [60.0, 0.0], ids=["checkpoint per epoch", "checkpoint per step"])
@pytest.mark.parametrize("steps", [1, STEPS_PER_EPOCH, STEPS_PER_EPOCH + 1, 2 * STEPS_PER_EPOCH + 2])
def test_interrupted_run_ends_with_the_same_bytes(
    recipe_file: Path,
    work: Path,
    reference: dict[str, bytes],
    steps: int,
    minutes: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load_recipe(recipe_file, [("checkpoint_minutes", str(minutes))])
    with monkeypatch.context() as patch:
        stop_after(steps, RuntimeError, patch)
        with pytest.raises(RuntimeError):
            fit(recipe, work / "stopped")
    assert not (work / "stopped" / "student").exists()
    run = fit(recipe, work / "stopped")
    assert {k: v for k, v in student_bytes(run).items() if k.endswith("safetensors")} == {
        k: v for k, v in reference.items() if k.endswith("safetensors")
    }


def test_resume_repeats_only_what_came_after_the_checkpoint(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file)
    with monkeypatch.context() as patch:
        stop_after(2 * STEPS_PER_EPOCH, RuntimeError, patch)
        with pytest.raises(RuntimeError):
            fit(recipe, work / "run")
    seen = []
    start = fitting.StudentKeeper.on_train_batch_start
    monkeypatch.setattr(
        fitting.StudentKeeper,
        "on_train_batch_start",
        lambda self, trainer, *rest: (seen.append(trainer.global_step), start(self, trainer, *rest)),
    )
    run = fit(recipe, work / "run")
    assert seen == list(range(STEPS_PER_EPOCH, 3 * STEPS_PER_EPOCH)), "the second epoch was never checkpointed"
    steps = [row["step"] for row in read_rows(run.log) if "val/loss" in row]
    assert len(steps) == len(set(steps)) == 3, "one validation row per epoch, none twice"
    assert (run.log.with_suffix(".csv")).read_text().count("\n") == len(list(read_rows(run.log))) + 1


def test_ctrl_c_is_a_keyboard_interrupt_and_keeps_the_checkpoint(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stop_after(STEPS_PER_EPOCH + 1, KeyboardInterrupt, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        fit(load_recipe(recipe_file), work / "run")
    signal.signal(signal.SIGINT, before)
    assert (work / "run" / "checkpoint.safetensors").is_file()


def test_killed_three_times_at_random_moments(recipe_file: Path, work: Path) -> None:
    recipe = load_recipe(recipe_file, [("optimisation.epochs", "12"), ("checkpoint_minutes", "0")])
    started = time.monotonic()
    whole = fit(recipe, work / "whole")
    usual = time.monotonic() - started
    moments = random.Random(5)
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        process = context.Process(target=_fit_quietly, args=(recipe, work / "killed"))
        process.start()
        time.sleep(moments.uniform(0.1, 0.8) * usual)
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
    killed = fit(recipe, work / "killed")
    same = {name: data for name, data in student_bytes(killed).items() if name.endswith("safetensors")}
    assert same == {name: data for name, data in student_bytes(whole).items() if name.endswith("safetensors")}
    assert not list(killed.folder.glob(".*.tmp")), "leftovers of the killed processes are gone"


def _fit_quietly(recipe: Recipe, folder: Path) -> None:
    fit(recipe, folder)


def test_finished_run_is_not_trained_again(recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(recipe_file)
    run = fit(recipe, work / "run")
    monkeypatch.setattr(fitting, "train", lambda *_: pytest.fail("trained again"))
    assert fit(recipe, work / "run") == run


def test_another_recipe_in_the_same_folder_is_refused_and_named(recipe_file: Path, work: Path) -> None:
    fit(load_recipe(recipe_file), work / "run")
    with pytest.raises(UserError, match=r"optimisation\.epochs \(3 -> 4\).*--out"):
        fit(load_recipe(recipe_file, [("optimisation.epochs", "4")]), work / "run")


def test_folder_of_other_things_is_refused(recipe_file: Path, work: Path) -> None:
    (work / "holiday").mkdir()
    (work / "holiday" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UserError, match=r"holiday is not empty.*photo\.jpg"):
        fit(load_recipe(recipe_file), work / "holiday")
    assert [path.name for path in (work / "holiday").iterdir() if path.name != ".lock"] == ["photo.jpg"]


def test_two_processes_cannot_share_a_run(recipe_file: Path, work: Path) -> None:
    from weakly.engine.runs import lock

    with lock(work / "run"), pytest.raises(UserError, match=r"Another process is working on .*run"):
        fit(load_recipe(recipe_file), work / "run")


def test_best_student_names_its_criterion(recipe_file: Path, work: Path) -> None:
    run = fit(load_recipe(recipe_file), work / "run")
    best = run.info()["best"]
    losses = {row["epoch"]: row["val/loss"] for row in read_rows(run.log) if "val/loss" in row}
    assert best["criterion"] == "val/loss"
    assert best["value"] == pytest.approx(min(losses.values()))
    assert best["epoch"] == min(losses, key=lambda epoch: losses[epoch]) + 1


def test_criterion_nobody_logs_is_named_with_those_there_are(recipe_file: Path, work: Path) -> None:
    with pytest.raises(UserError, match=r"'val/miou'.*val/loss"):
        fit(load_recipe(recipe_file, [("evaluation.criterion", "val/miou")]), work / "run")


def test_damaged_checkpoint_is_one_sentence(recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_after(STEPS_PER_EPOCH + 1, RuntimeError, patch)
        with pytest.raises(RuntimeError):
            fit(load_recipe(recipe_file), work / "run")
    (work / "run" / "checkpoint.safetensors").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"checkpoint\.safetensors cannot be read.*remove it"):
        fit(load_recipe(recipe_file), work / "run")


def test_no_pickle_is_written(recipe_file: Path, work: Path) -> None:
    run = fit(load_recipe(recipe_file), work / "run")
    written = [path for path in run.folder.rglob("*") if path.is_file()]
    assert run.checkpoint in written
    assert not [path for path in written if path.suffix in (".ckpt", ".pt", ".pth", ".pkl", ".bin")]
    assert not [path for path in written if path.read_bytes()[:2] in (b"PK", b"\x80\x04", b"\x80\x02")]


def test_batch_that_does_not_split_over_devices_is_refused(recipe_file: Path, work: Path) -> None:
    with pytest.raises(UserError, match=r"batch_size is 4, no multiple of devices=3"):
        fit(load_recipe(recipe_file, [("devices", "3")]), work / "run")


def test_full_disk_leaves_no_half_file(recipe_file: Path, work: Path) -> None:
    """A real limit on file sizes stands in for the full disk: the checkpoint no longer fits."""
    recipe = load_recipe(recipe_file, [("settings.hidden", "4000")])
    context = multiprocessing.get_context("fork")
    queue: Any = context.Queue()
    process = context.Process(target=_fit_with_little_room, args=(recipe, work / "run", queue))
    process.start()
    message = queue.get(timeout=60)
    process.join()
    assert "There is no room left to write" in message and "checkpoint.safetensors" in message
    left = [path.name for path in (work / "run").iterdir()]
    assert "checkpoint.safetensors" not in left and not [name for name in left if name.endswith(".tmp")]


def _fit_with_little_room(recipe: Recipe, folder: Path, queue: Any) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    fitting.save_student = lambda *_: None  # only the checkpoint meets the limit
    try:
        fit(recipe, folder)
        queue.put("nothing happened")
    except WeaklyError as error:
        queue.put(str(error))
