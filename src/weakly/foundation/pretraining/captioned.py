"""The pictures the bundled CLIP learns from: pre-training worlds rendered once, and batches of views with captions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from transformers import CLIPTokenizer
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from weakly.data.menagerie.scene import render_scene
from weakly.files import write_atomic
from weakly.foundation.pretraining.captions import CAPTION_TOKENS, agreement, write_captions
from weakly.foundation.pretraining.clip_recipe import ClipTraining
from weakly.foundation.pretraining.pictures import PRETRAINING_SEED
from weakly.foundation.pretraining.scene_facts import Inventory, View, backdrop_of, read_facts, take_inventory
from weakly.foundation.pretraining.small_clip import tokenise

CHUNK = 64
FULL_VIEW = 0.4
"""Fraction of the pictures shown whole; the others are views of 55 to 100 % of the side."""
SMALLEST_VIEW = 0.55


@dataclass(frozen=True)
class CaptionedBank:
    """Rendered pictures on disk, read as they are drawn: no picture stays in memory.

    Attributes:
        files: chunks of (64, S, S, 4) uint8: RGB and the part map.
        inventories: what each picture contains.
    """

    files: tuple[Path, ...]
    inventories: tuple[Inventory, ...]

    def __len__(self) -> int:
        return len(self.inventories)

    def view(self, row: int) -> View:
        """Picture ``row`` whole."""
        planes = np.load(self.files[row // CHUNK], mmap_mode="r")[row % CHUNK]
        return View(np.asarray(planes[..., :3]), np.asarray(planes[..., 3]), self.inventories[row])


def render_captioned(
    folder: Path,
    count: int,
    *,
    seed: int = PRETRAINING_SEED,
    size: int = 256,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> CaptionedBank:
    """Render ``count`` worlds, 4 bytes per pixel each; chunks that exist are kept, so a killed run goes on.

    Args:
        folder: where the chunks lie; one folder per (seed, size) is made inside.
        count: number of pictures, rounded up to a whole chunk of 64.
        seed: the world's seed.
        size: S, pixels.
        workers: processes; one renders in this process.
        progress: called with (pictures done, pictures wanted).
    """
    home = folder / f"captioned-{seed}-{size}"
    home.mkdir(parents=True, exist_ok=True)
    files = tuple(home / f"{chunk:06d}.npy" for chunk in range(-(-count // CHUNK)))
    missing = [number for number, file in enumerate(files) if not file.is_file()]
    kept, total = len(files) - len(missing), len(files) * CHUNK
    progress(kept * CHUNK, total)
    jobs = [(files[number], number, seed, size) for number in missing]
    with ExitStack() as stack:
        run: Callable[..., Iterable[None]] = map
        if workers > 1:
            run = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn"))).map
        for done, _ in enumerate(run(_render_chunk, jobs), start=1):
            progress((kept + done) * CHUNK, total)
    entries = [entry for file in files for entry in json.loads(file.with_suffix(".json").read_text())]
    return CaptionedBank(files, tuple(_inventory(entry) for entry in entries))


def _render_chunk(job: tuple[Path, int, int, int]) -> None:
    file, chunk, seed, size = job
    cv2.setNumThreads(1)
    planes = np.empty((CHUNK, size, size, 4), np.uint8)
    inventories = []
    for row in range(CHUNK):
        index = chunk * CHUNK + row
        scene = render_scene(seed, index, size)
        planes[row, ..., :3], planes[row, ..., 3] = scene.image, scene.part_map
        inventories.append(asdict(take_inventory(scene, *backdrop_of(seed, index))))
    # The pictures last: a chunk is complete when they are there.
    write_atomic(file.with_suffix(".json"), json.dumps(inventories))
    temporary = file.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.save(stream, planes)
    temporary.replace(file)


def _inventory(entry: dict[str, Any]) -> Inventory:
    return Inventory(
        entry["place"],
        entry["horizon"],
        tuple(entry["kinds"]),
        tuple(entry["areas"]),
        tuple((category, owner) for category, owner in entry["parts"]),
    )


@dataclass(frozen=True, eq=False)
class CaptionBatch:
    """A training step's input: pictures, texts, and which text fits which picture; no mask and no box.

    Attributes:
        pixels: (B, 3, S, S) float32, normalised as CLIP's.
        tokens: (T, 32) int64.
        true: (B, T) bool, the text is true of the picture.
        false: (B, T) bool, the text is false of the picture; a pair in neither is unclear.
    """

    pixels: Tensor
    tokens: Tensor
    true: Tensor
    false: Tensor

    def to(self, device: torch.device) -> CaptionBatch:
        """The same batch on another device."""
        return CaptionBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class CaptionBatches(Dataset[CaptionBatch]):
    """The batch of every training step, a pure function of (recipe, step): order and resuming change nothing.

    Args:
        bank: rendered worlds.
        tokenizer: of the captions.
        training: the recipe.
    """

    def __init__(self, bank: CaptionedBank, tokenizer: CLIPTokenizer, training: ClipTraining) -> None:
        self.bank, self.tokenizer, self.training = bank, tokenizer, training

    def __len__(self) -> int:
        return self.training.total_steps

    def __getitem__(self, step: int) -> CaptionBatch:
        stage, seed = self.training.stage_at(step), self.training.seed
        rng = np.random.default_rng(np.random.SeedSequence([seed, step]))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        views = [draw_view(rng, self.bank.view(int(row))) for row in rng.integers(len(self.bank), size=stage.pictures)]
        facts = [read_facts(view) for view in views]
        captions = [caption for known in facts for caption in write_captions(rng, known, self.training.captions)]
        true, false = agreement(facts, captions)
        pixels = torch.from_numpy(np.stack([resized(view.image, stage.size) for view in views]))
        return CaptionBatch(
            normalised(mild_change(pixels.permute(0, 3, 1, 2).float() / 255, generator)),
            tokenise(self.tokenizer, [caption.text for caption in captions], CAPTION_TOKENS),
            torch.from_numpy(true),
            torch.from_numpy(false),
        )


def draw_view(rng: np.random.Generator, whole: View) -> View:
    """A square view of a picture, mirrored half of the time; its facts are read after both."""
    size = whole.part_map.shape[0]
    share = 1.0 if rng.random() < FULL_VIEW else float(rng.uniform(SMALLEST_VIEW, 1))
    side = max(1, round(size * share))
    y, x = (int(v) for v in rng.integers(0, size - side + 1, 2))
    step = -1 if rng.random() < 0.5 else 1
    image, part_map = (plane[y : y + side, x : x + side][:, ::step] for plane in (whole.image, whole.part_map))
    return View(image, part_map, whole.inventory, y / size, side / size)


def resized(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """An (H, W, 3) image at ``size`` x ``size`` pixels."""
    if image.shape[:2] == (size, size):
        return np.ascontiguousarray(image)
    how = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=how), np.uint8)


def normalised(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) pixels in [0, 1] with CLIP's mean and standard deviation taken out."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    return (pixels - mean) / std


def mild_change(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Exposure, contrast, saturation and noise of (B, 3, S, S) images in [0, 1], mild: colours keep their names."""

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(pixels), 1, 1, 1).uniform_(low, high, generator=generator)

    x = torch.lerp(pixels.mean(1, keepdim=True), pixels, uniform(0.75, 1.25))
    x = (x - 0.5) * uniform(0.8, 1.25) + 0.5 + uniform(-0.08, 0.08)
    x = x + torch.randn(x.shape, generator=generator) * uniform(0, 0.03)
    return x.clamp(0, 1)
