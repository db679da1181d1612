"""Tables of FMA-WSSS: rows depart from the recipe in what the paper names, and the paper's figures fit its claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from weakly.engine.orderings import Measured, judge
from weakly.engine.recipe import Recipe, load_recipe
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.methods.fma.presets import PRESETS
from weakly.methods.fma.settings import FmaSettings
from weakly.methods.fma.tables import paper_tables
from weakly.methods.tables import Measure, Tables

MENAGERIE = Path(__file__).parents[2] / "recipes" / "fma" / "menagerie-tags.yaml"


def places(tables: Tables) -> dict[str, Measure]:
    return {
        f"{table.number}/{place}": cell.measure
        for table in tables.tables
        for place, cell in table.places()
        if cell.measure is not None
    }


@pytest.fixture(scope="module")
def base() -> Recipe:
    return load_recipe(MENAGERIE)


@pytest.fixture(scope="module")
def cells(base: Recipe) -> dict[str, Recipe]:
    found = places(paper_tables(base.settings)).items()
    return {place: changed(MENAGERIE, measure.changed()) for place, measure in found}


def changed(path: Path, changes: dict[str, Any]) -> Recipe:
    return load_recipe(path, [(key, json.dumps(value)) for key, value in changes.items()])


def settings_of(cells: dict[str, Recipe], place: str) -> FmaSettings:
    return cells[place].settings


def test_the_published_figures_fit_every_claim_of_the_paper() -> None:
    tables = paper_tables(FmaSettings()).tables
    assert [table.number for table in tables] == list("123456")
    for table in tables:
        figures = {place: Measured({0: cell.published}) for place, cell in table.places()}
        verdicts = {judgement.ordering.claim: judgement.verdict for judgement in judge(table, figures)}
        assert verdicts and set(verdicts.values()) == {"reproduced"}, verdicts


@pytest.mark.parametrize("preset", PRESETS)
def test_every_cell_is_a_recipe_under_every_preset(preset: str, tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(f"method: fma\npreset: {preset}\ndata: {{kind: voc, root: VOC2012}}\n")
    tables = paper_tables(load_recipe(path).settings)
    for measure in places(tables).values():
        assert isinstance(changed(path, measure.changed(repetition=2)).settings, FmaSettings)
    small = changed(path, dict(tables.small)).settings
    assert small.classification.updates <= 600 and small.segmentation.updates <= 600


def test_the_full_model_is_the_recipe_itself_wherever_it_stands(base: Recipe, cells: dict[str, Recipe]) -> None:
    for place in ("1/m3", "2/nameless", "4/caa-sams", "5/mcl-cal", "6/FMA-WSSS:Seed"):
        assert cells[place] == base, place
    assert cells["1/m1"] == cells["5/mcl"]
    assert cells["4/cam"] == cells["6/FMA-WSSS:CAM"]


def test_table_4_changes_fine_seeds_alone(base: Recipe, cells: dict[str, Recipe]) -> None:
    """So all its rows share the prompts of the full model."""
    for place in (place for place in cells if place.startswith("4/")):
        plain, theirs = to_plain(cells[place].settings), to_plain(base.settings)
        different = {key for key in plain if plain[key] != theirs[key]}
        assert different <= {"fine", "fine_masks", "fine_superpixels"}, place
    masks = {row: settings_of(cells, f"4/{row}").for_fine.masks for row in ("plain", "more-whole", "priority", "both")}
    offsets = {row: (m.whole_iou_offset > 0, m.whole_nms_offset > 0) for row, m in masks.items()}
    assert offsets == {
        "plain": (False, False),
        "more-whole": (True, False),
        "priority": (False, True),
        "both": (True, True),
    }
    ratios = {row: settings_of(cells, f"4/{row}").for_fine.superpixels.ratio for row in ("voting", "both", "filter")}
    assert ratios == {"voting": None, "both": None, "filter": 0.3}
    spreads = {row: settings_of(cells, f"4/{row}").fine.spread for row in ("cam", "caa", "filter", "caa-sams")}
    assert spreads == {"cam": "none", "caa": "score", "filter": "none", "caa-sams": "score"}


def test_variants_without_segmentation_prompts_make_their_seeds_as_the_coarse_ones(cells: dict[str, Recipe]) -> None:
    for place in ("1/m0", "1/m1", "5/bce"):
        settings = settings_of(cells, place)
        assert settings.segmentation is None
        assert (settings.fine.spread, settings.fine.threshold) == (settings.coarse.spread, settings.coarse.threshold)
    assert settings_of(cells, "1/m0").fine.finish == "crf"
    assert settings_of(cells, "5/bce").classification.loss == "bce"
    m2 = settings_of(cells, "1/m2")
    assert (m2.coarse.finish, m2.fine.finish, m2.coarse.confidence) == ("crf", "crf", 0.95)
    assert m2.seed_masks == ()


def test_networks_train_once_for_their_three_rows(base: Recipe) -> None:
    measures = places(paper_tables(base.settings))
    for network in ("deeplab", "mask2former"):
        trained = [changed(MENAGERIE, measures[f"3/{network}-{by}"].before()) for by in ("none", "crf", "sams")]
        assert trained[0] == trained[1] == trained[2]
        assert trained[0].settings.network == network and trained[0].settings.refine.by == "none"
    assert changed(MENAGERIE, measures["3/deeplab-none"].changed()).optimisation == base.optimisation
    assert changed(MENAGERIE, measures["3/mask2former-crf"].changed()).optimisation.grad_clip == 0.01


def test_repetitions_move_the_prompts_that_a_row_has(base: Recipe) -> None:
    measures = places(paper_tables(base.settings))
    assert changed(MENAGERIE, measures["1/m1"].changed(2)).settings.segmentation is None
    again = changed(MENAGERIE, measures["1/m3"].changed(2)).settings
    assert (again.classification.seed, again.segmentation.seed, again.segmentation.order_seed) == (2, 2, 2)
    assert measures["1/clip-es"].changed(2) == {}, "nothing in manual prompts is drawn by chance"


def test_a_recipe_without_segmentation_prompts_is_no_full_model() -> None:
    with pytest.raises(UserError, match="remove that key"):
        paper_tables(FmaSettings(segmentation=None))
