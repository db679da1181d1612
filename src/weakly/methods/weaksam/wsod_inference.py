"""Detections of the weakly supervised detector, averaged over views, and where they lie (spec weaksam, section 3.5).

A view is the image at one size, mirrored or not. Every category may be found in every image, tagged or not. Image after
image goes to disk, so a killed detection goes on where it was. Files:

    detections-<split>-<id>.json             COCO results: image_id, category_id, bbox (x, y, width, height), score
    detections-<split>-<id>.partial.jsonl    an unfinished detection: a row per image, in order
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.files import one_sentence_errors, write_json
from weakly.methods.weaksam.detectors import Detections
from weakly.methods.weaksam.wsod import RoiPredictions, WsodDetector, roi_predictions
from weakly.methods.weaksam.wsod_data import RoiViews, mirror
from weakly.vocabulary import Vocabulary

GRID = 64
"""Boxes are rounded to this fraction of a pixel: exact in binary, and short in a file."""


@dataclass(frozen=True)
class WsodInference:
    """How an image is looked at; the defaults are MIST's 14 views.

    Attributes:
        sizes: short sides of the views in pixels.
        max_size: largest long side of a view.
        flip: every size also mirrored left to right.
        nms: a detection that overlaps a better one of its category with a larger IoU goes.
        detections: of an image at most, of all categories together.
        min_score: detections without a higher score are left out.
        vote_iou: a RoI's score counts with those of all RoIs that overlap it by this IoU or more, see :func:`votes`;
            None: alone.
    """

    sizes: tuple[int, ...] = (800, 480, 576, 688, 864, 1000, 1200)
    max_size: int = 2000
    flip: bool = True
    nms: float = 0.3
    detections: int = 100
    min_score: float = 0.0
    vote_iou: float | None = None

    def __post_init__(self) -> None:
        if not self.sizes or not 1 <= min(self.sizes) <= max(self.sizes) <= self.max_size:
            raise UserError(
                f"wsod_inference.sizes is {list(self.sizes)} and max_size is {self.max_size}; give short sides of at "
                "least 1 pixel and none above max_size."
            )
        if not 0 < self.nms <= 1:
            raise UserError(f"wsod_inference.nms is {self.nms}; give a fraction above 0 and at most 1.")
        if self.vote_iou is not None and not 0 < self.vote_iou <= 1:
            raise UserError(
                f"wsod_inference.vote_iou is {self.vote_iou}; give a fraction above 0 and at most 1, or null."
            )
        if self.detections < 1:
            raise UserError(f"wsod_inference.detections is {self.detections}; give at least 1.")


@dataclass(frozen=True)
class DetectionFiles:
    """Where the detections of a split lie.

    Attributes:
        folder: of the run.
        split: e.g. ``train``.
        identity: :func:`detection_identity`.
    """

    folder: Path
    split: str
    identity: str

    @property
    def results(self) -> Path:
        """All detections, in COCO's form."""
        return self.folder / f"detections-{self.split}-{self.identity[:12]}.json"

    @property
    def partial(self) -> Path:
        """An unfinished detection."""
        return self.results.with_suffix(".partial.jsonl")


def detection_identity(detector: WsodDetector, inference: WsodInference, data: str) -> str:
    """Hex digest of all that detections depend on: the detector, the settings and ``data``, a digest of the images."""
    about = [asdict(detector.settings), asdict(inference), data]
    digest = hashlib.sha256(json.dumps(about).encode())
    for name, value in detector.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def detect_images(
    detector: WsodDetector,
    readers: Sequence[Callable[[], RoiViews]],
    proposals: Sequence[NDArray[np.float32]],
    inference: WsodInference,
    files: DetectionFiles,
    image_ids: Sequence[int | str],
    vocabulary: Vocabulary,
    progress: Callable[[int, int], None] | None = None,
) -> list[Detections]:
    """Detections of n images, in order; stored ones are read. An image without proposals is not opened: it has none.

    Args:
        detector: trained.
        readers: n functions that open an image with its proposals.
        proposals: n arrays (R, 4) in image pixels.
        inference: how images are looked at.
        files: where detections lie.
        image_ids: n ids for the file.
        vocabulary: C categories, with their ids in the file.
        progress: called with (images done, images in all).

    Raises:
        UserError: an image cannot be read, or stored detections are damaged.
    """
    if files.results.is_file():
        return read_detections(files.results, image_ids, vocabulary)
    tell = progress or (lambda _done, _total: None)
    found = _resume(files.partial)
    tell(len(found), len(readers))
    with one_sentence_errors(files.partial):
        files.partial.parent.mkdir(parents=True, exist_ok=True)
        with files.partial.open("a") as rows:
            for index in range(len(found), len(readers)):
                found.append(detect(detector, readers[index](), inference) if len(proposals[index]) else _nothing())
                rows.write(json.dumps(_to_row(found[-1])) + "\n")
                rows.flush()
                tell(len(found), len(readers))
    write_detections(files.results, found, image_ids, vocabulary)
    files.partial.unlink(missing_ok=True)
    return found


def detect(detector: WsodDetector, image: RoiViews, inference: WsodInference) -> Detections:
    """Detections of one image, by descending score.

    Args:
        detector: trained; it is put into eval mode.
        image: with R > 0 proposals.
        inference: how it is looked at.
    """
    return select(score_rois(detector, image, inference), image.size, inference)


