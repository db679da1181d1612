"""Training of the two prompt sets on encoded views (FMA-WSSS, section 3.3; spec fma-wsss, sections 2.4, 4 and 10).

Only context vectors train. An update is a pure function of its number, the context and the momentum, so a stopped
training goes on from its last checkpoint and ends with the same bytes (CPU). Files of a set in the run's ``prompts/``:

    <stage>-<id>.safetensors               the trained context
    <stage>-<id>.checkpoint.safetensors    context, momentum and step of an unfinished training
    <stage>-<id>.jsonl                     one row per logged update: step, loss, learning rate
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from weakly.data.images import read_image
from weakly.errors import UserError, WeaklyError
from weakly.foundation.clip import Clip
from weakly.methods.fma.cam import GradCam, cosine_logits, positives_of
from weakly.methods.fma.losses import activation_loss, binary_loss, contrastive_loss, map_cross_entropy, seed_tags
from weakly.methods.fma.model import PromptContext
from weakly.methods.fma.schedule import learning_rate
from weakly.methods.fma.settings import PromptLoss, PromptSettings, SegmentationPromptSettings
from weakly.methods.fma.views import Views, seed_view
from weakly.methods.sampling import epoch_order
from weakly.methods.stage_files import read_checkpoint, read_log, write_log, write_tensors

SAVE_EVERY = 25
"""Updates between two checkpoints."""

LOG_EVERY = 10
"""Updates between two rows of the log."""

BatchLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(G, E) text features, (B,) images and (B,) view numbers to a scalar, differentiable in the text."""


