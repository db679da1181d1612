"""A prompter with anchors in the place of queries (WPS-SAM, Table B, "anchor-based CNN")."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.methods.base import Learner, Method, Score, Workspace
from weakly.methods.baselines.anchor_prompter.learner import AnchorPrompterLearner, build_prompter
from weakly.methods.baselines.anchor_prompter.predictor import AnchorPrompterPredictor
from weakly.methods.baselines.anchor_prompter.pretrained import KIND, build_pretrained, save_pretrained
from weakly.methods.baselines.anchor_prompter.settings import PRESETS, AnchorPrompterSettings
from weakly.methods.baselines.oracle import oracle_scores
from weakly.methods.embedding import find_store
from weakly.methods.optimisation import Optimisation
from weakly.methods.student_folder import load_student
from weakly.methods.wps import METHOD as WPS
from weakly.methods.wps import frozen_segmenter
from weakly.methods.wps.targets import WpsData
from weakly.vocabulary import Vocabulary


class AnchorPrompterMethod(Method):
    """The verbs of the anchor-based prompter."""

    name: ClassVar[str] = "anchor-prompter"
    Settings: ClassVar[type[Any]] = AnchorPrompterSettings
    supervisions: ClassVar[tuple[str, ...]] = ("box", "point+box")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS

    def prepare(self, settings: AnchorPrompterSettings, dataset: Dataset, workspace: Workspace) -> WpsData:
        """Embeddings in the feature store and teacher tokens: exactly what WPS-SAM trains on.

        Raises:
            UserError: the dataset lacks the labels, or no image can be read.
        """
        return WPS.prepare(settings.prompting(), dataset, workspace)

    def learner(
        self, settings: AnchorPrompterSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> AnchorPrompterLearner:
        """A fresh prompter that fits the segmenter."""
        segmenter = frozen_segmenter(settings.segmenter, settings.pad)
        student = build_prompter(settings, len(vocabulary), segmenter)
        return AnchorPrompterLearner(student, settings, vocabulary, optimisation, total_steps, segmenter.fingerprint)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder."""
        if not isinstance(learner, AnchorPrompterLearner):
            raise TypeError(f"{type(learner).__name__} is no AnchorPrompterLearner")
        save_pretrained(
            folder, learner.student, learner.settings, learner.vocabulary, learner.segmenter_fingerprint, card
        )

    def load(self, folder: Path, workspace: Workspace) -> AnchorPrompterPredictor:
        """The predictor of a student folder; it uses stored features where there are any.

        Raises:
            UserError: the folder is damaged, or the segmenter is not the one the student was trained on.
        """
        saved = load_student(folder, KIND)
        settings = saved.settings
        segmenter = frozen_segmenter(settings.segmenter, settings.pad, workspace.device)
        student = build_pretrained(saved, segmenter)
        store = find_store(workspace.features, segmenter, workspace.feature_dtype)
        return AnchorPrompterPredictor(student, segmenter, saved.vocabulary, settings.prompting(), store)

    def references(self, settings: AnchorPrompterSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """True boxes and their centres as prompts on the same segmenter: the upper bounds of WPS-SAM."""
        return oracle_scores(
            partial(frozen_segmenter, settings.segmenter, settings.pad, workspace.device),
            dataset,
            lambda segmenter: find_store(workspace.features, segmenter, workspace.feature_dtype),
        )


METHOD = AnchorPrompterMethod()
