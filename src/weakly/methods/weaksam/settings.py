"""The settings of WeakSAM, a section per stage (spec weaksam, section 12)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from weakly.errors import UserError
from weakly.methods.weaksam.augment import Augmentation
from weakly.methods.weaksam.clues import ClueSettings
from weakly.methods.weaksam.detectors import DetectorSettings
from weakly.methods.weaksam.mask2former import Mask2FormerSettings
from weakly.methods.weaksam.peaks import PeakSettings
from weakly.methods.weaksam.predictor import Inference
from weakly.methods.weaksam.proposal_settings import LoadSettings, ProposalSettings
from weakly.methods.weaksam.pseudo_truth import PseudoTruthSettings
from weakly.methods.weaksam.rt_detr import RtDetrSettings
from weakly.methods.weaksam.selective_search import SelectiveSearchSettings
from weakly.methods.weaksam.students import Student, StudentSettings
from weakly.methods.weaksam.wsod_inference import WsodInference
from weakly.methods.weaksam.wsod_settings import WsodSettings, WsodTraining

PREDICTS_WITH = (
    "inference",
    *(f"detector.{name}" for name in ("min_score", "nms", "detections")),
    *(f"{head}.{name}" for head in ("rt_detr", "mask2former") for name in ("min_score", "detections")),
)
"""Settings that a trained student takes other values of."""

ProposalSource = Literal["weaksam", "selective-search"]
TruthSource = Literal["pseudo", "true-boxes"]


@dataclass(frozen=True)
class WeakSamSettings:
    """The ``settings:`` section of a WeakSAM recipe; the defaults are those of VOC 2007.

    Attributes:
        segmenter: the promptable segmenter: ``"bundled"``, a Hugging Face id, a folder or a ``.pth`` file.
        names: {class name: what CLIP is told it is}, for clues of ``clip-es``.
        backgrounds: words for what is no class, for clues of ``clip-es``; null: the published list.
        clues: where the classes of an image are, from a classifier (stage A).
        peaks: from clue maps to points (stage B).
        proposals: from points to boxes (stage C).
        proposals_by: ``weaksam``, or ``selective-search``: the yardstick, which asks no clue and no segmenter.
        selective_search: of that yardstick.
        load: which proposals the detector sees.
        wsod: the weakly supervised detector (stage D).
        wsod_training: how it is trained.
        wsod_inference: how it looks at the training images.
        pseudo_truth: which of its detections count as truth (stage E).
        truth: ``pseudo``, or ``true-boxes``: the upper bound, where the student is trained on the boxes (and masks) of
            the annotations. Everything else leaves them alone.
        student: what is trained on the pseudo truth (stages F and G): ``faster_rcnn`` or ``rt_detr`` on boxes,
            ``mask_rcnn`` or ``mask2former`` on the masks that the segmenter gives for them.
        detector: sizes of Faster R-CNN and Mask R-CNN; on the segmenter's embeddings they train on whole images,
            mirrored with the probability ``augmentation.flip``, and of ``inference`` only masks from boxes matter.
        rt_detr: sizes of RT-DETR.
        mask2former: sizes of Mask2Former.
        augmentation: of the student's training views.
        inference: at which sizes the student looks at an image.
    """

    segmenter: str = "bundled"
    names: Mapping[str, str] = field(default_factory=dict)
    backgrounds: tuple[str, ...] | None = None
    clues: ClueSettings = field(default_factory=ClueSettings)
    peaks: PeakSettings = field(default_factory=PeakSettings)
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    proposals_by: ProposalSource = "weaksam"
    selective_search: SelectiveSearchSettings = field(default_factory=SelectiveSearchSettings)
    load: LoadSettings = field(default_factory=LoadSettings)
    wsod: WsodSettings = field(default_factory=WsodSettings)
    wsod_training: WsodTraining = field(default_factory=WsodTraining)
    wsod_inference: WsodInference = field(default_factory=WsodInference)
    pseudo_truth: PseudoTruthSettings = field(default_factory=PseudoTruthSettings)
    truth: TruthSource = "pseudo"
    student: Student = "faster_rcnn"
    detector: DetectorSettings = field(default_factory=DetectorSettings)
    rt_detr: RtDetrSettings = field(default_factory=RtDetrSettings)
    mask2former: Mask2FormerSettings = field(default_factory=Mask2FormerSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    inference: Inference = field(default_factory=Inference)

    def __post_init__(self) -> None:
        if self.backgrounds is not None and not self.backgrounds:
            raise UserError("settings.backgrounds is empty; give at least one word, or null for the published ones.")
        if self.on_embeddings and self.inference.views > 1:
            raise UserError(
                f"A {self.student} on the segmenter's embedding looks at an image once, not {self.inference.views} "
                "times; give one inference.short and no inference.flip."
            )

    @property
    def architecture(self) -> StudentSettings:
        """Settings of the chosen student."""
        if self.student == "rt_detr":
            return self.rt_detr
        return self.mask2former if self.student == "mask2former" else self.detector

    @property
    def asks_segmenter(self) -> bool:
        """Whether training data need the promptable segmenter."""
        return self.proposals_by == "weaksam" or self.wants_masks or self.on_embeddings

    @property
    def on_embeddings(self) -> bool:
        """Whether the student looks at the segmenter's embeddings instead of pixels."""
        return isinstance(self.architecture, DetectorSettings) and self.architecture.on_embeddings

    @property
    def wants_masks(self) -> bool:
        """Whether the student is trained on masks."""
        return self.student in ("mask_rcnn", "mask2former")