@dataclass(frozen=True)
class PromptFiles:
    """Where a prompt set lies.

    Attributes:
        folder: ``prompts/`` of the run.
        stage: ``classification`` or ``segmentation``.
        identity: hex digest of all that decides the context besides the training images.
    """

    folder: Path
    stage: str
    identity: str

    @property
    def context(self) -> Path:
        """The trained context."""
        return self.folder / f"{self.stage}-{self.identity[:12]}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """An unfinished training."""
        return self.context.with_suffix(".checkpoint.safetensors")

    @property
    def log(self) -> Path:
        """Losses."""
        return self.context.with_suffix(".jsonl")


def classification_loss(views: Views, tags: Tensor, scale: float, kind: PromptLoss = "mcl") -> BatchLoss:
    """The loss of stored image embeddings; only the first C prompts, the foreground's, count.

    Args:
        views: n images.
        tags: (n, C) bool.
        scale: of CLIP's logits.
        kind: ``mcl`` or ``bce``.
    """
    loss_of = binary_loss if kind == "bce" else contrastive_loss

    def loss(text: Tensor, images: Tensor, numbers: Tensor) -> Tensor:
        embeddings = torch.from_numpy(views.embeddings[images.numpy(), numbers.numpy()]).to(text.device)
        logits = cosine_logits(embeddings, text[: tags.shape[1]], scale)
        return loss_of(logits, tags[images].to(text.device))

    return loss


def segmentation_loss(
    views: Views,
    tags: Tensor,
    seeds: Sequence[Path],
    clip: Clip,
    settings: SegmentationPromptSettings,
    *,
    eps: float = 0.0,
) -> BatchLoss:
    """The loss of maps, made from stored last-block inputs, on the coarse seeds of the same views.

    Memory: a batch of inputs, and the activations of one block for it.

    Args:
        views: n images, with inputs.
        tags: (n, C) bool.
        seeds: n seed PNGs, of the sizes of their images.
        clip: the frozen model.
        settings: which loss, its weights, and whose maps are trained.
        eps: of the softmax.
    """
    inputs = views.inputs
    if inputs is None:
        raise ValueError("segmentation prompts need views with inputs of the last block")
    loss_of = map_cross_entropy if settings.loss == "ce" else activation_loss

    def loss(text: Tensor, images: Tensor, numbers: Tensor) -> Tensor:
        places = zip(images.tolist(), numbers.tolist(), strict=True)
        cuts = [seed_view(read_image(seeds[i], mode="index"), views.keys[i], v, views.settings) for i, v in places]
        maps_of = torch.from_numpy(np.stack(cuts)).to(text.device)
        shown = tags[images].to(text.device)
        present = seed_tags(maps_of, tags.shape[1]) if settings.classes_from == "crop" else shown
        if not present.any():
            return text.new_zeros(())
        stored = torch.from_numpy(inputs[images.numpy(), numbers.numpy()]).to(text.device).float()
        maps = GradCam(clip, stored, views.grid).maps(text, present, eps=eps)
        parts = loss_of(maps, maps_of, positives_of(present))
        return settings.foreground_weight * parts.foreground + settings.background_weight * parts.background

    return loss


def train_context(
    context: PromptContext,
    clip: Clip,
    loss_of: BatchLoss,
    size: tuple[int, int],
    settings: PromptSettings,
    files: PromptFiles,
    data: str,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train ``context`` in place and store it; one that is stored is loaded, an unfinished one goes on.

    The text is encoded once per update: micro-batches add up their gradients on its features.

    Args:
        context: freshly started.
        clip: encodes the prompts.
        loss_of: see :data:`BatchLoss`.
        size: (n, k), images and views of each.
        settings: of the training.
        files: where it lies.
        data: digest of the training images and their targets; a checkpoint of others is left aside.
        progress: called with (updates done, updates in all).

    Raises:
        WeaklyError: the loss is not finite.
        UserError: a stored context does not fit.
    """
    if load_context(context, files):
        return
    tell = progress or (lambda _done, _total: None)
    optimizer = torch.optim.SGD([context.context], settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    done, rows = _resume(context, optimizer, files, data)
    tell(done, settings.updates)
    for step in range(done, settings.updates):
        rate = learning_rate(
            step, total=settings.iterations, warmup=settings.warmup, peak=settings.lr, warm=settings.warm_lr
        )
        optimizer.param_groups[0]["lr"] = rate
        loss = _update(context, clip, loss_of, batch_of(step, size, settings), settings.micro_batches, optimizer)
        if not math.isfinite(loss):
            raise WeaklyError(
                f"The loss of the {files.stage} prompts is {loss} at update {step + 1}; lower lr in "
                f"settings.{files.stage}, or check that CLIP {clip.name!r} is intact."
            )
        done = step + 1
        if done % LOG_EVERY == 0 or done in (1, settings.updates):
            rows.append({"step": done, "loss": round(loss, 6), "lr": rate})
        if done % SAVE_EVERY == 0 and done < settings.updates:
            _save(context, optimizer, files, data, done, rows)
        tell(done, settings.updates)
    write_log(files.log, rows)
    about = {"stage": files.stage, "identity": files.identity, "updates": settings.updates}
    write_tensors(files.context, {"context": context.context}, about)
    files.checkpoint.unlink(missing_ok=True)


def load_context(context: PromptContext, files: PromptFiles) -> bool:
    """Put the stored context into ``context``; False where there is none yet.

    Raises:
        UserError: the file is damaged or of another shape.
    """
    if not files.context.is_file():
        return False
    try:
        stored = safetensors.torch.load(files.context.read_bytes())["context"]
    except (OSError, KeyError, safetensors.SafetensorError) as error:
        raise UserError(f"{files.context} cannot be read ({error}); delete it to train the prompts again.") from error
    if stored.shape != context.context.shape:
        raise UserError(
            f"{files.context} holds a context of shape {tuple(stored.shape)}, not {tuple(context.context.shape)}; "
            "delete it to train the prompts again."
        )
    context.context.data.copy_(stored)
    return True


def batch_of(step: int, size: tuple[int, int], settings: PromptSettings) -> tuple[Tensor, Tensor]:
    """(B,) images and (B,) view numbers of update ``step``: shuffled epochs, incomplete batches left out.

    B is the batch size, or n where there are fewer images.
    """
    images, views = size
    batch = min(settings.batch_size, images)
    epoch, place = divmod(step, images // batch)
    order = _order(images, settings.order_seed, epoch, views)[place * batch : (place + 1) * batch]
    return order % images, order // images


def data_digest(keys: Sequence[str], tags: Tensor, seeds: Sequence[Path] = ()) -> str:
    """Digest of training images, their tags and the names of their seed maps."""
    digest = hashlib.sha256(json.dumps([list(keys), [seed.name for seed in seeds]]).encode())
    digest.update(tags.numpy().tobytes())
    return digest.hexdigest()


def _update(
    context: PromptContext,
    clip: Clip,
    loss_of: BatchLoss,
    batch: tuple[Tensor, Tensor],
    parts: int,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One update; its loss is the mean over the micro-batches. Where no loss has a gradient nothing changes."""
    optimizer.zero_grad()
    text = context(clip)
    features = text.detach().requires_grad_()
    chunks = list(zip(*(rows.tensor_split(min(parts, len(rows))) for rows in batch), strict=True))
    total = 0.0
    for images, numbers in chunks:
        loss = loss_of(features, images, numbers) / len(chunks)
        if loss.requires_grad:
            loss.backward()
        total += float(loss.detach())
    if features.grad is not None:
        text.backward(features.grad)
        optimizer.step()
    return total


@lru_cache(maxsize=2)
def _order(images: int, seed: int, epoch: int, views: int) -> Tensor:
    return epoch_order(images, seed=seed, epoch=epoch, variants=views)


def _resume(
    context: PromptContext, optimizer: torch.optim.Optimizer, files: PromptFiles, data: str
) -> tuple[int, list[dict[str, Any]]]:
    """Put the last checkpoint of this training into place: updates done, and the rows logged until then."""
    found = read_checkpoint(files.checkpoint, data=data)
    if found is None or found[0]["context"].shape != context.context.shape:
        return 0, []
    tensors, about = found
    context.context.data.copy_(tensors["context"])
    if "momentum" in tensors:
        optimizer.state[context.context]["momentum_buffer"] = tensors["momentum"].to(context.context.device)
    return int(about["step"]), read_log(files.log, about["step"])


def _save(
    context: PromptContext,
    optimizer: torch.optim.Optimizer,
    files: PromptFiles,
    data: str,
    step: int,
    rows: Sequence[dict[str, Any]],
) -> None:
    """The log first, the checkpoint second: rows beyond a checkpoint are cut when it is read."""
    write_log(files.log, rows)
    momentum = optimizer.state[context.context].get("momentum_buffer")
    tensors = {"context": context.context, **({} if momentum is None else {"momentum": momentum})}
    write_tensors(files.checkpoint, tensors, {"step": step, "data": data})
