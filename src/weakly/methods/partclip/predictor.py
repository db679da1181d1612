"""The inference side of PartCLIPSeg: images in, parts of the objects that were asked for out, at original size."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.data.object_parts import object_table
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import ImageSource, Predictor, Skipped
from weakly.methods.embedding import Embedder
from weakly.methods.partclip.inference import (
    PIXELS_AT_ONCE,
    LabelMap,
    all_at_once,
    best_of,
    parts_within,
    pred_all,
    predict_phrases,
)
from weakly.methods.partclip.model import ClipSegBaseline, PartClipSeg
from weakly.methods.partclip.names import PartNames, parse_request, part_names
from weakly.methods.partclip.settings import PartClipSettings
from weakly.methods.partclip.taps import TapEncoder
from weakly.segmentation import Rle, Segmentation, encode_masks, rle_boxes
from weakly.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Student = PartClipSeg | ClipSegBaseline

Decode = Callable[[Tensor, tuple[int, int], Tensor | None], LabelMap]
"""(1, n, T, K_v) taps, the image's size and, for Oracle-Obj, its (H, W) int64 objects, to its label map."""


class Seen(NamedTuple):
    """One image as the vision tower sees it.

    Attributes:
        taps: (1, n, T, K_v) float32.
        size: (height, width) of the image.
    """

    taps: Tensor
    size: tuple[int, int]


class PartClipPredictor(Predictor):
    """A student behind the vision tower it was trained on, asked for the parts of one vocabulary.

    The vocabulary is encoded once. Images are encoded in batches and decoded one by one, by default objects first, in
    memory that depends on the size of the image and, unless all parts are asked for at once, hardly on the number of
    names (:mod:`~weakly.methods.partclip.inference`).

    Args:
        student: trained.
        encoder: the frozen CLIPSeg.
        vocabulary: C categories; any, not only those that were trained on.
        settings: of the method.
        store: taps that need not be computed again.

    Raises:
        UserError: a category names no object, or a name has more tokens than the text tower reads.
    """

    def __init__(
        self,
        student: Student,
        encoder: TapEncoder,
        vocabulary: Vocabulary,
        settings: PartClipSettings,
        store: FeatureStore | None = None,
    ) -> None:
        self.student = student.to(encoder.device).eval()
        self.encoder = encoder
        self.vocabulary = vocabulary
        self.settings = settings
        self.store = store
        self._embedder = Embedder(cast("PromptableSegmenter", encoder), store)
        self._decode = decoder(self.student, encoder, part_names(vocabulary), settings)

    def with_names(self, names: str) -> PartClipPredictor:
        """The same student, asked for ``"dog: head, torso; cat: tail"``; nothing is trained."""
        return self.with_vocabulary(parse_request(names))

    def with_vocabulary(self, vocabulary: Vocabulary) -> PartClipPredictor:
        """The same student, asked for other categories, e.g. those of another dataset."""
        return PartClipPredictor(self.student, self.encoder, vocabulary, self.settings, self.store)

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """Pred-All: one result per source, in order; an image without parts gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images encoded at once.
        """
        for seen in self._encoded(sources, batch_size):
            yield seen if isinstance(seen, Skipped) else self._segmentation(self._decode(seen.taps, seen.size, None))

    def predict_within(
        self, sources: Sequence[ImageSource], object_maps: Iterable[NDArray[np.integer]], *, batch_size: int = 8
    ) -> Iterator[Segmentation | Skipped]:
        """Oracle-Obj: at every pixel the best part of the object that it is known to belong to.

        Args:
            sources: as for :meth:`predict`.
            object_maps: one per source: (H, W) index of a pixel's object among the sorted names of the objects; their
                number where it has none, which is background.
            batch_size: as for :meth:`predict`.
        """
        for seen, known in zip(self._encoded(sources, batch_size), object_maps, strict=True):
            if isinstance(seen, Skipped):
                yield seen
                continue
            object_map = torch.from_numpy(known.astype(np.int64)).to(self.encoder.device)
            yield self._segmentation(self._decode(seen.taps, seen.size, object_map))

    def _encoded(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Seen | Skipped]:
        for batch in self._embedder.batches(sources, batch_size):
            taps = self.encoder.taps(batch.embeddings)
            for outcome in batch.outcomes:
                if isinstance(outcome, Skipped):
                    yield outcome
                else:
                    yield Seen(taps[outcome : outcome + 1], batch.frames[outcome].size)

    def _segmentation(self, found: LabelMap) -> Segmentation:
        return to_segmentation(found, self.vocabulary.background)


