"""Students on the frozen segmenter's embeddings: their training data, and whole images through them.

Views are those of :mod:`weakly.methods.embedded_views`, symbols those of :mod:`weakly.methods.weaksam.detectors`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from weakly.data.dataset import Dataset
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.base import ImageSource, Predictor, Skipped, Workspace
from weakly.methods.embedded_views import EmbeddedViews, encode_views
from weakly.methods.embedding import Embedded, Embedder
from weakly.methods.frozen import check_segmenter
from weakly.methods.weaksam.augment import Target, Window, target_in
from weakly.methods.weaksam.detectors import Detections, Detector
from weakly.methods.weaksam.predictor import Inference, segmentation_of
from weakly.methods.weaksam.targets import PseudoInstances, WeakSamBatch, WeakSamData, decode_instances, padded
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddedData(EmbeddedViews):
    """Embeddings of images with their pseudo instances.

    Attributes:
        instances: of the n images; an image may have none.
    """

    instances: tuple[PseudoInstances, ...]

    def __getitems__(self, indices: Sequence[int]) -> WeakSamBatch:
        """The batch of these indices, in this order.

        Raises:
            UserError: an image has another size than its pseudo masks.
        """
        embeddings, rows, mirrored = self.draw(indices)
        frames = [self.frame(self.samples[row].size) for row in rows]
        targets = [self._target(*each) for each in zip(rows, frames, mirrored, strict=True)]
        return WeakSamBatch(embeddings, [frame.content for frame in frames], targets)

    def _target(self, row: int, frame: Frame, mirrored: bool) -> Target:
        sample = self.samples[row]
        instances = decode_instances(sample.path, sample.size, self.instances[row])
        window = Window(frame.content, 0, 0, frame.content, mirrored)
        return padded(target_in(instances, sample.size, window), (frame.side, frame.side))


def embed(data: WeakSamData, dataset: Dataset, segmenter: PromptableSegmenter, workspace: Workspace) -> EmbeddedData:
    """The same images and pseudo instances for a student that looks at embeddings; what the store lacks is encoded.

    Args:
        data: images of ``dataset``, mirrored with the probability ``data.augmentation.flip``.
        dataset: they are from.
        segmenter: whose embeddings.
        workspace: where the feature store is.

    Raises:
        UserError: the disk is full.
    """
    flip = data.augmentation.flip
    encoded = encode_views(segmenter, dataset, data.images, flip, workspace)
    return EmbeddedData(
        features=encoded.features,
        samples=encoded.samples,
        frame=segmenter.frame,
        flip=flip,
        skipped=(*data.skipped, *encoded.skipped),
        instances=tuple(data.instances[row] for row in encoded.kept),
    )


class EmbeddedPredictor(Predictor):
    """A detector or an instance head on embeddings of whole images; each is encoded once, for boxes and masks.

    Args:
        student: trained on embeddings of ``segmenter``; moved to its device.
        vocabulary: C categories.
        inference: what masks of boxes are; its sizes are the segmenter's here.
        segmenter: frozen, on its device.
        store: its embeddings of images that need not be encoded again.

    Raises:
        UserError: the student was trained on other embeddings.
        ValueError: the student looks at pixels.
    """

    def __init__(
        self,
        student: Detector,
        vocabulary: Vocabulary,
        inference: Inference,
        segmenter: PromptableSegmenter,
        store: FeatureStore | None = None,
    ) -> None:
        if student.source is None:
            raise ValueError(f"this {student.kind} looks at pixels")
        check_segmenter(segmenter, student.source.segmenter, student.source.fingerprint)
        self.student = student.to(segmenter.device).eval()
        self.vocabulary = vocabulary
        self.inference = inference
        self.embedder = Embedder(segmenter, store)

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order; an image in which nothing is found gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images that go through the network at once.
        """
        prompted = self.embedder.segmenter if self.inference.boxes_to_masks == "segmenter" else None
        for batch in self.embedder.batches(sources, batch_size):
            found = self.detect(batch)
            for outcome in batch.outcomes:
                if isinstance(outcome, Skipped):
                    yield outcome
                    continue
                embedding = batch.embeddings[outcome : outcome + 1]
                size = batch.frames[outcome].size
                yield segmentation_of(found[outcome], self.student.kind, size, prompted, embedding)

    def detect(self, batch: Embedded) -> list[Detections]:
        """Detections in the images of a batch that could be read."""
        if not batch.frames:
            return []
        contents, originals = [frame.content for frame in batch.frames], [frame.size for frame in batch.frames]
        return self.student.predict(batch.embeddings, contents, originals)
