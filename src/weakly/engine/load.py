"""A trained run as a Python object, and a trained student with other settings of prediction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from weakly.engine.recipe import Override, resolve_recipe
from weakly.engine.runs import open_run, workspace
from weakly.errors import UserError
from weakly.methods.base import Method, Predictor, Workspace, find_method


def load(
    run: str | Path,
    *,
    student: str | None = None,
    device: str | None = None,
    overrides: Sequence[Override] = (),
) -> Predictor:
    """The predictor of a run folder.

    Args:
        run: a folder that ``weakly fit`` wrote.
        student: ``"last"`` or ``"best"``; default: as the recipe says.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; default: as the recipe says.
        overrides: other settings of prediction, e.g. ``[("settings.score_threshold", "0.5")]``.

    Raises:
        UserError: this is no run, its training has not got that far, or a setting is no longer to be changed.
    """
    found = open_run(Path(run))
    recipe = found.recipe()
    space = workspace(found, recipe if device is None else replace(recipe, device=device))
    weights = found.chosen_student(student or recipe.evaluation.student)
    return load_student(find_method(recipe.method), weights, space, overrides)


def load_student(method: Method, weights: Path, space: Workspace, overrides: Sequence[Override] = ()) -> Predictor:
    """The predictor of a student folder.

    Args:
        method: whose student it is.
        weights: the folder.
        space: where stored features are, and the device.
        overrides: dotted keys and values of settings that prediction alone reads.

    Raises:
        UserError: see :func:`check_overrides`; or a value is wrong, or the folder is damaged.
    """
    if not overrides:
        return method.load(weights, space)
    check_overrides(method, overrides)
    path = weights / "config.json"
    try:
        own = json.loads(path.read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path} states no settings ({error}); copy the student folder again.") from error
    values = {"method": method.name, "data": {"kind": "folder", "root": "."}, "settings": own}
    return method.load(weights, space, resolve_recipe(values, overrides, str(weights)).settings)


def check_overrides(method: Method, overrides: Sequence[Override]) -> None:
    """Raise a UserError that names the first key that is no setting which prediction alone reads."""
    known = [f"settings.{name}" for name in method.predicts_with]
    for key, _ in overrides:
        if not any(key == name or key.startswith(f"{name}.") for name in known):
            raise UserError(
                f"{key} cannot be changed once a student is trained, or is no setting; {method.name} lets you change "
                f"{', '.join(known) or 'nothing'}."
            )
