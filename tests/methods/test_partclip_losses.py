"""Mask and attention losses of PartCLIPSeg against loops over images, objects and classes (spec sections 3 and 11)."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partclip_scenes import (
    DOG,
    NAMES,
    NO_CLASS,
    NOTHING,
    RELEASED,
    Maps,
    attention_step,
    embeddings,
    empty,
    paint,
    random_maps,
    train,
    two_images,
)
from tiny_clipseg import GRID, SIDE, tiny_clipseg
from torch import Tensor
from torch.nn import functional

from partclip_reference import (
    Reference,
    reference_attention_loss,
    reference_mask_loss,
    unfactored,
)
from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip.attention_losses import AttentionLoss
from weakly.methods.partclip.losses import MaskLoss, mask_loss, phrase_loss, total_loss
from weakly.methods.partclip.model import ClipSegBaseline


@pytest.fixture(scope="module")
def clipseg() -> ClipSeg:
    return tiny_clipseg()


RING = (0, slice(8, 16), slice(8, 90))


class Leaves:
    """Logits that are leaves, so that every pixel's own gradient is seen."""

    def __init__(self, seed: int = 0, images: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.trunk = torch.randn(images, 9, SIDE, SIDE, generator=generator, requires_grad=True)
        self.classes = torch.randn(images, 8, SIDE, SIDE, generator=generator, requires_grad=True)
        self.decoded: Any = SimpleNamespace(trunk=None)

    def prompt_logits(self, trunk: None, rows: Tensor) -> Tensor:
        return self.trunk[:, rows]

    def class_logits(self, decoded: Any, classes: Tensor) -> Tensor:
        return self.classes[:, classes]

    def loss(self, maps: Maps, chunk: int = 3) -> MaskLoss:
        return mask_loss(self, self.decoded, embeddings(), *maps, chunk=chunk)

    def reference(self, maps: Maps) -> Tensor:
        return reference_mask_loss(Reference(self.trunk, self.classes, torch.zeros(())), NAMES, *maps)


# Masks


def test_mask_losses_are_means_over_pixels_and_channels() -> None:
    """Check 8: the scalar of spec section 3.2."""
    leaves, maps = Leaves(), two_images()
    torch.testing.assert_close(total_loss(leaves.loss(maps), NOTHING), leaves.reference(maps), rtol=1e-6, atol=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 9))
def test_mask_losses_and_gradients_equal_explicit_means(seed: int, chunk: int) -> None:
    leaves, maps = Leaves(seed), random_maps(seed)
    inputs = (leaves.trunk, leaves.classes)
    ours, theirs = total_loss(leaves.loss(maps, chunk), NOTHING), leaves.reference(maps)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for mine, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-10)


def test_an_object_without_a_part_teaches_object_masks_alone() -> None:
    """Check 8: the ring."""
    leaves = Leaves()
    total_loss(leaves.loss(two_images()), NOTHING).backward()
    image, rows, columns = RING
    parts = len(NAMES.parts)
    assert not leaves.classes.grad[image, :, rows, columns].any()
    assert not leaves.trunk.grad[image, :parts, rows, columns].any()
    assert leaves.trunk.grad[image, parts:, rows, columns].all()


def test_pixels_nobody_knows_count_nowhere() -> None:
    """Unseen objects with ``unseen_pixels: ignore``: neither gradient nor part of a divisor."""
    leaves, maps = Leaves(), two_images()
    whole = leaves.loss(maps)
    maps[1][:, :, 90:] = -1
    cut = leaves.loss(maps)
    (gradient,) = torch.autograd.grad(total_loss(cut, NOTHING), leaves.trunk)
    assert not gradient[..., 90:].any()
    smaller = Leaves()
    smaller.trunk, smaller.classes = leaves.trunk[..., :90], leaves.classes[..., :90]
    expected = smaller.loss((maps[0][..., :90], maps[1][..., :90]))
    torch.testing.assert_close(cut, expected)
    assert cut.classes != whole.classes


