"""The students that retrain on pseudo boxes, behind one interface, and torchvision's two-stage ones among them.

Symbols: B views, C categories, (H, W) their common padded size, n instances of a view. Boxes are ``x0, y0, x1, y1``.
Categories are 0..C-1 here; torchvision's shift by 1 happens inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.models.detection.roi_heads import paste_masks_in_image  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.embedding import EmbeddingSource
from weakly.methods.optimisation import norm_parameters
from weakly.methods.resnet import resnet_pyramid
from weakly.methods.semantic_network import pad_to
from weakly.methods.simple_pyramid import SimplePyramid
from weakly.methods.two_stage import TwoStageSettings, box_branch, images_in_frames, proposal_network, roi_align
from weakly.methods.weaksam.augment import Target
from weakly.methods.weaksam.roi_drop import DropRoIHeads, DropSettings
from weakly.segmentation import Rle, encode_masks

MAX_VALUES = 1 << 25
"""Float32 values of masks at the size of the image that are held at once: 128 MiB."""

MASK_SIDE = 14
"""RoI-aligned cells along a side under the mask head; its masks have twice as many pixels."""


@dataclass(frozen=True)
class DetectorSettings(TwoStageSettings):
    """Faster R-CNN and Mask R-CNN on a feature pyramid; the defaults are those behind WeakSAM.

    Attributes:
        backbone: a ResNet of torchvision that looks at views of the images; or ``segmenter``: the detector looks at the
            frozen segmenter's embeddings of whole images, mirrored or not, and its pyramid is all that is trained of a
            backbone.
        weights: of a ResNet: torchvision's name for them, e.g. ``IMAGENET1K_V1`` (fetched from the network), or a local
            ``.pth`` or ``.safetensors`` file. None: random ones.
        beta: of the smooth L1 loss of the second stage; 0 is L1. (The proposals' own is torchvision's, 1/9.)
        drop: RoI drop.
        min_score: detections with a lower score are left out.
        nms: detections of one category that overlap a better one with a larger IoU are left out.
        detections: of an image at most.
        mask_width: channels of the mask head's four convolutions.
        backbone_lr: learning rate of the ResNet over that of the rest.
    """

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101", "segmenter"] = "resnet50"
    weights: str | None = None
    beta: float = 0.0
    drop: DropSettings = field(default_factory=DropSettings)
    min_score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    mask_width: int = 256
    backbone_lr: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_levels(self.backbone)
        if self.on_embeddings and self.weights is not None:
            raise UserError(
                "detector.weights are of a ResNet, but detector.backbone is segmenter; leave one of them out."
            )
        if self.detections < 1:
            raise UserError(f"detector.detections is {self.detections}; give at least 1.")
        for name in ("min_score", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"detector.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if self.beta < 0:
            raise UserError(f"detector.beta is {self.beta}; give 0 or more.")

    @property
    def on_embeddings(self) -> bool:
        """Whether the detector looks at the segmenter's embeddings instead of pixels."""
        return self.backbone == "segmenter"


