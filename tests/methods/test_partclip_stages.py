"""The stages of PartCLIPSeg as they are shown: whose parts are heat, how strong, and what was found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_partclip import SIDE, VOCABULARY, part_dataset, tiny_clipseg_folder, tiny_settings
from tiny_segmenter import sources_of

from weakly.data.dataset import Dataset
from weakly.engine.panels import read_panels, store_panels
from weakly.engine.runs import Run
from weakly.methods.base import Workspace
from weakly.methods.partclip import METHOD, PartClipSettings, untrained_student
from weakly.methods.partclip.names import part_names
from weakly.methods.partclip.stages import PARTS, found_panels, shown_parts, title_of
from weakly.vocabulary import Category, Vocabulary

C = len(VOCABULARY)
Trained = tuple[PartClipSettings, Dataset, Workspace]


def test_the_largest_parts_are_shown_seen_ones_first() -> None:
    """Categories 0, 1 of box; 2, 3 of disk; 4 of ring."""
    areas = {0: 5, 1: 9, 2: 20, 3: 0, 4: 2, C: 30, 255: 7}
    label_map = np.repeat(list(areas), list(areas.values())).astype(np.uint8)[None]
    assert shown_parts(label_map, VOCABULARY, ["disk"]) == [1, 0, 4, 2]
    assert shown_parts(label_map, VOCABULARY, ["box", "ring"]) == [2, 1, 0, 4]
    assert shown_parts(label_map, VOCABULARY, []) == [2, 1, 0], "three at most of each"
    assert shown_parts(np.full((2, 2), C), VOCABULARY, ["disk"]) == []
    assert title_of(2, VOCABULARY, ["disk"]) == "disk's head, unseen"
    assert title_of(2, VOCABULARY, ["fox"]) == "disk's head, seen"


def test_objects_are_numbered_by_their_parts_and_named_by_size() -> None:
    labels, objects = found_panels(np.array([[0, 1, 2], [3, 3, C]]), VOCABULARY)
    assert (labels.kind, objects.kind) == ("labels", "regions")
    assert labels.values.tolist() == [[0, 1, 2], [3, 3, C]] and labels.values.dtype == np.uint8
    assert objects.values.tolist() == [[1, 1, 2], [2, 2, 0]]
    assert objects.title == "objects found: disk, box"
    assert found_panels(np.array([[C]]), VOCABULARY)[1].title == "objects found: none"
    many = Vocabulary(tuple(Category(f"o{i}'s head", object=f"o{i}") for i in range(300)))
    labels, objects = found_panels(np.array([[299, 3, 4, 5, 300]]), many)
    assert labels.values.dtype == objects.values.dtype == np.uint16
    assert labels.values.tolist() == [[299, 3, 4, 5, 300]]
    assert objects.title.endswith(", ...") and objects.title.count(",") == 3


@pytest.fixture(scope="module", params=["partclip", "clipseg"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("stages")
    clipseg = tiny_clipseg_folder(folder / "clipseg")
    settings = tiny_settings(clipseg, architecture=request.param, unseen=("disk",), class_chunk=2)
    workspace = Workspace(run=folder / "run", features=folder / "features", feature_dtype="float32")
    untrained_student(workspace.run / "student", "box: head; fox: tail", settings, seed=4)
    return settings, part_dataset(folder / "images", 4), workspace


def test_what_is_shown_is_what_is_scored(run: Trained) -> None:
    settings, dataset, workspace = run
    shown = METHOD.panels(settings, dataset, workspace, [3, 0, 2])
    predictor = METHOD.load(workspace.run / "student", workspace).with_vocabulary(dataset.vocabulary)
    results = list(predictor.predict(sources_of(dataset)))
    for index, (found, objects, *heats) in zip((3, 0, 2), shown, strict=True):
        assert found.title == "parts found" and np.array_equal(found.values, results[index].to_label_map(C))
        owners = np.array([*part_names(dataset.vocabulary).object_of, -1]) + 1
        assert np.array_equal(objects.values, owners[found.values])
        whole, told = ("box", "seen") if index % 2 == 0 else ("disk", "unseen")
        truth = dataset.truth(index).to_label_map(C)
        there = sorted(np.unique(truth[truth < C]), key=lambda part: -(truth == part).sum())
        assert [heat.title for heat in heats] == [f"{dataset.vocabulary.names[part]}, {told}" for part in there]
        assert all(heat.title.startswith(whole) and heat.kind == "heat" for heat in heats)
        assert all(heat.values.shape == (SIDE, SIDE) and heat.values.dtype == np.uint8 for heat in heats)


def test_the_heat_is_the_sigmoid_of_the_part_s_own_mask(run: Trained) -> None:
    """Against all masks at once."""
    settings, dataset, workspace = run
    predictor = METHOD.load(workspace.run / "student", workspace).with_vocabulary(dataset.vocabulary)
    student, encoder = predictor.student, predictor.encoder
    with torch.no_grad():
        names = student.encode_names(encoder.clipseg, part_names(dataset.vocabulary))
        taps = encoder.taps(encoder.encode(encoder.preprocess([dataset.image(1)])))
        masks = student(taps, names)
        masks = masks if settings.architecture == "clipseg" else masks.class_logits
    (panels,) = METHOD.panels(settings, dataset, workspace, [1])
    heats = {panel.title.split(",")[0]: panel.values for panel in panels if panel.kind == "heat"}
    assert 2 <= len(heats) <= 2 * PARTS
    for name, heat in heats.items():
        expected = 255 * masks[0, dataset.vocabulary.names.index(name)].sigmoid()
        assert np.abs(expected.numpy() - heat).max() <= 0.5 + 1e-2
        assert len(np.unique(heat)) > 1


def test_without_truth_the_parts_that_were_found_are_shown(run: Trained) -> None:
    settings, dataset, workspace = run
    blind = replace(dataset, records=tuple(replace(record, truth=()) for record in dataset.records))
    for found, _, *heats in METHOD.panels(settings, blind, workspace, range(4)):
        wanted = shown_parts(found.values, dataset.vocabulary, settings.unseen)
        assert [heat.title for heat in heats] == [title_of(part, dataset.vocabulary, ["disk"]) for part in wanted]


def test_an_unreadable_image_and_an_untrained_run_have_no_stages(run: Trained, tmp_path: Path) -> None:
    settings, dataset, workspace = run
    broken = replace(dataset.records[0], sample=replace(dataset[0], path=tmp_path / "gone.png"))
    shown = METHOD.panels(settings, replace(dataset, records=(broken, dataset.records[1])), workspace, [0, 1])
    assert shown[0] == [] and len(shown[1]) > 2
    assert METHOD.panels(settings, dataset, replace(workspace, run=tmp_path), [0, 1]) == [[], []]


def test_panels_survive_their_folder(run: Trained, tmp_path: Path) -> None:
    settings, dataset, workspace = run
    (panels,) = METHOD.panels(settings, dataset, workspace, [1])
    store_panels(Run(tmp_path), "val", {7: panels})
    again = read_panels(Run(tmp_path), "val")[7]
    assert [(p.title, p.kind, p.values.tolist()) for p in again] == [
        (p.title, p.kind, p.values.tolist()) for p in panels
    ]
