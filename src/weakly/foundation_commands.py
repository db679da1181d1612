"""What the commands under ``weakly foundation`` do: train the small models that come with the package.

As in :mod:`weakly.commands`, heavy modules are imported by the commands that need them.
"""

# ruff: noqa: PLC0415, T201 - see above; and printing is what commands are for

from __future__ import annotations

from pathlib import Path
from typing import Literal

from weakly.commands import DONE


def foundation_train_sam(
    out: Path,
    recipe: Literal["cpu", "cpu-more", "cpu-fine", "gpu"] = "cpu",
    steps: int | None = None,
    start: Path | None = None,
    worlds: int = 6016,
    leaves: int = 2048,
    seed: int = 0,
    device: str = "auto",
    compiled: bool = False,
    workers: int = 2,
    photographs: Path | None = None,
) -> int:
    """Train the bundled small SAM from scratch on pre-training worlds; a stopped training goes on.

    Args:
        out: folder of pictures, checkpoint and log; the result is its sub-folder sam/, in the bundled form.
        recipe: cpu (two cores, about an hour and a half), cpu-more (as long again, for weights given as start),
            cpu-fine (the same, every other step on finer pictures) or gpu.
        steps: optimisation steps; default: the recipe's.
        start: a folder of an earlier result to start from; default: random weights.
        worlds: rendered pre-training worlds.
        leaves: dead-leaves pictures.
        seed: of weights, batches and prompts.
        device: auto, cpu, cuda, mps.
        compiled: through torch.compile (needs a C++ compiler on a CPU): faster steps after the first minute.
        workers: processes that render.
        photographs: the Car Parts dataset, to measure on its training split as well; never trained on.
    """
    from weakly.data.catalog import open_dataset
    from weakly.engine.logs import show_progress
    from weakly.engine.runs import resolve_device
    from weakly.foundation.pretraining.command import make_sam

    scores = make_sam(
        out,
        recipe=recipe,
        steps=steps,
        start=start,
        worlds=worlds,
        leaves=leaves,
        seed=seed,
        device=resolve_device(device),
        compiled=compiled,
        workers=workers,
        photographs=None if photographs is None else open_dataset("carparts", photographs, "trainval"),
        progress=show_progress,
    )
    for data, score in scores.items():
        print(f"{data}: box {score.box:.3f}, point {score.point:.3f} (best of three), {score.masks} masks")
    print(f"Model: {out / 'sam'}; use it as --settings.segmenter {out / 'sam'}")
    return DONE


def foundation_train_clip(
    out: Path,
    recipe: Literal["cpu", "gpu"] = "cpu",
    steps: int | None = None,
    start: Path | None = None,
    worlds: int = 12_032,
    measured: int = 500,
    seed: int = 0,
    device: str = "auto",
    compiled: bool = False,
    workers: int = 2,
) -> int:
    """Train the bundled small CLIP from scratch on captioned pre-training worlds; a stopped training goes on.

    Args:
        out: folder of pictures, checkpoint and log; the result is its sub-folder clip/, in Hugging Face form.
        recipe: cpu (two cores, about an hour) or gpu.
        steps: optimisation steps; default: the recipe's.
        start: a folder of an earlier result to start from; default: random weights.
        worlds: rendered pre-training worlds.
        measured: unseen worlds to measure zero-shot tags on.
        seed: of weights, batches and captions.
        device: auto, cpu, cuda, mps.
        compiled: through torch.compile (needs a C++ compiler on a CPU).
        workers: processes that render.
    """
    from weakly.engine.logs import show_progress
    from weakly.engine.runs import resolve_device
    from weakly.foundation.pretraining.clip_command import make_clip

    scores = make_clip(
        out,
        recipe=recipe,
        steps=steps,
        start=start,
        worlds=worlds,
        measured=measured,
        seed=seed,
        device=resolve_device(device),
        compiled=compiled,
        workers=workers,
        progress=show_progress,
    )
    for tags, score in scores.items():
        print(f"{tags}: mAP {score.patches:.3f} (patches), {score.cls:.3f} (class token), {score.images} images")
    print(f"Model: {out / 'clip'}")
    return DONE


def foundation_train_clipseg(
    out: Path,
    recipe: Literal["cpu", "gpu"] = "cpu",
    steps: int | None = None,
    worlds: int = 12_032,
    measured: int = 200,
    seed: int = 0,
    device: str = "auto",
    compiled: bool = False,
    workers: int = 2,
) -> int:
    """Train the bundled CLIPSeg's decoder on whole objects of pre-training worlds; a stopped training goes on.

    Its towers are those of the bundled CLIP, which stay as they are.

    Args:
        out: folder of pictures, checkpoint and log; the result is its sub-folder clipseg/, in the bundled form.
        recipe: cpu (one core, about half an hour) or gpu.
        steps: optimisation steps; default: the recipe's.
        worlds: rendered pre-training worlds, the same that train-clip renders.
        measured: unseen worlds to segment by name.
        seed: of weights, batches and phrases.
        device: auto, cpu, cuda, mps.
        compiled: through torch.compile (needs a C++ compiler on a CPU, where it gains nothing).
        workers: processes that render.
    """
    from weakly.engine.logs import show_progress
    from weakly.engine.runs import resolve_device
    from weakly.foundation.pretraining.clipseg_command import make_clipseg

    scores = make_clipseg(
        out,
        recipe=recipe,
        steps=steps,
        worlds=worlds,
        measured=measured,
        seed=seed,
        device=resolve_device(device),
        compiled=compiled,
        workers=workers,
        progress=show_progress,
    )
    for names, score in scores.items():
        print(
            f"{names}: IoU {score.iou:.3f} where present ({score.present}), {score.false_positives:.1%} false "
            f"positives where absent, {score.images} images"
        )
    print(f"Model: {out / 'clipseg'}")
    return DONE
