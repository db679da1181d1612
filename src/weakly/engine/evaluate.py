"""Scoring: a run's student, any program's COCO results, and the method's upper bounds and stages, on one split.

Every result goes through the same stream: predict, compare with the truth under the method's protocols, keep the masks
as COCO results and one score per image for the report. Upper bounds are computed once per data and settings and then
read.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.engine.load import check_overrides, load_student
from weakly.engine.logs import ticking
from weakly.engine.panels import spread_out, store_panels
from weakly.engine.recipe import Override, Recipe, load_recipe
from weakly.engine.runs import Run, lock, open_run, package_version, workspace
from weakly.engine.splits import open_split
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.evaluation.coco_results import read_coco_results
from weakly.evaluation.records import Record, update_records
from weakly.evaluation.scoring import Scoring
from weakly.files import write_json
from weakly.foundation.weights import segmenter_weights
from weakly.labels import Sample
from weakly.methods.base import ImageSource, Method, Score, Skipped, Workspace, find_method
from weakly.segmentation import Segmentation

REFERENCES = "settings.references"
"""The setting that names upper bounds; it is about no student."""

SCORING = ("data", "evaluation", "features", "device")
"""Sections of a recipe that say what is scored, and how and where."""

WITH = " with "
"""Between a row's usual name and the settings that it departs from."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found: one record per scored result, and the images that could not be read."""

    records: tuple[Record, ...]
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Scored:
    """One result stream, scored.

    Attributes:
        fields: of the record: figures, images, per-class scores.
        images: per image ``{"image_id", "file", "miou", "pairs"}``; ``miou`` is the mean IoU over the categories the
            image truly shows (``pairs`` of them), None where it shows none.
        predictions: COCO results of all images.
        skipped: unreadable images; they were scored as empty predictions.
    """

    fields: dict[str, Any]
    images: list[dict[str, Any]]
    predictions: list[dict[str, Any]]
    skipped: list[Skipped]


def evaluate(
    folder: Path,
    *,
    split: str | None = None,
    overrides: Sequence[Override] = (),
    results: Path | None = None,
    name: str | None = None,
    student: str | None = None,
    command: str = "",
) -> Evaluation:
    """Score a run on a split and put the records into its ``metrics.json``.

    Args:
        folder: the run.
        split: None: as the recipe says.
        overrides: dotted recipe keys, e.g. ``("data.root", "elsewhere")``. Of ``settings`` those that prediction alone
            reads: the student is scored with them in a row of its own, without upper bounds and stages.
        results: a COCO results file of any program, scored in place of the run's student.
        name: what its records call that program; None: the file's stem.
        student: ``last`` or ``best``; None: as the recipe says.
        command: what the records state as their command.

    Raises:
        UserError: the run is not trained, the split has no truth, or the data or results do not fit.
    """
    run = open_run(folder)
    recipe = load_recipe(run.recipe_file, _undrawn(overrides))
    split = split or recipe.evaluated_split()
    dataset = open_split(recipe.data, split)
    scoring = find_method(recipe.method).scoring_of(recipe.settings)
    if not scoring.has_truth(dataset):
        wanted = "true boxes" if scoring.name in ("boxes", "proposals") else "true masks"
        raise UserError(f"Split {split!r} of {recipe.data.root} has no {wanted} to score against; choose another one.")
    changes = [(key, value) for key, value in overrides if key != REFERENCES and key.split(".")[0] not in SCORING]
    check_overrides(find_method(recipe.method), changes)
    if changes and results is not None:
        raise UserError(f"{results} is scored as it is; leave {changes[0][0]} out.")
    if student is not None:
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, student=student))  # type: ignore[arg-type]
    command = command or f"weakly evaluate {folder} --split {split}"
    with lock(run.folder):
        return _evaluate(run, recipe, dataset, results, name, command, changes)


def _undrawn(overrides: Sequence[Override]) -> list[Override]:
    """Other data than the run's is read as it is: nothing is drawn where the recipe draws its own world."""
    keys = [key for key, _ in overrides]
    elsewhere = "data.root" in keys and not any(key.startswith("data.render") for key in keys)
    return [*overrides, *([("data.render", "null")] if elsewhere else [])]


def can_score(recipe: Recipe, split: str) -> bool:
    """Whether a split has the truth that the results of a recipe are compared with."""
    scoring = find_method(recipe.method).scoring_of(recipe.settings)
    return scoring.has_truth(open_split(recipe.data, split))


