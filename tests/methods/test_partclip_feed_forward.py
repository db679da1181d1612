"""Wide layers in slices against the layers themselves: values and all five gradients, whatever the slice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from weakly.methods.partclip import feed_forward as module
from weakly.methods.partclip.feed_forward import feed_forward


def layers(seed: int, outer: int = 6, inner: int = 10, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(outer, inner), nn.ReLU(), nn.Linear(inner, outer)).to(dtype)


def gradients(result: Tensor, network: nn.Sequential, tokens: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    return list(torch.autograd.grad((weights * result).sum(), [tokens, *network.parameters()]))


@given(seed=st.integers(0, 10**6), shape=st.lists(st.integers(1, 5), min_size=1, max_size=3), slice_=st.integers(1, 60))
def test_values_and_gradients_are_those_of_the_layers(seed: int, shape: list[int], slice_: int) -> None:
    network = layers(seed, dtype=torch.float64)
    tokens = torch.randn(*shape, 6, dtype=torch.float64, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(module.HIDDEN_FLOATS, "cpu", slice_)
        ours = feed_forward(network[0], network[2], tokens)
        mine = gradients(ours, network, tokens)
    theirs = network(tokens)
    torch.testing.assert_close(ours, theirs)
    for one, other in zip(mine, gradients(theirs, network, tokens), strict=True):
        torch.testing.assert_close(one, other)


def test_gradients_are_those_of_finite_differences(monkeypatch) -> None:
    monkeypatch.setitem(module.HIDDEN_FLOATS, "cpu", 30)  # three tokens at once
    network = layers(0, dtype=torch.float64)
    tokens = torch.randn(2, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda given: feed_forward(network[0], network[2], given), (tokens,))


def test_no_token_is_no_trouble() -> None:
    network = layers(0)
    tokens = torch.randn(0, 3, 6, requires_grad=True)
    result = feed_forward(network[0], network[2], tokens)
    assert result.shape == (0, 3, 6)
    for gradient in gradients(result, network, tokens):
        assert not gradient.any()


def test_nothing_is_kept_where_nothing_is_differentiated() -> None:
    network, tokens = layers(0), torch.randn(7, 6)
    with torch.no_grad():
        result = feed_forward(network[0], network[2], tokens)
    assert not result.requires_grad
    torch.testing.assert_close(result, network(tokens))


def test_autocast_rounds_as_it_does_for_the_layers() -> None:
    """Sums over slices stay in float32, so that many slices lose no more than one."""
    network, tokens = layers(0, 32, 64), torch.randn(2000, 32, requires_grad=True)
    exact = gradients(network(tokens), network, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = feed_forward(network[0], network[2], tokens), network(tokens)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    rounded = (gradients(result.float(), network, tokens) for result in (ours, theirs))
    for mine, its, right in zip(*rounded, exact, strict=True):
        assert mine.dtype == its.dtype == right.dtype
        assert (mine - right).norm() < 1.2 * (its - right).norm()
