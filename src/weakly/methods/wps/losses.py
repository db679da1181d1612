"""Matching students to teachers and the training loss (WPS-SAM, Equations 3 and 4), whole batches at once.

Everything here is float32, also under autocast. Symbols: B images, S queries, M instances of the fullest image,
C categories (class C is "no part"), T tokens per prompt, D token width, K matched pairs over all images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional

from weakly.errors import WeaklyError
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.wps.boxes import box_cost, box_loss
from weakly.methods.wps.model import Prompts

RegNorm = Literal["matched", "queries"]


class Matches(NamedTuple):
    """K pairs of a query and the instance it has to answer for; within an image in the order of its instances.

    Attributes:
        image: (K,) int64.
        query: (K,) int64.
        instance: (K,) int64 index along M.
        per_image: (B,) float32 number of pairs of every image.
    """

    image: Tensor
    query: Tensor
    instance: Tensor
    per_image: Tensor


class Loss(NamedTuple):
    """Scalars: the weighted total, and its unweighted terms (detached)."""

    total: Tensor
    classification: Tensor
    regression: Tensor
    boxes: Tensor | None = None
    masks: Tensor | None = None


def matching_cost(prompts: Prompts, labels: Tensor, teacher: Tensor, *, alpha: float, beta: float) -> Tensor:
    """(B, S, M) float32: ``-alpha * softmax(logits)[label] + beta * ||student - teacher||_2`` (WPS-SAM, Eq. 3).

    The norm is over all T * D values, neither squared nor averaged, and computed from differences: the matrix-product
    form loses digits once TF32 is on.

    Args:
        prompts: of the student.
        labels: (B, M) int64; padding may hold any category.
        teacher: (B, M, T, D) teacher tokens.
        alpha: weight of the class probability.
        beta: weight of the distance.
    """
    probability = prompts.logits.float().softmax(-1)
    classes = labels[:, None].expand(-1, probability.shape[1], -1)
    distance = torch.cdist(
        prompts.tokens.float().flatten(2), teacher.float().flatten(2), compute_mode="donot_use_mm_for_euclid_dist"
    )
    return beta * distance - alpha * probability.gather(2, classes)


@torch.no_grad()
def match(
    prompts: Prompts,
    labels: Tensor,
    teacher: Tensor,
    counts: Sequence[int],
    *,
    alpha: float,
    beta: float,
    boxes: Tensor | None = None,
    gamma: float = 0.0,
) -> Matches:
    """The assignment of least cost in every image (Hungarian algorithm); one transfer to the host per call.

    An image with more instances than queries keeps its S best instances; one without instances has no pairs.

    Args:
        prompts: of the student.
        labels: (B, M) int64.
        teacher: (B, M, T, D).
        counts: number of instances of every image, on the host.
        alpha: see :func:`matching_cost`.
        beta: see :func:`matching_cost`.
        boxes: (B, M, 4) to compare the student's with (:func:`~weakly.methods.wps.boxes.box_cost`); None: no boxes.
        gamma: their weight.

    Raises:
        WeaklyError: a cost is not finite, i.e. the training has diverged.
    """
    device = prompts.logits.device
    if labels.shape[1] == 0:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Matches(none, none, none, torch.zeros(len(counts), device=device))
    with torch.autocast(device.type, enabled=False):
        cost = matching_cost(prompts, labels, teacher, alpha=alpha, beta=beta)
        if boxes is not None and prompts.boxes is not None:
            cost = cost + gamma * box_cost(prompts.boxes.float(), boxes)
        costs = cost.cpu().numpy()
    if not np.isfinite(costs).all():
        raise WeaklyError("The training diverged: the student's output is not finite; lower optimisation.lr.")
    pairs = [assign(cost[:, :count]) for cost, count in zip(costs, counts, strict=True)]
    lengths = [len(queries) for queries, _ in pairs]
    flat = np.stack(
        [
            np.repeat(np.arange(len(counts)), lengths),
            np.concatenate([queries for queries, _ in pairs]),
            np.concatenate([instances for _, instances in pairs]),
        ]
    )
    image, query, instance = torch.from_numpy(flat).to(device, non_blocking=True).unbind()
    return Matches(image, query, instance, torch.tensor(lengths, dtype=torch.float32).to(device, non_blocking=True))


def assign(cost: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Queries and instances (K,), (K,) int64 of the cheapest assignment of (S, M) costs, ascending by instance."""
    queries, instances = linear_sum_assignment(cost)
    order = np.argsort(instances)
    return queries[order], instances[order]


