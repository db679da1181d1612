"""The presets of PartCLIPSeg: ``fixed``, the default, is what the paper means; ``compat`` is what was released.

Data, unseen objects and the number of epochs are the recipe's.
"""

from __future__ import annotations

from typing import Any

OPTIMISATION: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 1e-4,
    "schedule": "poly",
    "power": 0.9,
    "lr_end": 0.0,
    "warmup_steps": 0,
    "batch_size": 8,
    "grad_clip": 0.01,
}
"""Spec section 4."""

OFFICIAL_SWITCHES: dict[str, str] = {
    "obj_text_index": "official",
    "train_channel_order": "bgr",
    "label_path": "resize800",
    "unseen_pixels": "background",
    "background_vector": "frozen",
    "sep_loss": "hard",
    "enh_loss": "official",
    "part_scope": "image",
    "empty_term": "nan_to_zero",
    "none_entries": "resample",
    "composition": "random",
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {"optimisation": OPTIMISATION},
    "fixed": {"optimisation": OPTIMISATION},
    "compat": {"settings": {"switches": OFFICIAL_SWITCHES}, "optimisation": OPTIMISATION},
}
"""Sections of a recipe by preset. The optimisation is the published one in all of them."""
