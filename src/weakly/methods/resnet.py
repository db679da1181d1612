"""torchvision's ResNets with a feature pyramid, with random or pretrained weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights  # type: ignore[import-untyped]
from torchvision.models.detection.backbone_utils import BackboneWithFPN  # type: ignore[import-untyped]
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]

from weakly.errors import UserError

Norm = Literal["group", "batch"]

LEVELS = 5
"""Maps of the feature pyramid."""


def resnet_pyramid(
    name: str,
    width: int,
    *,
    weights: str | None = None,
    frozen_stages: int = 2,
    norm: Norm = "group",
    fetch: bool = True,
) -> BackboneWithFPN:
    """A ResNet with a feature pyramid: maps ``0`` to ``3`` at strides 4 to 32 and ``pool`` at stride 64.

    Args:
        name: of a ResNet of torchvision.
        width: channels of the maps; a multiple of 32.
        weights: of the ResNet: torchvision's name for them, or a ``.pth`` or ``.safetensors`` file. None: random ones.
        frozen_stages: of stem and four stages, how many a pretrained ResNet keeps as they are, from the stem on.
        norm: of a ResNet with random weights and of its pyramid; a pretrained one has frozen batch norm and no norm
            in the pyramid.
        fetch: load ``weights``; else the ResNet waits for a state dict.

    Raises:
        UserError: there are no such weights, or they cannot be fetched.
    """
    pretrained = weights is not None
    layer = FrozenBatchNorm2d if pretrained else _NORMS[norm]
    resnet: Any = get_model(name, weights=None, norm_layer=layer)
    if weights is not None and fetch:
        _load(resnet, name, weights)
    stages = [[resnet.conv1, resnet.bn1], [resnet.layer1], [resnet.layer2], [resnet.layer3], [resnet.layer4]]
    for stage in stages[: frozen_stages if pretrained else 0]:
        for part in stage:
            part.requires_grad_(False)
    return BackboneWithFPN(
        resnet,
        return_layers={f"layer{level + 1}": str(level) for level in range(4)},
        in_channels_list=[resnet.fc.in_features // 8 * 2**level for level in range(4)],
        out_channels=width,
        norm_layer=None if pretrained else layer,
    )


def group_norm(channels: int) -> nn.GroupNorm:
    """Of 32 groups: what stands in for batch norm where batches are small and weights random."""
    return nn.GroupNorm(32, channels)


def _load(resnet: nn.Module, name: str, weights: str) -> None:
    """Weights into a ResNet but for its classifier."""
    state = _state_of(name, weights)
    loaded = resnet.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")}, strict=False)
    absent = [key for key in loaded.missing_keys if not key.startswith("fc.")]
    if absent or loaded.unexpected_keys:
        wrong = f"lack {absent[0]}" if absent else f"have {loaded.unexpected_keys[0]}"
        raise UserError(f"The weights {weights!r} {wrong}; give those of torchvision's {name}.")


def _state_of(name: str, weights: str) -> dict[str, Tensor]:
    path = Path(weights)
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        if path.suffix in {".pth", ".pt"}:
            return dict(torch.load(path, map_location="cpu", weights_only=True))
        state: dict[str, Tensor] = get_model_weights(name)[weights].get_state_dict(progress=False, check_hash=True)
    except KeyError as error:
        known = ", ".join(get_model_weights(name).__members__)
        raise UserError(
            f"There are no weights {weights!r} for {name}; give {known}, or a .pth or .safetensors file."
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"The weights {weights!r} cannot be loaded ({reason}); check the file or the name.") from error
    return state


_NORMS: dict[str, Callable[[int], nn.Module]] = {"group": group_norm, "batch": nn.BatchNorm2d}
