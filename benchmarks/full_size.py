"""A method's stages at full size, each a process of its own: seconds, and the peak of its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import SamConfig, SamModel

from fma_masks import randomise
from weakly import __version__
from weakly.errors import UserError
from weakly.files import write_json

RECIPES = Path(__file__).parents[1] / "recipes"


def run_stages(
    recipe: str, options: Mapping[str, object], out: Path, stages: Sequence[str], settings: Mapping[str, Any], run: Path
) -> None:
    """`weakly fit` stage by stage, then to the trained network; a line per stage is printed, all go into a file.

    Args:
        recipe: below ``recipes/``.
        options: dotted keys and their values, over the recipe's.
        out: JSON file of the figures.
        stages: names that `weakly fit --until` knows, in order.
        settings: what the file says the figures depend on.
        run: folder of the run.
    """
    fit = [sys.executable, "-m", "weakly", "fit", str(RECIPES / recipe), "--out", str(run)]
    fit += [f"--{key}={value}" for key, value in options.items()]
    rows = []
    for stage, words in [*((stage, ["--until", stage]) for stage in stages), ("network", [])]:
        row = {"stage": stage, **measured([*fit, *words])}
        print(f"{stage:16} {row['peak_gib']:6.2f} GiB {row['seconds']:8.1f} s", flush=True)
        rows.append(row)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    told = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    content = {"command": told, "version": __version__, "machine": machine, "settings": dict(settings), "stages": rows}
    write_json(out, content)
    print(f"written to {out}")


_MEASURE = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(code)
"""
"""A process begins with the peak of the one that starts it, so a small one has to."""


def measured(words: list[str]) -> dict[str, Any]:
    """Seconds and peak resident memory of a process, in GiB.

    Raises:
        UserError: it failed.
    """
    started = time.monotonic()
    found = subprocess.run([sys.executable, "-c", _MEASURE, *words], stdout=subprocess.PIPE, text=True, check=False)
    if found.returncode != 0:
        raise UserError(f"`{' '.join(words[2:])}` failed; see its message above.")
    return {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(int(found.stdout) / 2**20, 2)}


def save_sam(folder: Path, config: SamConfig, seed: int) -> None:
    """A SAM with random weights as a folder in Hugging Face form; it finds every mask good."""
    sam = SamModel(config)
    randomise(sam, seed)
    with torch.no_grad():  # every mask passes the published threshold
        sam.mask_decoder.iou_prediction_head.proj_out.weight.zero_()
        sam.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.95)
    sam.save_pretrained(folder)
