"""What PartCLIPSeg trains on: part label maps of seen objects at the model's side, beside the taps of their images.

A map is held as one code per pixel, in ``n S S`` bytes (two bytes each where there are more than 256 codes): the
124 kB of an image at 352 pixels are 1.0 GB for Pascal-Part-116. What the object of a pixel is follows from its code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset as TorchDataset

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.methods.base import Skipped
from weakly.methods.partclip.attention import PartScope, Pooling, Regions, find_objects, find_regions
from weakly.methods.partclip.names import PartNames, part_names
from weakly.methods.partclip.taps import enlarged_size, unpack_taps
from weakly.methods.stored_views import Inputs, gather_views
from weakly.vocabulary import Vocabulary

LabelPath = Literal["native", "resize800"]

IGNORED = -1
"""Object of a pixel that counts in no loss."""

RESAMPLING_SEED = 42


class PartBatch(NamedTuple):
    """B images with their targets; K seen classes, N_o seen objects.

    Attributes:
        taps: (B, n, T, K_v) float32, shallowest first.
        classes: (B, S, S) int64 seen class of a pixel, K where it has none.
        objects: (B, S, S) int64 seen object of a pixel, with a part label or without one; N_o for the background,
            :data:`IGNORED` where nobody knows or nobody may.
        parts: the classes present, as regions of tokens.
        wholes: the objects that the losses of attention go through, likewise.
    """

    taps: Tensor
    classes: Tensor
    objects: Tensor
    parts: Regions
    wholes: Regions


@dataclass(frozen=True)
class Seen:
    """The classes that are trained on.

    Attributes:
        names: of the K seen classes and their N_o objects, in the order of the vocabulary.
        categories: (K,) their indices in the vocabulary.
        total: C, classes of the vocabulary.
        objects: names of all objects of the vocabulary, unseen ones too.
    """

    names: PartNames
    categories: tuple[int, ...]
    total: int
    objects: tuple[str, ...]

    @property
    def background(self) -> int:
        """Code of the background. Codes below: K classes, then N_o objects without a part label. Above: ignored."""
        return len(self.categories) + len(self.names.objects)

    def codes(
        self, label_map: NDArray[np.integer], object_map: NDArray[np.integer], *, ignore: bool
    ) -> NDArray[np.uint16]:
        """(H, W) codes of a label map (category, C or void) and an object map, as a dataset returns them.

        Args:
            label_map: (H, W) category per pixel; values above C are void.
            object_map: (H, W) object per pixel; see :meth:`~weakly.data.dataset.Dataset.object_map`.
            ignore: unseen objects and void count in no loss; else they are background (D9).
        """
        count, unknown = len(self.categories), self.background + ignore
        of_category = np.full(self.total, unknown, np.uint16)
        of_category[list(self.categories)] = np.arange(count)
        of_object = np.full(len(self.objects) + 2, unknown, np.uint16)
        of_object[[self.objects.index(name) for name in self.names.objects]] = np.arange(count, self.background)
        of_object[len(self.objects)] = self.background
        elsewhere = of_object[np.minimum(object_map, len(self.objects) + 1)]
        labelled = of_category[np.minimum(label_map, self.total - 1)]
        return np.where(label_map < self.total, labelled, elsewhere)

    def classes_and_objects(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(...) integer codes to the classes and objects of :class:`PartBatch`, int64."""
        count = len(self.categories)
        owners = [*self.names.object_of, *range(len(self.names.objects)), len(self.names.objects), IGNORED]
        classes = torch.arange(self.background + 2, device=codes.device).clamp(max=count)
        return classes[codes.long()], torch.tensor(owners, device=codes.device)[codes.long()]


def seen_classes(vocabulary: Vocabulary, unseen: Sequence[str]) -> Seen:
    """The classes of a vocabulary whose objects are not ``unseen``.

    Raises:
        UserError: an unseen object is not in the vocabulary, or no class is left.
    """
    names = part_names(vocabulary)
    unknown = [name for name in unseen if name not in names.objects]
    if unknown:
        known = ", ".join(names.objects[:12]) + (", ..." if len(names.objects) > 12 else "")
        raise UserError(f"settings.unseen names {unknown[0]!r}, which owns no part here; the objects are {known}.")
    kept = [k for k, owner in enumerate(names.object_of) if names.objects[owner] not in unseen]
    if not kept:
        raise UserError("settings.unseen names every object, so there is nothing to train on; leave some objects seen.")
    return Seen(names.select(kept), tuple(kept), len(vocabulary), names.objects)


