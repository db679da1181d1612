"""The training side of the anchor-based prompter: what Lightning drives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import Learner
from weakly.methods.baselines.anchor_prompter.losses import AnchorLoss, anchor_loss
from weakly.methods.baselines.anchor_prompter.model import AnchorPrompter
from weakly.methods.baselines.anchor_prompter.settings import AnchorPrompterSettings
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.methods.wps.learner import cell_tokens
from weakly.methods.wps.targets import WpsBatch, WpsData
from weakly.vocabulary import Vocabulary


class AnchorPrompterLearner(Learner):
    """Trains an anchor-based prompter on what WPS-SAM trains on: stored embeddings and teacher tokens.

    Attributes:
        student: the prompter, the only sub-module.
        settings: of the method.
        vocabulary: C categories.
        segmenter_fingerprint: of the segmenter whose embeddings and tokens the student is trained on.
    """

    def __init__(
        self,
        student: AnchorPrompter,
        settings: AnchorPrompterSettings,
        vocabulary: Vocabulary,
        optimisation: Optimisation,
        total_steps: int,
        segmenter_fingerprint: str,
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.vocabulary = vocabulary
        self.optimisation = optimisation
        self.total_steps = total_steps
        self.segmenter_fingerprint = segmenter_fingerprint

    def loss(self, batch: WpsBatch) -> AnchorLoss:
        """Propose regions, sample some, and compare what the student says of them with the parts they lie on."""
        truth = truth_of(batch)
        features = self.student.pyramid(batch.embeddings)
        rois, anchors = self.student.propose(features, truth)
        sampled = self.student.sample(rois, truth)
        return anchor_loss(
            self.student.examine(features, sampled.rois),
            sampled,
            batch.tokens,
            anchors["loss_objectness"],
            anchors["loss_rpn_box_reg"],
            lambda_cls=self.settings.lambda_cls,
            lambda_reg=self.settings.lambda_reg,
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

    def _log(self, stage: str, loss: AnchorLoss, batch_size: int) -> None:
        values = {f"{stage}/{name}": value for name, value in loss._asdict().items() if name != "total"}
        values[f"{stage}/loss"] = loss.total.detach()
        self.log_dict(
            values, batch_size=batch_size, on_step=stage == "train", on_epoch=stage == "val", sync_dist=stage == "val"
        )

    def configure_optimizers(self) -> Any:
        """One group with every tensor of the student; the learning rate changes after every update."""
        optimizer = build_optimizer(self.student.parameters(), self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: WpsData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`~weakly.methods.wps.targets.WpsBatch`; mirrored images come in only in training."""
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=data.variants if shuffle else 1,
        )
        return EpochLoader(data, sampler, batch_size=batch_size)


def truth_of(batch: WpsBatch) -> list[dict[str, Tensor]]:
    """The boxes and labels of every image as torchvision wants them: category k has label k + 1."""
    return [
        {"boxes": prompts[:count, :4], "labels": labels[:count] + 1}
        for prompts, labels, count in zip(batch.prompts, batch.labels, batch.counts, strict=True)
    ]


def build_prompter(settings: AnchorPrompterSettings, classes: int, segmenter: PromptableSegmenter) -> AnchorPrompter:
    """An anchor-based prompter with random weights that fits a segmenter."""
    _, height, width = segmenter.embedding_shape
    return AnchorPrompter(
        embedding_channels=segmenter.student_channels,
        grid=(height, width),
        side=segmenter.side,
        token_width=segmenter.token_width,
        classes=classes,
        tokens=segmenter.token_counts[settings.supervision],
        width=settings.width,
        hidden=settings.hidden,
        anchors=settings.anchors,
        ratios=settings.ratios,
        anchors_per_image=settings.anchors_per_image,
        pre_nms=settings.pre_nms,
        proposals=settings.proposals,
        rois=settings.rois,
        nms=settings.nms,
        detections=settings.detections,
        places=None if settings.position == "zeros" else cell_tokens(segmenter, 0),
    )
