"""Teacher tokens against the closed form of SAM's prompt encoder, and how they are batched."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset, Record
from weakly.errors import UserError
from weakly.foundation.features import Features
from weakly.foundation.sam import SamSegmenter
from weakly.labels import Boxes, Points
from weakly.methods.wps.settings import WpsSettings
from weakly.methods.wps.targets import Targets, WpsData, instances_of, mask_points, mirror, teacher_targets
from weakly.segmentation import Segmentation


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 6)


class Counting(Features):
    """Image i has the feature i everywhere."""

    resident = True

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, indices: torch.Tensor) -> torch.Tensor:
        return indices.float()[:, None, None, None].expand(-1, 2, 3, 3)


def encoding(segmenter: SamSegmenter, xy: np.ndarray) -> torch.Tensor:
    """PE(x, y) = [sin v, cos v], v = 2 pi (2 (xy + 0.5) / S - 1) G."""
    gaussian = segmenter.model.shared_image_embedding.positional_embedding.double()
    v = 2 * math.pi * (2 * (torch.from_numpy(xy).double() + 0.5) / segmenter.side - 1) @ gaussian
    return torch.cat([v.sin(), v.cos()], dim=-1).float()


def with_points(dataset: Dataset) -> Dataset:
    """The same parts, each also with a click at its upper left corner."""
    records = [
        replace(r, sample=replace(r.sample, points=Points(r.sample.boxes.xyxy[:, :2] + 1, r.sample.boxes.labels)))
        for r in dataset.records
    ]
    return replace(dataset, records=tuple(records))


def test_box_tokens_are_corner_encodings_plus_corner_embeddings(segmenter: SamSegmenter, dataset: Dataset) -> None:
    targets = teacher_targets(segmenter, dataset, WpsSettings())
    embeddings = [e.weight for e in segmenter.model.prompt_encoder.point_embed]
    row = 0
    for sample in dataset:
        corners = segmenter.frame(sample.size).boxes_to_frame(sample.boxes.xyxy).reshape(-1, 2, 2)
        for corner in corners:
            expected = encoding(segmenter, corner) + torch.cat(embeddings[2:4])
            assert torch.allclose(targets.tokens[row], expected, atol=1e-4)
            row += 1
    assert row == len(targets.labels)
    assert targets.counts.tolist() == [len(sample.boxes) for sample in dataset]
    assert targets.labels.tolist() == [int(label) for sample in dataset for label in sample.boxes.labels]


def test_point_tokens_are_the_box_centre_and_the_constant_padding_token(
    segmenter: SamSegmenter, dataset: Dataset
) -> None:
    targets = teacher_targets(segmenter, dataset, WpsSettings(supervision="point"))
    sample = dataset[3]
    start = int(targets.counts[:3].sum())
    centre = segmenter.frame(sample.size).points_to_frame(sample.boxes.centers().xy[0])
    expected = encoding(segmenter, centre) + segmenter.model.prompt_encoder.point_embed[1].weight[0]
    assert torch.allclose(targets.tokens[start, 0], expected, atol=1e-4)
    padding = segmenter.model.prompt_encoder.not_a_point_embed.weight[0]
    assert all(torch.equal(token, padding) for token in targets.tokens[:, 1])


def test_point_and_box_together_are_three_tokens_without_padding(segmenter: SamSegmenter, dataset: Dataset) -> None:
    both = teacher_targets(segmenter, dataset, WpsSettings(supervision="point+box")).tokens
    assert both.shape[1:] == (3, 32)
    assert torch.allclose(
        both[:, 0], teacher_targets(segmenter, dataset, WpsSettings(supervision="point")).tokens[:, 0]
    )
    assert torch.allclose(both[:, 1:], teacher_targets(segmenter, dataset, WpsSettings()).tokens)


def test_ten_pixels_are_2_7_in_the_token_space_of_a_full_size_sam() -> None:
    """With SAM's N(0, 1) Gaussian matrix, 1024-pixel frame and 256 channels; needs no other weight of SAM."""
    gaussian = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))

    def tokens(boxes: torch.Tensor) -> torch.Tensor:
        v = 2 * math.pi * (2 * (boxes.view(-1, 2, 2) + 0.5) / 1024 - 1) @ gaussian
        return torch.cat([v.sin(), v.cos()], -1).flatten(1)

    boxes = torch.tensor([[100.0, 200, 300, 380], [512, 40, 800, 900]])
    distance = (tokens(boxes + 10) - tokens(boxes)).norm(dim=1)
    assert ((distance - 2.7).abs() < 0.5).all()


def test_mirrored_targets_are_those_of_the_mirrored_image(segmenter: SamSegmenter, dataset: Dataset) -> None:
    boxes, points = mirror(np.array([[10, 5, 30, 9]], np.float32), np.array([[12, 7]], np.float32), 100)
    assert boxes.tolist() == [[70, 5, 90, 9]]
    assert points.tolist() == [[88, 7]]
    plain = teacher_targets(segmenter, dataset, WpsSettings())
    mirrored = teacher_targets(segmenter, dataset, WpsSettings(), mirrored=(True,))
    assert torch.equal(plain.labels, mirrored.labels)
    records = [
        replace(
            r,
            sample=replace(
                r.sample,
                boxes=Boxes(
                    mirror(r.sample.boxes.xyxy, np.zeros((0, 2), np.float32), r.sample.size[1])[0],
                    r.sample.boxes.labels,
                ),
            ),
        )
        for r in dataset.records
    ]
    assert torch.equal(
        mirrored.tokens, teacher_targets(segmenter, replace(dataset, records=tuple(records)), WpsSettings()).tokens
    )


