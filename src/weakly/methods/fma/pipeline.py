"""The stages before the network, in order, over the images of one dataset (spec fma-wsss, section 0).

Frozen work lies in the shared features folder (masks, encoded views), what is learned or decided in the run's own:
``prompts/`` and ``seeds/{coarse,fine,clip-es}/``. Every stage finds what earlier calls have left.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from weakly.data.class_names import background_words, clip_names
from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.clip import Clip
from weakly.foundation.image_keys import image_keys
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.labels import Sample
from weakly.methods.base import Skipped, Workspace
from weakly.methods.fma.masks import MaskStore
from weakly.methods.fma.model import PromptContext, manual_prompts
from weakly.methods.fma.prompts import (
    BatchLoss,
    PromptFiles,
    classification_loss,
    data_digest,
    load_context,
    segmentation_loss,
    train_context,
)
from weakly.methods.fma.seeds import Prompts, SeedMaker, tag_matrix, tags_of
from weakly.methods.fma.settings import FmaSettings, PromptSettings, SeedSettings
from weakly.methods.fma.views import Views, encode_views
from weakly.methods.frozen import frozen_clip, frozen_segmenter
from weakly.vocabulary import Vocabulary

Stage = Literal["coarse", "fine", "clip-es"]
Progress = Callable[[int, int], None]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Usable:
    """Images that can be read and have tags.

    Attributes:
        samples: with tags and keys of their files.
        skipped: the others, and why.
    """

    samples: tuple[tuple[Sample, NDArray[np.int64], str], ...]
    skipped: tuple[Skipped, ...]

    @property
    def paths(self) -> list[Path]:
        """Image files."""
        return [sample.path for sample, _, _ in self.samples]

    @property
    def keys(self) -> list[str]:
        """Keys of the files' bytes."""
        return [key for _, _, key in self.samples]

    @property
    def tags(self) -> list[NDArray[np.int64]]:
        """Category indices of every image."""
        return [tags for _, tags, _ in self.samples]


STAGES = ("masks", "classification", "coarse-seeds", "segmentation", "seeds")
"""Steps of the pipeline, for `weakly fit --until`; a run with one prompt set has nothing to do in two of them."""


