"""Stored automatic masks: made once, whole or absent, found by what the pixels are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_fma import MASKS
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.images import read_image
from weakly.foundation.automatic_masks import AutomaticMasks
from weakly.foundation.sam import SamSegmenter
from weakly.methods.fma.masks import MaskStore, pixel_key


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [sample.path for sample in rectangle_dataset(tmp_path / "images", 4)]


def same(a: AutomaticMasks, b: AutomaticMasks) -> bool:
    return a.to_dict() == b.to_dict()


def files(store: MaskStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


def test_masks_are_made_once_and_come_back_as_they_were(
    segmenter: SamSegmenter, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, seen = MaskStore(tmp_path, segmenter, MASKS), []
    report = store.build(paths, lambda done, total: seen.append((done, total)))
    assert report.made == 4 and not report.skipped
    assert seen == [(done, 4) for done in range(5)]
    assert all(count and count > 1 for count in report.counts)
    made = [store.of_file(path) for path in paths]
    monkeypatch.setattr(segmenter, "encode", lambda *_: pytest.fail("an image was segmented again"))
    fresh = MaskStore(tmp_path, segmenter, MASKS)
    assert fresh.build(paths).made == 0
    assert all(same(fresh.of_file(path), masks) for path, masks in zip(paths, made, strict=True))
    assert all(same(fresh.of(read_image(path)), masks) for path, masks in zip(paths, made, strict=True))
    assert made[0].masks().shape[1:] == read_image(paths[0]).shape[:2]


def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    segmenter: SamSegmenter, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = MaskStore(tmp_path / "a", segmenter, MASKS)
    whole.build(paths)
    stopped = MaskStore(tmp_path / "b", segmenter, MASKS)

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped.build(paths, stop)
    assert len(list(stopped.folder.glob("*.json"))) == 4, "two images, settings and files"
    again = MaskStore(tmp_path / "b", segmenter, MASKS)
    assert again.build(paths).made == 2
    assert files(again) == files(whole)


def test_a_damaged_file_is_made_again(segmenter: SamSegmenter, paths: list[Path], tmp_path: Path) -> None:
    store = MaskStore(tmp_path, segmenter, MASKS)
    store.build(paths)
    before = files(store)
    victim = store.folder / f"{pixel_key(read_image(paths[0]))}.json"
    for content in (b"", before[victim.name][:-9], b'{"size": [4, 4]}', b"[]"):
        victim.write_bytes(content)
        (store.folder / "files.json").write_bytes(b"[]" if content else b"")
        assert MaskStore(tmp_path, segmenter, MASKS).build(paths).made == 1
        assert files(store) == before


def test_an_unreadable_image_costs_only_itself(segmenter: SamSegmenter, paths: list[Path], tmp_path: Path) -> None:
    paths[1].write_bytes(b"no image")
    paths[2].unlink()
    report = MaskStore(tmp_path, segmenter, MASKS).build(paths)
    assert [count is None for count in report.counts] == [False, True, True, False]
    assert set(report.skipped) == {paths[1], paths[2]}
    assert all(str(path) in reason for path, reason in report.skipped.items())


def test_masks_belong_to_pixels_not_to_files(segmenter: SamSegmenter, paths: list[Path], tmp_path: Path) -> None:
    store = MaskStore(tmp_path, segmenter, MASKS)
    image = read_image(paths[0])
    copy = tmp_path / "copy.bmp"
    Image.fromarray(image).save(copy)
    assert store.build([paths[0], copy]).made == 1
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    assert store.of(turned).size == (image.shape[1], image.shape[0])


@pytest.mark.parametrize(
    ("change", "another"),
    [({"points_per_side": 2}, True), ({"level_of": "output"}, True), ({"prompts_per_batch": 1}, False)],
)
def test_a_store_belongs_to_segmenter_and_settings(
    segmenter: SamSegmenter, tmp_path: Path, change: dict[str, Any], another: bool
) -> None:
    store = MaskStore(tmp_path, segmenter, MASKS)
    assert (MaskStore(tmp_path, segmenter, replace(MASKS, **change)).folder != store.folder) is another
    assert MaskStore(tmp_path, tiny_segmenter(tmp_path / "other", seed=1), MASKS).folder != store.folder


def test_an_image_without_masks_is_stored_as_such(segmenter: SamSegmenter, paths: list[Path], tmp_path: Path) -> None:
    store = MaskStore(tmp_path, segmenter, replace(MASKS, iou_threshold=1.0, whole_iou_offset=0.0))
    assert store.build(paths[:1]).counts == (0,)
    assert store.build(paths[:1]).made == 0
    assert json.loads((store.folder / "settings.json").read_text())["settings"]["iou_threshold"] == 1.0
