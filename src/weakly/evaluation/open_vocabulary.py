"""Part segmentation by names, some of whose objects were never trained on (spec partclipseg section 6).

Two settings share one set of figures:

* **Pred-All**: the prediction chooses among the parts of all objects;
* **Oracle-Obj**: it was told which object each pixel belongs to, and chooses among that object's parts.

The headline figures are the published ones: **only pixels with a true part label count**, in both settings, so a part
that is predicted on background costs nothing. Pred-All therefore also states ``strict`` figures, for which every pixel
counts but void. All of them are means over classes with true pixels, apart for seen and unseen objects, and their
harmonic mean. Everything is read off integer counts that are only ever added.

Published figures are of labels that went through a resizing to 800 pixels and back (section 6.2), which shifts most of
them by one pixel; the same figures on such labels come as ``resize800`` beside those on the labels as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import VOID, WIDE_VOID
from weakly.data.object_parts import object_and_part, object_table
from weakly.errors import UserError
from weakly.evaluation.boundary import band_width, label_differences
from weakly.evaluation.pairs import OfficialOptions
from weakly.evaluation.part_counts import (
    SIZES,
    Counts,
    Values,
    band_pixels,
    class_iou,
    class_recall,
    defined_mean,
    grouped_means,
    label_pairs,
    pixels_by_size,
    ratio,
    resized_and_back,
)
from weakly.evaluation.scoring import Scoring
from weakly.evaluation.semantic import with_known_truth
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

Setting = Literal["pred-all", "oracle-obj"]
LabelPath = Literal["native", "resize800"]


def pred_all(unseen: tuple[str, ...] = (), label_path: LabelPath = "native") -> Scoring:
    """Scoring of predictions that chose among the parts of all objects.

    Args:
        unseen: objects that were not trained on. Those that a dataset does not have do not matter, so that a method can
            be scored on other data than its own; without any, all classes are seen.
        label_path: of the headline figures: labels as they are, or resized as in the published evaluation.
    """
    return _scoring("pred-all", unseen, label_path)


def oracle_obj(unseen: tuple[str, ...] = (), label_path: LabelPath = "native") -> Scoring:
    """Scoring of predictions that were told the true object of each pixel; arguments as :func:`pred_all`."""
    return _scoring("oracle-obj", unseen, label_path)


@dataclass(frozen=True)
class OpenVocabularyScores:
    """What an evaluation found. Figures are fractions; NaN where no class could be averaged.

    Attributes:
        setting: ``"pred-all"`` or ``"oracle-obj"``.
        miou: over all classes with true pixels.
        recall: likewise.
        seen, unseen, harmonic: mIoU of the classes of seen and of unseen objects, and their harmonic mean.
        per_class: a row per class: ``name, object, part, seen, iou, acc, boundary_iou, true_pixels, predicted_pixels``
            and, in Pred-All, ``strict_iou``; what is undefined is None.
        images: images scored.
        null_images: images predicted as background alone.
        details: further figures by name, most of them ``{"all", "seen", "unseen", "harmonic"}``: ``classes`` (numbers
            of classes averaged), ``recall``, ``recall_by_size``, ``boundary_iou``, ``boundary_iou_compat`` (label
            differences, the paper's boundary IoU), ``resize800`` (mIoU and recall), ``per_part``; in Pred-All
            ``objects`` (IoU of whole objects) and ``strict`` (``miou``, ``boundary_iou``, ``background``).
    """

    setting: Setting
    miou: float
    recall: float
    seen: float
    unseen: float
    harmonic: float
    per_class: list[dict[str, Any]]
    images: int
    null_images: int
    details: Mapping[str, Any]

    def record_fields(self) -> dict[str, Any]:
        """The fields of a :class:`~weakly.evaluation.records.Record` that these scores fill."""
        names = ("setting", "miou", "recall", "seen", "unseen", "harmonic", "per_class", "images", "null_images")
        return {**{name: getattr(self, name) for name in names}, "details": dict(self.details)}


@dataclass(eq=False)
class OpenVocabularyEvaluator:
    """Scores one label map after another; memory: three (C + 1, C + 1) matrices of int64.

    Attributes:
        vocabulary: C categories, each of an object; index C is background.
        setting: see the module.
        unseen: objects that were not trained on.
        label_path: of the headline figures and of all boundaries.
        counts: {label path: (C + 1, C + 1)}; ``[t, p]`` pixels of true class t were predicted as p, void left out.
        images: images scored so far.
    """

    vocabulary: Vocabulary
    setting: Setting = "pred-all"
    unseen: tuple[str, ...] = ()
    label_path: LabelPath = "native"
    counts: dict[LabelPath, Counts] = field(init=False)
    images: int = field(init=False, default=0)
    _differences: Counts = field(init=False)
    _bands: Counts = field(init=False)
    _strict_bands: Counts = field(init=False)
    _sizes: Counts = field(init=False)
    _null_images: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        square = len(self.vocabulary) + 1
        self.counts = {path: np.zeros((square, square), np.int64) for path in ("native", "resize800")}
        self._differences = np.zeros((square, square), np.int64)
        self._bands, self._strict_bands = np.zeros((2, 3, len(self.vocabulary)), np.int64)
        self._sizes = np.zeros((2, len(SIZES) + 1, len(self.vocabulary)), np.int64)

    def update(self, truth: Segmentation, prediction: Segmentation, index: int | None = None) -> None:
        """Score one image at its original size.

        Args:
            truth: part masks or a label map, in which 255 or 65535 is void where it is no category.
            prediction: of the same size; in Oracle-Obj the map of all objects together.
            index: position of the image in the data set, for errors; its order does not matter.

        Raises:
            UserError: the sizes differ, or a label is not in the vocabulary.
        """
        background = self.vocabulary.background
        true, predicted = truth.to_label_map(background), prediction.to_label_map(background)
        _check(true, predicted, background, self.images if index is None else index)
        true, predicted = np.minimum(true.astype(np.int64), background + 1), predicted.astype(np.int64)
        by_path: dict[LabelPath, Counts] = {"native": true, "resize800": resized_and_back(true)}
        for path, labels in by_path.items():
            self.counts[path] += label_pairs(labels, predicted, background)
        self._count_boundaries(by_path[self.label_path], predicted)
        self._sizes += pixels_by_size(true, predicted, background)
        self.images += 1
        self._null_images += not (predicted < background).any()

    def merge(self, other: OpenVocabularyEvaluator) -> OpenVocabularyEvaluator:
        """The evaluator of both sets of images, e.g. of two ranks. Shards must not repeat images."""
        how = (self.vocabulary, self.setting, self.unseen, self.label_path)
        if how != (other.vocabulary, other.setting, other.unseen, other.label_path):
            raise ValueError("evaluators with different settings cannot be merged")
        merged = OpenVocabularyEvaluator(*how)
        merged.counts = {path: matrix + other.counts[path] for path, matrix in self.counts.items()}
        for name in ("_differences", "_bands", "_strict_bands", "_sizes", "images", "_null_images"):
            setattr(merged, name, getattr(self, name) + getattr(other, name))
        return merged

    def compute(self) -> OpenVocabularyScores:
        """Figures over everything seen so far; may be called at any time.

        Raises:
            UserError: no pixel with a part label was scored.
        """
        counts, background = self.counts[self.label_path], self.vocabulary.background
        if not counts[:background].any():
            raise UserError("No pixel with a part label was scored; evaluate on a split with true part masks.")
        iou, recall = class_iou(counts[:background]), class_recall(counts)
        means = self._means(iou)
        return OpenVocabularyScores(
            setting=self.setting,
            miou=means["all"],
            recall=defined_mean(recall),
            **{name: means[name] for name in ("seen", "unseen", "harmonic")},
            per_class=self._per_class(),
            images=self.images,
            null_images=self._null_images,
            details=self._details(iou, recall),
        )

    def _count_boundaries(self, true: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
        """Bands and label differences of one image; void is ``C + 1`` in ``true``."""
        background, width = self.vocabulary.background, band_width((true.shape[0], true.shape[1]))
        with_part = true < background
        alone = [np.where(with_part, labels, background) for labels in (true, predicted)]
        self._bands += band_pixels(alone[0], alone[1], width, background)
        if self.setting == "pred-all":
            known = [np.where(true > background, background, labels) for labels in (true, predicted)]
            self._strict_bands += band_pixels(known[0], known[1], width, background)
        # The published evaluation sees the parts of one object at a time (section 6.1).
        owners = np.append(object_table(self.vocabulary)[1], [-1, -1])[true]
        own = owners == np.unique(owners[with_part])[:, None, None]
        fallen = [label_differences(np.where(own, labels, background), width).astype(np.int64) for labels in alone]
        self._differences += label_pairs(fallen[0], fallen[1], background)

    def _details(self, iou: Values, recall: Values) -> dict[str, Any]:
        background = self.vocabulary.background
        resized, differences = self.counts["resize800"], self._differences
        sizes = ratio(self._sizes[1], self._sizes[0])
        seen = self._is_seen & ~np.isnan(iou)
        details: dict[str, Any] = {
            "label_path": self.label_path,
            "classes": {"seen": int(seen.sum()), "unseen": int((~np.isnan(iou)).sum() - seen.sum())},
            "recall": self._means(recall),
            "recall_by_size": {name: self._means(row) for name, row in zip([*SIZES, "large"], sizes, strict=True)},
            "boundary_iou": self._means(self._boundary_iou(self._bands)),
            "boundary_iou_compat": self._means(class_iou(differences[:background, :background], only_true=False)),
            "resize800": {
                "miou": self._means(class_iou(resized[:background])),
                "recall": self._means(class_recall(resized)),
            },
            "per_part": self._per_part(iou),
        }
        if self.setting == "pred-all":
            details |= {"objects": self._object_means(), "strict": self._strict()}
        return details

    def _strict(self) -> dict[str, Any]:
        """Figures for which every pixel counts but void."""
        counts = self.counts[self.label_path]
        return {
            "miou": self._means(class_iou(counts)[:-1]),
            "boundary_iou": self._means(self._boundary_iou(self._strict_bands)),
            "background": float(class_iou(counts)[-1]),
        }

    def _object_means(self) -> dict[str, float]:
        """IoU of whole objects, told by their parts; every pixel counts but void."""
        objects, owners = object_table(self.vocabulary)
        member = np.append(owners, len(objects))[:, None] == np.arange(len(objects) + 1)
        counts = member.T.astype(np.int64) @ self.counts[self.label_path] @ member
        return grouped_means(class_iou(counts)[:-1], ~np.isin(objects, self.unseen))

    def _boundary_iou(self, bands: Counts) -> Values:
        """(C,) of the classes with true pixels; rows of ``bands``: in both, in the truth, in the prediction."""
        both, true, predicted = bands
        return np.where(true > 0, ratio(both, true + predicted - both), np.nan)

    @property
    def _is_seen(self) -> NDArray[np.bool_]:
        objects, owners = object_table(self.vocabulary)
        unseen = np.append(np.isin(objects, self.unseen), False)
        return np.asarray(~unseen[owners])

    def _means(self, values: Values) -> dict[str, float]:
        return grouped_means(values, self._is_seen)

    def _per_part(self, iou: Values) -> list[dict[str, Any]]:
        """The mIoU of each part word over the objects that have it."""
        words = np.array([object_and_part(category)[1] for category in self.vocabulary.categories])
        return [
            {"part": str(word), **grouped_means(iou[words == word], self._is_seen[words == word])}
            for word in np.unique(words[~np.isnan(iou)])
        ]

    def _per_class(self) -> list[dict[str, Any]]:
        counts, background = self.counts[self.label_path], self.vocabulary.background
        columns: dict[str, Values] = {
            "iou": class_iou(counts[:background]),
            "acc": class_recall(counts),
            "boundary_iou": self._boundary_iou(self._bands),
        }
        if self.setting == "pred-all":
            columns["strict_iou"] = class_iou(counts)[:-1]
        true, predicted = counts[:background].sum(1), counts[:background, :background].sum(0)
        rows = []
        for k, (category, seen) in enumerate(zip(self.vocabulary.categories, self._is_seen, strict=True)):
            whole, part = object_and_part(category)
            figures = {name: None if np.isnan(values[k]) else float(values[k]) for name, values in columns.items()}
            pixels = {"true_pixels": int(true[k]), "predicted_pixels": int(predicted[k])}
            rows.append({"name": category.name, "object": whole, "part": part, "seen": bool(seen), **figures, **pixels})
        return rows


def _scoring(setting: Setting, unseen: tuple[str, ...], label_path: LabelPath) -> Scoring:
    return Scoring(
        f"{setting} ({label_path} labels; unseen: {', '.join(sorted(unseen)) or 'none'})",
        with_known_truth,
        partial(_evaluator, setting, unseen, label_path),
        _image_iou,
    )


def _evaluator(
    setting: Setting,
    unseen: tuple[str, ...],
    label_path: LabelPath,
    vocabulary: Vocabulary,
    _frame_side: int,
    _official: OfficialOptions,
) -> OpenVocabularyEvaluator:
    return OpenVocabularyEvaluator(vocabulary, setting, unseen, label_path)


def _image_iou(truth: Segmentation, prediction: Segmentation, background: int) -> Values:
    """(T,) IoU, on the pixels with a part label, of the classes that one image truly shows."""
    true, predicted = truth.to_label_map(background), prediction.to_label_map(background)
    counts = label_pairs(np.minimum(true.astype(np.int64), background + 1), predicted.astype(np.int64), background)
    iou = class_iou(counts[:background])
    return iou[~np.isnan(iou)]


def _check(true: NDArray[Any], predicted: NDArray[Any], background: int, index: int) -> None:
    if true.shape != predicted.shape:
        (h, w), (height, width) = true.shape, predicted.shape
        raise UserError(
            f"Image {index} has a truth of {w} x {h} pixels but a prediction of {width} x {height}; predict at the "
            "original size of the image."
        )
    strange = (true > background) & (true != WIDE_VOID) & ((true != VOID) | (background >= VOID))
    for name, labels, wrong in (("truth", true, strange), ("prediction", predicted, predicted > background)):
        if wrong.any():
            raise UserError(
                f"Image {index}: {name} label {int(labels[wrong][0])} is outside 0..{background}; score it with the "
                "vocabulary it was made with."
            )
