"""The settings of FMA-WSSS, a section per stage; :mod:`~weakly.methods.fma.presets` has those behind its numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple

from weakly.errors import UserError
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.methods.dense_crf import CrfSettings
from weakly.methods.fma.affinity import SCORE_PARITY_EPS
from weakly.methods.fma.cam import SOFTMAX_PARITY_EPS
from weakly.methods.fma.deeplab import DeepLabSettings
from weakly.methods.fma.mask2former import Mask2FormerSettings
from weakly.methods.fma.model import NamePosition
from weakly.methods.fma.pyramid import PyramidSettings
from weakly.methods.fma.superpixels import OCCUPATION_RATIO, PUBLISHED_EPS, Against, Average, Uncovered
from weakly.methods.image_views import Augmentation
from weakly.methods.semantic_predictor import Inference

Spread = Literal["score", "cam", "none"]
Finish = Literal["sams", "voting", "crf", "argmax"]
PromptLoss = Literal["mcl", "bce", "cal", "ce"]
Network = Literal["deeplab", "mask2former", "pyramid"]
RefineBy = Literal["none", "sams", "crf"]


@dataclass(frozen=True)
class SuperpixelSettings:
    """How automatic masks are thinned to quasi-superpixels.

    Attributes:
        ratio: share of a mask inside a larger one at which it is dropped; null: all masks stay.
        against: ``each`` larger mask (released code) or their ``union`` (paper).
    """

    ratio: float | None = OCCUPATION_RATIO
    against: Against = "each"

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UserError(f"superpixels.ratio is {self.ratio}; give a fraction in (0, 1], or null.")


@dataclass(frozen=True)
class ViewSettings:
    """The augmented views that prompts are trained on (spec fma-wsss, section 2.5); they are encoded once.

    Attributes:
        count: k, views per image.
        crop: side of a view in pixels, a multiple of CLIP's patch.
        long: range of the long side to which the image is resized before the crop.
        jitter: change brightness, contrast, saturation and hue.
        flip: probability of mirroring left to right.
        seed: of all of it.
    """

    count: int = 8
    crop: int = 224
    long: tuple[int, int] = (288, 480)
    jitter: bool = True
    flip: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least("views", self, 1, "count", "crop")
        _at_least("views", self, 0, "seed")
        if not 1 <= self.long[0] <= self.long[1]:
            raise UserError(f"views.long is {list(self.long)}; give two sides in pixels, the smaller first.")
        if not 0 <= self.flip <= 1:
            raise UserError(f"views.flip is {self.flip}; give a probability in [0, 1].")


@dataclass(frozen=True)
class PromptSettings:
    """A prompt set and how it is trained (sections 2.1 to 2.4); the defaults are those of VOC's classification prompts.

    Attributes:
        iterations: T, updates over which the learning rate falls.
        stop: the update whose context is used; null: the last.
        warmup: updates at ``warm_lr``.
        batch_size: views per update.
        micro_batches: parts of a batch whose losses are normalised by themselves, then averaged.
        lr: peak learning rate.
        warm_lr: learning rate of the warm-up.
        momentum: of SGD.
        weight_decay: of the context.
        per_class: every prompt has its own context.
        position: of the name, ``append`` (after the context) or ``prepend``.
        length: M, context tokens.
        std: of the normal distribution the context starts from.
        seed: of that start, a text or a number.
        named_backgrounds: background prompts have words; else they are contexts alone.
        order_seed: of the order of images and views.
        loss: ``mcl``, the multi-label contrastive loss, or ``bce``, binary cross-entropy of the logits (Table 5).
    """

    LOSSES: ClassVar[tuple[PromptLoss, ...]] = ("mcl", "bce")

    iterations: int = 1800
    stop: int | None = None
    warmup: int = 500
    batch_size: int = 16
    micro_batches: int = 1
    lr: float = 1e-3
    warm_lr: float = 1e-5
    momentum: float = 0.9
    weight_decay: float = 5e-4
    per_class: bool = False
    position: NamePosition = "append"
    length: int = 16
    std: float = 0.015
    seed: str | int = "真"
    named_backgrounds: bool = True
    order_seed: int = 0
    loss: PromptLoss = "mcl"

    def __post_init__(self) -> None:
        _at_least("prompts", self, 1, "iterations", "batch_size", "micro_batches", "length")
        _at_least("prompts", self, 0, "warmup", "lr", "warm_lr", "weight_decay", "std", "order_seed")
        if self.stop is not None and not 1 <= self.stop <= self.iterations:
            raise UserError(f"The prompts' stop is {self.stop}; give 1 to iterations={self.iterations}, or null.")
        if self.micro_batches > self.batch_size:
            raise UserError(f"A batch of {self.batch_size} views has no {self.micro_batches} parts; lower one of them.")
        if not 0 <= self.momentum < 1:
            raise UserError(f"The prompts' momentum is {self.momentum}; give a number of at least 0 and below 1.")
        if self.loss not in self.LOSSES:
            raise UserError(f"The prompts' loss is {self.loss!r}; these know {' and '.join(self.LOSSES)}.")

    @property
    def updates(self) -> int:
        """Updates that are done."""
        return self.stop or self.iterations


@dataclass(frozen=True)
class SegmentationPromptSettings(PromptSettings):
    """The prompts trained on coarse seeds; the defaults are VOC's.

    Attributes:
        classes_from: whose maps are trained: the classes that the ``crop`` of the seed shows, or those of the ``tags``.
        foreground_weight: of the loss inside the seed.
        background_weight: of the loss outside.
        loss: ``cal``, the CAM activation loss, or ``ce``, pixel-wise cross-entropy of the maps' sigmoids (Table 5).
    """

    LOSSES: ClassVar[tuple[PromptLoss, ...]] = ("cal", "ce")

    iterations: int = 17_000
    per_class: bool = True
    position: NamePosition = "prepend"
    std: float = 0.0125
    seed: str | int = "机"
    named_backgrounds: bool = False
    loss: PromptLoss = "cal"
    classes_from: Literal["crop", "tags"] = "crop"
    foreground_weight: float = 1.0
    background_weight: float = 1.0


@dataclass(frozen=True)
class SeedSettings:
    """From activation maps to a seed map (sections 3.5, 5.4 and 6); the defaults are fixed and the same for all data.

    Attributes:
        spread: what the affinity spreads: the min-max ``score`` of a map, the signed ``cam``, or ``none``: no affinity.
        threshold: of the boxes that keep a map from spreading.
        sinkhorn: times the attention is normalised.
        power: of the affinity.
        layers: last vision blocks whose attention is averaged.
        finish: ``sams``: masks get classes; ``voting``: masks get the label of most of their pixels in the map of
            ``argmax``; ``crf``: scores are sharpened; ``argmax``: scores as they are.
        alpha: background exponent of ``sams``; larger means more foreground.
        average: over a mask, of the ``clamped`` (positive) or the ``signed`` activations.
        background_power: p in the background score (1 - best class)^p of all but ``sams``.
        confidence: with ``crf``, less certain pixels are void in training; scored seeds never have void pixels.
        long_side: shrink larger images for CLIP; memory grows with its fourth power. null: never.
    """

    spread: Spread = "score"
    threshold: float = 0.4
    sinkhorn: int = 1
    power: int = 2
    layers: int = 8
    finish: Finish = "sams"
    alpha: float = 0.6
    average: Average = "clamped"
    background_power: float = 1.0
    confidence: float = 0.0
    long_side: int | None = 1024

    def __post_init__(self) -> None:
        _at_least("seeds", self, 1, "layers")
        _at_least("seeds", self, 0, "sinkhorn", "power")
        for name in ("threshold", "confidence"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"The seeds' {name} is {getattr(self, name)}; give a number in [0, 1].")
        for name in ("alpha", "background_power"):
            if not getattr(self, name) > 0:
                raise UserError(f"The seeds' {name} is {getattr(self, name)}; give a number above 0.")
        if self.long_side is not None and self.long_side < 32:
            raise UserError(f"The seeds' long_side is {self.long_side}; give 32 pixels or more, or null.")

    @property
    def by_masks(self) -> bool:
        """Whether automatic masks decide."""
        return self.finish in {"sams", "voting"}


@dataclass(frozen=True)
class ClipEsSettings(SeedSettings):
    """The seeds of CLIP-ES, the baseline: manual prompts, three Sinkhorn iterations, CRF.

    Attributes:
        templates: of its prompts, ``{}`` where the name goes.
    """

    sinkhorn: int = 3
    finish: Finish = "crf"
    confidence: float = 0.95
    templates: tuple[str, ...] = ("a clean origami {}.",)


@dataclass(frozen=True)
class RefineSettings:
    """Post-processing of the network's probabilities (section 6).

    Attributes:
        by: ``none``, ``sams`` (masks of the segmenter are made for every image) or ``crf``.
        alpha: background exponent of ``sams``.
        uncovered: what ``sams`` leaves where no mask is: the ``prediction``, or ``background`` (released code).
    """

    by: RefineBy = "none"
    alpha: float = 1.0
    uncovered: Uncovered = "prediction"

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise UserError(f"refine.alpha is {self.alpha}; give a number above 0.")


class Epsilons(NamedTuple):
    """What is added to denominators.

    Attributes:
        softmax: of the scores (Eq. 1), relative to the largest class.
        scores: of min-max scores of maps.
        masks: of min-max scores of masks; None: scale-free.
    """

    softmax: float
    scores: float
    masks: float | None


@dataclass(frozen=True)
class FmaSettings:
    """The ``settings:`` section of an FMA-WSSS recipe; the defaults are fixed and tuned on no truth.

    Attributes:
        clip: ``"bundled"``, a folder in Hugging Face form, or a hub id such as ``"openai/clip-vit-base-patch16"``.
        segmenter: the promptable segmenter: ``"bundled"``, a Hugging Face id, a folder or a ``.pth`` file.
        names: {class name: what CLIP is told it is}; the others keep their published text or their name.
        backgrounds: words for what is no class; null: the published list without words of class names.
        masks: how automatic masks are made.
        superpixels: how they are thinned.
        fine_masks: the masks of the fine seeds; null: ``masks``. Post-processing always has ``masks``.
        fine_superpixels: how those are thinned; null: ``superpixels``.
        views: what prompts are trained on.
        classification: the first prompt set, trained on tags.
        segmentation: the second, trained on coarse seeds; null: there is none, and the first makes the fine seeds.
        coarse: seeds of the first prompt set.
        fine: seeds the network is trained on.
        clip_es: seeds of the baseline.
        seeds_by: whose seeds the network is trained on: ``fma``, or the baseline's, ``clip-es``, without prompts.
        crf: of seeds and post-processing.
        crf_wrapped: the CRF sees the image as CLIP-ES's does, mean subtracted and wrapped around; for parity alone.
        parity: add the released code's absolute epsilons, which weaken small activations.
        network: ``deeplab`` or ``mask2former``, the paper's, or ``pyramid`` (ours): a small network on the frozen
            segmenter's embeddings of whole images, mirrored or not. Of ``augmentation`` it has ``flip`` alone, of
            ``inference`` nothing.
        deeplab: its sizes.
        mask2former: its sizes.
        pyramid: its sizes.
        augmentation: of the network's training views.
        inference: sizes at which images are predicted.
        refine: post-processing.
    """

    clip: str = "bundled"
    segmenter: str = "bundled"
    names: Mapping[str, str] = field(default_factory=dict)
    backgrounds: tuple[str, ...] | None = None
    masks: AutomaticMaskSettings = field(default_factory=AutomaticMaskSettings)
    superpixels: SuperpixelSettings = field(default_factory=SuperpixelSettings)
    fine_masks: AutomaticMaskSettings | None = None
    fine_superpixels: SuperpixelSettings | None = None
    views: ViewSettings = field(default_factory=ViewSettings)
    classification: PromptSettings = field(default_factory=PromptSettings)
    segmentation: SegmentationPromptSettings | None = field(default_factory=SegmentationPromptSettings)
    coarse: SeedSettings = field(default_factory=SeedSettings)
    fine: SeedSettings = field(default_factory=SeedSettings)
    clip_es: ClipEsSettings = field(default_factory=ClipEsSettings)
    seeds_by: Literal["fma", "clip-es"] = "fma"
    crf: CrfSettings = field(default_factory=CrfSettings)
    crf_wrapped: bool = False
    parity: bool = False
    network: Network = "deeplab"
    deeplab: DeepLabSettings = field(default_factory=DeepLabSettings)
    mask2former: Mask2FormerSettings = field(default_factory=Mask2FormerSettings)
    pyramid: PyramidSettings = field(default_factory=PyramidSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    inference: Inference = field(default_factory=Inference)
    refine: RefineSettings = field(default_factory=RefineSettings)

    def __post_init__(self) -> None:
        if self.backgrounds is not None and not self.backgrounds:
            raise UserError("settings.backgrounds is empty; give at least one word, or null for the published ones.")
        if self.on_embeddings and (self.inference.flip or self.inference.scales != (1.0,)):
            raise UserError(
                "settings.network is pyramid, which looks at the embedding of the whole image; leave out"
                " inference.flip and inference.scales."
            )

    @property
    def epsilons(self) -> Epsilons:
        """Scale-free, or the released code's."""
        if self.parity:
            return Epsilons(SOFTMAX_PARITY_EPS, SCORE_PARITY_EPS, PUBLISHED_EPS)
        return Epsilons(0.0, 0.0, None)

    @property
    def architecture(self) -> DeepLabSettings | Mask2FormerSettings | PyramidSettings:
        """Settings of the chosen network."""
        if self.network == "pyramid":
            return self.pyramid
        return self.deeplab if self.network == "deeplab" else self.mask2former

    @property
    def on_embeddings(self) -> bool:
        """Whether the network looks at the segmenter's embeddings instead of pixels."""
        return self.network == "pyramid"

    @property
    def for_fine(self) -> FmaSettings:
        """The same settings, with masks and superpixels as the fine seeds have them."""
        masks, superpixels = self.fine_masks or self.masks, self.fine_superpixels or self.superpixels
        return replace(self, masks=masks, superpixels=superpixels)

    @property
    def seed_masks(self) -> tuple[AutomaticMaskSettings, ...]:
        """The distinct automatic masks that stages before the network ask for."""
        if self.seeds_by == "clip-es":
            return (self.masks,) if self.clip_es.by_masks else ()
        coarse = [self.masks] if self.segmentation is not None and self.coarse.by_masks else []
        fine = [self.for_fine.masks] if self.fine.by_masks else []
        return tuple(dict.fromkeys([*coarse, *fine]))


def _at_least(section: str, settings: Any, least: int, *names: str) -> None:
    for name in names:
        if getattr(settings, name) < least:
            raise UserError(f"{section}.{name} is {getattr(settings, name)}; give a number of at least {least}.")