def _evaluate(
    run: Run,
    recipe: Recipe,
    whole: Dataset,
    results: Path | None,
    name: str | None,
    command: str,
    changes: Sequence[Override],
) -> Evaluation:
    method = find_method(recipe.method)
    space = workspace(run, recipe)
    dataset = method.scoring_of(recipe.settings).known(whole)
    if len(dataset) < len(whole):
        space.note(f"{len(whole) - len(dataset)} of {len(whole)} images have no known truth and are left out")
    common = _common_fields(recipe, dataset, command)
    if results is None:
        row, label = {"last": "final", "best": "best"}[recipe.evaluation.student], dataset.split
        common |= {"method": recipe.method, "preset": recipe.preset, "supervision": _supervision(recipe)}
        named = method.final_row(recipe.settings)
        row = named.get("row", row) if row == "final" else row
        common |= named
        if changes:
            row = f"{row}{WITH}{_told(changes)}"
            label = changed_label(dataset.split, row)
        scored = _score_student(run, recipe, method, dataset, space, changes)
    else:
        row, label = "final", f"{dataset.split}-{name or results.stem}"
        common |= {"method": name or results.stem, **_segmenter_fields(None)}
        scored = _score(dataset, _read_results(results, whole, dataset), recipe, f"scoring {results.name}")
    _store(run, label, scored)
    records = [_record({**common, "row": row}, scored)]
    if recipe.evaluation.references and not changes:
        references = method.references(recipe.settings, dataset, space)
        records += [score_reference(run, recipe, dataset, score, command) for score in references]
        if results is None:
            _store_panels(run, method, recipe, dataset, space, scored)
    update_records(run.metrics, records)
    run.record_skipped(f"evaluate {label}", scored.skipped)
    return Evaluation(tuple(records), tuple(scored.skipped))


def score_reference(
    run: Run, recipe: Recipe, dataset: Dataset, score: Score, command: str, preset: str | None = None
) -> Record:
    """The record of an upper bound, a baseline or a stage; its masks and scores are kept with the run's.

    Args:
        run: whose folder is written to.
        recipe: of the run.
        dataset: images with known truth.
        score: what is scored.
        command: what the record states as its command.
        preset: likewise; that of the recipe where the run's own student is scored.
    """
    bound = _reference(score, recipe, dataset, workspace(run, recipe))
    known: dict[str, Any] = {key: score.extra[key] for key in ("row", "setting", "published") if key in score.extra}
    if "segmenter" in score.extra:
        known |= _segmenter_fields(score.extra["segmenter"])
    named: dict[str, Any] = {"method": score.method, "supervision": score.supervision, "row": "final", **known}
    setting = named.get("setting") or bound.fields.get("setting")
    label = reference_label(dataset.split, score.method, score.supervision, named["row"], setting)
    _store(run, label, bound)
    preset = recipe.preset if score.of_student else preset
    return _record({**_common_fields(recipe, dataset, command), "preset": preset, **named}, bound)


def reference_label(split: str, method: str, supervision: str, row: str, setting: str | None = None) -> str:
    """What the files of an upper bound or a stage are named for: ``"val-oracle-box"``, ``"val-fma-tags-seeds"``."""
    words = (split, method, supervision, row if row != "final" else None, setting)
    return "-".join(word for word in words if word)


def changed_label(split: str, row: str) -> str:
    """What the files of a row with other settings of prediction are named for; short, and no two rows share one."""
    return f"{split}-{re.sub('[^A-Za-z0-9.]+', '-', row)[:60]}-{hashlib.sha256(row.encode()).hexdigest()[:8]}"


def _read_results(path: Path, whole: Dataset, dataset: Dataset) -> Iterator[Segmentation]:
    """Results for a whole split, of which some images alone are scored."""
    found = {sample.image_id: result for sample, result in zip(whole, read_coco_results(path, whole), strict=True)}
    return (found[sample.image_id] for sample in dataset)


def _store_panels(
    run: Run, method: Method, recipe: Recipe, dataset: Dataset, space: Workspace, scored: _Scored
) -> None:
    """Keep the method's stages on a few images, from the best scored to the worst; nothing where it has none."""
    chosen = spread_out([row["miou"] for row in scored.images])
    panels = method.panels(recipe.settings, dataset, space, chosen)
    if any(panels):
        store_panels(run, dataset.split, {dataset[i].image_id: p for i, p in zip(chosen, panels, strict=True)})


def _told(changes: Sequence[Override]) -> str:
    """``fusion=soft_sum, refine=1``."""
    return ", ".join(f"{key.removeprefix('settings.')}={value}" for key, value in changes)


def _score_student(
    run: Run, recipe: Recipe, method: Method, dataset: Dataset, space: Workspace, changes: Sequence[Override]
) -> _Scored:
    predictor = load_student(method, run.chosen_student(recipe.evaluation.student), space, changes)
    if predictor.vocabulary.names != dataset.vocabulary.names:
        predictor = predictor.with_vocabulary(dataset.vocabulary)
    sources = [_source(sample) for sample in dataset]
    stream = predictor.predict(sources, batch_size=recipe.evaluation.batch_size)
    return _score(dataset, stream, recipe, f"scoring {recipe.method} on {dataset.split}")


def _source(sample: Sample) -> ImageSource:
    return ImageSource(sample.image_id, sample.path, lambda: read_image(sample.path))


