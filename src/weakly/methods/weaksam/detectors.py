"""The students that retrain on pseudo boxes, behind one interface, and torchvision's two-stage ones among them.

Symbols: B views, C categories, (H, W) their common padded size, n instances of a view. Boxes are ``x0, y0, x1, y1``.
Categories are 0..C-1 here; torchvision's shift by 1 happens inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights  # type: ignore[import-untyped]
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # type: ignore[import-untyped]
from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor  # type: ignore[import-untyped]
from torchvision.models.detection.roi_heads import paste_masks_in_image  # type: ignore[import-untyped]
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead  # type: ignore[import-untyped]
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.fma.semantic_network import pad_to
from weakly.methods.optimisation import norm_parameters
from weakly.methods.weaksam.augment import Target
from weakly.methods.weaksam.roi_drop import DropRoIHeads, DropSettings
from weakly.segmentation import Rle, encode_masks

MAX_VALUES = 1 << 25
"""Float32 values of masks at the size of the image that are held at once: 128 MiB."""

MASK_SIDE = 14
"""RoI-aligned cells along a side under the mask head; its masks have twice as many pixels."""


@dataclass(frozen=True)
class DetectorSettings:
    """Faster R-CNN and Mask R-CNN on a ResNet with a feature pyramid; the defaults are those behind WeakSAM.

    Attributes:
        backbone: a ResNet of torchvision.
        weights: of the backbone: torchvision's name for them, e.g. ``IMAGENET1K_V1`` (fetched from the network), or a
            local ``.pth`` or ``.safetensors`` file. None: random ones.
        frozen_stages: of stem and four stages, how many a pretrained backbone keeps as they are, from the stem on.
        norm: of a backbone with random weights and of its pyramid; a pretrained one has frozen batch norm and no norm
            in the pyramid.
        width: channels of the pyramid; a multiple of 32.
        hidden: units of the box head's two layers.
        anchors: side in pixels of the anchors of each of the five levels, strides 4 to 64.
        ratios: of the anchors' height to width.
        anchors_per_image: sampled to train the proposals.
        pre_nms: proposals of a level before suppression; half as many in prediction.
        proposals: of an image after suppression.
        rois: sampled to train the second stage, a quarter of them foreground where there are as many.
        roi_scale: side in pixels of the RoIs that are pooled at stride 16; smaller ones at finer strides.
        beta: of the smooth L1 loss of the second stage; 0 is L1. (The proposals' own is torchvision's, 1/9.)
        drop: RoI drop.
        min_score: detections with a lower score are left out.
        nms: detections of one category that overlap a better one with a larger IoU are left out.
        detections: of an image at most.
        mask_width: channels of the mask head's four convolutions.
        backbone_lr: learning rate of the ResNet over that of the rest.
    """

    backbone: Literal["resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50"
    weights: str | None = None
    frozen_stages: int = 2
    norm: Literal["group", "batch"] = "group"
    width: int = 256
    hidden: int = 1024
    anchors: tuple[int, int, int, int, int] = (32, 64, 128, 256, 512)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors_per_image: int = 256
    pre_nms: int = 2000
    proposals: int = 1000
    rois: int = 512
    roi_scale: int = 224
    beta: float = 0.0
    drop: DropSettings = field(default_factory=DropSettings)
    min_score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    mask_width: int = 256
    backbone_lr: float = 1.0

    def __post_init__(self) -> None:
        if len(self.anchors) != 5 or min(self.anchors) < 1:
            raise UserError(f"detector.anchors is {list(self.anchors)}; give five sides in pixels, one per level.")
        if not self.ratios or min(self.ratios) <= 0:
            raise UserError(f"detector.ratios is {list(self.ratios)}; give at least one number, all above 0.")
        if self.width < 32 or self.width % 32:
            raise UserError(f"detector.width is {self.width}; give a multiple of 32, the groups of its norms.")
        if not 0 <= self.frozen_stages <= 5:
            raise UserError(f"detector.frozen_stages is {self.frozen_stages}; give a number from 0 to 5.")
        for name in ("hidden", "anchors_per_image", "pre_nms", "proposals", "rois", "roi_scale", "detections"):
            if getattr(self, name) < 1:
                raise UserError(f"detector.{name} is {getattr(self, name)}; give at least 1.")
        for name in ("min_score", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"detector.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if self.beta < 0:
            raise UserError(f"detector.beta is {self.beta}; give 0 or more.")


SMALL_DETECTOR = DetectorSettings(
    backbone="resnet18",
    width=128,
    hidden=256,
    anchors=(16, 32, 64, 128, 256),
    pre_nms=500,
    proposals=250,
    rois=128,
    roi_scale=112,
    mask_width=128,
    drop=DropSettings(start=500),
)
"""For images of about 256 px, from random weights."""


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
    """

    kind: ClassVar[str]
    makes_masks: ClassVar[bool]
    backbone: ClassVar[str]
    backbone_lr: float

    @abstractmethod
    def loss(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target], step: int | None
    ) -> dict[str, Tensor]:
        """What training minimises.

        Args:
            pixels: (B, 3, H, W) float32, normalised by ImageNet's mean and deviation, padded at the bottom and right.
            sizes: (height, width) of the B views without padding.
            targets: of the B views, in their pixels.
            step: training step; None: validation, where no RoI is dropped.

        Returns:
            Scalars: ``"loss"``, the weighted parts it is the sum of, and detached shares ``"dropped_..."``.
        """

    @abstractmethod
    def predict(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections of B views in evaluation mode.

        Args:
            pixels: as in :meth:`loss`.
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
        fetch: load ``settings.weights``; else the backbone waits for a state dict.

    Raises:
        UserError: there are no such weights, or they cannot be fetched.
    """

    kind: ClassVar[str] = "faster_rcnn"
    makes_masks: ClassVar[bool] = False
    backbone: ClassVar[str] = "pyramid.body."

    def __init__(self, settings: DetectorSettings, classes: int, *, fetch: bool = True) -> None:
        super().__init__()
        self.settings = settings
        self.classes = classes
        self.backbone_lr = settings.backbone_lr
        self.pyramid = build_pyramid(settings, fetch=fetch)
        self.rpn = _proposal_network(settings)
        self.roi_heads = _second_stage(settings, classes, masks=self.makes_masks)

    def loss(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], targets: Sequence[Target], step: int | None
    ) -> dict[str, Tensor]:
        """``objectness``, ``proposal``, ``classification``, ``regression`` and, of Mask R-CNN, ``mask``."""
        shifted = [_shifted(target) for target in targets]
        images = ImageList(pad_to(pixels, 32, 0), list(sizes))
        features = self.pyramid(images.tensors)
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
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """Detections, with the masks of Mask R-CNN pasted at the size of the image."""
        images = ImageList(pad_to(pixels, 32, 0), list(sizes))
        features = self.pyramid(images.tensors)
        proposals, _ = self.rpn(images, features)
        found, _ = self.roi_heads(features, proposals, list(sizes))
        return [_detections(*args) for args in zip(found, sizes, originals, strict=True)]

    def architecture(self) -> dict[str, Any]:
        """Kind and settings."""
        return {"kind": self.kind, "settings": asdict(self.settings)}


class MaskRcnn(FasterRcnn):
    """Mask R-CNN: Faster R-CNN with a mask head."""

    kind: ClassVar[str] = "mask_rcnn"
    makes_masks: ClassVar[bool] = True


def build_pyramid(settings: DetectorSettings, *, fetch: bool = True) -> BackboneWithFPN:
    """A ResNet with a feature pyramid: maps ``0`` to ``3`` at strides 4 to 32 and ``pool`` at stride 64.

    Raises:
        UserError: there are no such weights, or they cannot be fetched.
    """
    pretrained = settings.weights is not None
    norm = FrozenBatchNorm2d if pretrained else _NORMS[settings.norm]
    resnet: Any = get_model(settings.backbone, weights=None, norm_layer=norm)
    if settings.weights is not None and fetch:
        _load_backbone(resnet, settings.backbone, settings.weights)
    stages = [[resnet.conv1, resnet.bn1], [resnet.layer1], [resnet.layer2], [resnet.layer3], [resnet.layer4]]
    for stage in stages[: settings.frozen_stages if pretrained else 0]:
        for layer in stage:
            layer.requires_grad_(False)
    return BackboneWithFPN(
        resnet,
        return_layers={f"layer{level + 1}": str(level) for level in range(4)},
        in_channels_list=[resnet.fc.in_features // 8 * 2**level for level in range(4)],
        out_channels=settings.width,
        norm_layer=None if pretrained else norm,
    )


def scaled_boxes(boxes: NDArray[np.float32], size: tuple[int, int], original: tuple[int, int]) -> NDArray[np.float32]:
    """(n, 4) boxes of a view of ``size`` in pixels of its image, clipped to the image."""
    scale = np.array([original[1] / size[1], original[0] / size[0]] * 2)
    return np.clip(boxes * scale, 0, np.array(original[::-1] * 2)).astype(np.float32)


def _proposal_network(settings: DetectorSettings) -> RegionProposalNetwork:
    anchors = AnchorGenerator(tuple((side,) for side in settings.anchors), (settings.ratios,) * 5)
    return RegionProposalNetwork(
        anchors,
        RPNHead(settings.width, len(settings.ratios)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=settings.anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n={"training": settings.pre_nms, "testing": max(1, settings.pre_nms // 2)},
        post_nms_top_n={"training": settings.proposals, "testing": settings.proposals},
        nms_thresh=0.7,
    )


def _second_stage(settings: DetectorSettings, classes: int, *, masks: bool) -> DropRoIHeads:
    levels = ["0", "1", "2", "3"]
    align = partial(MultiScaleRoIAlign, levels, sampling_ratio=2, canonical_scale=settings.roi_scale)
    hidden = settings.mask_width
    mask_branch = {
        "mask_roi_pool": align(output_size=MASK_SIDE),
        "mask_head": MaskRCNNHeads(settings.width, (hidden,) * 4, 1),
        "mask_predictor": MaskRCNNPredictor(hidden, hidden, classes + 1),
    }
    return DropRoIHeads(
        settings.drop,
        settings.beta,
        box_roi_pool=align(output_size=7),
        box_head=TwoMLPHead(settings.width * 7**2, settings.hidden),
        box_predictor=FastRCNNPredictor(settings.hidden, classes + 1),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=settings.rois,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=settings.min_score,
        nms_thresh=settings.nms,
        detections_per_img=settings.detections,
        **(mask_branch if masks else {}),
    )


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


def _load_backbone(resnet: nn.Module, name: str, weights: str) -> None:
    """Weights into a ResNet but for its classifier."""
    state = _state_of(name, weights)
    loaded = resnet.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")}, strict=False)
    absent = [key for key in loaded.missing_keys if not key.startswith("fc.")]
    if absent or loaded.unexpected_keys:
        wrong = f"lack {absent[0]}" if absent else f"have {loaded.unexpected_keys[0]}"
        raise UserError(f"The weights {weights!r} {wrong}; give those of torchvision's {name}.")


def _state_of(name: str, weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in {".pth", ".pt"}:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        state: dict[str, Tensor] = get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)
    except KeyError as error:
        known = ", ".join(get_model_weights(name).__members__)
        raise UserError(
            f"There are no weights {weights!r} for {name}; give {known}, or a .pth or .safetensors file."
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The weights {weights!r} cannot be loaded ({reason}); check the file or the name.") from error
    return state


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


_NORMS: dict[str, Callable[[int], nn.Module]] = {"group": _group_norm, "batch": nn.BatchNorm2d}
