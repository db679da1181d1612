"""Recall of WeakSAM's proposals for grids of several densities, and of Selective Search's, on one split.

    weakly fit recipes/weaksam/menagerie-boxes.yaml --until proposals --out runs/menagerie-proposals
    python benchmarks/weaksam_recall.py runs/menagerie-proposals

No detector is needed. Records go into the run's metrics.json; `collect_results.py` makes a table of them.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from command import run_command
from weakly.engine.evaluate import score_reference
from weakly.engine.recipe import Override, load_recipe
from weakly.engine.runs import open_run, workspace
from weakly.engine.splits import open_split
from weakly.evaluation.records import Record, update_records
from weakly.evaluation.scoring import PROPOSALS
from weakly.methods.base import Score
from weakly.methods.weaksam.pipeline import Pipeline
from weakly.methods.weaksam.proposal_settings import GridSettings
from weakly.methods.weaksam.stages import Stages

GRIDS = (
    GridSettings(side=12, pred_iou=0.0, stability=0.0, rank="votes", border=1.0, nms=0.6, most=50),
    GridSettings(side=8, pred_iou=0.0, stability=0.0, rank="votes", nms=0.5, most=50),
    GridSettings(side=8, nms=0.3),
    GridSettings(side=8, nms=0.5),
    GridSettings(side=16, nms=0.7),
)
"""The recipe's, one of fewer points and without borders, and the published rule at several densities."""


def score_proposals(
    run: Path, split: str = "train", grids: tuple[GridSettings, ...] = GRIDS, selective_search: bool = True
) -> int:
    """Score the proposals of every grid, with those of the clues' points, and Selective Search's.

    Args:
        run: folder of a run whose proposals are made.
        split: scored; its true tags are known.
        grids: e.g. ``'[{side: 8, nms: 0.5}]'``.
        selective_search: score it too.
    """
    opened = open_run(run)
    command = " ".join(["python", "benchmarks/weaksam_recall.py", *(shlex.quote(word) for word in sys.argv[1:])])
    forms: list[tuple[str | None, tuple[Override, ...]]] = [(told(grid), overrides_of(grid)) for grid in grids]
    if selective_search:
        forms.append((None, (("settings.proposals_by", "selective-search"),)))
    records: list[Record] = []
    for setting, overrides in forms:
        recipe = load_recipe(opened.recipe_file, overrides)
        dataset = open_split(recipe.data, split)
        stages = Stages(Pipeline(recipe.settings, dataset.vocabulary, workspace(opened, recipe)), dataset)
        score = Score(
            method=recipe.settings.proposals_by,
            supervision="tags",
            results=partial(stages.results, stages.proposals),
            identity=partial(stages.identity, "proposals"),
            extra={"row": "proposals", "setting": setting},
            scoring=PROPOSALS,
        )
        record = score_reference(opened, recipe, dataset, score, command)
        records.append(record)
        print(record.method, setting or "", _told(record), flush=True)
        update_records(opened.metrics, records)
    return 0


def told(grid: GridSettings) -> str:
    """What a record calls a grid."""
    name = f"grid of {grid.side} x {grid.side}, NMS {grid.nms:g}"
    if grid.rank != "votes":
        return name
    border = f", borders {grid.border:g}" if grid.border else ""
    return f"{name}, {'all' if grid.most is None else grid.most} by votes{border}"


def overrides_of(grid: GridSettings) -> tuple[Override, ...]:
    """The recipe's options that ask for a grid."""
    return tuple((f"settings.proposals.grid.{name}", json.dumps(value)) for name, value in asdict(grid).items())


def _told(record: Record) -> str:
    details = record.details or {}
    found = ", ".join(f"{first} {recall['0.5']:.3f}" for first, recall in details["recall"].items())
    return f"{details['proposals_per_image']:.1f} an image; recall at IoU 0.5 of the first {found}"


if __name__ == "__main__":
    sys.exit(run_command(score_proposals, as_positional=True))
