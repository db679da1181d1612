"""The training side of a prompter of regions: what Lightning drives."""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.wps.learner import PromptLearner, cell_tokens
from weakly.methods.wps.region_losses import RegionLoss, region_loss
from weakly.methods.wps.regions import RegionPrompter
from weakly.methods.wps.settings import WpsSettings
from weakly.methods.wps.targets import WpsBatch


class RegionLearner(PromptLearner):
    """Trains a prompter of regions on stored embeddings and teacher tokens.

    Attributes:
        student: the prompter, the only sub-module.
    """

    student: RegionPrompter

    def loss(self, batch: WpsBatch) -> RegionLoss:
        """Propose regions, sample some, and compare what the student says of them with the parts they lie on."""
        truth = truth_of(batch)
        features = self.student.pyramid(batch.embeddings)
        rois, anchors = self.student.propose(features, truth)
        sampled = self.student.sample(rois, truth)
        return region_loss(
            self.student.examine(features, sampled.rois),
            sampled,
            batch.tokens,
            anchors["loss_objectness"],
            anchors["loss_rpn_box_reg"],
            lambda_cls=self.settings.lambda_cls,
            lambda_reg=self.settings.lambda_reg,
            lambda_box=self.settings.lambda_box,
        )

    def training_step(self, batch: WpsBatch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss."""
        loss = self.loss(batch)
        self._log("train", loss, len(batch.counts))
        return loss.total

    def validation_step(self, batch: WpsBatch, batch_index: int) -> None:
        """Logs the same loss on other images; which regions are sampled depends on the number of the batch alone."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(batch_index)
            self._log("val", self.loss(batch), len(batch.counts))

    def _log(self, stage: str, loss: RegionLoss, batch_size: int) -> None:
        values = {name: value for name, value in loss._asdict().items() if name != "total"}
        self.log_terms(stage, {"loss": loss.total.detach(), **values}, batch_size)


def truth_of(batch: WpsBatch) -> list[dict[str, Tensor]]:
    """The boxes and labels of every image as torchvision wants them: category k has label k + 1."""
    return [
        {"boxes": prompts[:count, :4], "labels": labels[:count] + 1}
        for prompts, labels, count in zip(batch.prompts, batch.labels, batch.counts, strict=True)
    ]


def build_region_prompter(settings: WpsSettings, classes: int, segmenter: PromptableSegmenter) -> RegionPrompter:
    """A prompter of regions with random weights that fits a segmenter."""
    _, height, width = segmenter.embedding_shape
    return RegionPrompter(
        embedding_channels=segmenter.student_channels,
        grid=(height, width),
        side=segmenter.side,
        token_width=segmenter.token_width,
        classes=classes,
        tokens=segmenter.token_counts[settings.supervision],
        places=None if settings.position == "zeros" else cell_tokens(segmenter, 0),
        **asdict(settings.regions),
    )
