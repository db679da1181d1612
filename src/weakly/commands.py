"""What every command does: a typed function each, whose docstring is its help; they return exit codes.

Heavy modules are imported by the commands that need them, so that ``weakly --help`` answers at once.
"""

# ruff: noqa: PLC0415, T201 - see above; and printing is what commands are for

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

DONE, FAILED, WRONG_USE, DONE_WITH_SKIPS, INTERRUPTED = 0, 1, 2, 3, 130


def demo(out: Path | None = None, method: str = "wps") -> int:
    """Draw a small world, learn from its labels, and show the result.

    Args:
        out: folder of the world, its features, the runs, metrics.json and report.html; default: runs/demo, for other
            methods than wps with -METHOD behind it.
        method: wps (parts from boxes and from points), fma (semantic masks from tags), weaksam (boxes from tags) or
            partclip (parts of things never trained on, by name).
    """
    from weakly.engine.demo import demo as demonstrate
    from weakly.report import build_demo_report, build_run_report

    words = [*(("--method", method) if method != "wps" else ()), *(("--out", out) if out is not None else ())]
    out = out or Path("runs/demo" if method == "wps" else f"runs/demo-{method}")
    found = demonstrate(out, method, command=_command("demo", *words))
    for run in found.runs:
        build_run_report(run)
    _print_records(found.records)
    print(f"Report: {build_demo_report(out, found.runs)}")
    return DONE


def fit(
    recipe: Path,
    out: Path | None = None,
    preset: str | None = None,
    device: str | None = None,
    until: str | None = None,
    stages_from: Path | None = None,
    overrides: list[str] | None = None,
) -> int:
    """Train the recipe's student, score it, and write the report. Run it again to go on after a stop.

    Any key of the recipe is an option: --optimisation.epochs 3, --data.root worlds/mine.

    Args:
        recipe: a recipe file.
        out: the run folder; default: runs/ and the recipe's name.
        preset: the method's named defaults below the recipe, e.g. official; default: the recipe's.
        device: auto, cpu, cuda, mps; default: the recipe's.
        until: stop after this stage of the method, e.g. proposals of weaksam; without it, the same command goes on.
        stages_from: a run on the same data; what it learned before its student is taken over where this recipe agrees
            (weaksam, fma).
        overrides: filled from the dotted options.
    """
    from weakly.engine.evaluate import can_score
    from weakly.engine.evaluate import evaluate as score
    from weakly.engine.fit import fit as train
    from weakly.engine.fit import fit_until
    from weakly.engine.recipe import load_recipe
    from weakly.engine.runs import main_process
    from weakly.report import build_run_report

    changes = [(key, value) for key, value in (("preset", preset), ("device", device)) if value is not None]
    changes += _pairs(overrides)
    loaded = load_recipe(recipe, changes)
    out = out or Path("runs") / recipe.stem
    options = [word for key, value in changes for word in (f"--{key}", value)]
    options += [] if stages_from is None else ["--stages_from", str(stages_from)]
    command = _command("fit", recipe, "--out", out, *options)
    if until is not None:
        fit_until(loaded, out, until, stages_from=stages_from)
        print(f"{out}: done up to {until}; the same command without --until goes on")
        return DONE
    run = train(loaded, out, stages_from=stages_from)
    if not main_process():
        return DONE  # the first process scores and reports
    split = loaded.evaluated_split()
    if can_score(loaded, split):
        _print_records(score(run.folder, command=command).records)
    else:
        print(f"{run.student} is trained; split {split!r} has no truth to score it against")
    print(f"Report: {build_run_report(run.folder)}")
    return _report_skipped(run)


def evaluate(
    run: Path,
    split: str | None = None,
    student: Literal["last", "best"] | None = None,
    results: Path | None = None,
    name: str | None = None,
    overrides: list[str] | None = None,
) -> int:
    """Score a run under every protocol, beside its upper bounds, and write the report.

    Keys of the recipe that say where data are and how it is scored are options (--data.root elsewhere), and so are
    settings that prediction alone reads (--settings.score_threshold 0.5); these get a row of their own.

    Args:
        run: the run folder.
        split: default: the recipe's validation split.
        student: last or best; default: as the recipe says.
        results: score this COCO results file of any other program instead.
        name: what to call that program; default: the file's name.
        overrides: filled from the dotted options.
    """
    from weakly.engine.evaluate import evaluate as score
    from weakly.report import build_run_report

    changes = _pairs(overrides)
    words = [("--split", split), ("--student", student), ("--results", results), ("--name", name)]
    options = [str(word) for pair in words if pair[1] is not None for word in pair]
    options += [word for key, value in changes for word in (f"--{key}", value)]
    found = score(
        run,
        split=split,
        overrides=changes,
        results=results,
        name=name,
        student=student,
        command=_command("evaluate", run, *options),
    )
    _print_records(found.records)
    print(f"Report: {build_run_report(run)}")
    print_skipped(found.skipped)
    return DONE_WITH_SKIPS if found.skipped else DONE


