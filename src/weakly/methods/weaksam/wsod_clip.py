"""A frozen CLIP as what looks at the picture in stage D, where no backbone trained on photographs is at hand.

The papers start from VGG16 trained on ImageNet. Here that part falls to a CLIP, which stays as it is: to what it says
of every patch of the picture, with one convolution on top that trains, or to what it says of every crop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.errors import UserError
from weakly.foundation.clip import Clip, load_clip
from weakly.methods.weaksam.wsod_backbone import NORM_GROUPS, STRIDE, Body

CHANNELS = 256
"""D: a multiple of the norm's groups."""


class ClipBody(nn.Module):
    """(B, 3, H, W) pixels in CLIP's colours, sides multiples of its patch, to (B, D, H / 8, W / 8).

    The CLIP is no part of the state dict; a digest of its weights is, and a state dict made with another is refused.

    Args:
        clip: frozen.
    """

    fingerprint: Tensor

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self._frozen = (clip,)  # in a tuple, so that it is no sub-module
        self.mix = nn.Conv2d(clip.joint_width, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(NORM_GROUPS, CHANNELS)
        _remember(self, clip)

    def forward(self, pixels: Tensor) -> Tensor:
        """Patches enlarged to stride 8, bilinearly, mixed with their neighbours."""
        clip = self._frozen[0].to(pixels.device)
        height, width = pixels.shape[-2] // STRIDE, pixels.shape[-1] // STRIDE
        patches = functional.interpolate(clip.patch_embeddings(pixels), (height, width), mode="bilinear")
        return functional.relu(self.norm(self.mix(patches)))


class CropBody(nn.Module):
    """(R, E) embeddings of crops, as they are stored, to (R, E): each of length sqrt(E), so of unit variance.

    Nothing trains. The state dict holds a digest of the CLIP, and one made with another is refused.

    Args:
        clip: that made the embeddings.
    """

    fingerprint: Tensor

    def __init__(self, clip: Clip) -> None:
        super().__init__()
        self._length = clip.joint_width**0.5
        _remember(self, clip)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Only the direction of an embedding means something."""
        return functional.normalize(embeddings, dim=1) * self._length


def _remember(body: ClipBody | CropBody, clip: Clip) -> None:
    """Put a digest of the CLIP into the state dict."""
    body.register_buffer("fingerprint", torch.tensor(list(bytes.fromhex(clip.fingerprint)), dtype=torch.uint8))
    body.register_load_state_dict_pre_hook(_refuse_another_clip)


def _refuse_another_clip(body: ClipBody | CropBody, state: dict[str, Any], prefix: str, *_: Any) -> None:
    stored = state.get(f"{prefix}fingerprint")
    if stored is not None and not torch.equal(stored.cpu(), body.fingerprint.cpu()):
        raise UserError("This detector was trained on another CLIP than wsod.weights names; give that one.")


def build_clip(name: str | None) -> Body:
    """A body on a frozen CLIP.

    Args:
        name: ``bundled``, a folder or a hub id; None: ``bundled``.

    Raises:
        UserError: the CLIP cannot be loaded.
    """
    return Body(ClipBody(load_clip(name or "bundled")), CHANNELS, {})


def build_crops(name: str | None) -> Body:
    """A body for embeddings of crops by a frozen CLIP; see :func:`build_clip`."""
    clip = load_clip(name or "bundled")
    return Body(CropBody(clip), clip.joint_width, {})
