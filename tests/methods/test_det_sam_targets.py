"""What a detector trains on: images and boxes in one square frame, mirrored or not, collated in any order."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset, Record
from weakly.errors import UserError
from weakly.foundation.promptable import Frame
from weakly.labels import Boxes, Sample
from weakly.methods.base import Workspace
from weakly.methods.baselines.det_sam.targets import (
    DetSamData,
    FrameImages,
    box_targets,
    frame_pixels,
    readable_images,
)
from weakly.vocabulary import Vocabulary

FRAME = partial(Frame.fit, side=64)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 6)


@pytest.fixture
def data(dataset: Dataset) -> DetSamData:
    paths = tuple(sample.path for sample in dataset)
    views = (FrameImages(paths, 64), FrameImages(paths, 64, mirrored=True))
    return DetSamData(views, box_targets(dataset, FRAME, mirrored=(False, True)))


def sample_with(boxes: list[list[float]], labels: list[int], names: tuple[str, ...]) -> Dataset:
    given_boxes = Boxes(np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64))
    record = Record(Sample(0, Path("a.png"), (50, 100), boxes=given_boxes))
    return Dataset("one", "train", Vocabulary.from_names(names), (record,))


def test_images_are_preprocessed_as_the_segmenter_does(dataset: Dataset, tmp_path: Path) -> None:
    segmenter = tiny_segmenter(tmp_path / "sam")
    for index in range(len(dataset)):
        image = dataset.image(index)
        assert torch.allclose(frame_pixels(image, 64), segmenter.preprocess([image])[0], atol=1e-6)


def test_a_batch_has_its_rows_in_the_order_asked_for(data: DetSamData) -> None:
    order = [9, 3, 0, 7, 5]
    batch = data.__getitems__(order)
    assert len(data) == 6 and data.variants == 2
    for row, index in enumerate(order):
        alone = data[index]
        assert torch.equal(batch.inputs[row], alone.inputs[0])
        count = batch.counts[row]
        assert (count,) == alone.counts
        assert torch.equal(batch.boxes[row, :count], alone.boxes[0])
        assert torch.equal(batch.labels[row, :count], alone.labels[0])
        assert (batch.boxes[row, count:] == 0).all()


def test_boxes_frame_the_rectangles_in_every_view(data: DetSamData) -> None:
    """Inside its box a rectangle is of one colour, in the image as in its mirror."""
    for index in range(2 * len(data)):
        batch = data[index]
        for box, label in zip(batch.boxes[0], batch.labels[0], strict=True):
            x, y = ((box[:2] + box[2:]) / 2).int().tolist()
            assert int(batch.inputs[0, :, y, x].argmax()) == int(label)


def test_boxes_are_clipped_and_specks_left_out() -> None:
    dataset = sample_with([[-10, 10, 50, 60], [20, 20, 21, 40], [99.9, 0, 120, 50]], [0, 1, 2], ("a", "b", "c"))
    targets = box_targets(dataset, FRAME)
    assert targets.counts.tolist() == [1]
    assert targets.boxes.tolist() == [[0, pytest.approx(6.4), 32, 32]]


def test_mirrored_names_swap_left_and_right() -> None:
    dataset = sample_with([[0, 0, 20, 10], [50, 0, 60, 10]], [0, 2], ("left leg", "right leg", "tail"))
    targets = box_targets(dataset, FRAME, mirrored=(True,))
    assert targets.labels.tolist() == [1, 2]
    assert targets.boxes[0].tolist() == pytest.approx([51.2, 0, 64, 6.4])


def test_missing_boxes_are_named() -> None:
    dataset = sample_with([], [], ("a",))
    bare = replace(dataset, records=(Record(replace(dataset.records[0].sample, boxes=None)),))
    with pytest.raises(UserError, match=r"a\.png has no boxes"):
        box_targets(bare, FRAME)
    assert box_targets(dataset, FRAME).gather(torch.tensor([0]))[2] == (0,)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_gathering_is_indexing(images: list[int]) -> None:
    counts = [0, 3, 1, 0, 2, 4]
    boxes = torch.arange(10.0)[:, None].expand(10, 4) + 1
    from weakly.methods.baselines.det_sam.targets import BoxTargets

    targets = BoxTargets(boxes, torch.arange(10), torch.tensor(counts))
    found, labels, lengths = targets.gather(torch.tensor(images))
    starts = np.cumsum([0, *counts])
    for row, image in enumerate(images):
        assert lengths[row] == counts[image]
        assert labels[row, : counts[image]].tolist() == list(range(starts[image], starts[image + 1]))
        assert (found[row, counts[image] :] == 0).all()


def test_unreadable_images_are_named_and_all_of_them_refused(dataset: Dataset, tmp_path: Path) -> None:
    space = Workspace(tmp_path / "run", tmp_path / "features")
    dataset[2].path.write_bytes(b"no image")
    kept, skipped = readable_images(dataset, space)
    assert kept == [0, 1, 3, 4, 5]
    assert [one.path for one in skipped] == [dataset[2].path]
    for sample in dataset:
        sample.path.write_bytes(b"no image")
    with pytest.raises(UserError, match="No image of rectangles"):
        readable_images(dataset, space)
