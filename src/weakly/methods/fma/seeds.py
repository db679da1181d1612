"""Seed maps: activation maps of the classes that the tags name, spread, and made into one label per pixel.

One :class:`SeedMaker` is one stage: the coarse seeds, the fine ones, or those of CLIP-ES. Its seed maps are palette
PNGs whose names hold a digest of everything they depend on, so a stopped run goes on, and a changed image, tag, prompt
or setting never meets an old map.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.clip import Clip
from weakly.labels import Sample
from weakly.methods.dense_crf import confident_labels, dense_crf, wrapped_image
from weakly.methods.fma.affinity import map_scores, spread
from weakly.methods.fma.cam import GradCam
from weakly.methods.fma.masks import MaskStore
from weakly.methods.fma.settings import FmaSettings, SeedSettings
from weakly.methods.fma.superpixels import Superpixels, quasi_superpixels, seed_map, vote
from weakly.methods.image_views import VOID
from weakly.methods.semantic_targets import read_label_map, write_label_map
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

VERSION = 1
"""Raise it when the same inputs give other seeds."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Prompts:
    """A prompt set, ready for use.

    Attributes:
        text: (G, E) features of length 1: C foreground classes, then the backgrounds.
        identity: hex digest of what they were made of.
    """

    text: Tensor
    identity: str


