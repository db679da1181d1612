"""The training side of Det-SAM: what Lightning drives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weakly.methods.base import Learner
from weakly.methods.baselines.det_sam.model import Detector
from weakly.methods.baselines.det_sam.settings import DetSamSettings
from weakly.methods.baselines.det_sam.targets import DetSamBatch, DetSamData
from weakly.methods.baselines.det_sam.threshold import UNDECIDED, choose_threshold
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule, norm_parameters, parameter_groups
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.vocabulary import Vocabulary


class DetSamLearner(Learner):
    """Trains a part detector on given boxes; the segmenter itself is not needed.

    Attributes:
        student: the detector, the only sub-module.
        settings: of the method.
        vocabulary: C categories.
        segmenter_fingerprint: of the segmenter whose embeddings it may look at and that its boxes are to prompt.
    """

    def __init__(
        self,
        student: Detector,
        settings: DetSamSettings,
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
        self._trained_on: DetSamData | None = None

    def training_step(self, batch: DetSamBatch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss; it and its parts are logged as ``train/...``."""
        losses = self.student.losses(batch)
        values = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch.counts), on_step=True, on_epoch=False)
        return losses["loss"]

    def validation_step(self, batch: DetSamBatch, batch_index: int) -> None:
        """Logs the same loss on other images as ``val/...``; what is sampled depends on the batch's number alone."""
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(batch_index)
            losses = self.student.losses(batch)
        values = {f"val/{name}": value for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch.counts), on_step=False, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """A ResNet has a learning rate of its own, norms have no weight decay; the rate changes after every update."""
        groups = parameter_groups(
            self.student,
            self.optimisation,
            lr_factors={self.student.backbone: self.settings.backbone_lr},
            undecayed=norm_parameters(self.student),
        )
        optimizer = build_optimizer(groups, self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: DetSamData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`DetSamBatch`; mirrored images come in only where images are shuffled, i.e. in training."""
        if shuffle:
            self._trained_on = data
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=data.variants if shuffle else 1,
        )
        return EpochLoader(data, sampler, batch_size=batch_size)

    def threshold(self) -> float:
        """From which score on detections prompt the segmenter; undecided where nothing was trained on."""
        if self.settings.score_threshold != "auto":
            return self.settings.score_threshold
        if self._trained_on is None:
            return UNDECIDED
        return choose_threshold(self.student, self._trained_on, self.settings.threshold_images)
