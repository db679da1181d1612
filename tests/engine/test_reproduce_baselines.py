"""Tables that compare methods: a baseline's cells have the paper's data and everything else of their own."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from weakly.cli import DONE, DONE_WITH_SKIPS, WRONG_USE, main
from weakly.engine.recipe import Recipe, load_recipe
from weakly.engine.reproduce import reproduce
from weakly.engine.reproduce_plan import base_recipe
from weakly.evaluation.records import read_records
from weakly.methods.base import find_method
from weakly.methods.tables import Baseline, Cell, Limits, Measure, Ordering, Row, Table, Tables

FIGURE, SEEDS = "dataset41.miou", ("optimisation.seed",)
OURS = Measure(seeds=SEEDS, figure=FIGURE)
RIVAL = Measure({"settings.hidden": 3}, seeds=SEEDS, figure=FIGURE, baseline="rival")
BOUND = Measure(scored="reference", reference=("oracle", "final", "box"), figure=FIGURE, split="evaluated")
KEEPS = ("optimisation.seed", "settings.jitter")
PAPER = Baseline("big-rival", KEEPS, {"preset": "paper"})
SHORT = Baseline("big-rival", KEEPS, {"preset": "paper", "optimisation.epochs": 2})


def tables(measures: dict[str, Measure], small: Baseline = SHORT, **more: Any) -> Tables:
    rows = tuple(Row(key, (key,), (Cell(0.5, measure),)) for key, measure in measures.items())
    table = Table("1", "title", ("Row",), ("mIoU",), rows, (Ordering("A claim.", tuple(measures)),), "their data")
    baselines = {"baselines": {"rival": PAPER}, "small_baselines": {"rival": small}}
    return Tables("A paper", "its tables", (table,), **baselines, **more)


@pytest.fixture(autouse=True)
def _rival(monkeypatch: pytest.MonkeyPatch, _tiny_method: None) -> None:
    monkeypatch.delitem(sys.modules, "weakly.methods.big_rival", raising=False)


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the tables of the tiny method."""
    return lambda found: monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: found)


def refuse(*_: Any, **__: Any) -> None:
    pytest.fail("a cell was computed again")


def recipes(out: Path) -> dict[str, Recipe]:
    return {(recipe := load_recipe(path / "recipe.yaml")).method: recipe for path in (out / "cells").iterdir()}


