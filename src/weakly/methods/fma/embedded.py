"""The student on the frozen segmenter's embeddings: its training data, and whole images through it.

Views are those of :mod:`weakly.methods.embedded_views`, symbols those of :mod:`weakly.methods.fma.pyramid`. Label maps
are read where the student's cells have their centres; cells that the image does not reach are void.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.base import ImageSource, Predictor, Skipped, Workspace
from weakly.methods.embedded_views import EmbeddedViews, encode_views
from weakly.methods.embedding import Embedder
from weakly.methods.fma.pyramid import PyramidNetwork
from weakly.methods.frozen import check_segmenter
from weakly.methods.image_views import VOID
from weakly.methods.semantic_predictor import MAX_VALUES, Refine, decide, held_size
from weakly.methods.semantic_targets import SemanticBatch, SemanticData, check_categories, read_labels_of
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddedMaps(EmbeddedViews):
    """Embeddings of images with their label maps.

    Attributes:
        label_maps: n label PNGs, of the sizes of their images.
        classes: C.
        cells: (rows, columns) of the student's answers, over the frame.
    """

    label_maps: tuple[Path, ...]
    classes: int
    cells: tuple[int, int]

    def __post_init__(self) -> None:
        check_categories(self.classes)

    def __getitems__(self, indices: Sequence[int]) -> SemanticBatch:
        """The batch of these indices, in this order: embeddings, and labels (B, *cells).

        Raises:
            UserError: a label map cannot be read, or has another size than its image.
        """
        embeddings, rows, mirrored = self.draw(indices)
        labels = np.stack([self._labels(*each) for each in zip(rows, mirrored, strict=True)])
        return SemanticBatch(embeddings, torch.from_numpy(labels))

    def _labels(self, row: int, mirrored: bool) -> NDArray[np.int64]:
        sample = self.samples[row]
        labels = read_labels_of(sample.path, sample.size, self.label_maps[row], self.classes)
        return framed_labels(labels[:, ::-1] if mirrored else labels, self.frame(sample.size), self.cells)


def framed_labels(labels: NDArray[np.uint8], frame: Frame, cells: tuple[int, int]) -> NDArray[np.int64]:
    """(H, W) labels of an image at the centres of (rows, columns) cells over its frame; void beside the image."""
    rows, inside_rows = _nearest(frame, 0, cells[0])
    columns, inside_columns = _nearest(frame, 1, cells[1])
    inside = inside_rows[:, None] & inside_columns
    return np.where(inside, labels[np.ix_(rows, columns)], VOID).astype(np.int64)


def _nearest(frame: Frame, axis: int, cells: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """(cells,) pixel of the image along an axis in which every cell's centre lies, and whether it lies in one."""
    place = (np.arange(cells) + 0.5) * frame.side / cells - (frame.top, frame.left)[axis]
    pixel = np.floor(place * frame.size[axis] / frame.content[axis]).astype(np.int64)
    return pixel.clip(0, frame.size[axis] - 1), (place >= 0) & (place < frame.content[axis])


def embed(
    data: SemanticData,
    dataset: Dataset,
    segmenter: PromptableSegmenter,
    cells: tuple[int, int],
    workspace: Workspace,
) -> EmbeddedMaps:
    """The same images and label maps for a student that looks at embeddings; what the store lacks is encoded.

    Args:
        data: images of ``dataset``, mirrored with the probability ``data.augmentation.flip``.
        dataset: they are from.
        segmenter: whose embeddings.
        cells: (rows, columns) of the student's answers.
        workspace: where the feature store is.

    Raises:
        UserError: the disk is full.
    """
    flip = data.augmentation.flip
    encoded = encode_views(segmenter, dataset, data.images, flip, workspace)
    return EmbeddedMaps(
        features=encoded.features,
        samples=encoded.samples,
        frame=segmenter.frame,
        flip=flip,
        skipped=(*data.skipped, *encoded.skipped),
        label_maps=tuple(data.label_maps[row] for row in encoded.kept),
        classes=data.classes,
        cells=cells,
    )


class EmbeddedPredictor(Predictor):
    """A semantic network on embeddings of whole images.

    Args:
        network: trained on embeddings of ``segmenter``; moved to its device.
        vocabulary: C categories.
        segmenter: frozen, on its device.
        store: its embeddings of images that need not be encoded again.
        method: whose network it is; where its masks say they are from.
        refine: post-processing of the probabilities; None: the likeliest class of every pixel.

    Raises:
        UserError: the network was trained on other embeddings.
    """

    def __init__(
        self,
        network: PyramidNetwork,
        vocabulary: Vocabulary,
        segmenter: PromptableSegmenter,
        store: FeatureStore | None = None,
        *,
        method: str,
        refine: Refine | None = None,
    ) -> None:
        check_segmenter(segmenter, network.source.segmenter, network.source.fingerprint)
        self.network = network.to(segmenter.device).eval()
        self.vocabulary = vocabulary
        self.embedder = Embedder(segmenter, store)
        self.method = method
        self.refine = refine

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order; an image that shows background alone gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images that go through the network at once.
        """
        waiting = iter(sources)
        for batch in self.embedder.batches(sources, batch_size):
            logits = self.logits(batch.embeddings) if batch.frames else batch.embeddings
            for outcome in batch.outcomes:
                source = next(waiting)
                if isinstance(outcome, Skipped):
                    yield outcome
                    continue
                frame = batch.frames[outcome]
                probabilities = self.probabilities(logits[outcome], frame)
                yield decide(probabilities, frame.size, self.method, self.refine, source.read)

    @torch.no_grad()
    def logits(self, embeddings: Tensor) -> Tensor:
        """(B, C + 1, f * h, f * w) over the frame, of whole embeddings (B, C_e, h, w)."""
        outputs: Tensor = self.network(embeddings)
        return outputs

    def probabilities(self, logits: Tensor, frame: Frame) -> Tensor:
        """(C + 1, h, w) of logits over an image's frame, at the image's size or, if it is very large, below it."""
        held = held_size(frame.size, len(logits), MAX_VALUES)
        return replace(frame, size=held).logits_to_image(logits).softmax(0)
