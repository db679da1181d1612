"""Selective search, the yardstick of WeakSAM's proposals."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from weakly.errors import UserError
from weakly.methods.weaksam.selective_search import SelectiveSearchSettings, available, random_rank, selective_search

needs_contrib = pytest.mark.skipif(not available(), reason="the installed OpenCV is not its contrib build")


def picture() -> np.ndarray:
    """Three plain rectangles on a plain ground, with a little noise."""
    image = np.full((120, 160, 3), 90.0)
    image[20:60, 30:90] = (220, 30, 30)
    image[70:110, 100:150] = (30, 60, 220)
    image[30:100, 110:125] = (240, 230, 40)
    noisy = image + np.random.default_rng(0).normal(0, 2, image.shape)
    return noisy.clip(0, 255).astype(np.uint8)


@needs_contrib
def test_it_proposes_what_stands_out():
    boxes = selective_search(picture())
    assert boxes.dtype == np.float32
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= (160, 120)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert np.abs(boxes - (30, 20, 90, 60)).max(1).min() <= 2, (
        "within two pixels: regions are found in a smoothed image"
    )


@needs_contrib
def test_an_image_always_has_the_same_boxes_in_the_same_order():
    boxes = selective_search(picture())
    np.testing.assert_array_equal(selective_search(picture()), boxes)
    assert len(np.unique(boxes, axis=0)) == len(boxes)
    few = selective_search(picture(), SelectiveSearchSettings(most=3))
    np.testing.assert_array_equal(few, boxes[:3])
    other = selective_search(picture(), SelectiveSearchSettings(seed=1))
    assert {tuple(box) for box in other.tolist()} == {tuple(box) for box in boxes.tolist()}


@needs_contrib
def test_quality_searches_more():
    fast, quality = (len(selective_search(picture(), SelectiveSearchSettings(name))) for name in ("fast", "quality"))
    assert quality >= fast


def test_without_the_contrib_build_the_remedy_is_named(monkeypatch):
    monkeypatch.delattr(cv2, "ximgproc", raising=False)
    assert not available()
    with pytest.raises(UserError, match="opencv-contrib-python-headless"):
        selective_search(picture())


def test_large_regions_tend_to_come_first():
    sides = np.arange(1, 401, dtype=np.float32)
    boxes = np.stack([0 * sides, 0 * sides, sides, sides], 1)
    order = random_rank(boxes, 0)
    assert sorted(order.tolist()) == list(range(400))
    assert sides[order[:100]].mean() > 1.2 * sides.mean() > sides[order[-100:]].mean() * 1.2
    np.testing.assert_array_equal(order, random_rank(boxes, 0))


@pytest.mark.parametrize("wrong", [{"strategy": "slow"}, {"base_k": 0}, {"sigma": -1.0}, {"most": 0}])
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError):
        SelectiveSearchSettings(**wrong)


def test_only_rgb_images_are_searched():
    with pytest.raises(UserError, match="RGB"):
        selective_search(np.zeros((8, 8), np.uint8))
