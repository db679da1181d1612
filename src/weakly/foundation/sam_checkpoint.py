"""SAM checkpoints on disk: the bundled form, and the original ``.pth`` files with their own parameter names."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

from weakly.errors import UserError
from weakly.foundation.checkpoint_files import fill, rename
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam

GAUSSIAN = "shared_image_embedding.positional_embedding"
TIED_GAUSSIAN = "prompt_encoder.shared_embedding.positional_embedding"
"""The library's second copy of the Gaussian matrix; no checkpoint of ours or of SAM's authors holds it."""

# (original, Hugging Face), in both directions.
RENAMES: tuple[tuple[str, str], ...] = (
    ("image_encoder.patch_embed.proj", "vision_encoder.patch_embed.projection"),
    ("image_encoder.blocks.#.norm", "vision_encoder.layers.#.layer_norm"),
    ("image_encoder.blocks", "vision_encoder.layers"),
    ("image_encoder.neck.0", "vision_encoder.neck.conv1"),
    ("image_encoder.neck.1", "vision_encoder.neck.layer_norm1"),
    ("image_encoder.neck.2", "vision_encoder.neck.conv2"),
    ("image_encoder.neck.3", "vision_encoder.neck.layer_norm2"),
    ("image_encoder", "vision_encoder"),
    ("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", GAUSSIAN),
    ("prompt_encoder.point_embeddings", "prompt_encoder.point_embed"),
    ("prompt_encoder.mask_downscaling.0", "prompt_encoder.mask_embed.conv1"),
    ("prompt_encoder.mask_downscaling.1", "prompt_encoder.mask_embed.layer_norm1"),
    ("prompt_encoder.mask_downscaling.3", "prompt_encoder.mask_embed.conv2"),
    ("prompt_encoder.mask_downscaling.4", "prompt_encoder.mask_embed.layer_norm2"),
    ("prompt_encoder.mask_downscaling.6", "prompt_encoder.mask_embed.conv3"),
    ("mask_decoder.transformer.norm_final_attn", "mask_decoder.transformer.layer_norm_final_attn"),
    ("mask_decoder.transformer.layers.#.norm", "mask_decoder.transformer.layers.#.layer_norm"),
    ("mask_decoder.output_upscaling.0", "mask_decoder.upscale_conv1"),
    ("mask_decoder.output_upscaling.1", "mask_decoder.upscale_layer_norm"),
    ("mask_decoder.output_upscaling.3", "mask_decoder.upscale_conv2"),
    ("mask_decoder.output_hypernetworks_mlps.#.layers.0", "mask_decoder.output_hypernetworks_mlps.#.proj_in"),
    ("mask_decoder.output_hypernetworks_mlps.#.layers.1", "mask_decoder.output_hypernetworks_mlps.#.layers.0"),
    ("mask_decoder.output_hypernetworks_mlps.#.layers.2", "mask_decoder.output_hypernetworks_mlps.#.proj_out"),
    ("mask_decoder.iou_prediction_head.layers.0", "mask_decoder.iou_prediction_head.proj_in"),
    ("mask_decoder.iou_prediction_head.layers.1", "mask_decoder.iou_prediction_head.layers.0"),
    ("mask_decoder.iou_prediction_head.layers.2", "mask_decoder.iou_prediction_head.proj_out"),
)


def to_hugging_face_name(key: str) -> str:
    """The Hugging Face name of an original SAM parameter."""
    return rename(key, RENAMES)


def to_original_name(key: str) -> str:
    """The original name of a Hugging Face SAM parameter."""
    return rename(key, ((new, old) for old, new in RENAMES))


def to_original(model: SamModel) -> dict[str, Tensor]:
    """State dict of a ``SamModel`` under the names of the original ``.pth`` files."""
    return {to_original_name(key): value for key, value in model.state_dict().items() if key != TIED_GAUSSIAN}


def sam_from_state(state: Mapping[str, Tensor], path: Path) -> SamModel:
    """A ``SamModel`` with the weights of an original ``sam_vit_{b,l,h}_*.pth``; its sizes are read from the weights.

    Raises:
        UserError: the weights of ``path`` are not a SAM's.
    """
    renamed = {to_hugging_face_name(key): value for key, value in state.items()}
    try:
        config = config_of(renamed)
    except (KeyError, IndexError, ValueError) as error:
        raise UserError(
            f"{path} is not a SAM ViT-B, ViT-L or ViT-H checkpoint, nor MobileSAM's or EfficientSAM's; give one of"
            " those, or the Hugging Face form of SAM-HQ, SAM 2 or SAM 3."
        ) from error
    with torch.device("meta"):
        model = SamModel(config)
    fill_sam(model, renamed, path)
    return model


def config_of(state: dict[str, Tensor]) -> SamConfig:
    """The sizes of a SAM, from its weights under Hugging Face names; 8 heads in the decoder, as in every SAM.

    Raises:
        KeyError: a weight that tells a size is missing.
        IndexError: it has too few dimensions.
    """
    hidden, _, patch, _ = (state["vision_encoder.patch_embed.projection.weight"].shape + (0,) * 4)[:4]
    grid = state["vision_encoder.pos_embed"].shape[1]
    depth = len({key.split(".")[2] for key in state if key.startswith("vision_encoder.layers.")})
    reach, head_width = zip(
        *(state[f"vision_encoder.layers.{layer}.attn.rel_pos_w"].shape for layer in range(depth)), strict=True
    )
    is_global = [steps == 2 * grid - 1 for steps in reach]
    width = state[GAUSSIAN].shape[1] * 2
    sizes = {"image_size": patch * grid, "patch_size": patch}
    vision = SamVisionConfig(
        **sizes,
        hidden_size=hidden,
        output_channels=width,
        num_hidden_layers=depth,
        num_attention_heads=hidden // head_width[0],
        mlp_dim=state["vision_encoder.layers.0.mlp.lin1.weight"].shape[0],
        window_size=(min(reach) + 1) // 2,
        global_attn_indexes=[layer for layer in range(depth) if is_global[layer]],
        num_pos_feats=width // 2,
    )
    prompt = SamPromptEncoderConfig(
        **sizes,
        hidden_size=width,
        mask_input_channels=state["prompt_encoder.mask_embed.conv2.weight"].shape[0],
    )
    decoder = SamMaskDecoderConfig(
        hidden_size=width,
        mlp_dim=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        iou_head_hidden_dim=state["mask_decoder.iou_prediction_head.proj_in.weight"].shape[0],
        num_attention_heads=8,
    )
    return SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompt.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )


def load_small(folder: Path, side: int | None = None) -> SamModel:
    """The bundled SAM's folder: ``small_sam.json`` and ``model.safetensors`` (fp16, widened to fp32).

    Args:
        folder: of both files.
        side: S in pixels of the square input; default: the one described.

    Raises:
        UserError: a file is missing or damaged, the weights are of another shape, or the encoder has no such side.
    """
    description, weights = folder / "small_sam.json", folder / "model.safetensors"
    if not weights.is_file():
        raise UserError(f"{weights} is missing; install weakly again, or train it with `weakly foundation train-sam`.")
    try:
        config = SmallSamConfig.from_dict(json.loads(description.read_bytes()))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{description} is no description of a bundled SAM ({error}); restore the file.") from error
    try:
        state = {key: value.float() for key, value in load_file(weights).items()}
    except SafetensorError as error:
        raise UserError(f"{weights} is damaged ({error}); restore the file.") from error
    if side is not None:
        config = replace(config, image_size=side)
    if config.image_size % config.coarsest or not config.image_size:
        raise UserError(
            f"The bundled SAM has no side of {config.image_size} px; give a multiple of {config.coarsest}, as in"
            " bundled-384."
        )
    model = build_small_sam(config)
    fill_sam(model, state, weights)
    return model


def fill_sam(model: SamModel, state: dict[str, Tensor], path: Path, kind: str = "SAM 1") -> None:
    """:func:`~weakly.foundation.checkpoint_files.fill`, the Gaussian matrix in both its places."""
    tied = {TIED_GAUSSIAN: state[GAUSSIAN]} if GAUSSIAN in state else {}
    fill(model, {**state, **tied}, path, kind)
