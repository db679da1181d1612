"""The training side: WPS-SAM's, with a learning rate of its own for the image encoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from weakly.methods.baselines.fine_tuned.model import FineTunedPrompter
from weakly.methods.baselines.fine_tuned.settings import FineTunedSettings
from weakly.methods.optimisation import build_optimizer, build_schedule, parameter_groups
from weakly.methods.wps.learner import WpsLearner
from weakly.methods.wps.targets import WpsBatch


class FineTunedLearner(WpsLearner):
    """Trains prompter and image encoder; its loader gives images where WPS-SAM's gives embeddings.

    Matching, losses and views are WPS-SAM's.
    """

    student: FineTunedPrompter
    settings: FineTunedSettings

    def embedded(self, batch: WpsBatch) -> WpsBatch:
        """A batch of images (B, 3, S, S) with their embeddings (B, C_e, h, w) in their place."""
        return batch._replace(embeddings=self.student.embed(batch.embeddings))

    def training_step(self, batch: WpsBatch, batch_index: int) -> Tensor:
        """Scalar loss of a batch of images."""
        return super().training_step(self.embedded(batch), batch_index)

    def validation_step(self, batch: WpsBatch, batch_index: int) -> None:
        """Logs the same loss on other images."""
        super().validation_step(self.embedded(batch), batch_index)

    def configure_optimizers(self) -> Any:
        """One group for the encoder, one for the prompter; both rates follow the same schedule."""
        factor = self.settings.encoder_lr / self.optimisation.lr
        groups = parameter_groups(self.student, self.optimisation, lr_factors={"image_encoder.": factor})
        optimizer = build_optimizer(groups, self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
