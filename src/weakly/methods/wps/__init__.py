"""WPS-SAM: part masks without a prompt, learned from boxes or points on parts (ECCV 2024)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.methods.base import Learner, Method, Score, Workspace
from weakly.methods.baselines.references import prompt_references
from weakly.methods.embedding import find_store
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.stored_views import image_views, store_views
from weakly.methods.tables import Tables
from weakly.methods.wps.learner import PromptLearner, WpsLearner
from weakly.methods.wps.predictor import WpsPredictor
from weakly.methods.wps.pretrained import build_student, from_pretrained, save_pretrained
from weakly.methods.wps.region_learner import RegionLearner
from weakly.methods.wps.settings import PREDICTS_WITH, PRESETS, WpsSettings
from weakly.methods.wps.tables import paper_tables
from weakly.methods.wps.targets import Teacher, WpsData, teacher_targets
from weakly.vocabulary import Vocabulary


class WpsMethod(Method):
    """The verbs of WPS-SAM."""

    name: ClassVar[str] = "wps"
    Settings: ClassVar[type[Any]] = WpsSettings
    supervisions: ClassVar[tuple[str, ...]] = ("box", "point", "point+box")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = PREDICTS_WITH

    def prepare(self, settings: WpsSettings, dataset: Dataset, workspace: Workspace) -> WpsData:
        """Embeddings in the feature store and teacher tokens; images that cannot be read are left out and named.

        Raises:
            UserError: the dataset lacks the labels, or no image can be read.
        """
        segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
        mirrored = (False, True) if settings.flip else (False,)
        channels = None if settings.lambda_mask else segmenter.student_channels  # masks need all that the decoder does
        stored = store_views(segmenter, dataset, image_views(mirrored), workspace, channels=channels)
        targets = teacher_targets(segmenter, dataset.select(stored.kept), settings, mirrored=mirrored)
        return WpsData(stored.features, targets, Teacher(segmenter, settings.supervision), stored.skipped)

    def unaugmented(self, settings: WpsSettings) -> WpsSettings:
        """Without mirrored images."""
        return replace(settings, flip=False)

    def learner(
        self, settings: WpsSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> PromptLearner:
        """A fresh prompter that fits the segmenter."""
        segmenter = frozen_segmenter(settings.segmenter, pad=settings.pad)
        student = build_student(settings, len(vocabulary), segmenter)
        kind = RegionLearner if settings.prompter == "regions" else WpsLearner
        return kind(student, settings, vocabulary, optimisation, total_steps, segmenter)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder."""
        if not isinstance(learner, PromptLearner):
            raise TypeError(f"{type(learner).__name__} is no PromptLearner")
        save_pretrained(
            folder, learner.student, learner.settings, learner.vocabulary, learner.segmenter_fingerprint, card
        )

    def load(self, folder: Path, workspace: Workspace, settings: WpsSettings | None = None) -> WpsPredictor:
        """The predictor of a student folder; it uses stored features where there are any.

        Raises:
            UserError: the folder is damaged, or the segmenter is not the one the student was trained on.
        """
        pretrained = from_pretrained(folder, settings)
        settings = pretrained.settings
        segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
        store = find_store(workspace.features, segmenter, workspace.feature_dtype)
        return WpsPredictor(
            pretrained.prompter(segmenter), segmenter, pretrained.vocabulary, settings, store, self.name
        )

    def references(self, settings: WpsSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """What ``settings.references`` names: the upper bounds of the method, on the same segmenter."""
        return prompt_references(settings, dataset, workspace)

    def tables(self, settings: WpsSettings) -> Tables:
        """The paper's tables as changes of these settings."""
        return paper_tables(settings)


METHOD = WpsMethod()
