"""A frozen CLIP as FMA-WSSS reads it: dense, at any image size, split at the attention of the last vision block.

One adapter serves the bundled model and Hugging Face checkpoints (hub id or local folder): all of them are a
``transformers.CLIPModel``, whose modules this adapter runs in another order. It departs from the library in three
places (spec fma-wsss sections 3.2 and 3.6): positions are resized bilinearly, an image is the mean of its patch tokens,
and the text encoder takes token embeddings.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerBase

from weakly.errors import UserError
from weakly.foundation import clip_text
from weakly.foundation.clip_blocks import PatchAttention, attend, feed_forward, patch_attention, whole_block

BUNDLED = Path(__file__).parent / "bundled" / "clip"

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

TEXTS_AT_ONCE = 256
"""Texts encoded together where no gradient is kept: under 0.3 GiB of activations in CLIP's base model at 77 tokens."""


@dataclass(frozen=True, eq=False, slots=True)
class ClipFeatures:
    """What :meth:`Clip.encode` sees in B images of one size; L = h w patches in row-major order, K channels.

    Attributes:
        last_input: (B, 1 + L, K) float32, input of the last vision block, the class token first.
        attention: (B, L, L) float32, who (row) looks at whom (column), averaged over heads and layers. Rows sum to
            less than one: the class token is left out.
        last_attention: of the last vision block, which the maps go on from; it holds ``heads (1 + L) L`` floats.
        grid: (h, w).
    """

    last_input: Tensor
    attention: Tensor
    last_attention: PatchAttention
    grid: tuple[int, int]


