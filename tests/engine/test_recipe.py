"""Recipes: preset, file, options; and every mistake named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.engine.recipe import Recipe, load_recipe, recipe_keys
from weakly.engine.typed import build, to_plain
from weakly.errors import UserError


def complaint(path: Path, *overrides: tuple[str, str]) -> str:
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    return str(caught.value)


def test_every_mistake_is_named_at_once_with_the_closest_key(recipe_file: Path) -> None:
    content = yaml.safe_load(recipe_file.read_text())
    content["optimisation"] |= {"learning_rat": 1, "epochs": "many", "batchsize": 3}
    content["data"]["kinds"] = "coco"
    content["settings"] = {"presense": 0.5, "hidden": 2.5}
    content["features"] = {"dtype": "flaot16"}
    recipe_file.write_text(yaml.safe_dump(content))
    message = complaint(recipe_file)
    assert message.startswith(f"{recipe_file}: 7 things are wrong: ")
    for phrase in (
        "`optimisation.learning_rat` is unknown",
        "`optimisation.batchsize` is unknown (did you mean `batch_size`?)",
        "`optimisation.epochs` must be a whole number, not 'many'",
        "`data.kinds` is unknown (did you mean `kind`?)",
        "`settings.presense` is unknown (did you mean `presence`?)",
        "`settings.hidden` must be a whole number, not 2.5",
        "`features.dtype` must be one of float32, float16, int8, not 'flaot16' (did you mean float16?)",
    ):
        assert phrase in message


def test_missing_sections_and_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("data: {kind: coco}\n")
    message = complaint(path)
    assert "`method` is missing" in message and "`data.root` is missing" in message


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("method: [wps\n", r"line 2, column 1: this is not valid YAML"),
        ("- just\n- a list\n", "holds no keys"),
        ("", "holds no keys"),
        ("method: tiny\ndata: 3\n", "`data` must be a section of keys and values, not 3"),
        ("method: 7\ndata: {kind: coco, root: x}\n", "`method` must be text, not 7"),
        ("method: tiny\npreset: papper\ndata: {kind: coco, root: x}\n", "`preset: papper` is unknown"),
        ("method: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
    ],
)
def test_unusable_files_are_one_sentence(tmp_path: Path, text: str, phrase: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    message = complaint(path)
    assert phrase in message and str(path) in message and "\n" not in message


def test_missing_and_binary_files(tmp_path: Path) -> None:
    assert "no.yaml cannot be read (No such file or directory)" in complaint(tmp_path / "no.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    assert "it is no UTF-8 text" in complaint(tmp_path / "b.yaml")


def test_values_a_settings_class_objects_to_are_named(recipe_file: Path) -> None:
    assert "optimisation.lr is -1.0; give a number above 0" in complaint(recipe_file, ("optimisation.lr", "-1"))


def test_preset_then_file_then_options(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, [("preset", "paper")])
    assert (recipe.preset, recipe.settings.hidden, recipe.optimisation.epochs) == ("paper", 8, 3)
    recipe = load_recipe(recipe_file, [("preset", "paper"), ("optimisation.epochs", "9"), ("settings.hidden", "5")])
    assert (recipe.settings.hidden, recipe.optimisation.epochs) == (5, 9)


def test_options_are_typed_as_the_file_is(recipe_file: Path) -> None:
    overrides = [("optimisation.lr", "1e-4"), ("data.val", "null"), ("evaluation.references", "false")]
    recipe = load_recipe(recipe_file, [*overrides, ("data.render.train", "12")])
    assert recipe.optimisation.lr == 1e-4
    assert recipe.data.val is None
    assert recipe.evaluation.references is False
    assert recipe.data.render is not None and recipe.data.render.train == 12
    assert "`optimisation.lr.x`: `lr` is a value, not a section" in complaint(recipe_file, ("optimisation.lr.x", "1"))


def test_resolved_recipe_is_a_recipe_that_resolves_to_itself(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, [("preset", "paper"), ("data.render.val", "3")])
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again) == recipe


def test_evaluated_split_is_validation_else_test_else_training(recipe_file: Path) -> None:
    def split(*overrides: tuple[str, str]) -> str:
        return load_recipe(recipe_file, overrides).evaluated_split()

    assert split() == "val"
    assert split(("data.val", "null"), ("data.test", "test")) == "test"
    assert split(("data.val", "null")) == "train"
    assert split(("evaluation.split", "other")) == "other"


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda v: st.lists(v) | st.dictionaries(st.text(), v)
    )
)
def test_no_value_whatever_breaks_the_reader(value: object) -> None:
    errors: list[str] = []
    build(Recipe, {"method": "tiny", "data": value, "optimisation": {"lr": value}}, "", errors)
    assert errors and all(isinstance(error, str) for error in errors)


def test_keys_and_plain_form(recipe_file: Path) -> None:
    assert {"method", "data.root", "optimisation.lr", "features.dtype"} <= set(recipe_keys())
    plain = to_plain(load_recipe(recipe_file))
    assert yaml.safe_load(yaml.safe_dump(plain)) == plain


def shipped() -> list[Path]:
    return sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))


@pytest.mark.parametrize("path", shipped(), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    named = path.stem if path.parent.name == "baselines" else path.parent.name
    assert named.startswith(recipe.method)
    assert path.read_text().startswith("#"), "a recipe begins by saying what it is for"


def test_recipes_are_shipped() -> None:
    assert {"menagerie", "car-parts", "partimagenet"} <= {path.stem for path in shipped()}


def test_partimagenet_is_the_papers_experiment_and_takes_the_official_preset() -> None:
    path = Path(__file__).parents[2] / "recipes" / "wps" / "partimagenet.yaml"
    recipe = load_recipe(path)
    optimisation = recipe.optimisation
    assert (optimisation.epochs, optimisation.batch_size, optimisation.lr) == (150, 8, 1e-4)
    assert (optimisation.optimizer, optimisation.schedule) == ("adam", "cosine")
    assert recipe.settings.segmenter == "facebook/sam-vit-base" and recipe.settings.queries == 25
    official = load_recipe(path, [("preset", "official")])
    assert (official.optimisation.epochs, official.optimisation.t_total) == (149, 38_370)
    assert (official.settings.pad, official.settings.fusion) == ("center_black", "soft_sum")
    assert (recipe.data.bad_polygons, official.data.bad_polygons) == ("ring", "annotation")
