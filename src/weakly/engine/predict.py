"""Masks for images nobody labelled: COCO JSON, palette PNG label maps and overlays, one image at a time.

Every finished image is one line of ``journal.jsonl``, written after its pictures, so that a stopped prediction goes on
where it was; a damaged image is one line of ``skipped.json`` and never ends the run.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from weakly.data.folder import ImageFile, folder_sources
from weakly.data.images import MAX_PIXELS, read_image
from weakly.engine.load import check_overrides, load_student
from weakly.engine.logs import ticking
from weakly.engine.recipe import EvaluationSettings, FeatureSettings, Override
from weakly.engine.runs import lock, open_run, package_version, resolve_device, workspace
from weakly.errors import UserError
from weakly.files import one_sentence_errors, remove_leftovers, write_atomic, write_json
from weakly.methods.base import ImageSource, Skipped, Workspace, find_method
from weakly.segmentation import Segmentation, overlay_label_map
from weakly.vocabulary import Vocabulary

JOURNAL = "journal.jsonl"
_WRITTEN = (JOURNAL, "predictions.json", "skipped.json", ".lock")
_FOLDERS = ("label-maps", "overlays")


@dataclass(frozen=True)
class Prediction:
    """What :func:`predict` did.

    Attributes:
        out: the folder of results.
        done: images predicted now.
        earlier: images a former call had predicted.
        skipped: images that could not be read, with the reason.
    """

    out: Path
    done: int
    earlier: int
    skipped: tuple[Skipped, ...]


@dataclass(frozen=True)
class _Task:
    """One image and the names of its results."""

    image_id: int
    path: Path
    stem: str
    max_pixels: int


def predict(
    folder: Path,
    images: Sequence[Path],
    out: Path,
    *,
    names: str | None = None,
    student: str | None = None,
    device: str | None = None,
    batch_size: int | None = None,
    overwrite: bool = False,
    max_pixels: int = MAX_PIXELS,
    overrides: Sequence[Override] = (),
) -> Prediction:
    """Segment images with the student of a run, or with one that lies in a folder of its own.

    Args:
        folder: the run, or a student folder, e.g. a copy of a run's ``student/``.
        images: files and folders; folders are searched recursively.
        out: gets ``predictions.json`` (COCO, RLE masks), ``label-maps/<stem>.png`` (palette, background = C),
            ``overlays/<stem>.jpg`` and ``skipped.json``.
        names: objects and parts to look for, e.g. ``"dog: head, torso"``; None: those the student was trained on.
        student: ``last`` or ``best``; None: as the recipe says.
        device: None: as the recipe says; without a run, the best there is.
        batch_size: images per batch; None: as the recipe says.
        overwrite: replace earlier results in ``out``.
        max_pixels: larger images are left out before a pixel is decoded.
        overrides: other settings of prediction, e.g. ``[("settings.score_threshold", "0.5")]``.

    Raises:
        UserError: no image is given, the run is not trained, its student takes no other names or not these, a setting
            is no longer to be changed, or ``out`` holds something else.
    """
    method, weights, space, usual_batch = _trained(folder, student, device)
    sources = folder_sources(images)
    check_overrides(find_method(method), overrides)
    identity = _identity(weights, names, overrides)
    with lock(out):
        remove_leftovers(out)
        finished = _open_journal(out, identity, overwrite=overwrite)
        tasks = _plan(sources, finished, max_pixels)
        predictor = load_student(find_method(method), weights, space, overrides)
        predictor = predictor if names is None else predictor.with_names(names)
        skipped = _predict_all(out, tasks, predictor, batch_size or usual_batch)
        _assemble(out, folder, predictor.vocabulary)
        write_json(out / "skipped.json", [{"file": str(s.path), "reason": s.reason} for s in skipped])
    return Prediction(out, len(tasks) - len(skipped), len(sources) - len(tasks), tuple(skipped))


def _trained(folder: Path, student: str | None, device: str | None) -> tuple[str, Path, Workspace, int]:
    """Method, student folder, workspace and usual batch size of a run or of a student folder."""
    method = student_method(folder)
    if method is not None:
        space = Workspace(folder, Path(FeatureSettings().root), resolve_device(device or "auto"))
        return method, folder, space, EvaluationSettings().batch_size
    run = open_run(folder)
    recipe = run.recipe()
    space = workspace(run, recipe if device is None else replace(recipe, device=device))
    weights = run.chosen_student(student or recipe.evaluation.student)
    return recipe.method, weights, space, recipe.evaluation.batch_size


def student_method(folder: Path) -> str | None:
    """The method whose student lies directly in ``folder``; None where it is no student folder."""
    try:
        method = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("method")
    except (OSError, ValueError, AttributeError):
        return None
    return method if isinstance(method, str) else None


def _predict_all(out: Path, tasks: Sequence[_Task], predictor: Any, batch_size: int) -> list[Skipped]:
    """Predict, write and journal every task; what could not be read is returned."""
    skipped = []
    with ticking("predicting", len(tasks)) as tick:
        results: Iterator[Segmentation | Skipped] = predictor.predict(
            [_source(task) for task in tasks], batch_size=batch_size
        )
        for task, result in zip(tasks, results, strict=True):
            if isinstance(result, Skipped):
                skipped.append(result)
            else:
                reason = _write_image(out, task, result, predictor.vocabulary)
                skipped += [] if reason is None else [Skipped(task.image_id, task.path, reason)]
            tick()
    return skipped


def _source(task: _Task) -> ImageSource:
    return ImageSource(
        task.image_id, task.path, lambda: read_image(task.path, upright=True, max_pixels=task.max_pixels)
    )


def _write_image(out: Path, task: _Task, result: Segmentation, vocabulary: Vocabulary) -> str | None:
    """Label map, overlay, then the journal's line; the reason where the image vanished in between."""
    try:
        image = read_image(task.path, upright=True, max_pixels=task.max_pixels)
    except UserError as error:
        return str(error)
    label_map = result.to_label_map(vocabulary.background)
    write_atomic(out / "label-maps" / f"{task.stem}.png", palette_png(label_map, vocabulary))
    write_atomic(out / "overlays" / f"{task.stem}.jpg", _jpeg(overlay_label_map(image, label_map, vocabulary)))
    height, width = result.size
    line = {
        "id": task.image_id,
        "file": str(task.path),
        "stem": task.stem,
        "height": height,
        "width": width,
        "annotations": result.to_coco(task.image_id, vocabulary),
    }
    _append(out / JOURNAL, line)
    return None


