"""What every layout of a rendered world shares: its manifest, its scene numbers, and drawing it in resumable chunks.

A world is drawn in chunks of :data:`CHUNK` scenes. A worker writes the files of each scene and then one *chunk file*
(``.parts/{split}/{start}.json``) with what the split's lists need to know about them. When every chunk of a split is
there, its lists (COCO JSON, ImageSets) are written, the manifest ``world.json`` says so, and the chunk files go.
All writes are atomic and scenes are pure functions of their numbers, so a killed run resumes to the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from weakly.data.menagerie.kinds import KINDS, PARTS_OF
from weakly.data.menagerie.roles import ROLES
from weakly.data.menagerie.textures import SETTINGS
from weakly.errors import UserError, WeaklyError
from weakly.files import alone, remove_leftovers, write_atomic, write_json

RESERVED_SEEDS: Mapping[int, str] = {
    730_001: "training the bundled models",
    730_002: "measuring the bundled models",
}
"""{seed: what for}. A written world never shares a scene with the pre-training of the bundled models."""

SPLIT_OFFSETS: Mapping[str, int] = {"train": 0, "val": 10_000_000, "test": 20_000_000}
"""Number of each split's first scene: splits share no scene, and a split that grows keeps the scenes it has."""

MAX_IMAGES = 10_000_000
CHUNK = 16
JPEG_QUALITY = 95
RENDERER = 1
"""Raise it when a change of the renderer's code changes pixels; tables are hashed as they are."""

MANIFEST = "world.json"
_PARTS = ".parts"

Entry = dict[str, Any]
"""What is known about one drawn scene, as JSON; ``files`` lists its files relative to the root."""

Progress = Callable[[int, int], None]
"""Called with (images done, images in all)."""


@dataclass(frozen=True, slots=True)
class World:
    """Which world lies where.

    Attributes:
        root: folder it is written to.
        seed: of every scene.
        size: side of the square images, pixels.
        kinds: names of the object kinds that occur; None: all of them.
    """

    root: Path
    seed: int
    size: int
    kinds: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """How a world lies on disk. The functions are module-level, so that worker processes can import them.

    Attributes:
        name: in the manifest.
        folders: the folders below the root that belong to it.
        draw: ``(world, split, index)`` writes the files of one scene and returns its entry.
        finish: ``(world, split, entries)`` writes the lists of a complete split.
        last_file: ``(split)`` names the file, relative to the root, that ``finish`` writes last.
    """

    name: str
    folders: tuple[str, ...]
    draw: Callable[[World, str, int], Entry]
    finish: Callable[[World, str, Sequence[Entry]], None]
    last_file: Callable[[str], str]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Scenes ``start`` to ``stop`` (exclusive), counted within the split."""

    split: str
    start: int
    stop: int

    def file(self, root: Path) -> Path:
        return root / _PARTS / self.split / f"{self.start:08d}.json"

    def __len__(self) -> int:
        return self.stop - self.start


def write_world(
    world: World,
    layout: Layout,
    splits: Mapping[str, int],
    *,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write the splits of a world, or what is missing of them.

    Finished splits are left alone. A split that grows is drawn again from its first scene (files that are already
    right are not touched), because its chunk files are gone. To repair a damaged split, delete its list and call again.

    Args:
        world: what to draw and where.
        layout: of the files.
        splits: {split: number of images}.
        workers: processes; one per available core by default; 1 draws in this process.
        progress: called after each chunk.

    Raises:
        UserError: a reserved or negative seed, an unknown split, an impossible count or size, or a root that holds
            something else: another world, or files that are no world's.
        WeaklyError: the disk is full, or a worker process was killed.
    """
    _check_request(world, splits, workers)
    manifest = _claim(world, layout, splits)
    if _unfinished(manifest, splits):
        with alone(world.root):
            manifest = _write_missing(world, layout, splits, workers or _cores(), progress)
    _remove_chunk_files(world.root, manifest)


