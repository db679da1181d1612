"""Scoring: a run's student, any program's COCO results, and the method's upper bounds, on one split.

Every result goes through the same stream: predict, compare with the truth under all protocols, keep the masks as COCO
results and one score per image for the report. Upper bounds are computed once per data and settings and then read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.engine.logs import ticking
from weakly.engine.recipe import Override, Recipe, load_recipe
from weakly.engine.runs import Run, lock, open_run, package_version, workspace
from weakly.engine.splits import open_split
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.evaluation.coco_results import read_coco_results
from weakly.evaluation.pairs import pair_binary
from weakly.evaluation.protocols import Evaluator
from weakly.evaluation.records import Record, update_records
from weakly.files import write_json
from weakly.labels import Sample
from weakly.methods.base import ImageSource, Method, Score, Skipped, Workspace, find_method
from weakly.segmentation import Segmentation


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
            image truly shows, None where it shows none.
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
        overrides: dotted recipe keys, e.g. ``("data.root", "elsewhere")``.
        results: a COCO results file of any program, scored in place of the run's student.
        name: what its records call that program; None: the file's stem.
        student: ``last`` or ``best``; None: as the recipe says.
        command: what the records state as their command.

    Raises:
        UserError: the run is not trained, the split has no truth, or the data or results do not fit.
    """
    run = open_run(folder)
    recipe = load_recipe(run.recipe_file, overrides)
    split = split or recipe.evaluated_split()
    dataset = open_split(recipe.data, split)
    if not dataset.has_truth():
        raise UserError(
            f"Split {split!r} of {recipe.data.root} has no true masks to score against; choose another one."
        )
    if student is not None:
        recipe = replace(recipe, evaluation=replace(recipe.evaluation, student=student))  # type: ignore[arg-type]
    command = command or f"weakly evaluate {folder} --split {split}"
    with lock(run.folder):
        return _evaluate(run, recipe, dataset, results, name, command)


def _evaluate(
    run: Run, recipe: Recipe, dataset: Dataset, results: Path | None, name: str | None, command: str
) -> Evaluation:
    method = find_method(recipe.method)
    space = workspace(run, recipe)
    common = _common_fields(recipe, dataset, command)
    if results is None:
        row, label = {"last": "final", "best": "best"}[recipe.evaluation.student], dataset.split
        common |= {"method": recipe.method, "preset": recipe.preset, "supervision": _supervision(recipe)}
        scored = _score_student(run, recipe, method, dataset, space)
    else:
        row, label = "final", f"{dataset.split}-{name or results.stem}"
        common |= {"method": name or results.stem, "segmenter": None}
        scored = _score(dataset, iter(read_coco_results(results, dataset)), recipe, f"scoring {results.name}")
    _store(run, label, scored)
    records = [_record({**common, "row": row}, scored)]
    if recipe.evaluation.references:
        for score in method.references(recipe.settings, dataset, space):
            bound = _score_reference(score, recipe, dataset, space)
            _store(run, f"{dataset.split}-{score.method}-{score.supervision}", bound)
            known = {"method": score.method, "supervision": score.supervision, "row": "final", **_known(score.extra)}
            records.append(_record({**common, "preset": None, **known}, bound))
    update_records(run.metrics, records)
    run.record_skipped(f"evaluate {label}", scored.skipped)
    return Evaluation(tuple(records), tuple(scored.skipped))


def _score_student(run: Run, recipe: Recipe, method: Method, dataset: Dataset, space: Workspace) -> _Scored:
    predictor = method.load(run.chosen_student(recipe.evaluation.student), space)
    if predictor.vocabulary.names != dataset.vocabulary.names:
        raise UserError(
            f"The student of {run.folder} was trained on other categories than {dataset.name} {dataset.split!r} has "
            f"({len(predictor.vocabulary)} and {len(dataset.vocabulary)}); evaluate it on data with the same names."
        )
    sources = [_source(sample) for sample in dataset]
    stream = predictor.predict(sources, batch_size=recipe.evaluation.batch_size)
    return _score(dataset, stream, recipe, f"scoring {recipe.method} on {dataset.split}")


def _source(sample: Sample) -> ImageSource:
    return ImageSource(sample.image_id, sample.path, lambda: read_image(sample.path))


