"""What the weakly supervised detector is trained on: which images, in which order, in which views."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_wsod import TRAINING, tiny_data, tiny_image, tiny_proposals

from weakly.methods.weaksam.wsod_data import load_batch, mirror, roi_view


def test_images_that_teach_nothing_are_left_out_and_counted() -> None:
    tags = np.eye(2, dtype=bool)[np.arange(6) % 2]
    tags[[1, 4]] = False
    proposals = [tiny_proposals(index) for index in range(6)]
    proposals[3] = proposals[4] = np.zeros((0, 4), np.float32)
    data = tiny_data(6, tags=tags, proposals=proposals)
    assert data.usable.tolist() == [0, 2, 5] and data.skipped == {"no tags": [1, 4], "no proposals": [3]}
    many = replace(TRAINING, batch=8)
    for step in range(4):
        batch = load_batch(data, step, many)
        assert len(batch.inputs) == 3 and sorted(batch.tags.int().argmax(1).tolist()) == [0, 0, 1]


def test_a_batch_is_a_function_of_seed_and_step() -> None:
    data = tiny_data()
    late = load_batch(data, 5, TRAINING)
    load_batch(data, 0, TRAINING)
    again = load_batch(data, 5, TRAINING)
    assert all(torch.equal(a, b) for a, b in zip(late.inputs + late.boxes, again.inputs + again.boxes, strict=True))
    other = load_batch(data, 5, replace(TRAINING, seed=1))
    assert any(a.shape != b.shape or not torch.equal(a, b) for a, b in zip(late.inputs, other.inputs, strict=True))


def test_an_epoch_shows_every_image_once_in_all_sizes_and_both_ways() -> None:
    data = tiny_data()
    batches = [load_batch(data, step, TRAINING) for step in range(40)]
    shapes = {tuple(image.shape[1:]) for batch in batches for image in batch.inputs}
    assert shapes == {(32, 43), (48, 64)}
    for epoch in range(10):
        shown = torch.cat([batch.tags for batch in batches[4 * epoch : 4 * epoch + 4]])
        assert shown.sum(0).tolist() == [5, 5]
    one = tiny_data(1)
    alone = [load_batch(one, step, TRAINING) for step in range(20)]
    lefts = {round(float(batch.boxes[0][0, 0]) / batch.inputs[0].shape[2], 4) for batch in alone}
    assert lefts == {4 / 64, 40 / 64}, "as it is and mirrored"


def test_readers_tags_and_proposals_go_together() -> None:
    with pytest.raises(ValueError, match="different lengths"):
        tiny_data(4, keys=["a"])


def test_a_view_scales_and_mirrors_image_and_boxes_alike() -> None:
    image, boxes = tiny_image(0), tiny_proposals(0)
    pixels, scaled, size = roi_view(image, boxes, 96, 200, mirrored=False)
    assert size == (96, 128) and pixels.shape == (3, *size) and torch.equal(scaled, torch.from_numpy(boxes * 2))
    other, turned, _ = roi_view(image, boxes, 96, 200, mirrored=True)
    assert torch.equal(other, pixels.flip(2))
    torch.testing.assert_close(mirror(turned, 128), scaled)
    x0, y0, x1, y1 = turned[0].int().tolist()
    assert (other[0, y0 + 2 : y1 - 2, x0 + 2 : x1 - 2] > 200).all(), "the red square is where its box is"
    assert roi_view(image, boxes, 96, 100, mirrored=False).size == (75, 100)
