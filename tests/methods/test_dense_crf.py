"""The dense CRF against its definition over all pairs of pixels."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weakly.errors import UserError
from weakly.methods.dense_crf import (
    ES_MEAN_RGB,
    MIN_PROBABILITY,
    VOID,
    CrfSettings,
    PermutohedralLattice,
    Smoothness,
    bilateral_features,
    confident_labels,
    dense_crf,
    wrapped_image,
)

torch.set_num_threads(1)

PUBLISHED = CrfSettings()
WIDE = CrfSettings(appearance_xy=6, appearance_rgb=12)
SIZE = (24, 28)


def scene(seed: int, noise: float) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """A disc and a bar in three colours: image, true classes, and probabilities, right in 60 % of the pixels."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    truth = np.where((y - 12) ** 2 + (x - 10) ** 2 < 50, 1, np.where(x >= 20, 2, 0))
    colours = np.array([[60, 90, 140], [180, 120, 60], [90, 160, 80]])[truth]
    image = (colours + generator.normal(0, noise, (*SIZE, 3))).clip(0, 255).astype(np.uint8)
    logits = np.eye(3)[truth].transpose(2, 0, 1) + generator.normal(0, 1.2, (3, *SIZE))
    return image, truth, torch.tensor(logits).softmax(0).float()


def gaussian(features: Tensor) -> Tensor:
    """(N, N) kernel between all pairs."""
    return torch.exp(-0.5 * torch.cdist(features.double(), features.double()) ** 2)


def normalised(kernel: Tensor) -> Tensor:
    scale = kernel.sum(1).rsqrt()
    return scale[:, None] * kernel * scale


def brute_force(image: np.ndarray, probabilities: Tensor, options: CrfSettings) -> Tensor:
    """Mean field with every pair of pixels, in double precision."""
    positions = bilateral_features(image, options.smoothness_xy, 1.0)[:, :2]
    colours = bilateral_features(image, options.appearance_xy, options.appearance_rgb)
    kernel = options.smoothness_weight * normalised(gaussian(positions))
    kernel += options.appearance_weight * normalised(gaussian(colours))
    log_p = probabilities.double().clamp_min(MIN_PROBABILITY).log().flatten(1).T
    posterior = log_p.softmax(1)
    for _ in range(options.iterations):
        posterior = (log_p + kernel @ posterior).softmax(1)
    return posterior.T.reshape(probabilities.shape)


class TestAgainstAllPairs:
    @pytest.mark.parametrize(
        ("noise", "options", "mean", "agreement"),
        [(2, PUBLISHED, 0.002, 0.995), (5, WIDE, 0.002, 0.995), (10, WIDE, 0.005, 0.99), (10, PUBLISHED, 0.03, 0.95)],
        ids=["published", "wide", "wide in noise", "published in noise of three deviations"],
    )
    @pytest.mark.parametrize("seed", range(3))
    def test_posteriors_and_labels(
        self, seed: int, noise: float, options: CrfSettings, mean: float, agreement: float
    ) -> None:
        image, _, probabilities = scene(seed, noise)
        found, exact = dense_crf(image, probabilities, options), brute_force(image, probabilities, options)
        assert float((found - exact).abs().mean()) < mean
        assert float((found.argmax(0) == exact.argmax(0)).double().mean()) >= agreement

    def test_the_smoothness_kernel_is_exact(self) -> None:
        image, _, probabilities = scene(0, 5)
        options = CrfSettings(smoothness_xy=1.7, appearance_weight=0)
        exact = brute_force(image, probabilities, options)
        assert torch.allclose(dense_crf(image, probabilities, options).double(), exact, atol=1e-4)

    def test_the_smoothness_kernel_is_symmetric(self) -> None:
        kernel = Smoothness((4, 6), 1.0, torch.device("cpu"))
        matrix = kernel(torch.eye(24).reshape(24, 4, 6)).reshape(24, 24)
        assert torch.allclose(matrix, matrix.T, atol=1e-6)

    @pytest.mark.parametrize(("dimensions", "spread"), [(1, 4.0), (2, 4.0), (3, 4.0), (5, 2.0), (5, 4.0)])
    def test_filtering_is_a_weighted_mean(self, dimensions: int, spread: float) -> None:
        torch.manual_seed(dimensions)
        features, values = torch.rand(600, dimensions) * spread, torch.rand(600, 2)
        lattice = PermutohedralLattice(features)
        found = lattice.filter(values) / lattice.filter(torch.ones(600, 1))
        kernel = gaussian(features)
        exact = kernel @ values.double() / kernel.sum(1, keepdim=True)
        assert float((found - exact).square().mean().sqrt()) < 0.015
        assert float((found - exact).square().mean()) < 0.2 * float(exact.var())  # more than a global mean

    def test_one_dimension_is_the_unit_gaussian_on_average(self) -> None:
        """Responses to impulses at all positions of a lattice cell, whose width is half the square root of 3."""
        step = 0.005
        x = torch.arange(-1200, 1201) * step
        positions = torch.arange(1200, 1200 + round(3**0.5 / 2 / step))
        impulses = torch.zeros(len(x), len(positions))
        impulses[positions, torch.arange(len(positions))] = 1 / step
        responses = PermutohedralLattice(x[:, None]).filter(impulses)
        responses = responses / responses.sum(0) / step
        offsets = x[:, None] - x[positions]
        assert float((responses * offsets**2).sum(0).mean() * step) == pytest.approx(1, abs=0.01)
        assert torch.allclose(responses, torch.exp(-0.5 * offsets**2) / (2 * torch.pi) ** 0.5, atol=0.1)


