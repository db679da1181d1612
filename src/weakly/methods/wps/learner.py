"""The training side of WPS-SAM: what Lightning drives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import Learner
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.methods.wps.losses import Loss, match, prompt_loss
from weakly.methods.wps.model import Prompter, Prompts, downsampled
from weakly.methods.wps.settings import WpsSettings
from weakly.methods.wps.targets import WpsBatch, WpsData
from weakly.vocabulary import Vocabulary


class WpsLearner(Learner):
    """Trains a prompter on stored embeddings and teacher tokens; the segmenter itself is not needed.

    Attributes:
        student: the prompter, the only sub-module.
        settings: of the method.
        vocabulary: C categories.
        segmenter_fingerprint: of the segmenter whose embeddings and tokens the student is trained on.
    """

    def __init__(
        self,
        student: Prompter,
        settings: WpsSettings,
        vocabulary: Vocabulary,
        optimisation: Optimisation,
        total_steps: int,
        segmenter_fingerprint: str = "",
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.vocabulary = vocabulary
        self.optimisation = optimisation
        self.total_steps = total_steps
        self.segmenter_fingerprint = segmenter_fingerprint

    def loss(self, batch: WpsBatch) -> Loss:
        """Match the last layer's prompts to the teacher's and compare them."""
        return self._compare(self.student(batch.embeddings), batch)

    def training_loss(self, batch: WpsBatch) -> tuple[Tensor, Loss]:
        """What is minimised, and the loss of the last layer alone.

        With ``aux_weight`` every earlier decoder layer answers too and is matched for itself (DETR's auxiliary
        losses; not in WPS-SAM): their mean is added with that weight.
        """
        aux_weight = self.settings.aux_weight
        states = self.student.states(batch.embeddings)
        last = self._compare(self.student.answer(states[-1]), batch)
        if not aux_weight or len(states) == 1:
            return last.total, last
        earlier = len(states) - 1
        repeated = batch.repeat(earlier)
        aux = self._compare(self.student.answer(states[:-1].flatten(0, 1)), repeated)
        return last.total + aux_weight * aux.total, last

    def _compare(self, prompts: Prompts, batch: WpsBatch) -> Loss:
        settings = self.settings
        matches = match(prompts, batch.labels, batch.tokens, batch.counts, alpha=settings.alpha, beta=settings.beta)
        return prompt_loss(
            prompts,
            batch.labels,
            batch.tokens,
            matches,
            lambda_cls=settings.lambda_cls,
            lambda_reg=settings.lambda_reg,
            eos_weight=settings.eos_weight,
            reg_norm=settings.reg_norm,
        )

    def training_step(self, batch: WpsBatch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss; the matching is the only transfer to the host."""
        total, loss = self.training_loss(batch)
        self._log("train", loss, len(batch.counts))
        return total

    def validation_step(self, batch: WpsBatch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs the same loss on other images."""
        self._log("val", self.loss(batch), len(batch.counts))

    def _log(self, stage: str, loss: Loss, batch_size: int) -> None:
        values = {
            f"{stage}/loss": loss.total.detach(),
            f"{stage}/classification": loss.classification,
            f"{stage}/regression": loss.regression,
        }
        self.log_dict(
            values, batch_size=batch_size, on_step=stage == "train", on_epoch=stage == "val", sync_dist=stage == "val"
        )

    def configure_optimizers(self) -> Any:
        """One group with every tensor of the student; the learning rate changes after every update."""
        optimizer = build_optimizer(self.student.parameters(), self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: WpsData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`WpsBatch`; mirrored images come in only where images are shuffled, i.e. in training."""
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=data.variants if shuffle else 1,
        )
        return EpochLoader(data, sampler, batch_size=batch_size)


def build_prompter(settings: WpsSettings, classes: int, segmenter: PromptableSegmenter) -> Prompter:
    """A prompter with random weights that fits a segmenter."""
    channels, height, width = segmenter.embedding_shape
    return Prompter(
        embedding_channels=channels,
        grid=(height, width),
        token_width=segmenter.token_width,
        classes=classes,
        queries=settings.queries,
        tokens=settings.tokens,
        width=settings.width,
        heads=settings.heads,
        layers=settings.layers,
        ffn=settings.ffn,
        downsamples=settings.downsamples,
        dropout=settings.dropout,
        places=None if settings.position == "zeros" else cell_tokens(segmenter, settings.downsamples),
    )


@torch.no_grad()
def cell_tokens(segmenter: PromptableSegmenter, downsamples: int) -> Tensor:
    """(K, D) tokens of the centres of the downsampled embedding's K cells, row by row, their mean subtracted.

    The mean holds what marks a token as a point; what is left is the segmenter's encoding of the place.
    """
    rows, columns = downsampled(segmenter.embedding_shape[1:], downsamples)
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    centres = torch.stack([x / columns, y / rows], -1).view(-1, 2) * segmenter.side
    tokens = segmenter.point_tokens(centres.to(segmenter.device))[:, 0].float().cpu()
    return tokens - tokens.mean(0)
