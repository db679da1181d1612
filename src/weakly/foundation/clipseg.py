"""A frozen CLIP as CLIPSeg reads it: the outputs of a few vision blocks, text embeddings, and the decoder between them.

One adapter serves the bundled model and Hugging Face checkpoints (hub id or local folder): all of them are a
``transformers.CLIPSegForImageSegmentation``, whose own ``forward`` runs the towers once per prompt and cuts the
gradient off the text. Symbols and equations are those of spec partclipseg, sections 1.1 to 1.5.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, CLIPSegConfig, CLIPSegForImageSegmentation, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

from weakly.errors import UserError
from weakly.foundation import clip_text
from weakly.foundation.clip import CLIP_MEAN, CLIP_STD, load_clip

BUNDLED = Path(__file__).parent / "bundled" / "clipseg"
"""``config.json`` and the decoder; the towers are those of the bundled CLIP, not stored twice."""

DECODER = "decoder.safetensors"


@dataclass(frozen=True)
class Preprocessing:
    """Image to pixels (spec 1.1): squashed to a square, bilinear, then normalised.

    The defaults are those of ``CIDAS/clipseg-rd64-refined``.

    Attributes:
        side: S in pixels.
        mean: RGB, of values in [0, 1].
        std: RGB.
    """

    side: int = 352
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


class ClipSeg(nn.Module):
    """Frozen CLIP towers, their tokenizer, and a CLIPSeg decoder to start from.

    Everything is fp32 at the interface; every parameter has ``requires_grad=False`` and the module stays in eval mode,
    also under ``train()``. Symbols: B images of S x S pixels, h x w patches, T = 1 + h w tokens (class token first),
    K vision width, E joint width, N texts, V words, C context, W text width.

    Attributes:
        name: what the user called it, e.g. ``"bundled"`` or ``"CIDAS/clipseg-rd64-refined"``.
        preprocessing: how images become pixels.
        side: S of :meth:`preprocess`.
        patch: side of a patch in pixels.
        grid: (h, w) of S x S pixels.
        width: K.
        joint_width: E.
        reduce_dim: width of the decoder.
        layers_tapped: 0-based vision blocks whose outputs the decoder reads, shallowest first.
        context: longest text in tokens, start and end included.

    Args:
        model: towers and decoder.
        tokenizer: of the text tower.
        name: what the user called it.
        preprocessing: that of the checkpoint.

    Raises:
        UserError: the blocks to tap do not exist or are out of order, or S is no multiple of the patch.
    """

    def __init__(
        self,
        model: CLIPSegForImageSegmentation,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        config: Any = model.config
        self.model: Any = model.float()
        self.tokenizer = tokenizer
        self.name = name
        self.preprocessing = preprocessing or Preprocessing()
        self.side = self.preprocessing.side
        self.patch = int(config.vision_config.patch_size)
        self.grid = (self.side // self.patch,) * 2
        self.width = int(config.vision_config.hidden_size)
        self.joint_width = int(config.projection_dim)
        self.reduce_dim = int(config.reduce_dim)
        self.layers_tapped = tuple(int(layer) for layer in config.extract_layers)
        self.context = int(config.text_config.max_position_embeddings)
        blocks = int(config.vision_config.num_hidden_layers)
        rising = self.layers_tapped == tuple(sorted(set(self.layers_tapped)))
        if not (rising and self.layers_tapped and 0 <= self.layers_tapped[0] <= self.layers_tapped[-1] < blocks):
            raise UserError(
                f"CLIPSeg {name!r} taps the blocks {list(self.layers_tapped)} of a vision tower of {blocks}; "
                "give rising numbers from 0 as extract_layers in its config.json."
            )
        self._check_side(self.side)
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> ClipSeg:  # noqa: ARG002 - frozen means frozen
        """Ignored: a frozen model has no training mode."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of what the taps depend on: vision weights (fp32 bytes), sizes, tapped blocks, preprocessing."""
        vision = self.model.config.vision_config
        untold = (vision.patch_size, vision.num_attention_heads, vision.hidden_act, vision.layer_norm_eps)
        digest = hashlib.sha256(f"clipseg|{untold}|{self.layers_tapped}|bilinear|{self.preprocessing}".encode())
        for key, value in sorted(self.model.clip.vision_model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def preprocess(self, image: NDArray[np.uint8]) -> Tensor:
        """Squash to S x S and normalise (spec 1.1); the aspect is not kept.

        Args:
            image: (H, W, 3) uint8, in the order of channels that the towers are to see.

        Returns:
            (1, 3, S, S) float32 on the CPU.
        """
        squashed = Image.fromarray(image).resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(squashed)).permute(2, 0, 1)[None].float() / 255
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (self.preprocessing.mean, self.preprocessing.std))
        return (pixels - mean) / std

    @torch.no_grad()
    def taps(self, pixels: Tensor) -> Tensor:
        """Outputs of the tapped blocks (spec 1.2); no block after the last of them runs.

        Positions are resized bicubically where S x S pixels are not the grid the tower was trained at.

        Args:
            pixels: (B, 3, S, S) float32, any S that is a multiple of the patch.

        Returns:
            (B, len(layers_tapped), T, K) float32, shallowest first.

        Raises:
            UserError: the pixels are no square of whole patches.
        """
        height, width = pixels.shape[-2:]
        if height != width:
            raise UserError(f"CLIPSeg {self.name!r} was given {height}x{width} pixels; use its own preprocessing.")
        self._check_side(height)
        vision = self.model.clip.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(pixels.to(self.device), interpolate_pos_encoding=True))
        tapped = []
        for layer, block in enumerate(vision.encoder.layers[: self.layers_tapped[-1] + 1]):
            hidden = block(hidden, None)
            if layer in self.layers_tapped:
                tapped.append(hidden)
        return torch.stack(tapped, 1).float()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, C) int64 ids on the CPU: start, text, end, padded with the end token.

        Raises:
            UserError: a text has more tokens than the context.
        """
        return clip_text.tokenize(self.tokenizer, texts, self.context)

    def token_embedding_weights(self) -> tuple[Tensor, Tensor]:
        """The pretrained tables of tokens (V, W) and positions (C, W), for a student to copy and train."""
        embeddings = self.model.clip.text_model.embeddings
        return embeddings.token_embedding.weight.detach(), embeddings.position_embedding.weight.detach()

    def encode_text(self, ids: Tensor, token: Tensor, position: Tensor) -> Tensor:
        """Text embeddings through the frozen tower, which runs on as many tokens as the longest text has (spec 1.4).

        Args:
            ids: (N, C) int64 of :meth:`tokenize`; on the CPU their ends are found without waiting for a GPU.
            token: (V, W) float32 table.
            position: (C, W) float32 table.

        Returns:
            (N, E) float32, not normalised, differentiable in both tables.
        """
        if len(ids) == 0:
            return token.new_zeros(0, self.joint_width)
        ends = clip_text.end_positions(ids, self.tokenizer.eos_token_id)
        length = int(ends.max()) + 1
        hidden = functional.embedding(ids[:, :length].to(token.device), token) + position[:length]
        later = torch.full((1, 1, length, length), torch.finfo(hidden.dtype).min, device=hidden.device).triu(1)
        text = self.model.clip.text_model
        hidden = text.encoder(inputs_embeds=hidden, attention_mask=later).last_hidden_state
        last = hidden[torch.arange(len(ids), device=hidden.device), ends.to(hidden.device)]
        embeddings: Tensor = self.model.clip.text_projection(text.final_layer_norm(last))
        return embeddings.float()

    def new_decoder(self) -> CLIPSegDecoder:
        """A trainable copy of the decoder: ``reduces``, ``film_mul``, ``film_add``, ``layers``, the transposed head.

        Its layers run with ``sdpa`` attention, which shows no weights: those of a layer are the softmax of its own
        ``q_proj`` and ``k_proj`` over the square root of the head's width (spec 1.10).
        """
        decoder = copy.deepcopy(self.model.decoder)
        for layer in decoder.layers:  # one configuration, which set_attn_implementation does not reach
            layer.self_attn.config._attn_implementation = "sdpa"
        trainable: CLIPSegDecoder = decoder.requires_grad_(True).train()
        return trainable

    def _check_side(self, side: int) -> None:
        if side % self.patch or side < self.patch:
            raise UserError(
                f"CLIPSeg {self.name!r} reads squares of {side} pixels, no multiple of its patch of {self.patch}; "
                "give another side."
            )


def attach_decoder(
    towers: CLIPModel,
    layers_tapped: tuple[int, ...],
    *,
    reduce_dim: int = 64,
    heads: int = 4,
    hidden: int = 2048,
) -> CLIPSegForImageSegmentation:
    """A CLIPSeg of a CLIP's towers and a new decoder, one layer per tap, drawn from torch's global random state.

    Args:
        towers: any CLIP; its weights are copied.
        layers_tapped: 0-based vision blocks, shallowest first.
        reduce_dim: width of the decoder.
        heads: of its attention.
        hidden: width of its feed-forward layers.
    """
    config = CLIPSegConfig(
        text_config=towers.config.text_config.to_dict(),
        vision_config=towers.config.vision_config.to_dict(),
        projection_dim=towers.config.projection_dim,
        extract_layers=list(layers_tapped),
        reduce_dim=reduce_dim,
        decoder_num_attention_heads=heads,
        decoder_intermediate_size=hidden,
        use_complex_transposed_convolution=True,
    )
    model = CLIPSegForImageSegmentation(config)
    model.clip.load_state_dict(towers.state_dict())
    for module in model.decoder.modules():  # the library draws a decoder's linear layers with deviation 1
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            module.reset_parameters()
    return model


def load_clipseg(name: str, device: str = "cpu") -> ClipSeg:
    """A frozen CLIPSeg by name.

    Args:
        name: ``"bundled"``, a folder in Hugging Face form with the files of tokenizer and image processor (whose
            size, mean and deviation hold), or a hub id such as ``"CIDAS/clipseg-rd64-refined"`` (the only form that
            uses the network).
        device: torch device.

    Raises:
        UserError: there is no such model, it is no CLIPSeg, its tokenizer or image processor is missing, its tokenizer
            is another model's, or the bundled decoder was trained on another bundled CLIP.
    """
    if name == "bundled":
        return read_bundled(BUNDLED).to(device)
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json; give a folder saved with save_pretrained.")
    if not path.is_dir() and (path.is_absolute() or name.startswith(".")):
        raise UserError(f"There is no CLIPSeg at {path}; give a folder, a hub id or 'bundled'.")
    local = path.is_dir()
    model = _load_model(name, local=local)
    text_config: Any = model.config.text_config
    tokenizer = clip_text.load_tokenizer(name, text_config, local=local)
    return ClipSeg(model, tokenizer, name, _load_preprocessing(name, local=local)).to(device)


def read_bundled(folder: Path) -> ClipSeg:
    """The bundled CLIP with the decoder of ``folder``, which ``weakly foundation train-clipseg`` wrote.

    Raises:
        UserError: a file is missing or damaged, or the decoder was trained on another CLIP.
    """
    again = "train it with `weakly foundation train-clipseg`"
    missing = [file for file in ("config.json", DECODER) if not (folder / file).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]} is missing; install weakly again, or {again}.")
    clip = load_clip("bundled")
    try:
        config = CLIPSegConfig.from_pretrained(folder, local_files_only=True)
        model = CLIPSegForImageSegmentation(config)
        model.clip.load_state_dict(clip.model.state_dict())
        with safe_open(folder / DECODER, "pt") as file:
            trained_on = (file.metadata() or {}).get("fingerprint")
            model.decoder.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118 - no dict
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The CLIPSeg decoder in {folder} does not fit the bundled CLIP; {again}.") from error
    clipseg = ClipSeg(model, clip.tokenizer, "bundled", bundled_preprocessing(clip.model))
    if trained_on != clipseg.fingerprint:
        raise UserError(f"The CLIPSeg decoder in {folder} was trained on another bundled CLIP; {again}.")
    return clipseg


def bundled_preprocessing(towers: CLIPModel) -> Preprocessing:
    """That of a CLIP made by this repository: its own side and statistics, so that no position is resized."""
    return Preprocessing(int(towers.config.vision_config.image_size), CLIP_MEAN, CLIP_STD)


def _load_model(source: str, *, local: bool) -> CLIPSegForImageSegmentation:
    try:
        model, loading = CLIPSegForImageSegmentation.from_pretrained(
            source, local_files_only=local, weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"CLIPSeg {source!r} could not be loaded ({reason}); check the name or the folder.") from error
    absent = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if absent:  # the library would go on with random weights
        raise UserError(f"CLIPSeg {source!r} is no CLIPSeg: its weights lack {absent[0]}; give a CLIPSeg checkpoint.")
    return model


def _load_preprocessing(source: str, *, local: bool) -> Preprocessing:
    try:
        told, _ = BaseImageProcessor.get_image_processor_dict(source, local_files_only=local)
        size = told["size"]
        side = size if isinstance(size, int) else size["height"]
        return Preprocessing(int(side), tuple(told["image_mean"]), tuple(told["image_std"]))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"CLIPSeg {source!r} has no preprocessor_config.json that tells size, image_mean and image_std; restore it."
        ) from error
