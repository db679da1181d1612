"""``weakly foundation train-sam``: pictures, training, measuring and release of the bundled SAM in one go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.pretraining.measure import PromptScores, dataset_masks, measure_prompts, world_parts
from weakly.foundation.pretraining.pictures import render_bank
from weakly.foundation.pretraining.recipe import RECIPES
from weakly.foundation.pretraining.release import release_sam
from weakly.foundation.pretraining.sam import train_sam
from weakly.foundation.promptable import PromptableSegmenter
from weakly.foundation.sam import SamSegmenter
from weakly.foundation.sam_checkpoint import load_small
from weakly.foundation.small_sam import SmallSamConfig

LEAVES = 2048
WORLDS = 6016
MEASURED_WORLDS = 200

Progress = Callable[[str, int, int], None]


def make_sam(
    out: Path,
    *,
    recipe: str = "cpu",
    steps: int | None = None,
    start: Path | None = None,
    leaves: int = LEAVES,
    worlds: int = WORLDS,
    measured: int = MEASURED_WORLDS,
    workers: int = 1,
    seed: int = 0,
    device: str = "cpu",
    compiled: bool = False,
    config: SmallSamConfig | None = None,
    photographs: Dataset | None = None,
    progress: Progress = lambda _what, _done, _total: None,
) -> dict[str, PromptScores]:
    """Render, train, measure on unseen worlds, and write ``out/sam`` in the bundled form. A stopped call goes on.

    Args:
        out: folder of pictures, checkpoint, log and result.
        recipe: a key of :data:`~weakly.foundation.pretraining.recipe.RECIPES`.
        steps: optimiser steps in all; default: the recipe's.
        start: a folder in the bundled form to start from; default: random weights.
        leaves: dead-leaves pictures.
        worlds: pre-training worlds.
        measured: unseen worlds to measure on.
        workers: processes that render.
        seed: of weights, batches and prompts.
        device: torch device.
        compiled: through torch.compile.
        config: sizes of the model; default: the bundled model's.
        photographs: real images with masks to measure on as well; never trained on.
        progress: called with (what, done, total).

    Returns:
        Figures by data set, as in the model card: at the model's own side, and at every other of the last stage.
    """
    config = config or SmallSamConfig()
    if recipe not in RECIPES:
        raise UserError(f"There is no recipe {recipe!r} for a SAM; give one of {', '.join(RECIPES)}.")
    training = replace(RECIPES[recipe], seed=seed).scaled(steps)
    size = config.image_size

    def rendering(name: str) -> Callable[[int, int], None]:
        return lambda done, total: progress(f"rendering {name}", done, total)

    banks = {
        name: render_bank(out, name, count, size=size, workers=workers, progress=rendering(name))
        for name, count in (("leaves", leaves), ("worlds", worlds))
    }
    model = train_sam(
        banks["leaves"],
        banks["worlds"],
        out,
        config,
        training,
        device=device,
        workers=0 if device == "cpu" else workers,
        start=None if start is None else load_small(start),
        compiled=compiled,
        report=lambda step, _: progress("training", step, training.total_steps),
    )
    pictures = {"dead-leaves pictures": len(banks["leaves"]), "Menagerie worlds": len(banks["worlds"])}
    release_sam(model, out / "sam", config, training, pictures, {}, start)
    scores = {}
    for side in sorted({size, *training.stages[-1].sizes}):
        # Measured as released: fp16 weights read back from the folder.
        segmenter = SamSegmenter(load_small(out / "sam", side), "trained").to(device)
        found = measure(segmenter, measured, size, photographs)
        scores.update({name if side == size else f"{name}, at {side} px": values for name, values in found.items()})
    release_sam(model, out / "sam", config, training, pictures, scores, start)
    return scores


def measure(
    segmenter: PromptableSegmenter, worlds: int, size: int, photographs: Dataset | None = None
) -> dict[str, PromptScores]:
    """Figures on parts of unseen worlds and, where given, on photographs."""
    scores = {"parts of unseen Menagerie worlds": measure_prompts(segmenter, world_parts(worlds, size=size))}
    if photographs is not None:
        name = f"{photographs.name}, {photographs.split} split (photographs, never trained on)"
        scores[name] = measure_prompts(segmenter, dataset_masks(photographs))
    return scores
