"""The student of FMA-WSSS on the segmenter's embeddings keeps every promise, and sees label maps where they belong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_fma_contract
import torch
from numpy.typing import NDArray
from test_fma_contract import space
from tiny_fma import tagged, tiny_models, tiny_settings
from tiny_segmenter import rectangle_dataset, source_of, sources_of, tiny_segmenter

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.promptable import Frame
from weakly.foundation.sam import SamSegmenter
from weakly.methods.base import Learner, Skipped
from weakly.methods.embedding import EmbeddingSource
from weakly.methods.fma import METHOD
from weakly.methods.fma.embedded import EmbeddedMaps, EmbeddedPredictor, embed, framed_labels
from weakly.methods.fma.networks import build_network, rebuild_network
from weakly.methods.fma.pyramid import PyramidNetwork, PyramidSettings
from weakly.methods.fma.settings import FmaSettings, RefineSettings
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.image_views import Augmentation
from weakly.methods.semantic_predictor import Inference
from weakly.methods.semantic_targets import SemanticData, write_label_map
from weakly.segmentation import Segmentation

PYRAMID = PyramidSettings(width=32, scales=(2, 1, 0.5), dropout=0.0)
CELLS = (16, 16)
"""Twice the grid of 8 x 8."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path / "images", 6)


def pyramid_settings(models: Path, **changes: Any) -> FmaSettings:
    return tiny_settings(models, network="pyramid", pyramid=PYRAMID, **changes)


def true_map(dataset: Dataset, row: int) -> NDArray[np.uint8]:
    """(H, W) labels of the rectangles of an image; 3 is background."""
    sample = dataset[row]
    labels = np.full(sample.size, 3, np.uint8)
    assert sample.boxes is not None
    for (x0, y0, x1, y1), label in zip(sample.boxes.xyxy.astype(int), sample.boxes.labels, strict=True):
        labels[y0:y1, x0:x1] = label
    return labels


def embedded_truth(models: Path, dataset: Dataset, folder: Path, flip: float = 0.5) -> EmbeddedMaps:
    """Training data whose label maps are the truth."""
    paths = tuple(folder / f"{row}.png" for row in range(len(dataset)))
    for row, path in enumerate(paths):
        write_label_map(path, true_map(dataset, row), dataset.vocabulary)
    images = tuple(sample.path for sample in dataset)
    data = SemanticData(images, paths, 3, Augmentation(flip=flip))
    return embed(data, dataset, frozen_segmenter(str(models / "sam")), CELLS, space(folder))


