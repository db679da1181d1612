"""Mask classification as semantic segmentation: queries that each say a category and a mask (MaskFormer, Mask2Former).

Symbols as in :mod:`weakly.methods.semantic_network`; Q queries, L decoder layers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.methods.image_views import VOID
from weakly.methods.optimisation import norm_parameters
from weakly.methods.semantic_network import SemanticNetwork, resize

KINDS = {"classification": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
"""Parts of the loss, and how the library's names for them begin."""


class Answers(NamedTuple):
    """What the queries say after a decoder layer.

    Attributes:
        masks: (B, Q, h, w) logits over the whole padded input.
        classes: (B, Q, C + 2) logits, the last of "no object".
    """

    masks: Tensor
    classes: Tensor


class MaskClassifier(SemanticNetwork):
    """A network of transformers with queries, one target mask per category present, background among them.

    Args:
        net: of C + 1 labels; has the library's ``get_loss_dict`` and ``config``.
        settings: a dataclass it was made of; it has ``backbone_lr``.
    """

    kind: ClassVar[str]
    undecayed_parts: ClassVar[tuple[str, ...]] = ("relative_position_bias_table", "queries_embedder")
    """Parts of the names of the parameters, norms aside, that weight decay leaves alone."""

    def __init__(self, net: Any, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.backbone_lr = settings.backbone_lr
        self.net = net

    @abstractmethod
    def answers(self, pixels: Tensor, *, earlier: bool) -> list[Answers]:
        """What the queries say after the decoder's last layer; with ``earlier``, what they said before comes first."""

    def scores(self, pixels: Tensor) -> Tensor:
        """Log-probabilities: :func:`semantic_log_probabilities` of the masks at the resolution of the pixels."""
        last = self.answers(pixels, earlier=False)[-1]
        return semantic_log_probabilities(resize(last.masks.float(), pixels.shape[-2:]), last.classes.float())

    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``classification``, ``mask`` and ``dice``, summed over the decoder's layers.

        Ignored pixels belong to no mask. The loss itself is computed in float32.
        """
        *before, last = self.answers(pixels, earlier=True)
        with torch.autocast(pixels.device.type, enabled=False):
            masks, classes = mask_targets(labels)
            losses: Mapping[str, Tensor] = self.net.get_loss_dict(
                last.masks.float(),
                last.classes.float(),
                masks,
                classes,
                [{"masks_queries_logits": a.masks.float(), "class_queries_logits": a.classes.float()} for a in before],
            )
        return {
            part: torch.stack([loss for key, loss in losses.items() if key.startswith(name)]).sum()
            for part, name in KINDS.items()
        }

    def probabilities(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities at input resolution, resized: means of neighbours, so still probabilities."""
        return resize(outputs.float().softmax(1), size)

    def architecture(self) -> dict[str, Any]:
        """Settings, and the library's own configuration, which has the sizes of a pretrained network too."""
        return {"kind": self.kind, "settings": asdict(self.settings), "config": self.net.config.to_dict()}

    def undecayed(self) -> set[str]:
        """Norms, position biases and the embeddings of queries."""
        named = {name for name, _ in self.named_parameters() if any(part in name for part in self.undecayed_parts)}
        return named | norm_parameters(self)


def semantic_log_probabilities(masks: Tensor, classes: Tensor) -> Tensor:
    """Sigmoid masks times class probabilities, summed over the queries and divided by their total over the classes.

    "No object" is left out of the sums, so only the division makes them probabilities; the released code of FMA-WSSS
    takes a softmax of them instead, which flattens them (fma-wsss, section 6, defect b). The masks of a pixel are
    divided by their largest first: that changes no quotient, and no pixel is without any mask.

    Args:
        masks: (B, Q, H, W) float32 logits.
        classes: (B, Q, C + 2) float32 logits, the last of "no object".

    Returns:
        (B, C + 1, H, W) float32.
    """
    weights = functional.logsigmoid(masks)
    weights = (weights - weights.amax(1, keepdim=True)).exp()
    summed = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], weights)
    tiny = torch.finfo(summed.dtype).tiny
    return (summed / summed.sum(1, keepdim=True).clamp_min(tiny)).clamp_min(tiny).log()


def mask_targets(labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Per image the (n, H, W) float masks and (n,) int64 labels of the n categories present; ignored pixels: none."""
    present = [image.unique() for image in labels]
    present = [categories[categories != VOID] for categories in present]
    masks = [(image == categories[:, None, None]).float() for image, categories in zip(labels, present, strict=True)]
    return masks, present
