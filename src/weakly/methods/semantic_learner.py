"""The training side of semantic segmenters: what Lightning drives."""

from __future__ import annotations

from torch import Tensor

from weakly.methods.image_views import VOID
from weakly.methods.semantic_network import SemanticNetwork, cross_entropy
from weakly.methods.semantic_targets import SemanticBatch
from weakly.methods.view_learner import ViewLearner


class SemanticLearner(ViewLearner):
    """Trains a semantic network on label maps."""

    student: SemanticNetwork

    def losses(self, batch: SemanticBatch) -> dict[str, Tensor]:
        """The network's own loss, and its parts."""
        return self.student.loss(*batch)

    def validation_step(self, batch: SemanticBatch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs how well the probabilities agree with the label maps of other images.

        ``val/loss`` is the mean negative log-probability of the labels, ``val/error`` the share of labelled pixels with
        another likeliest category; the same for every network, and without randomness (Mask2Former's own loss draws
        points).
        """
        outputs = self.student(batch.pixels)
        labelled = batch.labels != VOID
        wrong = (outputs.argmax(1) != batch.labels) & labelled
        values = {
            "val/loss": cross_entropy(outputs, batch.labels),
            "val/error": wrong.sum() / labelled.sum().clamp(min=1),
        }
        self.log_dict(values, batch_size=len(batch.pixels), on_step=False, on_epoch=True, sync_dist=True)
