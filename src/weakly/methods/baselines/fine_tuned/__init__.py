"""WPS-SAM with the segmenter's image encoder fine-tuned (WPS-SAM, Table A); its decoder stays frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.methods.base import Learner, Method, Score, Workspace
from weakly.methods.baselines.fine_tuned.learner import FineTunedLearner
from weakly.methods.baselines.fine_tuned.model import build_student, tuned_segmenter
from weakly.methods.baselines.fine_tuned.pretrained import KIND, build_pretrained, save_pretrained
from weakly.methods.baselines.fine_tuned.settings import PRESETS, FineTunedSettings
from weakly.methods.baselines.fine_tuned.targets import Images, readable
from weakly.methods.baselines.references import prompt_references
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.stored_views import image_views
from weakly.methods.student_folder import load_student
from weakly.methods.wps.predictor import WpsPredictor
from weakly.methods.wps.settings import PREDICTS_WITH
from weakly.methods.wps.targets import Teacher, WpsData, teacher_targets
from weakly.vocabulary import Vocabulary


class FineTunedMethod(Method):
    """The verbs of WPS-SAM with a fine-tuned encoder."""

    name: ClassVar[str] = "fine-tuned"
    Settings: ClassVar[type[Any]] = FineTunedSettings
    supervisions: ClassVar[tuple[str, ...]] = ("box", "point", "point+box")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = PREDICTS_WITH

    def prepare(self, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace) -> WpsData:
        """Teacher tokens of the images that can be read; the others are left out and named. Nothing is encoded.

        Raises:
            UserError: the dataset lacks the labels, or no image can be read.
        """
        segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
        kept, skipped = readable(dataset, workspace)
        usable = dataset.select(kept)
        mirrored = (False, True) if settings.flip else (False,)
        paths = [sample.path for sample in usable]
        images = tuple(Images(paths, read, segmenter.preprocess) for read in image_views(mirrored).values())
        targets = teacher_targets(segmenter, usable, settings, mirrored=mirrored)
        return WpsData(images, targets, Teacher(segmenter, settings.supervision), skipped)

    def unaugmented(self, settings: FineTunedSettings) -> FineTunedSettings:
        """Without mirrored images."""
        return replace(settings, flip=False)

    def learner(
        self, settings: FineTunedSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> FineTunedLearner:
        """A fresh prompter behind a copy of the segmenter's encoder.

        Raises:
            UserError: the segmenter is no SAM.
        """
        segmenter = frozen_segmenter(settings.segmenter, pad=settings.pad)
        student = build_student(settings, len(vocabulary), segmenter, checkpointing=settings.checkpointing)
        return FineTunedLearner(student, settings, vocabulary, optimisation, total_steps, segmenter)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder: prompter and encoder."""
        if not isinstance(learner, FineTunedLearner):
            raise TypeError(f"{type(learner).__name__} is no FineTunedLearner")
        save_pretrained(
            folder, learner.student, learner.settings, learner.vocabulary, learner.segmenter_fingerprint, card
        )

    def load(self, folder: Path, workspace: Workspace, settings: FineTunedSettings | None = None) -> WpsPredictor:
        """The predictor of a student folder: the tuned encoder, the prompter, and the frozen segmenter's decoder.

        Stored features are the frozen encoder's and are not used.

        Raises:
            UserError: the folder is damaged, or the segmenter is not the one the student was trained on.
        """
        saved = load_student(folder, KIND, settings)
        settings = saved.settings
        segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
        student = build_pretrained(saved, segmenter)
        tuned = tuned_segmenter(segmenter, student.image_encoder).to(workspace.device)
        return WpsPredictor(student, tuned, saved.vocabulary, settings, method=self.name)

    def references(self, settings: FineTunedSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """What ``settings.references`` names, on the frozen segmenter: the upper bounds of WPS-SAM."""
        return prompt_references(settings, dataset, workspace)


METHOD = FineTunedMethod()
