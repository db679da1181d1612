"""FMA-WSSS: semantic masks from image tags, by a frozen CLIP and a frozen SAM (WACV 2024)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from weakly.data.dataset import Dataset
from weakly.evaluation.scoring import SEMANTIC, Scoring
from weakly.foundation.image_keys import image_keys
from weakly.methods.base import Learner, Method, Panel, Score, Workspace
from weakly.methods.embedding import EmbeddingSource, find_store
from weakly.methods.fma.embedded import EmbeddedMaps, EmbeddedPredictor, embed
from weakly.methods.fma.masks import MaskStore
from weakly.methods.fma.networks import build_network
from weakly.methods.fma.pipeline import STAGES, Pipeline, Stage
from weakly.methods.fma.presets import PRESETS
from weakly.methods.fma.pretrained import from_pretrained, save_pretrained
from weakly.methods.fma.pyramid import PyramidNetwork
from weakly.methods.fma.refine import by_crf, by_masks
from weakly.methods.fma.seeds import seed_results, tags_of
from weakly.methods.fma.settings import FmaSettings
from weakly.methods.fma.stages import stage_panels
from weakly.methods.fma.tables import paper_tables
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.optimisation import Optimisation
from weakly.methods.semantic_learner import SemanticLearner
from weakly.methods.semantic_predictor import Refine, SemanticPredictor
from weakly.methods.semantic_targets import SemanticData
from weakly.methods.tables import Tables
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary


class FmaMethod(Method):
    """The verbs of FMA-WSSS."""

    name: ClassVar[str] = "fma"
    Settings: ClassVar[type[Any]] = FmaSettings
    supervisions: ClassVar[tuple[str, ...]] = ("tags",)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = PRESETS
    predicts_with: ClassVar[tuple[str, ...]] = ("inference", "refine")
    scoring: ClassVar[Scoring] = SEMANTIC
    stages: ClassVar[tuple[str, ...]] = STAGES
    shared: ClassVar[tuple[str, ...]] = ("prompts", "seeds")

    def prepare(self, settings: FmaSettings, dataset: Dataset, workspace: Workspace) -> SemanticData | EmbeddedMaps:
        """Masks, views, both prompt sets and the seed maps of a dataset, from its tags alone.

        Prompts are trained on the first dataset that a run prepares, its training split, and used for the others.
        Images that cannot be read, or have no tags, are left out and named.

        Raises:
            UserError: the dataset has no tags, no image can be read, or a model is missing.
        """
        pipeline = Pipeline(settings, dataset.vocabulary, workspace)
        images = pipeline.usable(dataset)
        seeds = pipeline.network_seeds(images, dataset.split)
        data = SemanticData(
            images=tuple(images.paths),
            label_maps=tuple(seeds),
            classes=len(dataset.vocabulary),
            augmentation=settings.augmentation,
            skipped=images.skipped,
        )
        if not settings.on_embeddings:
            return data
        segmenter = frozen_segmenter(settings.segmenter, workspace.device)
        _, height, width = segmenter.embedding_shape
        return embed(data, dataset, segmenter, settings.pyramid.cells((height, width)), workspace)

    def unaugmented(self, settings: FmaSettings) -> FmaSettings:
        """Without mirrored images."""
        return replace(settings, augmentation=replace(settings.augmentation, flip=0.0))

    def learner(
        self, settings: FmaSettings, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> SemanticLearner:
        """A fresh network."""
        source = EmbeddingSource.of(frozen_segmenter(settings.segmenter)) if settings.on_embeddings else None
        network = build_network(settings.architecture, len(vocabulary), source)
        return SemanticLearner(network, settings, vocabulary, optimisation, total_steps)

    def save(self, learner: Learner, folder: Path, card: dict[str, Any]) -> None:
        """Write the student folder."""
        if not isinstance(learner, SemanticLearner):
            raise TypeError(f"{type(learner).__name__} is no SemanticLearner")
        save_pretrained(folder, learner.student, learner.settings, learner.vocabulary, card)

    def load(
        self, folder: Path, workspace: Workspace, settings: FmaSettings | None = None
    ) -> SemanticPredictor | EmbeddedPredictor:
        """The predictor of a student folder; CLIP is never loaded, the segmenter where network or masks need it.

        Raises:
            UserError: the folder is damaged or of another version, or the segmenter is missing or not the student's.
        """
        network, settings, vocabulary = from_pretrained(folder, settings)
        refine = refiner(settings, workspace)
        if isinstance(network, PyramidNetwork):
            segmenter = frozen_segmenter(settings.segmenter, workspace.device)
            store = find_store(workspace.features, segmenter, workspace.feature_dtype)
            return EmbeddedPredictor(network, vocabulary, segmenter, store, method=self.name, refine=refine)
        return SemanticPredictor(
            network, vocabulary, settings.inference, method=self.name, refine=refine, device=workspace.device
        )

    def final_row(self, settings: FmaSettings) -> dict[str, str]:
        """A network trained on the baseline's seeds is the baseline's."""
        return {"method": settings.seeds_by}

    def references(self, settings: FmaSettings, dataset: Dataset, workspace: Workspace) -> list[Score]:
        """Seeds against the truth: CLIP-ES's, and, once its prompts are trained, this run's own.

        Rows ``seeds`` are what a network is trained on, ``coarse-seeds`` those of the first prompt set, where there is
        a second. Seeds know the tags of the images they are scored on; the network does not. None for a split without
        tags.
        """
        if any(tags_of(sample) is None for sample in dataset):
            return []
        pipeline = Pipeline(settings, dataset.vocabulary, workspace)
        stages: list[Stage] = ["clip-es"]
        if pipeline.trained():
            stages += ["fine"] if settings.segmentation is None else ["coarse", "fine"]
        return [_score(pipeline, dataset, stage) for stage in stages]

    def panels(
        self, settings: FmaSettings, dataset: Dataset, workspace: Workspace, indices: Sequence[int]
    ) -> list[list[Panel]]:
        """Activation map, affinity, quasi-superpixels and seeds of some images; see :mod:`weakly.methods.fma.stages`.

        An image that cannot be read, or shows nothing according to its tags, has none, nor has a run on the baseline's
        seeds.
        """
        if settings.seeds_by == "clip-es":
            return [[] for _ in indices]
        return stage_panels(Pipeline(settings, dataset.vocabulary, workspace), dataset.select(indices))

    def tables(self, settings: FmaSettings) -> Tables:
        """Tables 1 to 6 of the paper; see :mod:`weakly.methods.fma.tables`."""
        return paper_tables(settings)


def refiner(settings: FmaSettings, workspace: Workspace) -> Refine | None:
    """The post-processing that the settings ask for."""
    if settings.refine.by == "sams":
        segmenter = frozen_segmenter(settings.segmenter, workspace.device)
        masks = MaskStore(workspace.features, segmenter, settings.masks)
        return by_masks(masks, settings.refine, settings.superpixels)
    return by_crf(settings.crf) if settings.refine.by == "crf" else None


def _score(pipeline: Pipeline, dataset: Dataset, stage: Stage) -> Score:
    baseline = stage == "clip-es"
    extra: dict[str, Any] = {"row": "coarse-seeds" if stage == "coarse" else "seeds"}
    return Score(
        method="clip-es" if baseline else "fma",
        supervision="tags",
        results=partial(_results, pipeline, dataset, stage),
        identity=partial(_identity, pipeline, stage),
        extra=extra | ({"segmenter": None} if baseline else {}),
    )


def _results(pipeline: Pipeline, dataset: Dataset, stage: Stage) -> Iterator[Segmentation]:
    maker = pipeline.maker(stage).without_void()
    keys = image_keys(pipeline.workspace.features, [sample.path for sample in dataset])
    tags = [labels for sample in dataset if (labels := tags_of(sample)) is not None]
    method = "clip-es" if stage == "clip-es" else "fma"
    return seed_results(maker, dataset, pipeline.folder(stage), tags, keys, method)


def _identity(pipeline: Pipeline, stage: Stage) -> str:
    return pipeline.maker(stage).without_void().identity


METHOD = FmaMethod()
