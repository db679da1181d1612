"""The training side of WPS-SAM: what Lightning drives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import Learner
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.methods.view_learner import VIEWS
from weakly.methods.wps.boxes import boxes_of_prompts
from weakly.methods.wps.losses import Loss, Matches, mask_loss, match, prompt_loss
from weakly.methods.wps.model import Prompter, Prompts, downsampled
from weakly.methods.wps.settings import WpsSettings
from weakly.methods.wps.targets import WpsBatch, WpsData
from weakly.methods.wps.views import JitteredViews
from weakly.vocabulary import Vocabulary


class PromptLearner(Learner):
    """What learners of all prompters share: data, optimiser and log.

    Attributes:
        student: the prompter, the only sub-module.
        settings: of the method.
        vocabulary: C categories.
        segmenter_fingerprint: of the segmenter whose embeddings and tokens the student is trained on.
    """

    def __init__(
        self,
        student: nn.Module,
        settings: WpsSettings,
        vocabulary: Vocabulary,
        optimisation: Optimisation,
        total_steps: int,
        segmenter: PromptableSegmenter,
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.vocabulary = vocabulary
        self.optimisation = optimisation
        self.total_steps = total_steps
        self.segmenter_fingerprint = segmenter.fingerprint
        self._segmenter = (segmenter,)  # in a tuple: it is frozen, and no sub-module

    def log_terms(self, stage: str, terms: Mapping[str, Tensor], batch_size: int) -> None:
        """Log the terms of a loss under ``stage/``: per update in training, per epoch in validation."""
        self.log_dict(
            {f"{stage}/{name}": value for name, value in terms.items()},
            batch_size=batch_size,
            on_step=stage == "train",
            on_epoch=stage == "val",
            sync_dist=stage == "val",
        )

    def configure_optimizers(self) -> Any:
        """One group with every tensor of the student; the learning rate changes after every update."""
        optimizer = build_optimizer(self.student.parameters(), self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: WpsData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`WpsBatch`; mirrored and moved views only where images are shuffled, i.e. in training."""
        views: WpsData | JitteredViews = data
        variants = data.variants
        if shuffle and self.settings.jitter.moves:
            views, variants = JitteredViews.of(data, self.settings.jitter, seed), VIEWS
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=variants if shuffle else 1,
        )
        return EpochLoader(views, sampler, batch_size=batch_size)


class WpsLearner(PromptLearner):
    """Trains a prompter of queries on stored embeddings and teacher tokens; a mask loss needs the segmenter's decoder.

    Attributes:
        student: the prompter, the only sub-module.
    """

    student: Prompter

    def loss(self, batch: WpsBatch) -> Loss:
        """Match the last layer's prompts to the teacher's and compare them."""
        return self._compare(self.student(batch.embeddings), batch)

    def training_loss(self, batch: WpsBatch) -> tuple[Tensor, Loss]:
        """What is minimised, and the loss of the last layer alone.

        With ``aux_weight`` every earlier decoder layer answers too and is matched for itself (DETR's auxiliary
        losses; not in WPS-SAM): their mean is added with that weight. Masks are ours too.
        """
        settings = self.settings
        states = self.student.states(batch.embeddings)
        prompts = self.student.answer(states[-1])
        matches = self._match(prompts, batch)
        last = self._loss(prompts, batch, matches)
        total = last.total
        if settings.aux_weight and len(states) > 1:
            earlier = self.student.answer(states[:-1].flatten(0, 1))
            total = total + settings.aux_weight * self._compare(earlier, batch.repeat(len(states) - 1)).total
        if settings.lambda_mask:
            segmenter = self._segmenter[0].to(prompts.tokens.device)
            masks = mask_loss(segmenter, batch.embeddings, prompts.tokens, batch.tokens, matches, settings.mask_pairs)
            total, last = total + settings.lambda_mask * masks, last._replace(masks=masks.detach())
        return total, last

    def _match(self, prompts: Prompts, batch: WpsBatch) -> Matches:
        settings = self.settings
        return match(
            prompts,
            batch.labels,
            batch.tokens,
            batch.counts,
            alpha=settings.alpha,
            beta=settings.beta,
            boxes=self._boxes(batch),
            gamma=settings.gamma,
        )

    def _boxes(self, batch: WpsBatch) -> Tensor | None:
        """(B, M, 4) boxes that the student's own are compared with, if it has any."""
        return boxes_of_prompts(batch.prompts, self._segmenter[0].side) if self.settings.lambda_box else None

    def _compare(self, prompts: Prompts, batch: WpsBatch) -> Loss:
        return self._loss(prompts, batch, self._match(prompts, batch))

    def _loss(self, prompts: Prompts, batch: WpsBatch, matches: Matches) -> Loss:
        settings = self.settings
        return prompt_loss(
            prompts,
            batch.labels,
            batch.tokens,
            matches,
            lambda_cls=settings.lambda_cls,
            lambda_reg=settings.lambda_reg,
            eos_weight=settings.eos_weight,
            reg_norm=settings.reg_norm,
            boxes=self._boxes(batch),
            lambda_box=settings.lambda_box,
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
        terms = {"loss": loss.total.detach(), "classification": loss.classification, "regression": loss.regression}
        further = {"boxes": loss.boxes, "masks": loss.masks}
        known = {name: value for name, value in further.items() if value is not None}
        self.log_terms(stage, {**terms, **known}, batch_size)


def build_prompter(settings: WpsSettings, classes: int, segmenter: PromptableSegmenter) -> Prompter:
    """A prompter with random weights that fits a segmenter."""
    return Prompter(**prompter_sizes(settings, classes, segmenter))


def prompter_sizes(settings: WpsSettings, classes: int, segmenter: PromptableSegmenter) -> dict[str, Any]:
    """The arguments of a :class:`~weakly.methods.wps.model.Prompter` that fits a segmenter."""
    _, height, width = segmenter.embedding_shape
    return {
        "embedding_channels": segmenter.student_channels,
        "grid": (height, width),
        "token_width": segmenter.token_width,
        "classes": classes,
        "queries": settings.queries,
        "tokens": segmenter.token_counts[settings.supervision],
        "width": settings.width,
        "heads": settings.heads,
        "layers": settings.layers,
        "ffn": settings.ffn,
        "downsamples": settings.downsamples,
        "dropout": settings.dropout,
        "boxes": settings.lambda_box > 0,
        "places": None if settings.position == "zeros" else cell_tokens(segmenter, settings.downsamples),
    }


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
