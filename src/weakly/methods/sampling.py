"""Which images make up an epoch, in which order, and how a stopped epoch goes on: shared by every method."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from weakly.methods.optimisation import SamplerSeed


class EpochSampler(DistributedSampler[int]):
    """Indices of one process for one epoch; they depend on the seed, the epoch and the process alone.

    All processes shard one permutation (``shared``), so that together they see every image once; the last shard is
    padded with the first images where the number of images is no multiple of the number of processes. ``per_rank``
    emulates the released WPS-SAM code, where every process shuffles with its own seed before sharding: with four
    processes about 31.6 % of the images are then unseen in an epoch.

    A :class:`DistributedSampler` by type, so that Lightning leaves it in place and tells it the epoch.

    Args:
        length: number of images n.
        seed: with the epoch, the whole source of randomness.
        shuffle: permute; else ascending order.
        sampler_seed: ``shared`` or ``per_rank``.
        variants: versions of every image; version v of image i has index ``v * n + i`` and is drawn at random.
        rank: this process; None: asked from ``torch.distributed`` when the epoch starts.
        world_size: number of processes; None likewise.
    """

    def __init__(
        self,
        length: int,
        *,
        seed: int,
        shuffle: bool = True,
        sampler_seed: SamplerSeed = "shared",
        variants: int = 1,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        super().__init__(_Count(length), num_replicas=1, rank=0, shuffle=shuffle, seed=seed)
        self.length, self.sampler_seed, self.variants = length, sampler_seed, variants
        self._rank, self._world_size = rank, world_size
        self.skip = 0

    def _process(self) -> tuple[int, int]:
        """(rank, world size)."""
        live = distributed.is_available() and distributed.is_initialized()
        rank = self._rank if self._rank is not None else (distributed.get_rank() if live else 0)
        world = self._world_size if self._world_size is not None else (distributed.get_world_size() if live else 1)
        return rank, world

    def __len__(self) -> int:
        return math.ceil(self.length / self._process()[1])

    def __iter__(self) -> Iterator[int]:
        rank, world = self._process()
        seed = self.seed + (rank if self.sampler_seed == "per_rank" else 0)
        order = epoch_order(self.length, seed=seed, epoch=self.epoch, shuffle=self.shuffle, variants=self.variants)
        padded = order[torch.arange(len(self) * world) % self.length] if self.length else order
        skip, self.skip = self.skip, 0
        return iter(padded[rank::world][skip:].tolist())


class EpochLoader(DataLoader[Any]):
    """Batches of an epoch that can go on where they stopped.

    The dataset collates whole batches itself (``__getitems__``). Lightning stores :meth:`state_dict` in its
    checkpoints and hands it back, so a run that resumes in the middle of an epoch sees exactly the remaining batches.
    """

    def __init__(self, data: Dataset[Any], sampler: EpochSampler, *, batch_size: int) -> None:
        super().__init__(data, batch_size=batch_size, sampler=sampler, collate_fn=_as_is)
        self._epoch_sampler = sampler
        self._batches, self._skip = 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Lazily, so that the sampler knows its epoch before the first index is drawn."""
        self._batches, self._skip = self._skip, 0
        self._epoch_sampler.skip = self._batches * (self.batch_size or 1)
        for batch in super().__iter__():
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """How many batches of this epoch have been handed out."""
        return {"batches": self._batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Leave out as many batches of the next epoch; none where the stored epoch had ended."""
        self._skip = state["batches"] % max(1, len(self))


def epoch_order(length: int, *, seed: int, epoch: int, shuffle: bool = True, variants: int = 1) -> Tensor:
    """(length,) int64: each image once, in the order of this epoch, each in a random one of its versions."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % (1 << 63))
    order = torch.randperm(length, generator=generator) if shuffle else torch.arange(length)
    if variants > 1:
        order = order + length * torch.randint(variants, (length,), generator=generator)
    return order


class _Count(Dataset[Any]):
    """The length ``DistributedSampler`` asks for."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length


def _as_is(batch: Any) -> Any:
    return batch
