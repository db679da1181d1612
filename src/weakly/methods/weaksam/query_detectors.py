"""What RT-DETR and Mask2Former share: both are transformers models whose Q queries each stand for an instance.

Symbols as in :mod:`weakly.methods.weaksam.detectors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from weakly.errors import UserError
from weakly.methods.weaksam.augment import Target
from weakly.methods.weaksam.detectors import Detector


@dataclass(frozen=True)
class ResNetSettings:
    """The backbone of a student with queries; ResNet-50 by default.

    Attributes:
        pretrained: hub id (fetched from the network) or folder of a ResNet of transformers; its sizes then replace
            those below, and its batch norms are frozen. None: random weights.
        block: ``basic`` for ResNet-18 and 34, ``bottleneck`` for larger ones.
        channels: of the four stages.
        depths: blocks of the four stages.
        stem: channels of the stem.
    """

    pretrained: str | None = None
    block: Literal["basic", "bottleneck"] = "bottleneck"
    channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    stem: int = 64

    def __post_init__(self) -> None:
        if len(self.channels) != 4 or len(self.depths) != 4 or min(*self.channels, *self.depths, self.stem) < 1:
            raise UserError("A ResNet has four stages; give four channels and four depths, all at least 1.")


class QueryDetector(Detector):
    """A student made of a model of transformers.

    Args:
        net: for C labels.
        settings: it was made of.
    """

    settings: Any

    def __init__(self, net: Any, settings: Any) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.backbone_lr = settings.backbone_lr

    def architecture(self) -> dict[str, Any]:
        """Settings, and the library's own configuration, which has the sizes of a pretrained backbone too."""
        return {"kind": self.kind, "settings": asdict(self.settings), "config": self.net.config.to_dict()}


def labels_of(targets: Sequence[Target]) -> list[Tensor]:
    """Categories of the instances of B views: B times (n,) int64."""
    return [target.labels for target in targets]


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of a query and a category, so that a query can stand for several categories.

    Args:
        scores: (B, Q, C).
        count: pairs per image.

    Returns:
        Scores, categories and queries, each (B, min(count, Q C)), by descending score.
    """
    classes = scores.shape[2]
    best, pairs = scores.flatten(1).topk(min(count, scores.shape[1] * classes))
    return best, pairs % classes, pairs // classes


def grouped(losses: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """``loss`` and its parts, each the sum of all losses whose names begin alike."""
    parts = {part: _sum(loss for key, loss in losses.items() if key.startswith(name)) for part, name in kinds.items()}
    return {"loss": _sum(parts.values()), **parts}


def pretrained_resnet(name: str, stages: list[int]) -> Any:
    """A ResNet of a hub id or a folder; nothing but a hub id asks the network.

    Args:
        name: hub id or folder.
        stages: numbers of the stages whose maps it gives, from 1 to 4.

    Raises:
        UserError: there is no such ResNet, or its weights are not all there.
    """
    from transformers import AutoConfig, ResNetBackbone, RTDetrResNetBackbone  # noqa: PLC0415 - slow to import

    kinds = {"resnet": ResNetBackbone, "rt_detr_resnet": RTDetrResNetBackbone}
    try:
        config = AutoConfig.from_pretrained(name, out_indices=stages)
        backbone, loading = kinds[config.model_type].from_pretrained(name, config=config, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{name!r} cannot be loaded as a backbone ({str(error).splitlines()[0]}); give the hub id or the folder "
            "of a ResNet."
        ) from error
    if loading["missing_keys"]:  # the library would go on with random weights
        absent = min(loading["missing_keys"])
        raise UserError(f"{name!r} is no ResNet: its weights lack {absent}; give the hub id or the folder of one.")
    return backbone


def check_outputs(found: int, classes: int) -> None:
    """Raises ValueError where a stored network has another number of categories than its vocabulary."""
    if found != classes:
        raise ValueError(f"it has {found} outputs, not {classes}")


def check_transformer(section: str, settings: Any, *, multiple: int) -> None:
    """Raises UserError for sizes that RT-DETR and Mask2Former alike cannot have."""
    if settings.width < multiple or settings.width % multiple:
        raise UserError(f"{section}.width is {settings.width}; give a multiple of {multiple}.")
    for name in ("queries", "decoder_layers", "detections"):
        if getattr(settings, name) < 1:
            raise UserError(f"{section}.{name} is {getattr(settings, name)}; give at least 1.")
    if not 0 <= settings.min_score <= 1:
        raise UserError(f"{section}.min_score is {settings.min_score}; give a number in [0, 1].")


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.reshape(()) for value in values]).sum()
