"""Peaks of class maps: spec weaksam, sections 2.1, 2.2 and 11 (items 1 to 3)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from weakly.errors import UserError
from weakly.methods.weaksam.peaks import (
    NO_MAP,
    CrossRule,
    PeakRule,
    PeakSettings,
    cluster,
    cross_points,
    kmeans,
    peak_points,
    window_max,
)


def by_definition(map_: torch.Tensor, rule: PeakRule) -> list[tuple[int, int]]:
    """(x, y) of the peaks: square window, best values first and in reading order, one point at a time, then tau."""
    pooled = functional.max_pool2d(map_[None, None], rule.kernel, 1, (rule.kernel - 1) // 2)[0, 0]
    values = torch.where(pooled == map_, map_, 0).flatten()
    kept: list[tuple[int, int]] = []
    for place in values.argsort(descending=True, stable=True)[: rule.topk].tolist():
        y, x = divmod(place, map_.shape[1])
        if values[place] < rule.tau:
            break
        if all(abs(x - a) + abs(y - b) >= (rule.kernel - 1) / 2 for a, b in kept):
            kept.append((x, y))
    return kept


def manhattan(points: np.ndarray) -> np.ndarray:
    """Distances of all pairs of points."""
    apart = np.abs(points[:, None, :2] - points[None, :, :2]).sum(-1)
    return apart[np.triu_indices(len(points), 1)]


def test_the_worked_example():
    map_ = torch.zeros(60, 60)
    for (row, column), value in {
        (10, 10): 1,
        (10, 17): 0.95,
        (10, 19): 0.96,
        (10, 26): 0.93,
        (40, 40): 0.91,
        (50, 12): 0.5,
    }.items():
        map_[row, column] = value
    points = peak_points(map_[None], [7], PeakRule())
    np.testing.assert_array_equal(points[:, [1, 0]], [(10, 10), (10, 19), (40, 40)])
    np.testing.assert_allclose(points[:, 3], [1, 0.96, 0.91])
    assert (points[:, 2] == 7).all() and (points[:, 4] == 0).all()
    assert points.dtype == np.float32


@pytest.mark.parametrize("shape", [(1, 60, 60), (0, 60, 60), (3, 1, 1)])
def test_nothing_has_no_peak(shape):
    assert peak_points(torch.zeros(shape), [0] * shape[0], PeakRule()).shape == (0, 5)


@pytest.mark.parametrize("kernel", [1, 3, 17, 129])
def test_pooling_along_rows_and_columns_is_pooling_squares(kernel):
    """Also where the window is larger than the map, and for values below zero."""
    torch.manual_seed(kernel)
    maps = torch.randn(2, 70, 95)
    square = functional.max_pool2d(maps, kernel, 1, (kernel - 1) // 2)
    assert torch.equal(window_max(maps, kernel), square)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), kernel=st.sampled_from([3, 5, 17, 129]), levels=st.sampled_from([3, 20, 10**6]))
def test_points_are_those_of_the_definition(seed, kernel, levels):
    """With few levels there are plateaus; many peaks make topk bind."""
    maps = torch.rand(3, 30, 40, generator=torch.Generator().manual_seed(seed)).mul(levels).round() / levels
    rule = PeakRule(kernel=kernel, tau=0.6, topk=10)
    points = peak_points(maps, [4, 0, 4], rule, map_ids=[8, 9, 10])
    for map_, label, index in zip(maps, [4, 0, 4], [8, 9, 10], strict=True):
        own = points[points[:, 4] == index]
        assert [tuple(row) for row in own[:, :2].astype(int).tolist()] == by_definition(map_, rule)
        assert (own[:, 2] == label).all()
        assert (np.diff(own[:, 3]) <= 0).all()
        np.testing.assert_array_equal(own[:, 3], map_[own[:, 1].astype(int), own[:, 0].astype(int)].numpy())


def test_a_plateau_gives_points_that_are_apart():
    map_ = torch.zeros(1, 60, 60)
    map_[0, 20:30, 20:30] = 1
    points = peak_points(map_, [0], PeakRule())
    assert len(points) >= 1
    assert manhattan(points).min(initial=np.inf) >= 8


def test_maps_do_not_compete_and_chunks_do_not_show(monkeypatch):
    torch.manual_seed(1)
    maps = torch.rand(7, 24, 24)
    together = peak_points(maps, list(range(7)), PeakRule(kernel=5, tau=0.5))
    alone = [peak_points(maps[i : i + 1], [i], PeakRule(kernel=5, tau=0.5)) for i in range(7)]
    np.testing.assert_array_equal(together, np.concatenate(alone))
    monkeypatch.setattr("weakly.methods.weaksam.peaks.MAP_PIXELS", 2 * 24 * 24)
    np.testing.assert_array_equal(peak_points(maps, list(range(7)), PeakRule(kernel=5, tau=0.5)), together)


def test_maps_and_labels_must_fit():
    with pytest.raises(ValueError, match="2 maps, 1 classes"):
        peak_points(torch.zeros(2, 4, 4), [0], PeakRule())


def test_published_settings():
    defaults = PeakSettings()
    assert (defaults.cam.kernel, defaults.cam.tau, defaults.cam.topk) == (17, 0.9, 25)
    assert (defaults.cross.kernel, defaults.cross.tau, defaults.cross.topk) == (129, 0.9, 25)
    assert (defaults.cross.cluster_div, defaults.cross.clustered) == (5, True)


@pytest.mark.parametrize(
    ("cls", "wrong", "named"),
    [
        (PeakRule, {"kernel": 16}, "kernel"),
        (PeakRule, {"tau": 0.0}, "tau"),
        (PeakRule, {"topk": 0}, "topk"),
        (CrossRule, {"kernel": 0}, "kernel"),
        (CrossRule, {"cluster_div": 0}, "cluster_div"),
    ],
)
def test_wrong_settings_are_named(cls, wrong, named):
    with pytest.raises(UserError, match=named):
        cls(**wrong)


def test_clusters_are_the_groups_that_points_form():
    rng = np.random.default_rng(0)
    centres = np.array([(20, 20), (120, 30), (60, 150)])
    spread = np.concatenate([centre + rng.integers(-3, 4, (5, 2)) for centre in centres])
    points = np.concatenate([spread, rng.random((15, 3))], 1).astype(np.float32)
    found = cluster(points)
    means = np.trunc([spread[i : i + 5].mean(0) for i in (0, 5, 10)])
    assert {tuple(row) for row in found[:, :2].tolist()} == {tuple(row) for row in means.tolist()}
    np.testing.assert_array_equal(found[:, 2:], [(0, 1, NO_MAP)] * 3)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 60), side=st.sampled_from([2, 300]))
def test_kmeans_ends_where_no_point_is_nearer_to_another_centre(seed, n, side):
    points = np.random.default_rng(seed).integers(0, side, (n, 2)).astype(np.float32)
    count = max(1, n // 5)
    centres = kmeans(points, count)
    np.testing.assert_array_equal(centres, kmeans(points, count))
    distances = np.linalg.norm(points[:, None] - centres, axis=-1)
    nearest = distances.argmin(1)
    assert len(np.unique(nearest)) == len(centres) <= count
    for index, centre in enumerate(centres):
        np.testing.assert_allclose(points[nearest == index].mean(0), centre, atol=1e-6)


@pytest.mark.parametrize(("n", "clusters"), [(0, 0), (1, 1), (9, 1), (10, 2), (52, 10)])
def test_there_is_a_cluster_for_five_points_and_none_for_none(n, clusters):
    points = np.random.default_rng(n).random((n, 5)).astype(np.float32) * 1000
    assert cluster(points).shape == (clusters, 5)


def test_points_in_one_place_are_one_cluster():
    points = np.tile(np.array([[30, 40, 2, 1, 3]], np.float32), (20, 1))
    np.testing.assert_array_equal(cluster(points), [(30, 40, 0, 1, NO_MAP)])


def test_attention_maps_of_all_classes_make_one_set_of_points():
    torch.manual_seed(0)
    maps = torch.rand(4, 2, 40, 50)
    rule = CrossRule(kernel=9, tau=0.8, clustered=False)
    peaks = cross_points(maps, [11, 5], rule)
    for map_index in range(4):
        for channel, label in enumerate((11, 5)):
            own = peaks[(peaks[:, 4] == map_index) & (peaks[:, 2] == label)]
            expected = peak_points(maps[map_index, channel][None], [label], rule, [map_index])
            np.testing.assert_array_equal(own, expected)
    clustered = cross_points(maps, [11, 5], CrossRule(kernel=9, tau=0.8))
    assert len(clustered) == len(peaks) // 5
    assert cross_points(torch.zeros(0, 2, 40, 50), [11, 5], rule).shape == (0, 5)
