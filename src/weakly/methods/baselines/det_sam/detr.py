"""DETR as a part detector: on images as transformers has it, on the segmenter's embeddings as WPS-SAM's prompter.

Symbols as in :mod:`weakly.methods.baselines.det_sam.model` and :mod:`weakly.methods.baselines.det_sam.losses`. Boxes
are predicted in shares of the whole square frame, padding included, and padding is attended to.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.baselines.det_sam.losses import Answers, set_loss
from weakly.methods.baselines.det_sam.model import Detector, Found
from weakly.methods.baselines.det_sam.settings import DetSamSettings
from weakly.methods.baselines.det_sam.targets import DetSamBatch
from weakly.methods.resnet import group_norm
from weakly.methods.wps.model import Prompter

TRAINED_STAGES = ("layer2", "layer3", "layer4")
"""Of a pretrained ResNet; the others stay as they are, as in DETR."""

NEW_LAYER = "class_labels_classifier."
"""Beginning of the names of what a pretrained DETR has for other categories."""


class SetDetector(Detector):
    """A detector with S queries, each of which answers for one part or for none.

    Args:
        side: of the frame in pixels.
        settings: of the method.
    """

    def __init__(self, side: int, settings: DetSamSettings) -> None:
        super().__init__()
        self.side = side
        self.settings = settings

    @abstractmethod
    def answers(self, inputs: Tensor) -> Answers:
        """What the queries say about the B inputs, after every decoder layer."""

    def losses(self, batch: DetSamBatch) -> dict[str, Tensor]:
        """``classification``, ``l1`` and ``giou``, summed over the decoder layers."""
        sizes = self.settings.detr
        boxes = box_convert(batch.boxes / self.side, "xyxy", "cxcywh")
        answers = self.answers(batch.inputs)
        weights = {"eos_weight": sizes.eos_weight, "l1": sizes.l1, "giou": sizes.giou}
        return set_loss(answers, batch.labels, boxes, batch.counts, **weights)

    @torch.no_grad()
    def detect(self, inputs: Tensor) -> Found:
        """The likeliest category of every query, if it is likely enough; the best ones of every image."""
        answers = self.answers(inputs)
        scores, labels = answers.logits[-1].float().softmax(-1)[..., :-1].max(-1)
        best, query = scores.topk(min(self.settings.detections, scores.shape[1]))
        image, rank = (best >= self.settings.min_score).nonzero().unbind(1)
        chosen = query[image, rank]
        boxes = box_convert(answers.boxes[-1].float(), "cxcywh", "xyxy") * self.side
        return Found(image, boxes[image, chosen], labels[image, chosen], best[image, rank])


class EmbeddingDetr(SetDetector):
    """WPS-SAM's prompter with boxes in place of tokens: the two students differ in what they are asked for.

    Args:
        prompter: with one "token" of width 4, the box before its sigmoid.
        side: of the segmenter's frame in pixels.
        settings: of the method.
    """

    def __init__(self, prompter: Prompter, side: int, settings: DetSamSettings) -> None:
        super().__init__(side, settings)
        self.prompter = prompter

    def answers(self, inputs: Tensor) -> Answers:
        """Embeddings (B, C, h, w) to answers."""
        states = self.prompter.states(inputs)
        said = self.prompter.answer(states.flatten(0, 1))
        logits, boxes = said.logits, said.tokens[..., 0, :].sigmoid()
        return Answers(logits.unflatten(0, states.shape[:2]), boxes.unflatten(0, states.shape[:2]))


class ResNetDetr(SetDetector):
    """DETR on images.

    Args:
        net: a ``DetrForObjectDetection`` of C labels that returns what every decoder layer says.
        side: of the frame in pixels.
        settings: of the method.
    """

    backbone: ClassVar[str] = "net.model.backbone."

    def __init__(self, net: Any, side: int, settings: DetSamSettings) -> None:
        super().__init__(side, settings)
        self.net = net

    def answers(self, inputs: Tensor) -> Answers:
        """Images (B, 3, S, S) to answers."""
        states = self.net.model(inputs).intermediate_hidden_states
        return Answers(self.net.class_labels_classifier(states), self.net.bbox_predictor(states).sigmoid())

    def described(self) -> Mapping[str, Any]:
        """The library's own configuration, which has the sizes of a pretrained DETR too."""
        return {"detr": self.net.config.to_dict()}


def build_resnet_detr(settings: DetSamSettings, classes: int) -> ResNetDetr:
    """DETR with random weights and group norm, or a pretrained one with a new class head and frozen batch norm.

    Raises:
        UserError: the pretrained one cannot be loaded.
    """
    from transformers import DetrConfig, DetrForObjectDetection  # noqa: PLC0415 - slow to import

    if settings.weights is not None:
        return ResNetDetr(_pretrained(settings.weights, classes), settings.side, settings)
    sizes = settings.detr
    config = DetrConfig(
        backbone=settings.backbone,
        num_labels=classes,
        num_queries=sizes.queries,
        d_model=sizes.width,
        encoder_layers=sizes.layers,
        decoder_layers=sizes.layers,
        encoder_ffn_dim=sizes.ffn,
        decoder_ffn_dim=sizes.ffn,
        encoder_attention_heads=sizes.heads,
        decoder_attention_heads=sizes.heads,
        dropout=sizes.dropout,
        auxiliary_loss=True,
    )
    net = DetrForObjectDetection(config)
    _learn_norms(net)
    return ResNetDetr(net, settings.side, settings)


def rebuild_resnet_detr(settings: DetSamSettings, config: Mapping[str, Any], classes: int) -> ResNetDetr:
    """DETR of a stored configuration, with random weights; fetches nothing.

    Raises:
        ValueError: it is of another number of categories.
    """
    from transformers import DetrConfig, DetrForObjectDetection  # noqa: PLC0415 - slow to import

    described = DetrConfig.from_dict(dict(config))
    if described.num_labels != classes:
        raise ValueError(f"it has {described.num_labels} outputs, not {classes}")
    net = DetrForObjectDetection(described)
    if settings.weights is None:
        _learn_norms(net)
    return ResNetDetr(net, settings.side, settings)


def _pretrained(name: str, classes: int) -> Any:
    from transformers import DetrForObjectDetection  # noqa: PLC0415 - slow to import

    try:
        net, loading = DetrForObjectDetection.from_pretrained(
            name, num_labels=classes, auxiliary_loss=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{name!r} cannot be loaded as a DETR ({str(error).splitlines()[0]}); give the hub id or the folder of one."
        ) from error
    replaced = {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}
    absent = sorted(key for key in replaced if not key.startswith(NEW_LAYER))
    if absent:  # the library would go on with random weights
        raise UserError(f"{name!r} is no DETR: its weights lack {absent[0]}; give the hub id or the folder of one.")
    for key, parameter in net.model.backbone.named_parameters():
        parameter.requires_grad_(any(stage in key for stage in TRAINED_STAGES))
    return net


def _learn_norms(net: nn.Module) -> None:
    """Group norm in place of the library's frozen batch norm, which normalises nothing where weights are random."""
    from transformers.models.detr.modeling_detr import DetrFrozenBatchNorm2d  # noqa: PLC0415 - slow to import

    frozen = [name for name, module in net.named_modules() if isinstance(module, DetrFrozenBatchNorm2d)]
    for name in frozen:
        channels = len(net.get_submodule(name).get_buffer("weight"))
        net.set_submodule(name, group_norm(channels))
    net.requires_grad_(True)
