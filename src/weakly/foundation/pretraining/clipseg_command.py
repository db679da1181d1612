"""``weakly foundation train-clipseg``: pictures, training, measuring and release of the bundled CLIPSeg in one go."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors.torch import save

from weakly.errors import UserError, WeaklyError
from weakly.files import write_folder
from weakly.foundation.clip import load_clip
from weakly.foundation.clipseg import DECODER, ClipSeg, read_bundled
from weakly.foundation.pretraining.captioned import render_captioned
from weakly.foundation.pretraining.clipseg import DecoderConfig, train_decoder
from weakly.foundation.pretraining.clipseg_measure import FALSE_FLOOR, NameScores, measure_names, world_objects
from weakly.foundation.pretraining.recipe import CLIPSEG_RECIPES, ClipSegTraining

CLIPSEG_WORLDS = 12_032
MEASURED_WORLDS = 200
MAX_BYTES = 1_000_000
"""The bundled decoder's share of the package."""

Progress = Callable[[str, int, int], None]


def make_clipseg(
    out: Path,
    *,
    recipe: str = "cpu",
    steps: int | None = None,
    worlds: int = CLIPSEG_WORLDS,
    measured: int = MEASURED_WORLDS,
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    compiled: bool = False,
    config: DecoderConfig | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> dict[str, NameScores]:
    """Render, train, measure on unseen worlds, and write ``out/clipseg`` in the bundled form. A stopped call goes on.

    Args:
        out: folder of pictures, checkpoint, log and result.
        recipe: a key of :data:`~weakly.foundation.pretraining.recipe.CLIPSEG_RECIPES`.
        steps: optimiser steps in all; default: the recipe's.
        worlds: pre-training worlds, the same that ``train-clip`` renders.
        measured: unseen worlds to measure on.
        workers: processes that render.
        seed: of weights, batches and phrases.
        device: torch device.
        compiled: through torch.compile.
        config: sizes of the decoder; default: the bundled one's.
        progress: called with (what, done, total).

    Returns:
        Figures by group of names, as in the model card.

    Raises:
        UserError: the recipe is unknown, there is no bundled CLIP, or ``out`` holds a checkpoint of another recipe.
        WeaklyError: the weights would exceed 1 MB.
    """
    config = config or DecoderConfig()
    if recipe not in CLIPSEG_RECIPES:
        raise UserError(f"There is no recipe {recipe!r} for a CLIPSeg; give one of {', '.join(CLIPSEG_RECIPES)}.")
    training = replace(CLIPSEG_RECIPES[recipe], seed=seed).scaled(steps)
    clip = load_clip("bundled", device)
    bank = render_captioned(
        out,
        worlds,
        size=clip.grid[0] * clip.patch,
        workers=workers,
        progress=lambda done, total: progress("rendering worlds", done, total),
    )
    clipseg = train_decoder(
        clip,
        bank,
        out,
        config,
        training,
        workers=0 if device == "cpu" else workers,
        compiled=compiled,
        report=lambda step, _: progress("training", step, training.total_steps),
    )
    release_clipseg(clipseg, out / "clipseg", config, training, len(bank), {})
    # Measured as released: fp16 weights read back from the folder.
    scores = measure_names(read_bundled(out / "clipseg").to(device), world_objects(measured, size=clipseg.side))
    release_clipseg(clipseg, out / "clipseg", config, training, len(bank), scores)
    return scores


def release_clipseg(
    clipseg: ClipSeg,
    folder: Path,
    config: DecoderConfig,
    training: ClipSegTraining,
    worlds: int,
    scores: dict[str, NameScores],
) -> Path:
    """Write configuration, the decoder's fp16 weights and card to ``folder``, replaced as a whole; no tower.

    Args:
        clipseg: the bundled CLIP's towers with the trained decoder.
        folder: made if absent.
        config: the decoder's sizes.
        training: the recipe it was trained with.
        worlds: how many pictures it saw.
        scores: figures by group of names, for the card.

    Raises:
        WeaklyError: the weights would exceed 1 MB.
    """
    weights = {key: value.half().cpu().contiguous() for key, value in clipseg.model.decoder.state_dict().items()}
    # One entry: several would be written in any order, and the bytes would differ.
    payload = save(weights, metadata={"fingerprint": clipseg.fingerprint})
    if len(payload) > MAX_BYTES:
        raise WeaklyError(f"The bundled decoder would take {len(payload):,} bytes; keep it under {MAX_BYTES:,}.")
    card = _card(config, training, worlds, scores, hashlib.sha256(payload).hexdigest(), len(payload))

    def fill(fresh: Path) -> None:
        clipseg.model.config.save_pretrained(fresh)
        (fresh / DECODER).write_bytes(payload)
        (fresh / "README.md").write_text(card)

    write_folder(folder, fill)
    return folder


def _card(
    config: DecoderConfig,
    training: ClipSegTraining,
    worlds: int,
    scores: dict[str, NameScores],
    digest: str,
    size: int,
) -> str:
    figures = "\n".join(
        f"| {group} | {s.images} | {s.present} | {s.iou:.3f} | {s.false_positives:.3f} | {s.lit:.4f} |"
        for group, s in scores.items()
    )
    stages = "\n".join(
        f"- {s.steps} steps at {s.size} px, {s.pictures} pictures x {training.phrases} phrases, {training.absent} of "
        "them of what is absent"
        for s in training.stages
    )
    taps = ", ".join(str(layer + 1) for layer in config.layers_tapped)
    return f"""# The bundled CLIPSeg

The decoder of a small CLIPSeg: the library's own `CLIPSegDecoder` at width {config.reduce_dim}, with \
{len(config.layers_tapped)} layers of {config.heads} heads, feed-forward width {config.hidden}, and
three convolutions up to the pixels. It reads the outputs of vision blocks {taps} of the bundled CLIP, whose towers are
not stored again and did not train. With them it stands in for `CIDAS/clipseg-rd64-refined` where nothing can be
downloaded; it knows the menagerie's world and no photograph.

- **Weights**: `{DECODER}`, fp16, {size:,} bytes, SHA-256 `{digest}`
- **Licence**: Apache-2.0, as the rest of this repository
- **Data**: {worlds:,} Menagerie worlds rendered by this repository from a pre-training seed, as views with phrases and
  the masks of the whole objects that each phrase means; no part was named and no border between parts was seen, no
  photograph, no image of any downstream data set
- **Made by**: `weakly foundation train-clipseg`, torch {torch.__version__.split("+")[0]}

## Recipe

{stages}

Phrases are kinds and super-categories, alone (60 %), with a colour (20 %) or a position (20 %), bare half of the time
and else in a caption's template; absent ones are other names, or names of what is there with a colour or position it
has not. Binary cross-entropy over all pixels but those of objects of which a colour or position is unclear. AdamW
{training.lr:g}, cosine, {training.warmup} warm-up steps, weight decay {training.weight_decay:g}, gradient norm clipped
at {training.clip:g}; views of 55 to 100 % of the picture, mirrored half of the time, mild change of exposure, contrast,
saturation and noise; {"bf16 autocast" if training.bf16 else "fp32"}. Seed {training.seed}.

## Figures

On unseen worlds, every name of a group asked of every image, the bare name as prompt, masks at threshold 0.5 and
original size. *IoU*: mean over (image, name) pairs where the name is present, however little is visible. *False
positives*: share of the pairs where it is absent whose mask covers {FALSE_FLOOR:.0%} of the image or more. *Lit*: mean
share of the image that the mask of an absent name covers.

| names | images | present | IoU | false positives | lit |
|---|---|---|---|---|---|
{figures}

Settings as JSON: `{json.dumps({"decoder": asdict(config), "training": asdict(training)}, separators=(",", ":"))}`
"""
