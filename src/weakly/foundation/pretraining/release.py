"""From a trained SAM to the bundled folder: fp16 weights, sizes, and a model card with figures and hash."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import SamModel

from weakly.errors import WeaklyError
from weakly.files import write_atomic
from weakly.foundation.pretraining.measure import PromptScores
from weakly.foundation.pretraining.recipe import SamTraining
from weakly.foundation.small_sam import SmallSamConfig

WEIGHTS = "model.safetensors"

MAX_BYTES = 16_000_000
"""The bundled SAM's share of the package."""


def release_sam(
    model: SamModel,
    folder: Path,
    config: SmallSamConfig,
    training: SamTraining,
    pictures: dict[str, int],
    scores: dict[str, PromptScores],
    started: Path | None = None,
) -> Path:
    """Write ``small_sam.json``, ``model.safetensors`` (fp16) and ``README.md`` to ``folder``, each atomically.

    Args:
        model: the trained SAM.
        folder: made if absent.
        config: the model's sizes.
        training: the recipe it was trained with.
        pictures: how many pictures of each source it saw.
        scores: figures by data set, for the card.
        started: folder in the same form whose weights the training went on from.

    Raises:
        WeaklyError: the file would exceed 16 MB.
    """
    weights = {
        key: value.half().contiguous()
        for key, value in model.state_dict().items()
        if key != "prompt_encoder.shared_embedding.positional_embedding"
    }
    # The Gaussian matrix turns coordinates into phases: half precision would move prompts by a tenth of a pixel.
    gaussian = "shared_image_embedding.positional_embedding"
    weights[gaussian] = model.state_dict()[gaussian].float().contiguous()
    payload = save(weights)
    if len(payload) > MAX_BYTES:
        raise WeaklyError(f"The bundled SAM would take {len(payload):,} bytes; keep it under {MAX_BYTES:,}.")
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "small_sam.json", json.dumps(config.to_dict(), indent=1) + "\n")
    card = _card(config, training, pictures, scores, payload, None if started is None else started / WEIGHTS)
    write_atomic(folder / "README.md", card)
    write_atomic(folder / WEIGHTS, payload)
    return folder


def _card(
    config: SmallSamConfig,
    training: SamTraining,
    pictures: dict[str, int],
    scores: dict[str, PromptScores],
    payload: bytes,
    started: Path | None,
) -> str:
    figures = "\n".join(
        f"| {name} | {s.images} | {s.masks} | {s.box:.3f} | {s.point:.3f} | {s.point_single:.3f} |"
        for name, s in scores.items()
    )
    sources = ", ".join(f"{count:,} {name}" for name, count in pictures.items())
    stages = "\n".join(
        f"- {s.steps} steps at {' and '.join(map(str, s.sizes))} px{' in turn' if s.turns else ''},"
        f" {s.pictures} pictures x {s.prompts} prompts, worlds {s.worlds:.0%}"
        for s in training.stages
    )
    if started is not None:
        stages = f"- from the weights whose SHA-256 is `{_hash(started.read_bytes())}`\n{stages}"
    return f"""# The bundled SAM

A small Segment Anything Model: the prompt encoder and mask decoder of SAM at width {config.width}, and a convolutional
image encoder ({config.image_size} px in, {config.image_size // config.stride} x {config.image_size // config.stride} \
embedding out; a name such as `bundled-384` asks for another side, a multiple of {config.coarsest}) in place of the ViT.
It stands in for `facebook/sam-vit-base` where nothing can be downloaded; it is no replacement for it on photographs.

- **Weights**: `model.safetensors`, fp16 (the positional matrix fp32), {len(payload):,} bytes, SHA-256 \
`{_hash(payload)}`
- **Licence**: Apache-2.0, as the rest of this repository
- **Data**: {sources}, rendered by this repository from pre-training seeds; masks without names; no photograph, no image
  of any downstream data set
- **Made by**: `weakly foundation train-sam`, torch {torch.__version__.split("+")[0]}

## Recipe

{stages}

AdamW {training.lr:g}, cosine, {training.warmup} warm-up steps, weight decay {training.weight_decay:g}, gradient norm
clipped at {training.clip:g}, {training.box_share:.0%} box prompts (jittered) and {1 - training.box_share:.0%} points,
{training.whole_pictures:.0%} whole pictures and {1 - training.whole_pictures:.0%} close-ups, regions \
drawn in proportion to area to the power {training.area_power:g}, single-mask output on \
boxes, best of three masks on points, IoU head on all four masks, 2 BCE + dice; dense grouping loss on the encoder at \
weight {training.grouping:g}; {"bf16 autocast" if training.bf16 else "fp32"}. Seed {training.seed}.

## Figures

Mean IoU over masks at original size. *box*: the mask's own box, single-mask output. *point*: the mask's pixel nearest
to its box centre, best of three masks. *point, single*: the same point, single-mask output. None of these images was
trained on.

| data | images | masks | box | point | point, single |
|---|---|---|---|---|---|
{figures}

Settings as JSON: `{json.dumps(asdict(training), separators=(",", ":"))}`
"""


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
