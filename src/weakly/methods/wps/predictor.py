"""The inference side of WPS-SAM: images in, part masks at their original size out, without a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import box_convert  # type: ignore[import-untyped]

from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.base import ImageSource, Predictor, Skipped
from weakly.methods.decoding import decode_prompts, fuse, refined_prompts
from weakly.methods.embedding import Embedder
from weakly.methods.wps.model import Prompts
from weakly.methods.wps.prompts import nearest_prompts
from weakly.methods.wps.settings import WpsSettings
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary


class Kept(NamedTuple):
    """The N queries over B images that claim to see a part, image after image, ascending.

    Attributes:
        image: (N,) int64.
        query: (N,) int64.
        label: (N,) int64 category.
        score: (N,) float32 probability of that category.
    """

    image: Tensor
    query: Tensor
    label: Tensor
    score: Tensor


class WpsPredictor(Predictor):
    """A prompter in front of a promptable segmenter.

    Args:
        student: trained prompter, of queries or of regions: embeddings (B, C, h, w) to
            :class:`~weakly.methods.wps.model.Prompts`.
        segmenter: the one it was trained on.
        vocabulary: C categories.
        settings: of the method.
        store: embeddings that need not be computed again.
        method: what the provenance of its masks says.
    """

    def __init__(
        self,
        student: nn.Module,
        segmenter: PromptableSegmenter,
        vocabulary: Vocabulary,
        settings: WpsSettings,
        store: FeatureStore | None = None,
        method: str = "wps",
    ) -> None:
        self.method = method
        self.student = student.to(segmenter.device).eval()
        self.segmenter = segmenter
        self.vocabulary = vocabulary
        self.settings = settings
        self.embedder = Embedder(segmenter, store)

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order; an image without parts gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images encoded at once.
        """
        for batch in self.embedder.batches(sources, batch_size):
            results = self.segment(batch.embeddings, batch.frames) if batch.frames else []
            for outcome in batch.outcomes:
                yield outcome if isinstance(outcome, Skipped) else results[outcome]

    @torch.no_grad()
    def segment(self, embeddings: Tensor, frames: Sequence[Frame]) -> list[Segmentation]:
        """Segmentations of B embedded images (B, C, h, w), at their original sizes."""
        prompts = self.student(embeddings.to(self.segmenter.device))
        kept = keep_queries(prompts.logits, self.settings.score_threshold)
        tokens = self._asked(prompts)[kept.image, kept.query]
        most = self.settings.max_prompts
        logits, _ = decode_prompts(self.segmenter, embeddings, tokens, kept.image, max_prompts=most)
        for _ in range(self.settings.refine):
            tokens, logits = refined_prompts(self.segmenter, embeddings, tokens, logits, kept.image, max_prompts=most)
        provenance = self._provenance(tokens, kept, frames)
        rows = np.arange(len(provenance))
        image, label, score = (x.cpu().numpy() for x in (kept.image, kept.label, kept.score))
        results = []
        for index, frame in enumerate(frames):
            mine = rows[image == index]
            results.append(
                fuse(
                    frame,
                    logits[torch.from_numpy(mine).to(logits.device)],
                    label[mine],
                    score[mine],
                    [provenance[row] for row in mine],
                    background=self.vocabulary.background,
                    fusion=self.settings.fusion,
                )
            )
        return results

    def _asked(self, prompts: Prompts) -> Tensor:
        """(B, S, T, D) tokens that the segmenter is asked with."""
        if self.settings.answer == "tokens" or prompts.boxes is None:
            return prompts.tokens
        corners: Tensor = box_convert(prompts.boxes, "cxcywh", "xyxy") * self.segmenter.side
        return self.segmenter.box_tokens(corners.flatten(0, 1)).unflatten(0, corners.shape[:2])

    def prompts(self, embeddings: Tensor) -> Prompts:
        """What the student asks: class logits (B, S, C + 1) and tokens (B, S, T, D)."""
        with torch.no_grad():
            prompts: Prompts = self.student(embeddings.to(self.segmenter.device))
        return prompts

    def _provenance(self, tokens: Tensor, kept: Kept, frames: Sequence[Frame]) -> list[dict[str, Any]]:
        """Per kept query its number and the prompt that its tokens stand for, in image pixels."""
        if len(tokens) == 0:
            return []
        prompts = nearest_prompts(self.segmenter, tokens, self.settings.supervision).cpu().numpy()
        kind = "point" if self.settings.supervision == "point" else "box"
        origins = []
        for image, query, prompt in zip(kept.image.tolist(), kept.query.tolist(), prompts, strict=True):
            place = frames[image].points_to_image(prompt.reshape(-1, 2)).reshape(-1)
            origins.append({"method": self.method, "query": query, kind: [round(float(v), 1) for v in place]})
        return origins


def keep_queries(logits: Tensor, threshold: float | None = None) -> Kept:
    """Queries whose likeliest class is a part (and, with a threshold, at least so likely).

    Args:
        logits: (B, S, C + 1); the last class is "no part".
        threshold: least probability, or None.
    """
    score, label = logits.float().softmax(-1).max(-1)
    keep = label != logits.shape[-1] - 1
    if threshold is not None:
        keep &= score >= threshold
    image, query = keep.nonzero().unbind(1)
    return Kept(image, query, label[keep], score[keep])
