"""A CLIPSeg with random weights, small enough for tests, whose tokenizer knows the words of the menagerie."""

from __future__ import annotations

import torch

from weakly.foundation.clipseg import ClipSeg, Preprocessing, attach_decoder
from weakly.foundation.pretraining.small_clip import SmallClipConfig, build_small_clip, build_tokenizer

SIDE = 96
GRID = (6, 6)


def tiny_clipseg(seed: int = 0) -> ClipSeg:
    """96x96 pixels in 16x16 patches; blocks 0, 1 and 3, 16 wide; 12 joint dimensions; decoder 16 wide, 4 heads."""
    sizes = {
        "width": 16,
        "layers": 4,
        "heads": 2,
        "text_width": 16,
        "text_layers": 2,
        "text_heads": 2,
        "projection": 12,
    }
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = build_small_clip(SmallClipConfig(image_size=SIDE, patch_size=16, **sizes), tokenizer)
        model = attach_decoder(towers, (0, 1, 3), reduce_dim=16, heads=4, hidden=24)
        with torch.no_grad():  # the defaults are so small that every attention is flat and every text the same
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and "transposed" not in name:
                    parameter *= 2
    return ClipSeg(model, tokenizer, "tiny", Preprocessing(SIDE, (0.5,) * 3, (0.25,) * 3))
