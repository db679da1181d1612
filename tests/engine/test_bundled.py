"""`--data NAME`: a method's own recipes by the name of their data, recipe files, and folders in COCO's layout."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from weakly.cli import DONE, WRONG_USE, main
from weakly.engine.bundled import Chosen, bundled_recipes, recipe_for
from weakly.engine.recipe import load_recipe
from weakly.errors import UserError
from weakly.methods.base import find_method
from weakly.methods.tables import Cell, Measure, Row, Table, Tables

METHODS = ("fma", "partclip", "weaksam", "wps")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_recipe_for_the_bundled_world(method: str) -> None:
    chosen = recipe_for(method, "menagerie")
    recipe = load_recipe(chosen.path)
    assert recipe.method == method and recipe.data.render is not None
    assert chosen.name.split("-")[0] == "menagerie" and not chosen.overrides


@pytest.mark.parametrize("method", METHODS)
def test_recipes_are_found_by_their_names(method: str) -> None:
    known = bundled_recipes(method)
    assert known and list(known) == sorted(known)
    for name, path in known.items():
        assert recipe_for(method, name) == Chosen(name, path)
        assert load_recipe(path).method == method


def test_the_recipe_that_others_add_to_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["world-tags", "world-tags-plus", "sea-boxes", "sea-tags"]
    monkeypatch.setattr("weakly.engine.bundled.bundled_recipes", lambda _: {name: tmp_path / name for name in names})
    assert recipe_for("fma", "world").name == "world-tags"
    assert recipe_for("fma", "world-tags-plus").name == "world-tags-plus"
    with pytest.raises(UserError, match="There is no data 'sea' for fma"):
        recipe_for("fma", "sea")


def test_files_and_folders_of_ones_own(work: Path, recipe_file: Path) -> None:
    assert recipe_for("wps", str(recipe_file)) == Chosen("tiny", recipe_file)
    (work / "mine").mkdir()
    chosen = recipe_for("wps", "mine")
    assert chosen.name == "mine" and chosen.path == bundled_recipes("wps")["coco"]
    data = load_recipe(chosen.path, chosen.overrides).data
    assert (data.kind, data.root, data.annotations) == ("coco", "mine", "annotations/{split}.json")


@pytest.mark.parametrize(
    ("method", "data", "match"),
    [
        ("wps", "nothing", r"There is no data 'nothing' for wps; give one of its recipes \(.*menagerie.*\)"),
        ("wps", "part", r"There is no data 'part'"),
        ("fma", ".", r"The method fma has no recipe for COCO's layout of \.; give a recipe with --recipe"),
        ("nobody", "menagerie", r"There is no method 'nobody'"),
    ],
)
def test_what_is_no_data_is_one_sentence(work: Path, method: str, data: str, match: str) -> None:
    with pytest.raises(UserError, match=match):
        recipe_for(method, data)


def test_reproduce_takes_data_by_name_and_says_so(
    recipe_file: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measure = Measure(scored="reference", reference=("oracle", "final"), figure="dataset41.miou")
    table = Table("1", "t", ("Row",), ("mIoU",), (Row("a", ("a",), (Cell(None, measure),)),))
    monkeypatch.setattr(type(find_method("tiny")), "tables", lambda self, settings: Tables(tables=(table,)))
    monkeypatch.setattr("weakly.engine.bundled.bundled_recipes", lambda method: {"menagerie-tiny": recipe_file})
    assert main(["reproduce", "tiny"]) == DONE
    out = work / "runs" / "reproduce-tiny-menagerie-tiny"
    assert "weakly reproduce tiny --data menagerie --budget small" in (out / "tables.md").read_text()
    assert main(["reproduce", "tiny", "--data", "menagerie", "--recipe", str(recipe_file)]) == WRONG_USE
    assert re.search("--data and --recipe both", capsys.readouterr().err)
