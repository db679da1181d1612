"""What teaches the masks: binary cross-entropy over object-specific parts, objects and parts (Eq. 5; spec 3.2).

All three sum over channels, so logits are made a few channels at a time and thrown away: memory does not grow with the
number of classes. Everything is float32, also under autocast. Symbols: B images of S x S pixels, K classes, N_o
objects, N_p parts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weakly.methods.partclip.attention_losses import AttentionLoss
from weakly.methods.partclip.model import ClipSegBaseline, Decoded, NameEmbeddings, PartClipSeg
from weakly.methods.partclip.trunk import Trunk, recomputed

EmptyTerm = Literal["skip", "nan_to_zero"]
"""A mean over no pixel is left out; or, as released, makes the whole loss zero, and all its gradients."""


class PixelTerm(NamedTuple):
    """One mean of a loss: at some pixels, one channel is to say yes and all others no.

    Attributes:
        target: (B, S, S) int64 channel that is to say yes.
        weight: (B, S, S) float32, zero where a pixel does not count; one over what the mean divides by elsewhere.
    """

    target: Tensor
    weight: Tensor


class MaskLoss(NamedTuple):
    """The three mask losses, unweighted scalars.

    Attributes:
        classes: of the object-specific parts.
        objects: of the objects.
        parts: of the generalised parts.
        undefined: scalar bool, whether the release would have divided by no pixel (spec section 3.2).
    """

    classes: Tensor
    objects: Tensor
    parts: Tensor
    undefined: Tensor


def mask_loss(
    model: PartClipSeg,
    decoded: Decoded,
    names: NameEmbeddings,
    classes: Tensor,
    objects: Tensor,
    *,
    background: float = 0.05,
    chunk: int = 16,
) -> MaskLoss:
    """The three mask losses of a batch; pixel sets are pooled over its images.

    Pixels of an object without a class teach the object masks alone. A mean over no pixel is 0 here.
    At most B ``chunk`` S^2 times about ten floats are held at a time, in the backward pass too.

    Args:
        model: makes the logits.
        decoded: of the batch.
        names: of the K classes.
        classes: (B, S, S) int64 class of every pixel, K for none.
        objects: (B, S, S) int64 object of every pixel, N_o for the background; others count nowhere.
        background: weight of the background channel; it does not change what a mean divides by.
        chunk: masks of an image made at once.
    """
    k, n_o, n_p = names.classes, names.objects, names.parts
    labelled, shown, elsewhere = classes < k, (objects >= 0) & (objects < n_o), objects == n_o
    nowhere = elsewhere & shown.any()
    last = torch.full_like(objects, k)

    def of_objects(channels: Tensor) -> Tensor:
        return model.prompt_logits(decoded.trunk, channels + n_p)

    def of_parts(channels: Tensor) -> Tensor:
        return model.prompt_logits(decoded.trunk, channels)

    def of_classes(channels: Tensor) -> Tensor:
        return model.class_logits(decoded, channels)

    both = [PixelTerm(classes, mean_weight(labelled, k + 1)), PixelTerm(last, mean_weight(nowhere, k + 1))]
    whole = [PixelTerm(objects, mean_weight(shown | elsewhere, n_o + 1))]
    part = [PixelTerm(names.part_prompt[classes], mean_weight(labelled, n_p))]
    return MaskLoss(
        masked_bce(of_classes, channel_weights(k, background, classes), both, chunk),
        masked_bce(of_objects, channel_weights(n_o, background, classes), whole, chunk),
        masked_bce(of_parts, torch.ones(n_p, device=classes.device), part, chunk),
        shown.any() & ~elsewhere.any(),
    )


def phrase_loss(
    model: ClipSegBaseline,
    decoded: Trunk,
    classes: Tensor,
    objects: Tensor,
    *,
    background: float = 0.05,
    chunk: int = 16,
) -> Tensor:
    """Scalar loss of the baseline: one mean over all pixels and channels, no class being background (spec section 9).

    Args:
        model: makes the logits.
        decoded: of the batch.
        classes: (B, S, S) int64 class of every pixel, K for none.
        objects: (B, S, S) int64; pixels with a negative one do not count.
        background: weight of the background channel.
        chunk: masks of an image made at once.
    """
    channels = decoded.features.shape[1]
    term = PixelTerm(classes, mean_weight(objects >= 0, channels))
    weights = channel_weights(channels - 1, background, classes)
    return masked_bce(lambda part: model.class_logits(decoded, part), weights, [term], chunk)


def total_loss(
    masks: MaskLoss,
    attention: AttentionLoss,
    *,
    objects: float = 1.0,
    parts: float = 1.0,
    separation: float = 0.1,
    enhancement: float = 0.01,
    empty_term: EmptyTerm = "skip",
) -> Tensor:
    """The weighted sum of all terms (Eq. 10), a scalar.

    Args:
        masks: of :func:`mask_loss`.
        attention: of :func:`.attention_losses.attention_loss`.
        objects: weight of the object masks.
        parts: weight of the part masks.
        separation: weight of L_sep.
        enhancement: weight of L_enh.
        empty_term: see :data:`EmptyTerm`.
    """
    total = masks.classes + objects * masks.objects + parts * masks.parts
    total = total + separation * attention.separation + enhancement * attention.enhancement
    return total if empty_term == "skip" else torch.where(masks.undefined, 0.0, total)


def masked_bce(
    logits_of: Callable[[Tensor], Tensor], channel_weight: Tensor, terms: Sequence[PixelTerm], chunk: int
) -> Tensor:
    """Scalar sum over terms, channels and pixels of weighted binary cross-entropy with logits.

    Args:
        logits_of: (c,) channels to (B, c, S, S) logits; called again in the backward pass.
        channel_weight: (C,) float32.
        terms: over the same pixels.
        chunk: channels at once.
    """
    pixels = torch.stack([term.weight for term in terms]).sum(0)

    def of_channels(channels: Tensor, weight: Tensor) -> Tensor:
        return cast("Tensor", _Entropy.apply(logits_of(channels).float(), channels, weight, pixels, terms))

    channels = torch.arange(len(channel_weight), device=channel_weight.device)
    pieces = zip(channels.split(chunk), channel_weight.split(chunk), strict=True)
    return torch.stack([recomputed(of_channels, *piece) for piece in pieces]).sum()


class _Entropy(torch.autograd.Function):
    """Scalar ``sum_k w_k sum_terms sum_p v_p (softplus(x_kp) - [t_p = k] x_kp)`` of (B, c, S, S) logits x.

    That is weighted BCE, of which one channel of a pixel has target 1. The gradient, ``sigmoid(x) - [t = k]`` times the
    weights, is written in one tensor; ones and zeros of targets are never laid out.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, channels: Tensor, weight: Tensor, pixels: Tensor, terms: Sequence[PixelTerm]
    ) -> Tensor:
        ctx.save_for_backward(logits, channels, weight, pixels)
        ctx.terms = terms
        # log(1 + y) for log1p(y): off by 6e-8 of a pixel at most, and ten times faster on a processor.
        softened = logits.abs().neg_().exp_().add_(1).log_().add_(logits.clamp(min=0))
        entropy = torch.einsum("bkyx,byx,k->", softened, pixels, weight)
        for row, share in _own(terms, channels, weight):
            entropy -= (logits.gather(1, row)[:, 0] * share).sum()
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, channels, weight, pixels = ctx.saved_tensors
        slope = logits.sigmoid().mul_(pixels[:, None]).mul_(weight[:, None, None])
        for row, share in _own(ctx.terms, channels, weight):
            slope.scatter_add_(1, row, -share[:, None])
        return slope.mul_(gradient), None, None, None, None


def _own(terms: Sequence[PixelTerm], channels: Tensor, weight: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Per term the row of a pixel's own channel, (B, 1, S, S), and its weight, (B, S, S): 0 where it is elsewhere."""
    for term in terms:
        row = term.target - channels[0]
        here = (row >= 0) & (row < len(channels))
        row = row.where(here, 0)
        yield row[:, None], term.weight * weight[row] * here


def mean_weight(pixels: Tensor, channels: int) -> Tensor:
    """(B, S, S) float32: one over pixels times channels where ``pixels`` holds, else 0; no pixel, no weight."""
    return pixels.float() / (pixels.sum().clamp(min=1) * channels)


def channel_weights(foreground: int, background: float, like: Tensor) -> Tensor:
    """(``foreground`` + 1,) float32 ones and, last, the weight of the background, on the device of ``like``."""
    weights = torch.ones(foreground + 1, device=like.device)
    weights[-1] = background
    return weights
