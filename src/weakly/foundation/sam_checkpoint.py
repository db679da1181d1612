"""SAM checkpoints on disk: the bundled form, and the original ``.pth`` files with their own parameter names."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import SamConfig, SamModel, SamVisionConfig

from weakly.errors import UserError
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam

# Original name -> Hugging Face name, applied in order. Everything not listed keeps its name.
RENAMES: tuple[tuple[str, str], ...] = (
    (r"^image_encoder\.patch_embed\.proj", "vision_encoder.patch_embed.projection"),
    (r"^image_encoder\.blocks\.(\d+)\.norm", r"vision_encoder.layers.\1.layer_norm"),
    (r"^image_encoder\.blocks", "vision_encoder.layers"),
    (r"^image_encoder\.neck\.0", "vision_encoder.neck.conv1"),
    (r"^image_encoder\.neck\.1", "vision_encoder.neck.layer_norm1"),
    (r"^image_encoder\.neck\.2", "vision_encoder.neck.conv2"),
    (r"^image_encoder\.neck\.3", "vision_encoder.neck.layer_norm2"),
    (r"^image_encoder\.", "vision_encoder."),
    (
        r"^prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
        "shared_image_embedding.positional_embedding",
    ),
    (r"^prompt_encoder\.point_embeddings", "prompt_encoder.point_embed"),
    (r"^prompt_encoder\.mask_downscaling\.0", "prompt_encoder.mask_embed.conv1"),
    (r"^prompt_encoder\.mask_downscaling\.1", "prompt_encoder.mask_embed.layer_norm1"),
    (r"^prompt_encoder\.mask_downscaling\.3", "prompt_encoder.mask_embed.conv2"),
    (r"^prompt_encoder\.mask_downscaling\.4", "prompt_encoder.mask_embed.layer_norm2"),
    (r"^prompt_encoder\.mask_downscaling\.6", "prompt_encoder.mask_embed.conv3"),
    (r"^mask_decoder\.transformer\.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    (r"^(mask_decoder\.transformer\.layers\.\d+)\.norm(\d)", r"\1.layer_norm\2"),
    (r"^mask_decoder\.output_upscaling\.0", "mask_decoder.upscale_conv1"),
    (r"^mask_decoder\.output_upscaling\.1", "mask_decoder.upscale_layer_norm"),
    (r"^mask_decoder\.output_upscaling\.3", "mask_decoder.upscale_conv2"),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0", r"\1.proj_in"),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.1", r"\1.layers.0"),
    (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.2", r"\1.proj_out"),
    (r"^(mask_decoder\.transformer\.layers\.\d+\.mlp\.lin\d)", r"\1"),
)

# Width of the ViT -> its depth, heads and global-attention layers (SAM ViT-B, ViT-L, ViT-H).
VITS: dict[int, tuple[int, int, list[int]]] = {
    768: (12, 12, [2, 5, 8, 11]),
    1024: (24, 16, [5, 11, 17, 23]),
    1280: (32, 16, [7, 15, 23, 31]),
}


def rename(key: str) -> str:
    """The Hugging Face name of an original SAM parameter."""
    for pattern, replacement in RENAMES:
        key, hits = re.subn(pattern, replacement, key)
        if hits:
            return key
    return key


def original_name(key: str) -> str | None:
    """The original name of a Hugging Face parameter; None for the second copy of the Gaussian matrix."""
    if key == "prompt_encoder.shared_embedding.positional_embedding":
        return None
    return _INVERSE.sub_all(key)


class _Inverse:
    """The renames of :data:`RENAMES` read from right to left."""

    PAIRS: tuple[tuple[str, str], ...] = (
        (r"^vision_encoder\.patch_embed\.projection", "image_encoder.patch_embed.proj"),
        (r"^vision_encoder\.layers\.(\d+)\.layer_norm", r"image_encoder.blocks.\1.norm"),
        (r"^vision_encoder\.layers", "image_encoder.blocks"),
        (r"^vision_encoder\.neck\.conv1", "image_encoder.neck.0"),
        (r"^vision_encoder\.neck\.layer_norm1", "image_encoder.neck.1"),
        (r"^vision_encoder\.neck\.conv2", "image_encoder.neck.2"),
        (r"^vision_encoder\.neck\.layer_norm2", "image_encoder.neck.3"),
        (r"^vision_encoder\.", "image_encoder."),
        (
            r"^shared_image_embedding\.positional_embedding",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^prompt_encoder\.point_embed\b", "prompt_encoder.point_embeddings"),
        (r"^prompt_encoder\.mask_embed\.conv1", "prompt_encoder.mask_downscaling.0"),
        (r"^prompt_encoder\.mask_embed\.layer_norm1", "prompt_encoder.mask_downscaling.1"),
        (r"^prompt_encoder\.mask_embed\.conv2", "prompt_encoder.mask_downscaling.3"),
        (r"^prompt_encoder\.mask_embed\.layer_norm2", "prompt_encoder.mask_downscaling.4"),
        (r"^prompt_encoder\.mask_embed\.conv3", "prompt_encoder.mask_downscaling.6"),
        (r"^mask_decoder\.transformer\.layer_norm_final_attn", "mask_decoder.transformer.norm_final_attn"),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm(\d)", r"\1.norm\2"),
        (r"^mask_decoder\.upscale_conv1", "mask_decoder.output_upscaling.0"),
        (r"^mask_decoder\.upscale_layer_norm", "mask_decoder.output_upscaling.1"),
        (r"^mask_decoder\.upscale_conv2", "mask_decoder.output_upscaling.3"),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0", r"\1.layers.1"),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_in", r"\1.layers.0"),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_out", r"\1.layers.2"),
    )

    def sub_all(self, key: str) -> str:
        for pattern, replacement in self.PAIRS:
            renamed, hits = re.subn(pattern, replacement, key)
            if hits:
                return renamed
        return key


_INVERSE = _Inverse()


def to_original(model: SamModel) -> dict[str, Tensor]:
    """State dict of a ``SamModel`` under the names of the original ``.pth`` files."""
    named = ((original_name(key), value) for key, value in model.state_dict().items())
    return {key: value for key, value in named if key is not None}


def load_original(path: Path) -> SamModel:
    """A ``SamModel`` from an original ``sam_vit_{b,l,h}_*.pth`` file; its size is read from the weights.

    Raises:
        UserError: no such file, not a tensor file (``weights_only``), or not a SAM.
    """
    if not path.is_file():
        raise UserError(f"There is no checkpoint {path}; check the path.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise UserError(f"{path} is not a checkpoint of plain tensors; only such files are loaded.") from error
    patch = state.get("image_encoder.patch_embed.proj.weight") if isinstance(state, dict) else None
    if patch is None or patch.shape[0] not in VITS:
        raise UserError(f"{path} is not a SAM ViT-B, ViT-L or ViT-H checkpoint; give one of those.")
    depth, heads, global_layers = VITS[patch.shape[0]]
    vision = SamVisionConfig(
        hidden_size=patch.shape[0],
        num_hidden_layers=depth,
        num_attention_heads=heads,
        global_attn_indexes=global_layers,
    )
    renamed = {rename(key): value for key, value in state.items()}
    renamed["prompt_encoder.shared_embedding.positional_embedding"] = renamed[
        "shared_image_embedding.positional_embedding"
    ]
    with torch.device("meta"):
        model = SamModel(SamConfig(vision_config=vision.to_dict()))
    missing, unexpected = model.load_state_dict(renamed, strict=False, assign=True)
    if missing or unexpected:
        first = (missing or unexpected)[0]
        word = "lacks" if missing else "has an unknown"
        raise UserError(f"{path} {word} parameter {first}; give an unmodified SAM 1 checkpoint.")
    return model


def load_small(folder: Path) -> SamModel:
    """The bundled SAM's folder: ``small_sam.json`` and ``model.safetensors`` (fp16, widened to fp32).

    Raises:
        UserError: the weights are missing or of another shape.
    """
    config = SmallSamConfig.from_dict(json.loads((folder / "small_sam.json").read_text()))
    weights = folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; install weakly again, or train it with `weakly foundation train-sam`.")
    model = build_small_sam(config)
    state = {key: value.float() for key, value in load_file(weights).items()}
    gaussian = state["shared_image_embedding.positional_embedding"]
    model.load_state_dict({**state, "prompt_encoder.shared_embedding.positional_embedding": gaussian})
    return model