class Pipeline:
    """The stages of one run.

    Models are loaded when a stage needs them.

    Args:
        settings: of the run.
        vocabulary: C categories.
        workspace: folders and device.
    """

    def __init__(self, settings: FmaSettings, vocabulary: Vocabulary, workspace: Workspace) -> None:
        self.settings, self.vocabulary, self.workspace = settings, vocabulary, workspace
        self._masks: dict[AutomaticMaskSettings, MaskStore] = {}
        self.foreground = clip_names(vocabulary.names, settings.names)
        self.backgrounds = background_words(vocabulary.names, settings.backgrounds)

    @cached_property
    def clip(self) -> Clip:
        """The frozen CLIP."""
        return frozen_clip(self.settings.clip, self.workspace.device)

    def masks(self, settings: AutomaticMaskSettings) -> MaskStore:
        """Automatic masks of the frozen segmenter."""
        if settings not in self._masks:
            segmenter = frozen_segmenter(self.settings.segmenter, self.workspace.device)
            self._masks[settings] = MaskStore(self.workspace.features, segmenter, settings)
        return self._masks[settings]

    def usable(self, dataset: Dataset) -> Usable:
        """The images to work on; where masks are needed they are made here.

        Raises:
            UserError: no image has tags, or none that has can be read.
        """
        found = [tags_of(sample) for sample in dataset]
        if all(tags is None for tags in found):
            raise UserError(
                f"The split {dataset.split!r} of {dataset.name} has no image tags, which FMA-WSSS learns from; choose "
                "another split, or, if it is the validation split, set data.val to null."
            )
        reasons = {
            sample.path: f"{sample.path} has no tags; add them or drop its record."
            for sample, tags in zip(dataset, found, strict=True)
            if tags is None
        }
        paths = [sample.path for sample, tags in zip(dataset, found, strict=True) if tags is not None]
        for number, masks in enumerate(self.settings.seed_masks):
            title = f"masks {dataset.split}" if number == 0 else f"masks of fine seeds {dataset.split}"
            report = self.masks(masks).build(paths, self._progress(title))
            counts = [count for count in report.counts if count is not None]
            if counts:
                self.workspace.note(
                    f"Masks of {dataset.split}: {report.made} images new; {sum(counts) / len(counts):.1f} masks per "
                    f"image, {counts.count(0)} images without any"
                )
            reasons |= report.skipped
        if not self.settings.seed_masks:
            reasons |= _unreadable(paths)
        self.workspace.done("masks")
        keys = image_keys(self.workspace.features, [sample.path for sample in dataset])
        samples = tuple(
            (sample, tags, key)
            for sample, tags, key in zip(dataset, found, keys, strict=True)
            if tags is not None and key is not None and sample.path not in reasons
        )
        if not samples:
            raise UserError(f"No image of {dataset.name} ({dataset.split}) can be read; run `weakly data check` on it.")
        for reason in reasons.values():
            log.warning("Left out: %s", reason)
        skipped = (Skipped(s.image_id, s.path, reasons[s.path]) for s in dataset if s.path in reasons)
        return Usable(samples, tuple(skipped))

    def network_seeds(self, images: Usable, title: str) -> list[Path]:
        """Seed PNGs that the network is trained on; prompts that are not there yet are trained on these images first.

        Args:
            images: of the training split, or of another one once the prompts are trained.
            title: of the split, for progress.
        """
        if self.settings.seeds_by == "clip-es":
            self._say_done("classification", "coarse-seeds", "segmentation")
            seeds = self._build("clip-es", images, title)
        else:
            self._train(images, title)
            seeds = self._build("fine", images, title)
        self.workspace.done("seeds")
        return seeds

    def trained(self) -> bool:
        """Whether the run holds the prompts that its fine seeds need."""
        stage = "classification" if self.settings.segmentation is None else "segmentation"
        return any(
            not path.name.endswith(".checkpoint.safetensors")
            for path in (self.workspace.run / "prompts").glob(f"{stage}-*.safetensors")
        )

    def maker(self, stage: Stage) -> SeedMaker:
        """The maker of a stage's seeds.

        Raises:
            UserError: its prompts are not trained yet.
        """
        if stage == "clip-es":
            return self._maker(self._manual(), self.settings.clip_es, self.settings)
        setting = self.settings
        if stage == "coarse" or setting.segmentation is None:
            prompts = self._learned(setting.classification, self._classification_files())
        else:
            prompts = self._learned(setting.segmentation, self._segmentation_files())
        if stage == "coarse":
            return self._maker(prompts, setting.coarse, setting)
        return self._maker(prompts, setting.fine, setting.for_fine)

    def folder(self, stage: Stage) -> Path:
        """Where the seed maps of a stage lie."""
        return self.workspace.run / "seeds" / stage

    def _build(self, stage: Stage, images: Usable, title: str) -> list[Path]:
        return self.maker(stage).build(self.folder(stage), images.samples, self._progress(f"{stage} seeds {title}"))

    def _train(self, images: Usable, title: str) -> None:
        """Both prompt sets, as far as they are not stored."""
        setting, first = self.settings, self._classification_files()
        second = None if setting.segmentation is None else self._segmentation_files()
        if all(files is None or files.context.is_file() for files in (first, second)):
            self._say_done("classification", "coarse-seeds", "segmentation")
            return
        views = self._views(images, title)
        tags = tag_matrix(images.tags, len(self.vocabulary))
        if not first.context.is_file():
            loss = classification_loss(views, tags, self.clip.logit_scale, setting.classification.loss)
            self._train_one(setting.classification, loss, views, first, data_digest(images.keys, tags))
        self._say_done("classification")
        if setting.segmentation is not None and second is not None:
            seeds = self._build("coarse", images, title)
            self._say_done("coarse-seeds")
            eps = setting.epsilons.softmax
            loss = segmentation_loss(views, tags, seeds, self.clip, setting.segmentation, eps=eps)
            self._train_one(setting.segmentation, loss, views, second, data_digest(images.keys, tags, seeds))
        self._say_done("coarse-seeds", "segmentation")

    def _say_done(self, *stages: str) -> None:
        for stage in stages:
            self.workspace.done(stage)

    def _train_one(
        self, settings: PromptSettings, loss: BatchLoss, views: Views, files: PromptFiles, data: str
    ) -> None:
        """Train one set. Backgrounds that share the context of the classes have no part in a classification."""
        backgrounds = settings.per_class or files.stage != "classification"
        context = self._context(settings, backgrounds=backgrounds)
        size = (len(views), views.settings.count)
        train_context(context, self.clip, loss, size, settings, files, data, self._progress(f"{files.stage} prompts"))
        self.workspace.note(f"{files.stage.capitalize()} prompts: {settings.updates} updates; losses in {files.log}")

    def _views(self, images: Usable, title: str) -> Views:
        return encode_views(
            self.workspace.features,
            self.clip,
            images.paths,
            images.keys,
            self.settings.views,
            inputs=self.settings.segmentation is not None,
            progress=self._progress(f"views {title}"),
        )

    def _context(self, setting: PromptSettings, *, backgrounds: bool = True) -> PromptContext:
        """A prompt set as it starts."""
        words = self.backgrounds if setting.named_backgrounds else ("",) * len(self.backgrounds)
        return PromptContext(
            self.clip,
            [*self.foreground, *(words if backgrounds else ())],
            per_class=setting.per_class,
            position=setting.position,
            length=setting.length,
            std=setting.std,
            seed=setting.seed,
        )

    def _classification_files(self) -> PromptFiles:
        """Where the first set lies."""
        return self._files("classification", self.settings.classification, {"views": asdict(self.settings.views)})

    def _segmentation_files(self) -> PromptFiles:
        """Where the second set lies: it depends on the first set and on the settings of the coarse seeds."""
        setting = self.settings
        content: dict[str, Any] = {"first": self._classification_files().identity, "coarse": asdict(setting.coarse)}
        content |= {"epsilons": setting.epsilons, "superpixels": asdict(setting.superpixels)}
        by_masks = setting.coarse.by_masks
        content |= {"masks": self.masks(setting.masks).identity} if by_masks else {"crf": asdict(setting.crf)}
        return self._files("segmentation", setting.segmentation or setting.classification, content)

    def _files(self, stage: str, setting: PromptSettings, more: dict[str, Any]) -> PromptFiles:
        names = [*self.foreground, *self.backgrounds]
        content = {"clip": self.clip.fingerprint, "names": names, "settings": asdict(setting), **more}
        identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return PromptFiles(self.workspace.run / "prompts", stage, identity)

    def _learned(self, setting: PromptSettings, files: PromptFiles) -> Prompts:
        """A trained set.

        Raises:
            UserError: it is not trained yet.
        """
        context = self._context(setting)
        if not load_context(context, files):
            raise UserError(
                f"{files.folder} holds no {files.stage} prompts of this recipe; finish the run with `weakly fit`."
            )
        digest = hashlib.sha256(files.identity.encode() + context.context.detach().cpu().numpy().tobytes())
        with torch.no_grad():
            return Prompts(context(self.clip), digest.hexdigest())

    def _manual(self) -> Prompts:
        names, templates = [*self.foreground, *self.backgrounds], self.settings.clip_es.templates
        identity = hashlib.sha256(json.dumps([names, templates]).encode()).hexdigest()
        return Prompts(manual_prompts(self.clip, names, templates), identity)

    def _maker(self, prompts: Prompts, settings: SeedSettings, common: FmaSettings) -> SeedMaker:
        masks = self.masks(common.masks) if settings.by_masks else None
        return SeedMaker(self.clip, prompts, self.vocabulary, settings, common, masks)

    def _progress(self, title: str) -> Progress:
        return partial(self.workspace.progress, title)


def _unreadable(paths: Sequence[Path]) -> dict[Path, str]:
    """{file that cannot be decoded: why}."""
    reasons = {}
    for path in paths:
        try:
            read_image(path)
        except UserError as error:
            reasons[path] = str(error)
    return reasons
