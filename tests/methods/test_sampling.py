"""Which images an epoch holds, over all processes, and how a stopped epoch goes on."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import Dataset

from weakly.methods.sampling import EpochLoader, EpochSampler, epoch_order


class Numbers(Dataset[list[int]]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitems__(self, indices: Sequence[int]) -> list[int]:
        return list(indices)


def samplers(length: int, world: int, **options: object) -> list[EpochSampler]:
    return [EpochSampler(length, seed=5, rank=rank, world_size=world, **options) for rank in range(world)]


@given(length=st.integers(1, 200), world=st.integers(1, 8), epoch=st.integers(0, 50))
def test_all_processes_together_see_every_image_once(length: int, world: int, epoch: int) -> None:
    shards = []
    for sampler in samplers(length, world):
        sampler.set_epoch(epoch)
        shards.append(list(sampler))
        assert len(shards[-1]) == len(sampler)
    seen = [index for shard in shards for index in shard]
    assert set(seen) == set(range(length))
    assert len(seen) - length < world, "only padding to equal shards may repeat"


def test_processes_that_shuffle_for_themselves_miss_a_third_of_the_images() -> None:
    seen = {index for sampler in samplers(20_000, 4, sampler_seed="per_rank") for index in sampler}
    assert 0.31 <= 1 - len(seen) / 20_000 <= 0.32


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    orders = {
        (seed, epoch): tuple(epoch_order(50, seed=seed, epoch=epoch).tolist()) for seed in (1, 2) for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    torch.rand(7)
    assert tuple(epoch_order(50, seed=2, epoch=1).tolist()) == orders[2, 1]


def test_unshuffled_is_ascending() -> None:
    assert list(EpochSampler(5, seed=1, shuffle=False)) == [0, 1, 2, 3, 4]


def test_variants_are_drawn_per_image_and_epoch() -> None:
    order = epoch_order(1_000, seed=0, epoch=3, variants=2)
    assert sorted((order % 1_000).tolist()) == list(range(1_000))
    assert 400 < int((order >= 1_000).sum()) < 600


@pytest.mark.parametrize("stop", [1, 3])
def test_a_stopped_epoch_goes_on_with_exactly_the_remaining_batches(stop: int) -> None:
    def loader() -> EpochLoader:
        loader = EpochLoader(Numbers(10), EpochSampler(10, seed=1), batch_size=3)
        loader.sampler.set_epoch(2)
        return loader

    whole = list(loader())
    first = loader()
    batches = iter(first)
    head = [next(batches) for _ in range(stop)]
    second = loader()
    second.load_state_dict(first.state_dict())
    assert head + list(second) == whole
    assert list(second) == whole, "the next epoch is whole again"


def test_an_epoch_that_ended_leaves_nothing_out_of_the_next() -> None:
    loader = EpochLoader(Numbers(4), EpochSampler(4, seed=1), batch_size=2)
    whole = list(loader)
    loader.load_state_dict(loader.state_dict())
    assert list(loader) == whole
