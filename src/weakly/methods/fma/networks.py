"""The networks of the second stage, DeepLabV3+ and Mask2Former, behind one interface (fma-wsss, section 6)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weakly.errors import UserError
from weakly.methods.fma.deeplab import DeepLab, DeepLabSettings
from weakly.methods.fma.mask2former import Mask2FormerSettings, build_mask2former, rebuild_mask2former
from weakly.methods.semantic_network import SemanticNetwork


def build_network(settings: DeepLabSettings | Mask2FormerSettings, classes: int) -> SemanticNetwork:
    """A network of C categories and background; random weights are drawn from torch's generator.

    Raises:
        UserError: encoder or pretrained weights are unknown or cannot be fetched.
    """
    if isinstance(settings, DeepLabSettings):
        return DeepLab(settings, classes)
    return build_mask2former(settings, classes)


def rebuild_network(architecture: Mapping[str, Any], classes: int) -> SemanticNetwork:
    """The network that :meth:`SemanticNetwork.architecture` describes, with random weights; fetches nothing.

    Raises:
        UserError: the description is of another version or damaged.
    """
    try:
        stored: Mapping[str, Any] = architecture["settings"]
        settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        if architecture["kind"] == "deeplab":
            return DeepLab(DeepLabSettings(**{**settings, "encoder_weights": None}), classes)
        if architecture["kind"] == "mask2former":
            return rebuild_mask2former(Mask2FormerSettings(**settings), architecture["config"], classes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The network's description is damaged ({error}); copy the student folder again.") from error
    raise UserError(f"There is no network {architecture['kind']!r}; use a version of weakly that has it.")
