"""What runs on the same data need not compute twice: the finished stages of one are the start of another."""

from __future__ import annotations

from pathlib import Path

from weakly.engine.recipe import Recipe, differences
from weakly.engine.runs import Run, main_process, open_run
from weakly.engine.typed import to_plain
from weakly.errors import UserError
from weakly.files import write_atomic
from weakly.methods.base import find_method


def take_stages(run: Run, recipe: Recipe, other: Path) -> int:
    """Copy what a run has learned or decided before its student into another run, as far as that lacks it.

    The files of :attr:`~weakly.methods.base.Method.shared` are named for all that they depend on, given the data. What
    the recipe does differently has other names, and is computed as if nothing had been copied.

    Args:
        run: gets the files; the folder is held by the caller.
        recipe: of ``run``.
        other: folder of the run that has them; it may still be training its student.

    Returns:
        The number of files copied.

    Raises:
        UserError: ``other`` is no run, or one of another method or of other data.
    """
    method = find_method(recipe.method)
    if not method.shared:
        raise UserError(f"Runs of {method.name} learn nothing before their student; leave --stages_from out.")
    source = open_run(other)
    theirs = source.recipe()
    if theirs.method != recipe.method:
        raise UserError(f"{other} is a run of {theirs.method}, not of {recipe.method}; give one of the same method.")
    changed = [
        difference
        for section in ("data", "features")
        for difference in differences(to_plain(getattr(theirs, section)), to_plain(getattr(recipe, section)), section)
    ]
    if changed:
        raise UserError(f"{other} has other data: {'; '.join(changed)}; give a run on the same data.")
    if not main_process():
        return 0
    copied = 0
    for name in method.shared:
        for path in sorted((source.folder / name).rglob("*")):
            target = run.folder / path.relative_to(source.folder)
            if path.is_file() and not path.name.startswith(".") and not target.exists():
                write_atomic(target, path.read_bytes())
                copied += 1
    return copied
