"""Prompts to masks at the original size, and how overlapping masks are fused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tiny_segmenter import tiny_segmenter

from weakly.foundation.promptable import Frame
from weakly.methods import decoding
from weakly.methods.decoding import decode_prompts, fuse, mask_extents, refined_prompts

FRAME = Frame.fit((8, 8), 8)


def logit(probability: list[list[float]] | np.ndarray) -> torch.Tensor:
    return torch.logit(torch.as_tensor(probability, dtype=torch.float32))


def columns(*values: float) -> torch.Tensor:
    """(8, 8) logits of probabilities by column."""
    return logit(np.tile(np.array(values), (8, 1)))


def fused(logits: list[torch.Tensor], labels: list[int], scores: list[float], **options: object):  # noqa: ANN202
    return fuse(
        FRAME,
        torch.stack(logits),
        np.array(labels),
        np.array(scores, np.float32),
        [{"query": i} for i in range(len(labels))],
        background=3,
        **options,
    )


LEFT = columns(0.9, 0.9, 0.9, 0.9, 0.6, 0.3, 0.1, 0.1)
RIGHT = columns(0.1, 0.1, 0.1, 0.6, 0.7, 0.7, 0.7, 0.3)


def test_a_pixel_goes_to_the_largest_score_times_probability_among_masks_that_claim_it() -> None:
    result = fused([LEFT, RIGHT], [0, 1], [0.9, 0.8])
    # Column 4: 0.9 * 0.6 = 0.54 against 0.8 * 0.7 = 0.56. Column 7: nobody reaches 0.5.
    assert result.label_map[0].tolist() == [0, 0, 0, 0, 1, 1, 1, 3]
    assert result.masks()[0, 0].tolist() == [True] * 5 + [False] * 3
    assert result.masks()[1, 0].tolist() == [False] * 3 + [True] * 4 + [False]
    assert result.labels.tolist() == [0, 1]
    assert result.scores.tolist() == pytest.approx([0.9, 0.8])
    assert result.provenance == ({"query": 0}, {"query": 1})
    assert result.boxes.tolist() == [[0, 0, 5, 8], [3, 0, 7, 8]]


def test_soft_sum_adds_the_probabilities_of_a_category() -> None:
    weak = columns(0.3, 0.3, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1)
    result = fused([weak, RIGHT, weak], [2, 1, 2], [0.5, 0.8, 0.7], fusion="soft_sum")
    assert result.labels.tolist() == [1, 2]
    assert result.scores.tolist() == pytest.approx([0.8, 0.7])
    assert result.provenance == ({"query": 1}, {"query": 2})
    # 0.3 + 0.3 passes 0.5 although neither does alone.
    assert result.masks()[1, 0].tolist() == [True, True] + [False] * 6
    assert result.label_map[0].tolist() == [2, 2, 3, 1, 1, 1, 1, 3]


@pytest.mark.parametrize("fusion", ["argmax", "soft_sum"])
def test_small_chunks_change_nothing(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = list(torch.randn(9, 8, 8, generator=generator))
    labels, scores = [0, 1, 2] * 3, np.linspace(0.3, 0.9, 9).tolist()
    whole = fused(logits, labels, scores, fusion=fusion)
    monkeypatch.setattr(decoding, "MASK_PIXELS", 1)
    pieces = fused(logits, labels, scores, fusion=fusion)
    assert [r["counts"] for r in whole.rles] == [r["counts"] for r in pieces.rles]
    assert np.array_equal(whole.label_map, pieces.label_map)


@pytest.mark.parametrize("fusion", ["argmax", "soft_sum"])
def test_no_prompt_is_an_empty_aligned_result(fusion: str) -> None:
    result = fuse(
        Frame.fit((5, 9), 8),
        torch.zeros(0, 8, 8),
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        [],
        background=300,
        fusion=fusion,
    )
    assert len(result) == 0
    assert result.label_map.shape == (5, 9)
    assert result.label_map.dtype == np.uint16
    assert (result.label_map == 300).all()


@pytest.mark.parametrize("pad", ["sam", "center_black"])
def test_padding_is_cut_away_before_resizing_to_the_original(pad: str) -> None:
    frame = Frame.fit((40, 80), 64, pad)  # content 32 x 64
    logits = torch.full((1, 64, 64), 5.0)
    logits[0, frame.top : frame.top + 16] = -5.0  # the upper half of the content
    result = fuse(frame, logits, np.array([1]), np.ones(1, np.float32), [{}], background=3)
    assert result.size == (40, 80)
    assert result.label_map[:19].tolist() == [[3] * 80] * 19
    assert result.label_map[21:].tolist() == [[1] * 80] * 19


def test_ragged_prompts_decode_as_each_image_alone_whatever_the_chunk(tmp_path: Path) -> None:
    segmenter = tiny_segmenter(tmp_path)
    embeddings = torch.randn(3, *segmenter.embedding_shape)
    tokens, index = torch.randn(7, 2, 32), torch.tensor([0, 0, 0, 2, 2, 2, 2])
    logits, iou = decode_prompts(segmenter, embeddings, tokens, index, max_prompts=2)
    assert logits.shape == (7, 32, 32)
    for row in range(7):
        alone = decode_prompts(segmenter, embeddings[index[row]][None], tokens[row : row + 1], torch.zeros(1).long())
        assert torch.allclose(logits[row], alone[0][0], atol=1e-4)
        assert torch.allclose(iou[row], alone[1][0], atol=1e-5)
    empty, none = decode_prompts(segmenter, embeddings, tokens[:0], index[:0])
    assert empty.shape == (0, 32, 32)
    assert none.shape == (0,)


@given(arrays.arrays(bool, st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 6))))
@settings(max_examples=60, deadline=None)
def test_extents_are_the_first_and_last_pixels(masks: np.ndarray) -> None:
    boxes, found = mask_extents(torch.from_numpy(masks))
    assert found.tolist() == [bool(mask.any()) for mask in masks]
    for mask, box in zip(masks, boxes.tolist(), strict=True):
        if mask.any():
            y, x = mask.nonzero()
            assert box == [x.min(), y.min(), x.max() + 1, y.max() + 1]


def test_a_refined_prompt_is_the_box_of_its_mask_and_an_empty_mask_keeps_its_own(tmp_path: Path) -> None:
    segmenter = tiny_segmenter(tmp_path)
    embeddings = torch.randn(1, *segmenter.embedding_shape)
    height = 4 * segmenter.embedding_shape[1]
    logits = torch.full((2, height, height), -1.0)
    logits[0, 2:5, 1:7] = 1
    tokens = torch.randn(2, 2, segmenter.token_width)
    image = torch.zeros(2, dtype=torch.int64)
    refined, answer = refined_prompts(segmenter, embeddings, tokens, logits, image)
    pixel = segmenter.side / height
    assert torch.allclose(refined[0], segmenter.box_tokens(torch.tensor([[1.0, 2, 7, 5]]) * pixel)[0])
    assert torch.equal(refined[1], tokens[1])
    assert torch.equal(answer, decode_prompts(segmenter, embeddings, refined, image)[0])
