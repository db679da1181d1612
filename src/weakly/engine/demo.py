"""The whole house in a few minutes: draw a small world, train a method's students on it, score them.

The recipes of a method's demo lie in the sub-folder ``demo/`` of its own folder, one run each; nothing else makes one.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weakly.engine.evaluate import evaluate
from weakly.engine.fit import fit
from weakly.engine.logs import console
from weakly.engine.recipe import Override, Recipe, load_recipe
from weakly.engine.runs import Run
from weakly.errors import UserError
from weakly.evaluation.records import Record, update_records
from weakly.files import write_json
from weakly.methods.base import find_method


@dataclass(frozen=True)
class Demo:
    """What :func:`demo` has made.

    Attributes:
        runs: the run folders, in the order of their names.
        records: first those of other methods: upper bounds, baselines, stages; then the method's own, of which what
            its students came to comes last. What several runs share comes once.
    """

    runs: tuple[Path, ...]
    records: tuple[Record, ...]


def demo(out: Path, method: str = "wps", *, overrides: Sequence[Override] = (), command: str = "weakly demo") -> Demo:
    """Train and score the students of a method's demo, beside their upper bounds and baselines.

    Args:
        out: gets ``world/``, ``features/``, a folder per run, named for its recipe, and ``metrics.json`` over all.
        method: its name.
        overrides: dotted recipe keys over every recipe of the demo.
        command: what the records state as their command.

    Raises:
        UserError: the method has no demo.
    """
    recipes = demo_recipes(method, out, overrides)
    references: dict[tuple[object, ...], Record] = {}
    students = []
    for name, recipe in recipes.items():
        console.print(f"Run {name!r} of the demo of {method}")
        run = fit(recipe, out / name)
        student, *others = evaluate(run.folder, command=command).records
        students.append(student)
        for record in others:
            references.setdefault(record.identity, record)
    records = tuple(sorted([*references.values(), *students], key=lambda record: record.method == method))
    update_records(Run(out).metrics, records)
    write_json(out / "demo.json", {"command": command, "method": method, "runs": list(recipes)})
    return Demo(tuple(out / name for name in recipes), records)


def demo_recipes(method: str, out: Path, overrides: Sequence[Override] = ()) -> dict[str, Recipe]:
    """The recipes of a method's demo by name, in its order; world and features lie in ``out``.

    Raises:
        UserError: there is no such method, it has no demo, or an override is wrong.
    """
    files = {path.stem: path for path in sorted(_folder(method).glob("*.yaml"))}
    if not files:
        raise UserError(f"The method {method!r} has no demo; put a recipe into the folder demo/ of the method's own.")
    places = [("data.root", json.dumps(str(out / "world"))), ("features.root", json.dumps(str(out / "features")))]
    return {name: load_recipe(path, [*places, *overrides]) for name, path in files.items()}


def _folder(method: str) -> Path:
    """``demo/`` in the folder of a method, whether it is there or not."""
    find_method(method)
    return Path(str(importlib.resources.files(f"weakly.methods.{method}"))) / "demo"
