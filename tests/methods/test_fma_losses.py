"""The two losses of the prompts and their learning rate (spec fma-wsss sections 2.4 and 4, parity checks 10 to 12)."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from weakly.methods.fma.cam import positives_of
from weakly.methods.fma.losses import (
    activation_loss,
    binary_loss,
    contrastive_loss,
    map_cross_entropy,
    seed_tags,
)
from weakly.methods.fma.schedule import learning_rate


def plain_contrastive(logits: Tensor, tags: Tensor) -> Tensor:
    """Section 4, positive by positive, with Eq. 12 as it stands in double precision."""
    losses = []
    for row, present in zip(logits.double(), tags, strict=True):
        if present.all() or not present.any():
            continue
        absent = row[~present].exp().sum()
        losses += [-torch.log(row[c].exp() / (row[c].exp() + absent)) for c in present.nonzero().flatten()]
    return torch.stack(losses).mean() if losses else logits.double().sum() * 0


def plain_activation(maps: Tensor, seeds: Tensor, tags: Tensor) -> tuple[Tensor, Tensor]:
    """Section 4, pixel sums per positive."""
    foreground, background, pixels = maps.new_zeros(()), maps.new_zeros(()), 0
    for m, (image, label) in zip(maps, tags.nonzero().tolist(), strict=True):
        large = functional.interpolate(m[None, None], seeds.shape[1:], mode="bilinear", align_corners=False)[0, 0]
        seed = seeds[image]
        mine, others = seed == label + 1, (seed != label + 1) & (seed != 255)
        if mine.any():
            peak = max(0.0, large[mine].max().item())
            foreground = foreground + (peak - large[mine]).abs().sum()
        background = background + large[others].clamp(min=0).sum()
        pixels += int(mine.sum() + others.sum())
    return foreground / max(1, pixels), background / max(1, pixels)


def random_case(seed: int, images: int = 3, classes: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """Signed 4x4 maps, 8x8 seeds with a row of 255, and tags."""
    generator = torch.Generator().manual_seed(seed)
    tags = torch.rand(images, classes, generator=generator) < 0.5
    maps = torch.randn(int(tags.sum()), 4, 4, generator=generator)
    seeds = torch.randint(0, classes + 1, (images, 8, 8), generator=generator)
    seeds[:, 2] = 255
    return maps, seeds, tags


class TestContrastive:
    def test_images_of_no_class_and_of_all_classes_do_not_count(self):
        logits = 3 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
        tags = torch.zeros(4, 6, dtype=torch.bool)
        tags[1] = True
        tags[2, [0, 3]] = True
        tags[3, 5] = True
        assert contrastive_loss(logits, tags).item() == pytest.approx(plain_contrastive(logits, tags).item(), abs=1e-6)
        assert contrastive_loss(logits, tags) == contrastive_loss(logits[2:], tags[2:])

    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 1000), images=st.integers(1, 5), scale=st.floats(0.1, 15))
    def test_values_and_gradients_are_those_of_the_formula(self, seed, images, scale):
        generator = torch.Generator().manual_seed(seed)
        logits = (scale * torch.randn(images, 5, generator=generator)).requires_grad_()
        tags = torch.rand(images, 5, generator=generator) < 0.4
        ours, theirs = contrastive_loss(logits, tags), plain_contrastive(logits, tags)
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
        a, b = (torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs))
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)

    def test_logits_that_overflow_an_exponential_are_finite(self):
        logits = torch.tensor([[95.0, 93.0, -95.0]], requires_grad=True)
        loss = contrastive_loss(logits, torch.tensor([[True, False, False]]))
        assert loss.item() == pytest.approx(math.log1p(math.exp(-2)), abs=1e-6)
        loss.backward()
        assert logits.grad.isfinite().all()
        assert math.isinf(torch.tensor(95.0).exp().item())

    def test_no_image_that_tells_anything_is_a_loss_of_zero_with_a_gradient_of_zero(self):
        logits = torch.randn(2, 3, requires_grad=True)
        loss = contrastive_loss(logits, torch.tensor([[True] * 3, [False] * 3]))
        assert loss.item() == 0
        loss.backward()
        assert (logits.grad == 0).all()

    def test_positives_weigh_the_same_whatever_their_image(self):
        logits = torch.zeros(2, 4)
        tags = torch.tensor([[True, True, True, False], [True, False, False, False]])
        expected = (3 * math.log(2) + math.log(4)) / 4  # not the mean over images, log(8) / 2
        assert contrastive_loss(logits, tags).item() == pytest.approx(expected, abs=1e-6)


class TestActivation:
    @settings(max_examples=60, deadline=None)
    @given(seed=st.integers(0, 1000), images=st.integers(1, 4))
    def test_values_and_gradients_are_those_of_the_formula(self, seed, images):
        maps, seeds, tags = random_case(seed, images)
        maps.requires_grad_()
        ours = activation_loss(maps, seeds, positives_of(tags))
        theirs = plain_activation(maps, seeds, tags)
        for a, b in zip(ours, theirs, strict=True):
            assert a.item() == pytest.approx(b.item(), abs=1e-6)
        if len(maps):
            a, b = (torch.autograd.grad(fg + 2 * bg, maps)[0] for fg, bg in (ours, theirs))
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)

    def test_a_worked_example(self):
        maps = torch.tensor([[[3.0, 1.0], [-2.0, 2.0]]])
        seeds = torch.tensor([[[2, 2], [0, 255]]])
        loss = activation_loss(maps, seeds, positives_of(torch.tensor([[False, True]])))
        assert loss.foreground.item() == pytest.approx((0 + 2) / 3)
        assert loss.background.item() == 0
        seeds = torch.tensor([[[1, 2], [0, 255]]])
        loss = activation_loss(maps, seeds, positives_of(torch.tensor([[False, True]])))
        assert loss.foreground.item() == 0
        assert loss.background.item() == pytest.approx(3 / 3)

    def test_the_largest_value_inside_a_seed_is_a_target_and_not_pulled(self):
        maps = torch.tensor([[[3.0, 1.0], [-2.0, 2.0]]], requires_grad=True)
        seeds = torch.ones(1, 2, 2, dtype=torch.uint8)
        activation_loss(maps, seeds, positives_of(torch.tensor([[True]]))).foreground.backward()
        assert maps.grad.tolist() == [[[0, -0.25], [-0.25, -0.25]]]

    def test_a_seed_below_zero_is_pulled_up_to_zero(self):
        maps = torch.full((1, 2, 2), -1.0)
        loss = activation_loss(maps, torch.ones(1, 2, 2, dtype=torch.uint8), positives_of(torch.tensor([[True]])))
        assert loss.foreground.item() == 1

    def test_copies_of_the_images_leave_the_value(self):
        maps, seeds, tags = random_case(3)
        once = activation_loss(maps, seeds, positives_of(tags))
        twice = activation_loss(maps.repeat(2, 1, 1), seeds.repeat(2, 1, 1), positives_of(tags.repeat(2, 1)))
        for a, b in zip(once, twice, strict=True):
            assert a.item() == pytest.approx(b.item(), abs=1e-6)

    def test_a_class_without_seed_has_a_background_term_alone(self):
        loss = activation_loss(
            torch.ones(1, 4, 4), torch.zeros(1, 8, 8, dtype=torch.uint8), positives_of(torch.tensor([[True]]))
        )
        assert (loss.foreground.item(), loss.background.item()) == (0, 1)

    def test_unknown_seeds_say_nothing(self):
        maps = torch.randn(1, 4, 4, requires_grad=True)
        seeds = torch.full((1, 8, 8), 255, dtype=torch.uint8)
        loss = activation_loss(maps, seeds, positives_of(torch.tensor([[True]])))
        (loss.foreground + loss.background).backward()
        assert (loss.foreground.item(), loss.background.item()) == (0, 0)
        assert (maps.grad == 0).all()


class TestOtherLosses:
    """The losses that Table 5 compares with."""

    def test_bce_is_that_of_the_sigmoids(self):
        generator = torch.Generator().manual_seed(0)
        logits, tags = torch.randn(3, 4, generator=generator), torch.rand(3, 4, generator=generator) < 0.5
        chance = logits.double().sigmoid().where(tags, 1 - logits.double().sigmoid())
        assert binary_loss(logits, tags).item() == pytest.approx(-chance.log().mean().item(), abs=1e-6)

    def test_saturated_logits_teach_bce_nothing_and_the_contrastive_loss_something(self):
        """Section 4.3: why the paper does not use BCE."""
        logits = torch.tensor([[24.0, 25.0, 23.0]], requires_grad=True)
        tags = torch.tensor([[True, False, False]])
        (bce,) = torch.autograd.grad(binary_loss(logits, tags), logits)
        (mcl,) = torch.autograd.grad(contrastive_loss(logits, tags), logits)
        assert bce[0, 0].abs() < 1e-9 < 0.1 < mcl[0, 0].abs()

    @pytest.mark.parametrize("seed", range(5))
    def test_cross_entropy_of_maps_pixel_by_pixel(self, seed):
        maps, seeds, tags = random_case(seed)
        losses = []
        for m, (image, label) in zip(maps.double(), tags.nonzero().tolist(), strict=True):
            large = functional.interpolate(m[None, None], seeds.shape[1:], mode="bilinear")[0, 0]
            inside, known = seeds[image] == label + 1, seeds[image] != 255
            chance = large.sigmoid().where(inside, 1 - large.sigmoid())
            losses += (-chance.log())[known].tolist()
        ours = sum(map_cross_entropy(maps, seeds, positives_of(tags))).item()
        assert ours == pytest.approx(sum(losses) / max(1, len(losses)), abs=1e-5)

    def test_the_small_maps_of_softmax_gradcam_all_score_a_half(self):
        """Section 4.3: why the paper does not use cross-entropy on maps."""
        maps, seeds, tags = random_case(1)
        ours = sum(map_cross_entropy(1e-4 * maps, seeds, positives_of(tags))).item()
        assert ours == pytest.approx(math.log(2), abs=1e-3)

    def test_unknown_seeds_say_nothing(self):
        maps = torch.ones(1, 4, 4, requires_grad=True)
        loss = sum(map_cross_entropy(maps, torch.full((1, 8, 8), 255), positives_of(torch.tensor([[True]]))))
        loss.backward()
        assert loss == 0 and not maps.grad.any()


class TestSeedTags:
    def test_background_and_unknown_pixels_are_no_class(self):
        seeds = torch.tensor([[[0, 3], [3, 255]], [[1, 2], [0, 0]], [[0, 0], [255, 255]]], dtype=torch.uint8)
        expected = [[False, False, True], [True, True, False], [False, False, False]]
        assert seed_tags(seeds, 3).tolist() == expected


class TestLearningRate:
    @pytest.mark.parametrize(
        ("step", "rate"), [(0, 1e-5), (499, 1e-5), (500, 1e-3), (1150, 5e-4), (1799, 1.46e-9), (1800, 0), (2500, 0)]
    )
    def test_the_released_schedule(self, step, rate):
        assert learning_rate(step, total=1800, warmup=500) == pytest.approx(rate, rel=1e-3, abs=1e-15)

    def test_every_step_is_the_formula(self):
        for step in range(500, 1800):
            expected = 0.5e-3 * (1 + math.cos(math.pi * (step - 500) / (1800 - 500)))
            assert learning_rate(step, total=1800, warmup=500) == pytest.approx(expected, abs=1e-15)
