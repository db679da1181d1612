"""How features are coded, what that costs in bytes and in accuracy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.foundation import feature_codec as codec
from weakly.foundation.features import drift

SHAPE = (4, 6, 6)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**16), magnitude=st.sampled_from([0.0, 1e-3, 1.0, 300.0]), offset=st.floats(-50, 50))
def test_coding_error_is_bounded_for_any_features(seed: int, magnitude: float, offset: float) -> None:
    noise = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(seed))
    exact = noise * magnitude + offset
    largest = exact.abs().amax((2, 3), keepdim=True)
    half = codec.decode(codec.encode(exact, "float16"))
    assert ((half - exact).abs() <= exact.abs() * 2**-11 + 2**-25).all()
    step = (exact.amax((2, 3), keepdim=True) - exact.amin((2, 3), keepdim=True)) / 255
    byte = codec.decode(codec.encode(exact, "int8"))
    assert ((byte - exact).abs() <= step / 2 + 1e-6 * largest).all()


def test_drift_compares_the_codings() -> None:
    exact = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert drift(exact, "float32").relative_l2 == 0
    assert 0 < drift(exact, "float16").relative_l2 < drift(exact, "int8").relative_l2 < 0.01
    assert codec.difference(exact[:0], exact[:0]).relative_l2 == 0


@pytest.mark.parametrize(("dtype", "expected"), [("float32", 576), ("float16", 288), ("int8", 144 + 32)])
def test_bytes_per_image_follow_the_formula(dtype: codec.FeatureDtype, expected: int) -> None:
    assert codec.image_bytes(dtype, SHAPE) == expected
    assert codec.image_bytes("float16", (256, 64, 64)) == 2 << 20  # SAM: 2 MiB per image
