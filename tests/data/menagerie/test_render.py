"""Tests of the menagerie: what a scene promises about its image and its maps."""

from __future__ import annotations

import time
from functools import cache

import numpy as np
import pytest

from weakly.data.menagerie import (
    KINDS,
    PART_NAMES,
    PART_SUPER_CATEGORIES,
    PARTS_OF,
    SUPER_CATEGORIES,
    Scene,
    render_scene,
)


@cache
def _scenes() -> tuple[Scene, ...]:
    """Four small scenes of every kind."""
    return tuple(render_scene(3, 100 * k + i, 128, kinds=[name]) for k, name in enumerate(KINDS) for i in range(4))


def test_vocabulary() -> None:
    assert len(SUPER_CATEGORIES) == 11
    assert len(PART_NAMES) == len(set(PART_NAMES)) == len(PART_SUPER_CATEGORIES) == 40
    assert PART_NAMES[0] == "Quadruped Head"
    assert PART_NAMES[25] == "Car Tier"
    assert PART_NAMES[39] == "Bottle Body"
    assert sum(map(len, PARTS_OF.values())) == 40


def test_kinds_table() -> None:
    assert len(KINDS) >= 24
    ids = [kind.wordnet_id for kind in KINDS.values()]
    assert len(set(ids)) == len(ids)
    assert all(len(i) == 9 and i.startswith("n9") and i[1:].isdigit() for i in ids)
    for name in SUPER_CATEGORIES:
        assert sum(kind.super_category == name for kind in KINDS.values()) >= 2


def test_same_arguments_same_scene() -> None:
    a, b = render_scene(5, 17), render_scene(5, 17)
    for name in ("image", "part_map", "object_map", "detail_map"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    assert a.parts == b.parts
    assert a.objects == b.objects


@pytest.mark.parametrize(("seed", "index"), [(6, 17), (5, 18)])
def test_other_seed_or_index_other_scene(seed: int, index: int) -> None:
    assert not np.array_equal(render_scene(5, 17).image, render_scene(seed, index).image)


def test_maps_agree() -> None:
    for scene in _scenes():
        assert scene.image.shape == (128, 128, 3)
        maps = (scene.part_map, scene.object_map, scene.detail_map)
        assert all(m.shape == (128, 128) and m.dtype == np.uint8 for m in maps)
        # Every number in a map has an entry and every entry has pixels.
        parts = set(np.unique(scene.part_map)) - {0}
        objects = set(np.unique(scene.object_map)) - {0}
        assert parts == set(range(1, len(scene.parts) + 1))
        assert objects == set(range(1, len(scene.objects) + 1))
        owner = np.array([0, *(p.object_index + 1 for p in scene.parts)])
        np.testing.assert_array_equal(owner[scene.part_map], scene.object_map)
        for part in scene.parts:
            holder = scene.objects[part.object_index]
            assert PART_SUPER_CATEGORIES[part.category] == holder.super_category


def test_details_lie_in_one_object_each() -> None:
    for scene in _scenes():
        assert not np.any(scene.detail_map[scene.part_map == 0])
        pairs = np.unique(np.stack([scene.detail_map, scene.object_map], -1).reshape(-1, 2), axis=0)
        inside = pairs[pairs[:, 0] > 0]
        assert len(set(inside[:, 0].tolist())) == len(inside)


def test_no_degenerate_parts() -> None:
    for scene in _scenes():
        counts = np.bincount(scene.part_map.ravel())[1:]
        assert np.all(counts >= 24 * (128 / 256) ** 2)


def test_all_kinds_and_part_names_occur() -> None:
    scenes = _scenes()
    assert {o.kind for s in scenes for o in s.objects} == set(KINDS)
    assert {p.category for s in scenes for p in s.parts} == set(range(40))


def test_number_of_parts_is_sane() -> None:
    counts = [len(scene.parts) for scene in _scenes()]
    assert min(counts) >= 1
    assert 4 <= float(np.mean(counts)) <= 10
    assert max(counts) <= 30


@pytest.mark.parametrize("index", range(6))
def test_layout_does_not_depend_on_size(index: int) -> None:
    small, large = render_scene(9, index, 128), render_scene(9, index, 256)
    assert small.objects == large.objects
    near = large.object_map[::2, ::2]
    assert float((near == small.object_map).mean()) > 0.97
    # A part at the floor may be kept at one size only.
    difference = {p.category for p in small.parts} ^ {p.category for p in large.parts}
    assert len(difference) <= 1


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unicorn"):
        render_scene(0, 0, kinds=["unicorn"])
    with pytest.raises(ValueError, match="missing"):
        render_scene(0, 0, kinds=[])


def test_speed_is_not_hopeless() -> None:
    start = time.process_time()
    for index in range(10):
        render_scene(1, index)
    assert time.process_time() - start < 5.0  # about 0.25 s on an idle core
