"""The feature store: computed once, exact to its coding, whole whatever goes wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation import feature_codec as codec
from weakly.foundation.feature_shards import write_atomic
from weakly.foundation.features import FeatureStore, list_stores
from weakly.foundation.promptable import Pad, PromptableSegmenter

torch.set_num_threads(1)
SHAPE = (4, 6, 6)


class TinySegmenter(PromptableSegmenter):
    """A frozen two-layer encoder on 24 x 24 inputs; it answers no prompts."""

    layers: nn.Sequential

    def __init__(self, seed: int = 0, pad: Pad = "sam", name: str = "tiny/encoder v1") -> None:
        super().__init__()
        self.name, self.side, self.pad, self.embedding_shape, self.token_width = name, 24, pad, SHAPE, 8
        self.batches: list[int] = []
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GELU(), nn.Conv2d(8, 4, 3, 2, 1))
        self.freeze()

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.side} {self.pad}".encode())
        for tensor in self.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def encode(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        features: Tensor = self.layers(pixels)
        return features

    def box_tokens(self, boxes: Tensor) -> Tensor:
        raise NotImplementedError

    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        raise NotImplementedError

    def decode(self, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


def draw_images(folder: Path, count: int) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for i, path in enumerate(paths):
        pixels = np.random.default_rng(i).integers(0, 256, (20 + i % 5, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    return paths


def direct(segmenter: TinySegmenter, paths: list[Path]) -> Tensor:
    with torch.inference_mode():
        return segmenter.encode(segmenter.preprocess([read_image(path) for path in paths]))


def shard_bytes(store: FeatureStore) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.folder.glob("shard-*")}


def leftovers(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return draw_images(tmp_path / "images", 7)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "features"


# --- what is stored ---------------------------------------------------------------------------------------------------


def test_float32_features_are_bit_equal_to_encoding_directly(root: Path, paths: list[Path]) -> None:
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter, "float32", chunk=4)
    report = store.build(paths, batch_size=4)
    stored = store.get(report.keys)
    assert stored.dtype == torch.float32
    assert torch.equal(stored, torch.cat([direct(segmenter, paths[:4]), direct(segmenter, paths[4:])]))
    assert report.drift.max_abs == 0


def test_float16_is_within_a_thousandth(root: Path, paths: list[Path]) -> None:
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter)
    report = store.build(paths)
    exact = direct(segmenter, paths)
    error = store.get(report.keys) - exact
    assert 0 < error.norm() / exact.norm() <= 1e-3
    assert report.drift.relative_l2 == pytest.approx(float(error.norm() / exact.norm()), rel=1e-3)
    assert report.drift.max_abs == pytest.approx(float(error.abs().max()), rel=1e-3)
    assert "relative L2" in str(report.drift)


def test_int8_is_within_half_a_step_of_each_channel(root: Path, paths: list[Path]) -> None:
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter, "int8")
    keys = store.build(paths).keys
    exact = direct(segmenter, paths)
    step = (exact.amax((2, 3)) - exact.amin((2, 3))) / 255
    error = (store.get(keys) - exact).abs().amax((2, 3))
    assert (error <= step / 2 + 1e-6).all()
    assert error.max() > 0


# --- computed once ----------------------------------------------------------------------------------------------------


def test_every_distinct_image_is_encoded_exactly_once(root: Path, paths: list[Path]) -> None:
    copy = paths[0].with_name("copy.png")
    shutil.copy(paths[0], copy)
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter)
    report = store.build([*paths, paths[2], copy], batch_size=3)
    assert segmenter.batches == [3, 3, 1]
    assert (store.encoded, report.encoded, report.reused, len(store)) == (7, 7, 0, 7)
    assert report.keys[7] == report.keys[2]
    assert report.keys[8] == report.keys[0]

    again = FeatureStore.open(root, segmenter)
    report = again.build(paths)
    assert (again.encoded, report.encoded, report.reused) == (0, 0, 7)
    assert segmenter.batches == [3, 3, 1]


def test_new_images_are_added_to_a_store(root: Path, paths: list[Path]) -> None:
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter, "float32", chunk=4)
    first = store.build(paths[:3])
    report = store.build(paths)
    assert (report.encoded, report.reused) == (4, 3)
    assert report.keys[:3] == first.keys
    torch.testing.assert_close(store.get(report.keys), direct(segmenter, paths))
    assert all(key in store for key in report.keys)


def test_changed_weights_padding_or_reading_open_another_store(root: Path, paths: list[Path]) -> None:
    FeatureStore.open(root, TinySegmenter()).build(paths)
    for other in (TinySegmenter(seed=1), TinySegmenter(pad="center_black")):
        store = FeatureStore.open(root, other, "float32")
        assert len(store) == 0
        keys = store.build(paths).keys
        assert torch.equal(store.get(keys), direct(other, paths))
    assert len(FeatureStore.open(root, TinySegmenter(), variant="hflip")) == 0
    assert len(list_stores(root)) == 4


def test_same_weights_under_another_name_are_the_same_store(root: Path, paths: list[Path]) -> None:
    FeatureStore.open(root, TinySegmenter(name="hub/id")).build(paths)
    assert len(FeatureStore.open(root, TinySegmenter(name="local folder"))) == 7


def test_changed_image_bytes_are_encoded_again(root: Path, paths: list[Path]) -> None:
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter, "float32")
    before = store.build(paths).keys
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(paths[1])
    report = store.build(paths)
    assert report.encoded == 1
    assert [a == b for a, b in zip(before, report.keys, strict=True)] == [True, False, True, True, True, True, True]
    torch.testing.assert_close(store.get([report.keys[1]]), direct(segmenter, paths[1:2]))


def test_unchanged_files_are_not_hashed_again(root: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    segmenter = TinySegmenter()
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 10**10)  # the files are ten seconds old
    keys = FeatureStore.open(root, segmenter).keys(paths)
    hashed = []
    digest = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        hashed.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert FeatureStore.open(root, segmenter).keys(paths) == keys
    assert hashed == []
    os.utime(paths[3], (1, 1))
    assert FeatureStore.open(root, segmenter).keys(paths) == keys
    assert hashed == [str(paths[3])]


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"x": 3}'])
def test_a_damaged_memory_of_hashes_only_costs_time(root: Path, paths: list[Path], content: bytes) -> None:
    keys = FeatureStore.open(root, TinySegmenter()).keys(paths)
    (root / "image-keys.json").write_bytes(content)
    assert FeatureStore.open(root, TinySegmenter()).keys(paths) == keys


def test_progress_counts_images(root: Path, paths: list[Path]) -> None:
    calls: list[tuple[int, int]] = []
    store = FeatureStore.open(root, TinySegmenter(), chunk=4)
    store.build(paths[:4])
    store.build(paths, batch_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(4, 7), (6, 7), (7, 7)]


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", codec.FEATURE_DTYPES)
def test_features_are_held_within_the_budget_and_mapped_beyond_it(
    root: Path, paths: list[Path], dtype: codec.FeatureDtype
) -> None:
    store = FeatureStore.open(root, TinySegmenter(), dtype, chunk=2)
    keys = [*store.build(paths).keys, None]
    keys[-1] = keys[0]  # a repeated image takes no room
    budget = 7 * store.image_bytes
    resident, mapped = store.hold(keys, budget), store.hold(keys, budget - 1)
    assert (resident.resident, mapped.resident) == (True, False)
    assert len(resident) == len(mapped) == 8
    indices = torch.tensor([6, 0, 3, 7, 3])
    expected = store.get([keys[i] for i in indices.tolist()])
    assert torch.equal(resident[indices], expected)
    assert torch.equal(mapped[indices], expected)
    assert resident[indices[:0]].shape == (0, *SHAPE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_come_out_on_the_device(root: Path, paths: list[Path]) -> None:
    store = FeatureStore.open(root, TinySegmenter().cuda(), "int8", chunk=2)
    keys = store.build(paths).keys
    indices = torch.tensor([6, 0, 3])
    for budget in (0, 1 << 20):
        batch = store.hold(keys, budget, "cuda")[indices.cuda()]
        assert batch.is_cuda
        torch.testing.assert_close(batch.cpu(), store.get(keys)[indices])


def test_batches_of_mapped_features_are_copies(root: Path, paths: list[Path]) -> None:
    store = FeatureStore.open(root, TinySegmenter(), "float32")
    features = store.hold(store.build(paths).keys, 0)
    first = features[torch.tensor([0])]
    exact = first.clone()
    first += 1
    assert torch.equal(features[torch.tensor([0])], exact)


def test_a_missing_image_is_a_sentence(root: Path) -> None:
    store = FeatureStore.open(root, TinySegmenter())
    with pytest.raises(UserError, match=r"no features of keys\[0\], image abc; build the store"):
        store.get(["abc"])
    with pytest.raises(UserError, match=r"keys\[0\], an image that was skipped"):
        store.hold([None], 0)


# --- bad images -------------------------------------------------------------------------------------------------------


def test_unreadable_images_are_skipped_with_a_reason(root: Path, paths: list[Path]) -> None:
    paths[1].write_bytes(b"no image")
    paths[5].write_bytes(paths[5].read_bytes()[:100])
    absent = paths[0].with_name("absent.png")
    segmenter = TinySegmenter()
    store = FeatureStore.open(root, segmenter, "float32", chunk=4)
    report = store.build([*paths, absent], batch_size=4)
    assert [path for path, _ in report.skipped] == [paths[1], paths[5], absent]
    assert all(str(path) in reason for path, reason in report.skipped)
    assert [key is None for key in report.keys] == [False, True, False, False, False, True, False, True]
    good = [path for i, path in enumerate(paths) if i not in {1, 5}]
    stored = store.get([key for key in report.keys if key is not None])
    torch.testing.assert_close(stored, direct(segmenter, good))
    assert (report.encoded, report.reused, len(store)) == (5, 0, 5)
    assert store.build([*paths, absent]).skipped == report.skipped
    assert store.keys([absent]) == [None]


def test_a_chunk_of_bad_images_leaves_no_shard(root: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    store = FeatureStore.open(root, TinySegmenter())
    assert len(store.build([bad]).skipped) == 1
    assert shard_bytes(store) == {}


def test_any_reading_failure_of_the_system_is_a_skip(root: Path, paths: list[Path]) -> None:
    def read(path: Path) -> Any:
        if path == paths[0]:
            raise OSError(errno.EIO, "Input/output error")
        if path == paths[1]:
            path.write_bytes(path.read_bytes() + b"x")
        return read_image(path)

    report = FeatureStore.open(root, TinySegmenter()).build(paths, read=read)
    reasons = dict(report.skipped)
    assert "Input/output error" in reasons[paths[0]]
    assert "changed while it was read" in reasons[paths[1]]
    assert len(reasons) == 2


def test_features_beyond_float16_are_refused_not_stored_as_infinity(root: Path, paths: list[Path]) -> None:
    segmenter = TinySegmenter()
    next(segmenter.layers[2].parameters()).mul_(1e6)
    report = FeatureStore.open(root, segmenter, "float16").build(paths)
    assert len(report.skipped) == 7
    assert "not finite in float16; use float32" in report.skipped[0][1]
    assert not FeatureStore.open(root, segmenter, "float32").build(paths).skipped


# --- disk -------------------------------------------------------------------------------------------------------------


def test_a_full_disk_leaves_whole_shards_only_and_says_what_is_needed(
    root: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(root, TinySegmenter(), "float32", chunk=3)
    fsync = os.fsync
    calls = iter(range(100))

    def full(handle: int) -> None:
        if next(calls) >= 2:  # the first shard and its folder are flushed
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    needed = 4 * store.image_bytes
    with pytest.raises(UserError, match=rf"{store.folder} has no room.*{needed:,} more bytes.*what is stored is kept"):
        store.build(paths)
    monkeypatch.undo()
    assert leftovers(root) == []
    assert len(shard_bytes(store)) == 1
    assert store.verify() == []
    assert store.encoded == 6
    assert FeatureStore.open(root, TinySegmenter(), "float32", chunk=3).build(paths).encoded == 4


def test_too_small_a_disk_is_found_before_encoding(
    root: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FeatureStore.open(root, TinySegmenter())
    usage = shutil.disk_usage(root)._replace(free=7 * store.image_bytes - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="has no room"):
        store.build(paths)
    assert store.encoded == 0


def test_a_folder_that_cannot_be_written_is_a_sentence(
    root: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*choose another features folder"):
        FeatureStore.open(tmp_path / "file", TinySegmenter())
    store = FeatureStore.open(root, TinySegmenter())

    def refuse(_: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"Read-only file system.*make it writable"):
        store.build(paths)
    (store.folder / "claims").unlink()
    (store.folder / "claims").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        store.build(paths)


def test_temporary_files_of_dead_processes_are_removed_at_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FeatureStore.open(root, TinySegmenter())
    names: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, _: names.append(self.name))  # killed just before the rename
        write_atomic(store.folder / "name", b"x")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    dead = store.folder / names[0].replace(f".{os.getpid()}.", f".{process.pid}.")
    dead.write_bytes(b"half")
    FeatureStore.open(root, TinySegmenter())
    assert [path.name for path in leftovers(root)] == names


def test_verify_finds_a_flipped_byte_and_a_cut_file(root: Path, paths: list[Path]) -> None:
    store = FeatureStore.open(root, TinySegmenter(), chunk=3)
    keys = store.build(paths).keys
    assert store.verify() == []
    flipped, cut, _ = sorted(store.folder.glob("shard-*"))
    content = bytearray(flipped.read_bytes())
    content[-1] ^= 1
    flipped.unlink()
    flipped.write_bytes(content)
    content = bytearray(cut.read_bytes())
    cut.unlink()
    cut.write_bytes(content[:-1])
    problems = FeatureStore.at(store.folder).verify()
    assert [(problem.file, problem.check) for problem in problems] == [
        (str(flipped), "damaged-shard"),
        (str(cut), "damaged-shard"),
    ]
    assert "SHA-256" in problems[0].message
    flipped.unlink()
    healed = FeatureStore.open(root, TinySegmenter(), chunk=3)
    missing = 7 - len(healed)  # the cut shard counts as missing and is replaced
    assert healed.build(paths).keys == keys
    assert healed.encoded == missing > 0
    assert healed.verify() == []


def test_shards_of_another_version_or_shape_are_not_used(root: Path, paths: list[Path]) -> None:
    store = FeatureStore.open(root, TinySegmenter())
    other = FeatureStore.open(root, TinySegmenter(), "float32")
    other.build(paths)
    store.build(paths)
    for path in store.folder.glob("shard-*"):
        old = path.read_bytes().replace(rb"{\"version\": 1", rb"{\"version\": 9")
        path.unlink()
        path.write_bytes(old)
    for path in other.folder.glob("shard-*"):
        path.rename(store.folder / "shard-other.safetensors")
    again = FeatureStore.at(store.folder)
    assert len(again) == 0
    assert sorted(problem.message.split()[1] for problem in again.verify()) == ["has", "tensors"]


def test_a_damaged_store_json_is_written_again(root: Path, paths: list[Path]) -> None:
    store = FeatureStore.open(root, TinySegmenter())
    store.build(paths)
    description = (store.folder / "store.json").read_text()
    for damage in ("", "[]", description.replace('"version": 1', '"version": 9')):
        (store.folder / "store.json").write_text(damage)
        assert list_stores(root) == []
        with pytest.raises(UserError, match=r"no readable store\.json"):
            FeatureStore.at(store.folder)
        assert len(FeatureStore.open(root, TinySegmenter())) == 7
        assert (store.folder / "store.json").read_text() == description
    (store.folder / "store.json").write_text(description.replace('"fingerprint": "', '"fingerprint": "0'))
    with pytest.raises(UserError, match="holds other features"):
        FeatureStore.open(root, TinySegmenter())


def test_stores_are_listed_and_removed(root: Path, paths: list[Path]) -> None:
    assert list_stores(root) == []
    store = FeatureStore.open(root, TinySegmenter(), "int8")
    keys = store.build(paths).keys
    held = store.hold(keys, 1 << 20)
    expected = store.get(keys)
    (listed,) = list_stores(root)
    assert (listed.identity, len(listed)) == (store.identity, 7)
    assert listed.folder.name.startswith("tiny-encoder-v1-")
    assert listed.nbytes > 7 * listed.image_bytes
    with pytest.raises(RuntimeError, match="cannot encode"):
        listed.build(paths)
    store.remove()
    assert list_stores(root) == []
    assert len(store) == 0
    assert torch.equal(held[torch.arange(7)], expected)


@pytest.mark.parametrize(("dtype", "variant", "match"), [("int4", "", "float16"), ("int8", "../x", "rename it")])
def test_wrong_use_is_a_sentence(root: Path, dtype: Any, variant: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        FeatureStore.open(root, TinySegmenter(), dtype, variant=variant)
    assert not root.exists()
