"""A prompter behind an image encoder of its own (WPS-SAM, Table A, "fine-tuned").

Symbols: B images, S side of the segmenter's frame, (C_e, h, w) of its embedding, C categories.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weakly.errors import UserError
from weakly.foundation.promptable import PromptableSegmenter
from weakly.foundation.sam import SamSegmenter
from weakly.methods.baselines.fine_tuned.settings import FineTunedSettings
from weakly.methods.wps.learner import prompter_sizes
from weakly.methods.wps.model import Prompter


class FineTunedPrompter(Prompter):
    """A prompter with an image encoder that trains with it: ``embed`` images, then ask it as any prompter.

    Memory of a training step beyond the weights: what the encoder computes for B images; with checkpointing, what
    enters its blocks and the inside of the largest block.

    Args:
        image_encoder: (B, 3, S, S) to an output whose ``last_hidden_state`` is (B, C_e, h, w).
        checkpointing: see :func:`checkpoint_blocks`.
        **sizes: of the prompter, which fits the encoder.
    """

    def __init__(self, image_encoder: nn.Module, *, checkpointing: bool = False, **sizes: Any) -> None:
        super().__init__(**sizes)
        self.image_encoder = image_encoder
        if checkpointing:
            checkpoint_blocks(image_encoder)

    def train(self, mode: bool = True) -> FineTunedPrompter:
        """Training mode, but for the encoder's batch norms, if it has any: they keep the statistics they came with.

        Batches are small, and checkpointing would count every batch twice.
        """
        super().train(mode)
        for module in self.image_encoder.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return self

    def embed(self, images: Tensor) -> Tensor:
        """Preprocessed images (B, 3, S, S) to embeddings (B, C_e, h, w) float32."""
        embeddings: Tensor = self.image_encoder(images).last_hidden_state
        return embeddings.float()


def build_student(
    settings: FineTunedSettings, classes: int, segmenter: PromptableSegmenter, *, checkpointing: bool = False
) -> FineTunedPrompter:
    """A student whose encoder is a copy of the segmenter's, and whose prompter has random weights.

    Raises:
        UserError: the segmenter is no SAM.
    """
    encoder = copy.deepcopy(sam(segmenter).model.vision_encoder).requires_grad_(True)
    student = FineTunedPrompter(encoder, checkpointing=checkpointing, **prompter_sizes(settings, classes, segmenter))
    return student.train()


def tuned_segmenter(segmenter: PromptableSegmenter, image_encoder: nn.Module) -> SamSegmenter:
    """A frozen segmenter that encodes with ``image_encoder`` and has copies of all other weights of ``segmenter``.

    Its fingerprint is its own, so no feature store of the other one serves it.

    Raises:
        UserError: the segmenter is no SAM.
    """
    frozen = sam(segmenter)
    # What deepcopy believes to have copied already, it puts in the place of the original.
    model = copy.deepcopy(frozen.model, {id(frozen.model.vision_encoder): image_encoder})
    return SamSegmenter(model, frozen.name, frozen.pad, frozen.chunk)


def sam(segmenter: PromptableSegmenter) -> SamSegmenter:
    """The segmenter as one whose embedding is the output of its ``vision_encoder`` and nothing else.

    Raises:
        UserError: it is of another family.
    """
    if type(segmenter) is not SamSegmenter:
        raise UserError(
            f"The image encoder of segmenter {segmenter.name!r} cannot be fine-tuned, only a SAM's or"
            " MobileSAM's can; set settings.segmenter to one of these, e.g. facebook/sam-vit-base, or method to wps."
        )
    return segmenter


def checkpoint_blocks(encoder: nn.Module) -> None:
    """Let every block of an encoder forget what it computed and compute it again in the backward pass.

    The names of the weights stay. The library's own switch serves its transformers alone; this serves the bundled
    convolutional encoder, too.
    """
    for block in blocks(encoder):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The repeated parts of a network: the elements of its outermost module lists, single layers left out."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.children()))
        else:
            yield from blocks(child)
