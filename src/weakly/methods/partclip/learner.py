"""The training side of PartCLIPSeg: what Lightning drives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weakly.foundation.clipseg import ClipSeg
from weakly.methods.base import Learner
from weakly.methods.optimisation import (
    Optimisation,
    build_optimizer,
    build_schedule,
    embedding_parameters,
    norm_parameters,
    parameter_groups,
)
from weakly.methods.partclip.attention import region_attention
from weakly.methods.partclip.attention_losses import attention_loss
from weakly.methods.partclip.losses import mask_loss, phrase_loss, total_loss
from weakly.methods.partclip.model import ClipSegBaseline, PartClipSeg
from weakly.methods.partclip.settings import PartClipSettings
from weakly.methods.partclip.taps import frozen_encoder
from weakly.methods.partclip.targets import PartBatch, PartData, seen_classes
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.vocabulary import Vocabulary


class PartClipLearner(Learner):
    """Trains a student on stored taps and label maps; of the frozen towers the text side alone is run.

    Attributes:
        student: the only sub-module.
        settings: of the method.
        vocabulary: C categories, unseen ones too.
        seen: the classes that are trained on.
        fingerprint: of the vision side that made the taps.
    """

    def __init__(
        self,
        student: PartClipSeg | ClipSegBaseline,
        settings: PartClipSettings,
        vocabulary: Vocabulary,
        optimisation: Optimisation,
        total_steps: int,
        fingerprint: str = "",
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.vocabulary = vocabulary
        self.optimisation = optimisation
        self.total_steps = total_steps
        self.fingerprint = fingerprint
        self.seen = seen_classes(vocabulary, settings.unseen)

    def losses(self, batch: PartBatch) -> dict[str, Tensor]:
        """Scalars of one batch: ``loss``, which is minimised, and its unweighted terms."""
        if isinstance(self.student, PartClipSeg):
            return self._part_losses(self.student, batch)
        return self._phrase_losses(self.student, batch)

    def _part_losses(self, student: PartClipSeg, batch: PartBatch) -> dict[str, Tensor]:
        """The mask losses and the two losses of attention (Eq. 10)."""
        switches, weights, regions = self.settings.switches, self.settings.losses, batch.parts
        names = student.encode_names(self._clipseg(), self.seen.names)
        decoded = student.decode(batch.taps, names)
        masks = mask_loss(
            student,
            decoded,
            names,
            batch.classes,
            batch.objects,
            background=weights.background,
            chunk=self.settings.class_chunk,
        )
        prompts = torch.stack([names.part_prompt[regions.label], names.object_prompt[regions.label]], 1)
        maps = region_attention(
            student.decoder.layers[-1].self_attn, decoded.trunk.last_input, regions, prompts, switches.pooling
        )
        attention = attention_loss(
            maps,
            regions,
            batch.wholes,
            names.object_of,
            student.grid,
            len(batch.taps),
            sep_loss=switches.sep_loss,
            enh_loss=switches.enh_loss,
            part_scope=switches.part_scope,
            threshold=weights.threshold,
            temperature=weights.temperature,
        )
        total = total_loss(
            masks,
            attention,
            objects=weights.objects,
            parts=weights.parts,
            separation=weights.separation,
            enhancement=weights.enhancement,
            empty_term=switches.empty_term,
        )
        terms = {"classes": masks.classes, "objects": masks.objects, "parts": masks.parts}
        return {"loss": total, **terms, **attention._asdict()}

    def _phrase_losses(self, student: ClipSegBaseline, batch: PartBatch) -> dict[str, Tensor]:
        """The one loss of the baseline."""
        phrases = student.encode_names(self._clipseg(), self.seen.names)
        loss = phrase_loss(
            student,
            student.decode(batch.taps, phrases),
            batch.classes,
            batch.objects,
            background=self.settings.losses.background,
            chunk=self.settings.class_chunk,
        )
        return {"loss": loss}

    def _clipseg(self) -> ClipSeg:
        """The frozen towers, on the device of the student."""
        return frozen_encoder(self.settings.clipseg, self.settings.side, str(self.device)).clipseg

    def training_step(self, batch: PartBatch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss; it and its terms are logged as ``train/...``."""
        losses = self.losses(batch)
        self._log("train", losses, len(batch.taps))
        return losses["loss"]

    def validation_step(self, batch: PartBatch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs the same losses on other images."""
        self._log("val", self.losses(batch), len(batch.taps))

    def _log(self, stage: str, losses: dict[str, Tensor], batch_size: int) -> None:
        values = {f"{stage}/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(
            values, batch_size=batch_size, on_step=stage == "train", on_epoch=stage == "val", sync_dist=stage == "val"
        )

    def configure_optimizers(self) -> Any:
        """No weight decay on normalisation layers and tables of embeddings (spec section 4)."""
        undecayed = norm_parameters(self.student) | embedding_parameters(self.student)
        optimizer = build_optimizer(
            parameter_groups(self.student, self.optimisation, undecayed=undecayed), self.optimisation
        )
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: PartData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`PartBatch`; mirrored images come in only where images are shuffled, i.e. in training."""
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=data.variants if shuffle else 1,
        )
        return EpochLoader(data, sampler, batch_size=batch_size)
