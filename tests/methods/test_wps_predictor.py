"""From image to part masks without a prompt: which queries speak, what they mean, where embeddings come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import same_segmentation
from PIL import Image
from tiny_segmenter import rectangle_dataset, source_of, sources_of, tiny_segmenter

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.foundation.features import FeatureStore
from weakly.foundation.sam import SamSegmenter
from weakly.methods.base import ImageSource, Skipped
from weakly.methods.embedding import find_store
from weakly.methods.wps.learner import build_prompter
from weakly.methods.wps.predictor import WpsPredictor, keep_queries
from weakly.methods.wps.prompts import nearest_prompts
from weakly.methods.wps.settings import WpsSettings

SETTINGS = WpsSettings(queries=5, width=32, heads=4, layers=1, ffn=32, downsamples=1)


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 4)


def predictor(segmenter: SamSegmenter, dataset: Dataset, store: Any = None, **changes: Any) -> WpsPredictor:
    torch.manual_seed(1)
    settings = replace(SETTINGS, **changes)
    student = build_prompter(settings, 3, segmenter)
    with torch.no_grad():
        student.class_head.bias[-1] -= 2
    return WpsPredictor(student, segmenter, dataset.vocabulary, settings, store)


def test_a_query_speaks_if_a_part_is_likelier_than_no_part() -> None:
    logits = torch.tensor([[[2.0, 1, 0], [0, 1, 2], [0, 3, 0]], [[0, 0, 9], [0, 0, 9], [1, 0, 0]]])
    kept = keep_queries(logits)
    assert kept.image.tolist() == [0, 0, 1]
    assert kept.query.tolist() == [0, 2, 2]
    assert kept.label.tolist() == [0, 1, 0]
    assert torch.allclose(kept.score, torch.stack([logits[0, 0], logits[0, 2], logits[1, 2]]).softmax(-1).amax(-1))
    assert keep_queries(logits, threshold=0.7).query.tolist() == [2]


def test_masks_are_the_segmenters_answer_to_the_students_tokens(segmenter: SamSegmenter, dataset: Dataset) -> None:
    model = predictor(segmenter, dataset)
    result = next(iter(model.predict(sources_of(dataset)[:1])))
    image = dataset.image(0)
    embedding = segmenter.encode(segmenter.preprocess([image]))
    prompts = model.prompts(embedding)
    kept = keep_queries(prompts.logits)
    assert len(result) == len(kept.query) > 0
    assert [origin["query"] for origin in result.provenance] == kept.query.tolist()
    assert [origin["method"] for origin in result.provenance] == ["wps"] * len(result)
    for mask, query in zip(result.masks(), kept.query.tolist(), strict=True):
        logits, _ = segmenter.decode(embedding, prompts.tokens[0, query][None], torch.zeros(1).long())
        expected = segmenter.frame(image.shape[:2]).logits_to_image(logits[:, 0])[0] >= 0
        assert np.mean(mask != expected.numpy()) < 1e-3


def test_labels_of_the_dataset_make_no_difference(segmenter: SamSegmenter, dataset: Dataset) -> None:
    """An image source carries none; the same files without any label give the same masks."""
    model = predictor(segmenter, dataset)
    bare = [ImageSource("x", sample.path, source_of("x", sample.path).read) for sample in dataset]
    for a, b in zip(model.predict(sources_of(dataset)), model.predict(bare), strict=True):
        assert same_segmentation(a, b)


def test_soft_sum_gives_one_mask_per_category(segmenter: SamSegmenter, dataset: Dataset) -> None:
    for result in predictor(segmenter, dataset, fusion="soft_sum").predict(sources_of(dataset)):
        assert len(set(result.labels.tolist())) == len(result)


@pytest.mark.parametrize("supervision", ["box", "point", "point+box"])
def test_tokens_are_decoded_to_the_prompts_they_stand_for(segmenter: SamSegmenter, supervision: Any) -> None:
    boxes = torch.tensor([[3.0, 4.5, 40.2, 60.0], [20, 10, 33, 25]])
    points = boxes[:, :2] + 5
    if supervision == "point":
        found, expected = nearest_prompts(segmenter, segmenter.point_tokens(points), supervision), points
    else:
        tokens = segmenter.box_tokens(boxes) if supervision == "box" else segmenter.point_tokens(points, boxes)
        found, expected = nearest_prompts(segmenter, tokens, supervision), boxes
    assert torch.allclose(found, expected, atol=0.15)


def test_provenance_has_the_prompt_in_image_pixels(segmenter: SamSegmenter, dataset: Dataset) -> None:
    result = next(iter(predictor(segmenter, dataset).predict(sources_of(dataset)[2:3])))
    assert all(len(origin["box"]) == 4 for origin in result.provenance)
    points = next(iter(predictor(segmenter, dataset, supervision="point").predict(sources_of(dataset)[2:3])))
    assert all(len(origin["point"]) == 2 for origin in points.provenance)


def test_stored_features_are_used_instead_of_encoding(
    segmenter: SamSegmenter, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = list(predictor(segmenter, dataset).predict(sources_of(dataset), batch_size=4))
    FeatureStore.open(tmp_path / "f", segmenter, "float32").build([sample.path for sample in dataset], batch_size=4)
    store = find_store(tmp_path / "f", segmenter, "float32")
    assert store is not None
    model = predictor(segmenter, dataset, store)

    def refuse(*_: Any) -> None:
        pytest.fail("an image was encoded again")

    monkeypatch.setattr(segmenter, "encode", refuse)
    for a, b in zip(plain, model.predict(sources_of(dataset), batch_size=4), strict=True):
        assert same_segmentation(a, b, score_tolerance=1e-5)


def test_stored_and_new_images_mix_in_one_batch(segmenter: SamSegmenter, dataset: Dataset, tmp_path: Path) -> None:
    FeatureStore.open(tmp_path / "f", segmenter, "float32").build([dataset[0].path, dataset[2].path])
    store = find_store(tmp_path / "f", segmenter, "float32")
    mixed = predictor(segmenter, dataset, store).predict(sources_of(dataset), batch_size=4)
    plain = predictor(segmenter, dataset).predict(sources_of(dataset), batch_size=4)
    for a, b in zip(plain, mixed, strict=True):
        assert a.size == b.size
        assert np.array_equal(a.labels, b.labels)
        assert np.mean(a.masks() != b.masks()) < 1e-3


def test_a_photograph_that_is_shown_rotated_is_not_taken_from_the_store(
    segmenter: SamSegmenter, dataset: Dataset, tmp_path: Path
) -> None:
    """Features are of the stored frame, people's photographs are predicted upright."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(dataset.image(0)).save(path, exif=exif)
    FeatureStore.open(tmp_path / "f", segmenter, "float32").build([path])
    store = find_store(tmp_path / "f", segmenter, "float32")
    source = ImageSource("turned", path, lambda: read_image(path, upright=True))
    result = next(iter(predictor(segmenter, dataset, store).predict([source])))
    assert result.size == dataset[0].size[::-1]


def test_another_segmenters_store_is_not_found(segmenter: SamSegmenter, dataset: Dataset, tmp_path: Path) -> None:
    FeatureStore.open(tmp_path / "f", segmenter, "float32").build([dataset[0].path])
    FeatureStore.open(tmp_path / "g", segmenter, "float32", variant="hflip")
    other = tiny_segmenter(tmp_path / "other", seed=1)
    assert find_store(tmp_path / "f", other, "float32") is None
    assert find_store(tmp_path / "f", segmenter, "float16") is None
    assert find_store(tmp_path / "g", segmenter, "float32") is None
    assert find_store(tmp_path / "nowhere", segmenter, "float32") is None


def test_skipped_images_keep_their_place(segmenter: SamSegmenter, dataset: Dataset, tmp_path: Path) -> None:
    gone = source_of("gone", tmp_path / "gone.png")
    results = list(predictor(segmenter, dataset).predict([gone, *sources_of(dataset), gone], batch_size=2))
    assert [isinstance(result, Skipped) for result in results] == [True, False, False, False, False, True]
