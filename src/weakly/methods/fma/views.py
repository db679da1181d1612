"""Augmented views of the training images, encoded once for the training of prompts (spec fma-wsss, 2.5 and 10).

A view is a pure function of the image's key, its number and the settings. Its geometry can be applied to a seed map
again, so that map and view stay aligned without storing either's crop.

    <root>/views/<clip>-<id>/
        views.json          what they are, and how many images are done
        embeddings.f32      (n, k, E) image embeddings: all that classification prompts need
        inputs.f16          (n, k, 1 + L, K) inputs of CLIP's last block: what segmentation prompts need

Size on disk: ``4 n k E`` bytes, and ``2 n k (1 + L) K`` bytes where inputs are kept: 0.30 MB per view of 224 px for
ViT-B/16, so 25 GB for the 10,582 images of VOC with 8 views each. Both files are memory-mapped; memory is a batch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.files import alone, one_sentence_errors, write_json
from weakly.foundation.clip import Clip, normalise
from weakly.methods.fma.settings import ViewSettings

VERSION = 1
"""Raise it when the same settings give other views."""

CHUNK = 8
"""Images between two entries in ``views.json``; their views are cut by several threads."""

GEOMETRY, COLOUR = 0, 1
"""The two streams of random numbers of a view."""


class Geometry(NamedTuple):
    """Where a view lies.

    Attributes:
        size: (height, width) of the resized image in pixels.
        top: first row of the crop.
        left: its first column.
        crop: its side.
        mirrored: whether it is mirrored left to right afterwards.
    """

    size: tuple[int, int]
    top: int
    left: int
    crop: int
    mirrored: bool

    def cut(self, pixels: NDArray[np.uint8], resample: Image.Resampling) -> NDArray[np.uint8]:
        """The view (crop, crop, ...) of a (H, W) or (H, W, 3) uint8 array of the original image."""
        height, width = self.size
        box = (self.left, self.top, self.left + self.crop, self.top + self.crop)
        view = np.asarray(Image.fromarray(pixels).resize((width, height), resample).crop(box))
        return view[:, ::-1] if self.mirrored else view


def view_geometry(size: tuple[int, int], key: str, number: int, settings: ViewSettings) -> Geometry:
    """The geometry of view ``number`` of the image with ``key`` and ``size`` (height, width)."""
    rng = _random(key, number, settings, GEOMETRY)
    target = int(rng.integers(settings.long[0], settings.long[1] + 1))
    factor = max(target / max(size), settings.crop / min(size))
    height, width = (max(settings.crop, round(side * factor)) for side in size)
    top, left = (int(rng.integers(side - settings.crop + 1)) for side in (height, width))
    return Geometry((height, width), top, left, settings.crop, bool(rng.random() < settings.flip))


def image_view(image: NDArray[np.uint8], key: str, number: int, settings: ViewSettings) -> NDArray[np.uint8]:
    """(S, S, 3) uint8 view ``number`` of a (H, W, 3) uint8 RGB image: colours changed, bicubic, cropped, mirrored."""
    if settings.jitter:
        image = jitter(image, _random(key, number, settings, COLOUR))
    return view_geometry(image.shape[:2], key, number, settings).cut(image, Image.Resampling.BICUBIC)


def seed_view(seed: NDArray[np.uint8], key: str, number: int, settings: ViewSettings) -> NDArray[np.uint8]:
    """(S, S) uint8: what view ``number`` shows of a (H, W) seed map of the same image, nearest."""
    size = (seed.shape[0], seed.shape[1])
    return view_geometry(size, key, number, settings).cut(seed, Image.Resampling.NEAREST)


def jitter(image: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Brightness, contrast, saturation and hue of a (H, W, 3) uint8 RGB image, in random order, each with p = 1/2.

    OpenCV's ``convertScaleAbs`` at every step, as released: negative values fold, values over 255 saturate, and hue
    (0..255) does not wrap.
    """
    for kind in rng.permutation(4).tolist():
        if rng.random() < 0.5:
            continue
        if kind == 0:
            image = _scaled(image, 1, rng.uniform(-25, 25))
        elif kind == 1:
            image = _scaled(image, rng.uniform(0.6, 1.4), 0)
        else:
            hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
            channel, gain, shift = (1, rng.uniform(0.5, 1.5), 0.0) if kind == 2 else (0, 1.0, rng.uniform(-25, 25))
            hsv[..., channel] = _scaled(hsv[..., channel].astype(np.uint8), gain, shift)
            image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL).astype(np.uint8, copy=False)
    return image


@dataclass(frozen=True, eq=False)
class Views:
    """Encoded views of n images, k each, on disk.

    Attributes:
        keys: of the n images.
        settings: of the views.
        embeddings: (n, k, E) float32.
        inputs: (n, k, 1 + L, K) float16; None where they were not asked for.
        grid: (h, w) of the patches, L = h w.
    """

    keys: tuple[str, ...]
    settings: ViewSettings
    embeddings: NDArray[np.float32]
    inputs: NDArray[np.float16] | None
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.keys)


