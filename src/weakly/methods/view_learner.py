"""The training of networks on random views of whole images: what FMA-WSSS and WeakSAM share of it."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor

from weakly.methods.base import Learner
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule, parameter_groups
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.vocabulary import Vocabulary

VIEWS = 1 << 31
"""Random views of every image; so many that no view is trained on twice in practice."""


class ViewLearner(Learner):
    """Trains a network on views of images.

    Attributes:
        student: the network, the only sub-module; it says which parameters are its ``backbone``, their ``backbone_lr``
            relative to the others', and which are ``undecayed()``.
        settings: of the method; kept for whoever saves the student.
        vocabulary: C categories.
    """

    student: Any

    def __init__(
        self, student: Any, settings: Any, vocabulary: Vocabulary, optimisation: Optimisation, total_steps: int
    ) -> None:
        super().__init__()
        self.student = student
        self.settings = settings
        self.vocabulary = vocabulary
        self.optimisation = optimisation
        self.total_steps = total_steps

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of a training batch: ``"loss"``, which is minimised, and what else is logged.

        The first field of the batch has a row per view.
        """

    def training_step(self, batch: Any, batch_index: int) -> Tensor:  # noqa: ARG002 - Lightning's signature
        """Scalar loss; it and the others are logged as ``train/...``."""
        losses = self.losses(batch)
        values = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch[0]), on_step=True, on_epoch=False)
        return losses["loss"]

    def configure_optimizers(self) -> Any:
        """Groups as the network asks for them; the learning rate changes after every update."""
        groups = parameter_groups(
            self.student,
            self.optimisation,
            lr_factors={self.student.backbone: self.student.backbone_lr},
            undecayed=self.student.undecayed(),
        )
        optimizer = build_optimizer(groups, self.optimisation)
        schedule = build_schedule(optimizer, self.optimisation, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def loader(self, data: Any, *, batch_size: int, shuffle: bool, seed: int) -> EpochLoader:
        """Batches of ``data``: random views where images are shuffled, i.e. in training, else whole images."""
        sampler = EpochSampler(
            len(data),
            seed=seed,
            shuffle=shuffle,
            sampler_seed=self.optimisation.sampler_seed,
            variants=VIEWS if shuffle else 1,
        )
        return EpochLoader(data.random_views(seed) if shuffle else data, sampler, batch_size=batch_size)
