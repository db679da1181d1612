"""From images of any size to semantic masks: scales, mirroring, post-processing and scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import same_segmentation
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.methods import semantic_predictor as module
from weakly.methods.base import ImageSource, Skipped
from weakly.methods.fma.deeplab import DeepLabSettings
from weakly.methods.fma.mask2former import Mask2FormerSettings
from weakly.methods.fma.networks import build_network
from weakly.methods.fma.presets import PUBLISHED_SCALES
from weakly.methods.image_views import MEAN, STD, to_pixels
from weakly.methods.semantic_network import SemanticNetwork
from weakly.methods.semantic_predictor import (
    Inference,
    SemanticPredictor,
    held_size,
    to_segmentation,
)
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
COLOURS = np.array([[220, 30, 30], [30, 200, 40], [40, 50, 230], [90, 90, 90]], np.uint8)
SMALL = Inference(short=32, long=128)
DEEPLAB = DeepLabSettings("resnet18", output_stride=16, decoder_channels=16, atrous_rates=(1, 2, 3), aux_channels=8)
MASK2FORMER = Mask2FormerSettings(
    embed_dim=8,
    depths=(1, 1, 1, 1),
    heads=(1, 1, 2, 2),
    window=4,
    queries=6,
    width=64,
    encoder_layers=1,
    encoder_ffn=16,
    decoder_layers=1,
    decoder_ffn=16,
    attention_heads=2,
    points=64,
)


class ColourNetwork(SemanticNetwork):
    """Takes every pixel for the category whose colour is nearest: one 1x1 convolution."""

    backbone = "convolution."
    backbone_lr = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1)
        colours = torch.from_numpy((COLOURS - MEAN) / STD)
        with torch.no_grad():
            self.convolution.weight.copy_(6 * colours[:, :, None, None])
            self.convolution.bias.copy_(-3 * colours.square().sum(1))

    def scores(self, pixels: Tensor) -> Tensor:
        return self.convolution(pixels)

    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"cross_entropy": nn.functional.cross_entropy(self(pixels), labels, ignore_index=255)}

    def architecture(self) -> dict[str, Any]:
        return {"kind": "colours", "settings": {}}


def scene(height: int, width: int, seed: int = 0, pieces: int = 2) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    labels = np.random.default_rng(seed).integers(0, 4, (pieces, pieces)).astype(np.uint8)
    labels = labels.repeat(height // pieces, 0).repeat(width // pieces, 1)
    return COLOURS[labels], labels


def colour_predictor(inference: Inference = SMALL, **options: Any) -> SemanticPredictor:
    return SemanticPredictor(ColourNetwork(), VOCABULARY, inference, method="colours", **options)


def source(path: Path, image: NDArray[np.uint8] | None = None) -> ImageSource:
    if image is not None:
        Image.fromarray(image).save(path)
    return ImageSource(path.stem, path, partial(read_image, path))


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (40, 90), (20, 300), (10, 12)])
def test_masks_have_the_original_size_and_the_right_categories(size: tuple[int, int]) -> None:
    image, labels = scene(*size)
    (result,) = colour_predictor().segment([image])
    assert result.size == size
    assert result.label_map is not None
    assert np.mean(result.label_map != labels) < 0.15, "only pixels along borders may differ"
    assert result.labels.tolist() == sorted(set(np.unique(result.label_map).tolist()) - {3})
    for mask, label in zip(result.masks(), result.labels, strict=True):
        assert np.array_equal(mask, result.label_map == label)
    assert all(origin == {"method": "colours"} for origin in result.provenance)


def test_a_score_is_the_mean_probability_over_the_mask() -> None:
    labels = torch.tensor([[0, 0, 2], [1, 2, 2]])
    probabilities = torch.tensor(
        [[[0.9, 0.5, 0.1], [0.1, 0.2, 0.0]], [[0.1, 0.5, 0.2], [0.8, 0.0, 0.1]], [[0.0, 0.0, 0.7], [0.1, 0.8, 0.9]]]
    )
    result = to_segmentation(labels, probabilities, (2, 3), "colours")
    assert result.labels.tolist() == [0, 1]
    assert result.scores.tolist() == pytest.approx([0.7, 0.8])
    assert np.array_equal(result.to_label_map(2), labels.numpy())


def test_background_alone_is_an_empty_segmentation() -> None:
    (result,) = colour_predictor().segment([np.full((30, 40, 3), COLOURS[3], np.uint8)])
    assert len(result) == 0
    assert result.size == (30, 40)
    assert (result.to_label_map(3) == 3).all()


@pytest.mark.parametrize("settings", [DEEPLAB, MASK2FORMER], ids=["deeplab", "mask2former"])
@torch.no_grad()
def test_one_scale_is_the_network_on_the_resized_image(settings: Any) -> None:
    torch.manual_seed(0)
    network = build_network(settings, 3).eval()
    image = np.random.default_rng(0).integers(0, 256, (32, 56, 3)).astype(np.uint8)
    (probabilities,) = SemanticPredictor(network, VOCABULARY, SMALL, method="colours").probabilities([image])
    assert torch.allclose(probabilities, network(to_pixels(image)[None]).softmax(1)[0], atol=1e-5)


@torch.no_grad()
def test_views_are_averaged_after_the_softmax() -> None:
    torch.manual_seed(0)
    network = build_network(DEEPLAB, 3)
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)

    def single(short: int, mirrored: bool) -> Tensor:
        predictor = SemanticPredictor(network, VOCABULARY, Inference(short=short, long=256), method="colours")
        seen = np.ascontiguousarray(image[:, ::-1]) if mirrored else image
        (probabilities,) = predictor.probabilities([seen])
        return probabilities.flip(-1) if mirrored else probabilities

    views = [single(short, mirrored) for short in (32, 64) for mirrored in (False, True)]
    several = SemanticPredictor(
        network, VOCABULARY, Inference(short=32, long=256, scales=(1, 2), flip=True), method="colours"
    )
    assert torch.allclose(several.probabilities([image])[0], torch.stack(views).mean(0), atol=1e-5)


def test_the_published_scales_give_probabilities() -> None:
    image, labels = scene(32, 64)
    predictor = colour_predictor(Inference(short=32, long=128, scales=PUBLISHED_SCALES, flip=True))
    (probabilities,) = predictor.probabilities([image])
    assert torch.allclose(probabilities.sum(0), torch.ones(32, 64), atol=1e-5)
    assert np.mean(probabilities.argmax(0).numpy() != labels) < 0.15


def test_images_alone_and_together_give_the_same_in_order(tmp_path: Path) -> None:
    torch.manual_seed(0)
    predictor = SemanticPredictor(build_network(DEEPLAB, 3), VOCABULARY, SMALL, method="colours")
    images = [scene(*size, seed)[0] for seed, size in enumerate([(32, 48), (64, 40), (32, 48), (16, 24), (40, 64)])]
    sources = [source(tmp_path / f"{i}.png", image) for i, image in enumerate(images)]
    together = list(predictor.predict(sources, batch_size=5))
    alone = [next(iter(predictor.predict([one], batch_size=1))) for one in sources]
    for a, b, image in zip(together, alone, images, strict=True):
        assert isinstance(a, Segmentation)
        assert isinstance(b, Segmentation)
        assert a.size == image.shape[:2]
        assert same_segmentation(a, b, score_tolerance=1e-4)
    assert list(predictor.predict([], batch_size=4)) == []


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_unreadable_sources_keep_their_place(tmp_path: Path, batch_size: int) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG, not really")
    bad = source(tmp_path / "bad.png")
    good = [source(tmp_path / f"{i}.png", scene(32, 32 + 2 * i)[0]) for i in range(3)]
    results = list(colour_predictor().predict([bad, good[0], good[1], bad, good[2]], batch_size=batch_size))
    assert [isinstance(result, Skipped) for result in results] == [True, False, False, True, False]
    assert [result.size for result in results if isinstance(result, Segmentation)] == [(32, 32), (32, 34), (32, 36)]
    assert isinstance(results[0], Skipped)
    assert "bad.png" in results[0].reason


def test_post_processing_sees_image_and_probabilities_and_decides() -> None:
    image = scene(40, 60)[0]
    seen = []

    def refine(picture: NDArray[np.uint8], probabilities: Tensor) -> NDArray[np.int64]:
        seen.append((picture, probabilities))
        labels = np.full(picture.shape[:2], 3)
        labels[:, :10] = 1
        return labels

    (result,) = colour_predictor(refine=refine).segment([image])
    assert np.array_equal(seen[0][0], image)
    assert seen[0][1].shape == (4, 40, 60)
    assert result.labels.tolist() == [1]
    assert result.masks()[0].sum() == 40 * 10
    assert result.scores[0] == pytest.approx(seen[0][1][1, :, :10].mean().item(), rel=1e-5)


@pytest.mark.parametrize("labels", [np.full((40, 60), 4), np.full((40, 60), -1), np.zeros((4, 6), int)])
def test_post_processing_that_returns_no_label_map_is_refused(labels: NDArray[np.int64]) -> None:
    with pytest.raises(ValueError, match="refine"):
        colour_predictor(refine=lambda image, probabilities: labels).segment([scene(40, 60)[0]])


@given(st.integers(1, 5_000), st.integers(1, 5_000), st.integers(2, 100), st.integers(1_000, 10_000_000))
def test_probabilities_are_held_at_no_more_values_than_allowed(h: int, w: int, classes: int, limit: int) -> None:
    held = held_size((h, w), classes, limit)
    assert (held == (h, w)) == (h * w * classes <= limit)
    assert held[0] * held[1] * classes <= limit or 1 in held
    assert held[0] <= h
    assert held[1] <= w


def test_a_very_large_image_is_decided_smaller_and_enlarged(monkeypatch: pytest.MonkeyPatch) -> None:
    image, labels = scene(80, 120)
    monkeypatch.setattr(module, "MAX_VALUES", 40 * 60 * 4)
    predictor = colour_predictor(refine=lambda picture, probabilities: probabilities.argmax(0))
    assert predictor.probabilities([image])[0].shape == (4, 40, 60)
    (result,) = predictor.segment([image])
    assert result.size == (80, 120)
    assert result.label_map is not None
    assert np.mean(result.label_map != labels) < 0.1


@pytest.mark.parametrize("values", [{"scales": ()}, {"scales": (1.0, 0.0)}, {"short": 0}, {"short": 9, "long": 8}])
def test_impossible_sizes_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="inference"):
        Inference(**values)


# On disk --------------------------------------------------------------------------------------------------------------
