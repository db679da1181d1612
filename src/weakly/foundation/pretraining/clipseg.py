"""Training the bundled CLIPSeg's decoder on whole objects, between the frozen towers of the bundled CLIP.

As CLIPSeg was trained (Lüddecke and Ecker 2022): a picture and a phrase in, binary cross-entropy with the mask of what
the phrase means out; phrases that mean nothing have empty masks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

from weakly.foundation.clip import Clip
from weakly.foundation.clipseg import ClipSeg, attach_decoder, bundled_preprocessing
from weakly.foundation.clipseg_head import read_maps
from weakly.foundation.pretraining.captioned import CaptionedBank
from weakly.foundation.pretraining.clipseg_phrases import VOID, PhraseBatch, PhraseBatches
from weakly.foundation.pretraining.recipe import ClipSegTraining
from weakly.foundation.pretraining.staged import identity_of, read_checkpoint, save_checkpoint


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of the bundled decoder: CLIPSeg's own (rd64) but for the feed-forward layers.

    Attributes:
        layers_tapped: 0-based vision blocks, in proportion to CLIPSeg's 3, 6 and 9 of 12; the last never runs.
        reduce_dim: width.
        heads: of its attention.
        hidden: of its feed-forward layers; CLIPSeg's 2,048 would be two thirds of all its arithmetic.
    """

    layers_tapped: tuple[int, ...] = (1, 3, 4)
    reduce_dim: int = 64
    heads: int = 4
    hidden: int = 256


def new_clipseg(clip: Clip, config: DecoderConfig) -> ClipSeg:
    """A CLIP's frozen towers with a fresh decoder, drawn from torch's global random state."""
    model = attach_decoder(
        clip.model, config.layers_tapped, reduce_dim=config.reduce_dim, heads=config.heads, hidden=config.hidden
    )
    return ClipSeg(model, clip.tokenizer, clip.name, bundled_preprocessing(clip.model)).to(clip.device)


def decode(decoder: CLIPSegDecoder, taps: Tensor, texts: Tensor) -> Tensor:
    """The library's decoder on P texts of each of B images; what no text touches is computed once per image.

    Args:
        decoder: conditioned at its first layer, as every published one is.
        taps: (B, layers, T, K) float32 of ``ClipSeg.taps``.
        texts: (B, P, E) float32.

    Returns:
        (B, P, S, S) logits.
    """
    part: Any = decoder
    images, phrases, _ = texts.shape
    deepest_first = taps.flip(1).unbind(1)
    reduced = [
        reduce(tap).repeat_interleave(phrases, 0) for reduce, tap in zip(part.reduces, deepest_first, strict=True)
    ]
    condition = texts.flatten(0, 1)[:, None]
    hidden = part.layers[0](part.film_mul(condition) * reduced[0] + part.film_add(condition), None)
    for layer, more in zip(part.layers[1:], reduced[1:], strict=True):
        hidden = layer(more + hidden, None)
    side = round((hidden.shape[1] - 1) ** 0.5)
    logits = read_maps(part.transposed_convolution, hidden[:, 1:], (side, side))
    return logits.unflatten(0, (images, phrases)).squeeze(2)


