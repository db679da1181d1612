"""From run folders to pages: one run, or several side by side.

Everything on the page is read from what the run wrote (recipe, log, records, predictions, scores per image) and from
the images themselves; nothing is predicted or scored here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from weakly.data.dataset import Dataset
from weakly.engine.evaluate import WITH, changed_label, reference_label
from weakly.engine.panels import read_panels
from weakly.engine.recipe import Recipe
from weakly.engine.runs import Run
from weakly.engine.splits import open_split, without_render
from weakly.errors import UserError
from weakly.evaluation.records import read_records
from weakly.methods.base import find_method
from weakly.report.charts import Curve
from weakly.report.curves import read_curves
from weakly.report.gallery import Case, Column, ImageId, by_image, choose_cases, gallery_rows
from weakly.report.page import GalleryRow, ProblemLine, Repeat, ReportPage, write_report
from weakly.report.scores import (
    ScoreRecord,
    is_result,
    is_upper_bound,
    last_measured,
    record_name,
    same_images,
    upper_bound_of,
)
from weakly.vocabulary import Vocabulary


@dataclass(frozen=True)
class _Loaded:
    """What a run folder holds, small files only.

    Attributes:
        run: its paths.
        recipe: None before the run has started.
        info: ``run.json``.
        records: of ``metrics.json``; empty before the first evaluation.
    """

    run: Run
    recipe: Recipe | None
    info: Mapping[str, Any]
    records: tuple[ScoreRecord, ...]

    @property
    def name(self) -> str:
        return self.run.folder.resolve().name


def build_run_report(folder: Path) -> Path:
    """Write ``report.html`` into a run folder, from whatever the run has got so far.

    Raises:
        UserError: there is no such folder, or its recipe or records are damaged.
    """
    loaded = _load(folder)
    page = _page(loaded.name, _sentence(loaded), [loaded])
    return write_report(page, folder / "report.html")


def build_demo_report(root: Path, runs: Sequence[Path], title: str = "weakly demo") -> Path:
    """Write ``report.html`` into ``root``: several runs on one page, their masks side by side.

    Args:
        root: folder of the page.
        runs: run folders, in the order of the columns; the first one ranks the gallery.
        title: heading of the page.

    Raises:
        UserError: no run is given, a folder is missing, or its recipe or records are damaged.
    """
    if not runs:
        raise UserError("A comparison needs at least one run; give the folders that `weakly fit` wrote.")
    loaded = [_load(folder) for folder in runs]
    sentence = "Side by side: " + "; ".join(f"{each.name}: {_sentence(each)}" for each in loaded)
    return write_report(_page(title, sentence, loaded), root / "report.html")


def _load(folder: Path) -> _Loaded:
    if not folder.is_dir():
        raise UserError(f"There is no run folder {folder}; give a folder that `weakly fit` wrote.")
    run = Run(folder)
    return _Loaded(
        run=run,
        recipe=run.recipe() if run.recipe_file.is_file() else None,
        info=run.info(),
        records=tuple(r.to_dict() for r in read_records(run.metrics)) if run.metrics.is_file() else (),
    )


def _page(title: str, subtitle: str, loaded: Sequence[_Loaded]) -> ReportPage:
    datasets, problems = _open_data(loaded)
    records = _merged_records(loaded)
    return ReportPage(
        title=title,
        subtitle=subtitle,
        facts=_facts(loaded, records),
        records=records,
        curves=_curves(loaded),
        gallery=_gallery(loaded, datasets),
        stages=_stages(loaded, datasets),
        problems=[*_skipped(loaded), *problems],
        repeat=_repeat(loaded),
        vocabulary=_vocabulary(loaded),
    )


def _sentence(loaded: _Loaded) -> str:
    if loaded.recipe is None:
        return "Nothing has been trained in this folder yet."
    supervision = getattr(loaded.recipe.settings, "supervision", None)
    labels = f" from {supervision} labels" if supervision else ""
    return f"{loaded.recipe.method}, preset {loaded.recipe.preset}, learned{labels} of {loaded.recipe.data.kind}"


def _merged_records(loaded: Sequence[_Loaded]) -> list[ScoreRecord]:
    """Records of all runs, methods first, then upper bounds; an upper bound that several runs measured comes once."""
    methods: list[ScoreRecord] = []
    bounds: dict[tuple[Any, ...], ScoreRecord] = {}
    for record in (record for each in loaded for record in each.records):
        if is_upper_bound(record):
            key = tuple(record.get(name) for name in ("method", "supervision", "segmenter", "data", "split", "images"))
            bounds.setdefault(key, record)
        else:
            methods.append(record)
    return [*methods, *bounds.values()]


def _facts(loaded: Sequence[_Loaded], records: Sequence[ScoreRecord]) -> list[tuple[str, str]]:
    last = last_measured(records)
    facts: list[tuple[str, str]] = []
    if last is not None:
        facts += [("method", record_name(last))] if len(loaded) == 1 else []
        named = {"segmenter_weights": "its weights (SHA-256)"}
        keys = ("data", "split", "images", "segmenter", "segmenter_weights")
        facts += [(named.get(key, key), str(last[key])) for key in keys if last.get(key)]
    for each in loaded:
        seconds = each.info.get("seconds")
        label = "trained" if len(loaded) == 1 else f"trained {each.name}"
        facts += [(label, f"{float(seconds) / 60:.1f} min, {each.info.get('steps', '?')} steps")] if seconds else []
    machine = loaded[0].info.get("machine") or {}
    if machine:
        facts.append(("machine", str(machine.get("gpu") or f"{machine.get('threads')} CPU threads")))
    facts.append(("date", _date(loaded)))
    version = dict(loaded[0].info.get("versions") or {}).get("weakly") or (last or {}).get("version")
    return [*facts, ("version", f"weakly {version}")] if version else facts


def _date(loaded: Sequence[_Loaded]) -> str:
    """When the youngest figure was written, so that the same run gives the same page."""
    files = [
        path for each in loaded for path in (each.run.metrics, each.run.log, each.run.recipe_file) if path.is_file()
    ]
    youngest = max((path.stat().st_mtime for path in files), default=loaded[0].run.folder.stat().st_mtime)
    return datetime.fromtimestamp(youngest, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _curves(loaded: Sequence[_Loaded]) -> list[Curve]:
    if len(loaded) == 1:
        return read_curves(loaded[0].run.log)
    return [
        Curve(f"{each.name}/{curve.name}", curve.x, curve.y) for each in loaded for curve in read_curves(each.run.log)
    ]


def _vocabulary(loaded: Sequence[_Loaded]) -> Vocabulary | None:
    rows = next((each.info["vocabulary"] for each in loaded if each.info.get("vocabulary")), None)
    return None if rows is None else Vocabulary.from_dict(rows)


def _open_data(loaded: Sequence[_Loaded]) -> tuple[dict[str, Dataset], list[ProblemLine]]:
    """The datasets of the first run's splits, and what is wrong with those of all runs; nothing is drawn or written."""
    datasets: dict[str, Dataset] = {}
    lines: dict[ProblemLine, None] = {}
    for each in (each for each in loaded if each.recipe is not None):
        assert each.recipe is not None
        data = without_render(each.recipe.data)
        scored = [str(record["split"]) for record in each.records]
        for split in dict.fromkeys(name for name in (data.train, data.val, *scored) if name):
            try:
                dataset = open_split(data, split)
            except UserError as error:
                lines[ProblemLine("data-not-readable", "warning", f"{data.root} {split}", str(error))] = None
                continue
            datasets.setdefault(split, dataset)
            for problem in dataset.problems:
                where = f"{problem.file} {problem.index}".strip()
                message = f"{problem.message} {problem.remedy}".strip()
                lines[ProblemLine(problem.check, problem.severity, where, message)] = None
    return datasets, list(lines)


