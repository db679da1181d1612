"""Training the bundled SAM with SAM's own recipe, in proportion to a CPU.

Boxes with jitter and points ask for wholes, parts and sub-parts; box prompts train the single-mask output, point
prompts the best of the three masks (multimask minimum); the IoU head regresses what each mask achieves (Kirillov et
al. 2023, section 3 and appendix A). The loss is 2 BCE + dice at the decoder's resolution, against coverage rather
than a hard mask, so that boundaries between two decoder pixels are learned too; the encoder is helped by a dense loss
(:mod:`~weakly.foundation.pretraining.grouping`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import SamModel

from weakly.foundation.pretraining.grouping import GroupingHead, grouping_loss
from weakly.foundation.pretraining.pictures import PictureBank
from weakly.foundation.pretraining.prompts import PromptBatch, StepBatches
from weakly.foundation.pretraining.recipe import SamTraining
from weakly.foundation.pretraining.staged import identity_of, read_checkpoint, save_checkpoint
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam

_GAUSSIAN = "model.shared_image_embedding.positional_embedding"
_COPY = "model.prompt_encoder.shared_embedding.positional_embedding"


def position_grid(model: SamModel, size: tuple[int, int]) -> Tensor:
    """(1, C, h, w) positional encoding of the cell centres of an (h, w) grid, as SAM's dense encoding."""
    height, width = size
    rows, columns = (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width
    y, x = torch.meshgrid(rows.to(model.device), columns.to(model.device), indexing="ij")
    encoded: Tensor = model.shared_image_embedding(torch.stack([x, y], -1))
    return encoded.permute(2, 0, 1)[None]


def all_masks(model: SamModel, embeddings: Tensor, tokens: Tensor, image_index: Tensor) -> tuple[Tensor, Tensor]:
    """All four masks of each prompt: logits (N, 4, 4h, 4w) and predicted IoU (N, 4); mask 0 is the single output.

    The library's decoder returns either mask 0 or masks 1..3; training needs all four of one pass.
    """
    decoder = model.mask_decoder
    n, (h, w) = len(tokens), embeddings.shape[-2:]
    queries = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight]).expand(n, -1, -1)
    image = (embeddings + model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1))[image_index]
    out, image = decoder.transformer(
        point_embeddings=torch.cat([queries, tokens], 1)[:, None],
        image_embeddings=image,
        image_positional_embeddings=position_grid(model, (h, w)).expand(n, -1, -1, -1),
        attention_similarity=None,
    )
    image = image.transpose(2, 3).reshape(n, -1, h, w)
    upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(image)))
    upscaled = decoder.activation(decoder.upscale_conv2(upscaled))
    filters = torch.stack([mlp(out[:, 0, 1 + i]) for i, mlp in enumerate(decoder.output_hypernetworks_mlps)], 1)
    return torch.einsum("nkc,nchw->nkhw", filters, upscaled), decoder.iou_prediction_head(out[:, 0, 0])


def prompt_tokens(model: SamModel, boxes: Tensor, points: Tensor, is_box: Tensor, size: int) -> Tensor:
    """(N, 2, D) tokens: corners where ``is_box``, else the point and the padding token. Coordinates in pixels."""
    encoder = model.prompt_encoder
    corners = encoder.shared_embedding((boxes.view(-1, 2, 2) + 0.5) / size)
    corners = corners + torch.stack([encoder.point_embed[2].weight[0], encoder.point_embed[3].weight[0]])
    point = encoder.shared_embedding((points + 0.5) / size) + encoder.point_embed[1].weight[0]
    padding = encoder.not_a_point_embed.weight.expand_as(point)
    return torch.where(is_box[:, None, None], corners, torch.stack([point, padding], 1))


def sam_loss(logits: Tensor, predicted_iou: Tensor, batch: PromptBatch) -> dict[str, Tensor]:
    """Mask and IoU losses of (N, 4, h, w) logits.

    Box prompts (and points on parts, at half weight) train mask 0; point prompts train the best of masks 1..3.
    """
    coverage = functional.interpolate(batch.masks[:, None].float(), logits.shape[-2:], mode="area")
    bce = functional.binary_cross_entropy_with_logits(logits, coverage.expand_as(logits), reduction="none")
    bce = bce.mean((2, 3))
    probability = logits.sigmoid()
    overlap = (probability * coverage).sum((2, 3))
    dice = 1 - (2 * overlap + 1) / (probability.sum((2, 3)) + coverage.sum((2, 3)) + 1)
    mask_loss = 2 * bce + dice
    box, point = batch.is_box.float(), (~batch.is_box).float()
    best = mask_loss[:, 1:].min(1).values
    single = mask_loss[:, 0] * (box + 0.5 * point * batch.is_part.float())
    multi = best * (point + 0.3 * box)
    with torch.no_grad():
        hard, truth = logits > 0, coverage > 0.5
        union = (hard | truth).sum((2, 3)).clamp(min=1)
        iou = (hard & truth).sum((2, 3)) / union
    iou_loss = functional.mse_loss(predicted_iou, iou)
    return {
        "loss": (single + multi).mean() + iou_loss,
        "box_iou": (iou[:, 0] * box).sum() / box.sum().clamp(min=1),
        "point_iou": (iou[:, 1:].max(1).values * point).sum() / point.sum().clamp(min=1),
        "iou_loss": iou_loss.detach(),
    }


