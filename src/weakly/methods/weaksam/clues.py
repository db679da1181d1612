"""Clues: what a classifier knows about where the classes of one image are (spec weaksam, sections 1.3 and 1.4).

Symbols: C classes, P tagged classes, (H, W) original size, (h, w) patches of a view, M attention maps per class.
Classes are selected before anything is enlarged, and attention maps stay at patch resolution until they are asked for.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from weakly.errors import UserError
from weakly.foundation.clip import Clip
from weakly.methods.fma.affinity import spread
from weakly.methods.fma.cam import GradCam
from weakly.methods.fma.model import manual_prompts
from weakly.methods.fma.settings import ClipEsSettings
from weakly.methods.weaksam.class_tokens import ClueNetwork, NetworkMaps, VitSettings, load_deit
from weakly.methods.weaksam.clue_data import as_tensor, normalised, resized
from weakly.methods.weaksam.clue_training import ClueTraining, weights_digest
from weakly.methods.weaksam.mctformer import Mctformer
from weakly.methods.weaksam.weaktr import WeakTr

EPS = 1e-8
"""Added to the range of a map before dividing by it."""

TEST_TAG_LOGIT = -0.5
"""A class whose logit is higher (probability above 0.378) counts as shown where no tags are given."""

NETWORKS: dict[str, type[ClueNetwork]] = {"weaktr": WeakTr, "mctformer": Mctformer}


@dataclass(frozen=True)
class ClueSettings:
    """Where clues come from; the defaults are WeakSAM's.

    Attributes:
        model: ``weaktr`` or ``mctformer``, trained on the tags; ``clip-es``: a frozen CLIP, which needs tags.
        vit: transformer of the first two.
        scales: of the views; the first, and there the upright image, decides about classes where tags are unknown.
        hflip: mirror every view as well.
        cross_layers: layers, from 1, whose attention gives maps; null: the upper two thirds, 5 to 12 of DeiT-S.
        test_tag_logit: see :data:`TEST_TAG_LOGIT`.
        long_side: larger images are shrunk to it before the scales; memory grows with its fourth power. null: never.
        train: training of the first two.
        clip: ``"bundled"``, a folder in Hugging Face form, or a hub id.
        clip_es: maps of ``clip-es``: ``spread``, ``threshold``, ``sinkhorn``, ``power``, ``layers``, ``long_side`` and
            ``templates`` count.
    """

    model: Literal["weaktr", "mctformer", "clip-es"] = "weaktr"
    vit: VitSettings = field(default_factory=VitSettings)
    scales: tuple[float, ...] = (1.0, 0.8, 1.2)
    hflip: bool = True
    cross_layers: tuple[int, ...] | None = None
    test_tag_logit: float = TEST_TAG_LOGIT
    long_side: int | None = 1024
    train: ClueTraining = field(default_factory=ClueTraining)
    clip: str = "bundled"
    clip_es: ClipEsSettings = field(default_factory=ClipEsSettings)

    def __post_init__(self) -> None:
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"clues.scales is {list(self.scales)}; give one or more numbers above 0.")
        depth = self.vit.depth
        if any(not 1 <= layer <= depth for layer in self.cross_layers or ()):
            raise UserError(
                f"clues.cross_layers is {list(self.cross_layers or ())}; give layers from 1 to vit.depth={depth}."
            )
        if self.long_side is not None and self.long_side < self.vit.patch:
            raise UserError(f"clues.long_side is {self.long_side}; give {self.vit.patch} pixels or more, or null.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers whose attention gives maps, from 1."""
        if self.cross_layers is not None:
            return self.cross_layers
        return tuple(range(self.vit.depth // 3 + 1, self.vit.depth + 1))


@dataclass(frozen=True, eq=False)
class CrossMaps:
    """Attention maps of an image at patch resolution, to be enlarged a few at a time.

    Attributes:
        views: per scale (M, P, h, w) float32, the sum over its mirror images; nothing where M = 0.
        size: (H, W).
    """

    views: tuple[Tensor, ...]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.views[0]) if self.views else 0

    def chunks(self, maps: int = 8) -> Iterator[tuple[int, Tensor]]:
        """All maps in order, ``maps`` at a time: the number m of the first, and (m', P, H, W) in [0, 1].

        Memory: two or three times ``maps`` P H W floats.
        """
        for first in range(0, len(self), maps):
            yield first, min_max(enlarged_sum([view[first : first + maps] for view in self.views], self.size))


@dataclass(frozen=True, eq=False)
class Clues:
    """What an extractor says about one image; maps are in [0, 1], float32, on its device.

    Attributes:
        cls_logits: (C,) logits of the upright image at the first scale.
        classes: (P,) int64 on the CPU, ascending: the tagged or predicted classes that all maps are of.
        coarse: (P, H, W) activation maps.
        fine: (P, H, W) refined activation maps.
        cross: M attention maps of every class.
    """

    cls_logits: Tensor
    classes: Tensor
    coarse: Tensor
    fine: Tensor
    cross: CrossMaps


class ClueExtractor(Protocol):
    """Where clues come from.

    Attributes:
        identity: hex digest of all that decides the clues of an image and its tags.
    """

    identity: str

    def extract(self, image: NDArray[np.uint8], tags: NDArray[np.int64] | None = None) -> Clues:
        """Clues of one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            tags: (P,) class indices, whose order and repetitions do not matter; empty: the image shows no class. None:
                unknown.

        Raises:
            UserError: the extractor needs tags and has none.
        """
        ...


class NetworkExtractor:
    """Clues of a trained WeakTr or MCTformer.

    All views are upright and mirrored images of every scale, one batch per scale; their maps are enlarged to the
    original size, mirrored back and summed. Memory: a few times the attention of a layer, 2 H N^2 floats, N the tokens
    of the largest view and H the heads; 2 P H W floats of maps; 3 M P h w of attention maps.

    Attributes:
        identity: of weights and settings.

    Args:
        network: trained; it stays where it is, in eval mode.
        settings: views, layers, threshold.
    """

    def __init__(self, network: ClueNetwork, settings: ClueSettings) -> None:
        self.network, self.settings = network.eval(), settings
        used = [settings.scales, settings.hflip, settings.layers, settings.test_tag_logit, settings.long_side]
        content = [type(network).__name__, asdict(network.settings), used, weights_digest(network)]
        self.identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @torch.no_grad()
    def extract(self, image: NDArray[np.uint8], tags: NDArray[np.int64] | None = None) -> Clues:
        """See :class:`ClueExtractor`. Without tags, the first view that any class passes the threshold in decides.

        The released code leaves out the views before that one; here all count.
        """
        classes = None if tags is None else torch.from_numpy(np.unique(np.asarray(tags, np.int64)))
        waiting: list[NetworkMaps] = []
        views: list[_View] = []
        logits: Tensor | None = None
        for pixels in self._pixels(image):
            maps = self.network.maps(pixels, self.settings.layers)
            logits = maps.z_cls[0] if logits is None else logits
            classes = self._predicted(maps.z_cls) if classes is None else classes
            waiting.append(maps)
            if classes is not None:
                views += [_View.of(maps, classes) for maps in waiting]
                waiting.clear()
        if classes is None:
            classes = torch.zeros(0, dtype=torch.int64)
            views = [_View.of(maps, classes) for maps in waiting]
        assert logits is not None  # there is at least one scale
        size = (image.shape[0], image.shape[1])
        return Clues(
            logits.float(),
            classes,
            min_max(enlarged_sum([view.coarse for view in views], size)),
            min_max(enlarged_sum([view.fine for view in views], size)),
            CrossMaps(tuple(view.cross for view in views) if self.settings.layers else (), size),
        )

    def _pixels(self, image: NDArray[np.uint8]) -> Iterator[Tensor]:
        """(1 or 2, 3, height, width) pixels per scale, the upright image first."""
        longest, limit = max(image.shape[:2]), self.settings.long_side
        factor = 1.0 if limit is None else min(1.0, limit / longest)
        device = next(self.network.parameters()).device
        for scale in self.settings.scales:
            view = resized(image, scale * factor, self.network.encoder.patch)
            pixels = normalised(as_tensor(view).to(device))[None]
            yield torch.cat([pixels, pixels.flip(-1)]) if self.settings.hflip else pixels

    def _predicted(self, logits: Tensor) -> Tensor | None:
        """Classes above the threshold in the first of (B, C) views that has any; None where none has."""
        shown = (logits > self.settings.test_tag_logit).cpu()
        return next((row.nonzero().flatten() for row in shown if row.any()), None)


class ClipEsExtractor:
    """Clues of a frozen CLIP by way of CLIP-ES, from one view and without training.

    Coarse maps are Grad-CAM's, fine ones are spread by CLIP's own attention; there are no attention maps per class
    (M = 0). ``cls_logits`` are those of a softmax over classes, so they say which class, not whether it is there.
    Memory: see :meth:`~weakly.foundation.clip.Clip.encode`.

    Attributes:
        identity: of model, texts and settings.

    Args:
        clip: frozen.
        names: of C classes, as CLIP is told.
        backgrounds: words for what is no class.
        settings: of the maps.
    """

    def __init__(
        self, clip: Clip, names: Sequence[str], backgrounds: Sequence[str], settings: ClipEsSettings | None = None
    ) -> None:
        self.settings = settings or ClipEsSettings()
        self._clip, self._classes = clip, len(names)
        self._text = manual_prompts(clip, [*names, *backgrounds], self.settings.templates)
        content = [clip.fingerprint, list(names), list(backgrounds), asdict(self.settings)]
        self.identity = hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @torch.no_grad()
    def extract(self, image: NDArray[np.uint8], tags: NDArray[np.int64] | None = None) -> Clues:
        """See :class:`ClueExtractor`.

        Raises:
            UserError: there are no tags.
        """
        if tags is None:
            raise UserError("CLIP-ES cannot tell which classes an image shows; give tags, or take clues from WeakTr.")
        clip, setting, size = self._clip, self.settings, (image.shape[0], image.shape[1])
        features = clip.encode(clip.preprocess(image, setting.long_side).to(clip.device), setting.layers)
        cam = GradCam(clip, features.last_input, features.grid, features.last_attention)
        classes = torch.from_numpy(np.unique(np.asarray(tags, np.int64)))
        logits, cross = cam.logits(self._text)[0, : self._classes], CrossMaps((), size)
        if len(classes) == 0:
            nothing = logits.new_zeros(0, *size)
            return Clues(logits, classes, nothing, nothing, cross)
        present = torch.zeros(1, self._classes, dtype=torch.bool, device=clip.device)
        present[0, classes] = True
        maps = cam.maps(self._text, present)
        coarse = maps.clamp(min=0)
        if setting.spread == "none":
            fine = coarse
        else:
            fine = spread(
                maps,
                features.attention[0],
                threshold=setting.threshold,
                values=setting.spread,
                iterations=setting.sinkhorn,
                power=setting.power,
            ).clamp(min=0)
        return Clues(logits, classes, min_max(enlarged(coarse, size)), min_max(enlarged(fine, size)), cross)


@dataclass(frozen=True, eq=False)
class _View:
    """Maps of P classes at one scale, summed over mirror images: (P, h, w), (P, h, w) and (M, P, h, w)."""

    coarse: Tensor
    fine: Tensor
    cross: Tensor

    @classmethod
    def of(cls, maps: NetworkMaps, classes: Tensor) -> _View:
        chosen = classes.to(maps.coarse.device)
        kinds = (maps.coarse[:, chosen], maps.fine[:, chosen], maps.raw[:, :, chosen])
        return cls(*(mirrored_sum(kind) for kind in kinds))


def build_network(settings: ClueSettings, classes: int) -> ClueNetwork:
    """A fresh network of C classes, from random or DeiT's weights; the caller's random state is left alone.

    Raises:
        UserError: the model is none that trains, or the weights cannot be read or do not fit.
    """
    if settings.model not in NETWORKS:
        raise UserError(f"clues.model {settings.model!r} is not trained; choose {' or '.join(NETWORKS)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.train.seed)
        network = NETWORKS[settings.model](settings.vit, classes)
    if settings.vit.pretrained is not None:
        network.from_deit(load_deit(settings.vit.pretrained))
    return network


def mirrored_sum(maps: Tensor) -> Tensor:
    """(1 or 2, ...) maps of an image and its mirror image to their sum, upright.

    Enlarging commutes with both, so it is done once.
    """
    return maps[0] if len(maps) == 1 else maps[0] + maps[1].flip(-1)


def enlarged(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(..., h, w) to (..., H, W), bilinear, corners not aligned; any of the leading sizes may be 0."""
    flat = maps.flatten(0, -3)[:, None]
    return functional.interpolate(flat, size, mode="bilinear", align_corners=False).view(*maps.shape[:-2], *size)


def enlarged_sum(views: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """The sum of maps of several resolutions at (H, W)."""
    total = enlarged(views[0], size)
    for view in views[1:]:
        total += enlarged(view, size)
    return total


def min_max(maps: Tensor) -> Tensor:
    """(..., H, W) maps in [0, 1], each over its own range; a constant one becomes 0."""
    least, most = maps.flatten(-2).aminmax(dim=-1)
    return (maps - least[..., None, None]) / (most - least + EPS)[..., None, None]
