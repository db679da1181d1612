"""The feature store: what a frozen segmenter says about an image, computed once and kept on disk.

One store is one folder per (weights and preprocessing, coding)::

    <root>/image-keys.json                                   which image a file holds (a memory, may be deleted)
    <root>/<name>-<fingerprint>[-<variant>]-<dtype>/
        store.json                                           what the store holds
        shard-<id of its keys>.safetensors                   features of up to ``chunk`` images, whole or absent
        claims                                               locks of processes at work

An image is known by the SHA-256 of its file's bytes, so changed bytes, weights or padding never meet old features.

Same bytes after a kill: work is cut into chunks by the request's list of distinct images and a chunk is stored whole or
not at all, so a resumed build encodes the same batches as an uninterrupted one. Batches matter because the rounding of
convolutions may depend on them: where an earlier request for *other* images already stored a part of a chunk, only the
rest is encoded, in batches of its own, and may differ in the last bit. The same goes for another ``batch_size``,
``chunk``, device or number of threads.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from weakly.data.dataset import Problem
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.feature_build import Build, Progress, ReadImage
from weakly.foundation.feature_codec import FEATURE_DTYPES, Drift, FeatureDtype, Shape, decode, drift
from weakly.foundation.feature_index import FeatureIndex, Features
from weakly.foundation.feature_shards import (
    SHARD_PATTERN,
    VERSION,
    DamagedShard,
    check_shard,
    read_shard,
    remove_stale_temporaries,
    write_atomic,
)
from weakly.foundation.image_keys import ImageKeys, Stamp
from weakly.foundation.promptable import PromptableSegmenter


@dataclass(frozen=True, slots=True)
class Identity:
    """What a store holds.

    Attributes:
        name: the segmenter's name when the store was made.
        fingerprint: hex SHA-256 over its weights and preprocessing.
        variant: what reading does to an image beyond decoding it, e.g. ``"hflip"``; empty for nothing.
        dtype: the coding.
        shape: (C, h, w) of one image.
    """

    name: str
    fingerprint: str
    variant: str
    dtype: FeatureDtype
    shape: Shape

    @property
    def suffix(self) -> str:
        """The part of the folder name that identifies the store."""
        return "-".join(filter(None, (self.fingerprint[:12], self.variant, self.dtype)))

    @property
    def folder_name(self) -> str:
        """Readable first, identifying last."""
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-").lower() or "segmenter"
        return f"{name[:40]}-{self.suffix}"

    def same_features(self, other: Identity) -> bool:
        """Whether both hold the same features, under whatever name."""
        mine = (self.fingerprint, self.variant, self.dtype, self.shape)
        return mine == (other.fingerprint, other.variant, other.dtype, other.shape)


@dataclass(frozen=True, eq=False, slots=True)
class BuildReport:
    """What :meth:`FeatureStore.build` did.

    Attributes:
        keys: one per path, in order; None where the image was skipped.
        skipped: paths that have no features, and why, one sentence each.
        encoded: distinct images whose features this call added.
        reused: distinct images that were there before or came from another process.
        drift: what the coding changed, over all images of the store.
    """

    keys: tuple[str | None, ...]
    skipped: tuple[tuple[Path, str], ...]
    encoded: int
    reused: int
    drift: Drift


class FeatureStore:
    """Features of one segmenter in one coding.

    Several processes may build and read one store at once; one object belongs to one thread.

    Attributes:
        folder: where the store lies.
        identity: what it holds.
        encoded: images this object has encoded so far.
    """

    def __init__(
        self, folder: Path, identity: Identity, segmenter: PromptableSegmenter | None = None, *, chunk: int = 32
    ) -> None:
        self.folder = folder
        self.identity = identity
        self.encoded = 0
        self._segmenter = segmenter
        self._chunk = chunk
        self._images = ImageKeys(folder.parent / "image-keys.json")
        self._index = FeatureIndex(folder, identity.dtype, identity.shape)

    @classmethod
    def open(
        cls,
        root: Path,
        segmenter: PromptableSegmenter,
        dtype: FeatureDtype = "float16",
        *,
        chunk: int = 32,
        variant: str = "",
    ) -> FeatureStore:
        """The store of a segmenter under ``root``, made if there is none.

        Args:
            root: folder of all stores.
            segmenter: encodes what is missing; its ``fingerprint`` decides which store is opened.
            dtype: the coding.
            chunk: images per shard, the unit of resuming.
            variant: lower-case letters and digits that name what the ``read`` of :meth:`build` does beyond decoding.

        Raises:
            UserError: ``root`` cannot be written, or ``dtype`` or ``variant`` is not one.
        """
        if dtype not in FEATURE_DTYPES:
            raise UserError(f"There is no feature dtype {dtype!r}; choose one of {', '.join(FEATURE_DTYPES)}.")
        if not re.fullmatch(r"[a-z0-9]*", variant):
            raise UserError(f"The feature variant {variant!r} must be lower-case letters and digits; rename it.")
        identity = Identity(segmenter.name, segmenter.fingerprint, variant, dtype, segmenter.embedding_shape)
        folder = _folder(root, identity)
        try:
            _claim_folder(folder, identity)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{folder} cannot be written ({reason}); choose another features folder.") from error
        remove_stale_temporaries(root)
        remove_stale_temporaries(folder)
        return cls(folder, identity, segmenter, chunk=chunk)

    @classmethod
    def at(cls, folder: Path) -> FeatureStore:
        """An existing store by its folder, to look at, read, verify or remove; it cannot encode.

        Raises:
            UserError: the folder is no store.
        """
        identity = _read_identity(folder)
        if identity is None:
            raise UserError(f"{folder} has no readable store.json, so it is no feature store; name a store's folder.")
        return cls(folder, identity)

    def __len__(self) -> int:
        """Distinct images with features."""
        return len(self._index)

    def __contains__(self, key: object) -> bool:
        return key in self._index

    @property
    def nbytes(self) -> int:
        """Bytes of all shards on disk."""
        return sum(path.stat().st_size for path in self.folder.glob(SHARD_PATTERN))

    @property
    def image_bytes(self) -> int:
        """Bytes of one image's coded features: C h w times 4 or 2, or C h w + 8 C for int8."""
        return self._index.image_bytes

    @property
    def drift(self) -> Drift:
        """What the coding changed, over all shards, measured when they were computed."""
        return self._index.drift

    def keys(self, paths: Sequence[Path]) -> list[str | None]:
        """Keys of image files, in order, whether or not they have features; None where a file cannot be read."""
        keys = [key for key, _ in map(self._key, paths)]
        self._images.save()
        return keys

    def build(
        self,
        paths: Sequence[Path],
        *,
        read: ReadImage = read_image,
        batch_size: int = 8,
        progress: Progress | None = None,
    ) -> BuildReport:
        """Encode the images that have no features yet; every distinct image once, whatever the number of its paths.

        Memory: the network inputs of two batches, one batch in the encoder, and three times a shard
        (``chunk`` * :attr:`image_bytes`). Each shard is on disk when the next one begins.

        Args:
            paths: image files; their order decides the batches.
            read: path to (H, W, 3) uint8 RGB; raises UserError. Called from threads. If it does more than decode, open
                the store with a ``variant``.
            batch_size: images per call of the encoder.
            progress: called with (images done, images in all), at the start and after every batch.

        Raises:
            UserError: the disk is full or cannot be written. What is stored stays; the next build goes on from there.
        """
        if self._segmenter is None:
            raise RuntimeError("a store opened by its folder cannot encode; use FeatureStore.open with a segmenter")
        distinct = list(dict.fromkeys(paths))
        found = {path: self._key(path) for path in distinct}
        self._images.save()
        sources: dict[str, tuple[Path, Stamp]] = {}
        for path, (key, mark) in found.items():
            if key is not None and not isinstance(mark, str):
                sources.setdefault(key, (path, mark))
        tell = progress or (lambda _done, _total: None)
        build = Build(self._index, self._segmenter, sources, read, self._chunk, batch_size, tell)
        try:
            build.run(list(sources))
        finally:
            self.encoded += build.encoded
        reasons = {path: str(mark) if key is None else build.failed.get(key) for path, (key, mark) in found.items()}
        return BuildReport(
            keys=tuple(None if reasons[path] else found[path][0] for path in paths),
            skipped=tuple((path, reason) for path, reason in reasons.items() if reason),
            encoded=build.stored,
            reused=len(sources) - len(build.failed) - build.stored,
            drift=self.drift,
        )

    def _key(self, path: Path) -> tuple[str | None, Stamp | str]:
        """Key and stamp of a file, or None and the reason."""
        try:
            return self._images.key(path)
        except OSError as error:
            return None, f"{path} cannot be read ({error.strerror or error}); restore the file or drop its record."

    def get(self, keys: Sequence[str | None]) -> Tensor:
        """Features of some images.

        Returns:
            (len(keys), C, h, w) float32 on the CPU.

        Raises:
            UserError: an image has no features here.
        """
        return decode(self._index.gather(self._index.locate(keys)))

    def hold(
        self,
        keys: Sequence[str | None],
        budget: int,
        device: torch.device | str = "cpu",
        *,
        channels: int | None = None,
    ) -> Features:
        """Features of a training set, in memory if they fit.

        They fit if n * :attr:`image_bytes` <= ``budget``, n the number of distinct keys (times ``channels`` / C); they
        then stay coded on ``device`` and are decoded per batch. Else every batch is read from the memory-mapped shards.

        Args:
            keys: image of every index; keys may repeat.
            budget: bytes that may be held.
            device: where batches come out.
            channels: only the first so many of C; the others are not read.

        Raises:
            UserError: an image has no features here.
        """
        return self._index.hold(keys, budget, device, channels)

    def verify(self) -> list[Problem]:
        """Read every shard in full and compare it with its SHA-256; one problem per damaged file."""
        problems = []
        for path in sorted(self.folder.glob(SHARD_PATTERN)):
            try:
                check_shard(read_shard(path, self.identity.dtype, self.identity.shape))
            except DamagedShard as error:
                remedy = "Delete the file; the next run encodes its images again."
                problems.append(Problem("damaged-shard", "error", str(path), "", f"{error}.", remedy))
        return problems

    def remove(self) -> None:
        """Delete the store from disk. Resident features stay usable."""
        shutil.rmtree(self.folder)
        self._index = FeatureIndex(self.folder, self.identity.dtype, self.identity.shape)