@torch.inference_mode()
def score_rois(detector: WsodDetector, image: RoiViews, inference: WsodInference) -> RoiPredictions:
    """Boxes in image pixels and scores of every RoI, each the mean over all views."""
    detector.eval()
    height, width = image.size
    sizes = inference.sizes[:1] if detector.settings.sees_crops else inference.sizes  # crops know no size
    all_boxes: list[Tensor] = []
    all_scores: list[Tensor] = []
    for size, mirrored in product(sizes, (False, True) if inference.flip else (False,)):
        view = image.view(size, inference.max_size, mirrored=mirrored)
        view_height, view_width = view.size
        rois = view.boxes.to(detector.device)
        outputs = detector(detector.prepare([view.inputs]), [rois])
        seen = roi_predictions(outputs, rois)
        upright = mirror(seen.boxes, view_width) if mirrored else seen.boxes
        all_boxes.append(upright * upright.new_tensor([width / view_width, height / view_height] * 2))
        all_scores.append(seen.scores)
    scores = _mean(all_scores)
    if inference.vote_iou is not None:
        scores = votes(scores, box_iou(rois, rois), inference.vote_iou)  # of one view: all have the same overlaps
    return RoiPredictions(_mean(all_boxes), scores)


def votes(scores: Tensor, overlaps: Tensor, min_iou: float) -> Tensor:
    """(R, C) scores of RoIs with those of the RoIs that overlap them: high where many agree, not where one stands out.

    A classifier's best RoI is often the most telling part of an object; the RoIs around the whole of it outvote the few
    around a part. Divided by the most voters that a RoI of the image has, so that probabilities stay probabilities.

    Args:
        scores: (R, C).
        overlaps: (R, R) IoU of the RoIs.
        min_iou: of a RoI and one that votes for it; every RoI votes for itself.
    """
    near = (overlaps >= min_iou).to(scores.dtype)
    return near @ scores / near.sum(1).amax()


def select(seen: RoiPredictions, size: tuple[int, int], inference: WsodInference) -> Detections:
    """The best boxes after suppression within each category; cut to the image, rounded to what a file holds.

    Args:
        seen: of R RoIs.
        size: (height, width) of the image.
        inference: thresholds.
    """
    categories = seen.scores.shape[1]
    boxes = clip_boxes_to_image(seen.boxes.reshape(-1, 4), size)
    boxes = (boxes * GRID).round() / GRID
    scores = seen.scores.flatten()
    labels = torch.arange(categories, device=scores.device).expand_as(seen.scores).flatten()
    usable = (scores > inference.min_score) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    boxes, scores, labels = boxes[usable], scores[usable], labels[usable]
    kept = batched_nms(boxes, scores, labels, inference.nms)[: inference.detections]
    rounded = [_rounded(score) for score in scores[kept].tolist()]
    return Detections(boxes[kept].cpu().numpy(), labels[kept].cpu().numpy(), np.array(rounded, np.float32))


def write_detections(
    path: Path, detections: Sequence[Detections], image_ids: Sequence[int | str], vocabulary: Vocabulary
) -> None:
    """Write the detections of n images as COCO results, atomically.

    Args:
        path: the file.
        detections: n images'.
        image_ids: n ids.
        vocabulary: turns category indices into the data set's ids.
    """
    rows = [
        {
            "image_id": image_id,
            "category_id": vocabulary.source_id(int(label)),
            "bbox": to_xywh(box),
            "score": _rounded(score),
        }
        for image_id, of_image in zip(image_ids, detections, strict=True)
        for box, label, score in zip(of_image.boxes, of_image.labels, of_image.scores.tolist(), strict=True)
    ]
    write_json(path, rows, indent=None)


def read_detections(path: Path, image_ids: Sequence[int | str], vocabulary: Vocabulary) -> list[Detections]:
    """The inverse of :func:`write_detections`; images the file does not name have none.

    Raises:
        UserError: the file is missing or damaged, or names an unknown image or category.
    """
    categories = vocabulary.by_source_id()
    rows: dict[int | str, list[tuple[list[float], int, float]]] = {image_id: [] for image_id in image_ids}
    try:
        for row in json.loads(path.read_text("utf-8")):
            rows[row["image_id"]].append((row["bbox"], categories[row["category_id"]], float(row["score"])))
        return [_of_rows(rows[image_id]) for image_id in image_ids]
    except KeyError as error:
        raise UserError(
            f"{path}: names {error}, which the data set has not, or a result lacks it; delete it to detect again."
        ) from error
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read as detections ({error}); delete it to detect again.") from error


def to_xywh(box: NDArray[np.float32]) -> list[float]:
    """``x, y, width, height`` of a (4,) box; exact for boxes on the grid of :data:`GRID`."""
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def _of_rows(rows: Sequence[tuple[list[float], int, float]]) -> Detections:
    corners = np.array([[x, y, x + width, y + height] for (x, y, width, height), _, _ in rows], np.float32)
    labels = np.array([label for _, label, _ in rows], np.int64)
    return Detections(corners.reshape(-1, 4), labels, np.array([score for *_, score in rows], np.float32))


def _resume(path: Path) -> list[Detections]:
    """The images an unfinished detection has done; a half-written last row is cut off."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    with path.open("r+b") as file:
        file.truncate(len(whole))
    try:
        return [_of_rows([tuple(row) for row in json.loads(line)]) for line in whole.splitlines()]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); delete it to detect again.") from error


def _to_row(found: Detections) -> list[Any]:
    scores = [_rounded(score) for score in found.scores.tolist()]
    return [list(row) for row in zip(map(to_xywh, found.boxes), found.labels.tolist(), scores, strict=True)]


def _rounded(score: float) -> float:
    """Six significant digits: all that a float32 holds whatever its value, so files and memory agree."""
    return float(f"{score:.6g}")


def _mean(values: Sequence[Tensor]) -> Tensor:
    total = values[0].clone()
    for value in values[1:]:
        total += value
    return total / len(values)


def _nothing() -> Detections:
    return _of_rows([])