def _write_missing(
    world: World, layout: Layout, splits: Mapping[str, int], workers: int, progress: Progress | None
) -> dict[str, Any]:
    """Draw what is missing; the manifest as it is then."""
    manifest = _claim(world, layout, splits)  # another process may have drawn it since
    todo = _unfinished(manifest, splits)
    _remove_temporary_files(world.root, layout)
    chunks = [chunk for split, count in todo.items() for chunk in _chunks(split, count)]
    missing = [chunk for chunk in chunks if _load(world.root, chunk) is None]
    total = sum(splits.values())
    done = total - sum(map(len, missing))
    for chunk in _draw_all(world, layout, missing, workers):
        done += len(chunk)
        if progress is not None:
            progress(done, total)
    for split, count in todo.items():
        layout.finish(world, split, [entry for chunk in _chunks(split, count) for entry in _drawn(world.root, chunk)])
        manifest["splits"][split]["finished"] = True
        write_json(world.root / MANIFEST, manifest)
    return manifest


def _unfinished(manifest: Mapping[str, Any], splits: Mapping[str, int]) -> dict[str, int]:
    return {split: count for split, count in splits.items() if not manifest["splits"][split]["finished"]}


def write_if_changed(path: Path, content: bytes) -> None:
    """Write atomically, unless the file already has this content."""
    if not (path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content):
        write_atomic(path, content)


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """RGB uint8 (H, W, 3) as JPEG of quality :data:`JPEG_QUALITY`."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=JPEG_QUALITY)
    return stream.getvalue()


def png(label_map: NDArray[np.uint8], palette: NDArray[np.uint8] | None = None) -> bytes:
    """Labels uint8 (H, W) as greyscale PNG, or as palette PNG with ``palette`` uint8 (256, 3) RGB."""
    picture = Image.fromarray(label_map)
    if palette is not None:
        picture.putpalette(palette.tobytes())
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def tight_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """``x0, y0, x1, y1`` (x1, y1 exclusive) around the pixels of a non-empty (H, W) mask."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _check_request(world: World, splits: Mapping[str, int], workers: int | None) -> None:
    if world.seed in RESERVED_SEEDS:
        raise UserError(
            f"The seed {world.seed} is reserved for {RESERVED_SEEDS[world.seed]}; a world of another seed is needed so "
            "that no image is seen beforehand."
        )
    if world.seed < 0:
        raise UserError(f"The seed {world.seed} is negative; give 0 or more.")
    unknown = sorted(set(world.kinds or ()) - set(KINDS))
    if unknown or world.kinds == ():
        raise UserError(
            f"The menagerie has no kind {', '.join(unknown) or 'in an empty list'}; give some of {', '.join(KINDS)}."
        )
    if not 32 <= world.size <= 2048:
        raise UserError(f"Images of {world.size} px cannot be drawn; give a size from 32 to 2048.")
    if workers is not None and workers < 1:
        raise UserError(f"{workers} worker processes cannot draw; give 1 or more.")
    if not splits:
        raise UserError(f"No split is asked for; give one of {', '.join(SPLIT_OFFSETS)}.")
    for split, count in splits.items():
        if split not in SPLIT_OFFSETS:
            raise UserError(f"The menagerie has no split {split!r}; give one of {', '.join(SPLIT_OFFSETS)}.")
        if not 1 <= count <= MAX_IMAGES:
            raise UserError(f"The split {split!r} cannot have {count} images; give 1 to {MAX_IMAGES}.")


def _claim(world: World, layout: Layout, splits: Mapping[str, int]) -> dict[str, Any]:
    """The manifest of ``root`` with ``splits`` entered, written to disk.

    ``{"layout", "seed", "size", "renderer", "splits": {split: {"images": int, "finished": bool}}}``.
    """
    identity = {
        "layout": layout.name,
        "seed": world.seed,
        "size": world.size,
        "kinds": None if world.kinds is None else list(world.kinds),
        "renderer": _renderer_version(),
    }
    path = world.root / MANIFEST
    held = _read_manifest(world, layout)
    for key, wanted in identity.items():
        if held is not None and held.get(key) != wanted:
            raise UserError(
                f"The folder {world.root} already holds a world with {key} {held.get(key)!r}, not {wanted!r}; choose "
                "another folder, or delete this one to draw it anew."
            )
    entered = {} if held is None else dict(held["splits"])
    for split, count in splits.items():
        before = entered.get(split, {"images": 0, "finished": False})
        if count < before["images"]:
            raise UserError(
                f"The folder {world.root} already holds a world with {before['images']} {split} images, not {count}; "
                "ask for at least as many, or choose another folder."
            )
        finished = before["finished"] and count == before["images"] and (world.root / layout.last_file(split)).is_file()
        entered[split] = {"images": count, "finished": finished}
    manifest = {**identity, "splits": {split: entered[split] for split in SPLIT_OFFSETS if split in entered}}
    if manifest != held:
        write_json(path, manifest)
    return manifest


