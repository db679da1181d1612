"""The stages of a WeakSAM run against the truth of the images it was trained on.

Proposals stand beside Selective Search's, pseudo truth by every rule comes from the same detections:

    weakly fit recipes/weaksam/menagerie-boxes.yaml --until pseudo-truth
    python benchmarks/weaksam_stages.py runs/menagerie-boxes

No student is needed. Records go into the run's metrics.json; `collect_results.py` makes a table of them.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from command import run_command
from weakly.engine.evaluate import score_reference
from weakly.engine.recipe import Override, load_recipe
from weakly.engine.runs import open_run, workspace
from weakly.engine.splits import open_split
from weakly.errors import UserError
from weakly.evaluation.records import Record, update_records
from weakly.methods.base import find_method

MODES = ("top1", "threshold", "released", "published", "adaptive")
"""Rules of pseudo truth (spec weaksam, section 4)."""

Form = tuple[str, str | None, tuple[Override, ...]]

YARDSTICK: Form = ("proposals", None, (("settings.proposals_by", "selective-search"),))

FORMS: tuple[Form, ...] = (
    ("proposals", None, ()),
    ("wsod", None, ()),
    *(("pseudo-truth", mode, (("settings.pseudo_truth.mode", mode),)) for mode in MODES),
)
"""Stage, what its record calls the setting, and what changes in the recipe."""


def score_stages(run: Path, split: str = "train", selective_search: bool = True) -> int:
    """Score every stage of a run on a split with tags and true boxes.

    Args:
        run: folder of a run whose weakly supervised detector is trained.
        split: scored; the training split, whose tags the stages know.
        selective_search: score it too; on one core it needs most of a second per image.
    """
    opened = open_run(run)
    command = " ".join(["python", "benchmarks/weaksam_stages.py", *(shlex.quote(word) for word in sys.argv[1:])])
    records: list[Record] = []
    for row, setting, overrides in (*FORMS, *([YARDSTICK] if selective_search else [])):
        recipe = load_recipe(opened.recipe_file, overrides)
        dataset = open_split(recipe.data, split)
        found = find_method(recipe.method).references(recipe.settings, dataset, workspace(opened, recipe))
        scores = [score for score in found if score.extra["row"] == row]
        if not scores:
            raise UserError(f"{run} has no stage {row} to score on {split!r}; run `weakly fit --until pseudo-truth`.")
        named = replace(scores[0], extra={**scores[0].extra, "setting": setting})
        record = score_reference(opened, recipe, dataset, named, command)
        records.append(record)
        print(record.method, row, setting or "", _told(record), flush=True)
    update_records(opened.metrics, records)
    return 0


def _told(record: Record) -> str:
    figures = {"recall": record.recall, "ap50": record.ap50, "corloc": record.corloc}
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if value is not None)


if __name__ == "__main__":
    sys.exit(run_command(score_stages, as_positional=True))