def _score_reference(score: Score, recipe: Recipe, dataset: Dataset, space: Workspace) -> _Scored:
    """An upper bound, from its file where the same frozen model met the same data before."""
    path = space.features / "references" / f"{score.method}-{score.supervision}-{_key(score, recipe, dataset)}.json"
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        return _Scored(stored["fields"], stored["images"], stored["predictions"], [])
    scored = _score(dataset, score.results(), recipe, f"scoring {score.method} {score.supervision} on {dataset.split}")
    write_json(path, {k: getattr(scored, k) for k in ("fields", "images", "predictions")}, indent=None)
    return scored


def _key(score: Score, recipe: Recipe, dataset: Dataset) -> str:
    """SHA-256 over everything an upper bound depends on: frozen model, version, images (size and time) and labels."""
    digest = hashlib.sha256()
    scoring = (recipe.evaluation.frame_side, to_plain(recipe.evaluation.official))
    parts: list[Any] = [score.identity(), scoring, package_version()]
    digest.update(json.dumps([*parts, recipe.features.dtype, dataset.vocabulary.to_dict()], default=str).encode())
    for record in dataset.records:
        sample = record.sample
        status = sample.path.stat() if sample.path.is_file() else None
        stamp = (status.st_size, status.st_mtime_ns) if status else None
        digest.update(repr((sample.image_id, str(sample.path), sample.size, stamp, record.truth)).encode())
        for labels in (sample.boxes, sample.points):
            if labels is not None:
                digest.update(getattr(labels, "xyxy" if labels is sample.boxes else "xy").tobytes())
                digest.update(labels.labels.tobytes())
    return digest.hexdigest()[:24]


def _score(dataset: Dataset, results: Iterator[Segmentation | Skipped], recipe: Recipe, title: str) -> _Scored:
    """Compare a stream of one result per image with the truth; memory: the COCO results and the evaluator's."""
    evaluation = recipe.evaluation
    evaluator = Evaluator(dataset.vocabulary, evaluation.frame_side, evaluation.official)
    images: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []
    skipped: list[Skipped] = []
    started = time.monotonic()
    with ticking(title, len(dataset)) as tick:
        for index, (sample, result) in enumerate(zip(dataset, results, strict=True)):
            if isinstance(result, Skipped):
                skipped.append(result)
            prediction = Segmentation(sample.size) if isinstance(result, Skipped) else result
            truth = dataset.truth(index)
            evaluator.update(truth, prediction, index)
            images.append(_image_score(sample, truth, prediction, dataset.vocabulary.background))
            predictions += prediction.to_coco(sample.image_id, dataset.vocabulary)
            tick()
    fields = {**evaluator.compute().record_fields(), "seconds": round(time.monotonic() - started, 3)}
    return _Scored(fields, images, predictions, skipped)


def _image_score(sample: Sample, truth: Segmentation, prediction: Segmentation, background: int) -> dict[str, Any]:
    pairs = pair_binary(_masks(truth, background), _masks(prediction, background))
    miou = float(pairs.iou.mean()) if len(pairs.iou) else None
    return {"image_id": sample.image_id, "file": str(sample.path), "miou": miou, "pairs": len(pairs.iou)}


def _masks(segmentation: Segmentation, background: int) -> dict[int, NDArray[np.bool_]]:
    """Mask per category; from the label map where there are no masks."""
    if len(segmentation) or segmentation.label_map is None:
        return segmentation.category_masks()
    label_map = segmentation.label_map
    return {int(label): label_map == label for label in np.unique(label_map) if label < background}


def _store(run: Run, label: str, scored: _Scored) -> None:
    write_json(run.predictions(label), scored.predictions, indent=None)
    write_json(run.image_scores(label), {"images": scored.images, "skipped": [str(s.path) for s in scored.skipped]})


def _common_fields(recipe: Recipe, dataset: Dataset, command: str) -> dict[str, Any]:
    return {
        "segmenter": getattr(recipe.settings, "segmenter", None),
        "data": dataset.name,
        "split": dataset.split,
        "resolution": _resolution(dataset),
        "seed": recipe.optimisation.seed,
        "command": command,
        "version": package_version(),
    }


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


def _known(extra: dict[str, Any]) -> dict[str, Any]:
    """Keys of a score's extra information that records have."""
    return {key: extra[key] for key in ("row", "setting", "segmenter", "published") if key in extra}
