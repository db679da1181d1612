"""Training and plain views: sizes, alignment of image and labels, what is random and what is not."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from weakly.errors import UserError
from weakly.methods.image_views import (
    MEAN,
    STD,
    VOID,
    Augmentation,
    choose_crop,
    distort,
    fit_size,
    plain_view,
    resize_labels,
    training_view,
)

SMALL = Augmentation(crop=48, short=40, long=160)
COLOURS = np.array([[220, 30, 30], [30, 200, 40], [40, 50, 230], [128, 128, 128]], np.uint8)
sizes = st.tuples(st.integers(5, 90), st.integers(5, 90))
seeds = st.integers(0, 2**32)


def scene(size: tuple[int, int], seed: int = 0) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """An image in which every category has one colour, in large patches, so that colour tells the label."""
    rng = np.random.default_rng(seed)
    labels = cv2.resize(rng.integers(0, 4, (3, 3)).astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST)
    return COLOURS[labels], labels


@given(sizes, seeds)
@settings(max_examples=60, deadline=None)
def test_a_training_view_has_the_size_of_the_crop_and_no_new_label(size: tuple[int, int], seed: int) -> None:
    image, labels = scene(size, seed)
    pixels, view = training_view(image, labels, SMALL, np.random.default_rng(seed))
    assert pixels.shape == (3, 48, 48)
    assert pixels.dtype == torch.float32
    assert view.shape == (48, 48)
    assert view.dtype == torch.int64
    assert set(view.unique().tolist()) <= {*np.unique(labels).tolist(), VOID}


@given(sizes, seeds)
@settings(max_examples=30, deadline=None)
def test_a_view_is_a_function_of_its_generator_and_leaves_its_input_alone(size: tuple[int, int], seed: int) -> None:
    image, labels = scene(size)
    before = image.copy(), labels.copy()
    views = [training_view(image, labels, SMALL, np.random.default_rng(seed)) for _ in range(2)]
    assert torch.equal(views[0][0], views[1][0])
    assert torch.equal(views[0][1], views[1][1])
    assert np.array_equal(before[0], image)
    assert np.array_equal(before[1], labels)


@given(st.tuples(st.integers(30, 90), st.integers(30, 90)), seeds, st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_image_and_labels_stay_on_top_of_each_other(size: tuple[int, int], seed: int, flip: float) -> None:
    """Away from borders between patches and of the crop, every labelled pixel has the colour of its label."""
    image, labels = scene(size, seed)
    augmentation = Augmentation(crop=48, short=40, long=160, flip=flip, photometric=False)
    pixels, view = training_view(image, labels, augmentation, np.random.default_rng(seed))
    colours = pixels.permute(1, 2, 0).numpy() * STD + MEAN
    inner = cv2.erode(view.numpy().astype(np.uint8), np.ones((9, 9))) == cv2.dilate(
        view.numpy().astype(np.uint8), np.ones((9, 9))
    )
    inner &= view.numpy() != VOID
    inner[[*range(4), *range(-4, 0)]] = False  # what lies beyond a cut still colours the pixels along it
    inner[:, [*range(4), *range(-4, 0)]] = False
    assert np.abs(colours[inner] - COLOURS[view.numpy()[inner]]).max(initial=0) < 2


def test_padding_is_zero_in_the_image_and_void_in_the_labels() -> None:
    image, labels = scene((10, 20))
    augmentation = Augmentation(crop=48, short=10, long=40, ratio=(1, 1))
    pixels, view = training_view(image, labels, augmentation, np.random.default_rng(0))
    assert (view[:10, :20] != VOID).all()
    for outside in (view[10:], view[:, 20:]):
        assert (outside == VOID).all()
    for outside in (pixels[:, 10:], pixels[:, :, 20:]):
        assert (outside == 0).all()


def test_flipping_mirrors_both() -> None:
    image, labels = scene((48, 48), 3)
    plain, mirrored = (
        training_view(
            image,
            labels,
            Augmentation(crop=48, short=48, long=48, ratio=(1, 1), flip=flip, photometric=False),
            np.random.default_rng(0),
        )
        for flip in (0.0, 1.0)
    )
    assert torch.equal(plain[0].flip(-1), mirrored[0])
    assert torch.equal(plain[1].flip(-1), mirrored[1])
    assert not torch.equal(plain[1], mirrored[1])


def test_about_half_of_the_views_are_mirrored_and_ratios_fill_their_range() -> None:
    labels = np.zeros((8, 8), np.uint8)
    labels[:, 4:] = 1
    image = COLOURS[labels]
    augmentation = Augmentation(crop=40, short=16, long=16, ratio=(0.5, 2), photometric=False)
    mirrored, widths = 0, []
    for seed in range(200):
        view = training_view(image, labels, augmentation, np.random.default_rng(seed))[1][0]
        mirrored += int(view[0] == 1)
        widths.append(int((view != VOID).sum()))
    assert 70 < mirrored < 130
    assert min(widths) in (8, 9)
    assert max(widths) in (31, 32)
    assert 18 < np.mean(widths) < 22


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_a_crop_that_one_category_fills_is_drawn_again(seed: int) -> None:
    labels = np.zeros((64, 200), np.uint8)
    labels[:, 90:110] = 1
    labels[:, 110:] = VOID
    y, x = choose_crop(labels, 32, 0.75, np.random.default_rng(seed))
    assert (0 <= y <= 32) and (0 <= x <= 168)
    tries = np.random.default_rng(seed)
    corners = [(int(tries.integers(33)), int(tries.integers(169))) for _ in range(10)]
    good = [corner for corner in corners if _largest_share(labels, corner) < 0.75]
    assert (y, x) == (good[0] if good else corners[-1])


def _largest_share(labels: NDArray[np.uint8], corner: tuple[int, int]) -> float:
    crop = labels[corner[0] : corner[0] + 32, corner[1] : corner[1] + 32]
    counts = [int((crop == value).sum()) for value in (0, 1)]
    return max(counts) / sum(counts) if sum(counts) else 1.0


@given(seeds)
@settings(max_examples=50, deadline=None)
def test_distorted_colours_stay_colours_and_grey_stays_grey(seed: int) -> None:
    colours = np.random.default_rng(seed).uniform(0, 255, (6, 7, 3)).astype(np.float32)
    distorted = distort(colours, np.random.default_rng(seed))
    assert distorted.dtype == np.float32
    assert distorted.min() >= 0
    assert distorted.max() <= 255
    grey = distort(np.repeat(colours[..., :1], 3, axis=2), np.random.default_rng(seed))
    assert np.abs(grey - grey[..., :1]).max() < 1e-2


def test_one_view_in_sixteen_keeps_its_colours() -> None:
    """Four distortions, each with probability 1/2."""
    colours = np.random.default_rng(0).uniform(40, 200, (4, 4, 3)).astype(np.float32)
    kept = sum(np.array_equal(distort(colours, np.random.default_rng(seed)), colours) for seed in range(800))
    assert 800 / 16 * 0.5 < kept < 800 / 16 * 1.6


def test_a_hue_turns_by_at_most_a_tenth_of_the_circle() -> None:
    red = np.full((1, 1, 3), (120, 40, 40), np.float32)  # far from black and white, which would bend the hue
    hues = [
        cv2.cvtColor(distort(red, np.random.default_rng(seed)) / np.float32(255), cv2.COLOR_RGB2HSV)[0, 0, 0]
        for seed in range(300)
    ]
    turned = np.minimum(hues, 360 - np.array(hues))
    assert turned.max() < 36.5
    assert turned.max() > 25


@pytest.mark.parametrize(
    ("size", "expected"), [((375, 500), (512, 683)), ((500, 375), (683, 512)), ((100, 1000), (205, 2048))]
)
def test_the_short_side_fits_unless_the_long_one_does_not(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fit_size(size, 512, 2048) == expected


@given(st.integers(1, 40), st.integers(2, 5))
def test_enlarged_labels_are_blocks(side: int, factor: int) -> None:
    labels = np.random.default_rng(side).integers(0, 200, (side, side)).astype(np.uint8)
    enlarged = resize_labels(labels, (side * factor, side * factor))
    assert np.array_equal(enlarged, labels.repeat(factor, 0).repeat(factor, 1))


def test_a_plain_view_is_the_whole_image_without_randomness() -> None:
    image, labels = scene((30, 60))
    pixels, view = plain_view(image, labels, 30, 90)
    assert np.array_equal(view.numpy(), labels)
    assert np.allclose(pixels.permute(1, 2, 0).numpy() * STD + MEAN, image, atol=1e-3)
    assert plain_view(image, labels, 60, 90)[1].shape == (45, 90)


@pytest.mark.parametrize(
    "values",
    [{"crop": 0}, {"short": 0}, {"short": 9, "long": 8}, {"ratio": (2, 1)}, {"flip": 2}, {"cat_max_ratio": -1}],
)
def test_impossible_settings_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"augmentation.{next(iter(values))}"):
        Augmentation(**values)
