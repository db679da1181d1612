"""WeakSAM: image tags to boxes and instance masks, by way of a promptable segmenter's proposals.

Rooms: :mod:`clues` (A), :mod:`peaks` (B), :mod:`proposals` (C), :mod:`wsod` (D), :mod:`pseudo_truth` (E),
:mod:`detectors` (F), :mod:`pseudo_masks` (G), :mod:`pipeline` (A to E in order), :mod:`stages` (what they make of a
dataset), :mod:`targets`, :mod:`learner`, :mod:`predictor`, :mod:`embedded` (both for students on embeddings),
:mod:`settings`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.evaluation.scoring import BOXES, INSTANCES, PROPOSALS, Scoring
from weakly.methods.base import Learner, Method, Panel, Score, Skipped, Workspace
from weakly.methods.embedding import EmbeddingSource, find_store
from weakly.methods.fma.seeds import tags_of
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.tables import Tables
from weakly.methods.weaksam.embedded import EmbeddedData, EmbeddedPredictor, embed
from weakly.methods.weaksam.learner import WeakSamLearner
from weakly.methods.weaksam.pipeline import STAGES, Pipeline
from weakly.methods.weaksam.predictor import WeakSamPredictor
from weakly.methods.weaksam.presets import PRESETS
from weakly.methods.weaksam.pretrained import from_pretrained, save_pretrained
from weakly.methods.weaksam.settings import PREDICTS_WITH, WeakSamSettings
from weakly.methods.weaksam.stages import Boxes, Stages
from weakly.methods.weaksam.students import build_student
from weakly.methods.weaksam.tables import paper_tables
from weakly.methods.weaksam.targets import PseudoInstances, WeakSamData
from weakly.vocabulary import Vocabulary


class WeakSamMethod(Method):
    """Trains a detector or an instance head on what stages A to E make of image tags."""

    name: ClassVar[str] = "weaksam"
    Settings: ClassVar[type[Any]] = WeakSamSettings
    supervisions: ClassVar[tuple[str, ...]] = ("tags",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = PREDICTS_WITH
    scoring: ClassVar[Scoring] = BOXES
    stages: ClassVar[tuple[str, ...]] = STAGES
    shared: ClassVar[tuple[str, ...]] = ("clues", "points", "wsod", "pseudo_masks")

    def prepare(self, settings: WeakSamSettings, dataset: Dataset, workspace: Workspace) -> WeakSamData | EmbeddedData:
        """Every stage before the student; images that cannot be read or have no tags are left out and named.

        Raises:
            UserError: the dataset has no tags, no image can be read, or none has both tags and proposals.
        """
        if settings.truth == "true-boxes":
            data = _true_data(settings, dataset)
            workspace.done(STAGES[-1])
        else:
            data = _pseudo_data(settings, dataset, workspace)
        if not settings.on_embeddings:
            return data
        return embed(data, dataset, frozen_segmenter(settings.segmenter, workspace.device), workspace)

    def unaugmented(self, settings: WeakSamSettings) -> WeakSamSettings:
        """Without mirrored images."""
        return replace(settings, augmentation=replace(settings.augmentation, flip=0.0))

    def learner(
        self, settings: WeakSamSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> WeakSamLearner:
        """A fresh student."""
        source = EmbeddingSource.of(frozen_segmenter(settings.segmenter)) if settings.on_embeddings else None
        student = build_student(settings.student, settings.architecture, len(vocabulary), source)
        return WeakSamLearner(student, settings, vocabulary, optimisation, total_steps)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder."""
        if not isinstance(learner, WeakSamLearner):
            raise TypeError(f"{type(learner).__name__} is no WeakSamLearner")
        save_pretrained(folder, learner.student, learner.settings, learner.vocabulary, card)

    def load(
        self, folder: Path, workspace: Workspace, settings: WeakSamSettings | None = None
    ) -> WeakSamPredictor | EmbeddedPredictor:
        """The predictor of a student folder. The segmenter is loaded where it is looked at, or boxes are to prompt it.

        Raises:
            UserError: the folder is damaged or of another version, or the segmenter is missing or another one than the
                student was trained on.
        """
        student, settings, vocabulary = from_pretrained(folder, settings)
        prompted = not settings.wants_masks and settings.inference.boxes_to_masks == "segmenter"
        asked = prompted or settings.on_embeddings
        segmenter = frozen_segmenter(settings.segmenter, workspace.device) if asked else None
        store = find_store(workspace.features, segmenter, workspace.feature_dtype) if segmenter else None
        if segmenter is not None and settings.on_embeddings:
            return EmbeddedPredictor(student, vocabulary, settings.inference, segmenter, store)
        return WeakSamPredictor(student, vocabulary, settings.inference, segmenter, workspace.device, store)

    def scoring_of(self, settings: WeakSamSettings) -> Scoring:
        """Masks of instance heads, boxes of detectors."""
        return INSTANCES if settings.wants_masks else BOXES

    def final_row(self, settings: WeakSamSettings) -> dict[str, str]:
        """What the student's record is called: its stage, and the upper bound or the yardstick it stands for."""
        row = {"row": "instance" if settings.wants_masks else "retrained"}
        if settings.truth == "true-boxes":
            return {**row, "method": "true-boxes", "supervision": "box"}
        return {**row, "method": settings.proposals_by}

    def references(self, settings: WeakSamSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """The stages of this run on a split with tags: recall of proposals, detections, and pseudo truth.

        Proposals and pseudo truth know the tags of the images; on the split that the run was trained on that is what
        the student learned from. None for a run on true boxes, for a split without tags, or before training.
        """
        stages = _stages(settings, dataset, workspace)
        if stages is None:
            return []
        rows: tuple[tuple[str, Callable[[], Sequence[Boxes]], Scoring], ...] = (
            ("proposals", stages.proposals, PROPOSALS),
            ("wsod", stages.detections, BOXES),
            ("pseudo-truth", stages.pseudo_truth, BOXES),
        )
        return [
            Score(
                method=settings.proposals_by,
                supervision="tags",
                results=partial(stages.results, stage),
                identity=partial(stages.identity, row),
                extra={"row": row},
                scoring=scoring,
            )
            for row, stage, scoring in rows
        ]

    def panels(
        self, settings: WeakSamSettings, dataset: Dataset, workspace: Workspace, indices: Sequence[int]
    ) -> list[list[Panel]]:
        """Clue map, peaks, proposals, detections and pseudo truth of some images; see :meth:`Stages.panels`.

        An image that cannot be read, or shows nothing according to its tags, has none.
        """
        stages = _stages(settings, dataset, workspace)
        return [[] for _ in indices] if stages is None else [stages.panels(dataset[index]) for index in indices]

    def tables(self, settings: WeakSamSettings) -> Tables:
        """The published tables and the ablations; see :mod:`weakly.methods.weaksam.tables`."""
        return paper_tables(settings)


def _stages(settings: WeakSamSettings, dataset: Dataset, workspace: Workspace) -> Stages | None:
    """The stages over a dataset; None for a run on true boxes, for a split without tags, or before training."""
    if settings.truth == "true-boxes" or any(tags_of(sample) is None for sample in dataset):
        return None
    pipeline = Pipeline(settings, dataset.vocabulary, workspace)
    return Stages(pipeline, dataset) if pipeline.trained() else None


def _pseudo_data(settings: WeakSamSettings, dataset: Dataset, workspace: Workspace) -> WeakSamData:
    """What the stages make of the images' tags."""
    pipeline = Pipeline(settings, dataset.vocabulary, workspace)
    images = pipeline.usable(dataset)
    paths = tuple(sample.path for sample in images.samples)
    return WeakSamData(paths, tuple(pipeline.instances(images)), settings.augmentation, skipped=images.skipped)


def _true_data(settings: WeakSamSettings, dataset: Dataset) -> WeakSamData:
    """Boxes (and masks) of the annotations in place of pseudo truth; difficult ones are left out."""
    if not dataset.has_instances():
        raise UserError(
            f"{dataset.name} ({dataset.split}) has no true boxes to train on; set settings.truth to pseudo."
        )
    instances: list[PseudoInstances] = []
    paths: list[Path] = []
    skipped: list[Skipped] = []
    for index, sample in enumerate(dataset):
        if dataset.records[index].instances is None:
            reason = f"{sample.path} has no annotation of its objects; add it or drop its record."
            skipped.append(Skipped(sample.image_id, sample.path, reason))
            continue
        truth = dataset.instances(index)
        if settings.wants_masks and len(truth) and truth.rles is None:
            raise UserError(f"{sample.path} has no true masks, which {settings.student} needs; choose a detector.")
        try:
            read_image(sample.path)
        except UserError as error:
            skipped.append(Skipped(sample.image_id, sample.path, str(error)))
            continue
        if settings.wants_masks:
            truth = dataset.instances(index, masks=True)
        kept = truth.select(~truth.difficult)
        instances.append(PseudoInstances(kept.boxes, kept.labels, kept.rles if settings.wants_masks else None))
        paths.append(sample.path)
    if not paths:
        raise UserError(f"No image of {dataset.name} ({dataset.split}) can be read; run `weakly data check` on it.")
    return WeakSamData(tuple(paths), tuple(instances), settings.augmentation, skipped=tuple(skipped))


METHOD = WeakSamMethod()
