"""Run-length encodings: masks to encodings and back, and what is measured on them."""

from __future__ import annotations

import numpy as np
import pytest

from weakly.segmentation import decode_masks, encode_masks, rle_areas, rle_boxes


@pytest.mark.parametrize("count", [0, 1, 255, 256, 300])
def test_areas_of_any_number_of_masks(count):
    masks = np.random.default_rng(count).random((count, 7, 11)) < 0.4
    rles = encode_masks(masks)
    np.testing.assert_array_equal(rle_areas(rles), masks.sum((1, 2)))
    assert rle_areas(rles).dtype == np.int64
    assert rle_boxes(rles).shape == (count, 4)
    np.testing.assert_array_equal(decode_masks(rles, (7, 11)), masks)


def test_areas_beyond_16_bits():
    (rle,) = encode_masks(np.ones((1, 400, 500), bool))
    assert rle_areas([rle]).tolist() == [200_000]
