"""Augmented views: pure functions of the image, aligned with their seed maps, encoded once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny_clip import tiny_clip
from tiny_segmenter import rectangle_dataset

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.clip import Clip, normalise
from weakly.foundation.image_keys import ImageKeys
from weakly.methods.fma.settings import ViewSettings
from weakly.methods.fma.views import encode_views, image_view, jitter, seed_view, view_geometry

SETTINGS = ViewSettings(count=2, crop=32, long=(40, 60))
KEY = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


@pytest.fixture
def images(tmp_path: Path) -> tuple[list[Path], list[str]]:
    paths = [sample.path for sample in rectangle_dataset(tmp_path / "images", 10)]
    keys = ImageKeys(tmp_path / "keys.json")
    return paths, [keys.key(path)[0] for path in paths]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "views").rglob("*")) if path.is_file()}


@given(st.integers(8, 200), st.integers(8, 200), st.integers(0, 50))
def test_a_view_lies_inside_the_resized_image(height: int, width: int, number: int) -> None:
    place = view_geometry((height, width), KEY, number, SETTINGS)
    assert 0 <= place.top <= place.size[0] - 32 and 0 <= place.left <= place.size[1] - 32
    longest = max(40 / max(height, width), 32 / min(height, width)) * max(height, width)
    assert round(longest) - 1 <= max(place.size) <= max(60, round(longest) + 1)


def test_the_scale_of_the_specification() -> None:
    """A 333 x 500 image: the long side becomes T, unless the short side would be under the crop."""
    sizes = {view_geometry((333, 500), KEY, number, ViewSettings()).size for number in range(300)}
    assert min(max(size) for size in sizes) == 336, "224 / 333 is more than 288 / 500"
    assert max(max(size) for size in sizes) in (479, 480)
    assert all(abs(height - width * 333 / 500) <= 1 for height, width in sizes)


def test_views_depend_on_key_number_and_seed_alone() -> None:
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8)
    first = image_view(image, KEY, 0, SETTINGS)
    assert first.shape == (32, 32, 3) and np.array_equal(first, image_view(image, KEY, 0, SETTINGS))
    others = [(KEY, 1, SETTINGS), (KEY[::-1], 0, SETTINGS), (KEY, 0, replace(SETTINGS, seed=1))]
    assert all(not np.array_equal(first, image_view(image, *other)) for other in others)


@pytest.mark.parametrize("number", range(6))
def test_a_seed_map_is_cut_where_the_image_is(number: int) -> None:
    """Flat regions of grey: the view's grey tells the seed, but for the pixels at borders."""
    labels = np.kron(np.arange(12).reshape(3, 4), np.ones((20, 20), int)).astype(np.uint8)
    image = np.repeat((20 * labels)[..., None], 3, 2)
    plain = replace(SETTINGS, jitter=False)
    grey = image_view(image, KEY, number, plain)[..., 0]
    seed = seed_view(labels, KEY, number, replace(plain, jitter=True))
    assert np.mean(np.round(grey / 20) == seed) > 0.85
    assert set(np.unique(seed)) <= set(range(12))


def test_void_and_values_survive_the_cut() -> None:
    seed = np.full((50, 50), 255, np.uint8)
    assert (seed_view(seed, KEY, 3, SETTINGS) == 255).all()


def test_jitter_changes_colours_in_every_way_and_leaves_the_image_alone() -> None:
    image = np.random.default_rng(0).integers(30, 220, (9, 9, 3)).astype(np.uint8)
    before = image.copy()
    results = [jitter(image, np.random.default_rng(seed)) for seed in range(60)]
    assert np.array_equal(image, before)
    assert all(result.dtype == np.uint8 and result.shape == image.shape for result in results)
    unchanged = sum(np.array_equal(result, image) for result in results)
    assert 0 < unchanged < 15, "all four are left out in one case of sixteen"
    assert len({result.tobytes() for result in results}) == 61 - unchanged


