"""The training side of FMA-WSSS's second stage: what Lightning drives."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from weakly.methods.base import Learner
from weakly.methods.fma.augment import VOID
from weakly.methods.fma.networks import SemanticNetwork, cross_entropy
from weakly.methods.fma.targets import VIEWS, FmaBatch, FmaData
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule, parameter_groups
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.vocabulary import Vocabulary


class FmaLearner(Learner):
    """Trains a semantic network on seed maps.

    Attributes:
        student: the network, the only sub-module.
        settings: of the method; kept for whoever saves the student.
        vocabulary: C categories.
    """

    def __init__(
        self,
        student: SemanticNetwork,
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

    def training_step(self, batch: FmaBatch, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss; it and its parts are logged as ``train/...``."""
        losses: dict[str, Tensor] = self.student.loss(*batch)
        values = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch.pixels), on_step=True, on_epoch=False)
        return losses["loss"]

    def validation_step(self, batch: FmaBatch, batch_index: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Logs how well the probabilities agree with the seed maps of other images.

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

    def loader(self, data: FmaData, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of :class:`FmaBatch`: random views where images are shuffled, i.e. in training, else whole images."""
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=VIEWS if shuffle else 1,
        )
        return EpochLoader(data.random_views(seed) if shuffle else data, sampler, batch_size=batch_size)
