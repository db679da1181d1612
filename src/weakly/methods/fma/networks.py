"""The networks of the second stage behind one interface: DeepLabV3+, Mask2Former (fma-wsss, section 6), a pyramid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weakly.errors import UserError
from weakly.methods.embedding import EmbeddingSource
from weakly.methods.fma.deeplab import DeepLab, DeepLabSettings
from weakly.methods.fma.mask2former import Mask2FormerSettings, build_mask2former, rebuild_mask2former
from weakly.methods.fma.pyramid import PyramidNetwork, PyramidSettings
from weakly.methods.semantic_network import SemanticNetwork

NetworkSettings = DeepLabSettings | Mask2FormerSettings | PyramidSettings


def build_network(settings: NetworkSettings, classes: int, source: EmbeddingSource | None = None) -> SemanticNetwork:
    """A network of C categories and background; random weights are drawn from torch's generator.

    Args:
        settings: of one of the networks.
        classes: C.
        source: whose embeddings a pyramid looks at.

    Raises:
        UserError: encoder or pretrained weights are unknown or cannot be fetched.
        ValueError: a pyramid is to look at nothing.
    """
    if isinstance(settings, DeepLabSettings):
        return DeepLab(settings, classes)
    if isinstance(settings, Mask2FormerSettings):
        return build_mask2former(settings, classes)
    if source is None:
        raise ValueError("a pyramid looks at embeddings; say whose")
    return PyramidNetwork(settings, classes, source)


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
        if architecture["kind"] == "pyramid":
            return PyramidNetwork(PyramidSettings(**settings), classes, EmbeddingSource(**architecture["source"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The network's description is damaged ({error}); copy the student folder again.") from error
    raise UserError(f"There is no network {architecture['kind']!r}; use a version of weakly that has it.")