def test_a_baseline_has_the_papers_data_and_its_own_settings(
    recipe_file: Path, work: Path, state: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state(tables({"rival": RIVAL, "ours": OURS}))
    overrides = ("--settings.jitter", "0.25", "--optimisation.epochs", "1", "--optimisation.seed", "7")
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out", *overrides]
    assert main(command) == DONE
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    assert [(row, record.method) for row, record in records.items()] == [
        ("table 1: rival", "big-rival"), ("table 1: ours", "tiny"),
    ]  # fmt: skip
    ours, rival = (recipes(work / "out")[name] for name in ("tiny", "big-rival"))
    for section in ("data", "features", "evaluation", "device", "checkpoint_minutes"):
        assert getattr(rival, section) == getattr(ours, section), section
    assert (rival.settings.jitter, rival.settings.hidden, rival.settings.temper) == (0.25, 3, 3.0)
    assert (rival.preset, rival.optimisation.seed, rival.optimisation.epochs) == ("paper", 7, 2)
    assert rival.optimisation.lr != ours.optimisation.lr, "nothing of the paper's but what is named"
    (judged,) = json.loads((work / "out" / "orderings.json").read_text())["orderings"]
    assert judged["steps"][0]["margin"] is not None

    monkeypatch.setattr("weakly.engine.reproduce_cells.fit", refuse)
    before = (work / "out" / "metrics.json").read_bytes()
    assert main(command) == DONE
    assert (work / "out" / "metrics.json").read_bytes() == before


def test_a_full_budget_leaves_the_baseline_as_it_is(recipe_file: Path, work: Path, state: Any) -> None:
    state(tables({"rival": RIVAL, "ours": OURS}, Baseline("no-such-rival")))
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out", "--budget", "full"]
    assert main([*command, "--big_rival.optimisation.epochs", "3", "--optimisation.epochs", "1"]) == DONE
    found = recipes(work / "out")
    assert (found["big-rival"].optimisation.epochs, found["tiny"].optimisation.epochs) == (3, 1), "options by method"
    assert found["big-rival"].settings.temper == 3.0


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["--big_rival.settings.tempre", "3"], "`settings.tempre` is unknown"),
        (["--fma.settings.refine", "crf"], "--fma: the tables have no baseline fma; they have big-rival"),
    ],
)
def test_wrong_options_of_baselines_are_one_sentence(
    recipe_file: Path, work: Path, state: Any, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    state(tables({"rival": RIVAL, "ours": OURS}))
    assert main(["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out", *words]) == WRONG_USE
    assert match in capsys.readouterr().err
    assert not (work / "out").exists()


def test_a_baseline_that_cannot_be_made_costs_its_cells_alone(
    recipe_file: Path, work: Path, state: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    state(tables({"rival": RIVAL, "ours": OURS}, Baseline("no-such-rival")))
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out", "--optimisation.epochs", "1"]
    assert main(command) == DONE_WITH_SKIPS
    shown = capsys.readouterr()
    assert "not measured: Table 1, rival: " in shown.err and "There is no method 'no-such-rival'" in shown.err
    assert "| rival | 50.0 | - |" in shown.out and "| ours | 50.0 | - |" not in shown.out
    assert "not decidable here" in shown.out


def test_a_bound_is_scored_where_students_are(recipe_file: Path, work: Path, state: Any) -> None:
    measures = {"bound": BOUND, "train": Measure(scored="reference", reference=("oracle", "final"), figure=FIGURE)}
    state(tables(measures))
    found = reproduce("tiny", recipe_file, work / "out").results[0].figures
    assert [figure.records[0].split for figure in found.values()] == ["val", "train"]
    assert [figure.records[0].images for figure in found.values()] == [4, 10]
    assert not reproduce("tiny", recipe_file, work / "out").missing, "read again"
    state(tables({"point": Measure(scored="reference", reference=("oracle", "final", "point"), figure=FIGURE)}))
    assert "cannot be scored for" in reproduce("tiny", recipe_file, work / "other").missing["Table 1, point"]


def test_first_comes_one_run_of_everything_and_time_may_run_out(
    recipe_file: Path, work: Path, state: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state(tables({"rival": RIVAL, "ours": OURS}))
    clock = iter(range(0, 10**9, 3600))
    monkeypatch.setattr("weakly.engine.reproduce.time", SimpleNamespace(monotonic=lambda: next(clock)))
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out", "--optimisation.epochs", "1"]
    assert main([*command, "--seeds", "2", "--hours", "2.5"]) == DONE_WITH_SKIPS
    shown = capsys.readouterr()
    rows = [(record.row, record.seed) for record in read_records(work / "out" / "metrics.json")]
    assert rows == [("table 1: rival", 0), ("table 1: ours", 0)]
    assert "Table 1, ours: 1 of 2 runs: not reached yet" in shown.err
    assert main([*command, "--seeds", "2"]) == DONE
    rows = [(record.row, record.seed) for record in read_records(work / "out" / "metrics.json")]
    assert len(rows) == 4
    assert main([*command, "--seeds", "2", "--hours", "0"]) == DONE, "what is stored takes no time"


def test_a_table_may_state_its_own_limits(recipe_file: Path, state: Any) -> None:
    state(tables({"ours": OURS}, limits=Limits(train=6, val=3, epochs=2, warmup_steps=0, kinds=("fox",))))
    small = base_recipe("tiny", recipe_file, (), "small")
    assert (small.data.limit_train, small.data.limit_val, small.optimisation.epochs) == (6, 3, 2)
    assert small.optimisation.warmup_steps == 0 and small.data.render is None, "real data has no kinds to choose"


def test_limited_kinds_are_a_world_of_their_own(tmp_path: Path, state: Any) -> None:
    recipe = tmp_path / "world.yaml"
    recipe.write_text("method: tiny\ndata: {kind: menagerie, root: worlds/w, render: {train: 8, val: 4}}\n")
    state(tables({"ours": OURS}, limits=Limits(kinds=("fox", "sedan"))))
    data = base_recipe("tiny", recipe, (), "small").data
    assert data.render is not None and data.render.kinds == ("fox", "sedan") and data.root == "worlds/w-small"
    chosen = base_recipe("tiny", recipe, (("data.render.kinds", "[van]"),), "small").data
    assert chosen.render is not None and chosen.render.kinds == ("van",) and chosen.root == "worlds/w"


def test_tables_with_a_nameless_baseline_are_mistakes_of_the_program() -> None:
    with pytest.raises(ValueError, match="is of rival, which has no recipe"):
        Tables(tables=tables({"rival": RIVAL}).tables)
    with pytest.raises(ValueError, match="choice of splits"):
        Measure(split="evaluated")
