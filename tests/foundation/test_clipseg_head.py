"""CLIPSeg's head as matrix products gives what its transposed convolutions give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import CLIPSegConfig
from transformers.models.clipseg.modeling_clipseg import CLIPSegDecoder

from weakly.foundation.clipseg_head import read_maps

GRID = (3, 5)
WIDTH = 8


def features() -> Tensor:
    return torch.randn(4, GRID[0] * GRID[1], WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def published(patch: int, *, refined: bool) -> nn.Module:
    """The head of a decoder of the library."""
    config = CLIPSegConfig(
        vision_config={"patch_size": patch, "hidden_size": 16, "num_attention_heads": 2},
        reduce_dim=WIDTH,
        extract_layers=[1],
        decoder_num_attention_heads=2,
        use_complex_transposed_convolution=refined,
    )
    torch.manual_seed(0)
    return CLIPSegDecoder(config).transposed_convolution.double()


def library(head: nn.Module, states: Tensor) -> Tensor:
    return head(states.mT.unflatten(2, GRID))


class TestSameMaps:
    @pytest.mark.parametrize("refined", [False, True])
    @pytest.mark.parametrize("patch", [4, 14, 16])
    def test_of_the_heads_there_are(self, patch: int, refined: bool) -> None:
        head = published(patch, refined=refined)
        torch.testing.assert_close(read_maps(head, features(), GRID), library(head, features()))

    def test_of_oblong_blocks_of_several_channels(self) -> None:
        torch.manual_seed(0)
        head = nn.Sequential(
            nn.ConvTranspose2d(WIDTH, 6, (2, 3), (2, 3), bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(6, 5, (1, 4), (1, 4)),
        ).double()
        assert read_maps(head, features(), GRID).shape == (4, 5, 2 * GRID[0], 12 * GRID[1])
        torch.testing.assert_close(read_maps(head, features(), GRID), library(head, features()))

    @pytest.mark.parametrize(
        "head",
        [
            nn.ConvTranspose2d(WIDTH, 1, 4, 2),
            nn.ConvTranspose2d(WIDTH, 2, 2, 2, groups=2),
            nn.Sequential(nn.ConvTranspose2d(WIDTH, 4, 2, 2), nn.BatchNorm2d(4)),
            nn.Conv2d(WIDTH, 3, 3),
        ],
        ids=["blocks overlap", "groups", "layers that see more than one number", "no transposed convolution"],
    )
    def test_of_heads_that_are_none_of_these(self, head: Any) -> None:
        head = head.double()
        torch.testing.assert_close(read_maps(head, features(), GRID), library(head, features()))


def test_same_gradients() -> None:
    head = published(16, refined=True)
    found = []
    for read in (lambda states: read_maps(head, states, GRID), lambda states: library(head, states)):
        states = features().requires_grad_()
        found.append(torch.autograd.grad(read(states).square().sum(), [states, *head.parameters()]))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