def decoder(student: Student, encoder: TapEncoder, names: PartNames, settings: PartClipSettings) -> Decode:
    """``student`` as a function of an image alone; the names are encoded here, once.

    The baseline's classes compete in Pred-All with one background, and in Oracle-Obj with those of the same object.
    """
    chunk, threshold = settings.class_chunk, settings.background_above
    with torch.no_grad():
        if isinstance(student, PartClipSeg):
            embedded = student.encode_names(encoder.clipseg, names)
            everything = pred_all if settings.pred_all == "objects_first" else all_at_once

            def compose(taps: Tensor, size: tuple[int, int], objects: Tensor | None) -> LabelMap:
                if objects is None:
                    return everything(student, taps, embedded, size, chunk, threshold)
                return parts_within(student, taps, embedded, objects, chunk)

            return compose

        baseline, phrases = student, student.encode_names(encoder.clipseg, names)
        owners = torch.tensor(names.object_of, device=encoder.device)

    @torch.no_grad()
    def ask(taps: Tensor, size: tuple[int, int], objects: Tensor | None) -> LabelMap:
        if objects is None:
            return predict_phrases(baseline, taps, phrases, size, chunk=chunk, background_above=threshold)
        reduced = baseline.reduce(taps)
        return best_of(
            lambda part: baseline.prompt_logits(baseline.run(reduced, phrases[part])),
            torch.isin(owners, objects).nonzero()[:, 0],
            size,
            chunk,
            allowed=lambda part: owners[part, None, None] == objects,
            otherwise=len(names),
        )

    return ask


def to_segmentation(found: LabelMap, background: int) -> Segmentation:
    """One mask per category present, and the label map.

    Args:
        found: labels and scores; the score of a mask is the mean over its pixels.
        background: C.
    """
    size = (found.labels.shape[0], found.labels.shape[1])
    flat = found.labels.flatten()
    counts = torch.bincount(flat, minlength=background + 1)
    sums = torch.zeros(background + 1, dtype=torch.float64, device=flat.device)
    sums.scatter_add_(0, flat, found.scores.flatten().double())
    present = counts[:background].nonzero()[:, 0]
    scores = (sums[present] / counts[present]).clamp(0, 1).float().cpu().numpy()
    label_map = found.labels.cpu().numpy().astype(np.uint8 if background < 256 else np.uint16)
    labels = present.cpu().numpy()
    at_once = max(1, PIXELS_AT_ONCE // math.prod(size))
    rles: list[Rle] = []
    for start in range(0, len(labels), at_once):
        rles += encode_masks(label_map == labels[start : start + at_once, None, None])
    return Segmentation(
        size=size,
        rles=tuple(rles),
        boxes=rle_boxes(rles),
        labels=labels,
        scores=scores,
        provenance=({"method": "partclip"},) * len(rles),
        label_map=label_map,
    )


def oracle_results(predictor: PartClipPredictor, dataset: Dataset, *, batch_size: int = 8) -> Iterator[Segmentation]:
    """Oracle-Obj on a dataset: one result per image, in order; one that cannot be read gives an empty segmentation.

    The object of a pixel is that of its true part label. The parts of one object compete for its pixels alone, so that
    one label map holds what the published evaluation predicts object by object (spec sections 5 and 6.1).
    """
    sources = [ImageSource(s.image_id, s.path, partial(read_image, s.path)) for s in dataset]
    object_maps = (true_objects(dataset, index) for index in range(len(dataset)))
    results = predictor.predict_within(sources, object_maps, batch_size=batch_size)
    for sample, result in zip(dataset, results, strict=True):
        if isinstance(result, Skipped):
            log.warning("%s is left out of Oracle-Obj: %s", result.path, result.reason)
        yield Segmentation(sample.size) if isinstance(result, Skipped) else result


def true_objects(dataset: Dataset, index: int) -> NDArray[np.int64]:
    """(H, W) object of every pixel with a true part label, an index of the sorted names; their number elsewhere."""
    objects, owners = object_table(dataset.vocabulary)
    label_map = dataset.truth(index).to_label_map(dataset.vocabulary.background)
    lookup = np.append(owners, len(objects))
    owned: NDArray[np.int64] = lookup[np.minimum(label_map, len(owners))]
    return owned
