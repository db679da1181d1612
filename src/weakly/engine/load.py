"""A trained run as a Python object."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weakly.engine.runs import open_run, workspace
from weakly.methods.base import Predictor, find_method


def load(run: str | Path, *, student: str | None = None, device: str | None = None) -> Predictor:
    """The predictor of a run folder.

    Args:
        run: a folder that ``weakly fit`` wrote.
        student: ``"last"`` or ``"best"``; default: as the recipe says.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"mps"``; default: as the recipe says.

    Raises:
        UserError: this is no run, or its training has not got that far.
    """
    found = open_run(Path(run))
    recipe = found.recipe()
    space = workspace(found, recipe if device is None else replace(recipe, device=device))
    weights = found.chosen_student(student or recipe.evaluation.student)
    return find_method(recipe.method).load(weights, space)
