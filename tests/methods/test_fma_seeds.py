"""Seed maps: which class goes where, what happens to strange images, and post-processing in the package's labels."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import tiny_clip
from tiny_fma import MASKS, tagged
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.automatic_masks import AutomaticMasks
from weakly.foundation.clip import Clip
from weakly.labels import Boxes, Points, Sample, Tags
from weakly.methods.dense_crf import CrfSettings
from weakly.methods.fma.affinity import map_scores, spread
from weakly.methods.fma.cam import GradCam
from weakly.methods.fma.masks import MaskStore
from weakly.methods.fma.model import manual_prompts
from weakly.methods.fma.refine import by_crf, by_masks
from weakly.methods.fma.seeds import Prompts, SeedMaker, seed_results, tag_matrix, tags_of
from weakly.methods.fma.settings import ClipEsSettings, FmaSettings, RefineSettings, SeedSettings, SuperpixelSettings
from weakly.methods.fma.superpixels import Superpixels, vote
from weakly.methods.semantic_targets import read_label_map
from weakly.segmentation import encode_masks
from weakly.vocabulary import Vocabulary

VOCABULARY = Vocabulary.from_names(("Red", "Green", "Blue"))
C = 3


@pytest.fixture(scope="module")
def clip() -> Clip:
    return tiny_clip()


@pytest.fixture(scope="module")
def masks(tmp_path_factory: pytest.TempPathFactory) -> MaskStore:
    folder = tmp_path_factory.mktemp("sam")
    return MaskStore(folder, tiny_segmenter(folder / "model"), MASKS)


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return tagged(rectangle_dataset(tmp_path / "images", 5))


@pytest.fixture(scope="module")
def prompts(clip: Clip) -> Prompts:
    return Prompts(manual_prompts(clip, ["cow", "dog", "bus", "grass", "tree"]), "manual")


def maker(
    clip: Clip, prompts: Prompts, settings: SeedSettings, masks: MaskStore | None = None, **common: Any
) -> SeedMaker:
    return SeedMaker(clip, prompts, VOCABULARY, settings, FmaSettings(**common), masks)


def samples(dataset: Dataset) -> list[Any]:
    return [(sample, sample.tags.labels, f"{index:032x}") for index, sample in enumerate(dataset)]


FINISHES = [
    SeedSettings(),
    SeedSettings(spread="cam"),
    SeedSettings(spread="none", average="signed"),
    SeedSettings(finish="argmax"),
    SeedSettings(finish="voting"),
    SeedSettings(finish="crf"),
    ClipEsSettings(),
]


@pytest.mark.parametrize("settings", FINISHES, ids=lambda s: f"{type(s).__name__}-{s.spread}-{s.finish}")
def test_a_seed_map_has_the_size_of_its_image_and_tagged_classes_alone(
    clip: Clip, prompts: Prompts, masks: MaskStore, dataset: Dataset, settings: SeedSettings
) -> None:
    stage = maker(clip, prompts, settings, masks)
    for sample in dataset:
        labels = stage.labels(read_image(sample.path), sample.tags.labels)
        assert labels.shape == sample.size and labels.dtype == np.uint8
        allowed = {*sample.tags.labels.tolist(), C} | ({255} if settings.confidence else set())
        assert set(np.unique(labels).tolist()) <= allowed
        settled = stage.without_void().labels(read_image(sample.path), sample.tags.labels)
        assert 255 not in settled
        assert np.array_equal(settled[labels != 255], labels[labels != 255])


def test_without_masks_the_class_that_scores_above_the_background_wins(
    clip: Clip, prompts: Prompts, dataset: Dataset
) -> None:
    """Section 7.2 by hand: bilinear to the image, score, background (1 - best)^p, argmax."""
    settings = SeedSettings(finish="argmax", background_power=3.0)
    image, tags = read_image(dataset[3].path), np.array([0, 2])
    stage = maker(clip, prompts, settings)
    features = clip.encode(clip.preprocess(image), 8)
    with torch.no_grad():
        maps = GradCam(clip, features.last_input, features.grid).maps(prompts.text, torch.tensor([[True, False, True]]))
    maps = spread(maps, features.attention[0], threshold=0.4)
    assert torch.allclose(stage.activations(image, tags), maps)
    scores = map_scores(torch.nn.functional.interpolate(maps[None], image.shape[:2], mode="bilinear")[0])
    best, label = scores.max(0)
    expected = torch.where(best > (1 - best) ** 3, torch.tensor([0, 2])[label], C)
    assert np.array_equal(stage.labels(image, tags), expected.numpy())


def test_an_image_without_tags_is_background_and_asks_no_model(
    clip: Clip, prompts: Prompts, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip, "encode", lambda *_, **__: pytest.fail("CLIP was asked"))
    stage = maker(clip, prompts, SeedSettings(finish="argmax"))
    assert (stage.labels(read_image(dataset[0].path), np.zeros(0, np.int64)) == C).all()


def test_an_image_without_masks_is_background_and_warned_of(
    clip: Clip, prompts: Prompts, masks: MaskStore, dataset: Dataset, caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    image = read_image(dataset[1].path)
    none = AutomaticMasks.from_rles(image.shape[:2], [], [], [], [])
    monkeypatch.setattr(masks, "of", lambda _: none)
    with caplog.at_level(logging.WARNING):
        labels = maker(clip, prompts, SeedSettings(), masks).labels(image, np.array([1]), "a.png")
    assert (labels == C).all()
    assert "a.png has no automatic mask" in caplog.text


def test_one_tag_and_two_masks_give_the_better_mask_to_the_class(
    clip: Clip, prompts: Prompts, masks: MaskStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built-in property of section 5.4: the best mask of a class is foreground, the worst one is not."""
    image = read_image(dataset[3].path)
    halves = np.zeros((2, *image.shape[:2]), bool)
    halves[0, :, :32], halves[1, :, 32:] = True, True
    two = AutomaticMasks.from_rles(image.shape[:2], encode_masks(halves), [2, 2], [1, 1], [1, 1])
    monkeypatch.setattr(masks, "of", lambda _: two)
    stage = maker(clip, prompts, SeedSettings(), masks)
    cam = torch.nn.functional.interpolate(
        stage.activations(image, np.array([2]))[None], image.shape[:2], mode="bilinear"
    )[0, 0].clamp(min=0)
    better = 0 if cam[:, :32].mean() > cam[:, 32:].mean() else 1
    labels = stage.labels(image, np.array([2]))
    assert (labels[halves[better]] == 2).all() and (labels[halves[1 - better]] == C).all()


