"""Reading a feature store: where every image's features lie, and batches of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from weakly.errors import UserError
from weakly.foundation import feature_codec as codec
from weakly.foundation.feature_codec import Coded, Drift, FeatureDtype, Shape
from weakly.foundation.feature_shards import SHARD_PATTERN, DamagedShard, Shard, read_shard


class Features(ABC):
    """Features of n images, indexed per training batch.

    Attributes:
        resident: the features lie in memory, coded; else rows are read from the memory-mapped shards.
    """

    resident: bool

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, indices: Tensor) -> Tensor:
        """(B,) int64 positions in the list of keys to (B, C, h, w) float32 on the device asked for."""


class ResidentFeatures(Features):
    """Features in memory: one gather per batch, then decoded.

    Args:
        coded: m distinct images.
        order: (n,) int64, the row of every image in ``coded``.
    """

    resident = True

    def __init__(self, coded: Coded, order: Tensor) -> None:
        self._coded = coded
        self._order = order.to(coded["features"].device)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, indices: Tensor) -> Tensor:
        chosen = self._order[indices.to(self._order.device)]
        return codec.decode(codec.rows(self._coded, chosen))


class MappedFeatures(Features):
    """Features on disk: a batch is copied from the memory-mapped shards it touches, then decoded on ``device``.

    Args:
        index: the shards.
        places: (n, 2) int64 of :meth:`FeatureIndex.locate`.
        device: where batches come out.
        channels: the first so many; all if None.
    """

    resident = False

    def __init__(
        self, index: FeatureIndex, places: Tensor, device: torch.device | str, channels: int | None = None
    ) -> None:
        self._index = index
        self._places = places
        self._device = device
        self._channels = channels

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, indices: Tensor) -> Tensor:
        return codec.decode(self._index.gather(self._places[indices.cpu()], self._device, self._channels))


class FeatureIndex:
    """The shards of one folder and the place of every key in them: the union of the shards' headers."""

    def __init__(self, folder: Path, dtype: FeatureDtype, shape: Shape) -> None:
        self.folder = folder
        self.dtype = dtype
        self.shape = shape
        self._shards: list[Shard] = []
        self._names: set[str] = set()
        self._places: dict[str, tuple[int, int]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's coded features."""
        return codec.image_bytes(self.dtype, self.shape)

    @property
    def drift(self) -> Drift:
        """What the coding changed, over all shards, measured when they were computed."""
        return sum((shard.drift for shard in self._shards), Drift())

    def refresh(self) -> None:
        """Take in shards that appeared since. A damaged shard is left out: its images count as missing."""
        for path in sorted(self.folder.glob(SHARD_PATTERN)):
            if path.name not in self._names:
                self.add(path)

    def add(self, path: Path) -> None:
        """Take in one shard, unless it is damaged."""
        try:
            shard = read_shard(path, self.dtype, self.shape)
        except DamagedShard:
            return
        number = len(self._shards)
        self._shards.append(shard)
        self._names.add(path.name)
        for row, key in enumerate(shard.keys):
            # Overlapping requests of two processes can store an image twice; every reader takes the same one.
            held = self._places.get(key)
            if held is None or path.name < self._shards[held[0]].path.name:
                self._places[key] = (number, row)

    def locate(self, keys: Sequence[str | None]) -> Tensor:
        """(n, 2) int64: shard number and row of every key.

        Raises:
            UserError: an image has no features here.
        """
        places = [self._places[key] for key in keys if key in self._places]
        if len(places) != len(keys):
            at, key = next((at, key) for at, key in enumerate(keys) if key not in self._places)
            what = f"keys[{at}], image {key}" if key else f"keys[{at}], an image that was skipped"
            raise UserError(f"{self.folder} has no features of {what}; build the store with it or leave it out.")
        return torch.tensor(places, dtype=torch.int64).reshape(-1, 2)

    def gather(self, places: Tensor, device: torch.device | str = "cpu", channels: int | None = None) -> Coded:
        """Coded features at (n, 2) places, or their first ``channels``, copied shard by shard to ``device``."""
        shape = (channels or self.shape[0], *self.shape[1:])
        result = codec.empty(self.dtype, shape, len(places), device)
        numbers, rows = places.unbind(1)
        for number in torch.unique(numbers).tolist():
            chosen = (numbers == number).nonzero()[:, 0]
            coded = {name: tensor[:, : shape[0]] for name, tensor in self._shards[number].coded.items()}
            for name, tensor in codec.rows(coded, rows[chosen]).items():
                result[name][chosen.to(device)] = tensor.to(device)
        return result

    def hold(
        self, keys: Sequence[str | None], budget: int, device: torch.device | str, channels: int | None = None
    ) -> Features:
        """In memory if the distinct images (their first ``channels``) fit ``budget`` bytes, else memory-mapped."""
        places = self.locate(keys)
        distinct, order = torch.unique(places, dim=0, return_inverse=True)
        held = codec.image_bytes(self.dtype, (channels or self.shape[0], *self.shape[1:]))
        if len(distinct) * held > budget:
            return MappedFeatures(self, places, device, channels)
        return ResidentFeatures(self.gather(distinct, device, channels), order)