def mask_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean binary cross-entropy of (B, P, S, S) logits with uint8 targets over all pixels but those of ``VOID``."""
    clear = targets != VOID
    pixels = functional.binary_cross_entropy_with_logits(logits.float(), (targets == 1).float(), reduction="none")
    return (pixels * clear).sum() / clear.sum().clamp(min=1)


def training_losses(
    decoder: CLIPSegDecoder, taps: Tensor, texts: Tensor, targets: Tensor, training: ClipSegTraining
) -> dict[str, Tensor]:
    """:func:`mask_loss` of a step, and how far it is.

    ``iou`` is the mean over phrases that mean something; ``leaks`` the mean share of the picture lit by the others.

    Args:
        decoder: what trains.
        taps: (B, layers, T, K) float32.
        texts: (B, P, E) float32.
        targets: (B, P, S, S) uint8.
        training: the recipe.
    """
    with torch.autocast(taps.device.type, torch.bfloat16, enabled=training.bf16):
        logits = decode(decoder, taps, texts)
    found, meant = (logits.detach() > 0) & (targets != VOID), targets == 1
    both, either = (found & meant).sum((2, 3)), (found | meant).sum((2, 3))
    named = meant.any(3).any(2)
    return {
        "loss": mask_loss(logits, targets),
        "iou": (both / either.clamp(min=1) * named).sum() / named.sum().clamp(min=1),
        "leaks": (found.float().mean((2, 3)) * ~named).sum() / (~named).sum().clamp(min=1),
    }


def train_decoder(
    clip: Clip,
    bank: CaptionedBank,
    work: Path,
    config: DecoderConfig | None = None,
    training: ClipSegTraining | None = None,
    *,
    report: Callable[[int, dict[str, float]], None] = lambda _step, _values: None,
    save_every: int = 100,
    until: int | None = None,
    workers: int = 0,
    compiled: bool = False,
) -> ClipSeg:
    """Train to the end of the last stage (or to step ``until``); a checkpoint in ``work`` is continued.

    Args:
        clip: the towers; where they are, the decoder trains.
        bank: rendered worlds at the largest stage's size.
        work: folder of the checkpoint and of ``log.jsonl``.
        config: the decoder's sizes.
        training: the recipe.
        report: called every 10 steps with (step, {"loss", "iou", "leaks", "seconds"}).
        save_every: steps between checkpoints.
        until: stop after this step; the next call goes on.
        workers: processes that draw views and phrases; 0: this one. The batches are the same.
        compiled: through torch.compile; not the same bytes.

    Returns:
        The towers with the trained decoder.

    Raises:
        UserError: ``work`` holds a checkpoint of another recipe, of other sizes or of other towers.
    """
    config, training = config or DecoderConfig(), training or ClipSegTraining()
    torch.manual_seed(training.seed)
    clipseg = new_clipseg(clip, config)
    decoder = clipseg.new_decoder()
    optimiser = training.optimiser(decoder.parameters())
    work.mkdir(parents=True, exist_ok=True)
    identity = identity_of(config, training) + clipseg.fingerprint
    first = 0
    if (stored := read_checkpoint(work, optimiser, identity)) is not None:
        weights, first = stored
        decoder.load_state_dict(weights)
    last = training.total_steps if until is None else until
    losses_of = torch.compile(training_losses, dynamic=False) if compiled else training_losses
    loader = DataLoader(PhraseBatches(bank, training), sampler=range(first, last), batch_size=None, num_workers=workers)
    tables = clipseg.token_embedding_weights()
    clock = time.monotonic()
    for step, drawn in enumerate(loader, first):
        batch: PhraseBatch = drawn.to(clipseg.device)
        with torch.no_grad(), torch.autocast(clipseg.device.type, torch.bfloat16, enabled=training.bf16):
            taps = clipseg.taps(batch.pixels)
            texts = clipseg.encode_text(clipseg.tokenize(batch.texts), *tables)
        values = losses_of(decoder, taps, texts.unflatten(0, (len(taps), -1)), batch.targets, training)
        training.update(optimiser, values["loss"], step)
        if step % 10 == 9:
            numbers = {key: float(value.detach()) for key, value in values.items()}
            numbers["seconds"] = time.monotonic() - clock
            with (work / "log.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, "size": training.stage_at(step).size, **numbers}) + "\n")
            report(step + 1, numbers)
        if (step + 1) % save_every == 0 or step + 1 == last:
            save_checkpoint(work, decoder.state_dict(), optimiser, identity, step + 1)
    clipseg.model.decoder.load_state_dict(decoder.state_dict())
    return clipseg