def _skipped(loaded: Sequence[_Loaded]) -> list[ProblemLine]:
    lines = []
    for each in loaded:
        path = each.run.folder / "skipped.json"
        if path.is_file():
            rows = json.loads(path.read_text(encoding="utf-8"))
            lines += [ProblemLine("skipped-image", "error", str(row["file"]), str(row["reason"])) for row in rows]
    return list(dict.fromkeys(lines))


def _gallery(loaded: Sequence[_Loaded], datasets: Mapping[str, Dataset]) -> list[GalleryRow]:
    """Cases of the split that was scored last, ranked by the first run that was scored on it."""
    last = last_measured([record for each in loaded for record in each.records])
    if last is None or last["split"] not in datasets:
        return []
    columns: list[Column] = []
    bounds: list[Column] = []
    supervisions: list[str] = []
    for each in loaded:
        for record in (r for r in each.records if same_images(r, last) and not is_upper_bound(r)):
            columns += _column(each, record)
            bound = upper_bound_of(record, each.records)
            if bound is not None and not bounds:
                bounds = _column(each, bound)
            supervisions += [str(record.get("supervision") or "")]
    if not columns:
        return []
    cases = choose_cases(columns[0].scores)
    shown = {case.image_id for case in cases}
    trimmed = [
        Column(c.title, {k: v for k, v in c.results.items() if k in shown}, c.scores) for c in [*bounds, *columns]
    ]
    return gallery_rows(datasets[str(last["split"])], trimmed, cases, [s for s in supervisions[:1] if s] or ["box"])


