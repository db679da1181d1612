"""The training side of WeakSAM's last stages: what Lightning drives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weakly.methods.base import Learner
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule, parameter_groups
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.methods.weaksam.detectors import Detector
from weakly.methods.weaksam.targets import VIEWS, WeakSamBatch, WeakSamData
from weakly.vocabulary import Vocabulary


class WeakSamLearner(Learner):
    """Trains a detector on pseudo boxes, or an instance head on pseudo masks.

    Attributes:
        student: the network, the only sub-module.
        settings: of the method; kept for whoever saves the student.
        vocabulary: C categories.
    """

    def __init__(
        self,
        student: Detector,
        settings: Any,
        vocabulary: Vocabulary,
        optimisation: Optimisation,
        total_steps: int,
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.vocabulary = vocabulary
        self.optimisation = optimisation
        self.total_steps = total_steps

    def training_step(self, batch: WeakSamBatch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss; it, its parts and the shares that RoI drop left out are logged as ``train/...``."""
        losses: dict[str, Tensor] = self.student.loss(*batch, step=self.global_step)
        values = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch.pixels), on_step=True, on_epoch=False)
        return losses["loss"]

    def validation_step(self, batch: WeakSamBatch, batch_index: int) -> None:
        """Logs the loss on the pseudo instances of other images as ``val/...``, without RoI drop.

        What the networks draw at random (RoIs, points) depends on the number of the batch alone.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(batch_index)
            losses = self.student.loss(*batch, step=None)
        values = {f"val/{name}": value for name, value in losses.items() if not name.startswith("dropped")}
        self.log_dict(values, batch_size=len(batch.pixels), on_step=False, on_epoch=True, sync_dist=True)

    def configure_optimizers(self) -> Any:
        """Groups as the network asks for them; the learning rate changes after every update."""
        student = self.student
        groups = parameter_groups(
            student,
            self.optimisation,
            lr_factors={student.backbone: student.backbone_lr},
            undecayed=student.undecayed(),
        )
        optimizer = build_optimizer(groups, self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: WeakSamData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`WeakSamBatch`: random views if shuffled, i.e. in training, else whole images."""
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=VIEWS if shuffle else 1,
        )
        return EpochLoader(data.random_views(seed) if shuffle else data, sampler, batch_size=batch_size)
