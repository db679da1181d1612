"""Students on the segmenter's embeddings keep every promise, and see the same instances as students on pixels."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_weaksam_contract
import torch
from test_weaksam_contract import space
from tiny_segmenter import sources_of, tiny_sam_folder, tiny_segmenter
from tiny_students import RCNN
from tiny_weaksam import tagged_objects, tiny_settings

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.sam import SamSegmenter
from weakly.methods.embedding import EmbeddingSource
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.weaksam import METHOD
from weakly.methods.weaksam.augment import Augmentation
from weakly.methods.weaksam.detectors import Detector, DetectorSettings, FasterRcnn
from weakly.methods.weaksam.embedded import EmbeddedData, EmbeddedPredictor
from weakly.methods.weaksam.predictor import Inference
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.students import build_student, rebuild_student
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

ON_SEGMENTER = replace(RCNN, backbone="segmenter")
NOWHERE = EmbeddingSource("nowhere", "0" * 64, 32, 64)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    tiny_sam_folder(folder / "sam")
    return folder


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tagged_objects(tmp_path / "images", 6)


def embedded_settings(models: Path, student: str = "faster_rcnn", flip: float = 0.5) -> WeakSamSettings:
    augmentation = Augmentation(side=64, flip=flip)
    return tiny_settings(models, student=student, detector=ON_SEGMENTER, augmentation=augmentation, truth="true-boxes")


def embedded_data(models: Path, dataset: Dataset, folder: Path, student: str = "faster_rcnn") -> EmbeddedData:
    data = METHOD.prepare(embedded_settings(models, student), dataset, space(folder))
    assert isinstance(data, EmbeddedData)
    return data


class TestOnEmbeddings(test_weaksam_contract.TestWeakSam):
    @pytest.fixture
    def settings(self, models: Path) -> WeakSamSettings:
        return tiny_settings(models, detector=ON_SEGMENTER)


@pytest.mark.parametrize("student", ["faster_rcnn", "mask_rcnn"])
def test_a_view_is_the_whole_image_as_it_is_or_mirrored(
    models: Path, dataset: Dataset, tmp_path: Path, student: str
) -> None:
    data = embedded_data(models, dataset, tmp_path, student)
    segmenter = frozen_segmenter(str(models / "sam"))
    whole, views = data.__getitems__(range(6)), data.random_views(3).__getitems__(range(12, 18))
    seen = set()
    for row, sample in enumerate(dataset):
        image, size, content = read_image(sample.path), sample.size, segmenter.frame(sample.size).content
        plain, mirrored = (segmenter.encode(segmenter.preprocess([each]))[0] for each in (image, image[:, ::-1]))
        assert (whole.inputs[row] - plain).abs().max() < 2e-2, "coded as float16"
        is_mirrored = bool((views.inputs[row] - mirrored).abs().max() < (views.inputs[row] - plain).abs().max())
        seen.add(is_mirrored)
        assert (views.inputs[row] - (mirrored if is_mirrored else plain)).abs().max() < 2e-2
        assert whole.sizes[row] == views.sizes[row] == content
        boxes = data.instances[row].boxes.copy()
        if is_mirrored:
            boxes[:, [0, 2]] = size[1] - boxes[:, [2, 0]]
        framed = boxes * np.array([content[1] / size[1], content[0] / size[0]] * 2, np.float32)
        # Masks are cut by the nearest pixel, boxes are not.
        assert np.allclose(views.targets[row].boxes, framed, atol=1e-4 if student == "faster_rcnn" else 1.0)
        masks = views.targets[row].masks
        assert (masks is None) == (student == "faster_rcnn")
        if masks is not None:
            assert masks.shape[1:] == (64, 64)
            assert not masks[:, content[0] :].any() and not masks[:, :, content[1] :].any()
    assert seen == {False, True}
    again = data.random_views(3)[15]
    assert torch.equal(again.inputs[0], views.inputs[3]), "a view depends on seed, view and image alone"
    with pytest.raises(IndexError, match="index 6 of 6 images"):
        data[6]


@pytest.mark.parametrize(("flip", "encodings"), [(0.0, 5), (0.5, 10)])
def test_images_are_encoded_once_and_mirrored_ones_once_more(
    models: Path,
    dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flip: float,
    encodings: int,
) -> None:
    encoded: list[int] = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    workspace, contract = space(tmp_path), TestOnEmbeddings()
    dataset[2].path.write_bytes(b"no image")
    settings = replace(embedded_settings(models, flip=flip), truth="pseudo")
    data = METHOD.prepare(settings, dataset, workspace)
    assert len(data) == 5 and [skipped.image_id for skipped in data.skipped] == [2]
    predictor = contract.reloaded(contract.roused(settings, dataset), tmp_path / "student", workspace)
    assert isinstance(predictor, EmbeddedPredictor)
    results = [r for r in predictor.predict(sources_of(dataset), batch_size=3) if isinstance(r, Segmentation)]
    assert [len(results), sum(encoded)] == [5, encodings]
    assert {origin["mask"] for result in results for origin in result.provenance} <= {"segmenter", "box"}


@pytest.mark.parametrize("student", ["faster_rcnn", "mask_rcnn"])
def test_every_parameter_learns_and_the_folder_gives_the_same_student(
    models: Path, dataset: Dataset, tmp_path: Path, student: str
) -> None:
    data, settings = embedded_data(models, dataset, tmp_path, student), embedded_settings(models, student)
    learner = TestOnEmbeddings().fresh(settings, dataset)
    network: Detector = learner.student
    losses = network.loss(*data.random_views(0).__getitems__(range(6)), step=0)
    losses["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    rebuilt = rebuild_student(json.loads(json.dumps(network.architecture())), 3)
    rebuilt.load_state_dict(network.state_dict())
    batch, originals = data.__getitems__([1, 2]), [(48, 32), (50, 90)]
    for mine, theirs in zip(
        network.eval().predict(batch.inputs, batch.sizes, originals),
        rebuilt.eval().predict(batch.inputs, batch.sizes, originals),
        strict=True,
    ):
        assert np.array_equal(mine.boxes, theirs.boxes)
        assert len(mine.labels) and (mine.rles is not None) == (student == "mask_rcnn")


def test_a_detector_on_embeddings_learns_where_things_are(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    """A segmenter with random weights tells colours apart; boxes come back in pixels of images of any shape."""
    data = embedded_data(models, dataset, tmp_path)
    learner = TestOnEmbeddings().fresh(embedded_settings(models), dataset)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=3e-3)
    torch.manual_seed(0)
    learner.train()
    for step in range(60):
        optimizer.zero_grad()
        batch = data.random_views(0).__getitems__(range(6 * step, 6 * step + 6))
        learner.student.loss(*batch, None)["loss"].backward()
        optimizer.step()
    segmenter = frozen_segmenter(str(models / "sam"))
    names = Vocabulary.from_names(("Red", "Green", "Blue"))
    predictor = EmbeddedPredictor(learner.student, names, Inference(boxes_to_masks="box"), segmenter)
    hits = []
    for row, result in enumerate(predictor.predict(sources_of(dataset))):
        assert isinstance(result, Segmentation)
        assert all(origin["mask"] == "box" for origin in result.provenance)
        for box in data.instances[row].boxes:
            corners = np.maximum(result.boxes[:, :2], box[:2]), np.minimum(result.boxes[:, 2:], box[2:])
            shared = (corners[1] - corners[0]).clip(0).prod(1)
            areas = (result.boxes[:, 2:] - result.boxes[:, :2]).prod(1) + (box[2:] - box[:2]).prod()
            hits.append((shared / (areas - shared)).max(initial=0) > 0.5)
    assert np.mean(hits) > 0.6


def test_other_embeddings_are_refused(models: Path, dataset: Dataset, tmp_path: Path) -> None:
    other = tiny_segmenter(tmp_path / "other", seed=1)
    names = Vocabulary.from_names(("Red", "Green", "Blue"))
    student = TestOnEmbeddings().fresh(embedded_settings(models), dataset).student
    with pytest.raises(UserError, match="was trained on segmenter .*train again"):
        EmbeddedPredictor(student, names, Inference(), other)
    on_pixels = build_student("faster_rcnn", RCNN, 3)
    with pytest.raises(ValueError, match="this faster_rcnn looks at pixels"):
        EmbeddedPredictor(on_pixels, names, Inference(), other)
    for settings, source in ((RCNN, NOWHERE), (ON_SEGMENTER, None)):
        with pytest.raises(ValueError, match="backbone .* and embeddings of"):
            FasterRcnn(settings, 3, source)


def test_settings_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UserError, match=r"looks at an image once, not 2 times; give one inference\.short"):
        WeakSamSettings(detector=ON_SEGMENTER, inference=Inference((64,), 64, flip=True))
    WeakSamSettings(student="rt_detr", detector=ON_SEGMENTER, inference=Inference((64,), 64, flip=True))
    with pytest.raises(UserError, match=r"detector\.weights are of a ResNet.*leave one of them out"):
        DetectorSettings(backbone="segmenter", weights="IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"detector\.anchors has 5 sides, but the pyramid 3 levels"):
        DetectorSettings(backbone="segmenter", scales=(2, 1, 0.5))
    with pytest.raises(UserError, match=r"detector\.scales is \[3\]; give powers of two"):
        DetectorSettings(scales=(3,))