def palette_png(label_map: NDArray[Any], vocabulary: Vocabulary) -> bytes:
    """A label map as PNG: 8-bit palette in the vocabulary's colours, or 16-bit grey for more than 255 categories."""
    buffer = io.BytesIO()
    if len(vocabulary) > 255:
        Image.fromarray(label_map.astype(np.uint16)).save(buffer, "PNG")
        return buffer.getvalue()
    image = Image.fromarray(label_map.astype(np.uint8), mode="P")
    image.putpalette(vocabulary.palette().reshape(-1).tolist())
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _identity(weights: Path, names: str | None, overrides: Sequence[Override]) -> str:
    """SHA-256 over every file of a student folder, and over names and settings where they are not its own."""
    digest = hashlib.sha256(b"" if names is None else names.encode())
    digest.update(repr(sorted(overrides)).encode() if overrides else b"")
    for path in sorted(weights.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(weights)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _open_journal(out: Path, identity: str, *, overwrite: bool) -> list[dict[str, Any]]:
    """The lines of earlier images; ``out`` is checked, and emptied of our own files where ``overwrite`` says so."""
    journal = out / JOURNAL
    present = sorted(path.name for path in out.iterdir() if path.name not in (".lock", *_FOLDERS))
    if overwrite:
        _remove_results(out)
    elif journal.is_file():
        header, *lines = _read_journal(journal) or [{}]
        if header.get("student") != identity:
            raise UserError(
                f"{out} holds predictions of another student or of other names; choose another --out folder or give "
                "--overwrite."
            )
        # Rewritten whole, so that a line cut off by a kill does not spoil the one after it.
        write_atomic(journal, "".join(json.dumps(line) + "\n" for line in (header, *lines)))
        return lines
    elif present:
        raise UserError(
            f"{out} is not empty (it holds {present[0]}); choose another --out folder or give --overwrite, which "
            "replaces files of ours and leaves the others."
        )
    write_atomic(journal, json.dumps({"student": identity}) + "\n")
    return []


def _remove_results(out: Path) -> None:
    """Remove exactly the files an earlier prediction wrote."""
    lines = _read_journal(out / JOURNAL) if (out / JOURNAL).is_file() else []
    for line in lines[1:]:
        (out / "label-maps" / f"{line['stem']}.png").unlink(missing_ok=True)
        (out / "overlays" / f"{line['stem']}.jpg").unlink(missing_ok=True)
    for name in _WRITTEN[:-1]:
        (out / name).unlink(missing_ok=True)


def _read_journal(journal: Path) -> list[dict[str, Any]]:
    """Whole lines of the journal."""
    lines = []
    for text in journal.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def _append(journal: Path, line: dict[str, Any]) -> None:
    with one_sentence_errors(journal), journal.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _plan(sources: Sequence[ImageFile], finished: Sequence[dict[str, Any]], max_pixels: int) -> list[_Task]:
    """Images still to do, with ids and names that no finished one has."""
    done = {line["file"] for line in finished}
    taken = {str(line["stem"]).casefold() for line in finished}
    next_id = max((int(line["id"]) for line in finished), default=0) + 1
    tasks = []
    for source in sources:
        path, stem = source.path.resolve(), source.image_id
        if str(path) in done:
            continue
        if stem.casefold() in taken:  # a name that an earlier call used for an image of another folder
            stem = f"{stem}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        taken.add(stem.casefold())
        tasks.append(_Task(next_id, path, stem, max_pixels))
        next_id += 1
    return tasks


def _assemble(out: Path, folder: Path, vocabulary: Vocabulary) -> None:
    """``predictions.json`` from the journal."""
    lines = _read_journal(out / JOURNAL)[1:]
    annotations = [annotation for line in lines for annotation in line["annotations"]]
    categories = [
        {"id": vocabulary.source_id(i), "name": category.name, "supercategory": category.object or category.name}
        for i, category in enumerate(vocabulary.categories)
    ]
    content = {
        "info": {"description": f"predicted by weakly {package_version()} with {folder}"},
        "images": [
            {"id": line["id"], "file_name": line["file"], "height": line["height"], "width": line["width"]}
            for line in lines
        ],
        "categories": categories,
        "annotations": [{"id": i + 1, "iscrowd": 0, **annotation} for i, annotation in enumerate(annotations)],
    }
    write_json(out / "predictions.json", content, indent=None)