def test_built_seed_maps_resume_and_end_with_the_same_bytes(
    clip: Clip, prompts: Prompts, masks: MaskStore, dataset: Dataset, tmp_path: Path
) -> None:
    stage = maker(clip, prompts, SeedSettings(), masks)
    whole = stage.build(tmp_path / "a", samples(dataset))

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stage.build(tmp_path / "b", samples(dataset), stop)
    early = {path: path.stat().st_mtime_ns for path in (tmp_path / "b").iterdir()}
    assert len(early) == 2
    again = stage.build(tmp_path / "b", samples(dataset))
    assert all(path.stat().st_mtime_ns == time for path, time in early.items())
    assert [path.read_bytes() for path in whole] == [path.read_bytes() for path in again]
    for sample, path in zip(dataset, whole, strict=True):
        assert np.array_equal(read_label_map(path, C), stage.labels(read_image(sample.path), sample.tags.labels))


def test_a_seed_map_belongs_to_image_tags_prompts_and_settings(
    clip: Clip, prompts: Prompts, masks: MaskStore, tmp_path: Path
) -> None:
    def name(stage: SeedMaker, key: str = "1", tags: tuple[int, ...] = (0,), size: tuple[int, int] = (4, 4)) -> str:
        return stage.path(tmp_path, Sample("cat/1", tmp_path / "x.png", size), np.array(tags), key).name

    base = maker(clip, prompts, SeedSettings(), masks)
    names = [
        name(base),
        name(base, key="2"),
        name(base, tags=(1,)),
        name(base, size=(5, 4)),
        name(maker(clip, Prompts(prompts.text, "other"), SeedSettings(), masks)),
        name(maker(clip, prompts, SeedSettings(alpha=0.5), masks)),
        name(maker(clip, prompts, SeedSettings(), masks, parity=True)),
        name(maker(clip, prompts, SeedSettings(), masks, superpixels=SuperpixelSettings(ratio=None))),
        name(maker(clip, prompts, SeedSettings(finish="crf"))),
    ]
    assert len(set(names)) == len(names) and all(name.startswith("cat_1-") for name in names)
    assert name(maker(clip, prompts, SeedSettings(), masks, crf=CrfSettings(iterations=1))) == names[0]


def test_seeds_by_masks_without_a_store_are_a_mistake_of_the_program(clip: Clip, prompts: Prompts) -> None:
    for finish in ("sams", "voting"):
        with pytest.raises(ValueError, match="need automatic masks"):
            maker(clip, prompts, SeedSettings(finish=finish))


def test_voting_asks_masks_about_the_map_without_masks(
    clip: Clip, prompts: Prompts, masks: MaskStore, dataset: Dataset
) -> None:
    stage = maker(clip, prompts, SeedSettings(finish="voting"), masks, superpixels=SuperpixelSettings(ratio=None))
    plain = maker(clip, prompts, SeedSettings(finish="argmax"))
    assert stage.identity != plain.identity
    image, tags = read_image(dataset[3].path), dataset[3].tags.labels
    before, after = plain.labels(image, tags), stage.labels(image, tags)
    found = torch.from_numpy(masks.of(image).masks())
    values = torch.from_numpy(np.searchsorted(tags, before.clip(max=C - 1)) + 1).where(torch.from_numpy(before != C), 0)
    expected = vote(values, Superpixels(found, torch.zeros(len(found), dtype=torch.int64))).numpy()
    assert np.array_equal(after, np.array([C, *tags])[expected])