@dataclass(frozen=True, eq=False)
class PartData(TorchDataset[PartBatch]):
    """Training data, collated a batch at a time. Index ``v * n + i`` is image i in view v: as it is, or mirrored.

    Attributes:
        features: of the m distinct images, in every view.
        codes: (m, S, S) uint8 or int16.
        seen: what the codes mean.
        layers: number of taps.
        grid: (h, w) of their tokens.
        pooling: how masks become regions of tokens.
        scope: of the losses of attention.
        rows: (n,) int64 distinct image of every index; the m in order, unless images without a seen part were
            replaced by others.
        skipped: images that could not be read and are not among the n.
    """

    features: tuple[Inputs, ...]
    codes: Tensor
    seen: Seen
    layers: int
    grid: tuple[int, int]
    pooling: Pooling
    scope: PartScope
    rows: Tensor
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def variants(self) -> int:
        """Versions of every image: 2 with mirrored ones."""
        return len(self.features)

    def __getitem__(self, index: int) -> PartBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> PartBatch:
        """The batch of these indices, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        view, rows = chosen // len(self), self.rows[chosen % len(self)]
        taps = unpack_taps(gather_views(self.features, view, rows), self.layers)
        codes = self.codes[rows]
        codes = torch.where(view[:, None, None] == 1, codes.flip(-1), codes)
        classes, objects = self.seen.classes_and_objects(codes)
        names = self.seen.names
        return PartBatch(
            taps,
            classes,
            objects,
            find_regions(classes, len(names), self.grid, self.pooling),
            find_objects(objects, len(names.objects), self.grid, self.pooling, self.scope),
        )


def resize_codes(codes: NDArray[np.uint16], side: int, path: LabelPath) -> NDArray[np.uint16]:
    """(H, W) codes at an image's original size to the (S, S) of a training target (spec 3.1).

    ``native``: resized once, each pixel that of the nearest centre, as the squashed image has its centres.
    ``resize800``: twice, through the release's 800 pixels, each time the nearest towards the origin.
    """
    if path == "native":
        return np.asarray(cv2.resize(codes, (side, side), interpolation=cv2.INTER_NEAREST_EXACT), np.uint16)
    exact = torch.from_numpy(codes.astype(np.float32))[None, None]
    enlarged = functional.interpolate(exact, enlarged_size((codes.shape[0], codes.shape[1])), mode="nearest")
    return functional.interpolate(enlarged, (side, side), mode="nearest")[0, 0].numpy().astype(np.uint16)


@dataclass(frozen=True, eq=False)
class Targets:
    """Label maps of the images of a dataset that show a seen part.

    Attributes:
        images: (m,) their indices in the dataset.
        codes: (m, S, S) uint8 or int16.
        empty: indices of the images that show no seen part.
        skipped: images whose label map cannot be read.
    """

    images: tuple[int, ...]
    codes: Tensor
    empty: tuple[int, ...]
    skipped: tuple[Skipped, ...]

    def select(self, keep: Sequence[bool]) -> Targets:
        """Only these of the m images."""
        rows = [row for row, kept in enumerate(keep) if kept]
        return Targets(tuple(self.images[row] for row in rows), self.codes[rows], self.empty, self.skipped)


def read_targets(
    dataset: Dataset,
    seen: Seen,
    side: int,
    *,
    path: LabelPath,
    ignore: bool,
    progress: Callable[[int, int], None] | None = None,
) -> Targets:
    """The targets of a dataset, from its true part masks alone.

    Args:
        dataset: with part masks or label maps.
        seen: classes to train on.
        side: S.
        path: see :func:`resize_codes`.
        ignore: see :meth:`Seen.codes`.
        progress: told (images read, images in all).
    """
    kind = torch.uint8 if seen.background + 1 < 256 else torch.int16
    images: list[int] = []
    maps: list[Tensor] = []
    empty: list[int] = []
    skipped: list[Skipped] = []
    for index, sample in enumerate(dataset):
        if progress is not None:
            progress(index + 1, len(dataset))
        try:
            label_map, object_map = dataset.truth(index).to_label_map(seen.total), dataset.object_map(index)
        except (UserError, ValueError) as error:
            skipped.append(Skipped(sample.image_id, sample.path, str(error)))
            continue
        codes = resize_codes(seen.codes(label_map, object_map, ignore=ignore), side, path)
        if not (codes < len(seen.categories)).any():
            empty.append(index)
            continue
        images.append(index)
        maps.append(torch.from_numpy(codes.astype(np.int32)).to(kind))
    stacked = torch.stack(maps) if maps else torch.zeros(0, side, side, dtype=kind)
    return Targets(tuple(images), stacked, tuple(empty), tuple(skipped))


def drawn_rows(images: int, replaced: int) -> Tensor:
    """(images + replaced,) int64: every image once, then ``replaced`` of them drawn at random (D20)."""
    generator = torch.Generator().manual_seed(RESAMPLING_SEED)
    return torch.cat([torch.arange(images), torch.randint(images, (replaced,), generator=generator)])