def list_stores(root: Path) -> list[FeatureStore]:
    """Every store under ``root``, by folder name; an absent root has none."""
    folders = sorted(path.parent for path in root.glob("*/store.json"))
    return [FeatureStore.at(folder) for folder in folders if _read_identity(folder) is not None]


def _folder(root: Path, identity: Identity) -> Path:
    """The folder of an identity; the same weights under another name (hub id, local folder) share it."""
    for folder in sorted(root.glob(f"*-{identity.suffix}")):
        stored = _read_identity(folder)
        if stored is not None and stored.same_features(identity):
            return folder
    return root / identity.folder_name


def _claim_folder(folder: Path, identity: Identity) -> None:
    """Make the folder and its ``store.json``, unless they are there."""
    stored = _read_identity(folder)
    if stored is None:
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"version": VERSION, **asdict(identity)}, indent=2) + "\n"
        write_atomic(folder / "store.json", content.encode())
    elif not stored.same_features(identity):
        raise UserError(f"{folder} holds other features than those of {identity.name!r}; remove that folder.")


def _read_identity(folder: Path) -> Identity | None:
    """What ``store.json`` says; None where it is absent, damaged or of another version."""
    try:
        stored = json.loads((folder / "store.json").read_bytes())
        if stored.pop("version") != VERSION or stored["dtype"] not in FEATURE_DTYPES:
            return None
        channels, height, width = map(int, stored.pop("shape"))
        return Identity(shape=(channels, height, width), **stored)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


__all__ = [
    "BuildReport",
    "Drift",
    "FeatureDtype",
    "FeatureStore",
    "Features",
    "Identity",
    "drift",
    "list_stores",
]
