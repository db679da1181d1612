"""The pseudo-mask baseline keeps every promise of a method, on pseudo-masks and on true ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import MethodContract
from tiny_maskformer import RESNET, SWIN, tiny_settings
from tiny_segmenter import rectangle_dataset, sources_of, tiny_sam_folder

from weakly.data.dataset import Dataset, Record
from weakly.engine.recipe import load_recipe
from weakly.errors import UserError
from weakly.methods.base import ImageSource, Learner, StageDone, Workspace, find_method
from weakly.methods.baselines.everything import EverythingSettings
from weakly.methods.baselines.pseudo_mask import METHOD, PseudoMaskSettings
from weakly.methods.frozen import frozen_segmenter
from weakly.methods.image_views import Augmentation
from weakly.methods.optimisation import Optimisation


@pytest.fixture(scope="module")
def segmenter_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sam_folder(tmp_path_factory.mktemp("sam"))


class TestPseudoMask(MethodContract):
    method = METHOD
    optimisation = Optimisation(
        lr=1e-3, optimizer="adamw", warmup_steps=0, epochs=2, batch_size=4, schedule="constant", seed=3
    )

    @pytest.fixture(params=["box", "mask"])
    def settings(self, segmenter_folder: Path, request: pytest.FixtureRequest) -> PseudoMaskSettings:
        network: Any = RESNET if request.param == "box" else SWIN
        references = ("box", "point+box:best-true") if request.param == "box" else ()
        return tiny_settings(segmenter_folder, supervision=request.param, maskformer=network, references=references)

    @pytest.fixture
    def dataset(self, tmp_path: Path) -> Dataset:
        return rectangle_dataset(tmp_path / "images", 6)

    @pytest.fixture
    def sources(self, dataset: Dataset) -> list[ImageSource]:
        return sources_of(dataset)

    def frozen(self, settings: PseudoMaskSettings, workspace: Workspace) -> torch.nn.Module:
        return frozen_segmenter(settings.segmenter, workspace.device, pad=settings.pad)

    def silence(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.net.class_predictor.bias[-2] += 1e4

    def rouse(self, learner: Learner) -> None:
        with torch.no_grad():
            learner.student.net.class_predictor.bias[-2] -= 1e2


def space(folder: Path, **changes: Any) -> Workspace:
    return Workspace(run=folder / "run", features=folder / "features", **changes)


def test_it_is_found_by_its_name() -> None:
    assert find_method("pseudo-mask") is METHOD


def test_what_it_cannot_learn_from_is_refused(segmenter_folder: Path, tmp_path: Path) -> None:
    dataset = rectangle_dataset(tmp_path, 3)
    bare = replace(dataset, records=tuple(Record(replace(sample, boxes=None)) for sample in dataset))
    with pytest.raises(UserError, match="has no boxes, which pseudo-masks are made from"):
        METHOD.prepare(tiny_settings(segmenter_folder), bare, space(tmp_path))
    with pytest.raises(UserError, match="has no true masks"):
        METHOD.prepare(tiny_settings(segmenter_folder, supervision="mask"), bare, space(tmp_path))
    with pytest.raises(UserError, match="give box or mask"):
        tiny_settings(segmenter_folder, supervision="point")
    with pytest.raises(UserError, match="names 'boxes'; give some of box, "):
        tiny_settings(segmenter_folder, references=("boxes",))


def test_its_automatic_masks_are_as_the_settings_say(segmenter_folder: Path, tmp_path: Path) -> None:
    dataset = rectangle_dataset(tmp_path, 3)
    settings = tiny_settings(segmenter_folder, references=("everything",))
    loose = replace(settings, automatic_masks=replace(settings.automatic_masks, iou_threshold=0.1))
    scores = [METHOD.references(one, dataset, space(tmp_path))[0].identity() for one in (settings, loose)]
    assert scores[0] != scores[1]


def test_one_changed_key_leaves_the_rest_of_a_preset_as_it_is() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "wps" / "baselines" / "pseudo-mask.yaml"
    changes = [("settings.augmentation.crop", "256"), ("settings.automatic_masks.points_per_side", "8")]
    paper = load_recipe(recipe, [("preset", "paper"), *changes]).settings
    assert paper.augmentation == Augmentation(crop=256, short=1024, long=4096, cat_max_ratio=1.0)
    assert paper.automatic_masks == EverythingSettings(points_per_side=8)
    assert (paper.automatic_masks.iou_threshold, paper.automatic_masks.crop_layers) == (0.88, 0)


def test_it_stops_after_the_label_maps(segmenter_folder: Path, tmp_path: Path) -> None:
    dataset = rectangle_dataset(tmp_path, 3)
    with pytest.raises(StageDone):
        METHOD.prepare(tiny_settings(segmenter_folder), dataset, space(tmp_path, until="label-maps"))
    assert len(list((tmp_path / "features" / "label-maps").rglob("*.png"))) == 3


def test_a_trained_run_shows_its_pseudo_masks(segmenter_folder: Path, tmp_path: Path) -> None:
    dataset, settings, workspace = rectangle_dataset(tmp_path, 4), tiny_settings(segmenter_folder), space(tmp_path)
    dataset[2].path.write_bytes(b"no image")
    shown = METHOD.panels(settings, dataset, workspace, [3, 2])
    assert [[panel.title for panel in panels] for panels in shown] == [["pseudo-mask"], []]
    assert shown[0][0].values.shape == dataset[3].size and set(np.unique(shown[0][0].values)) <= {0, 1, 2, 3}
    assert METHOD.panels(replace(settings, supervision="mask"), dataset, workspace, [3]) == [[]]
