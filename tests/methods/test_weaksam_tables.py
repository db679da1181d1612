"""Tables and presets of WeakSAM: rows change what they name and nothing else, published figures fit the claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weakly.engine.orderings import Measured, judge
from weakly.engine.recipe import Recipe, load_recipe
from weakly.engine.typed import to_plain
from weakly.methods.tables import Measure, Tables
from weakly.methods.weaksam import METHOD
from weakly.methods.weaksam.presets import PRESETS
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.students import build_student
from weakly.methods.weaksam.tables import paper_tables
from weakly.methods.weaksam.wsod_settings import WsodSettings, oicr_settings

PUBLISHED = ("1", "2", "3")
RECIPE = """\
method: weaksam
data: {kind: voc-instances, root: world}
settings:
  clues: {train: {epochs: 40}}
  proposals: {grid: {side: 12}}
  wsod: {head: oicr, mining: near_top, branch_weights: [1.0, 1.0, 1.0], drop_block: null, width: 512}
  wsod_training: {iterations: 2000, steps: [1400, 1800], warmup: 100}
  wsod_inference: {sizes: [256], max_size: 512}
  detector: {backbone: resnet18, drop: {start: 500}}
optimisation: {optimizer: adamw, lr: 1.0e-3, weight_decay: 1.0e-2, warmup_steps: 100, epochs: 12, batch_size: 8}
"""


def places(tables: Tables) -> dict[str, Measure]:
    return {
        f"{table.number}/{place}": cell.measure
        for table in tables.tables
        for place, cell in table.places()
        if cell.measure is not None
    }


def changed(path: Path, changes: dict[str, Any]) -> Recipe:
    return load_recipe(path, [(key, json.dumps(value)) for key, value in changes.items()])


def with_preset(preset: str, folder: Path) -> Path:
    path = folder / f"{preset}.yaml"
    path.write_text(f"method: weaksam\npreset: {preset}\ndata: {{kind: voc-instances, root: VOC2012}}\n")
    return path


def different(one: object, other: object, prefix: str = "") -> set[str]:
    """Dotted keys of two plain settings that are not the same."""
    a, b = one, other
    if not (isinstance(a, dict) and isinstance(b, dict)):
        return set() if a == b else {prefix}
    found = [different(a.get(k), b.get(k), f"{prefix}.{k}" if prefix else k) for k in a.keys() | b.keys()]
    return set().union(*found)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "weaksam.yaml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def base(path: Path) -> Recipe:
    return load_recipe(path)


@pytest.fixture(scope="module")
def measures(base: Recipe) -> dict[str, Measure]:
    return places(paper_tables(base.settings))


@pytest.fixture(scope="module")
def cells(path: Path, measures: dict[str, Measure]) -> dict[str, Recipe]:
    return {place: changed(path, measure.changed()) for place, measure in measures.items()}


def test_the_published_figures_fit_every_claim_of_the_published_tables() -> None:
    tables = {table.number: table for table in METHOD.tables(WeakSamSettings()).tables}
    assert list(tables) == [*PUBLISHED, "A", "B", "C"]
    for number in PUBLISHED:
        table = tables[number]
        figures = {place: Measured({0: cell.published}) for place, cell in table.places() if cell.published is not None}
        verdicts = {judgement.ordering.claim: judgement.verdict for judgement in judge(table, figures)}
        assert verdicts and set(verdicts.values()) == {"reproduced"}, verdicts
        assert all(cell.published is None or 0 < cell.published < 1 for _, cell in table.places())
    for table in tables.values():
        assert table.orderings
        if table.number not in PUBLISHED:
            assert all(cell.published is None and cell.measure for _, cell in table.places()), "nothing is made up"


def test_figures_stand_under_their_headings() -> None:
    """A few, as the project page has them."""
    tables = {t.number: dict(t.places()) for t in paper_tables(WeakSamSettings()).tables}
    read = {
        ("1", "mist-detr:AP50"): 0.734,
        ("1", "mist-detr:AP"): 0.266,
        ("1", "mist-faster-rcnn:AP50, VOC 2012"): 0.692,
        ("1", "oicr:AP50, COCO 2014"): 0.321,
        ("1", "mist-ss:AP75, COCO 2014"): 0.094,
        ("2", "mask2former:AP50"): 0.644,
        ("2", "mask2former:AP25"): 0.734,
        ("2", "cim:AP75"): 0.309,
        ("3", "mask-rcnn:AP"): 0.206,
        ("3", "mask-rcnn:AP75, test-dev"): 0.222,
    }
    assert {place: tables[place[0]][place[1]].published for place in read} == read


def test_methods_of_others_are_printed_and_not_measured(measures: dict[str, Measure]) -> None:
    rows = {place.split(":")[0] for place in measures if place[0] in PUBLISHED}
    heads = {"true-masks", "mask-rcnn", "mask2former"}
    ours = {f"{head}{row}" for head in ("oicr", "mist") for row in ("", "-ss", "-faster-rcnn", "-detr")}
    assert rows == {f"1/{row}" for row in ours | {"true-boxes"}} | {f"{n}/{row}" for n in "23" for row in heads}
    assert {measure.figure for measure in measures.values()} == {"ap50", "ap", "recall", "corloc"}


@pytest.mark.parametrize("preset", ["voc07", "coco14_oicr", "voc12_rt_detr", "voc12_mask_rcnn", "coco17_mask2former"])
def test_every_cell_is_a_recipe_under_every_preset(preset: str, tmp_path: Path) -> None:
    path = with_preset(preset, tmp_path)
    recipe = load_recipe(path)
    tables = paper_tables(recipe.settings)
    distinct = {json.dumps(measure.changed(repetition=2)) for measure in places(tables).values()}
    for changes in distinct:
        cell = changed(path, json.loads(changes)).settings
        assert not (cell.wants_masks and cell.inference.views > 1), f"masks of views cannot be joined: {changes}"
    small = changed(path, dict(tables.small)).settings
    assert small.wsod_training.iterations <= 600 and small.wsod_training.steps[-1] < small.wsod_training.iterations
    assert small.detector.drop.start <= 30 and small.wsod_inference.flip is False


def test_a_small_budget_asks_for_no_more_than_the_recipe(path: Path, base: Recipe) -> None:
    small = changed(path, dict(paper_tables(base.settings).small))
    assert different(to_plain(small), to_plain(base)) == {
        "settings.clues.train.epochs",
        "settings.wsod_training.iterations",
        "settings.wsod_training.steps",
        "settings.wsod_training.warmup",
        "settings.wsod_inference.flip",
        "settings.detector.drop.start",
        "settings.inference.boxes_to_masks",
        *(
            f"settings.{student}.resnet.{key}"
            for student in ("rt_detr", "mask2former")
            for key in ("block", "channels")
        ),
        *(f"settings.{student}.resnet.depths" for student in ("rt_detr", "mask2former")),
        *(f"settings.rt_detr.{key}" for key in ("queries", "width", "ffn", "decoder_layers")),
        *(f"settings.mask2former.{k}" for k in ("queries", "width", "encoder_layers", "decoder_layers", "points")),
    }
    again = changed(path, {**paper_tables(base.settings).small, **paper_tables(small.settings).small})
    assert again == small


@pytest.mark.parametrize("student", ["rt_detr", "mask2former"])
def test_the_small_transformers_can_be_built(student: str, path: Path, base: Recipe) -> None:
    small = changed(path, {**paper_tables(base.settings).small, "settings.student": student}).settings
    network = build_student(student, small.architecture, 5)  # type: ignore[arg-type]
    assert sum(parameter.numel() for parameter in network.parameters()) < 25e6


def test_the_recipe_itself_stands_in_its_own_rows(base: Recipe, cells: dict[str, Recipe]) -> None:
    assert base.settings.wsod.head == "oicr"
    own = ["1/oicr-faster-rcnn:AP50", "1/oicr:AP", "A/all:Recall", "B/adaptive:Retrained", "C/independent:AP50"]
    for place in own:
        assert cells[place] == base, place
    assert cells["2/mask-rcnn:AP50"] == cells["3/mask-rcnn:AP"]


def test_every_row_changes_what_it_names_and_nothing_else(base: Recipe, cells: dict[str, Recipe]) -> None:
    plain = to_plain(base)
    found = {place: different(to_plain(cell), plain) for place, cell in cells.items()}
    wsod = {f"settings.wsod.{key}" for key in ("head", "mining", "branch_weights", "drop_block")}
    optimisation = {f"optimisation.{key}" for key in ("lr", "weight_decay", "grad_clip", "warmup_steps", "batch_size")}
    expected = {
        "1/oicr-ss:AP50": {"settings.proposals_by"},
        "1/mist-ss:AP50": {"settings.proposals_by", *wsod},
        "1/mist:AP50": wsod,
        "1/mist-faster-rcnn:AP": wsod,
        "1/oicr-detr:AP50": {"settings.student", *optimisation},
        "1/true-boxes:AP50": {"settings.truth", "settings.detector.drop.mode"},
        "2/mask-rcnn:AP50": {"settings.student"},
        "2/mask2former:AP50": {"settings.student", *optimisation} - {"optimisation.optimizer"},
        "2/true-masks:AP50": {"settings.student", "settings.truth", "settings.detector.drop.mode"},
        "A/selective-search:Recall": {"settings.proposals_by"},
        "A/clues:Recall": {"settings.proposals.grid.side"},
        "A/no-cross:AP50": {"settings.clues.cross_layers"},
        "A/alone:Recall": {"settings.proposals.class_joint"},
        "A/unclustered:Recall": {"settings.peaks.cross.clustered"},
        "A/mctformer:AP50": {"settings.clues.model"},
        "B/top1:AP50": {"settings.pseudo_truth.mode"},
        "B/range:Retrained": {"settings.pseudo_truth.norm"},
        "C/none:AP50": {"settings.detector.drop.mode"},
        "C/joint:AP": {"settings.detector.drop.mode"},
    }
    assert {place: found[place] for place in expected} == expected


def test_both_heads_are_the_published_ones_whichever_the_recipe_has(tmp_path: Path) -> None:
    for preset, own, other in (("voc07", "mist", "oicr"), ("voc07_oicr", "oicr", "mist")):
        path = with_preset(preset, tmp_path)
        recipe = load_recipe(path)
        table = places(paper_tables(recipe.settings))
        heads = {head: changed(path, table[f"1/{head}:AP50"].changed()).settings.wsod for head in (own, other)}
        assert heads[own] == recipe.settings.wsod and recipe.settings.wsod.head == own
        published = {"oicr": oicr_settings(), "mist": WsodSettings()}[other]
        kept = {"weights": "IMAGENET1K_V1", "frozen_groups": recipe.settings.wsod.frozen_groups}
        assert heads[other] == replace(published, **kept)


def test_a_head_on_crops_hides_no_cells(path: Path) -> None:
    on_crops = path.with_name("crops.yaml")
    on_crops.write_text(path.read_text().replace("wsod: {head", "wsod: {backbone: crops, head"))
    measures = places(paper_tables(load_recipe(on_crops).settings))
    mist = changed(on_crops, measures["1/mist:AP50"].changed()).settings.wsod
    assert mist.head == "mist" and mist.sees_crops and mist.drop_block is None


def test_stages_are_scored_under_the_name_of_their_proposals(measures: dict[str, Measure]) -> None:
    assert measures["1/mist-ss:AP50"].reference == ("selective-search", "wsod")
    assert measures["A/all:Recall"].reference == ("weaksam", "proposals")
    assert measures["B/top1:CorLoc"].reference == ("weaksam", "pseudo-truth")
    assert all((m.scored == "student") == (m.reference is None) for m in measures.values())


def test_repetitions_move_what_is_drawn_by_chance(path: Path, measures: dict[str, Measure]) -> None:
    student = changed(path, measures["C/none:AP50"].changed(3))
    assert (student.settings.clues.train.seed, student.settings.wsod_training.seed, student.optimisation.seed) == (
        3,
        3,
        3,
    )
    search = changed(path, measures["1/mist-ss:AP50"].changed(3))
    assert search.settings.wsod_training.seed == 3 and search.settings.clues.train.seed == 504
    bound = changed(path, measures["1/true-boxes:AP50"].changed(3))
    assert bound.optimisation.seed == 3 and bound.settings.wsod_training.seed == 42


def test_cells_share_what_is_learned_before_the_student() -> None:
    """Detectors are stored under their own settings and those of their proposals, so cells with others miss them."""
    assert {"wsod", "clues"} <= set(METHOD.shared)


# ---- presets: spec weaksam, sections 3.4, 5 and 12 -----------------------------------------------------------------


def test_presets_hold_the_spec_s_table_of_oicr(tmp_path: Path) -> None:
    for preset, lr, epoch, epochs, steps in (
        ("voc07_oicr", 8e-6, 1253, 50, (36,)),
        ("voc12_oicr", 8e-6, 2885, 25, (18,)),
        ("coco14_oicr", 1e-5, 20_521, 12, (8, 11)),
    ):
        settings = load_recipe(with_preset(preset, tmp_path)).settings
        training = settings.wsod_training
        assert (training.lr, training.refine_lr, training.bias_lr, training.weight_decay) == (lr, 10, 2, 5e-4)
        assert (training.warmup, training.factor(0), training.factor(500)) == (500, 1e-3, 1)
        assert (training.batch, training.iterations) == (4, epochs * epoch)
        assert training.steps == tuple(step * epoch for step in steps)
        assert (settings.wsod.head, settings.wsod.mining, settings.wsod.drop_block) == ("oicr", "near_top", None)
        assert settings.wsod_inference.flip is False and settings.wsod_inference.sizes == training.sizes
    voc = load_recipe(with_preset("voc07_oicr", tmp_path)).settings
    assert voc.wsod_training.sizes == (488, 576, 688, 864, 1200)


@pytest.mark.parametrize(
    ("preset", "updates", "seed", "tau", "side", "drop", "epochs"),
    [
        ("voc07", 30_000, 42, 0.3, 20, ("independent", 4.0, 4.0, 2000), 29),
        ("voc12", 32_000, 1, 0.5, 20, ("none", 4.0, 4.0, 4000), 22),
        ("coco14", 125_000, 42, 0.5, 2, ("independent", 5.0, 4.0, 10_000), 17),
    ],
)
def test_presets_hold_the_spec_s_defaults(
    preset: str, updates: int, seed: int, tau: float, side: int, drop: tuple[Any, ...], epochs: int, tmp_path: Path
) -> None:
    recipe = load_recipe(with_preset(preset, tmp_path))
    settings, training = recipe.settings, recipe.settings.wsod_training
    assert (training.iterations, training.seed, training.lr, training.batch) == (updates, seed, 1e-5, 8)
    assert (settings.pseudo_truth.tau_score, settings.pseudo_truth.tau_inside) == (tau, 0.85)
    assert settings.load.min_side == side
    rule = settings.detector.drop
    assert (rule.mode, rule.cls, rule.reg, rule.start) == drop
    assert (settings.wsod.head, settings.wsod.portion, settings.wsod.mine_iou) == ("mist", 0.15, 0.2)
    assert recipe.optimisation.epochs == epochs and recipe.optimisation.optimizer == "sgd"
    clues = settings.clues
    assert (clues.vit.pretrained, clues.vit.width, clues.layers) == ("deit_small_patch16_224", 384, tuple(range(5, 13)))
    assert (clues.train.lr, clues.train.lr_base_batch, clues.train.batch, clues.train.epochs) == (4e-4, 512, 64, 60)
    assert clues.scales == (1.0, 0.8, 1.2) and clues.train.augmentation.rand_augment == 9
    assert (settings.peaks.cam.kernel, settings.peaks.cross.kernel, settings.proposals.grid.side) == (17, 129, 32)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "default"])
def test_no_preset_starts_a_network_from_chance(preset: str, tmp_path: Path) -> None:
    settings = load_recipe(with_preset(preset, tmp_path)).settings
    student = {"rt_detr": settings.rt_detr.resnet.pretrained, "mask2former": settings.mask2former.resnet.pretrained}
    assert settings.clues.vit.pretrained and settings.wsod.weights
    assert student.get(settings.student, settings.detector.weights)
