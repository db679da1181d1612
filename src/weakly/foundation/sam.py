"""SAM 1 behind :class:`~weakly.foundation.promptable.PromptableSegmenter`, and the one way to load any segmenter.

One adapter serves the bundled model, Hugging Face checkpoints (hub id or local folder), the original ``.pth`` files and
MobileSAM: all of them become a ``transformers.SamModel``, whose arithmetic this adapter only batches differently, or,
for automatic masks, orders differently (:mod:`~weakly.foundation.sam_decoding`). The other families have adapters and
files of their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoConfig, Sam2Model, Sam3TrackerModel, SamHQModel, SamModel

from weakly.errors import UserError
from weakly.foundation.checkpoint_files import FASTSAM, read_state
from weakly.foundation.efficient_sam import EfficientSamSegmenter, efficient_sam_from_state
from weakly.foundation.mobile_sam import mobile_sam_from_state
from weakly.foundation.promptable import Pad, PromptableSegmenter, Wanted, decode_chunks
from weakly.foundation.sam2 import Sam2Segmenter, Sam3Segmenter
from weakly.foundation.sam_checkpoint import load_small, sam_from_state
from weakly.foundation.sam_decoding import decode_wanted
from weakly.foundation.sam_family import SamFamilySegmenter
from weakly.foundation.sam_hq import SamHqSegmenter
from weakly.foundation.weights import bundled_side, is_bundled, segmenter_path

LIBRARY: dict[str, Any] = {
    "sam": SamModel,
    "sam_hq": SamHQModel,
    "sam2": Sam2Model,
    "sam2_video": Sam2Model,
    "sam3_tracker": Sam3TrackerModel,
    "sam3_video": Sam3TrackerModel,
}
"""The library's class for the ``model_type`` of a checkpoint; those of videos hold what answers prompts on an image."""

FOREIGN = {
    "mask_decoder.hf_token.": "is SAM-HQ's own file; give its Hugging Face form, e.g. syscv-community/sam-hq-vit-base",
    "image_encoder.trunk.": "is SAM 2's own file; give its Hugging Face form, e.g. facebook/sam2.1-hiera-tiny",
    "model.0.": FASTSAM,
}
"""What files that begin a parameter's name so are, and the remedy."""


