"""A prompter of regions in the place of queries: regions of an image embedding, and what each asks the segmenter.

The paper has one as a baseline (Table B, "anchor-based CNN") and names the idea alone; sizes and losses are ours.

A feature pyramid on the frozen embedding, region proposals from anchors, region features of 7 x 7 cells, two shared
layers, and three heads: class, box offsets, prompt tokens. Every part trains several regions and hundreds of anchors
at its place, where it trains one query somewhere: few images suffice.

Symbols: B images, (C_e, h, w) embedding, S side of the frame in pixels, d width, N regions over all images, C
categories, T tokens per prompt, D token width. Boxes are ``x0, y0, x1, y1`` in pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import TwoMLPHead  # type: ignore[import-untyped]
from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]
from torchvision.models.detection.roi_heads import RoIHeads  # type: ignore[import-untyped]
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead  # type: ignore[import-untyped]
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_convert, clip_boxes_to_image  # type: ignore[import-untyped]

from weakly.methods.wps.model import ChannelNorm, Prompts

CELLS = 7
"""Cells along a side of a region's features."""

CERTAIN = 1e4
"""Logit of "no part" where fewer regions ask than in another image of the batch."""


class Answers(NamedTuple):
    """What the second stage says about N regions.

    Attributes:
        logits: (N, C + 1); the last class is "no part".
        offsets: (N, 4) from the region to the part's box, in torchvision's coding.
        tokens: (N, T, D) prompt tokens.
    """

    logits: Tensor
    offsets: Tensor
    tokens: Tensor


class Sampled(NamedTuple):
    """N regions to train the second stage on, image after image.

    Attributes:
        rois: B tensors of (n, 4) boxes.
        image: (N,) int64.
        label: (N,) int64 category of the part that a region lies on; C where it lies on none.
        instance: (N,) int64 that part; 0 where it is none.
        offsets: (N, 4) to its box; 0 where it is none.
    """

    rois: list[Tensor]
    image: Tensor
    label: Tensor
    instance: Tensor
    offsets: Tensor


