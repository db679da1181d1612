"""`weakly reproduce` on a tiny method: cells are runs, computed once, and what is missing is named."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from weakly.cli import DONE, DONE_WITH_SKIPS, WRONG_USE, main
from weakly.engine.recipe import load_recipe
from weakly.engine.reproduce import WAIT, Reproduction, reproduce
from weakly.engine.reproduce_cells import Job
from weakly.engine.reproduce_plan import base_recipe
from weakly.engine.runs import lock
from weakly.errors import UserError
from weakly.evaluation.records import read_records
from weakly.methods.base import find_method
from weakly.methods.tables import Baseline, Cell, Measure, Ordering, Row, Table, Tables
from weakly.report.reproduction import reproduction_text

FIGURE = "dataset41.miou"
ORACLE = Measure(scored="reference", reference=("oracle", "final"), figure=FIGURE)
TARGETS = Measure({"settings.jitter": 0.5}, "targets", ("oracle", "final"), figure=FIGURE)
STUDENT = Measure(seeds=("optimisation.seed",), figure=FIGURE)
WIDE = Measure({"settings.hidden": 8}, seeds=("optimisation.seed",), figure=FIGURE)
STRICT = Measure(after={"settings.presence": 0.999999}, seeds=("optimisation.seed",), figure=FIGURE)


def table(number: str, cells: dict[str, Cell], *ascending: str) -> Table:
    rows = tuple(Row(key, (key.title(),), (cell,)) for key, cell in cells.items())
    return Table(number, f"title {number}", ("Row",), ("mIoU",), rows, (Ordering("A claim.", ascending),), "their data")


FIRST = {"strict": Cell(0.1, STRICT), "plain": Cell(0.4, STUDENT), "oracle": Cell(None, ORACLE)}
TABLES = Tables(
    "A paper",
    "its tables",
    (
        table("1", FIRST, "strict", "plain", "oracle"),
        table("2", {"wide": Cell(0.5, WIDE), "same": Cell(0.4, STUDENT), "others": Cell(0.7)}, "wide", "same"),
        table("3", {"targets": Cell(0.3, TARGETS)}, "targets"),
    ),
    {"settings.jitter": 0.0},
)


@pytest.fixture(autouse=True)
def _tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: TABLES)


def refuse(*_: Any, **__: Any) -> None:
    pytest.fail("a cell was computed again")


def test_tables_are_measured_beside_the_published_figures_and_only_once(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out", "--optimisation.epochs", "1"]
    assert main([*command, "--tables", "1"]) == DONE
    printed = capsys.readouterr().out
    assert "## Table 1: title 1" in printed and "| Plain | 40.0 |" in printed and "| Oracle | - |" in printed
    records = {record.row: record for record in read_records(work / "out" / "metrics.json")}
    assert list(records) == ["table 1: strict", "table 1: plain", "table 1: oracle"]
    assert records["table 1: plain"].published == 0.4 and records["table 1: plain"].split == "val"
    assert records["table 1: oracle"].method == "oracle" and records["table 1: oracle"].split == "train"
    assert all("reproduce tiny" in record.command for record in records.values())
    judged = json.loads((work / "out" / "orderings.json").read_text())["orderings"]
    assert [(row["table"], len(row["steps"])) for row in judged] == [("1", 2)]
    page = (work / "out" / "tables.html").read_text()
    for cell in (work / "out" / "cells").iterdir():
        assert (cell / "report.html").is_file() and f"cells/{cell.name}/report.html" in page
        assert load_recipe(cell / "recipe.yaml").method == "tiny"

    assert main([*command, "--tables", "2"]) == DONE
    rows = [record.row for record in read_records(work / "out" / "metrics.json")]
    assert rows[3:] == ["table 2: wide", "table 2: same"], "the table of the first call stays"
    assert len(list((work / "out" / "cells").iterdir())) == 4, "equal recipes are one cell"
    monkeypatch.setattr("weakly.engine.reproduce_cells.fit", refuse)
    monkeypatch.setattr("weakly.engine.reproduce_cells._score_stage", refuse)
    before = (work / "out" / "metrics.json").read_bytes()
    assert main([*command, "--tables", "1,2"]) == DONE
    assert (work / "out" / "metrics.json").read_bytes() == before


def test_what_is_nowhere_published_or_only_printed_has_no_column(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = replace(table("S", {"plain": Cell(None, STUDENT)}), orderings=(), data="")
    theirs = replace(table("O", {"others": Cell(0.7)}), orderings=())
    tables = Tables("A paper", "its tables", (ours, theirs), {})
    monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: tables)
    text = reproduction_text(reproduce("tiny", recipe_file, work / "out"))
    mine, printed = text.split("## Table ")[1:3]
    assert "| Row | mIoU, here |" in mine and "Published" not in mine and "Here: " in mine
    assert "| Row | mIoU, published |" in printed and "| Others | 70.0 |" in printed
    assert "Published: their data." in printed and "Here" not in printed


def test_what_changes_after_training_alone_trains_once(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    student = type(find_method("tiny")).learner

    def counted(self: Any, *arguments: Any) -> Any:
        learner = student(self, *arguments)
        step = learner.training_step
        learner.training_step = lambda *a: (steps.append(1), step(*a))[1]
        return learner

    monkeypatch.setattr(type(find_method("tiny")), "learner", counted)
    found = reproduce("tiny", recipe_file, work / "out", tables=("1",))
    recipe = load_recipe(work / "out" / "base.yaml")
    assert len(steps) == 3 * recipe.optimisation.epochs, "ten images, four a batch"
    strict, plain = (work / "out" / found.results[0].figures[key].folder for key in ("strict", "plain"))
    weights = [(folder / "student" / "student.safetensors").read_bytes() for folder in (strict, plain)]
    assert weights[0] == weights[1]
    presence = [
        json.loads((folder / "student" / "config.json").read_text())["settings"]["presence"]
        for folder in (strict, plain)
    ]
    assert presence == [0.999999, 0.5]


def test_repetitions_differ_in_their_seeds_and_give_a_spread(recipe_file: Path, work: Path) -> None:
    found = reproduce("tiny", recipe_file, work / "out", tables=("1",), repetitions=2)
    figures = found.results[0].figures
    assert set(figures["plain"].values) == {0, 1} and figures["plain"].spread is not None
    assert figures["oracle"].spread == 0, "nothing in it is drawn by chance"
    names = sorted(path.name for path in (work / "out" / "cells").iterdir())
    assert len(names) == 5 and sum(name.startswith("table-1-plain-1-") for name in names) == 1
    seeds = {load_recipe(path / "recipe.yaml").optimisation.seed for path in (work / "out" / "cells").iterdir()}
    assert seeds == {load_recipe(recipe_file).optimisation.seed, 1}
    assert {record.seed for record in found.records()} == {0, 1}


def test_what_another_machine_has_measured_is_not_measured_again(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--optimisation.epochs", "1"]
    assert main([*command, "--out", "there"]) == DONE
    known = work / "there" / "metrics.json"
    there = {record.row: record for record in read_records(known)}

    assert main([*command, "--out", "here", "--tables", "1", "--seeds", "2", "--known", str(known)]) == DONE
    assert "--known" in read_records(work / "here" / "metrics.json")[1].command
    here = {(record.row, record.seed): record for record in read_records(work / "here" / "metrics.json")}
    assert {row for row, _ in here} == {row for row in there if "table 2" not in row}, "table 3 has no further runs"
    assert all(record.protocols == there[row].protocols for (row, n), record in here.items() if n == 0)
    assert here["table 1: plain", 0].command == there["table 1: plain"].command, "who measured it is told"
    cells = sorted(path.name[:-9] for path in (work / "here" / "cells").iterdir())
    assert cells == ["table-1-plain-1", "table-1-strict-1"]
    assert 'href="cells/table-1-plain-1' in (work / "here" / "tables.html").read_text()

    monkeypatch.setattr("weakly.engine.reproduce_cells.fit", refuse)
    capsys.readouterr()
    rows = json.loads(known.read_text())["records"]
    for change, words in (({"split": "train"}, "of tiny on 'train'"), ({"row": "table 9: a"}, "in none of these")):
        known.write_text(json.dumps({"records": [{**rows[1], **change}]}))
        assert main([*command, "--out", "third", "--known", str(known)]) == WRONG_USE
        assert words in capsys.readouterr().err
    assert main([*command, "--out", "third", "--known", "nowhere.json"]) == WRONG_USE


def without_a_record(found: Reproduction) -> Path:
    """The folder of a cell that is trained and not scored, as where a process is still at it."""
    folder = found.folder / found.results[0].figures["wide"].folder
    (folder / "metrics.json").unlink()
    return folder


def test_what_another_process_computes_is_left_to_it_and_read_when_it_has_ended(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reproduce("tiny", recipe_file, work / "out", tables=("2",))
    record = (first.folder / first.results[0].figures["wide"].folder / "metrics.json").read_bytes()
    taken = without_a_record(first)
    waits, states = [], []
    with contextlib.ExitStack() as other:
        other.enter_context(lock(taken))

        def wait(seconds: float) -> None:
            waits.append(seconds)
            if len(waits) == 3:
                (taken / "metrics.json").write_bytes(record)
                other.close()

        monkeypatch.setattr("weakly.engine.reproduce.time.sleep", wait)
        found = reproduce(
            "tiny", recipe_file, work / "out", tables=("2",), tell=lambda s: states.append(set(s.missing))
        )
    assert waits == [WAIT] * 3
    assert states == [{"Table 2, wide"}, set()], "the next cell did not wait"
    assert found.results[0].figures["wide"].values == first.results[0].figures["wide"].values
    assert (taken / "metrics.json").read_bytes() == record, "nothing was computed twice"


def test_a_cell_whose_process_has_died_is_computed(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = without_a_record(reproduce("tiny", recipe_file, work / "out", tables=("2",)))
    with contextlib.ExitStack() as other:
        other.enter_context(lock(taken))
        monkeypatch.setattr("weakly.engine.reproduce.time.sleep", lambda _: other.close())
        assert not reproduce("tiny", recipe_file, work / "out", tables=("2",)).missing
    assert (taken / "metrics.json").is_file()


def test_nobody_waits_beyond_the_hours(recipe_file: Path, work: Path) -> None:
    taken = without_a_record(reproduce("tiny", recipe_file, work / "out", tables=("2",)))
    with lock(taken):
        assert set(reproduce("tiny", recipe_file, work / "out", tables=("2",), hours=0).missing) == {"Table 2, wide"}


def test_further_runs_of_baselines_come_last(recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Measure({"settings.hidden": 8}, seeds=("optimisation.seed",), figure=FIGURE, baseline="wide")
    cells = {"other": Cell(None, other), "plain": Cell(None, STUDENT)}
    tables = Tables(tables=(table("1", cells, "other", "plain"),), baselines={"wide": Baseline("tiny", ("settings",))})
    begun: list[str] = []

    def fail(job: Job, **_: Any) -> None:
        begun.append(job.folder.name.removeprefix("table-1-")[:-9])
        raise UserError("not today")

    monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: tables)
    monkeypatch.setattr("weakly.engine.reproduce.compute", fail)
    reproduce("tiny", recipe_file, work / "out", repetitions=3)
    assert begun == ["other", "plain", "plain-1", "plain-2", "other-1", "other-2"]


def test_targets_are_scored_without_a_student(recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weakly.engine.fit.train", refuse)
    found = reproduce("tiny", recipe_file, work / "out", tables=("3",))
    (figure,) = found.results[0].figures.values()
    assert figure.records[0].split == "train" and figure.records[0].images == 10
    assert not (work / "out" / figure.folder / "student").exists()


def test_a_cell_that_cannot_be_measured_is_named_and_the_others_go_on(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = Measure({"data.root": str(work / "nowhere")}, figure=FIGURE)
    broken = Tables(
        tables=(table("1", {"broken": Cell(0.2, nowhere), "oracle": Cell(None, ORACLE)}, "broken", "oracle"),)
    )
    monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: broken)
    assert main(["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out"]) == DONE_WITH_SKIPS
    shown = capsys.readouterr()
    assert "not measured: Table 1, broken: " in shown.err and "nowhere" in shown.err
    assert "not decidable here" in shown.out and "| Broken | 20.0 | - |" in shown.out
    assert "Not measured" in (work / "out" / "tables.html").read_text()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["tiny", "--tables", "9"], "no table '9'"),
        (["fma"], "is a recipe of tiny, not of fma"),
        (["tiny", "--seeds", "0"], "--seeds is 0"),
        (["tiny", "--settings.hiden", "3"], "hiden"),
    ],
)
def test_wrong_use_is_one_sentence(
    recipe_file: Path, work: Path, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    assert main(["reproduce", *words, "--recipe", str(recipe_file), "--out", "out"]) == WRONG_USE
    error = capsys.readouterr().err
    assert match in error and "Traceback" not in error


def test_a_folder_belongs_to_one_recipe(recipe_file: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["reproduce", "tiny", "--recipe", str(recipe_file), "--tables", "3", "--out", "out"]
    assert main(command) == DONE
    assert main([*command, "--settings.hidden", "5"]) == WRONG_USE
    assert "settings.hidden (4 -> 5)" in capsys.readouterr().err
    (work / "full").mkdir()
    (work / "full" / "mine.txt").write_text("mine")
    assert main([*command[:-1], "full"]) == WRONG_USE
    assert "holds mine.txt" in capsys.readouterr().err


def test_a_method_without_tables_says_so(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: Tables())
    assert main(["reproduce", "tiny", "--recipe", str(recipe_file), "--out", "out"]) == WRONG_USE
    assert "states no tables to reproduce yet" in capsys.readouterr().err


def test_a_small_budget_never_asks_for_more(recipe_file: Path) -> None:
    options = (("data.limit_train", "7"), ("optimisation.epochs", "40"))
    small = base_recipe("tiny", recipe_file, options, "small")
    assert (small.data.limit_train, small.data.limit_val, small.optimisation.epochs) == (7, 100, 10)
    assert small.settings.jitter == 0
    assert base_recipe("tiny", recipe_file, options, "full") == load_recipe(recipe_file, options)
    assert base_recipe("tiny", recipe_file, (("optimisation.epochs", "2"),), "small").optimisation.epochs == 2


def test_a_smaller_world_is_drawn_beside_the_recipes_own() -> None:
    recipe = Path(__file__).parents[2] / "recipes" / "fma" / "menagerie-tags.yaml"
    full, small = (base_recipe("fma", recipe, (), budget).data for budget in ("full", "small"))
    assert small.render is not None
    assert (small.render.train, small.render.val) == (200, 100)
    assert (str(small.root), str(full.root)) == ("worlds/menagerie-voc-small", "worlds/menagerie-voc")
    shrunk = (("data.render.train", "200"), ("data.render.val", "100"))
    assert base_recipe("fma", recipe, shrunk, "small").data.root == full.root, "nothing to shrink"