def test_weights_of_the_three_losses() -> None:
    one, two, three, four, five = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    masks, looks = MaskLoss(one, two, three, torch.tensor(False)), AttentionLoss(four, five)
    assert total_loss(masks, looks).item() == 1 + 10 + 100 + 0.1 * 1000 + 0.01 * 10000
    weights = {"objects": 2.0, "parts": 0.0, "separation": 0.0, "enhancement": 1.0}
    assert total_loss(masks, looks, **weights).item() == 1 + 20 + 10000


def test_a_batch_without_background_is_nothing_in_the_release() -> None:
    """Check 9."""
    leaves, maps = Leaves(images=1), empty(1)
    maps[1][:] = DOG
    paint(maps, 0, 0, (0, 0, 40, 96))
    assert leaves.reference(maps).isnan()
    masks = leaves.loss(maps)
    assert masks.undefined
    released, fixed = (total_loss(masks, NOTHING, empty_term=kind) for kind in ("nan_to_zero", "skip"))
    for gradient in torch.autograd.grad(released, (leaves.trunk, leaves.classes), retain_graph=True):
        assert not gradient.any()
    assert released == 0
    assert fixed.isfinite()
    for gradient in torch.autograd.grad(fixed, (leaves.trunk, leaves.classes)):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_the_release_is_nothing_only_where_it_would_be_undefined() -> None:
    masks = Leaves().loss(two_images())
    assert not masks.undefined
    assert total_loss(masks, NOTHING, empty_term="nan_to_zero") == total_loss(masks, NOTHING)
    assert not Leaves().loss(empty(2)).undefined


def test_the_baseline_has_one_mean_over_everything(clipseg: ClipSeg) -> None:
    torch.manual_seed(0)
    model, maps = ClipSegBaseline(clipseg), two_images()
    maps[1][1, :5] = -1
    names, taps = model.encode_names(clipseg, NAMES), clipseg.taps(torch.randn(2, 3, SIDE, SIDE))
    ours = phrase_loss(model, model.decode(taps, names), *maps, chunk=3)
    known = maps[1] >= 0
    target = functional.one_hot(maps[0], NO_CLASS + 1).float()[known]
    weight = torch.tensor([1.0] * NO_CLASS + [0.05])
    logits = model(taps, names).permute(0, 2, 3, 1)[known]
    torch.testing.assert_close(ours, functional.binary_cross_entropy_with_logits(logits, target, weight))


# The whole training step


def gradient_differences(clipseg: ClipSeg, seed: int) -> dict[str, float]:
    """{parameter: largest difference between its gradients in both formulations, over its largest value}."""
    model, images = train(clipseg, seed, obj_text_index="official", background_vector="frozen")
    maps = two_images()
    names = model.encode_names(clipseg, NAMES)
    decoded = model.decode(clipseg.taps(images), names)
    masks = mask_loss(model, decoded, names, *maps, chunk=3)
    ours = total_loss(masks, attention_step(model, decoded, names, maps, "nearest", **RELEASED), enhancement=1.0)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = unfactored(model, clipseg, images, NAMES)
    separation, enhancement = reference_attention_loss(output.attention, NAMES, *maps, GRID)
    theirs = reference_mask_loss(output, NAMES, *maps) + 0.1 * separation + enhancement
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert set(gradients) == {name for name, _ in model.named_parameters()} - {"background"}
    expected = {name: p.grad for name, p in model.named_parameters() if name in gradients}
    sizes = {name: max(grad.abs().max().item(), 1e-3) for name, grad in expected.items()}
    return {name: (gradients[name] - grad).abs().max().item() / sizes[name] for name, grad in expected.items()}


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything in float64, what asks for float32 too: rounding then moves nothing over the edge of a ReLU."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("seed", range(4))
def test_a_released_training_step_is_that_of_the_unfactored_formulation(seed: int) -> None:
    """Loss and every gradient, from pixels to text tables.

    In float32 the two round differently, and what is next to the edge of a ReLU falls on either side of it, which
    shows in gradients by some 0.1 % of their largest value.
    """
    clipseg = tiny_clipseg()
    clipseg.model.double()
    differences = gradient_differences(clipseg, seed)
    assert max(differences.values()) < 1e-9, differences
