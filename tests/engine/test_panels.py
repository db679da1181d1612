"""Stages on disk: what is kept is read back as it was, in the place of what was there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from weakly.engine.panels import read_panels, store_panels
from weakly.engine.runs import Run
from weakly.errors import UserError
from weakly.methods.base import Panel

HEAT = Panel("CAM of dog", "heat", np.arange(12, dtype=np.uint8).reshape(3, 4))
REGIONS = Panel("superpixels", "regions", np.array([[0, 300], [65535, 1]], np.uint16))
LABELS = Panel("seed", "labels", np.array([[255, 39], [0, 1]], np.uint8))


def test_panels_are_read_back_as_they_were(tmp_path: Path) -> None:
    run = Run(tmp_path)
    assert read_panels(run, "val") == {}
    store_panels(run, "val", {7: [HEAT, REGIONS], "2026_000001": [LABELS], 8: []})
    store_panels(run, "train", {1: [HEAT]})
    found = read_panels(run, "val")
    assert list(found) == [7, "2026_000001"], "an image without stages is not listed"
    for panel, expected in zip([*found[7], *found["2026_000001"]], [HEAT, REGIONS, LABELS], strict=True):
        assert (panel.title, panel.kind) == (expected.title, expected.kind)
        assert np.array_equal(panel.values, expected.values)


def test_later_panels_take_the_place_of_earlier_ones(tmp_path: Path) -> None:
    run = Run(tmp_path)
    store_panels(run, "val", {1: [HEAT, REGIONS], 2: [LABELS]})
    store_panels(run, "val", {2: [HEAT]})
    assert list(read_panels(run, "val")) == [2]
    assert sorted(path.name for path in (tmp_path / "panels" / "val").iterdir()) == ["00-0-heat.png", "panels.json"]


def test_a_removed_picture_is_a_user_error(tmp_path: Path) -> None:
    store_panels(Run(tmp_path), "val", {1: [HEAT]})
    (tmp_path / "panels" / "val" / "00-0-heat.png").unlink()
    with pytest.raises(UserError, match=r"00-0-heat\.png"):
        read_panels(Run(tmp_path), "val")