class TestLattice:
    @given(seed=st.integers(0, 10**6), dimensions=st.integers(1, 5), scale=st.floats(0.01, 100))
    @settings(max_examples=25, deadline=None)
    def test_linear_positive_and_blind_to_order(self, seed: int, dimensions: int, scale: float) -> None:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(40, dimensions, generator=generator) * scale
        one, two = torch.rand(2, 40, 3, generator=generator)
        lattice = PermutohedralLattice(features)
        filtered = lattice.filter(one)
        assert bool((filtered >= 0).all())
        assert bool((lattice.filter(torch.ones(40, 1)) > 0).all())
        assert torch.allclose(lattice.filter(2 * one + two), 2 * filtered + lattice.filter(two), atol=1e-5)
        order = torch.randperm(40, generator=generator)
        assert torch.allclose(PermutohedralLattice(features[order]).filter(one[order]), filtered[order], atol=1e-5)

    def test_equal_points_share_everything_and_far_ones_nothing(self) -> None:
        features = torch.tensor([[0.0, 0.0], [0.0, 0.0], [900.0, -900.0]])
        found = PermutohedralLattice(features).filter(torch.tensor([[1.0], [3.0], [0.0]]))
        assert float(found[0]) == float(found[1]) > 0
        assert float(found[2]) == 0

    def test_a_translation_changes_little(self) -> None:
        torch.manual_seed(0)
        features, values = torch.rand(400, 5) * 2, torch.rand(400, 1)
        means = []
        for shift in (0.0, 0.37):
            lattice = PermutohedralLattice(features + shift)
            means.append(lattice.filter(values) / lattice.filter(torch.ones(400, 1)))
        assert float((means[0] - means[1]).abs().max()) < 0.05

    def test_more_simplices_than_integers_are_refused(self) -> None:
        with pytest.raises(UserError, match="too narrow"):
            PermutohedralLattice(torch.tensor([[0.0] * 5, [1e9] * 5]))


class TestDenseCrf:
    @pytest.mark.parametrize("options", [PUBLISHED, WIDE])
    def test_it_finds_the_regions(self, options: CrfSettings) -> None:
        image, truth, probabilities = scene(1, 2)
        assert float((probabilities.argmax(0).numpy() == truth).mean()) < 0.65
        assert float((dense_crf(image, probabilities, options).argmax(0).numpy() == truth).mean()) > 0.99

    def test_posteriors_add_up_and_repeat_to_the_bit(self) -> None:
        image, _, probabilities = scene(2, 5)
        first, second = dense_crf(image, probabilities), dense_crf(image, probabilities)
        assert torch.equal(first, second)
        assert torch.allclose(first.sum(0), torch.ones(SIZE), atol=1e-5)
        assert first.dtype == torch.float32

    def test_without_iterations_or_weights_it_only_normalises(self) -> None:
        image, _, probabilities = scene(0, 5)
        for options in (CrfSettings(iterations=0), CrfSettings(smoothness_weight=0, appearance_weight=0)):
            assert torch.allclose(dense_crf(image, 0.5 * probabilities, options), probabilities, atol=1e-5)

    @given(order=st.permutations(range(3)))
    @settings(max_examples=4, deadline=None)
    def test_classes_have_no_order(self, order: list[int]) -> None:
        image, _, probabilities = scene(0, 5)
        found = dense_crf(image, probabilities[order], WIDE)
        assert torch.allclose(found, dense_crf(image, probabilities, WIDE)[order], atol=1e-4)

    def test_impossible_classes_and_single_pixels_are_defined(self) -> None:
        image, _, probabilities = scene(0, 5)
        probabilities[1] = 0
        assert bool(torch.isfinite(dense_crf(image, probabilities)).all())
        single = dense_crf(np.zeros((1, 1, 3), np.uint8), torch.tensor([0.3, 0.7])[:, None, None])
        assert float(single.sum()) == pytest.approx(1)
        assert int(single.argmax()) == 1

    def test_what_does_not_fit_is_refused(self) -> None:
        image, _, probabilities = scene(0, 5)
        with pytest.raises(UserError, match="resize"):
            dense_crf(image[:, 1:], probabilities)
        for wrong in (-probabilities, probabilities * torch.nan):
            with pytest.raises(UserError, match="negative or not a number"):
                dense_crf(image, wrong)
        with pytest.raises(UserError, match="appearance_rgb is 0"):
            CrfSettings(appearance_rgb=0)
        with pytest.raises(UserError, match="-1 iterations"):
            CrfSettings(iterations=-1)

    @pytest.mark.slow
    def test_a_photograph_with_21_classes_takes_seconds(self) -> None:
        """500 x 375 pixels: blocks of colour in camera noise. Processor time, so that other programs do not count."""
        generator = np.random.default_rng(0)
        blocks = generator.integers(0, 255, (38, 50, 3)).repeat(10, 0).repeat(10, 1)[:375]
        image = (blocks + generator.normal(0, 4, blocks.shape)).clip(0, 255).astype(np.uint8)
        probabilities = torch.rand(21, 375, 500, generator=torch.Generator().manual_seed(0)).softmax(0)
        started = time.process_time()
        dense_crf(image, probabilities)
        assert time.process_time() - started < 30


def test_uncertain_pixels_are_void() -> None:
    posterior = torch.tensor([[[0.96, 0.5, 0.02]], [[0.04, 0.5, 0.98]]])
    assert confident_labels(posterior).tolist() == [[0, VOID, 1]]
    assert confident_labels(posterior, 0).tolist() == [[0, 0, 1]]


def test_the_wrapped_image_of_clip_es() -> None:
    image = np.array([[[122, 116, 104], [123, 117, 105], [0, 255, 200]]], np.uint8)
    assert wrapped_image(image).tolist() == [[[0, 0, 0], [0, 0, 0], [256 - int(ES_MEAN_RGB[0]), 138, 95]]]
