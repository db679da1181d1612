"""The loss of a prompter of regions: WPS-SAM's two terms over regions, and those of a detector beside them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.methods.wps.regions import Answers, Sampled


class RegionLoss(NamedTuple):
    """Scalars: the weighted total and its unweighted terms (detached).

    Attributes:
        total: what is minimised.
        classification: cross-entropy of the regions' classes.
        regression: smooth L1 of tokens, as in WPS-SAM.
        offsets: smooth L1 of box offsets.
        objectness: binary cross-entropy of anchors.
        proposal: smooth L1 of the anchors' offsets.
    """

    total: Tensor
    classification: Tensor
    regression: Tensor
    offsets: Tensor
    objectness: Tensor
    proposal: Tensor


def region_loss(
    answers: Answers,
    sampled: Sampled,
    teacher: Tensor,
    objectness: Tensor,
    proposal: Tensor,
    *,
    lambda_cls: float,
    lambda_reg: float,
    lambda_box: float = 1.0,
) -> RegionLoss:
    """Class, tokens and offsets by their weights, and the proposals' objectness and offsets, in float32.

    ``lambda_cls * CE + lambda_reg * smooth-L1(tokens) + lambda_box * smooth-L1(offsets) + objectness + proposal``.

    CE and offsets are averaged over all sampled regions. Tokens are compared where a region lies on a part: averaged
    over the T * D values, over the regions of an image, and over the images, as WPS-SAM does over matched queries. An
    image without parts adds none.

    Args:
        answers: about N regions.
        sampled: these regions and what they lie on.
        teacher: (B, M, T, D) teacher tokens, zero-padded.
        objectness: of the anchors.
        proposal: of the anchors.
        lambda_cls: weight of the classification.
        lambda_reg: weight of the tokens.
        lambda_box: weight of the offsets.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        logits, offsets, tokens = (each.float() for each in answers)
        images, classes = len(teacher), logits.shape[-1]
        classification = functional.cross_entropy(logits, sampled.label)
        on_part = (sampled.label != classes - 1).float()
        per_image = on_part.new_zeros(images).index_add(0, sampled.image, on_part)
        weight = on_part / per_image[sampled.image].clamp(min=1) / images
        # One instance more, so that a batch without parts has something to point at; its weight is 0.
        wanted = functional.pad(teacher.float(), (0, 0, 0, 0, 0, 1))[sampled.image, sampled.instance]
        error = functional.smooth_l1_loss(tokens, wanted, reduction="none").mean((-2, -1))
        regression = (error * weight).sum()
        moved = functional.smooth_l1_loss(offsets, sampled.offsets, beta=1 / 9, reduction="none").sum(-1)
        moves = (moved * on_part).sum() / max(1, len(on_part))
        total = lambda_cls * classification + lambda_reg * regression + lambda_box * moves + objectness + proposal
    terms = (classification, regression, moves, objectness, proposal)
    return RegionLoss(total, *(term.detach() for term in terms))