class Clip(nn.Module):
    """A frozen ``CLIPModel`` and its tokenizer.

    Everything is fp32 at the interface; every parameter has ``requires_grad=False`` and the module stays in eval
    mode, also under ``train()``. Symbols: B images of h x w patches, L = h w, K vision width, E joint width, N texts
    of T tokens, W text width. Embeddings of images and texts are not normalised.

    Attributes:
        name: what the user called it, e.g. ``"bundled"`` or ``"openai/clip-vit-base-patch16"``.
        patch: side of a patch in pixels.
        width: K.
        joint_width: E.
        layers: number of vision blocks.
        grid: (h, w) it was trained at.
        context: longest text in tokens, start and end included.
        logit_scale: factor of the cosine in CLIP's logits, about 100.

    Args:
        model: any ``CLIPModel``; its attention becomes ``eager``, which takes the causal mask of texts as a tensor.
        tokenizer: its own.
        name: what the user called it.
    """

    def __init__(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        super().__init__()
        model.set_attn_implementation("eager")
        self.model = model.float()
        self.tokenizer = tokenizer
        self.name = name
        vision = model.config.vision_config
        side = vision.image_size // vision.patch_size
        self.patch = int(vision.patch_size)
        self.width = int(vision.hidden_size)
        self.joint_width = int(model.visual_projection.out_features)
        self.layers = int(vision.num_hidden_layers)
        self.grid = (side, side)
        self.context = int(model.config.text_config.max_position_embeddings)
        self.logit_scale = float(model.logit_scale.detach().exp())
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> Clip:  # noqa: ARG002 - frozen means frozen
        """Ignored: a frozen model has no training mode."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over every named weight (fp32 bytes), the sizes they do not tell, and the preprocessing."""
        towers = (self.model.config.vision_config, self.model.config.text_config)
        untold = [(tower.num_attention_heads, tower.hidden_act, tower.layer_norm_eps) for tower in towers]
        digest = hashlib.sha256(f"clip|{self.patch}|{untold}|bicubic|{CLIP_MEAN}|{CLIP_STD}".encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def preprocess(self, image: NDArray[np.uint8], long_side: int | None = None) -> Tensor:
        """Resize to whole patches and normalise (spec fma-wsss section 3.1); 375x500 becomes 384x512 at patch 16.

        Args:
            image: (H, W, 3) uint8 RGB.
            long_side: shrink larger images to this many pixels before rounding. Memory grows with the fourth power
                of the side: :meth:`encode` holds a few times heads x L^2 floats. Features of shrunken images are
                other features: the fingerprint does not tell them apart.

        Returns:
            (1, 3, p h, p w) float32 on the CPU, each side rounded up to a multiple of the patch p; the aspect is kept
            up to that rounding.
        """
        longest = max(image.shape[:2])
        limit = longest if long_side is None else min(long_side, longest)
        # Rounded up in integers: side * limit / longest may be whole, where a float would add a patch.
        height, width = (-(-side * limit // (longest * self.patch)) * self.patch for side in image.shape[:2])
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
        return normalise(np.asarray(resized)[None])

    @torch.no_grad()
    def encode(self, pixels: Tensor, attention_layers: int = 8) -> ClipFeatures:
        """All of the vision encoder that no prompt and no gradient touches (spec fma-wsss section 3.2).

        Holds the attention of a block or two at a time, (B, heads, 1 + L, 1 + L), and their (B, L, L) sum.

        Args:
            pixels: (B, 3, p h, p w) float32 of :meth:`preprocess`.
            attention_layers: how many blocks the attention is averaged over, counted from the last, which is one of
                them; all where there are fewer.

        Raises:
            UserError: the sides are no multiples of the patch, or ``attention_layers`` is less than one.
        """
        if attention_layers < 1:
            raise UserError(f"attention_layers is {attention_layers}; give 1 or more.")
        count = min(attention_layers, self.layers)
        hidden = self._embed(pixels)
        images, tokens, _ = hidden.shape
        total = hidden.new_zeros(images, tokens - 1, tokens - 1)
        blocks = self.model.vision_model.encoder.layers[:-1]
        for block in blocks[: self.layers - count]:
            hidden = whole_block(block, hidden)
        for block in blocks[self.layers - count :]:
            mixed, weights = attend(block.self_attn, block.layer_norm1(hidden))
            total += weights[:, :, 1:, 1:].mean(1)
            hidden = feed_forward(block, hidden + mixed)
        last = self.last_attention(hidden)
        total += last.weights[..., 1:].mean(1)
        return ClipFeatures(hidden.float(), total / count, last, self._grid_of(pixels))

    @torch.no_grad()
    def last_attention(self, last_input: Tensor) -> PatchAttention:
        """What the patches see in the last block, F included, of its (B, 1 + L, K) input."""
        with torch.autocast(last_input.device.type, enabled=False):
            block = self.model.vision_model.encoder.layers[-1]
            return patch_attention(block.self_attn, self.last_norm(last_input.float()))

    def last_norm(self, last_input: Tensor) -> Tensor:
        """F: (B, 1 + L, K) input of the last block to its first layer norm, the same shape."""
        normed: Tensor = self.model.vision_model.encoder.layers[-1].layer_norm1(last_input)
        return normed

    def tail(self, last_input: Tensor, normed: Tensor) -> Tensor:
        """f: the rest of the last block, then the projected mean of the patch tokens; the class token is ignored.

        Args:
            last_input: (B, 1 + L, K) of :meth:`encode`.
            normed: F, (B, 1 + L, K) of :meth:`last_norm`.

        Returns:
            (B, E) float32, differentiable in ``normed``, twice and forward too.
        """
        embedding: Tensor = self.model.visual_projection(self._last_patches(last_input, normed).mean(1))
        return embedding.float()

    @torch.no_grad()
    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, 3, p h, p w) pixels to (B, E): :meth:`tail` of what :meth:`encode` sees, without its attention.

        Raises:
            UserError: the sides are no multiples of the patch.
        """
        hidden = self._before_last(pixels)
        return self.tail(hidden, self.last_norm(hidden))

    @torch.no_grad()
    def patch_embeddings(self, pixels: Tensor) -> Tensor:
        """(B, 3, p h, p w) pixels to (B, E, h, w): the patches whose mean :meth:`image_features` is.

        Raises:
            UserError: the sides are no multiples of the patch.
        """
        hidden = self._before_last(pixels)
        patches = self.model.visual_projection(self._last_patches(hidden, self.last_norm(hidden)))
        return patches.float().mT.unflatten(2, self._grid_of(pixels))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, context) int64 ids on the CPU: start, text, end, padded with the end token.

        Raises:
            UserError: a text has more tokens than the context.
        """
        return clip_text.tokenize(self.tokenizer, texts, self.context)

    def end_positions(self, ids: Tensor) -> Tensor:
        """(N,) int64: where the end token first stands in (N, T) ids of :meth:`tokenize`."""
        return clip_text.end_positions(ids, self.tokenizer.eos_token_id)

    def token_embedding(self, ids: Tensor) -> Tensor:
        """(N, T) ids to (N, T, W) embeddings without positions."""
        embeddings: Tensor = self.model.text_model.embeddings.token_embedding(ids.to(self.device))
        return embeddings

    def encode_text_embeddings(self, embeddings: Tensor, eot: Tensor) -> Tensor:
        """Text embeddings of token embeddings (spec fma-wsss section 2.2); only ``max(eot) + 1`` tokens are computed.

        Args:
            embeddings: (N, T, W) float32 without positions.
            eot: (N,) int64, where every text ends.

        Returns:
            (N, E) float32, differentiable in ``embeddings``; nothing after the end of a text changes it.

        Raises:
            UserError: a text ends after the context.
        """
        return clip_text.encode_embeddings(self.model, embeddings.to(self.device), eot)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """N texts to (N, E) text embeddings, ``TEXTS_AT_ONCE`` at a time.

        Raises:
            UserError: a text has more tokens than the context.
        """
        return torch.cat(
            [
                self.encode_text_embeddings(self.token_embedding(part), self.end_positions(part))
                for part in self.tokenize(texts).split(TEXTS_AT_ONCE)
            ]
        )

    def _before_last(self, pixels: Tensor) -> Tensor:
        """(B, 3, p h, p w) pixels to the (B, 1 + L, K) input of the last block."""
        hidden = self._embed(pixels)
        for block in self.model.vision_model.encoder.layers[:-1]:
            hidden = whole_block(block, hidden)
        return hidden

    def _last_patches(self, last_input: Tensor, normed: Tensor) -> Tensor:
        """(B, L, K) patches after the last block and its norm."""
        vision = self.model.vision_model
        block = vision.encoder.layers[-1]
        patches = (last_input + attend(block.self_attn, normed)[0])[:, 1:]
        normed_patches: Tensor = vision.post_layernorm(feed_forward(block, patches))
        return normed_patches

    def _grid_of(self, pixels: Tensor) -> tuple[int, int]:
        height, width = pixels.shape[-2:]
        if height % self.patch or width % self.patch:
            raise UserError(
                f"CLIP {self.name!r} was given {height}x{width} pixels, no multiples of its patch of {self.patch}; "
                "use its own preprocessing."
            )
        return height // self.patch, width // self.patch

    def _embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, p h, p w) pixels to the (B, 1 + L, K) input of the first block."""
        vision = self.model.vision_model
        grid = self._grid_of(pixels)
        patches = vision.embeddings.patch_embedding(pixels.to(self.device)).flatten(2).mT
        cls = vision.embeddings.class_embedding.expand(len(patches), 1, -1)
        hidden: Tensor = vision.pre_layrnorm(torch.cat([cls, patches], 1) + self._positions(grid))
        return hidden

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """(1 + L, K): the class position as it is, the others resized bilinearly from the native grid."""
        cls, native = self.model.vision_model.embeddings.position_embedding.weight.split([1, self.grid[0] ** 2])
        native = native.T.unflatten(1, self.grid)[None]
        resized = functional.interpolate(native, grid, mode="bilinear", align_corners=False)
        return torch.cat([cls, resized[0].flatten(1).T])


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """(B, H, W, 3) uint8 RGB to (B, 3, H, W) float32 with CLIP's mean and standard deviation taken out."""
    pixels = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def load_clip(name: str, device: str = "cpu") -> Clip:
    """A frozen CLIP by name.

    Args:
        name: ``"bundled"``, a folder in Hugging Face form with the tokenizer's files, or a hub id such as
            ``"openai/clip-vit-base-patch16"`` (the only form that uses the network).
        device: torch device.

    Raises:
        UserError: there is no such model, it is no CLIP, or its tokenizer is missing or another model's.
    """
    path = BUNDLED if name == "bundled" else Path(name)
    if name == "bundled" and not (path / "config.json").is_file():
        raise UserError(f"{path} is missing; install weakly again, or train it with `weakly foundation train-clip`.")
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"{path} has no config.json; give a folder saved with save_pretrained.")
    if not path.is_dir() and (path.is_absolute() or name.startswith(".")):
        raise UserError(f"There is no CLIP at {path}; give a folder, a hub id or 'bundled'.")
    source, local = (str(path), True) if path.is_dir() else (name, False)
    model = _load_model(source, local=local)
    tokenizer = clip_text.load_tokenizer(source, model.config.text_config, local=local)
    return Clip(model, tokenizer, name).to(device)


def _load_model(source: str, *, local: bool) -> CLIPModel:
    try:
        model, loading = CLIPModel.from_pretrained(
            source, local_files_only=local, weights_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"CLIP {source!r} could not be loaded ({reason}); check the name or the folder.") from error
    absent = sorted(loading["missing_keys"]) + sorted(key for key, *_ in loading["mismatched_keys"])
    if absent:  # the library would go on with random weights
        raise UserError(f"CLIP {source!r} is no CLIP: its weights lack {absent[0]}; give a CLIP checkpoint.")
    return model