def encode_views(
    root: Path,
    clip: Clip,
    paths: Sequence[Path],
    keys: Sequence[str],
    settings: ViewSettings,
    *,
    inputs: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Views:
    """The encoded views of some images, stored or made now; a stopped call goes on and ends with the same bytes.

    The k views of an image are one batch of the encoder, so nothing depends on where a call stopped.

    Args:
        root: folder of everything frozen, shared between runs.
        clip: the encoder.
        paths: n image files that can be read.
        keys: their keys, hexadecimal.
        settings: of the views.
        inputs: also keep the inputs of the last block.
        progress: called with (images done, images in all).

    Raises:
        UserError: the crop is no multiple of CLIP's patch, an image cannot be read, or there is no room on the disk.
    """
    if settings.crop % clip.patch:
        raise UserError(f"views.crop is {settings.crop}, no multiple of the patch of CLIP {clip.name!r}, {clip.patch}.")
    side = settings.crop // clip.patch
    content: dict[str, Any] = {"version": VERSION, "clip": clip.fingerprint, "settings": asdict(settings)}
    content |= {"inputs": inputs, "keys": hashlib.sha256("".join(keys).encode()).hexdigest()}
    identity = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    name = re.sub(r"[^A-Za-z0-9]+", "-", clip.name).strip("-").lower()[:40] or "clip"
    folder = root / "views" / f"{name}-{identity[:12]}"
    shapes: dict[str, tuple[int, ...]] = {"embeddings.f32": (settings.count, clip.joint_width)}
    if inputs:
        shapes["inputs.f16"] = (settings.count, 1 + side * side, clip.width)
    with alone(folder):  # another process then finds the work done
        _encode(folder, content, clip, paths, keys, settings, shapes, progress or (lambda _done, _total: None))
    arrays = {file: np.memmap(folder / file, _dtype(file), "r", shape=(len(keys), *shapes[file])) for file in shapes}
    return Views(tuple(keys), settings, arrays["embeddings.f32"], arrays.get("inputs.f16"), (side, side))


def _encode(
    folder: Path,
    content: dict[str, Any],
    clip: Clip,
    paths: Sequence[Path],
    keys: Sequence[str],
    settings: ViewSettings,
    shapes: dict[str, tuple[int, ...]],
    tell: Callable[[int, int], None],
) -> None:
    """Append the views of the images after the last that ``views.json`` counts as done."""
    image_bytes = {file: int(np.prod(shape)) * _dtype(file).itemsize for file, shape in shapes.items()}
    done = _done(folder, image_bytes)
    tell(done, len(paths))
    if done == len(paths):
        return
    with one_sentence_errors(folder):
        files = {file: (folder / file).open("r+b" if done else "wb") for file in shapes}
    try:
        with one_sentence_errors(folder), ThreadPoolExecutor(min(CHUNK, os.cpu_count() or 1)) as pool:
            for file, handle in files.items():
                handle.truncate(done * image_bytes[file])
                handle.seek(done * image_bytes[file])
            for start in range(done, len(paths), CHUNK):
                stop = min(start + CHUNK, len(paths))
                for views in pool.map(partial(_read_views, settings), paths[start:stop], keys[start:stop]):
                    _append(clip, views, files)
                for handle in files.values():
                    handle.flush()
                    os.fsync(handle.fileno())
                done = stop
                write_json(folder / "views.json", {**content, "done": done})
                tell(done, len(paths))
    finally:
        for handle in files.values():
            handle.close()


def _append(clip: Clip, views: NDArray[np.uint8], files: dict[str, BinaryIO]) -> None:
    """Encode the (k, S, S, 3) views of one image and write what is kept of them."""
    features = clip.encode(normalise(views).to(clip.device), attention_layers=1)
    with torch.no_grad():
        embeddings = clip.tail(features.last_input, clip.last_norm(features.last_input))
    files["embeddings.f32"].write(embeddings.cpu().numpy().astype(np.float32).tobytes())
    if "inputs.f16" in files:
        files["inputs.f16"].write(features.last_input.cpu().numpy().astype(np.float16).tobytes())


def _read_views(settings: ViewSettings, path: Path, key: str) -> NDArray[np.uint8]:
    image = read_image(path)
    return np.stack([image_view(image, key, number, settings) for number in range(settings.count)])


def _done(folder: Path, image_bytes: dict[str, int]) -> int:
    """Images whose views are whole: what ``views.json`` says, if the files are as long as that."""
    try:
        done = int(json.loads((folder / "views.json").read_bytes())["done"])
        whole = all((folder / file).stat().st_size >= done * size for file, size in image_bytes.items())
    except (OSError, ValueError, KeyError, TypeError):
        return 0
    return done if whole else 0


def _scaled(values: NDArray[np.uint8], gain: float, shift: float) -> NDArray[np.uint8]:
    """|gain * values + shift|, rounded and cut at 255."""
    return cv2.convertScaleAbs(values, alpha=gain, beta=shift).astype(np.uint8, copy=False)


def _dtype(file: str) -> np.dtype[Any]:
    return np.dtype(np.float32 if file.endswith("f32") else np.float16)


def _random(key: str, number: int, settings: ViewSettings, stream: int) -> np.random.Generator:
    return np.random.default_rng((settings.seed, number, stream, int(key, 16)))