def test_negative_brightness_folds() -> None:
    """convertScaleAbs takes the absolute value: black gets lighter when darkened."""
    assert cv2.convertScaleAbs(np.array([[3]], np.uint8), alpha=1, beta=-10)[0, 0] == 7
    black = np.zeros((4, 4, 3), np.uint8)
    assert any(jitter(black, np.random.default_rng(seed)).max() > 0 for seed in range(20))


def test_encoded_views_are_what_clip_says(clip: Clip, images: tuple[list[Path], list[str]], tmp_path: Path) -> None:
    paths, keys = images
    views = encode_views(tmp_path, clip, paths, keys, SETTINGS, inputs=True)
    assert views.embeddings.shape == (10, 2, clip.joint_width) and len(views) == 10
    assert views.inputs is not None and views.inputs.shape == (10, 2, 5, clip.width) and views.grid == (2, 2)
    view = image_view(read_image(paths[3]), keys[3], 1, SETTINGS)
    pixels = normalise(view[None])
    assert torch.allclose(clip.image_features(pixels)[0], torch.from_numpy(views.embeddings[3, 1].copy()), atol=1e-4)
    stored = torch.from_numpy(views.inputs[3, 1].astype(np.float32))
    assert torch.allclose(clip.encode(pixels).last_input[0], stored, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize(("stop_at", "kept"), [(3, 0), (10, 8)])
def test_a_stopped_encoding_goes_on_and_ends_with_the_same_bytes(
    clip: Clip,
    images: tuple[list[Path], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int,
    kept: int,
) -> None:
    paths, keys = images
    encode_views(tmp_path / "a", clip, paths, keys, SETTINGS, inputs=True)
    encode, calls = Clip.encode, []

    def stop(self: Clip, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        return encode(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Clip, "encode", stop)
        with pytest.raises(KeyboardInterrupt):
            encode_views(tmp_path / "b", clip, paths, keys, SETTINGS, inputs=True)
    seen: list[int] = []
    encode_views(tmp_path / "b", clip, paths, keys, SETTINGS, inputs=True, progress=lambda done, _: seen.append(done))
    assert seen[0] == kept, "whole chunks are kept"
    assert content(tmp_path / "b") == content(tmp_path / "a")


def test_nothing_is_encoded_twice_and_changed_settings_are_other_views(
    clip: Clip, images: tuple[list[Path], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, keys = images
    first = encode_views(tmp_path, clip, paths, keys, SETTINGS, inputs=False)
    assert first.inputs is None
    with monkeypatch.context() as patch:
        patch.setattr(Clip, "encode", lambda *_, **__: pytest.fail("a view was encoded again"))
        second = encode_views(tmp_path, clip, paths, keys, SETTINGS, inputs=False)
    assert np.array_equal(first.embeddings, second.embeddings)
    encode_views(tmp_path, clip, paths, keys, replace(SETTINGS, seed=1), inputs=False)
    encode_views(tmp_path, clip, paths[:3], keys[:3], SETTINGS, inputs=False)
    assert len(list((tmp_path / "views").iterdir())) == 3


def test_a_crop_that_is_no_multiple_of_the_patch(clip: Clip, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"views\.crop is 40, no multiple of the patch of CLIP 'tiny', 16"):
        encode_views(tmp_path, clip, [], [], replace(SETTINGS, crop=40), inputs=True)


def test_an_image_smaller_than_the_crop(tmp_path: Path) -> None:
    image = np.asarray(Image.new("RGB", (5, 3), (9, 99, 199)))
    assert image_view(image, KEY, 0, SETTINGS).shape == (32, 32, 3)


def test_two_processes_do_not_append_to_one_file(
    clip: Clip, images: tuple[list[Path], list[str]], tmp_path: Path
) -> None:
    """The second waits for the first, and finds its work done."""
    paths, keys = images
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(encode_views, tmp_path / "b", clip, paths, keys, SETTINGS, inputs=True) for _ in range(2)]
        both = [job.result() for job in jobs]
    encode_views(tmp_path / "a", clip, paths, keys, SETTINGS, inputs=True)
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert np.array_equal(both[0].embeddings, both[1].embeddings)