def _read_manifest(world: World, layout: Layout) -> dict[str, Any] | None:
    """The manifest; None where the root holds no world yet."""
    path = world.root / MANIFEST
    if not path.is_file():
        foreign = [name for name in layout.folders if (world.root / name).exists()]
        if foreign:
            raise UserError(
                f"The folder {world.root} already holds {foreign[0]}/ but no {MANIFEST}, so it is no world of the "
                "menagerie; choose another folder."
            )
        return None
    try:
        held: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        splits = {s: {"images": int(v["images"]), "finished": bool(v["finished"])} for s, v in held["splits"].items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"The file {path} is no manifest of a world; delete the folder to draw it anew.") from error
    return {**held, "splits": splits}


def _renderer_version() -> str:
    """Names the renderer's code version and the content of its tables."""
    tables = [dict(table) for table in (PARTS_OF, KINDS, ROLES, SETTINGS)]
    return f"{RENDERER}-{hashlib.sha256(repr(tables).encode()).hexdigest()[:16]}"


def _remove_temporary_files(root: Path, layout: Layout) -> None:
    """Remove what killed processes left half-written."""
    remove_leftovers(root)
    for name in (*layout.folders, _PARTS):
        if (root / name).is_dir():
            for folder in (root / name, *(path for path in (root / name).rglob("*") if path.is_dir())):
                remove_leftovers(folder)


def _remove_chunk_files(root: Path, manifest: Mapping[str, Any]) -> None:
    """Remove the chunk files of finished splits."""
    parts = root / _PARTS
    for split, state in manifest["splits"].items():
        if state["finished"] and (parts / split).is_dir():
            shutil.rmtree(parts / split)
    if parts.is_dir() and not any(parts.iterdir()):
        parts.rmdir()


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _chunks(split: str, count: int) -> list[_Chunk]:
    return [_Chunk(split, start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]


def _load(root: Path, chunk: _Chunk) -> list[Entry] | None:
    """The entries of a chunk; None if it must be drawn: no or a shorter chunk file, or a scene's file is gone."""
    path = chunk.file(root)
    if not path.is_file():
        return None
    entries: list[Entry] = json.loads(path.read_text(encoding="utf-8"))
    whole = len(entries) == len(chunk) and all((root / file).is_file() for e in entries for file in e["files"])
    return entries if whole else None


def _drawn(root: Path, chunk: _Chunk) -> list[Entry]:
    entries = _load(root, chunk)
    if entries is None:
        raise WeaklyError(f"Files of {root} vanished while it was drawn; run the same command again.")
    return entries


def _draw_all(world: World, layout: Layout, chunks: Sequence[_Chunk], workers: int) -> Iterator[_Chunk]:
    """Draw chunks, in this process or in ``workers`` others; yields each chunk when it is on disk."""
    workers = min(workers, len(chunks))
    if workers <= 1:
        for chunk in chunks:
            yield _draw_chunk(world, layout, chunk)
        return
    # Spawned, not forked: the calling process may run threads (torch, OpenCV) that do not survive a fork.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    )
    try:
        for future in as_completed([pool.submit(_draw_chunk, world, layout, chunk) for chunk in chunks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise WeaklyError(
            f"A process that drew into {world.root} was killed (memory?); run the same command again to go on, with "
            "fewer workers."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _draw_chunk(world: World, layout: Layout, chunk: _Chunk) -> _Chunk:
    first = SPLIT_OFFSETS[chunk.split]
    entries = [layout.draw(world, chunk.split, first + n) for n in range(chunk.start, chunk.stop)]
    write_json(chunk.file(world.root), entries, indent=None)
    return chunk
