"""The training side of WeakSAM's last stages: what Lightning drives."""

from __future__ import annotations

import torch
from torch import Tensor

from weakly.methods.view_learner import ViewLearner
from weakly.methods.weaksam.detectors import Detector
from weakly.methods.weaksam.targets import WeakSamBatch


class WeakSamLearner(ViewLearner):
    """Trains a detector on pseudo boxes, or an instance head on pseudo masks."""

    student: Detector

    def losses(self, batch: WeakSamBatch) -> dict[str, Tensor]:
        """The network's own loss, its parts, and the shares that RoI drop left out."""
        return self.student.loss(*batch, step=self.global_step)

    def validation_step(self, batch: WeakSamBatch, batch_index: int) -> None:
        """Logs the loss on the pseudo instances of other images as ``val/...``, without RoI drop.

        What the networks draw at random (RoIs, points) depends on the number of the batch alone.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(batch_index)
            losses = self.student.loss(*batch, step=None)
        values = {f"val/{name}": value for name, value in losses.items() if not name.startswith("dropped")}
        self.log_dict(values, batch_size=len(batch.inputs), on_step=False, on_epoch=True, sync_dist=True)
