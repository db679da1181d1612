"""Every stage of FMA-WSSS at the paper's sizes: CLIP ViT-B/16 and SAM ViT-B with random weights, peak memory of each.

Random weights take the time and memory of trained ones; what they segment means nothing. Updates, epochs, images and
images per batch are few, sizes are the recipe's own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, SamConfig

from command import run_command
from full_size import run_stages, save_sam
from weakly.data.menagerie.write_voc import write_voc
from weakly.foundation.clip import BUNDLED
from weakly.foundation.clip_text import load_tokenizer
from weakly.methods.fma.pipeline import STAGES

RECIPE = "fma/voc.yaml"

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
        places = {
            "settings.clip": root / "clip",
            "settings.segmenter": root / "sam",
            "data.root": root / "world",
            "features.root": root / "features",
        }
        settings = {"images": splits, "size": size, "seed": seed, "recipe": f"recipes/{RECIPE}", "options": OPTIONS}
        run_stages(RECIPE, {**OPTIONS, **places}, out, STAGES, settings, root / "run")
    return 0


def save_models(root: Path, seed: int) -> None:
    """Write ``clip`` and ``sam``, Hugging Face folders of CLIP ViT-B/16's and SAM ViT-B's sizes."""
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(str(BUNDLED), CLIPModel.config_class.from_pretrained(BUNDLED).text_config, local=True)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = CLIPTextConfig(**{**TEXT, **ids, "pad_token_id": tokenizer.pad_token_id})
    clip = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=CLIPVisionConfig(patch_size=16).to_dict()))
    clip.save_pretrained(root / "clip")
    tokenizer.save_pretrained(root / "clip")
    save_sam(root / "sam", SamConfig(), seed)


if __name__ == "__main__":
    sys.exit(run_command(benchmark))
