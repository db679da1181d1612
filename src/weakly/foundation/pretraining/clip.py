"""Training the bundled CLIP on pictures and captions, with the contrast taken over what is known to be false.

In a batch of rendered worlds many captions are true of several pictures, and a plain contrastive loss would push
those apart. Here each picture tells every true caption from the captions false of it, and each caption every picture
it is true of from those it is false of; unclear pairs count for nothing. With one true caption per picture and all
others false it is CLIP's own loss (Radford et al. 2021, figure 3).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from math import log
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import CLIPModel

from weakly.foundation.pretraining.captioned import CaptionBatch, CaptionBatches, CaptionedBank
from weakly.foundation.pretraining.clip_recipe import ClipTraining
from weakly.foundation.pretraining.small_clip import (
    SmallClipConfig,
    build_small_clip,
    build_tokenizer,
    image_features,
    text_features,
)
from weakly.foundation.pretraining.staged import identity_of, read_checkpoint, save_checkpoint

MAX_LOGIT_SCALE = log(100)
"""CLIP's own bound on the logarithm of the scale."""

_NOBODY = -1e4  # log-sum of no rivals: finite, so that its gradient is


def contrastive_loss(logits: Tensor, true: Tensor, false: Tensor) -> Tensor:
    """Symmetric multi-positive InfoNCE of (B, T) scaled similarities; a scalar.

    Of each picture, the mean over its true captions of ``-log(e^s / (e^s + sum of e^s over its false captions))``,
    and the same of each caption over pictures: true pairs are no rivals of each other.

    Args:
        logits: (B, T) float.
        true: (B, T) bool.
        false: (B, T) bool, disjoint from ``true``; pairs in neither are left out.
    """
    return 0.5 * (_one_way(logits, true, false) + _one_way(logits.T, true.T, false.T))


def _one_way(logits: Tensor, true: Tensor, false: Tensor) -> Tensor:
    rivals = logits.masked_fill(~false, _NOBODY).logsumexp(1, keepdim=True)
    pairs = functional.softplus(rivals - logits) * true
    return (pairs.sum(1) / true.sum(1).clamp(min=1)).sum() / true.any(1).sum().clamp(min=1)


def training_losses(model: CLIPModel, batch: CaptionBatch, training: ClipTraining) -> dict[str, Tensor]:
    """:func:`contrastive_loss` of both poolings.

    ``hits`` is the fraction of captions that are true of the picture whose mean patch token they match best.
    """
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=training.bf16):
        pictures = image_features(model, batch.pixels)
        texts = text_features(model, batch.tokens)
    scale = model.logit_scale.exp()
    logits = scale * pictures.patches @ texts.T
    patch_loss = contrastive_loss(logits, batch.true, batch.false)
    cls_loss = contrastive_loss(scale * pictures.cls @ texts.T, batch.true, batch.false)
    best = logits.argmax(0, keepdim=True)
    return {
        "loss": patch_loss + training.cls * cls_loss,
        "patch_loss": patch_loss.detach(),
        "cls_loss": cls_loss.detach(),
        "hits": batch.true.gather(0, best).float().mean(),
        "scale": scale.detach(),
    }


def train_clip(
    bank: CaptionedBank,
    work: Path,
    config: SmallClipConfig | None = None,
    training: ClipTraining | None = None,
    *,
    report: Callable[[int, dict[str, float]], None] = lambda _step, _values: None,
    save_every: int = 100,
    until: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    start: CLIPModel | None = None,
    compiled: bool = False,
) -> CLIPModel:
    """Train to the end of the last stage (or to step ``until``); a checkpoint in ``work`` is continued.

    Args:
        bank: rendered worlds at the largest stage's size.
        work: folder of the checkpoint and of ``log.jsonl``.
        config: the model's sizes.
        training: the recipe.
        report: called every 10 steps with (step, {"loss", "patch_loss", "cls_loss", "hits", "scale", "seconds"}).
        save_every: steps between checkpoints.
        until: stop after this step; the next call goes on.
        device: where the model trains.
        workers: processes that draw views and captions; 0: this one. The batches are the same.
        start: weights to start from instead of random ones.
        compiled: through torch.compile; not the same bytes.

    Raises:
        UserError: ``work`` holds a checkpoint of another recipe or of a model of other sizes.
    """
    config, training = config or SmallClipConfig(), training or ClipTraining()
    tokenizer = build_tokenizer(context=config.context)
    torch.manual_seed(training.seed)
    model = build_small_clip(config, tokenizer)
    if start is not None:
        model.load_state_dict(start.state_dict())
    model.to(device)
    optimiser = training.optimiser(model.parameters(), betas=(0.9, 0.98))
    work.mkdir(parents=True, exist_ok=True)
    identity = identity_of(config, training)
    first = 0
    if (stored := read_checkpoint(work, optimiser, identity)) is not None:
        weights, first = stored
        model.load_state_dict(weights)
    last = training.total_steps if until is None else until
    losses_of = torch.compile(training_losses, dynamic=False) if compiled else training_losses
    batches = CaptionBatches(bank, tokenizer, training)
    loader = DataLoader(batches, sampler=range(first, last), batch_size=None, num_workers=workers)
    clock = time.monotonic()
    for step, batch in enumerate(loader, first):
        values = _step(model, optimiser, losses_of, batch.to(model.device), training, step)
        if step % 10 == 9:
            numbers = {key: float(value) for key, value in values.items()}
            numbers["seconds"] = time.monotonic() - clock
            with (work / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, "size": training.stage_at(step).size, **numbers}) + "\n")
            report(step + 1, numbers)
        if (step + 1) % save_every == 0 or step + 1 == last:
            save_checkpoint(work, model.state_dict(), optimiser, identity, step + 1)
    return model.eval()


def _step(
    model: CLIPModel,
    optimiser: torch.optim.Optimizer,
    losses_of: Callable[[CLIPModel, CaptionBatch, ClipTraining], dict[str, Tensor]],
    batch: CaptionBatch,
    training: ClipTraining,
    step: int,
) -> dict[str, Tensor]:
    losses = losses_of(model, batch, training)
    training.update(optimiser, losses["loss"], step)
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return {key: value.detach() for key, value in losses.items()}
