"""A tiny world of two parts per image on disk, and a tiny fifth method to serve it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import weakly.methods
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam

EXTRA_METHODS = Path(__file__).parent / "extra_methods"

RECIPE = """\
method: tiny
data:
  kind: coco
  root: {root}
  annotations: "annotations/{{split}}.json"
  images: "images/{{split}}"
optimisation:
  epochs: 3
  batch_size: 4
  lr: 0.05
  warmup_steps: 1
  weight_decay: 0.0
  optimizer: adamw
features:
  root: {root}/features
evaluation:
  frame_side: 32
device: cpu
"""


@pytest.fixture(autouse=True)
def _tiny_method(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(weakly.methods, "__path__", [*weakly.methods.__path__, str(EXTRA_METHODS)])
    monkeypatch.delitem(sys.modules, "weakly.methods.tiny", raising=False)


def write_world(root: Path, counts: dict[str, int]) -> Path:
    """COCO splits of 32x24 images: a light head at the top left, a dark body below it."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        (root / "images" / split).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        images, annotations = [], []
        for i in range(count):
            picture = rng.integers(90, 110, (24, 32, 3), dtype=np.uint8)
            for category, (x, y, w, h) in ((5, (2 + i % 3, 1, 10, 8)), (9, (4, 12, 20 + i % 4, 10))):
                picture[y : y + h, x : x + w] = 220 if category == 5 else 20
                ring = [x, y, x + w, y, x + w, y + h, x, y + h]
                annotation = {"id": 2 * i + (category == 9) + 1, "image_id": i + 1, "category_id": category}
                annotations.append({**annotation, "bbox": [x, y, w, h], "segmentation": [ring], "area": w * h})
            Image.fromarray(picture).save(root / "images" / split / f"{split}{i}.png")
            images.append({"id": i + 1, "file_name": f"{split}{i}.png", "height": 24, "width": 32})
        categories = [{"id": 5, "name": "Cat Head", "supercategory": "Cat"}]
        categories.append({"id": 9, "name": "Cat Body", "supercategory": "Cat"})
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    """A recipe for the tiny method on 10 training and 4 validation images."""
    root = write_world(tmp_path / "world", {"train": 10, "val": 4})
    path = tmp_path / "tiny.yaml"
    path.write_text(RECIPE.format(root=root))
    return path


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def small_sam(tmp_path: Path) -> Path:
    """A SAM with random weights on disk: 64x64 input, 8x8 grid."""
    config = SmallSamConfig(image_size=64, width=32, stem=8, stages=(8, 16, 16, 16), blocks=(1, 1, 1, 1), mlp_dim=32)
    torch.manual_seed(0)
    state = build_small_sam(config).state_dict()
    state.pop("prompt_encoder.shared_embedding.positional_embedding")  # stored once: it is tied
    folder = tmp_path / "sam"
    folder.mkdir()
    (folder / "small_sam.json").write_text(json.dumps(config.to_dict()))
    safetensors.torch.save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
    return folder
