"""``weakly foundation train-clip``: pictures, training, measuring and release of the bundled CLIP in one go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from weakly.errors import UserError, WeaklyError
from weakly.files import write_folder
from weakly.foundation.pretraining.captioned import render_captioned
from weakly.foundation.pretraining.captions import ORIGAMI
from weakly.foundation.pretraining.clip import train_clip
from weakly.foundation.pretraining.clip_measure import TagScores, measure_tags, world_tags
from weakly.foundation.pretraining.clip_recipe import CLIP_RECIPES, ClipTraining
from weakly.foundation.pretraining.small_clip import SmallClipConfig, build_tokenizer

CLIP_WORLDS = 12_032
MEASURED_WORLDS = 500
MAX_BYTES = 9_000_000
"""The bundled CLIP's share of the package."""

Progress = Callable[[str, int, int], None]


def make_clip(
    out: Path,
    *,
    recipe: str = "cpu",
    steps: int | None = None,
    start: Path | None = None,
    worlds: int = CLIP_WORLDS,
    measured: int = MEASURED_WORLDS,
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    compiled: bool = False,
    config: SmallClipConfig | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> dict[str, TagScores]:
    """Render, train, measure on unseen worlds, and write ``out/clip`` in the bundled form. A stopped call goes on.

    Args:
        out: folder of pictures, checkpoint, log and result.
        recipe: a key of :data:`~weakly.foundation.pretraining.clip_recipe.CLIP_RECIPES`.
        steps: optimiser steps in all; default: the recipe's.
        start: a folder in the bundled form to start from; default: random weights.
        worlds: pre-training worlds.
        measured: unseen worlds to measure on.
        workers: processes that render.
        seed: of weights, batches and captions.
        device: torch device.
        compiled: through torch.compile.
        config: sizes of the model; default: the bundled model's.
        progress: called with (what, done, total).

    Returns:
        Figures by tag group, as in the model card.

    Raises:
        UserError: the recipe is unknown, or ``out`` holds a checkpoint of another one.
        WeaklyError: the weights would exceed 9 MB.
    """
    config = config or SmallClipConfig()
    if recipe not in CLIP_RECIPES:
        raise UserError(f"There is no recipe {recipe!r} for a CLIP; give one of {', '.join(CLIP_RECIPES)}.")
    training = replace(CLIP_RECIPES[recipe], seed=seed).scaled(steps)
    bank = render_captioned(
        out,
        worlds,
        size=config.image_size,
        workers=workers,
        progress=lambda done, total: progress("rendering captioned worlds", done, total),
    )
    model = train_clip(
        bank,
        out,
        config,
        training,
        device=device,
        workers=0 if device == "cpu" else workers,
        start=None if start is None else load_released(start)[0],
        compiled=compiled,
        report=lambda step, _: progress("training", step, training.total_steps),
    )
    release_clip(model, out / "clip", config, training, len(bank), {})
    # Measured as released: fp16 weights and tokenizer read back from the folder.
    loaded, tokenizer = load_released(out / "clip")
    scores = measure_tags(loaded.to(device), tokenizer, world_tags(measured, size=config.image_size))
    release_clip(model, out / "clip", config, training, len(bank), scores)
    return scores


def load_released(folder: Path) -> tuple[CLIPModel, CLIPTokenizer]:
    """Model (fp32, in evaluation mode) and tokenizer of a folder in the bundled form.

    Raises:
        UserError: the folder holds no CLIP.
    """
    if not (folder / "config.json").is_file():
        raise UserError(
            f"{folder} holds no config.json; give the folder clip/ that `weakly foundation train-clip` wrote."
        )
    model = CLIPModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    return model, CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def release_clip(
    model: CLIPModel,
    folder: Path,
    config: SmallClipConfig,
    training: ClipTraining,
    worlds: int,
    scores: dict[str, TagScores],
) -> Path:
    """Write configuration, fp16 weights, tokenizer, image processor and card to ``folder``, replaced as a whole.

    Args:
        model: the trained CLIP.
        folder: made if absent.
        config: the model's sizes.
        training: the recipe it was trained with.
        worlds: how many pictures it saw.
        scores: figures by tag group, for the card.

    Raises:
        WeaklyError: the weights would exceed 9 MB.
    """
    weights = {key: value.half().cpu().contiguous() for key, value in model.state_dict().items()}
    payload = save(weights, metadata={"format": "pt"})
    if len(payload) > MAX_BYTES:
        raise WeaklyError(f"The bundled CLIP would take {len(payload):,} bytes; keep it under {MAX_BYTES:,}.")
    card = _card(config, training, worlds, scores, hashlib.sha256(payload).hexdigest(), len(payload))
    tokenizer = build_tokenizer(context=config.context)
    square = {"height": config.image_size, "width": config.image_size}
    processor = CLIPImageProcessor(size={"shortest_edge": config.image_size}, crop_size=square)

    def fill(fresh: Path) -> None:
        model.config.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        processor.save_pretrained(fresh)
        (fresh / "model.safetensors").write_bytes(payload)
        (fresh / "README.md").write_text(card)

    write_folder(folder, fill)
    return folder


def _card(
    config: SmallClipConfig,
    training: ClipTraining,
    worlds: int,
    scores: dict[str, TagScores],
    digest: str,
    size: int,
) -> str:
    figures = "\n".join(
        f"| {group} | {s.images} | {s.tags} | {s.patches:.3f} | {s.cls:.3f} |" for group, s in scores.items()
    )
    stages = "\n".join(
        f"- {s.steps} steps at {s.size} px, {s.pictures} pictures x {training.captions} captions"
        for s in training.stages
    )
    return f"""# The bundled CLIP

A small CLIP: the library's own `CLIPModel`, a ViT of {config.layers} layers at width {config.width} \
({config.image_size} px in, {config.patch_size} px patches) and a text
tower of {config.text_layers} layers at width {config.text_width}, {config.projection} joint dimensions, with a \
byte-level BPE tokenizer of its own (the words of its captions are
one token each; other words are spelled in bytes and mean nothing to it). It stands in for
`openai/clip-vit-base-patch16` where nothing can be downloaded; it knows the menagerie's world and no photograph.

- **Weights**: `model.safetensors`, fp16, {size:,} bytes, SHA-256 `{digest}`
- **Licence**: Apache-2.0, as the rest of this repository
- **Data**: {worlds:,} Menagerie worlds rendered by this repository from a pre-training seed, as views with captions of
  kinds, super-categories, parts, colours, positions, counts and backdrops; the captions are written from what the
  renderer drew. The loss sees pictures, texts and which text is true of which picture: no mask, no box, no photograph,
  no image of any downstream data set
- **Made by**: `weakly foundation train-clip`, torch {torch.__version__.split("+")[0]}

## Pooling

Trained with both poolings through the same projection: the mean of the patch tokens (as CAM methods pool it) at weight
1, and the class token (`get_image_features`) at weight {training.cls:g}. Blank words around some captions' names \
prepare the text
tower for learned contexts of up to 16 tokens; texts longer than 32 tokens were never seen.

## Recipe

{stages}

Symmetric multi-positive InfoNCE: true pairs are told from false ones, unclear ones are left out. AdamW \
{training.lr:g}, cosine,
{training.warmup} warm-up steps, weight decay {training.weight_decay:g}, gradient norm clipped at {training.clip:g}; \
views of 55 to 100 % of the picture, mirrored half of
the time, mild change of exposure, contrast, saturation and noise; {"bf16 autocast" if training.bf16 else "fp32"}. \
Seed {training.seed}.

## Figures

Zero-shot mean average precision over tags on unseen worlds (every visible object counts, however small), one prompt
per name, "{ORIGAMI}". *patches*: mean patch token. *cls*: class token.

| tags | images | tags that occur | patches | cls |
|---|---|---|---|---|
{figures}

Settings as JSON: `{json.dumps({"model": asdict(config), "training": asdict(training)}, separators=(",", ":"))}`
"""
