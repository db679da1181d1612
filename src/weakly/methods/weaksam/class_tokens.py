"""A vision transformer with one token per class, and what its attention and activation maps look like from outside.

WeakTr and MCTformer are built on it (spec weaksam, sections 1.1 and 1.4). Symbols: B images, C classes, P = h w
patches in row-major order, N = C + P tokens (classes first), D width, L layers, H heads.
"""

from __future__ import annotations

import math
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.patch_embed import resample_patch_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from weakly.errors import UserError

Observe = Callable[[int, Tensor], None]
"""Told (layer from 0, (B, H, N, N) attention after the softmax, without gradient), layer by layer.

What is kept of it must be a copy: a view would keep the whole map."""

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""What a folder of weights holds; the first that is there counts."""

STD = 0.02
"""Of the normal distribution that tokens and positions start from where no weights are given."""


@dataclass(frozen=True)
class VitSettings:
    """The transformer; the defaults are DeiT-S.

    Attributes:
        width: D.
        depth: L.
        heads: H.
        patch: side of a patch in pixels.
        image: side of the images whose positions are stored; others are interpolated.
        drop_path: rate at which the last block is left out in training; earlier ones less, the first never.
        reduction: how many times fewer hidden units than maps the attention fusion of WeakTr has.
        pretrained: DeiT weights to start from: a timm name (``deit_small_patch16_224``), a hub id (``timm/...``), a
            folder or a file; None: random weights.
    """

    width: int = 384
    depth: int = 12
    heads: int = 6
    patch: int = 16
    image: int = 224
    drop_path: float = 0.1
    reduction: int = 4
    pretrained: str | None = None

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "patch", "reduction"):
            if getattr(self, name) < 1:
                raise UserError(f"vit.{name} is {getattr(self, name)}; give 1 or more.")
        if self.width % self.heads:
            raise UserError(f"vit.width is {self.width}, no multiple of vit.heads={self.heads}; change one of them.")
        if self.image < self.patch:
            raise UserError(f"vit.image is {self.image}, less than a patch of {self.patch}; give a larger side.")
        if not 0 <= self.drop_path < 1:
            raise UserError(f"vit.drop_path is {self.drop_path}; give a rate of at least 0 and below 1.")


SMALL_VIT = VitSettings(width=192, depth=6, heads=3, patch=16, image=256)
"""Trains from random weights on two cores."""


class Logits(NamedTuple):
    """What is trained on tags, (B, C) each.

    Attributes:
        z_cls: mean of a class token.
        z_pat: mean of a class's activation map before the ReLU.
        z_fine: mean of a class's fine map, never negative; None for a network that does not train it.
    """

    z_cls: Tensor
    z_pat: Tensor
    z_fine: Tensor | None = None


class NetworkMaps(NamedTuple):
    """Everything a network says about B images, at patch resolution, without gradient.

    Attributes:
        z_cls: (B, C), as in :class:`Logits`.
        z_pat: (B, C).
        z_fine: (B, C), or None.
        coarse: (B, C, h, w) activation maps after the ReLU.
        cross: (B, C, h, w) fused attention of class tokens to patches.
        fine: (B, C, h, w): ``affinity`` times ``cross * coarse``.
        raw: (B, M, C, h, w) attention of class tokens to patches in the layers asked for, M = layers x H, layer by
            layer in the order asked for; M may be 0.
        affinity: (B, P, P) fused attention of patches (rows) to patches (columns).
    """

    z_cls: Tensor
    z_pat: Tensor
    z_fine: Tensor | None
    coarse: Tensor
    cross: Tensor
    fine: Tensor
    raw: Tensor
    affinity: Tensor


class ClassTokenVit(nn.Module):
    """The encoder: patches and C class tokens through the blocks of timm's ``VisionTransformer``.

    The final layer norm is stored, as in DeiT's checkpoints, and never applied: outputs are the residual stream.

    Args:
        settings: its sizes.
        classes: C.
    """

    def __init__(self, settings: VitSettings, classes: int) -> None:
        super().__init__()
        vit = VisionTransformer(
            img_size=settings.image,
            patch_size=settings.patch,
            embed_dim=settings.width,
            depth=settings.depth,
            num_heads=settings.heads,
            num_classes=0,
            drop_path_rate=settings.drop_path,
        )
        side = settings.image // settings.patch
        self.classes, self.patch, self.native = classes, settings.patch, (side, side)
        self.depth, self.heads, self.width = settings.depth, settings.heads, settings.width
        self.patch_embed = vit.patch_embed
        self.blocks: Any = vit.blocks
        self.norm = vit.norm.requires_grad_(False)
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, classes, self.width), std=STD))
        positions = torch.empty(1, classes + side * side, self.width)
        self.pos_embed = nn.Parameter(nn.init.trunc_normal_(positions, std=STD))

    def forward(self, pixels: Tensor, observe: Observe | None = None) -> tuple[Tensor, Tensor]:
        """Tokens of the last block; every block's attention is shown to ``observe`` and forgotten.

        The attention that is shown is computed apart from the fused one that is trained, so that none is kept for the
        backward pass: memory is one (B, H, N, N) map at a time, for a tenth more work.

        Args:
            pixels: (B, 3, height, width) float, normalised by ImageNet's mean and deviation; what exceeds whole patches
                at the right and the bottom is cut off.
            observe: see :data:`Observe`; None: nobody looks.

        Returns:
            (B, C, D) class tokens and (B, D, h, w) patch tokens.

        Raises:
            UserError: the image is smaller than a patch.
        """
        grid = self.grid_of(pixels)
        patches = self.patch_embed.proj(pixels).flatten(2).mT
        tokens = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], 1) + self.positions(grid)
        for layer, block in enumerate(self.blocks):
            tokens = tokens + block.drop_path1(_attend(block, tokens, layer, observe))
            tokens = tokens + block.drop_path2(block.mlp(block.norm2(tokens)))
        return tokens[:, : self.classes], tokens[:, self.classes :].mT.unflatten(2, grid)

    def grid_of(self, pixels: Tensor) -> tuple[int, int]:
        """(h, w) of (B, 3, height, width) pixels.

        Raises:
            UserError: there is not a single patch.
        """
        height, width = pixels.shape[-2:]
        if min(height, width) < self.patch:
            raise UserError(
                f"An image of {height}x{width} pixels is smaller than a patch of {self.patch}; enlarge it or use a "
                "smaller vit.patch."
            )
        return height // self.patch, width // self.patch

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """(1, N, D): class positions as they are, patch positions interpolated to ``grid``."""
        of_classes, of_patches = self.pos_embed.split([self.classes, math.prod(self.native)], 1)
        return torch.cat([of_classes, resized_positions(of_patches, self.native, grid)], 1)

    @torch.no_grad()
    def from_deit(self, state: Mapping[str, Tensor]) -> None:
        """Start from a DeiT: its class token and class position are repeated for every class.

        Patch positions and kernels of another size are interpolated; a distillation token is left out.

        Args:
            state: weights under timm's names.

        Raises:
            UserError: a weight is absent or of another shape, e.g. of a transformer of another width.
        """
        try:
            positions, kernels = state["pos_embed"], state["patch_embed.proj.weight"]
            prefix = _prefix_tokens(positions.shape[1])
            side = math.isqrt(positions.shape[1] - prefix)
            patches = resized_positions(positions[:, prefix:].float(), (side, side), self.native)
            self.cls_token.copy_(state["cls_token"])
            self.pos_embed.copy_(torch.cat([positions[:, :1].expand(-1, self.classes, -1), patches], 1))
            names = self.state_dict().keys()
            own = {name: value for name, value in state.items() if name in names}
            own["patch_embed.proj.weight"] = resample_patch_embed(kernels.float(), [self.patch, self.patch])
            self.load_state_dict({**own, "cls_token": self.cls_token, "pos_embed": self.pos_embed})
            extra = sorted(name for name in state if name.startswith("blocks.") and name not in own)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error).strip().splitlines()[-1].strip()
            raise UserError(
                f"The DeiT weights do not fit a transformer of {self.depth} layers and width {self.width} ({reason}); "
                "give matching sizes in settings.vit."
            ) from error
        if extra:
            raise UserError(f"The DeiT weights hold {extra[0]}, which this transformer lacks; give a plain DeiT.")


class ClueNetwork(nn.Module, ABC):
    """A classifier whose activation maps and attention say where the classes are.

    Attributes:
        encoder: the transformer.
        head: 3x3 convolution from patch tokens to activation maps.

    Args:
        settings: sizes of the transformer; its ``pretrained`` is not read here, see :func:`load_deit`.
        classes: C.
    """

    def __init__(self, settings: VitSettings, classes: int) -> None:
        super().__init__()
        self.settings, self.classes = settings, classes
        self.encoder = ClassTokenVit(settings, classes)
        self.head = nn.Conv2d(settings.width, classes, 3, padding=1)

    @abstractmethod
    def forward(self, pixels: Tensor) -> Logits:
        """The logits that are trained, of (B, 3, height, width) normalised pixels."""

    @abstractmethod
    def maps(self, pixels: Tensor, cross_layers: Sequence[int] = ()) -> NetworkMaps:
        """All maps of (B, 3, height, width) normalised pixels.

        Memory: a few copies of one layer's (B, H, N, N) attention, one (B, N, N) map, and the raw maps asked for.

        Args:
            pixels: as in :meth:`ClassTokenVit.forward`.
            cross_layers: layers, from 1, whose raw attention is kept.
        """

    def from_deit(self, state: Mapping[str, Tensor]) -> None:
        """Start the encoder from a DeiT, see :meth:`ClassTokenVit.from_deit`; the heads keep their random weights."""
        self.encoder.from_deit(state)

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone: biases, norms, tokens and positions."""
        tokens = ("encoder.cls_token", "encoder.pos_embed")
        return {name for name, value in self.named_parameters() if value.ndim < 2 or name in tokens}

    def _heads(self, class_tokens: Tensor, patch_tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_cls (B, C), z_pat (B, C) and the coarse maps (B, C, h, w), which have no gradient."""
        activations = self.head(patch_tokens)
        return class_tokens.mean(-1), activations.mean((2, 3)), activations.detach().float().relu()


def soft_margin_loss(logits: Logits, tags: Tensor) -> dict[str, Tensor]:
    """Multilabel soft margin of every logit, equally weighted; scalars ``loss``, ``z_cls``, ``z_pat``, ``z_fine``.

    Args:
        logits: (B, C) each.
        tags: (B, C) float, 1 where an image shows the class.
    """
    parts = {
        name: functional.multilabel_soft_margin_loss(values.float(), tags)
        for name, values in logits._asdict().items()
        if values is not None
    }
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


def resized_positions(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """(1, P0, D) positions of the native grid to (1, h w, D), bicubic.

    A tenth of a patch is added to the new sides, as DINO and WeakTr do, which also moves the sampling points a little.
    """
    if grid == native:
        return positions
    factors = [(new + 0.1) / old for new, old in zip(grid, native, strict=True)]
    maps = positions.mT.unflatten(2, native).float()
    return functional.interpolate(maps, scale_factor=factors, mode="bicubic").flatten(2).mT


def load_deit(name: str) -> dict[str, Tensor]:
    """Weights of a DeiT under timm's names.

    Args:
        name: a file (``.safetensors``, or a ``.pth`` that is read with ``weights_only``), a folder with one of
            :data:`WEIGHT_FILES`, a timm name, or a hub id. Only the last two use the network.

    Raises:
        UserError: there is no such model, or it cannot be read.
    """
    path = Path(name)
    if path.is_dir():
        path = next((path / file for file in WEIGHT_FILES if (path / file).is_file()), path)
    if path.is_file():
        return _read_weights(path)
    if path.is_dir() or path.is_absolute() or name.startswith(".") or path.suffix in {".safetensors", ".pth", ".pt"}:
        wanted = " or ".join(WEIGHT_FILES)
        raise UserError(f"There are no DeiT weights at {path}; give a file, a folder with {wanted}, or a timm name.")
    try:
        model = timm.create_model(f"hf-hub:{name}" if "/" in name else name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"DeiT {name!r} could not be loaded ({reason}); check the name, or give a file.") from error
    weights: dict[str, Tensor] = model.state_dict()
    return weights


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".:")
        raise UserError(f"{path} cannot be read ({reason}); give a file of DeiT weights.") from error
    weights = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{path} holds no table of weights; give a file of DeiT weights.")
    return weights


def _prefix_tokens(count: int) -> int:
    """How many of ``count`` positions come before a square of patches: 1, or 2 with a distillation token."""
    for prefix in (1, 2):
        if math.isqrt(count - prefix) ** 2 == count - prefix:
            return prefix
    raise ValueError(f"{count} positions are no class token and a square of patches")


def _attend(block: Any, tokens: Tensor, layer: int, observe: Observe | None) -> Tensor:
    """(B, N, D) to the output of a block's attention, of the same shape."""
    attention = block.attn
    qkv = attention.qkv(block.norm1(tokens)).unflatten(-1, (3, attention.num_heads, -1))
    queries, keys, values = qkv.permute(2, 0, 3, 1, 4)
    if observe is not None:
        with torch.no_grad():
            observe(layer, (queries * attention.scale @ keys.mT).softmax(-1))
    mixed = functional.scaled_dot_product_attention(queries, keys, values)
    return attention.proj(mixed.transpose(1, 2).flatten(2))
