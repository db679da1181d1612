"""Checkpoints are safetensors and JSON, and give back exactly what they were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.engine.checkpoint import SafetensorsCheckpoints, encode_checkpoint, read_checkpoint

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
nested = st.recursive(
    plain,
    lambda inner: (
        st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.integers() | st.text(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=40, deadline=None)
@given(nested)
def test_plain_values_come_back_with_their_types(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    path = tmp_path_factory.mktemp("c") / "c.safetensors"
    path.write_bytes(encode_checkpoint({"value": value}))
    found = read_checkpoint(path)["value"]
    assert found == value and repr(found) == repr(value)


def test_optimiser_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    optimiser = torch.optim.AdamW([weight], lr=1e-3)
    weight.sum().backward()
    optimiser.step()
    transposed = torch.arange(6.0).reshape(2, 3).T
    checkpoint = {"global_step": 1, "optimizer_states": [optimiser.state_dict()], "state_dict": {"t": transposed}}
    SafetensorsCheckpoints().save_checkpoint({**checkpoint, "hyper_parameters": object()}, tmp_path / "c.safetensors")
    found = SafetensorsCheckpoints().load_checkpoint(tmp_path / "c.safetensors")
    assert found["optimizer_states"][0]["param_groups"] == optimiser.state_dict()["param_groups"]
    for key, value in optimiser.state_dict()["state"][0].items():
        assert torch.equal(found["optimizer_states"][0]["state"][0][key], value)
    assert torch.equal(found["state_dict"]["t"], transposed)
    assert "hyper_parameters" not in found
    SafetensorsCheckpoints().remove_checkpoint(tmp_path / "c.safetensors")
    assert not list(tmp_path.iterdir())


def test_objects_are_refused_not_pickled() -> None:
    with pytest.raises(TypeError, match=r"checkpoint\.callbacks\.mine is a PosixPath"):
        encode_checkpoint({"callbacks": {"mine": Path()}})
