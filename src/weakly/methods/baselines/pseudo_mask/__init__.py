"""Pseudo-masks and MaskFormer: the segmenter's masks of true boxes train a semantic segmenter (WPS-SAM, Table 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.methods.base import Learner, Method, Panel, Score, Workspace
from weakly.methods.baselines.pseudo_mask.model import MaskFormer, build_maskformer
from weakly.methods.baselines.pseudo_mask.pretrained import from_pretrained, save_pretrained
from weakly.methods.baselines.pseudo_mask.settings import PRESETS, PseudoMaskSettings
from weakly.methods.baselines.pseudo_mask.targets import LabelMaps, box_label_maps, true_label_maps
from weakly.methods.baselines.references import prompt_references
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.semantic_learner import SemanticLearner
from weakly.methods.semantic_predictor import SemanticPredictor
from weakly.methods.semantic_targets import SemanticData, read_label_map
from weakly.vocabulary import Vocabulary


class PseudoMaskMethod(Method):
    """The verbs of the pseudo-mask baseline."""

    name: ClassVar[str] = "pseudo-mask"
    Settings: ClassVar[type[Any]] = PseudoMaskSettings
    supervisions: ClassVar[tuple[str, ...]] = ("box", "mask")
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = ("inference",)
    stages: ClassVar[tuple[str, ...]] = ("label-maps",)

    def prepare(self, settings: PseudoMaskSettings, dataset: Dataset, workspace: Workspace) -> SemanticData:
        """Label maps on disk; images that cannot be used are left out and named.

        Raises:
            UserError: the dataset lacks boxes (or, with ``supervision: mask``, true masks), or no image can be used.
        """
        found = label_maps(settings, dataset, workspace)
        workspace.done("label-maps")
        return SemanticData(
            found.images, found.maps, len(dataset.vocabulary), settings.augmentation, skipped=found.skipped
        )

    def learner(
        self, settings: PseudoMaskSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> SemanticLearner:
        """A fresh MaskFormer."""
        network = build_maskformer(settings.maskformer, len(vocabulary))
        return SemanticLearner(network, settings, vocabulary, optimisation, total_steps)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder."""
        if not isinstance(learner, SemanticLearner) or not isinstance(learner.student, MaskFormer):
            raise TypeError(f"{type(learner).__name__} trains no MaskFormer")
        save_pretrained(folder, learner.student, learner.settings, learner.vocabulary, card)

    def load(self, folder: Path, workspace: Workspace, settings: PseudoMaskSettings | None = None) -> SemanticPredictor:
        """The predictor of a student folder; the segmenter is not needed.

        Raises:
            UserError: the folder is damaged or of another version.
        """
        network, settings, vocabulary = from_pretrained(folder, settings)
        return SemanticPredictor(network, vocabulary, settings.inference, method=self.name, device=workspace.device)

    def references(self, settings: PseudoMaskSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """What ``settings.references`` names: true prompts in front of the same segmenter, and its automatic masks."""
        return prompt_references(settings, dataset, workspace, settings.automatic_masks)

    def panels(
        self, settings: PseudoMaskSettings, dataset: Dataset, workspace: Workspace, indices: Sequence[int]
    ) -> list[list[Panel]]:
        """The pseudo-mask of each image; none where an image cannot be used, nor with true masks."""
        chosen = dataset.select(indices)
        if settings.supervision == "mask" or not any(sample.boxes is not None for sample in chosen):
            return [[] for _ in indices]
        found = label_maps(settings, chosen, workspace)
        maps = dict(zip(found.images, found.maps, strict=True))
        return [
            [Panel("pseudo-mask", "labels", read_label_map(maps[sample.path], len(dataset.vocabulary)))]
            if sample.path in maps
            else []
            for sample in chosen
        ]


def label_maps(settings: PseudoMaskSettings, dataset: Dataset, workspace: Workspace) -> LabelMaps:
    """What the network is trained on, as the supervision says."""
    if settings.supervision == "mask":
        workspace.note(f"The labels of {dataset.split} are its true masks: this run is fully supervised")
        return true_label_maps(dataset, workspace)
    segmenter = frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)
    return box_label_maps(segmenter, dataset, workspace, max_prompts=settings.max_prompts)


METHOD = PseudoMaskMethod()
