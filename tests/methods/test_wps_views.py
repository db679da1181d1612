"""Moved and zoomed views of stored embeddings, and the prompts that move with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.features import Features
from weakly.foundation.sam import SamSegmenter
from weakly.methods.wps.settings import Jitter, WpsSettings
from weakly.methods.wps.targets import Teacher, WpsBatch, WpsData, teacher_targets
from weakly.methods.wps.views import JitteredViews, move_maps, moved
from weakly.vocabulary import Vocabulary

SIDE = 64


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 6)


class Stored(Features):
    """Random maps (n, 3, 4, 4)."""

    resident = True

    def __init__(self, length: int, seed: int = 0) -> None:
        self.maps = torch.randn(length, 3, 4, 4, generator=torch.Generator().manual_seed(seed))

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return self.maps[indices]


class Echo(Teacher):
    """Tokens that are the prompt itself, (K, 1, 6)."""

    def __init__(self) -> None:
        pass

    side = SIDE

    def __call__(self, prompts: torch.Tensor) -> torch.Tensor:
        return prompts[:, None].clone()


def batch_of(*boxes: list[float], point: bool = False) -> WpsBatch:
    """One image with these boxes (and their centres), labels 0, 1, ..."""
    xyxy = torch.tensor(boxes).view(-1, 4)
    centres = (xyxy[:, :2] + xyxy[:, 2:]) / 2 if point else torch.zeros(len(xyxy), 2)
    prompts = torch.cat([xyxy, centres], 1)[None]
    return WpsBatch(torch.ones(1, 2, 4, 4), torch.arange(len(xyxy))[None], prompts[:, :, None], prompts, (len(xyxy),))


def motion(zoom: float = 1.0, right: float = 0.0, down: float = 0.0) -> torch.Tensor:
    return torch.tensor([[zoom, right, down]])


@given(right=st.integers(-3, 3), down=st.integers(-3, 3))
@settings(max_examples=25, deadline=None)
def test_a_shift_by_whole_cells_copies_cells_and_uncovers_zeros(right: int, down: int) -> None:
    maps = torch.randn(1, 3, 4, 4) + 5
    shifted = move_maps(maps, motion(1.0, right * 16, down * 16), SIDE)
    expected = torch.zeros(1, 3, 4, 4)
    for y in range(4):
        for x in range(4):
            if 0 <= y - down < 4 and 0 <= x - right < 4:
                expected[..., y, x] = maps[..., y - down, x - right]
    assert torch.allclose(shifted, expected, atol=1e-5)


def test_zooming_in_keeps_the_centre_and_enlarges_it() -> None:
    ramp = torch.linspace(-1.5, 1.5, 4).expand(1, 1, 4, 4).clone()
    assert torch.allclose(move_maps(ramp, motion(2.0), SIDE), ramp / 2, atol=1e-5)


def test_boxes_move_with_the_map() -> None:
    result = moved(batch_of([16.0, 8.0, 32.0, 24.0], point=True), motion(1.0, 16, -8), 0.3, Echo())
    assert result.prompts[0, 0].tolist() == [32, 0, 48, 16, 40, 8]
    assert result.tokens[0, 0, 0].tolist() == result.prompts[0, 0].tolist()
    zoomed = moved(batch_of([16.0, 16.0, 32.0, 32.0]), motion(1.5), 0.3, Echo())
    assert zoomed.prompts[0, 0].tolist() == [8, 8, 32, 32, 0, 0]


def test_parts_that_leave_are_clipped_then_dropped_and_the_others_close_ranks() -> None:
    boxes = ([0.0, 0.0, 20.0, 20.0], [40.0, 40.0, 60.0, 60.0], [30.0, 0.0, 50.0, 20.0])
    result = moved(batch_of(*boxes), motion(1.0, 16, 16), 0.3, Echo())
    assert result.counts == (2,)
    assert result.labels.tolist() == [[0, 2]]
    assert result.prompts[0, 1].tolist() == [46, 16, 64, 36, 0, 0]
    assert moved(batch_of(*boxes), motion(1.0, 16, 16), 0.0, Echo()).labels.tolist() == [[0, 1, 2]]
    assert moved(batch_of(*boxes), motion(1.0, -60, 0), 0.3, Echo()).counts == (0,)


def test_a_click_that_leaves_takes_its_part_with_it() -> None:
    centre = batch_of([40.0, 40.0, 60.0, 60.0], point=True)
    assert moved(centre, motion(1.0, 16, 0), 0.0, Echo()).counts == (0,)


def test_an_image_without_parts_stays_one() -> None:
    nothing = WpsBatch(
        torch.ones(2, 2, 4, 4), torch.zeros(2, 0).long(), torch.zeros(2, 0, 1, 6), torch.zeros(2, 0, 6), (0, 0)
    )
    result = moved(nothing, motion().repeat(2, 1), 0.3, Echo())
    assert result.counts == (0, 0)
    assert result.labels.shape == (2, 0)


def test_a_view_is_a_function_of_seed_and_index_alone(segmenter: SamSegmenter, dataset: Dataset) -> None:
    targets = teacher_targets(segmenter, dataset, WpsSettings(), mirrored=(False, True))
    data = WpsData((Stored(6), Stored(6, 1)), targets, Teacher(segmenter, "box"))
    views = JitteredViews(data, Jitter(shift=0.3, zoom=1.3), data.teacher, seed=3)
    alone = [views[index] for index in (6 * 7 + 2, 6 * 8 + 1)]
    together = views.__getitems__([6 * 7 + 2, 6 * 8 + 1])
    for row, single in enumerate(alone):
        assert torch.allclose(together.embeddings[row], single.embeddings[0], atol=1e-6)
        count = single.counts[0]
        assert together.counts[row] == count
        assert torch.allclose(together.tokens[row, :count], single.tokens[0], atol=1e-5)
    other = JitteredViews(data, Jitter(shift=0.3, zoom=1.3), data.teacher, seed=4)[6 * 7 + 2]
    assert not torch.allclose(other.embeddings, alone[0].embeddings)


def test_tokens_of_a_view_are_those_of_its_boxes(segmenter: SamSegmenter, dataset: Dataset) -> None:
    data = WpsData((Stored(6),), teacher_targets(segmenter, dataset, WpsSettings()), teacher=Teacher(segmenter, "box"))
    view = JitteredViews(data, Jitter(shift=0.2), data.teacher, seed=0)[6 * 3 + 1]
    boxes = view.prompts[0, : view.counts[0], :4]
    assert torch.allclose(view.tokens[0, : view.counts[0]], segmenter.box_tokens(boxes), atol=1e-5)


def test_shifts_are_whole_cells(segmenter: SamSegmenter, dataset: Dataset) -> None:
    data = WpsData((Stored(6),), teacher_targets(segmenter, dataset, WpsSettings()), teacher=Teacher(segmenter, "box"))
    views = JitteredViews(data, Jitter(shift=0.5), data.teacher, seed=0)
    drawn = views.draw(range(50), (4, 4))
    cells = drawn[:, 1:] / (segmenter.side / 4)
    assert torch.equal(cells, cells.round())
    assert cells.abs().max() == 2
    assert (drawn[:, 0] == 1).all()


@pytest.mark.parametrize("wrong", [{"shift": 1.0}, {"shift": -0.1}, {"zoom": 0.5}, {"visible": 2.0}])
def test_impossible_jitter_is_named(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=f"settings.jitter.{next(iter(wrong))}"):
        Jitter(**wrong)


def test_mirrored_names_swap_left_and_right_as_whole_words() -> None:
    vocabulary = Vocabulary.from_names(["front_left_door", "front_right_door", "bright light", "Left Wing", "hood"])
    assert vocabulary.mirrored().tolist() == [1, 0, 2, 3, 4]
    assert np.array_equal(vocabulary.mirrored()[vocabulary.mirrored()], np.arange(5))
