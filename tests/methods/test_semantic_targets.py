"""Label maps on disk and in memory, and the batches a loader makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from weakly.errors import UserError
from weakly.methods.image_views import VOID, Augmentation, training_view
from weakly.methods.sampling import EpochLoader, EpochSampler
from weakly.methods.semantic_targets import (
    SemanticData,
    labels_to_stored,
    read_label_map,
    read_pair,
    stored_to_labels,
    write_label_map,
)
from weakly.methods.view_learner import VIEWS
from weakly.vocabulary import Vocabulary

SIZES = ((40, 64), (64, 48), (50, 90), (64, 64), (30, 30))
VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
AUGMENTATION = Augmentation(crop=32, short=32, long=128)


@pytest.fixture
def data(tmp_path: Path) -> SemanticData:
    """Five noisy images of several sizes with random label maps."""
    rng = np.random.default_rng(0)
    images, label_maps = [], []
    for index, size in enumerate(SIZES):
        images.append(tmp_path / f"{index}.png")
        label_maps.append(tmp_path / "labels" / f"{index}.png")
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(images[-1])
        write_label_map(label_maps[-1], rng.integers(0, 4, size).astype(np.uint8), VOCABULARY)
    return SemanticData(tuple(images), tuple(label_maps), 3, AUGMENTATION)


@given(st.integers(0, 254), st.integers(0, 2**32))
def test_labels_and_stored_values_are_one_to_one(classes: int, seed: int) -> None:
    values = np.array([*range(classes + 1), VOID], np.uint8)
    labels = np.random.default_rng(seed).choice(values, (5, 7))
    stored = labels_to_stored(labels, classes)
    assert np.array_equal(stored_to_labels(stored, classes), labels)
    assert np.array_equal(stored == 0, labels == classes)
    assert np.array_equal(stored == VOID, labels == VOID)


def test_a_label_png_has_the_values_of_voc(tmp_path: Path) -> None:
    """0 background, k for category k - 1, 255 void, in the vocabulary's colours."""
    labels = np.array([[3, 0, 1, 2, VOID]], np.uint8)
    write_label_map(tmp_path / "a.png", labels, VOCABULARY)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(picture, [[0, 1, 2, 3, 255]])
        colours = np.array(picture.convert("RGB"))[0]
    assert np.array_equal(colours[1:4], VOCABULARY.palette()[:3])
    assert np.array_equal(colours[0], (0, 0, 0))
    assert np.array_equal(read_label_map(tmp_path / "a.png", 3), labels)


def test_the_same_labels_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_label_map(tmp_path / name, np.eye(9, dtype=np.uint8), VOCABULARY)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_a_value_that_is_no_category_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1, 7]], np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"a\.png holds the value 7, but there are 3"):
        read_label_map(tmp_path / "a.png", 3)
    assert read_label_map(tmp_path / "a.png", 7).tolist() == [[7, 0, 6]]


def test_a_label_map_of_another_size_is_refused(data: SemanticData) -> None:
    with pytest.raises(UserError, match=r"0\.png has 64 x 40 pixels, its image .*1\.png 48 x 64"):
        read_pair(data.images[1], data.label_maps[0], 3)


def test_a_byte_holds_254_categories(tmp_path: Path) -> None:
    names = Vocabulary.from_names(str(i) for i in range(255))
    with pytest.raises(UserError, match="255 categories"):
        SemanticData((), (), 255)
    with pytest.raises(UserError, match="255 categories"):
        write_label_map(tmp_path / "a.png", np.zeros((2, 2), np.uint8), names)


def test_whole_images_are_padded_to_the_largest_of_a_batch(data: SemanticData) -> None:
    pixels, labels = data.__getitems__([0, 1])
    assert pixels.shape == (2, 3, 43, 51)  # 40x64 becomes 32x51, 64x48 becomes 43x32
    assert labels.shape == (2, 43, 51)
    assert (labels[0, 32:] == VOID).all()
    assert (labels[1, :, 32:] == VOID).all()
    assert (pixels[1, :, :, 32:] == 0).all()
    assert (labels[0, :32] < 4).all()
    with pytest.raises(IndexError):
        data.__getitems__([5])


def test_a_random_view_depends_on_seed_view_and_image_alone(data: SemanticData) -> None:
    views = data.random_views(7)
    batch = views.__getitems__([3 * 5 + 2, 1, 5 + 1])
    assert batch.pixels.shape == (3, 3, 32, 32)
    for row, (number, image) in enumerate([(3, 2), (0, 1), (1, 1)]):
        pair = read_pair(data.images[image], data.label_maps[image], 3)
        pixels, labels = training_view(*pair, AUGMENTATION, np.random.default_rng((7, number, image)))
        assert torch.equal(batch.pixels[row], pixels)
        assert torch.equal(batch.labels[row], labels)
    assert torch.equal(views[16].pixels[0], views.__getitems__([0, 16])[0][1])
    assert not torch.equal(data.random_views(8)[16].pixels, views[16].pixels)


def loader(data: SemanticData, epoch: int) -> EpochLoader:
    sampler = EpochSampler(len(data), seed=7, variants=VIEWS)
    sampler.set_epoch(epoch)
    return EpochLoader(data.random_views(7), sampler, batch_size=2)


def test_every_epoch_shows_other_views_and_the_same_epoch_the_same(data: SemanticData) -> None:
    first, again, later = (torch.cat([batch.pixels for batch in loader(data, epoch)]) for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    distances = torch.cdist(first.flatten(1), later.flatten(1))
    assert distances.min() > 0, "no view comes twice"


def test_a_stopped_epoch_goes_on_with_the_same_views(data: SemanticData) -> None:
    whole = [batch.pixels for batch in loader(data, 2)]
    resumed = loader(data, 2)
    resumed.load_state_dict({"batches": 1})
    rest = [batch.pixels for batch in resumed]
    assert len(whole) == 3
    assert len(rest) == 2
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], rest, strict=True))


def test_a_broken_image_is_named(data: SemanticData) -> None:
    data.images[2].write_bytes(b"no image")
    with pytest.raises(UserError, match=r"2\.png"):
        data.__getitems__([1, 2])
