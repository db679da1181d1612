"""The settings of PartCLIPSeg and its switches: where the released code departs from the paper (spec partclipseg)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from weakly.errors import UserError
from weakly.methods.partclip.attention import PartScope, Pooling
from weakly.methods.partclip.attention_losses import EnhLoss, SepLoss
from weakly.methods.partclip.losses import EmptyTerm
from weakly.methods.partclip.model import Composition, ObjectText
from weakly.methods.partclip.targets import LabelPath
from weakly.methods.partclip.trunk import BackgroundVector

Architecture = Literal["partclip", "clipseg"]

PredAll = Literal["objects_first", "all_at_once"]
"""How Pred-All decides: by object masks, then among the parts of a pixel's object (published); or among all parts."""


@dataclass(frozen=True)
class Switches:
    """One switch per difference between paper and release; the defaults are ``fixed``, the others ``compat``.

    How results are scored (Boundary IoU, Pred-All strict or on part pixels) is no switch: every evaluation states both.

    Attributes:
        obj_text_index: text that fills the object's slot of a class: the object's own (``offset``), or, as in the
            release, that of the part with the object's index (D1).
        train_channel_order: of training images; images to predict on are RGB always (D11).
        label_path: label maps are resized once (``native``); or they and the training images go through a shortest
            side of 800 pixels first (``resize800``).
        unseen_pixels: pixels of unseen objects in training images are left out of every loss, or are background (D9).
        background_vector: the embedding of the background prompt learns, or stays as it was drawn (D10).
        sep_loss: of separation, differentiable (``soft``) or a count of hard overlaps without a gradient (D2).
        enh_loss: of enhancement, over each part's own tokens (``area_norm``) or as released (D3).
        part_scope: the attention losses compare the parts of each object, or all parts of the image.
        empty_term: a mask loss over no pixel is left out, or makes the whole loss zero.
        none_entries: training images without a seen part are left out, or replaced by others drawn at random (D20).
        composition: the layers that join part and object start as their mean, or as torch draws them (spec 1.8).
    """

    obj_text_index: ObjectText = "offset"
    train_channel_order: Literal["rgb", "bgr"] = "rgb"
    label_path: LabelPath = "native"
    unseen_pixels: Literal["ignore", "background"] = "ignore"
    background_vector: BackgroundVector = "learned"
    sep_loss: SepLoss = "soft"
    enh_loss: EnhLoss = "area_norm"
    part_scope: PartScope = "object"
    empty_term: EmptyTerm = "skip"
    none_entries: Literal["skip", "resample"] = "skip"
    composition: Composition = "average"

    @property
    def pooling(self) -> Pooling:
        """How masks become tokens of the attention losses: part of what ``enh_loss`` stands for (D3)."""
        return "area" if self.enh_loss == "area_norm" else "nearest"


@dataclass(frozen=True)
class LossWeights:
    """Weights and constants of the losses (spec sections 3.2 to 3.5); the defaults are the published ones.

    Attributes:
        objects: of the object masks.
        parts: of the part masks.
        separation: of L_sep.
        enhancement: of L_enh.
        background: of the background channel inside a binary cross-entropy.
        threshold: gamma, attention from which a token belongs to a class.
        temperature: tau, softness of that threshold with ``sep_loss: soft``.
    """

    objects: float = 1.0
    parts: float = 1.0
    separation: float = 0.1
    enhancement: float = 0.01
    background: float = 0.05
    threshold: float = 0.3
    temperature: float = 0.05

    def __post_init__(self) -> None:
        for name in ("objects", "parts", "separation", "enhancement", "background"):
            if getattr(self, name) < 0:
                raise UserError(f"losses.{name} is {getattr(self, name)}; give 0 or more.")
        if not 0 < self.threshold < 1:
            raise UserError(f"losses.threshold is {self.threshold}; give a number between 0 and 1.")
        if self.temperature <= 0:
            raise UserError(f"losses.temperature is {self.temperature}; give a number above 0.")


@dataclass(frozen=True)
class PartClipSettings:
    """The ``settings:`` section of a PartCLIPSeg recipe.

    Attributes:
        clipseg: the frozen CLIPSeg: ``"bundled"``, a folder in Hugging Face form or a hub id.
        architecture: ``partclip``, or ``clipseg``: the paper's baseline, which asks for "dog head" as one phrase.
        unseen: objects whose parts are never trained on.
        side: of the square that images are squashed to, in pixels; null: the checkpoint's own.
        flip: images are also seen mirrored left to right; the release does so, but not on PartImageNet.
        switches: see :class:`Switches`.
        losses: see :class:`LossWeights`; the baseline has ``background`` alone.
        pred_all: see :data:`PredAll`; the baseline knows ``all_at_once`` alone. Nothing is trained differently.
        background_above: in Pred-All a pixel is background where the background's sigmoid is above this; null: where
            its logit is the highest, as published. For the baseline too; nothing is trained differently.
        class_chunk: object-part classes whose masks are made at once; bounds the memory of training and prediction.
    """

    clipseg: str = "bundled"
    architecture: Architecture = "partclip"
    unseen: tuple[str, ...] = ()
    side: int | None = None
    flip: bool = True
    switches: Switches = field(default_factory=Switches)
    losses: LossWeights = field(default_factory=LossWeights)
    pred_all: PredAll = "objects_first"
    background_above: float | None = None
    class_chunk: int = 16

    def __post_init__(self) -> None:
        if self.side is not None and self.side < 1:
            raise UserError(f"settings.side is {self.side}; give a number of pixels, or null.")
        if self.class_chunk < 1:
            raise UserError(f"settings.class_chunk is {self.class_chunk}; give a number of at least 1.")
        if self.background_above is not None and not 0 < self.background_above < 1:
            raise UserError(
                f"settings.background_above is {self.background_above}; give a number between 0 and 1, or null."
            )
        twice = sorted({name for name in self.unseen if self.unseen.count(name) > 1})
        if twice:
            raise UserError(f"settings.unseen names {twice[0]!r} twice; name every object once.")