def prompt_loss(
    prompts: Prompts,
    labels: Tensor,
    teacher: Tensor,
    matches: Matches,
    *,
    lambda_cls: float,
    lambda_reg: float,
    eos_weight: float = 1.0,
    reg_norm: RegNorm = "matched",
    boxes: Tensor | None = None,
    lambda_box: float = 0.0,
) -> Loss:
    """``lambda_cls * CE + lambda_reg * smooth-L1`` (WPS-SAM, Eq. 4), every image weighing the same.

    CE is averaged over the S queries of an image; unmatched queries are to say "no part" (weight ``eos_weight``).
    The regression is averaged over the T * D values of a pair and over the pairs of an image (``matched``: what the
    released code does) or divided by S (``queries``: the letter of Eq. 4). An image without instances adds none.

    Args:
        prompts: of the student.
        labels: (B, M) int64.
        teacher: (B, M, T, D) teacher tokens.
        matches: of :func:`match`.
        lambda_cls: weight of the classification.
        lambda_reg: weight of the regression.
        eos_weight: weight of class "no part" in the cross-entropy.
        reg_norm: see above.
        boxes: (B, M, 4) that the student's are compared with, averaged like the regression; None: no boxes.
        lambda_box: their weight.
    """
    with torch.autocast(prompts.logits.device.type, enabled=False):
        logits, tokens = prompts.logits.float(), prompts.tokens.float()
        images, queries, classes = logits.shape
        background = classes - 1
        target = labels.new_full((images, queries), background)
        target[matches.image, matches.query] = labels[matches.image, matches.instance]
        entropy = functional.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view_as(target)
        weight = torch.where(target == background, eos_weight, 1.0)
        # An image of background alone has weight 0 everywhere when eos_weight is 0.
        normaliser = weight.sum(1).clamp(min=torch.finfo(torch.float32).tiny)
        classification = ((entropy * weight).sum(1) / normaliser).mean()

        error = functional.smooth_l1_loss(
            tokens[matches.image, matches.query],
            teacher[matches.image, matches.instance].float(),
            reduction="none",
        ).mean((-2, -1))
        pairs = matches.per_image[matches.image] if reg_norm == "matched" else float(queries)
        regression = (error / pairs).sum() / images
        total = lambda_cls * classification + lambda_reg * regression
        if boxes is None or prompts.boxes is None:
            return Loss(total, classification.detach(), regression.detach())
        found = prompts.boxes.float()[matches.image, matches.query]
        placed = (box_loss(found, boxes[matches.image, matches.instance]) / pairs).sum() / images
    return Loss(total + lambda_box * placed, classification.detach(), regression.detach(), placed.detach())


def mask_loss(
    segmenter: PromptableSegmenter, embeddings: Tensor, tokens: Tensor, teacher: Tensor, matches: Matches, pairs: int
) -> Tensor:
    """Scalar: how far the masks of the student's prompts are from those of the teacher's, through the frozen decoder.

    Cross-entropy per pixel plus Dice, against the probabilities that the same decoder answers to the weak label: no
    mask but the segmenter's own is read. Ours; not in WPS-SAM. Memory: two decodings of ``pairs`` prompts.

    Args:
        segmenter: frozen; gradients flow through it to the student's tokens.
        embeddings: (B, C, h, w).
        tokens: (B, S, T, D) of the student.
        teacher: (B, M, T, D).
        matches: of :func:`match`.
        pairs: at most so many are decoded, evenly spaced.
    """
    total = len(matches.image)
    if total == 0:
        return tokens.sum() * 0.0
    chosen = torch.arange(min(pairs, total), device=tokens.device) * total // min(pairs, total)
    image, query, instance = (each[chosen] for each in matches[:3])
    with torch.autocast(tokens.device.type, enabled=False):
        with torch.no_grad():
            wanted = segmenter.decode(embeddings, teacher[image, instance].float(), image)[0].sigmoid()
        logits = segmenter.decode(embeddings, tokens[image, query].float(), image)[0]
        answer = logits.sigmoid()
        entropy = functional.binary_cross_entropy_with_logits(logits, wanted)
        overlap, sizes = (answer * wanted).sum((1, 2, 3)), (answer + wanted).sum((1, 2, 3))
        return entropy + (1 - (2 * overlap + 1) / (sizes + 1)).mean()