def _reference(score: Score, recipe: Recipe, dataset: Dataset, space: Workspace) -> _Scored:
    """An upper bound, from its file where the same frozen model met the same data before."""
    path = space.features / "references" / f"{score.method}-{score.supervision}-{_key(score, recipe, dataset)}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        return _Scored(stored["fields"], stored["images"], stored["predictions"], [])
    title = f"scoring {score.method} {score.supervision} on {dataset.split}"
    scored = _score(dataset, score.results(), recipe, title, score.scoring)
    write_json(path, {k: getattr(scored, k) for k in ("fields", "images", "predictions")}, indent=None)
    return scored


def _key(score: Score, recipe: Recipe, dataset: Dataset) -> str:
    """SHA-256 over everything an upper bound depends on: frozen model, version, files (size and time) and labels."""
    digest = hashlib.sha256()
    how = (score.scoring or find_method(recipe.method).scoring_of(recipe.settings)).name
    scoring = (how, recipe.evaluation.frame_side, to_plain(recipe.evaluation.official), dataset.label_map_background)
    parts: list[Any] = [score.identity(), scoring, package_version()]
    digest.update(json.dumps([*parts, recipe.features.dtype, dataset.vocabulary.to_dict()], default=str).encode())
    for record in dataset.records:
        sample = record.sample
        paths = (sample.path, record.label_map_path, record.object_map_path, record.whole_map_path)
        files = [(str(path), _stamp(path)) for path in paths if path is not None]
        objects = (
            None if record.instances is None else [(i.label, i.box, i.difficult, i.crowd) for i in record.instances]
        )
        weak = ((sample.boxes, "xyxy"), (sample.points, "xy"), (sample.tags, "labels"))
        labels = [
            None if given is None else (getattr(given, places).tobytes(), given.labels.tobytes())
            for given, places in weak
        ]
        truth = (record.truth, record.wholes, objects)
        digest.update(repr((sample.image_id, sample.size, truth, files, labels)).encode())
    return digest.hexdigest()[:24]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file: another content has another stamp. None where there is no file."""
    status = path.stat() if path.is_file() else None
    return (status.st_size, status.st_mtime_ns) if status else None


def _score(
    dataset: Dataset,
    results: Iterator[Segmentation | Skipped],
    recipe: Recipe,
    title: str,
    scoring: Scoring | None = None,
) -> _Scored:
    """Compare a stream of one result per image with the truth; memory: the COCO results and the evaluator's."""
    scoring = scoring or find_method(recipe.method).scoring_of(recipe.settings)
    evaluation, vocabulary = recipe.evaluation, dataset.vocabulary
    evaluator = scoring.evaluator(vocabulary, evaluation.frame_side, evaluation.official)
    images: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    started = time.monotonic()
    with ticking(title, len(dataset)) as tick:
        for index, (sample, result) in enumerate(zip(dataset, results, strict=True)):
            if isinstance(result, Skipped):
                skipped.append(result)
            prediction = Segmentation(sample.size) if isinstance(result, Skipped) else result
            truth = scoring.truth(dataset, index)
            evaluator.update(truth, prediction, index)
            iou = scoring.image_iou(truth, prediction, vocabulary.background)
            miou = float(iou.mean()) if len(iou) else None
            row = {"image_id": sample.image_id, "file": str(sample.path), "miou": miou, "pairs": len(iou)}
            images.append(row)
            predictions += prediction.to_coco(sample.image_id, vocabulary)
            tick()
    fields = {**evaluator.compute().record_fields(), "seconds": round(time.monotonic() - started, 3)}
    return _Scored(fields, images, predictions, skipped)


def _store(run: Run, label: str, scored: _Scored) -> None:
    write_json(run.predictions(label), scored.predictions, indent=None)
    write_json(run.image_scores(label), {"images": scored.images, "skipped": [str(s.path) for s in scored.skipped]})


def _common_fields(recipe: Recipe, dataset: Dataset, command: str) -> dict[str, Any]:
    return {
        **_segmenter_fields(getattr(recipe.settings, "segmenter", None)),
        "data": dataset.name,
        "split": dataset.split,
        "resolution": _resolution(dataset),
        "seed": recipe.optimisation.seed,
        "command": command,
        "version": package_version(),
    }


def _segmenter_fields(segmenter: str | None) -> dict[str, str | None]:
    weights = None if segmenter is None else segmenter_weights(segmenter)
    return {"segmenter": segmenter, "segmenter_weights": weights}


def _resolution(dataset: Dataset) -> str:
    """Size of the scored images in pixels, ``256x256`` (width x height) or a range."""
    heights = [sample.size[0] for sample in dataset]
    widths = [sample.size[1] for sample in dataset]
    low, high = f"{min(widths)}x{min(heights)}", f"{max(widths)}x{max(heights)}"
    return low if low == high else f"{low} to {high}"


def _supervision(recipe: Recipe) -> str:
    return str(getattr(recipe.settings, "supervision", find_method(recipe.method).supervisions[0]))


def _record(fields: dict[str, Any], scored: _Scored) -> Record:
    return Record(**fields, **scored.fields)
