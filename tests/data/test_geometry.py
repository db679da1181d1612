"""Boxes, rings and run lengths are validated, never trusted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from weakly.data.geometry import MIN_BOX_SIDE, clip_box, numbers, rings_extent, rle_extent, usable_rings

SIDES = st.integers(1, 200)
ANY = st.floats(allow_nan=True, allow_infinity=True, width=32)
NEAR = st.floats(-300, 300)


@given(st.tuples(ANY | NEAR, ANY | NEAR, ANY | NEAR, ANY | NEAR), SIDES, SIDES)
def test_a_clipped_box_is_finite_inside_large_enough_and_stable(
    box: tuple[float, float, float, float], height: int, width: int
) -> None:
    clipped = clip_box(box, (height, width))
    if clipped is None:
        return
    x0, y0, x1, y1 = clipped
    assert all(math.isfinite(v) for v in box)
    assert x0 >= 0 and x1 - x0 >= MIN_BOX_SIDE and x1 <= width
    assert y0 >= 0 and y1 - y0 >= MIN_BOX_SIDE and y1 <= height
    assert clip_box(clipped, (height, width)) == clipped


@given(SIDES, SIDES, st.data())
def test_a_box_inside_the_image_is_left_alone(height: int, width: int, data: st.DataObject) -> None:
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    assert clip_box((x0, y0, x1, y1), (height, width)) == (x0, y0, x1, y1)


@pytest.mark.parametrize("value", [None, 3, [1, 2], [1, "2", 3, 4], [1, True, 3, 4], [10**400, 0, 0, 0]])
def test_what_is_not_four_numbers(value: object) -> None:
    assert numbers(value, 4) is None


TRIANGLE = [0, 0, 4, 0, 0, 4]


@pytest.mark.parametrize(
    "ring",
    [
        [],
        [1, 2],
        [1, 2, 3, 4],
        [0, 0, 1, 1, 2, 2],
        [5, 5, 5, 5, 5, 5],
        [0, 0, 4, 0, 0],
        [0, 0, 4, 0, 0, math.nan],
        [0, 0, 4, 0, 0, math.inf],
        ["0", "0", "4", "0", "0", "4"],
        [[0, 0], [4, 0], [0, 4], [0, 0], [4, 0], [0, 4]],
        [0, 0, 4, 0, 0, [4, 5]],
        "polygon",
    ],
)
def test_rings_without_area_or_with_strange_values_are_dropped(ring: object) -> None:
    rings, dropped = usable_rings([ring, TRIANGLE])
    assert dropped == 1
    assert [r.tolist() for r in rings] == [TRIANGLE]


def test_extent_spans_all_rings() -> None:
    rings, _ = usable_rings([TRIANGLE, [10, 11, 14, 11, 12, 19]])
    assert rings_extent(rings) == (0, 0, 14, 19)


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_extent_of_every_kind_of_rle(mask: np.ndarray) -> None:
    compressed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    text = {"size": list(mask.shape), "counts": compressed["counts"].decode()}
    flat = mask.reshape(-1, order="F")
    runs: list[int] = [0] if flat[0] else []
    runs += np.diff(np.flatnonzero(np.diff(flat, prepend=~flat[0], append=~flat[-1]))).tolist()
    plain = {"size": list(mask.shape), "counts": runs}
    ys, xs = np.nonzero(mask)
    expected = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
    for rle in (compressed, text, plain):
        assert rle_extent(rle, mask.shape) == expected


@pytest.mark.parametrize(
    "rle",
    [
        {},
        {"size": [4, 4]},
        {"size": [4, 5], "counts": [0, 20]},
        {"size": [4, 4], "counts": [0, 17]},
        {"size": [4, 4], "counts": [0, 15]},
        {"size": [4, 4], "counts": [20, -4]},
        {"size": [4, 4], "counts": [0.0, 16.0]},
        {"size": [4, 4], "counts": [0, 2**40]},
        {"size": [4, 4], "counts": ""},
        {"size": [4, 4], "counts": "0é"},
        {"size": [4, 4], "counts": "0 "},
        {"size": [4, 4], "counts": "oooooooooo0"},
        {"size": [4, 4], "counts": "0o"},
        {"size": [4, 4], "counts": 16},
        {"size": [4, 4], "counts": [16]},
    ],
)
def test_malformed_and_empty_rles_have_no_extent(rle: dict[str, object]) -> None:
    assert rle_extent(rle, (4, 4)) is None


def test_large_runs_survive_compression() -> None:
    mask = np.zeros((700, 900), np.uint8)
    mask[100:650, 20:880] = 1
    mask[300:310, 300:500] = 0
    assert rle_extent(coco_mask.encode(np.asfortranarray(mask)), mask.shape) == (20, 100, 880, 650)