class Detections(NamedTuple):
    """What a student found in an image, at the image's own size.

    Attributes:
        boxes: (n, 4) float32, inside the image.
        labels: (n,) int64 category indices.
        scores: (n,) float32 in [0, 1], descending.
        rles: n masks; None where the student finds boxes alone.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    rles: tuple[Rle, ...] | None = None


class Detector(nn.Module, ABC):
    """A network that finds instances of C categories.

    Attributes:
        kind: its name in settings and student folders.
        makes_masks: whether it learns from masks and finds them.
        backbone: beginning of the backbone's parameter names.
        backbone_lr: learning rate of the backbone over that of the rest.
        source: whose embeddings it looks at; None: it looks at pixels.
    """

    kind: ClassVar[str]
    makes_masks: ClassVar[bool]
    backbone: ClassVar[str]
    backbone_lr: float
    source: EmbeddingSource | None = None

    @abstractmethod
    def loss(
        self, inputs: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target], step: int | None
    ) -> dict[str, Tensor]:
        """What training minimises.

        Args:
            inputs: of B views: (B, 3, H, W) float32 pixels, normalised by ImageNet's mean and deviation, padded at the
                bottom and right; with a ``source`` (B, K, h, w) embeddings, whose views are frames of S x S pixels.
            sizes: (height, width) of the B views without padding, in pixels.
            targets: of the B views, in their pixels.
            step: training step; None: validation, where no RoI is dropped.

        Returns:
            Scalars: ``"loss"``, the weighted parts it is the sum of, and detached shares ``"dropped_..."``.
        """

    @abstractmethod
    def predict(
        self, inputs: Tensor, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of B views in evaluation mode.

        Args:
            inputs: as in :meth:`loss`.
            sizes: likewise.
            originals: (height, width) of the images that the views show whole; the detections are at these sizes.
        """

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """JSON from which this network is made anew, without its weights."""

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: those of the norms."""
        return norm_parameters(self)


class FasterRcnn(Detector):
    """Faster R-CNN: proposals on a feature pyramid, then a second stage that is trained with RoI drop.

    Args:
        settings: its sizes.
        classes: C.
        source: whose embeddings it looks at, if its backbone is the ``segmenter``.
        fetch: load ``settings.weights``; else the backbone waits for a state dict.

    Raises:
        UserError: there are no such weights, or they cannot be fetched.
        ValueError: there is a source and the backbone is a ResNet, or the other way round.
    """

    kind: ClassVar[str] = "faster_rcnn"
    makes_masks: ClassVar[bool] = False
    backbone: ClassVar[str] = "pyramid.body."

    def __init__(
        self, settings: DetectorSettings, classes: int, source: EmbeddingSource | None = None, *, fetch: bool = True
    ) -> None:
        super().__init__()
        if settings.on_embeddings != (source is not None):
            raise ValueError(f"backbone {settings.backbone} and embeddings of {source}")
        self.settings = settings
        self.classes = classes
        self.source = source
        self.backbone_lr = settings.backbone_lr
        self.pyramid = _pyramid(settings, source, fetch=fetch)
        self.rpn = proposal_network(settings)
        self.roi_heads = _second_stage(settings, classes, masks=self.makes_masks)

    def loss(
        self, inputs: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target], step: int | None
    ) -> dict[str, Tensor]:
        """``objectness``, ``proposal``, ``classification``, ``regression`` and, of Mask R-CNN, ``mask``."""
        shifted = [_shifted(target) for target in targets]
        features, images = self._look(inputs, sizes)
        mode = self.rpn.training
        self.rpn.train()  # it has neither norms nor dropout; in evaluation mode it would give no losses
        proposals, rpn_losses = self.rpn(images, features, shifted)
        self.rpn.train(mode)
        parts = {
            "objectness": rpn_losses["loss_objectness"],
            "proposal": rpn_losses["loss_rpn_box_reg"],
            **self.roi_heads.losses(features, proposals, sizes, shifted, step),
        }
        summed = [value for name, value in parts.items() if not name.startswith("dropped")]
        return {"loss": torch.stack(summed).sum(), **parts}

    @torch.no_grad()
    def predict(
        self, inputs: Tensor, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections, with the masks of Mask R-CNN pasted at the size of the image."""
        features, images = self._look(inputs, sizes)
        proposals, _ = self.rpn(images, features)
        found, _ = self.roi_heads(features, proposals, list(sizes))
        return [_detections(*args) for args in zip(found, sizes, originals, strict=True)]

    def architecture(self) -> dict[str, Any]:
        """Kind, settings and whose embeddings it looks at, if any."""
        described = {"kind": self.kind, "settings": asdict(self.settings)}
        return described if self.source is None else {**described, "source": asdict(self.source)}

    def _look(self, inputs: Tensor, sizes: Sequence[tuple[int, int]]) -> tuple[dict[str, Tensor], ImageList]:
        """Maps of the pyramid by name, and the views as both stages want them."""
        if self.source is not None:
            return self.pyramid(inputs), images_in_frames(inputs, self.source.side, sizes)
        padded = pad_to(inputs, 32, 0)
        return self.pyramid(padded), ImageList(padded, list(sizes))


class MaskRcnn(FasterRcnn):
    """Mask R-CNN: Faster R-CNN with a mask head."""

    kind: ClassVar[str] = "mask_rcnn"
    makes_masks: ClassVar[bool] = True


def scaled_boxes(boxes: NDArray[np.float32], size: tuple[int, int], original: tuple[int, int]) -> NDArray[np.float32]:
    """(n, 4) boxes of a view of ``size`` in pixels of its image, clipped to the image."""
    scale = np.array([original[1] / size[1], original[0] / size[0]] * 2)
    return np.clip(boxes * scale, 0, np.array(original[::-1] * 2)).astype(np.float32)


def _pyramid(settings: DetectorSettings, source: EmbeddingSource | None, *, fetch: bool) -> nn.Module:
    if source is not None:
        return SimplePyramid(source.channels, settings.width, settings.scales)
    return resnet_pyramid(
        settings.backbone,
        settings.width,
        weights=settings.weights,
        frozen_stages=settings.frozen_stages,
        norm=settings.norm,
        fetch=fetch,
    )


def _second_stage(settings: DetectorSettings, classes: int, *, masks: bool) -> DropRoIHeads:
    hidden = settings.mask_width
    mask_branch = {
        "mask_roi_pool": roi_align(settings, MASK_SIDE),
        "mask_head": MaskRCNNHeads(settings.width, (hidden,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(hidden, hidden, classes + 1),
    }
    boxes = box_branch(
        settings, classes, min_score=settings.min_score, nms=settings.nms, detections=settings.detections
    )
    return DropRoIHeads(settings.drop, settings.beta, **boxes, **(mask_branch if masks else {}))


def _shifted(target: Target) -> dict[str, Tensor]:
    """A target as torchvision wants it: category k has label k + 1."""
    shifted = {"boxes": target.boxes, "labels": target.labels + 1}
    return shifted if target.masks is None else {**shifted, "masks": target.masks}


def _detections(found: dict[str, Tensor], size: tuple[int, int], original: tuple[int, int]) -> Detections:
    boxes = scaled_boxes(found["boxes"].cpu().numpy(), size, original)
    masks = None
    if "masks" in found:
        masks = _pasted(found["masks"].float(), torch.from_numpy(boxes).to(found["masks"].device), original)
    labels, scores = (found["labels"] - 1).cpu().numpy(), found["scores"].float().cpu().numpy()
    return Detections(boxes, labels, scores, masks)


def _pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> tuple[Rle, ...]:
    """(n, 1, m, m) mask probabilities inside their (n, 4) boxes, at the size of the image."""
    chunk = max(1, MAX_VALUES // (size[0] * size[1]))
    rles: list[Rle] = []
    for some, inside in zip(masks.split(chunk), boxes.split(chunk), strict=True):
        rles += encode_masks((paste_masks_in_image(some, inside, size)[:, 0] > 0.5).cpu().numpy())
    return tuple(rles)
