"""The stages of FMA-WSSS as they are shown: which mask is seen where, how strong a map is, and whose map it is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_fma import tagged, tiny_models, tiny_settings
from tiny_segmenter import rectangle_dataset

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.automatic_masks import PART, SUB_PART, WHOLE
from weakly.labels import Tags
from weakly.methods.base import Workspace
from weakly.methods.fma import METHOD
from weakly.methods.fma.pipeline import Pipeline
from weakly.methods.fma.settings import FmaSettings
from weakly.methods.fma.stages import heat, regions
from weakly.methods.fma.superpixels import Superpixels


def columns(*spans: tuple[int, int]) -> torch.Tensor:
    """(S, 1, 6) bool masks of column ranges."""
    masks = torch.zeros(len(spans), 1, 6, dtype=torch.bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[:, start:stop] = True
    return masks


def test_parts_are_seen_on_wholes_and_small_masks_on_large_ones() -> None:
    masks = columns((3, 4), (0, 5), (0, 2), (1, 5))
    levels = torch.tensor([SUB_PART, WHOLE, PART, PART])
    assert regions(Superpixels(masks, levels)).tolist() == [[3, 3, 4, 1, 4, 0]]
    assert regions(Superpixels(masks, torch.full((4,), WHOLE))).tolist() == [[3, 3, 4, 1, 4, 0]]
    assert regions(Superpixels(masks[:0], levels[:0])).tolist() == [[0] * 6]


def test_a_map_is_as_strong_as_its_positive_values() -> None:
    shown = heat(torch.tensor([[-3.0, 0.0], [1e-6, 2e-6]]))
    assert shown.dtype == np.uint8 and shown.tolist() == [[0, 0], [128, 255]]
    assert heat(torch.full((2, 2), -1.0)).max() == 0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[FmaSettings, Dataset, Workspace]:
    folder = tmp_path_factory.mktemp("stages")
    torch.set_num_threads(1)
    settings = tiny_settings(tiny_models(folder / "models"))
    dataset = tagged(rectangle_dataset(folder / "images", 8))
    workspace = Workspace(run=folder / "run", features=folder / "features")
    METHOD.prepare(settings, dataset, workspace)
    return settings, dataset, workspace


def test_the_map_is_that_of_the_class_with_most_of_the_fine_seed(
    trained: tuple[FmaSettings, Dataset, Workspace],
) -> None:
    settings, dataset, workspace = trained
    shown = METHOD.panels(settings, dataset, workspace, [3, 1, 0])
    assert len(shown) == 3 and shown[2] == [], "image 0 shows nothing according to its tags"
    for index, panels in zip((3, 1), shown[:2], strict=True):
        tags, (cam, spread, _, coarse, fine) = dataset[index].tags.labels, panels
        counts = {dataset.vocabulary.names[tag]: (fine.values == tag).sum() for tag in tags}
        name = cam.title.removeprefix("CAM of ")
        assert counts[name] == max(counts.values()) and spread.title == f"{cam.title} after affinity"
        assert cam.values.shape == spread.values.shape
        assert {*np.unique(coarse.values), *np.unique(fine.values)} <= {*tags, 3}
        scores = {score.extra["row"]: score for score in METHOD.references(settings, dataset, workspace)[1:]}
        for row, panel in (("coarse-seeds", coarse), ("seeds", fine)):
            assert np.array_equal(list(scores[row].results())[index].label_map, panel.values), "what is scored"


def test_maps_are_shown_before_and_after_the_affinity(trained: tuple[FmaSettings, Dataset, Workspace]) -> None:
    settings, dataset, workspace = trained
    maker = Pipeline(settings, dataset.vocabulary, workspace).maker("fine")
    shown = METHOD.panels(settings, dataset, workspace, range(8))
    pairs = [(dataset.image(i), dataset[i].tags.labels, panels) for i, panels in enumerate(shown) if panels]
    for image, tags, (cam, spread, *_) in pairs:
        names = [dataset.vocabulary.names[tag] for tag in tags]
        after = maker.activations(image, tags)[names.index(cam.title.removeprefix("CAM of "))]
        assert np.array_equal(spread.values, heat(after))
    assert any((cam.values != spread.values).any() for _, _, (cam, spread, *_) in pairs), "it does something"


def test_stages_that_the_settings_leave_out_are_not_shown(
    trained: tuple[FmaSettings, Dataset, Workspace],
) -> None:
    settings, dataset, workspace = trained
    plain = replace(settings.fine, spread="none", finish="argmax")
    titles = [panel.title for panel in METHOD.panels(replace(settings, fine=plain), dataset, workspace, [3])[0]]
    assert [title.split(" of ")[0] for title in titles] == ["CAM", "coarse seed", "fine seed"]
    alone = METHOD.panels(replace(settings, segmentation=None), dataset, workspace, [3])[0]
    assert [panel.kind for panel in alone] == ["heat", "heat", "regions", "labels"]


def test_an_unreadable_image_has_no_stages_and_an_untrained_run_is_one_sentence(
    trained: tuple[FmaSettings, Dataset, Workspace], tmp_path: Path
) -> None:
    settings, dataset, workspace = trained
    broken = replace(dataset[1], path=tmp_path / "gone.png", tags=Tags([0]))
    records = (dataset.records[3], replace(dataset.records[1], sample=broken))
    shown = METHOD.panels(settings, replace(dataset, records=records), workspace, [0, 1])
    assert shown[0] and not shown[1]
    with pytest.raises(UserError, match="holds no classification prompts"):
        METHOD.panels(settings, dataset, replace(workspace, run=tmp_path), [3])
    assert Pipeline(settings, dataset.vocabulary, workspace).trained()
