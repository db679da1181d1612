"""Tensors, checkpoints and logs of trainings inside stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from weakly.methods.stage_files import (
    UNREADABLE,
    below,
    optimizer_tensors,
    read_checkpoint,
    read_log,
    read_tensors,
    restore_optimizer,
    write_log,
    write_tensors,
)

TENSORS = {"a.weight": torch.arange(6.0).reshape(2, 3).T, "b": torch.tensor(3)}
ABOUT = {"step": 7, "data": "d", "training": "t", "more": [1, None]}


def test_tensors_come_back_and_are_the_same_bytes_every_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_tensors(tmp_path / name, TENSORS, ABOUT)
    tensors, about = read_tensors(tmp_path / "one")
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    assert all(torch.equal(tensors[name], value) for name, value in TENSORS.items())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_only_the_checkpoint_of_the_same_training_counts(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    assert read_checkpoint(path, data="d") is None
    write_tensors(path, TENSORS, ABOUT)
    found = read_checkpoint(path, data="d", training="t")
    assert found is not None and found[1]["step"] == 7
    assert read_checkpoint(path, data="d", training="other") is None
    assert read_checkpoint(path, absent="d") is None


@pytest.mark.parametrize("content", [b"", b"damaged", b"\xff" * 64])
def test_a_damaged_checkpoint_counts_as_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "checkpoint").write_bytes(content)
    assert read_checkpoint(tmp_path / "checkpoint") is None
    with pytest.raises(UNREADABLE):
        read_tensors(tmp_path / "checkpoint")


def test_below_names_a_group_of_tensors_without_its_prefix() -> None:
    assert below(TENSORS, "a.").keys() == {"weight"}
    assert below(TENSORS, "c.") == {}


@pytest.mark.parametrize("kind", ["adam", "sgd"])
def test_an_optimizer_goes_on_where_it_stopped(kind: str) -> None:
    def start() -> tuple[torch.nn.Linear, Any]:
        torch.manual_seed(0)
        layer = torch.nn.Linear(3, 2)
        if kind == "adam":
            return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)
        return layer, torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)

    def update(layer: torch.nn.Linear, optimizer: Any, times: int) -> None:
        for _ in range(times):
            optimizer.zero_grad()
            layer(torch.ones(4, 3)).square().sum().backward()
            optimizer.step()

    whole, stopped, resumed = start(), start(), start()
    update(*whole, 5)
    update(*stopped, 3)
    resumed[0].load_state_dict(stopped[0].state_dict())
    restore_optimizer(resumed[1], optimizer_tensors(stopped[1]))
    update(*resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole[0].parameters(), resumed[0].parameters(), strict=True))


def test_rows_beyond_a_checkpoint_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path, 10) == []
    rows = [{"step": step, "loss": step / 8} for step in (1, 10, 20)]
    write_log(path, rows)
    assert path.read_text().count("\n") == 3
    assert read_log(path, 20) == rows
    assert read_log(path, 10) == rows[:2]