class RegionPrompter(nn.Module):
    """Image embedding to prompts, by regions instead of queries.

    Args:
        embedding_channels: C_e, the first of an embedding's channels; any others are for the decoder alone.
        grid: (h, w), powers of two of at least 8.
        side: S.
        token_width: D.
        classes: C, without background.
        tokens: T.
        width: d.
        hidden: units of the two shared layers.
        anchors: sides of the anchors of the four levels, finest first, as shares of S.
        ratios: of the anchors' height to width.
        anchors_per_image: sampled to train the proposals.
        pre_nms: proposals of a level before suppression.
        proposals: of an image after suppression.
        rois: regions of an image sampled to train the second stage.
        nms: largest IoU of two regions of one category that both ask.
        detections: regions of an image that ask, at most.
        looks: times that regions are examined when they ask, from the second on where the look before moved them.
        samples: points along a side of a region's cell that are averaged.
        places: (h * w, D) what the position of every cell starts as, row by row; None: zeros.
    """

    def __init__(
        self,
        *,
        embedding_channels: int = 256,
        grid: tuple[int, int] = (64, 64),
        side: int = 1024,
        token_width: int = 256,
        classes: int = 40,
        tokens: int = 2,
        width: int = 256,
        hidden: int = 1024,
        anchors: Sequence[float] = (0.0625, 0.125, 0.25, 0.5),
        ratios: Sequence[float] = (0.5, 1.0, 2.0),
        anchors_per_image: int = 256,
        pre_nms: int = 500,
        proposals: int = 250,
        rois: int = 128,
        nms: float = 0.5,
        detections: int = 100,
        looks: int = 3,
        samples: int = 2,
        places: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.side, self.classes, self.looks = side, classes, looks
        self.token_shape = (tokens, token_width)
        self.pyramid = Pyramid(embedding_channels, width, grid, places)
        self.rpn = RegionProposalNetwork(
            AnchorGenerator(tuple((share * side,) for share in anchors), (tuple(ratios),) * len(anchors)),
            RPNHead(width, len(ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=anchors_per_image,
            positive_fraction=0.5,
            pre_nms_top_n={"training": pre_nms, "testing": pre_nms},
            post_nms_top_n={"training": proposals, "testing": proposals},
            nms_thresh=0.7,
        )
        self.pool = MultiScaleRoIAlign(
            list(Pyramid.LEVELS),
            output_size=CELLS,
            sampling_ratio=samples,
            # Regions of up to sqrt(2) times the anchors of a level are pooled from it.
            canonical_scale=anchors[0] * side * 2**0.5,
            canonical_level=(side // grid[0]).bit_length(),
        )
        self.shared = TwoMLPHead(width * CELLS**2, hidden)
        self.class_head = nn.Linear(hidden, classes + 1)
        self.box_head = nn.Linear(hidden, 4)
        self.prompt_head = nn.Linear(hidden, tokens * token_width)
        # Of torchvision's second stage, its sampling of regions and its coding of boxes.
        self.regions = RoIHeads(
            box_roi_pool=None,
            box_head=None,
            box_predictor=None,
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=rois,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.0,
            nms_thresh=nms,
            detections_per_img=detections,
        )

    def forward(self, embeddings: Tensor) -> Prompts:
        """Embeddings (B, C_e, h, w) to the prompts of the regions that ask, best first.

        Returns:
            Logits (B, S, C + 1), tokens (B, S, T, D) and boxes (B, S, 4), S the regions of the image with the most;
            where an image has fewer, the others are certainly no part.
        """
        features = self.pyramid(embeddings)
        rois, _ = self.propose(features)
        answers = self.examine(features, rois)
        for _ in range(self.looks - 1):
            rois = self.moved(answers, rois)
            answers = self.examine(features, rois)
        return self.select(answers, rois)

    def propose(
        self, features: Mapping[str, Tensor], truth: Sequence[Mapping[str, Tensor]] | None = None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Regions that may be parts, B tensors of (n, 4) boxes, and, given the truth, the losses of the anchors.

        Everything is float32: a box in bfloat16 is off by pixels.

        Args:
            features: of :class:`Pyramid`.
            truth: of every image ``boxes`` (M, 4) and ``labels`` (M,), category k as k + 1.
        """
        levels = {name: level.float() for name, level in features.items()}
        images = len(levels["0"])
        frames = ImageList(levels["0"].new_empty(images, 0, self.side, self.side), [(self.side, self.side)] * images)
        self.rpn.train(truth is not None)  # it has neither norms nor dropout: its mode says whether losses are made
        with torch.autocast(levels["0"].device.type, enabled=False):
            rois, losses = self.rpn(frames, levels, truth)
        return rois, losses

    @torch.no_grad()
    def sample(self, rois: list[Tensor], truth: Sequence[Mapping[str, Tensor]]) -> Sampled:
        """Some of the regions and of the true boxes, with the parts they lie on: those with an IoU of 0.5 or more.

        Args:
            rois: of :meth:`propose`.
            truth: as there.
        """
        chosen, instances, labels, offsets = self.regions.select_training_samples(rois, truth)
        counts = torch.tensor([len(roi) for roi in chosen])
        image = torch.repeat_interleave(torch.arange(len(chosen)), counts)
        shifted = torch.cat(labels)
        return Sampled(
            chosen,
            image.to(shifted.device, non_blocking=True),
            torch.where(shifted == 0, self.classes, shifted - 1),
            torch.where(shifted == 0, 0, torch.cat(instances)),
            torch.where((shifted == 0)[:, None], 0.0, torch.cat(offsets)),
        )

    def examine(self, features: Mapping[str, Tensor], rois: list[Tensor]) -> Answers:
        """What the second stage says about B tensors of (n, 4) regions."""
        pooled = self.pool(dict(features), rois, [(self.side, self.side)] * len(rois))
        hidden = self.shared(pooled)
        tokens = self.prompt_head(hidden).unflatten(-1, self.token_shape)
        return Answers(self.class_head(hidden), self.box_head(hidden), tokens)

    def moved(self, answers: Answers, rois: list[Tensor]) -> list[Tensor]:
        """B tensors of (n, 4) regions at the boxes that they answer, cut at the frame."""
        boxes = self.regions.box_coder.decode_single(answers.offsets.float(), torch.cat(rois))
        clipped: Tensor = clip_boxes_to_image(boxes, (self.side, self.side))
        return list(clipped.split([len(roi) for roi in rois]))

    def select(self, answers: Answers, rois: list[Tensor]) -> Prompts:
        """The regions of every image that see a part and are not suppressed by a better one of their category."""
        counts = [len(roi) for roi in rois]
        scores, labels = answers.logits.float().softmax(-1).max(-1)
        boxes = torch.cat(self.moved(answers, rois))
        starts = [sum(counts[:image]) for image in range(len(counts))]
        kept = [
            start + self._unsuppressed(*parts)
            for start, *parts in zip(
                starts, boxes.split(counts), scores.split(counts), labels.split(counts), strict=True
            )
        ]
        most = max((len(rows) for rows in kept), default=0)
        logits = answers.logits.new_zeros(len(kept), most, self.classes + 1)
        logits[..., -1] = CERTAIN
        tokens = answers.tokens.new_zeros(len(kept), most, *self.token_shape)
        corners = boxes.new_zeros(len(kept), most, 4)
        for image, rows in enumerate(kept):
            logits[image, : len(rows)] = answers.logits[rows]
            tokens[image, : len(rows)] = answers.tokens[rows]
            corners[image, : len(rows)] = boxes[rows]
        return Prompts(logits, tokens, box_convert(corners / self.side, "xyxy", "cxcywh"))

    def _unsuppressed(self, boxes: Tensor, scores: Tensor, labels: Tensor) -> Tensor:
        """Rows of one image's regions that ask, best first."""
        parts = (labels != self.classes).nonzero()[:, 0]
        kept = batched_nms(boxes[parts], scores[parts], labels[parts], self.regions.nms_thresh)
        return parts[kept[: self.regions.detections_per_img]]


class Pyramid(nn.Module):
    """(B, C_e, h, w) to four maps of d channels, the embedding's cells averaged over 1, 2, 4 and 8 along a side.

    All come from the one resolution that there is, as in the "simple" pyramids on plain transformers. A learned
    position is added to every cell first; averages keep it readable.
    """

    LEVELS: ClassVar[dict[str, int]] = {"0": 1, "1": 2, "2": 4, "3": 8}

    def __init__(self, channels: int, width: int, grid: tuple[int, int], places: Tensor | None = None) -> None:
        super().__init__()
        self.channels = channels
        position = torch.zeros(1, width, *grid)
        if places is not None:
            shared = min(width, places.shape[1])
            position[0, :shared] = places[:, :shared].T.reshape(shared, *grid)
        self.position = nn.Parameter(position)
        self.project = nn.Sequential(nn.Conv2d(channels, width, 1), ChannelNorm(width))
        self.levels = nn.ModuleDict(
            {
                name: nn.Sequential(nn.AvgPool2d(cells), nn.Conv2d(width, width, 3, padding=1), ChannelNorm(width))
                for name, cells in self.LEVELS.items()
            }
        )

    def forward(self, embeddings: Tensor) -> dict[str, Tensor]:
        """Embeddings (B, C_e, h, w) to maps (B, d, h / n, w / n), named by level, finest first."""
        cells = self.project(embeddings[:, : self.channels]) + self.position
        return {name: level(cells) for name, level in self.levels.items()}