def reproduce(
    method: str,
    data: str | None = None,
    recipe: Path | None = None,
    budget: Literal["small", "full"] = "small",
    out: Path | None = None,
    tables: str | None = None,
    seeds: int = 1,
    hours: float | None = None,
    known: Path | None = None,
    device: str | None = None,
    overrides: list[str] | None = None,
) -> int:
    """Measure the tables of a method's paper on your data, ours beside theirs. Run it again to go on after a stop.

    Any key of the recipe is an option: --data.root VOC2012, --settings.clip openai/clip-vit-base-patch16; any key of a
    baseline's recipe has its name before it: --det_sam.optimisation.epochs 20.

    Args:
        method: its name, e.g. fma.
        data: one of the method's recipes by name, e.g. menagerie, or a folder in COCO's layout; default: menagerie.
        recipe: a recipe of that method instead: the data, models and settings that the tables depart from.
        budget: small lowers the numbers of images, epochs and updates; full is the recipe as it is.
        out: folder of the tables and of a run per figure; default: runs/reproduce-, method and name of the data.
        tables: numbers of tables, e.g. 1,4; default: all.
        seeds: runs per figure; from two on, tables state the spread.
        hours: begin no further run after so many; the same command goes on.
        known: metrics.json of another folder with the same recipe and budget; only what it lacks is measured.
        device: auto, cpu, cuda, mps; default: the recipe's.
        overrides: filled from the dotted options.
    """
    from weakly.engine.bundled import Chosen, recipe_for
    from weakly.engine.reproduce import reproduce as measure
    from weakly.errors import UserError
    from weakly.evaluation.records import read_records
    from weakly.report import build_cell_reports, reproduction_text, write_reproduction

    if data is not None and recipe is not None:
        raise UserError("--data and --recipe both say what to reproduce on; give one of them.")
    chosen = Chosen(recipe.stem, recipe) if recipe is not None else recipe_for(method, data or "menagerie")
    changes = [("device", device)] if device is not None else []
    changes += _pairs(overrides)
    out = out or Path("runs") / f"reproduce-{method}-{chosen.name}"
    where = ("--data", data or "menagerie") if recipe is None else ("--recipe", recipe)
    words: list[tuple[str, object]] = [where, ("--budget", budget), ("--out", out)]
    words += [("--tables", tables)] if tables else []
    words += [
        ("--seeds", seeds),
        *((("--known", known),) if known else ()),
        *((f"--{key}", value) for key, value in changes),
    ]
    found = measure(
        method,
        chosen.path,
        out,
        overrides=(*chosen.overrides, *changes),
        budget=budget,
        tables=None if tables is None else tuple(word.strip() for word in tables.split(",")),
        repetitions=seeds,
        hours=hours,
        known=() if known is None else read_records(known),
        command=_command("reproduce", method, *(word for pair in words for word in pair)),
        tell=write_reproduction,
    )
    build_cell_reports(found)
    print(reproduction_text(found))
    print(f"Tables: {write_reproduction(found)}")
    for place, reason in found.missing.items():
        print(f"not measured: {place}: {reason}", file=sys.stderr)
    return DONE_WITH_SKIPS if found.missing else DONE


def predict(
    run: Path,
    images: list[Path],
    out: Path,
    names: str | None = None,
    student: Literal["last", "best"] | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    max_pixels: int = 100_000_000,
    overrides: list[str] | None = None,
) -> int:
    """Segment images: COCO JSON with RLE masks, palette PNG label maps, overlays. Run it again to go on after a stop.

    Settings that prediction alone reads are options: --settings.score_threshold 0.5 (wps), --settings.inference.flip
    true (weaksam), --settings.background_above 0.5 (partclip).

    Args:
        run: the run folder, or a student folder.
        images: image files and folders.
        out: folder of the results.
        names: objects and parts to look for, e.g. "dog: head, torso; cat: tail", where the method takes any (partclip);
            default: the names the student was trained on.
        student: last or best; default: as the recipe says.
        device: auto, cpu, cuda, mps; default: the recipe's.
        batch_size: images per batch; default: the recipe's.
        overwrite: replace earlier results in the folder.
        max_pixels: leave out larger images; raise it for large ones you trust.
        overrides: filled from the dotted options.
    """
    from weakly.engine.predict import predict as segment

    found = segment(
        run,
        images,
        out,
        names=names,
        student=student,
        device=device,
        batch_size=batch_size,
        overwrite=overwrite,
        max_pixels=max_pixels,
        overrides=_pairs(overrides),
    )
    earlier = f", {found.earlier} done earlier" if found.earlier else ""
    print(f"{found.out}: {found.done} images segmented{earlier}, {len(found.skipped)} skipped")
    print_skipped(found.skipped)
    return DONE_WITH_SKIPS if found.skipped else DONE


def report(run: Path) -> int:
    """Write a run's report.html again from what the run holds.

    Args:
        run: the run folder.
    """
    from weakly.report import build_run_report

    print(f"Report: {build_run_report(run)}")
    return DONE


def doctor(folder: Path = Path()) -> int:
    """Check that this installation can work: versions, devices, weights, disk, permissions, network.

    Args:
        folder: where runs and features would go.
    """
    from weakly.engine.doctor import examine

    findings = examine(folder)
    for finding in findings:
        print(f"{'ok  ' if finding.ok else 'FAIL'}  {finding.name}: {finding.message}")
    return DONE if all(finding.ok for finding in findings) else FAILED


def _pairs(overrides: Sequence[str] | None) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (text.partition("=") for text in overrides or ())]


def _command(*words: object) -> str:
    return shlex.join(["weakly", *(str(word) for word in words)])


def _print_records(records: Sequence[Any]) -> None:
    from weakly.evaluation.table import render_protocols

    print(render_protocols(records))


def print_skipped(skipped: Sequence[Any]) -> None:
    """Name, on standard error, what was left out and why: anything with ``path`` and ``reason``."""
    for one in skipped:
        print(f"skipped {one.path}: {one.reason}", file=sys.stderr)


def _report_skipped(run: Any) -> int:
    """Name what a run skipped in any of its steps."""
    rows = run.skipped()
    for row in rows:
        print(f"skipped {row['file']}: {row['reason']}", file=sys.stderr)
    return DONE_WITH_SKIPS if rows else DONE