class SeedMaker:
    """Seed maps of one stage.

    Memory per image: CLIP's attention, (1 + L)^2 floats for every head of a block, L the patches of the image at
    ``long_side``; the boolean masks of its superpixels, S H W bytes; P H W floats of activations.

    Attributes:
        settings: of the stage.
        identity: hex digest of all that decides the seed map of an image and its tags.

    Args:
        clip: frozen.
        prompts: of the stage.
        vocabulary: C categories.
        settings: of the stage.
        common: what all stages share: superpixels, CRF, epsilons.
        masks: needed to finish by ``sams`` or ``voting``.
    """

    def __init__(
        self,
        clip: Clip,
        prompts: Prompts,
        vocabulary: Vocabulary,
        settings: SeedSettings,
        common: FmaSettings,
        masks: MaskStore | None = None,
    ) -> None:
        if settings.by_masks and masks is None:
            raise ValueError(f"seeds that finish by {settings.finish} need automatic masks")
        self.settings = settings
        self._clip, self._prompts, self._vocabulary, self._common = clip, prompts, vocabulary, common
        self._masks = masks if settings.by_masks else None
        self.identity = self._identity()

    @torch.no_grad()
    def labels(self, image: NDArray[np.uint8], tags: NDArray[np.int64], name: str = "the image") -> NDArray[np.uint8]:
        """(H, W) uint8 labels of a (H, W, 3) uint8 RGB image: background = C, void = 255.

        An image without tags, or without a single mask where masks decide, is all background.

        Args:
            image: the picture.
            tags: (P,) ascending category indices; no other class competes.
            name: of the image, for warnings.
        """
        classes = len(self._vocabulary)
        if len(tags) == 0:
            return np.full(image.shape[:2], classes, np.uint8)
        maps = self.activations(image, tags)
        values = self._by_masks(image, maps, name) if self.settings.finish == "sams" else self._by_scores(image, maps)
        if self.settings.finish == "voting":
            values = vote(torch.from_numpy(values).to(maps.device), self._superpixels(image, name)).cpu().numpy()
        lookup = np.full(256, VOID, np.uint8)
        lookup[0] = classes
        lookup[1 : len(tags) + 1] = tags
        return lookup[values]

    @torch.no_grad()
    def activations(self, image: NDArray[np.uint8], tags: NDArray[np.int64]) -> Tensor:
        """(P, h, w) float32 maps of the classes in ``tags`` after the affinity, signed, on CLIP's device."""
        setting, clip = self.settings, self._clip
        pixels = clip.preprocess(image, setting.long_side).to(clip.device)
        features = clip.encode(pixels, attention_layers=setting.layers)
        present = torch.zeros(1, len(self._vocabulary), dtype=torch.bool, device=clip.device)
        present[0, torch.from_numpy(tags)] = True
        cam = GradCam(clip, features.last_input, features.grid, features.last_attention)
        maps = cam.maps(self._prompts.text.to(clip.device), present, eps=self._common.epsilons.softmax)
        if setting.spread == "none":
            return maps
        return spread(
            maps,
            features.attention[0],
            threshold=setting.threshold,
            values=setting.spread,
            iterations=setting.sinkhorn,
            power=setting.power,
            eps=self._common.epsilons.scores,
        )

    def path(self, folder: Path, sample: Sample, tags: NDArray[np.int64], key: str) -> Path:
        """Where the seed map of an image lies: its readable id, and a digest of image, tags and stage."""
        digest = hashlib.sha256(f"{self.identity}|{key}|{sample.size}|{tags.tolist()}".encode()).hexdigest()
        readable = re.sub(r"[^\w.-]+", "_", str(sample.image_id))[-80:]
        return folder / f"{readable}-{digest[:12]}.png"

    def build(
        self,
        folder: Path,
        samples: Sequence[tuple[Sample, NDArray[np.int64], str]],
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Path]:
        """Write the seed maps that are missing, each before the next one begins.

        Args:
            folder: of the stage.
            samples: images that can be read, with tags and keys.
            progress: called with (images done, images in all), at the start and after every image.

        Returns:
            One PNG per sample, in order.

        Raises:
            UserError: an image cannot be read any more.
        """
        tell = progress or (lambda _done, _total: None)
        paths = [self.path(folder, *sample) for sample in samples]
        tell(0, len(samples))
        for done, ((sample, tags, _), path) in enumerate(zip(samples, paths, strict=True), 1):
            if not path.is_file():
                write_label_map(path, self.labels(read_image(sample.path), tags, str(sample.path)), self._vocabulary)
            tell(done, len(samples))
        return paths

    def without_void(self) -> SeedMaker:
        """The same stage where every pixel has a label: what is scored."""
        settled = replace(self.settings, confidence=0.0)
        return SeedMaker(self._clip, self._prompts, self._vocabulary, settled, self._common, self._masks)

    def _superpixels(self, image: NDArray[np.uint8], name: str) -> Superpixels:
        """The thinned masks of an image, on CLIP's device."""
        if self._masks is None:
            raise ValueError("these seeds were made without automatic masks")
        thinning = self._common.superpixels
        found = self._masks.of(image)
        if len(found) == 0:
            left = "all background" if self.settings.finish == "sams" else "as its activations say"
            log.warning("%s has no automatic mask; its seed map is %s.", name, left)
        return quasi_superpixels(found, thinning.ratio, against=thinning.against, device=self._clip.device)

    def _by_masks(self, image: NDArray[np.uint8], maps: Tensor, name: str) -> NDArray[np.uint8]:
        """(H, W) uint8: 0 background, j the j-th map."""
        setting, pixels = self.settings, self._superpixels(image, name)
        values = seed_map(
            maps,
            range(len(maps)),
            pixels,
            alpha=setting.alpha,
            average=setting.average,
            eps=self._common.epsilons.masks,
        )
        return values.cpu().numpy()

    def _by_scores(self, image: NDArray[np.uint8], maps: Tensor) -> NDArray[np.uint8]:
        """(H, W) uint8: 0 background, j the j-th map, 255 void; scores at original size against a background score."""
        setting = self.settings
        large = functional.interpolate(maps[None], image.shape[:2], mode="bilinear")[0]
        scores = map_scores(large, eps=self._common.epsilons.scores)
        background = (1 - scores.amax(0)).clamp(min=0) ** setting.background_power
        competing = torch.cat([background[None], scores])
        if setting.finish == "crf":
            seen = wrapped_image(image) if self._common.crf_wrapped else image
            competing = dense_crf(seen, competing, self._common.crf)
        return confident_labels(competing, setting.confidence if setting.finish == "crf" else 0.0).cpu().numpy()

    def _identity(self) -> str:
        content: dict[str, Any] = {
            "version": VERSION,
            "clip": self._clip.fingerprint,
            "prompts": self._prompts.identity,
            "names": self._vocabulary.names,
            "settings": {key: value for key, value in asdict(self.settings).items() if key != "templates"},
            "epsilons": self._common.epsilons,
        }
        if self._masks is not None:
            content |= {"masks": self._masks.identity, "superpixels": asdict(self._common.superpixels)}
        if self.settings.finish == "crf":
            content |= {"crf": asdict(self._common.crf), "wrapped": self._common.crf_wrapped}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def seed_results(
    maker: SeedMaker,
    dataset: Dataset,
    folder: Path,
    tags: Sequence[NDArray[np.int64]],
    keys: Sequence[str | None],
    method: str,
) -> Iterator[Segmentation]:
    """Seed maps as segmentations, one per image of the dataset, written where they are missing.

    An image that cannot be read is all background.

    Args:
        maker: of the stage, :meth:`SeedMaker.without_void`.
        dataset: the images.
        folder: of the stage.
        tags: of every image.
        keys: of every image; None where it cannot be read.
        method: what the masks state as their origin.
    """
    background = dataset.vocabulary.background
    for sample, labels, key in zip(dataset, tags, keys, strict=True):
        seed = np.full(sample.size, background, np.uint8)
        if key is not None:
            try:
                seed = read_label_map(maker.build(folder, [(sample, labels, key)])[0], background)
            except UserError as error:
                log.warning("%s has no seed map: %s", sample.path, error)
        present = np.unique(seed)
        present = present[present < background].astype(np.int64)
        origin = [{"method": method, "row": "seeds"}] * len(present)
        yield Segmentation.from_masks(seed == present[:, None, None], present, None, origin, seed)


def tags_of(sample: Sample) -> NDArray[np.int64] | None:
    """Distinct category indices that an image shows, ascending: its tags, else what its boxes or points imply."""
    if sample.tags is not None:
        return sample.tags.labels
    given = [labels.labels for labels in (sample.boxes, sample.points) if labels is not None]
    return np.unique(np.concatenate(given)) if given else None


def tag_matrix(tags: Sequence[NDArray[np.int64]], classes: int) -> Tensor:
    """(n, C) bool."""
    matrix = torch.zeros(len(tags), classes, dtype=torch.bool)
    for row, labels in zip(matrix, tags, strict=True):
        row[torch.from_numpy(labels)] = True
    return matrix
