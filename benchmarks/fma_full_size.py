"""Every stage of FMA-WSSS at the paper's sizes: CLIP ViT-B/16 and SAM ViT-B with random weights, peak memory of each.

Random weights take the time and memory of trained ones; what they segment means nothing. Updates, epochs, images and
images per batch are few, sizes are the recipe's own. Each stage is a process of its own, so its peak is its own.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, SamConfig, SamModel

from command import run_command
from fma_masks import randomise
from weakly import __version__
from weakly.data.menagerie.write_voc import write_voc
from weakly.errors import UserError
from weakly.files import write_json
from weakly.foundation.clip import BUNDLED
from weakly.foundation.clip_text import load_tokenizer
from weakly.methods.fma.pipeline import STAGES

RECIPE = Path(__file__).parents[1] / "recipes" / "fma" / "voc.yaml"

TEXT = {"vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
"""Sizes of CLIP ViT-B/16's text tower; the bundled tokenizer's special tokens are put in by its own numbers."""


def benchmark(
    images: int = 2,
    size: int = 500,
    seed: int = 0,
    out: Path = Path("docs/results/fma-full-size.json"),
) -> int:
    """Run recipes/fma/voc.yaml stage by stage on a few images and state every stage's peak memory.

    Args:
        images: of the training split; half as many, at least one, for validation.
        size: side of the images in pixels; VOC's longer side is 500.
        seed: of weights and images.
        out: JSON file of the figures.
    """
    with TemporaryDirectory() as folder:
        root = Path(folder)
        save_models(root, seed)
        splits = {"train": images, "val": max(1, images // 2)}
        write_voc(root / "world", splits, seed=seed, size=size, workers=1)
        stages = [(stage, ["--until", stage]) for stage in STAGES] + [("network", [])]
        rows = []
        for stage, words in stages:
            row = {"stage": stage, **measured([*command(root), *words])}
            print(f"{stage:16} {row['peak_gib']:6.2f} GiB {row['seconds']:8.1f} s", flush=True)
            rows.append(row)
    machine = {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    settings = {"images": splits, "size": size, "seed": seed, "recipe": "recipes/fma/voc.yaml", "options": OPTIONS}
    told = " ".join(sys.argv)
    write_json(out, {"command": told, "version": __version__, "machine": machine, "settings": settings, "stages": rows})
    print(f"written to {out}")
    return 0


OPTIONS = {
    "settings.classification.iterations": 2,
    "settings.classification.warmup": 1,
    "settings.segmentation.iterations": 2,
    "settings.segmentation.warmup": 1,
    "settings.views.count": 1,
    "settings.deeplab.encoder_weights": "null",
    "settings.masks.stability_threshold": 0.5,
    "optimisation.epochs": 1,
    "optimisation.batch_size": 2,
    "optimisation.precision": "32-true",
    "evaluation.references": "false",
    "data.train": "train",
    "data.kind": "voc",
    "device": "cpu",
}
"""What departs from the recipe: how much is done, not at which size; thresholds that random masks pass."""


def save_models(root: Path, seed: int) -> None:
    """Write ``clip`` and ``sam``, Hugging Face folders of CLIP ViT-B/16's and SAM ViT-B's sizes."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(str(BUNDLED), CLIPModel.config_class.from_pretrained(BUNDLED).text_config, local=True)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(**{**TEXT, **ids, "pad_token_id": tokenizer.pad_token_id})
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(patch_size=16).to_dict()))
    clip.save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    sam = SamModel(SamConfig())
    randomise(sam, seed)
    with torch.no_grad():  # every mask passes the published threshold
        sam.mask_decoder.iou_prediction_head.proj_out.weight.zero_()
        sam.mask_decoder.iou_prediction_head.proj_out.bias.fill_(0.95)
    sam.save_pretrained(root / "sam")


def command(root: Path) -> list[str]:
    """`weakly fit` on these models and this world."""
    places = {
        "settings.clip": root / "clip",
        "settings.segmenter": root / "sam",
        "data.root": root / "world",
        "features.root": root / "features",
    }
    options = [f"--{key}={value}" for key, value in {**OPTIONS, **places}.items()]
    return [sys.executable, "-m", "weakly", "fit", str(RECIPE), "--out", str(root / "run"), *options]


def measured(words: list[str]) -> dict[str, Any]:
    """Seconds and peak resident memory of a process, in GiB.

    Raises:
        UserError: it failed.
    """
    started = time.monotonic()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) != 0:
        raise UserError(f"`{' '.join(words[2:])}` failed; see its message above.")
    return {"seconds": round(time.monotonic() - started, 1), "peak_gib": round(usage.ru_maxrss / 2**20, 2)}


if __name__ == "__main__":
    sys.exit(run_command(benchmark))