class TestOnEmbeddings(test_fma_contract.TestFma):
    @pytest.fixture
    def settings(self, models: Path) -> FmaSettings:
        return pyramid_settings(models, refine=RefineSettings(by="sams"))

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.head[-1].bias[-1] += 1e4

    def rouse(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.head[-1].bias[-1] -= 1e2


def test_cells_have_the_label_under_their_centre_and_are_void_beside_the_image() -> None:
    """A 2 x 4 image fills the upper half of a frame of 8 x 8; a cell of 1 pixel lies in a quarter of an image pixel."""
    labels = np.array([[0, 1, 2, 3], [3, 2, 1, 0]], np.uint8)
    frame = Frame.fit((2, 4), 8)
    fine = np.kron(labels, np.ones((2, 2), int))
    assert np.array_equal(framed_labels(labels, frame, (8, 8)), np.vstack([fine, np.full((4, 8), 255)]))
    # Cells of 4 pixels have their centres where pixels 1 and 2 of a row meet: the pixel to the right has them.
    assert framed_labels(labels, frame, (2, 2)).tolist() == [[2, 0], [255, 255]]
    centred = Frame.fit((2, 4), 8, "center_black")
    assert np.array_equal(framed_labels(labels, centred, (8, 8))[2:6], fine)
    stretched = Frame.fit((2, 4), 8, "stretch")
    assert np.array_equal(framed_labels(labels, stretched, (2, 4)), labels)


def test_a_view_is_the_whole_image_as_it_is_or_mirrored(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    data, segmenter = embedded_truth(models, dataset, tmp_path), frozen_segmenter(str(models / "sam"))
    whole, views = data.__getitems__(range(6)), data.random_views(3).__getitems__(range(12, 18))
    seen = set()
    for row, sample in enumerate(dataset):
        image, frame = read_image(sample.path), segmenter.frame(sample.size)
        plain, mirrored = (segmenter.encode(segmenter.preprocess([each]))[0] for each in (image, image[:, ::-1]))
        assert (whole.pixels[row] - plain).abs().max() < 2e-2, "coded as float16"
        assert np.array_equal(whole.labels[row], framed_labels(true_map(dataset, row), frame, CELLS))
        is_mirrored = bool((views.pixels[row] - mirrored).abs().max() < (views.pixels[row] - plain).abs().max())
        seen.add(is_mirrored)
        labels = true_map(dataset, row)[:, :: -1 if is_mirrored else 1]
        assert np.array_equal(views.labels[row], framed_labels(labels, frame, CELLS))
    assert seen == {False, True}
    again = data.random_views(3)[15]
    assert torch.equal(again.pixels[0], views.pixels[3]), "a view depends on seed, view and image alone"
    with pytest.raises(IndexError, match="index 6 of 6 images"):
        data[6]


def test_a_label_map_of_another_size_is_one_sentence(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    data = embedded_truth(models, dataset, tmp_path)
    write_label_map(data.label_maps[1], np.zeros((5, 7), np.uint8), dataset.vocabulary)
    with pytest.raises(UserError, match=r"1\.png has 7 x 5 pixels, its image .*train-1\.png 48 x 64"):
        data[1]


@pytest.mark.parametrize(("flip", "encodings"), [(0.0, 5), (0.5, 10)])
def test_images_are_encoded_once_and_mirrored_ones_once_more(
    models: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flip: float, encodings: int
) -> None:
    """By the student: automatic masks encode crops of their own, so here the seeds are made without any."""
    encoded: list[int] = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    settings = pyramid_settings(models, augmentation=Augmentation(flip=flip))
    by_crf = replace(settings.coarse, finish="crf")
    settings = replace(settings, coarse=by_crf, fine=by_crf)
    workspace, contract = space(tmp_path), TestOnEmbeddings()
    dataset[2].path.write_bytes(b"no image")
    dataset = tagged(dataset)
    data = METHOD.prepare(settings, dataset, workspace)
    assert len(data) == 5 and [skipped.image_id for skipped in data.skipped] == [2]
    predictor = contract.reloaded(contract.roused(settings, dataset), tmp_path / "student", workspace)
    assert isinstance(predictor, EmbeddedPredictor)
    results = list(predictor.predict(sources_of(dataset), batch_size=3))
    assert [isinstance(result, Skipped) for result in results] == [False, False, True, False, False, False]
    assert sum(encoded) == encodings
    assert [type(each) for each in predictor.predict([source_of(0, dataset[2].path)])] == [Skipped]


def test_it_learns_and_answers_at_the_size_of_the_image(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    """A segmenter with random weights tells colours apart; images of any shape come back."""
    data = embedded_truth(models, dataset, tmp_path)
    contract = TestOnEmbeddings()
    network = contract.fresh(pyramid_settings(models), dataset).student
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(80):
        optimizer.zero_grad()
        network.loss(*data.random_views(0).__getitems__(range(6 * step, 6 * step + 6)))["loss"].backward()
        optimizer.step()
    segmenter = frozen_segmenter(str(models / "sam"))
    predictor = EmbeddedPredictor(network, dataset.vocabulary, segmenter, method="fma")
    hits, parts = 0, 0
    for row, result in enumerate(predictor.predict(sources_of(dataset))):
        assert isinstance(result, Segmentation)
        truth, found = true_map(dataset, row), result.to_label_map(3)
        assert found.shape == truth.shape
        hits += int(((found == truth) & (truth < 3)).sum())
        parts += int(((found < 3) | (truth < 3)).sum())
    assert hits / parts > 0.6


def test_probabilities_of_a_very_large_image_are_held_small(
    models: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weakly.methods.fma.embedded.MAX_VALUES", 4 * 20 * 32)
    network = TestOnEmbeddings().fresh(pyramid_settings(models), dataset).student
    segmenter = frozen_segmenter(str(models / "sam"))
    predictor = EmbeddedPredictor(network, dataset.vocabulary, segmenter, method="fma")
    probabilities = predictor.probabilities(torch.randn(4, 16, 16), segmenter.frame((40, 64)))
    assert probabilities.shape == (4, 20, 32)
    assert torch.allclose(probabilities.sum(0), torch.ones(20, 32), atol=1e-5)
    (result,) = predictor.predict(sources_of(dataset)[:1])
    assert isinstance(result, Segmentation) and result.size == (40, 64)


def test_the_description_gives_the_same_network(models: Path, dataset: Dataset) -> None:
    network = TestOnEmbeddings().fresh(pyramid_settings(models), dataset).student.eval()
    rebuilt = rebuild_network(json.loads(json.dumps(network.architecture())), 3).eval()
    assert isinstance(rebuilt, PyramidNetwork) and rebuilt.source == network.source
    rebuilt.load_state_dict(network.state_dict())
    embeddings = torch.randn(2, 32, 8, 8)
    assert torch.equal(rebuilt(embeddings), network(embeddings))
    assert network(embeddings).shape == (2, 4, *PYRAMID.cells((8, 8)))
    with pytest.raises(UserError, match="description is damaged"):
        rebuild_network({"kind": "pyramid", "settings": {"width": 32}}, 3)


def test_other_embeddings_are_refused(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    network = TestOnEmbeddings().fresh(pyramid_settings(models), dataset).student
    with pytest.raises(UserError, match="was trained on segmenter .*train again"):
        EmbeddedPredictor(network, dataset.vocabulary, tiny_segmenter(tmp_path / "other", seed=1), method="fma")
    with pytest.raises(ValueError, match="a pyramid looks at embeddings"):
        build_network(PYRAMID, 3)


@pytest.mark.parametrize("inference", [Inference(flip=True), Inference(scales=(0.5, 1.0))])
def test_an_image_is_looked_at_once(inference: Inference) -> None:
    with pytest.raises(UserError, match=r"settings\.network is pyramid.*leave out inference\.flip"):
        FmaSettings(network="pyramid", inference=inference)
    FmaSettings(network="deeplab", inference=inference)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("width", 48),
        ("width", 0),
        ("scales", ()),
        ("scales", (3,)),
        ("scales", (1, 2)),
        ("scales", (0.5,)),
        ("dropout", 1.0),
    ],
)
def test_impossible_sizes_are_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(UserError, match=rf"pyramid\.{field} is"):
        PyramidSettings(**{field: value})


@torch.no_grad()
def test_scores_are_the_sum_over_all_scales() -> None:
    """Every level counts; channels for the decoder are not seen."""
    torch.manual_seed(0)
    network = PyramidNetwork(PYRAMID, 3, EmbeddingSource("sam", "0", 8, 64)).eval()
    embeddings = torch.randn(1, 8, 4, 4)
    extra = torch.cat([embeddings, torch.randn(1, 3, 4, 4)], 1)
    assert torch.equal(network(extra), network(embeddings))
    levels = list(network.pyramid(embeddings).values())
    assert [tuple(level.shape[-2:]) for level in levels] == [(8, 8), (4, 4), (2, 2)]
    for level in network.pyramid.levels.values():
        before = network(embeddings)
        level[-1].weight.zero_()
        level[-1].bias.zero_()
        assert not torch.equal(network(embeddings), before)
