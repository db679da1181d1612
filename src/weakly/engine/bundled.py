"""The recipes that come with the package, found by the data they are for: ``recipes/<method>/<data>.yaml``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import weakly
from weakly.engine.recipe import Override
from weakly.errors import UserError
from weakly.methods.base import find_method

_PACKAGE = Path(weakly.__file__).parent

_FOLDERS = (_PACKAGE / "recipes", _PACKAGE.parents[1] / "recipes")
"""Of an installed package, and of a checkout."""


@dataclass(frozen=True)
class Chosen:
    """A recipe for some data.

    Attributes:
        name: of the data, for naming what is made of it.
        path: the recipe's file.
        overrides: that put the data into it.
    """

    name: str
    path: Path
    overrides: tuple[Override, ...] = ()


def bundled_recipes(method: str) -> dict[str, Path]:
    """{name: file} of a method's recipes.

    Raises:
        UserError: there is no such method.
    """
    find_method(method)
    folder = next((folder for folder in _FOLDERS if folder.is_dir()), _FOLDERS[0])
    return dict(sorted((path.stem, path) for path in (folder / method).glob("*.yaml")))


def recipe_for(method: str, data: str) -> Chosen:
    """The method's recipe for some data.

    Args:
        method: its name.
        data: name of a bundled recipe, or its first words where others that begin with them only add to it
            (``menagerie`` for ``menagerie-tags``, beside ``menagerie-tags-plus``); else a recipe file; else a folder in
            COCO's layout, for which the method's ``coco`` recipe is taken.

    Raises:
        UserError: it is none of these, or the method has no recipe for COCO's layout.
    """
    known = bundled_recipes(method)
    fitting = [data] if data in known else [name for name in known if name.startswith(f"{data}-")]
    shortest = min(fitting, key=len, default=data)
    if fitting and all(f"{name}-".startswith(f"{shortest}-") for name in fitting):
        return Chosen(shortest, known[shortest])
    path = Path(data)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return Chosen(path.stem, path)
    if not path.is_dir():
        names = ", ".join(known) or "none"
        raise UserError(
            f"There is no data {data!r} for {method}; give one of its recipes ({names}), a recipe file, or a folder in "
            "COCO's layout."
        )
    if "coco" not in known:
        raise UserError(
            f"The method {method} has no recipe for COCO's layout of {data}; give a recipe with --recipe, and "
            f"--data.root {data}."
        )
    return Chosen(path.resolve().name, known["coco"], (("data.root", json.dumps(str(path))),))
