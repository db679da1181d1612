"""What WeakSAM keeps per image (points, proposals, masks): made once, whole or absent, the same bytes again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segmenter import rectangle_dataset, tiny_segmenter
from torch import Tensor

from weakly.data.images import read_image
from weakly.foundation.sam import SamSegmenter
from weakly.methods.weaksam.clues import Clues, CrossMaps
from weakly.methods.weaksam.peaks import CrossRule, PeakRule, PeakSettings
from weakly.methods.weaksam.point_store import PointStore, image_points
from weakly.methods.weaksam.proposal_settings import GridSettings, ProposalSettings
from weakly.methods.weaksam.proposal_store import ProposalStore, SearchStore
from weakly.methods.weaksam.proposals import PointPrompts, generate_proposals
from weakly.methods.weaksam.pseudo_mask_store import PseudoMaskStore
from weakly.methods.weaksam.pseudo_masks import masks_from_boxes
from weakly.methods.weaksam.selective_search import SelectiveSearchSettings

SETTINGS = ProposalSettings(grid=GridSettings(side=3, pred_iou=0, stability=0, nms=0.9))
SIZE = (32, 32)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def paths(tmp_path) -> list[Path]:
    return [sample.path for sample in rectangle_dataset(tmp_path / "images", 3)]


@pytest.fixture
def embedding(segmenter, paths) -> Callable[[str], Tensor]:
    """Keys of the images are their numbers."""
    encoded = [segmenter.encode(segmenter.preprocess([read_image(path)])) for path in paths]
    return lambda key: encoded[int(key)]


def points(index: int) -> PointPrompts:
    place = np.array([[4 + index, 5, 0, 1, 0], [20, 9, 1, 1, 0]], np.float32)
    return PointPrompts(coarse=place, cross=place[1:])


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class TestProposals:
    def test_are_those_of_the_image_and_made_once(self, segmenter, paths, embedding, tmp_path):
        store = ProposalStore(tmp_path, segmenter, SETTINGS, embedding)
        size = read_image(paths[1]).shape[:2]
        made = store.of_image("1", size, points(1))
        wanted = generate_proposals(segmenter, read_image(paths[1]), points(1), SETTINGS)
        np.testing.assert_array_equal(made.boxes, wanted.boxes)
        fresh = ProposalStore(tmp_path, segmenter, SETTINGS, lambda _: pytest.fail("decoded again"))
        again = fresh.of_image("1", size, points(1))
        np.testing.assert_array_equal(again.boxes, made.boxes)
        np.testing.assert_array_equal(again.source, made.source)

    def test_of_other_points_are_others(self, segmenter, paths, embedding, tmp_path):
        store = ProposalStore(tmp_path, segmenter, SETTINGS, embedding)
        size = read_image(paths[0]).shape[:2]
        for index in (0, 7, 0):
            store.of_image("0", size, points(index))
        assert len(list(store.folder.glob("*.safetensors"))) == 2

    def test_of_a_damaged_file_are_made_again(self, segmenter, paths, embedding, tmp_path):
        store = ProposalStore(tmp_path, segmenter, SETTINGS, embedding)
        size = read_image(paths[0]).shape[:2]
        store.of_image("0", size, points(0))
        before = files(store.folder)
        victim = next(store.folder.glob("*.safetensors"))
        for content in (b"", before[victim.name][:-3], b"no tensors at all"):
            victim.write_bytes(content)
            store.of_image("0", size, points(0))
            assert files(store.folder) == before

    @pytest.mark.parametrize(
        ("change", "another"),
        [({"cross_nms": 0.5}, True), ({"grid": GridSettings(side=2)}, True), ({"prompts_per_batch": 1}, False)],
    )
    def test_belong_to_segmenter_and_settings(self, segmenter, embedding, tmp_path, change, another):
        folder = ProposalStore(tmp_path, segmenter, SETTINGS, embedding).folder
        changed = ProposalStore(tmp_path, segmenter, replace(SETTINGS, **change), embedding).folder
        assert (changed != folder) is another
        other = tiny_segmenter(tmp_path / "other", seed=1)
        assert ProposalStore(tmp_path, other, SETTINGS, embedding).folder != folder

    def test_of_selective_search_are_searched_once(self, paths, tmp_path):
        looked = []

        def search(image, settings):
            looked.append((image.shape, settings))
            return np.array([[0, 0, 5, 6]], np.float32)

        store = SearchStore(tmp_path, SelectiveSearchSettings(), search)
        for _ in range(2):
            found = store.of_image("0", lambda: read_image(paths[0]))
            assert found.boxes.tolist() == [[0, 0, 5, 6]]
        assert len(looked) == 1


class Extractor:
    """Clues that depend on the tags alone, and a count of how often it was asked."""

    identity = "toy"

    def __init__(self) -> None:
        self.asked = 0

    def extract(self, image, tags=None) -> Clues:
        self.asked += 1
        classes = torch.tensor([0, 2] if tags is None else sorted(set(tags.tolist())))
        maps = torch.zeros(len(classes), *SIZE)
        for row, category in enumerate(classes.tolist()):
            maps[row, 4 + category, 9] = 1
        cross = torch.rand(5, len(classes), 8, 8, generator=torch.Generator().manual_seed(0))
        return Clues(torch.zeros(3), classes, maps, maps, CrossMaps((cross,), SIZE))


PEAKS = PeakSettings(cam=PeakRule(kernel=5), cross=CrossRule(kernel=9, clustered=False))


class TestPoints:
    def test_are_the_peaks_of_the_tagged_classes(self, paths, tmp_path):
        store = PointStore(tmp_path, Extractor(), PEAKS)
        found = store.of_image(paths[0], "0", np.array([2]))
        assert found.coarse.tolist() == [[9, 6, 2, 1, 0]]
        assert found.fine.tolist() == found.coarse.tolist()

    def test_of_attention_maps_do_not_depend_on_how_many_are_enlarged_at_once(self):
        clues = Extractor().extract(None)
        whole = image_points(clues, PEAKS).cross
        assert set(whole[:, 4].astype(int)) <= set(range(5))
        assert len(whole) > 0

    def test_are_made_once_per_tags(self, paths, tmp_path):
        extractor = Extractor()
        store = PointStore(tmp_path, extractor, PEAKS)
        for tags in (np.array([0, 1]), np.array([1, 0]), np.array([1]), None):
            store.of_image(paths[0], "0", tags)
            store.of_image(paths[0], "0", tags)
        assert extractor.asked == 3


class TestMasks:
    def test_are_the_segmenters_and_come_back_as_they_were(self, segmenter, paths, embedding, tmp_path):
        image, boxes = read_image(paths[0]), np.array([[2, 2, 20, 18], [1, 1, 30, 30]], np.float32)
        size, labels = image.shape[:2], np.array([1, 0])
        made = PseudoMaskStore(tmp_path, segmenter, embedding).of_image("0", size, boxes, labels)
        wanted = masks_from_boxes(segmenter, image, boxes)
        full = [row for row, box in enumerate(wanted.boxes) if box.any()]
        np.testing.assert_array_equal(made.boxes, wanted.boxes[full])
        np.testing.assert_array_equal(made.labels, labels[full])
        store = PseudoMaskStore(tmp_path, segmenter, lambda _: pytest.fail("decoded again"))
        again = store.of_image("0", size, boxes, labels)
        assert [dict(rle) for rle in again.rles] == [dict(rle) for rle in made.rles]

    def test_of_no_box_are_none(self, segmenter, embedding, tmp_path):
        none = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        found = PseudoMaskStore(tmp_path, segmenter, embedding).of_image("0", SIZE, *none)
        assert len(found) == 0 and found.rles == ()
