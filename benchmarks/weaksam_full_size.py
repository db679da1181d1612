"""Every stage of WeakSAM at the paper's sizes: DeiT-S, SAM ViT-H and VGG16 with random weights, peak memory of each.

Random weights take the time and memory of trained ones; what they detect means nothing. Updates, epochs, images and
images per batch are few, and an image is looked at in one view instead of twelve; sizes are the recipe's own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import timm
import torch
import torchvision
from safetensors.torch import save_file
from transformers import SamConfig, SamVisionConfig

from command import run_command
from full_size import run_stages, save_sam
from weakly.data.menagerie.write_voc import write_voc
from weakly.methods.weaksam.pipeline import STAGES

RECIPE = "weaksam/voc07.yaml"

OPTIONS = {
    "settings.clues.train.epochs": 1,
    "settings.clues.train.batch": 2,
    "settings.wsod_training.iterations": 1,
    "settings.wsod_training.batch": 1,
    "settings.wsod_training.sizes": "[1200]",
    "settings.wsod_inference.sizes": "[1200]",
    "settings.wsod_inference.flip": "false",
    "settings.detector.weights": "null",
    "settings.inference.short": "[1200]",
    "settings.inference.flip": "false",
    "optimisation.epochs": 1,
    "optimisation.batch_size": 1,
    "optimisation.precision": "32-true",
    "evaluation.references": "false",
    "evaluation.split": "val",
    "data.train": "train",
    "data.val": "val",
    "device": "cpu",
}
"""What departs from the recipe: how much is done, not at which size."""

VIT_H = {
    "hidden_size": 1280,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "global_attn_indexes": [7, 15, 23, 31],
}
"""Of SAM ViT-H's encoder."""


def benchmark(
    images: int = 1,
    size: int = 500,
    seed: int = 0,
    out: Path = Path("docs/results/weaksam-full-size.json"),
) -> int:
    """Run recipes/weaksam/voc07.yaml stage by stage on a few images and state every stage's peak memory.

    Args:
        images: of the training split; one more for validation.
        size: side of the images in pixels; VOC's longer side is 500.
        seed: of weights and images.
        out: JSON file of the figures.
    """
    with TemporaryDirectory() as folder:
        root = Path(folder)
        save_models(root, seed)
        splits = {"train": images, "val": 1}
        write_voc(root / "world", splits, seed=seed, size=size, workers=1)
        places = {
            "settings.segmenter": root / "sam",
            "settings.clues.vit.pretrained": root / "deit.safetensors",
            "settings.wsod.weights": root / "vgg16.pth",
            "data.root": root / "world",
            "features.root": root / "features",
        }
        settings = {"images": splits, "size": size, "seed": seed, "recipe": f"recipes/{RECIPE}", "options": OPTIONS}
        run_stages(RECIPE, {**OPTIONS, **places}, out, STAGES, settings, root / "run")
    return 0


def save_models(root: Path, seed: int) -> None:
    """Write SAM ViT-H as a Hugging Face folder, DeiT-S under timm's names and VGG16 under torchvision's."""
    torch.manual_seed(seed)
    save_file(timm.create_model("deit_small_patch16_224").state_dict(), root / "deit.safetensors")
    torch.save(torchvision.models.vgg16().state_dict(), root / "vgg16.pth")
    save_sam(root / "sam", SamConfig(vision_config=SamVisionConfig(**VIT_H).to_dict()), seed)


if __name__ == "__main__":
    sys.exit(run_command(benchmark))