def test_an_unreadable_image_stops_building_and_is_background_in_results(
    clip: Clip, prompts: Prompts, dataset: Dataset, tmp_path: Path
) -> None:
    stage = maker(clip, prompts, SeedSettings(finish="argmax"))
    dataset[1].path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train-1\.png"):
        stage.build(tmp_path / "seeds", samples(dataset))
    keys = [f"{index:032x}" for index in range(4)] + [None]
    tags = [sample.tags.labels for sample in dataset]
    results = list(seed_results(stage, dataset, tmp_path / "seeds", tags, keys, "clip-es"))
    assert [result.size for result in results] == [sample.size for sample in dataset]
    assert all((results[i].label_map == C).all() and len(results[i]) == 0 for i in (0, 1, 4))
    assert results[3].provenance and results[3].provenance[0] == {"method": "clip-es", "row": "seeds"}


def test_tags_are_given_or_implied(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    assert tags_of(Sample(0, path, (4, 4))) is None
    assert tags_of(Sample(0, path, (4, 4), tags=Tags([]))).tolist() == []
    boxes, points = Boxes(np.zeros((2, 4)), [2, 0]), Points(np.zeros((1, 2)), [2])
    assert tags_of(Sample(0, path, (4, 4), boxes=boxes, points=points)).tolist() == [0, 2]
    assert tags_of(Sample(0, path, (4, 4), boxes=boxes, tags=Tags([1]))).tolist() == [1], "what is stated wins"
    matrix = tag_matrix([np.array([0, 2]), np.zeros(0, np.int64)], 3)
    assert matrix.tolist() == [[True, False, True], [False, False, False]]


def probabilities(labels: np.ndarray, certain: float = 0.9) -> torch.Tensor:
    """(C + 1, H, W): ``certain`` for the label, the rest shared."""
    hot = torch.nn.functional.one_hot(torch.from_numpy(labels.astype(np.int64)), C + 1).permute(2, 0, 1).float()
    return hot * certain + (1 - hot) * (1 - certain) / C


@pytest.mark.parametrize("uncovered", ["prediction", "background"])
def test_masks_refine_predictions_in_the_packages_labels(
    masks: MaskStore, monkeypatch: pytest.MonkeyPatch, uncovered: Any
) -> None:
    """The majority inside a mask wins it: a class, or the background, whose index is C."""
    labels = np.full((20, 30), C, np.uint8)
    labels[2:8, 2:8], labels[2, 2], labels[12:18, 20:28] = 1, C, 2
    shapes = np.zeros((2, 20, 30), bool)
    shapes[0, 2:8, 2:8], shapes[1, 10:20, 0:15] = True, True
    found = AutomaticMasks.from_rles((20, 30), encode_masks(shapes), [2, 2], [1, 1], [1, 1])
    monkeypatch.setattr(masks, "of", lambda _: found)
    refine = by_masks(masks, RefineSettings(by="sams", uncovered=uncovered), SuperpixelSettings())
    refined = np.asarray(refine(np.zeros((20, 30, 3), np.uint8), probabilities(labels)))
    expected = labels.copy()
    expected[2, 2] = 1
    if uncovered == "background":
        expected[12:18, 20:28] = C
    assert np.array_equal(refined, expected)


def test_masks_refine_where_no_pixel_is_background(masks: MaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Released code shifts all labels by one here (section 6, defect a)."""
    labels = np.zeros((10, 10), np.uint8)
    labels[:, 5:] = 2
    none = AutomaticMasks.from_rles((10, 10), [], [], [], [])
    monkeypatch.setattr(masks, "of", lambda _: none)
    refine = by_masks(masks, RefineSettings(by="sams"), SuperpixelSettings())
    assert np.array_equal(np.asarray(refine(np.zeros((10, 10, 3), np.uint8), probabilities(labels))), labels)


def test_the_crf_moves_a_prediction_to_the_edge_of_its_image() -> None:
    image = np.zeros((24, 24, 3), np.uint8)
    image[:, 12:] = 200
    labels = np.full((24, 24), C, np.uint8)
    labels[:, 14:] = 1
    refined = np.asarray(by_crf(CrfSettings())(image, probabilities(labels, 0.6)))
    assert (refined[:, 12:] == 1).all() and (refined[:, :12] == C).all()


def test_masks_are_read_from_the_store_by_pixels(
    masks: MaskStore, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks.build([dataset[0].path])
    monkeypatch.setattr("weakly.methods.fma.masks.generate_masks", lambda *_: pytest.fail("segmented again"))
    image = np.asarray(Image.open(dataset[0].path).convert("RGB"))
    refine = by_masks(masks, RefineSettings(by="sams"), SuperpixelSettings())
    labels = np.full(image.shape[:2], C, np.uint8)
    assert np.asarray(refine(image, probabilities(labels))).shape == image.shape[:2]
