"""Det-SAM: a part detector is trained on boxes, and its boxes prompt the frozen segmenter (WPS-SAM, Table 4).

Rooms: :mod:`settings`, :mod:`targets`, :mod:`model` and :mod:`detr` (what trains), :mod:`detectors` (which of them),
:mod:`losses`, :mod:`learner`, :mod:`threshold`, :mod:`predictor`, :mod:`pretrained`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.evaluation.scoring import PART_BOXES
from weakly.foundation.promptable import Frame
from weakly.methods.base import ImageSource, Learner, Method, Score, Skipped, Workspace
from weakly.methods.baselines.det_sam.detectors import build_detector
from weakly.methods.baselines.det_sam.learner import DetSamLearner
from weakly.methods.baselines.det_sam.predictor import DetSamPredictor
from weakly.methods.baselines.det_sam.pretrained import KIND, from_pretrained, save_pretrained
from weakly.methods.baselines.det_sam.settings import PRESETS, DetSamSettings
from weakly.methods.baselines.det_sam.targets import DetSamData, FrameImages, box_targets, readable_images
from weakly.methods.baselines.references import prompt_references
from weakly.methods.embedding import find_store
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.stored_views import Inputs, image_views, store_views
from weakly.methods.student_folder import load_student
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

log = logging.getLogger(__name__)


class DetSamMethod(Method):
    """The verbs of Det-SAM."""

    name: ClassVar[str] = "det-sam"
    Settings: ClassVar[type[Any]] = DetSamSettings
    supervisions: ClassVar[tuple[str, ...]] = ("box",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = (
        "score_threshold",
        "min_score",
        "nms",
        "detections",
        "fusion",
        "max_prompts",
    )

    def prepare(self, settings: DetSamSettings, dataset: Dataset, workspace: Workspace) -> DetSamData:
        """Boxes, and embeddings in the feature store where the detector looks at them; unreadable images are named.

        Raises:
            UserError: the dataset lacks boxes, or no image can be read.
        """
        mirrored = (False, True) if settings.flip else (False,)
        if settings.on_embeddings:
            segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
            views = image_views(mirrored)
            stored = store_views(segmenter, dataset, views, workspace, channels=segmenter.student_channels)
            targets = box_targets(dataset.select(stored.kept), segmenter.frame, mirrored=mirrored)
            return DetSamData(stored.features, targets, stored.skipped)
        kept, skipped = readable_images(dataset, workspace)
        usable = dataset.select(kept)
        paths = tuple(sample.path for sample in usable)
        inputs: tuple[Inputs, ...] = tuple(FrameImages(paths, settings.side, flip) for flip in mirrored)
        frame = partial(Frame.fit, side=settings.side)
        return DetSamData(inputs, box_targets(usable, frame, mirrored=mirrored), skipped)

    def unaugmented(self, settings: DetSamSettings) -> DetSamSettings:
        """Without mirrored images."""
        return replace(settings, flip=False)

    def learner(
        self, settings: DetSamSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> DetSamLearner:
        """A fresh detector.

        Raises:
            UserError: its pretrained weights cannot be loaded.
        """
        segmenter = frozen_segmenter(settings.segmenter, pad=settings.pad)
        student = build_detector(settings, len(vocabulary), segmenter)
        return DetSamLearner(student, settings, vocabulary, optimisation, total_steps, segmenter.fingerprint)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Choose the threshold where the settings leave it open, and write the student folder."""
        if not isinstance(learner, DetSamLearner):
            raise TypeError(f"{type(learner).__name__} is no DetSamLearner")
        save_pretrained(
            folder,
            learner.student,
            learner.settings,
            learner.vocabulary,
            learner.threshold(),
            learner.segmenter_fingerprint,
            card,
        )

    def load(self, folder: Path, workspace: Workspace, settings: DetSamSettings | None = None) -> DetSamPredictor:
        """The predictor of a student folder; it uses stored features where there are any.

        Raises:
            UserError: the folder is damaged, or the segmenter is not the one whose embeddings it was trained on.
        """
        pretrained = from_pretrained(folder, settings)
        settings = pretrained.settings
        segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
        store = find_store(workspace.features, segmenter, workspace.feature_dtype)
        student, threshold = pretrained.detector(segmenter), pretrained.threshold
        return DetSamPredictor(student, segmenter, pretrained.vocabulary, settings, threshold, store)

    def references(self, settings: DetSamSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """Average precision of the student's boxes, once it is trained, and what ``settings.references`` names."""
        bounds = prompt_references(settings, dataset, workspace)
        folder = workspace.run / "student"
        if not (folder / "config.json").is_file() or not PART_BOXES.has_truth(dataset):
            return bounds

        def results() -> Iterator[Segmentation]:
            sources = [ImageSource(s.image_id, s.path, partial(read_image, s.path)) for s in dataset]
            found = self.load(folder, workspace).detect(sources)
            for sample, result in zip(dataset, found, strict=True):
                if isinstance(result, Skipped):
                    log.warning("%s counts as without a detection: %s", result.path, result.reason)
                yield Segmentation(sample.size) if isinstance(result, Skipped) else result

        def identity() -> str:
            config = load_student(folder, KIND).config
            return json.dumps([config["weights_sha256"], config["settings"]])

        boxes = {"setting": "boxes"}
        found = Score(self.name, "box", results, identity, boxes, scoring=PART_BOXES, of_student=True)
        return [found, *bounds]


METHOD = DetSamMethod()
"""Found by its folder's name; see :mod:`weakly.methods.base`."""