def _stages(loaded: Sequence[_Loaded], datasets: Mapping[str, Dataset]) -> list[GalleryRow]:
    """The images whose stages the runs have kept, of the split that was scored last, with the final result."""
    last = last_measured([record for each in loaded for record in each.records])
    if last is None or last["split"] not in datasets:
        return []
    split = str(last["split"])
    rows: list[GalleryRow] = []
    for each in loaded:
        try:
            stages = read_panels(each.run, split)
        except UserError:  # a picture was removed: the next evaluation makes it again
            continue
        results = [record for record in each.records if same_images(record, last) and is_result(record)]
        final = [column for record in results if _is_own(each, record) for column in _column(each, record)][:1]
        scores = final[0].scores if final else {}
        cases = [Case(image_id, scores.get(image_id), "") for image_id in stages]
        rows += gallery_rows(datasets[split], final, cases, ("tags",), stages)
    return rows


def _is_own(loaded: _Loaded, record: ScoreRecord) -> bool:
    """Whether the record is of the run's method, not of a baseline or another program."""
    if loaded.recipe is None:
        return False
    named = find_method(loaded.recipe.method).final_row(loaded.recipe.settings)
    return bool(record["method"] == named.get("method", loaded.recipe.method))


def _column(loaded: _Loaded, record: ScoreRecord) -> list[Column]:
    """The stored masks and per-image scores behind a record; nothing where they are gone."""
    split, method, row = str(record["split"]), str(record["method"]), str(record.get("row") or "final")
    labels = [reference_label(split, method, str(record.get("supervision")), row, record.get("setting"))]
    if WITH in row:
        labels = [changed_label(split, row)]
    elif is_result(record):
        labels += [*([split] if _is_own(loaded, record) else []), f"{split}-{method}"]
    for label in labels:
        masks, scores = loaded.run.predictions(label), loaded.run.image_scores(label)
        if masks.is_file() and scores.is_file():
            results = by_image(json.loads(masks.read_text(encoding="utf-8")))
            return [Column(record_name(record), results, _image_scores(scores))]
    return []


def _image_scores(path: Path) -> dict[ImageId, float | None]:
    rows = json.loads(path.read_text(encoding="utf-8"))["images"]
    return {row["image_id"]: row["miou"] for row in rows}


def _repeat(loaded: Sequence[_Loaded]) -> Repeat:
    fit_commands = [str(each.info["command"]) for each in loaded if each.info.get("command")]
    score_commands = [str(record["command"]) for each in loaded for record in each.records if record.get("command")]
    recipes = [
        (f"# {each.name}\n" if len(loaded) > 1 else "") + each.run.recipe_file.read_text(encoding="utf-8")
        for each in loaded
        if each.run.recipe_file.is_file()
    ]
    optimisation = getattr(loaded[0].recipe, "optimisation", None)
    return Repeat(
        commands=list(dict.fromkeys([*fit_commands, *score_commands])),
        recipe="\n".join(recipes),
        versions=[(str(name), str(version)) for name, version in dict(loaded[0].info.get("versions") or {}).items()],
        hashes=[pair for each in loaded for pair in _hashes(each, prefix=f"{each.name}/" if len(loaded) > 1 else "")],
        seed=getattr(optimisation, "seed", None),
    )


def _hashes(loaded: _Loaded, prefix: str) -> list[tuple[str, str]]:
    """SHA-256 of the recipe and of the weights."""
    folder = loaded.run.folder
    weights = sorted(path for name in ("student", "best") for path in (folder / name).glob("*.safetensors"))
    return [
        (prefix + path.relative_to(folder).as_posix(), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (loaded.run.recipe_file, *weights)
        if path.is_file()
    ]