class SamSegmenter(SamFamilySegmenter):
    """A frozen ``SamModel``.

    Args:
        model: any ``SamModel``; its ``vision_encoder`` may be another module with the same interface.
        name: what the user called it.
        pad: how images are padded to the square.
        chunk: prompts decoded at once. One prompt at SAM's own size holds about 40 MiB of activations
            (embedding, upscaled embedding and attention keys in fp32), so 64 prompts stay under 3 GiB.
    """

    family = "sam"

    def __init__(self, model: SamModel, name: str, pad: Pad = "sam", chunk: int = 64) -> None:
        super().__init__(model, name, pad, chunk)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to embeddings (B, C, h, w)."""
        embedding: Tensor = self.model.vision_encoder(pixels.to(self.device)).last_hidden_state
        return embedding.float().contiguous()

    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) of a ragged batch of prompts, ``chunk`` at a time."""
        if len(tokens) == 0:
            return self.no_masks(tokens, 3 if multimask else 1)
        position = self.model.get_image_wide_positional_embeddings()
        dense = self.model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)

        def decode(part: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            logits, iou = self.model.mask_decoder(
                image_embeddings=embeddings[index],
                image_positional_embeddings=position.expand(len(part), -1, -1, -1),
                sparse_prompt_embeddings=part[:, None],
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
            )
            return logits[:, 0], iou[:, 0]

        return decode_chunks(decode, tokens, image_index, self.chunk)

    @torch.no_grad()
    def decode_wanted(self, embedding: Tensor, tokens: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
        """Indices (R,) of the wanted masks, their logits (R, 4h, 4w) and all predicted IoU (N, 3); only those are made.

        Same answers as :meth:`decode`, up to rounding, several times faster. Pixels of ``chunk`` prompts at most are
        held at once, on a CPU of as many as fit into its cache.
        """
        if len(tokens) == 0:
            return super().decode_wanted(embedding, tokens, wanted)
        image = embedding[0] + self.model.prompt_encoder.no_mask_embed.weight.view(-1, 1, 1)
        position = self.model.get_image_wide_positional_embeddings()[0]
        return decode_wanted(self.model.mask_decoder, image, position, tokens, wanted, self.chunk)


def load_segmenter(name: str, *, pad: Pad = "sam", device: str = "cpu") -> PromptableSegmenter:
    """A frozen segmenter by name: SAM, MobileSAM, EfficientSAM, SAM-HQ, SAM 2 or SAM 3's tracker.

    Args:
        name: ``"bundled"``, ``"bundled-384"`` (the same weights, images at another side than their own 256 pixels), a
            folder in Hugging Face or bundled form, a ``.pth`` or ``.pt`` file as SAM's, MobileSAM's
            or EfficientSAM's authors publish it, or a hub id such as ``"facebook/sam-vit-base"`` (the only form that
            uses the network).
        pad: how images come into the square; segmenters whose authors stretch images do so whatever is asked for, and
            refuse ``"center_black"``.
        device: torch device.

    Raises:
        UserError: there is no such file or model, it is no segmenter, or it has no such padding.
    """
    path = segmenter_path(name)
    if (path / "small_sam.json").is_file():
        segmenter: PromptableSegmenter = SamSegmenter(load_small(path, bundled_side(name)), name, pad)
    elif path.suffix in {".pth", ".pt"}:
        segmenter = _from_file(path, name, pad)
    else:
        segmenter = _from_library(path, name, pad)
    if pad not in ("sam", segmenter.pad):
        raise UserError(f"Segmenter {name!r} stretches images and has no padding {pad!r}; set settings.pad to sam.")
    return segmenter.to(device)


def _from_file(path: Path, name: str, pad: Pad) -> PromptableSegmenter:
    """The family of a file shows in its parameters' names."""
    state = read_state(path)
    for mark, problem in FOREIGN.items():
        if any(key.startswith(mark) for key in state):
            raise UserError(f"{path} {problem}.")
    if any(key.startswith("image_encoder.patch_embed.seq.") for key in state):
        return SamSegmenter(mobile_sam_from_state(state, path), name, pad)
    if "prompt_encoder.bbox_top_left_embeddings.weight" in state:
        return EfficientSamSegmenter(*efficient_sam_from_state(state, path), name)
    return SamSegmenter(sam_from_state(state, path), name, pad)


def _from_library(path: Path, name: str, pad: Pad) -> PromptableSegmenter:
    """The family of a Hugging Face checkpoint is its configuration's ``model_type``."""
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json; give a folder saved with save_pretrained, or a .pth file.")
    if not path.is_dir() and (path.is_absolute() or name.startswith(".") or is_bundled(name)):
        raise UserError(f"There is no segmenter at {path}; give a folder, a .pth file, a hub id or 'bundled'.")
    source = str(path) if path.is_dir() else name
    try:
        kind = AutoConfig.from_pretrained(source).model_type
        if kind not in LIBRARY:
            raise UserError(
                f"Segmenter {name!r} is a {kind!r}, no SAM; give one whose model_type is {', '.join(LIBRARY)}."
            )
        model, loading = LIBRARY[kind].from_pretrained(source, weights_only=True, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"Segmenter {name!r} could not be loaded ({reason}); check the name or the folder.") from error
    absent = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if absent:  # the library would go on with random weights
        raise UserError(f"Segmenter {name!r} is incomplete: its weights lack {absent[0]}; give a whole {kind!r}.")
    if isinstance(model, SamModel):
        return SamSegmenter(model, name, pad)
    if isinstance(model, SamHQModel):
        return SamHqSegmenter(model, name, pad)
    return Sam2Segmenter(model, name) if isinstance(model, Sam2Model) else Sam3Segmenter(model, name)
