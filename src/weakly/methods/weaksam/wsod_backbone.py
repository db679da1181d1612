"""What looks at the picture in stage D: VGG16 at stride 8, or the first stages of a ResNet (spec weaksam, section 3.4).

A body maps (B, 3, H, W) normalised pixels to (B, D, H / 8, W / 8), rounded down or up.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, NamedTuple

import safetensors.torch
import timm
import torch
from safetensors import SafetensorError
from timm.layers.norm import GroupNorm
from torch import Tensor, nn
from torchvision.models import get_model_weights  # type: ignore[import-untyped]
from torchvision.models.vgg import cfgs, make_layers  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.stage_files import below

Norm = Literal["group", "frozen"]

STRIDE = 8
"""Of every body."""

NORM_GROUPS = 8
"""Of group norms; divides the channels of every stage of timm's small ResNets, their tiered stems included."""

_VGG_POOL4, _VGG_CONV5, _VGG_LAST_RELU = 23, (24, 26, 28), 29  # positions in torchvision's VGG16.features
_VGG_GROUPS = (0, 5, 10, 17, 24, 30)  # where the groups conv1 .. conv5 begin, and the end


class Body(NamedTuple):
    """A body and what comes with its weights.

    Attributes:
        network: (B, 3, H, W) to (B, D, ~H / 8, ~W / 8).
        channels: D.
        neck: trained weights of the two fully connected layers behind it, by ``0.weight`` ... ``3.bias`` as in VGG16's
            classifier; empty where there are none.
    """

    network: nn.Module
    channels: int
    neck: dict[str, Tensor]


def build_vgg16(weights: str | None, *, frozen_groups: int = 2, last_relu: bool = False) -> Body:
    """VGG16 without its fourth and fifth pooling, the fifth group of convolutions dilated by 2.

    Args:
        weights: torchvision's name for them, a local file with its names, or None for random ones.
        frozen_groups: of the five groups of convolutions, how many stay as they are, from the first on.
        last_relu: a ReLU follows the last convolution.

    Raises:
        UserError: the weights cannot be had.
    """
    features = make_layers(cfgs["D"], batch_norm=False)
    neck: dict[str, Tensor] = {}
    if weights is None:
        for convolution in (layer for layer in features if isinstance(layer, nn.Conv2d)):
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(convolution.bias)  # type: ignore[arg-type]
    else:
        stored = read_weights(weights) if Path(weights).is_file() else _fetch_vgg16(weights)
        load_weights(features, below(stored, "features."), weights)
        neck = below(stored, "classifier.")
    for position in _VGG_CONV5:
        features[position].dilation = features[position].padding = (2, 2)
    for position in range(_VGG_GROUPS[frozen_groups]):
        features[position].requires_grad_(False)
    end = _VGG_LAST_RELU + 1 if last_relu else _VGG_LAST_RELU
    layers = [layer for position, layer in enumerate(features[:end]) if position != _VGG_POOL4]
    return Body(nn.Sequential(*layers), 512, neck)


def build_stages(name: str, stages: int, norm: Norm, weights: str | None) -> Body:
    """The stem and the first stages of a ResNet of timm, dilated from stride 8 on.

    Group norms train alike on batches of any size. Frozen batch norms go on with the statistics of the weights.

    Args:
        name: e.g. ``resnet18`` or ``resnet10t``.
        stages: 2 to 4; 2 is the least that has stride 8.
        norm: ``group`` or ``frozen``.
        weights: ``timm`` for those of timm (fetched from the network), a local file with its names, or None.

    Raises:
        UserError: there is no such network, or the weights cannot be had.
    """
    if norm == "group" and weights == "timm":
        raise UserError("The weights of timm come with batch norms; set norm to 'frozen', or give other weights.")
    layer: dict[str, Any] = {"norm_layer": partial(GroupNorm, num_groups=NORM_GROUPS)} if norm == "group" else {}
    try:
        network: Any = timm.create_model(
            name, pretrained=weights == "timm", features_only=True, out_indices=(stages,), output_stride=STRIDE, **layer
        )
    except (RuntimeError, TypeError, ValueError, AssertionError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"The backbone {name!r} cannot be built ({reason}); give vgg16 or a ResNet of timm such as resnet18, and "
            "weights that are a local file, or none."
        ) from error
    if weights is not None and weights != "timm":
        load_weights(network, read_weights(weights), weights, ignored=("fc.", "layer"))
    return Body(_Stages(network, frozen_norms=norm == "frozen"), network.feature_info.channels()[-1], {})


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a local ``.safetensors``, or of a state dict that torch saved.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return safetensors.torch.load(Path(path).read_bytes())
        return dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise UserError(
            f"{path}: weights cannot be read ({type(error).__name__}); give a .safetensors, or a state dict saved by "
            "torch."
        ) from error


def load_weights(network: nn.Module, stored: Mapping[str, Tensor], source: str, ignored: tuple[str, ...] = ()) -> None:
    """Put ``stored`` into ``network``; all of the network's tensors must be there.

    Args:
        network: changed in place.
        stored: by the network's names.
        source: named in errors.
        ignored: beginnings of the names of further tensors that may be there.

    Raises:
        UserError: a tensor is missing, too many, or of another shape.
    """
    names = network.state_dict().keys()
    spare = [name for name in stored if name not in names and not name.startswith(ignored or ("\0",))]
    missing = [name for name in names if name not in stored]
    if missing or spare:
        named = f"lacks {missing[0]}" if missing else f"has an unknown {spare[0]}"
        raise UserError(f"{source}: does not fit the network, it {named}; give weights of the same architecture.")
    try:
        network.load_state_dict({name: stored[name] for name in names})
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise UserError(f"{source}: does not fit the network ({reason}); give weights of the same sizes.") from error


class _Stages(nn.Module):
    """The last feature map of timm's feature network; batch norms may be frozen."""

    def __init__(self, network: nn.Module, *, frozen_norms: bool) -> None:
        super().__init__()
        self.network = network
        self._frozen = [m for m in network.modules() if frozen_norms and isinstance(m, nn.BatchNorm2d)]
        for norm in self._frozen:
            norm.requires_grad_(False)

    def train(self, mode: bool = True) -> _Stages:
        """As ever, but frozen norms go on with the statistics they came with."""
        super().train(mode)
        for norm in self._frozen:
            norm.eval()
        return self

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels)[-1]


def _fetch_vgg16(name: str) -> dict[str, Tensor]:
    """Torchvision's weights of VGG16 by name, from its cache or the network."""
    known = get_model_weights("vgg16")
    if name not in known.__members__:
        choices = ", ".join(known.__members__)
        raise UserError(f"VGG16 has no weights {name!r}; give one of {choices}, or a local file.")
    try:
        return known[name].get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"The weights {name} of VGG16 cannot be fetched ({error}); give a local file, or none for random weights."
        ) from error