def test_points_may_be_clicks(dataset: Dataset) -> None:
    clicked = with_points(dataset)
    settings = WpsSettings(supervision="point", point_source="given")
    labels, _, points = instances_of(clicked, 3, settings)
    assert np.array_equal(points, clicked[3].points.xy)
    assert np.array_equal(labels, clicked[3].points.labels)
    centres = instances_of(clicked, 3, WpsSettings(supervision="point"))[2]
    assert np.array_equal(centres, clicked[3].boxes.centers().xy)


def test_points_from_masks_are_inside_and_the_log_says_that_they_are_strong(
    segmenter: SamSegmenter, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        teacher_targets(segmenter, dataset, WpsSettings(supervision="point", point_source="inner_point"))
    assert "strong labels" in caplog.text
    ring = np.zeros((1, 21, 21), bool)
    ring[0, 2:19, 2:19] = True
    ring[0, 6:15, 6:15] = False
    truth = Segmentation.from_masks(ring, [0])
    assert mask_points(truth, "mask_centroid").tolist() == [[10.5, 10.5]]
    x, y = mask_points(truth, "inner_point")[0]
    assert ring[0, int(y), int(x)]
    assert mask_points(Segmentation.from_masks(np.zeros((1, 4, 4), bool), [0]), "inner_point").tolist() == [[0, 0]]


def test_missing_labels_are_named(segmenter: SamSegmenter, dataset: Dataset) -> None:
    bare = replace(dataset, records=tuple(Record(replace(r.sample, boxes=None)) for r in dataset.records))
    with pytest.raises(UserError, match="train-0.png has no boxes"):
        teacher_targets(segmenter, bare, WpsSettings())
    with pytest.raises(UserError, match="has no points"):
        teacher_targets(segmenter, bare, WpsSettings(supervision="point"))
    odd = with_points(dataset)
    sample = odd[3]
    fewer = replace(sample, points=Points(sample.points.xy[:1], sample.points.labels[:1]))
    odd = replace(odd, records=(Record(fewer),))
    with pytest.raises(UserError, match="different parts"):
        teacher_targets(segmenter, odd, WpsSettings(supervision="point+box", point_source="given"))


def test_crowded_images_are_counted_or_refused(
    segmenter: SamSegmenter, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        teacher_targets(segmenter, dataset, WpsSettings(queries=2))
    assert "1 of 6 images" in caplog.text
    with pytest.raises(UserError, match="train-3.png"):
        teacher_targets(segmenter, dataset, WpsSettings(queries=2, strict=True))


def test_batches_hold_every_instance_of_their_images_and_zeros_elsewhere(
    segmenter: SamSegmenter, dataset: Dataset
) -> None:
    targets = teacher_targets(segmenter, dataset, WpsSettings())
    data = WpsData((Counting(6),), targets)
    batch = data.__getitems__([3, 0, 2])
    assert batch.counts == (3, 0, 2)
    assert batch.labels.shape == (3, 3)
    assert batch.embeddings[:, 0, 0, 0].tolist() == [3, 0, 2]
    starts = targets.counts.cumsum(0) - targets.counts
    for row, image in enumerate((3, 0, 2)):
        count, start = batch.counts[row], int(starts[image])
        assert torch.equal(batch.tokens[row, :count], targets.tokens[start : start + count])
        assert torch.equal(batch.labels[row, :count], targets.labels[start : start + count])
        assert not batch.tokens[row, count:].any()
        assert not batch.labels[row, count:].any()


def test_a_batch_of_images_without_instances(segmenter: SamSegmenter, dataset: Dataset) -> None:
    targets = teacher_targets(segmenter, dataset.select([0, 4]), WpsSettings())
    batch = WpsData((Counting(2),), targets)[1]
    assert batch.counts == (0,)
    assert batch.labels.shape == (1, 0)
    assert batch.tokens.shape == (1, 0, 2, 32)


def test_mirrored_and_plain_images_mix_in_one_batch(segmenter: SamSegmenter, dataset: Dataset) -> None:
    plain = teacher_targets(segmenter, dataset, WpsSettings())
    mirrored = teacher_targets(segmenter, dataset, WpsSettings(), mirrored=(True,))
    both = teacher_targets(segmenter, dataset, WpsSettings(), mirrored=(False, True))
    data = WpsData((Counting(6), Counting(6)), both)
    assert len(data) == 6 and data.variants == 2
    batch = data.__getitems__([6 + 3, 1, 6 + 0, 2])
    assert batch.counts == (3, 1, 0, 2)
    assert torch.equal(batch.tokens[0], data_of(mirrored, 3))
    assert torch.equal(batch.tokens[1, :1], data_of(plain, 1))
    assert torch.equal(batch.tokens[3, :2], data_of(plain, 2))
    with pytest.raises(IndexError, match="view 1 of 1"):
        WpsData((Counting(6),), plain).__getitems__([6])


def data_of(targets: Targets, image: int) -> torch.Tensor:
    ends = targets.counts.cumsum(0)
    return targets.tokens[ends[image] - targets.counts[image] : ends[image]]
