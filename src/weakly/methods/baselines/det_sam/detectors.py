"""The four part detectors, built from settings, or again from what a student folder says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.baselines.det_sam.detr import EmbeddingDetr, build_resnet_detr, rebuild_resnet_detr
from weakly.methods.baselines.det_sam.model import Detector, FasterRcnn
from weakly.methods.baselines.det_sam.settings import DetSamSettings
from weakly.methods.resnet import resnet_pyramid
from weakly.methods.simple_pyramid import SimplePyramid
from weakly.methods.wps.learner import cell_tokens
from weakly.methods.wps.model import Prompter


def build_detector(settings: DetSamSettings, classes: int, segmenter: PromptableSegmenter) -> Detector:
    """A detector of C categories; random weights are drawn from torch's generator.

    Args:
        settings: of the method.
        classes: C.
        segmenter: whose embeddings it looks at, if it looks at embeddings.

    Raises:
        UserError: there are no such pretrained weights, or they cannot be loaded.
    """
    if settings.detector == "detr":
        if settings.on_embeddings:
            return _embedding_detr(settings, classes, segmenter)
        return build_resnet_detr(settings, classes)
    return _faster_rcnn(settings, classes, segmenter, fetch=True)


def rebuild_detector(
    settings: DetSamSettings, described: Mapping[str, Any], classes: int, segmenter: PromptableSegmenter
) -> Detector:
    """The detector that said ``described`` of itself, with random weights; fetches nothing."""
    if settings.detector == "faster-rcnn":
        return _faster_rcnn(settings, classes, segmenter, fetch=False)
    if settings.on_embeddings:
        return _embedding_detr(settings, classes, segmenter)
    return rebuild_resnet_detr(settings, described["detr"], classes)


def _faster_rcnn(settings: DetSamSettings, classes: int, segmenter: PromptableSegmenter, *, fetch: bool) -> FasterRcnn:
    sizes = settings.faster_rcnn
    if settings.on_embeddings:
        pyramid = SimplePyramid(segmenter.student_channels, sizes.width, sizes.scales)
        return FasterRcnn(pyramid, segmenter.side, settings, classes)
    resnet = resnet_pyramid(
        settings.backbone,
        sizes.width,
        weights=settings.weights,
        frozen_stages=sizes.frozen_stages,
        norm=sizes.norm,
        fetch=fetch,
    )
    return FasterRcnn(resnet, settings.side, settings, classes)


def _embedding_detr(settings: DetSamSettings, classes: int, segmenter: PromptableSegmenter) -> EmbeddingDetr:
    sizes = settings.detr
    _, height, width = segmenter.embedding_shape
    prompter = Prompter(
        embedding_channels=segmenter.student_channels,
        grid=(height, width),
        token_width=4,
        classes=classes,
        queries=sizes.queries,
        tokens=1,
        width=sizes.width,
        heads=sizes.heads,
        layers=sizes.layers,
        ffn=sizes.ffn,
        downsamples=sizes.downsamples,
        dropout=sizes.dropout,
        places=None if sizes.position == "zeros" else cell_tokens(segmenter, sizes.downsamples),
    )
    return EmbeddingDetr(prompter, segmenter.side, settings)