def train_sam(
    leaves: PictureBank,
    worlds: PictureBank | None,
    work: Path,
    config: SmallSamConfig | None = None,
    training: SamTraining | None = None,
    *,
    report: Callable[[int, dict[str, float]], None] = lambda _step, _values: None,
    save_every: int = 100,
    until: int | None = None,
    device: str = "cpu",
    workers: int = 0,
    start: SamModel | None = None,
    compiled: bool = False,
) -> SamModel:
    """Train to the end of the last stage (or to step ``until``); a checkpoint in ``work`` is continued.

    Args:
        leaves: dead leaves at the largest stage's size.
        worlds: rendered worlds of the same size; None while no stage that needs them is reached.
        work: folder of the checkpoint and of ``log.jsonl``.
        config: the model's sizes.
        training: the recipe.
        report: called every 10 steps with (step, {"loss", "box_iou", "point_iou", "iou_loss", "grouping_loss",
            "seconds"}): means over these steps, and the seconds since the start.
        save_every: steps between checkpoints.
        until: stop after this step; the next call goes on.
        device: where the model trains.
        start: weights to start from instead of random ones.
        compiled: through torch.compile: a third of the time less on a CPU, after a minute; not the same bytes.
        workers: processes that cut and change pictures; 0: this one. The batches are the same.

    Raises:
        UserError: ``work`` holds a checkpoint of another recipe.
    """
    config, training = config or SmallSamConfig(), training or SamTraining()
    torch.manual_seed(training.seed)
    model = build_small_sam(config)
    if start is not None:
        model.load_state_dict(start.state_dict())
    trainee = nn.ModuleDict({"model": model, "head": GroupingHead(config.width)}).to(device)
    trained = [p for name, p in trainee.named_parameters() if p.requires_grad and "mask_embed" not in name]
    optimiser = training.optimiser(trained)
    work.mkdir(parents=True, exist_ok=True)
    identity, first = identity_of(config, training), 0
    if (stored := read_checkpoint(work, optimiser, identity)) is not None:
        weights, first = stored
        trainee.load_state_dict({**weights, _COPY: weights[_GAUSSIAN]})
    losses_of = torch.compile(training_losses, dynamic=False) if compiled else training_losses
    clock = time.monotonic()
    last = training.total_steps if until is None else until
    batches = StepBatches(leaves, worlds, training)
    loader = DataLoader(batches, sampler=range(first, last), batch_size=None, num_workers=workers)
    recent: list[dict[str, Tensor]] = []
    for step, batch in enumerate(loader, first):
        recent.append(_step(trainee, optimiser, losses_of, batch.to(model.device), training, step))
        if step % 10 == 9:
            numbers = {key: float(torch.stack([values[key] for values in recent]).mean()) for key in recent[0]}
            recent.clear()
            numbers["seconds"] = time.monotonic() - clock
            with (work / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": step + 1, "size": training.stage_at(step).size, **numbers}) + "\n")
            report(step + 1, numbers)
        if (step + 1) % save_every == 0 or step + 1 == last:
            save_checkpoint(work, _weights(trainee), optimiser, identity, step + 1)
    return model.eval()


def training_losses(trainee: nn.ModuleDict, batch: PromptBatch, training: SamTraining) -> dict[str, Tensor]:
    """:func:`sam_loss` of ``trainee["model"]`` plus the weighted grouping loss of ``trainee["head"]``."""
    model, size = cast("SamModel", trainee["model"]), batch.pixels.shape[-1]
    with torch.autocast(batch.pixels.device.type, torch.bfloat16, enabled=training.bf16):
        embeddings = model.vision_encoder(batch.pixels).last_hidden_state
        tokens = prompt_tokens(model, batch.boxes, batch.points, batch.is_box, size)
        logits, predicted = all_masks(model, embeddings, tokens, batch.image_index)
    losses = sam_loss(logits.float(), predicted.float(), batch)
    regions = functional.interpolate(batch.levels, logits.shape[-2:], mode="nearest")
    grouping = grouping_loss(trainee["head"](embeddings.float()), regions)
    return {**losses, "loss": losses["loss"] + training.grouping * grouping, "grouping_loss": grouping.detach()}


def _step(
    trainee: nn.ModuleDict,
    optimiser: torch.optim.Optimizer,
    losses_of: Callable[[nn.ModuleDict, PromptBatch, SamTraining], dict[str, Tensor]],
    batch: PromptBatch,
    training: SamTraining,
    step: int,
) -> dict[str, Tensor]:
    losses = losses_of(trainee, batch, training)
    training.update(optimiser, losses["loss"], step)
    return {key: value.detach() for key, value in losses.items()}


def _weights(trainee: nn.ModuleDict) -> dict[str, Tensor]:
    """What a checkpoint holds: the two names of the Gaussian matrix are one tensor."""
    return {key: value for key, value in trainee.state_dict().items() if key != _COPY}
