"""Views of images with boxes and masks, and the batches made of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_students import rectangles

from weakly.errors import UserError
from weakly.methods.image_views import to_pixels
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.methods.view_learner import VIEWS
from weakly.methods.weaksam.augment import (
    Augmentation,
    Instances,
    Window,
    look,
    mask_extents,
    move_boxes,
    plain_view,
    training_view,
)
from weakly.methods.weaksam.targets import PseudoInstances, WeakSamData, read_instances

SIZE = (48, 64)
BOX = np.array([[16, 8, 40, 32]], np.float32)
LABELS = np.array([2])


def image_and_instances(*, masks: bool = True) -> tuple[np.ndarray, Instances]:
    """A white rectangle on black."""
    mask = np.zeros((1, *SIZE), bool)
    mask[0, 8:32, 16:40] = True
    image = np.where(mask[0, ..., None], np.uint8(255), np.uint8(0)).repeat(3, 2)
    return image, Instances(BOX, LABELS, mask if masks else None)


@given(st.integers(0, 2**32 - 1))
def test_boxes_and_masks_follow_the_pixels(seed: int) -> None:
    """Whatever is drawn, mask and pixels show the same rectangle, and the box is its extent to a pixel."""
    image, instances = image_and_instances()
    augmentation = Augmentation(side=32, scale=(0.5, 3.0))
    view = training_view(image, instances, augmentation, np.random.default_rng(seed))
    plain = training_view(image, instances._replace(masks=None), augmentation, np.random.default_rng(seed))
    assert torch.equal(view.pixels, plain.pixels)
    assert max(view.pixels.shape[1:]) <= 32
    assert len(view.target.labels) <= 1
    if not len(view.target.labels):
        assert (view.pixels[0] < 0).all() or not len(plain.target.labels)
        return
    mask = view.target.masks[0].bool()
    assert mask.shape == view.pixels.shape[1:]
    # Between white and black the bilinear image is grey; there alone may the two disagree.
    black, white = (float(to_pixels(np.full((1, 1, 3), value, np.uint8))[0]) for value in (0, 255))
    assert not ((view.pixels[0] > white - 1e-3) & ~mask).any()
    assert not ((view.pixels[0] < black + 1e-3) & mask).any()
    assert torch.equal(view.target.boxes, torch.from_numpy(mask_extents(mask[None].numpy())))
    if len(plain.target.labels):
        assert torch.allclose(view.target.boxes, plain.target.boxes, atol=1.0)
        assert view.target.labels.tolist() == plain.target.labels.tolist() == [2]


def test_a_mirrored_crop_is_where_it_should_be() -> None:
    """Doubled, cut at (20, 30) to 40 x 50, mirrored: x 16..40 becomes 2..50 and then 0..48."""
    image, instances = image_and_instances()
    window = Window((96, 128), 20, 30, (40, 50), mirrored=True)
    boxes = move_boxes(BOX, SIZE, window)
    assert boxes.tolist() == [[0, 0, 48, 40]]
    view = look(image, instances, window)
    assert view.target.boxes.tolist() == [[0, 0, 48, 40]]
    assert view.pixels.shape == (3, 40, 50)


def test_instances_outside_the_view_are_left_out() -> None:
    image, instances = image_and_instances()
    window = Window(SIZE, 0, 44, (20, 20), mirrored=False)
    for given_masks in (instances, instances._replace(masks=None)):
        target = look(image, given_masks, window).target
        assert target.boxes.shape == (0, 4)
        assert target.labels.shape == (0,)


@given(st.integers(0, 2**32 - 1))
def test_extents_are_tight(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((4, 7, 9)) < rng.choice([0.0, 0.05, 0.5])
    for mask, box in zip(masks, mask_extents(masks), strict=True):
        rows, columns = np.nonzero(mask)
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0] * 4
        assert box.tolist() == expected


def test_a_plain_view_is_the_whole_image() -> None:
    image, instances = image_and_instances(masks=False)
    view = plain_view(image, instances, 32)
    assert view.pixels.shape == (3, 24, 32)
    assert torch.equal(view.target.boxes, torch.from_numpy(BOX) / 2)


def test_settings_are_checked() -> None:
    with pytest.raises(UserError, match=r"augmentation\.side"):
        Augmentation(side=0)
    with pytest.raises(UserError, match=r"augmentation\.scale"):
        Augmentation(scale=(2.0, 1.0))
    with pytest.raises(UserError, match=r"augmentation\.flip"):
        Augmentation(flip=2)


def test_a_batch_is_padded_to_the_side_and_whole_images_to_the_largest(tmp_path: Path) -> None:
    data = rectangles(tmp_path, masks=True)
    batch = data.random_views(7).__getitems__([0, 1, 2])
    assert batch.inputs.shape == (3, 3, 64, 64)
    whole = data.__getitems__([0, 2])
    assert whole.sizes == [(40, 64), (36, 64)]
    assert whole.inputs.shape == (2, 3, 40, 64)
    assert (whole.inputs[1, :, 36:] == 0).all()
    assert [len(target.labels) for target in whole.targets] == [1, 3]
    assert whole.targets[1].masks.shape == (3, 40, 64)
    with pytest.raises(IndexError):
        data[5]


def test_a_random_view_depends_on_seed_view_and_image_alone(tmp_path: Path) -> None:
    data = rectangles(tmp_path, masks=True)
    views = data.random_views(7)
    batch = views.__getitems__([3 * 5 + 2, 1])
    for row, (number, image) in enumerate([(3, 2), (0, 1)]):
        pair = read_instances(data.images[image], data.instances[image])
        view = training_view(*pair, data.augmentation, np.random.default_rng((7, number, image)))
        height, width = batch.sizes[row]
        assert torch.equal(batch.inputs[row, :, :height, :width], view.pixels)
        assert torch.equal(batch.targets[row].boxes, view.target.boxes)
    assert not torch.equal(data.random_views(8)[1].inputs, views[1].inputs)


def test_a_stopped_epoch_goes_on_with_the_same_views(tmp_path: Path) -> None:
    data = rectangles(tmp_path, masks=False)

    def loader() -> EpochLoader:
        sampler = EpochSampler(len(data), seed=7, variants=VIEWS)
        sampler.set_epoch(2)
        return EpochLoader(data.random_views(7), sampler, batch_size=2)

    whole = [batch.inputs for batch in loader()]
    resumed = loader()
    resumed.load_state_dict({"batches": 1})
    rest = [batch.inputs for batch in resumed]
    assert len(rest) == len(whole) - 1 == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    data = rectangles(tmp_path, masks=True)
    with pytest.raises(UserError, match=r"pseudo masks of .*1\.png have 64 x 40 pixels, the image 48 x 64"):
        read_instances(data.images[1], data.instances[0])
    with pytest.raises(ValueError, match="different numbers"):
        PseudoInstances(BOX, np.array([1, 2]))
    bare = PseudoInstances(BOX, LABELS)
    with pytest.raises(ValueError, match="others none"):
        WeakSamData(data.images, (bare, *data.instances[1:]))
    with pytest.raises(ValueError, match="5 images"):
        replace(data, instances=data.instances[:2])
    data.images[2].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.png"):
        data.__getitems__([1, 2])
