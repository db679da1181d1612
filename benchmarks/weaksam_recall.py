"""Recall of WeakSAM's proposals for grids of several densities, and of Selective Search's, on one split.

    weakly fit recipes/weaksam/menagerie-boxes.yaml --until proposals --out runs/menagerie-proposals
    python benchmarks/weaksam_recall.py runs/menagerie-proposals

No detector is needed. Records go into the run's metrics.json; `collect_results.py` makes a table of them.
"""

from __future__ import annotations

import sys
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
from weakly.methods.weaksam.stages import Stages

GRIDS = ((8, 0.3), (8, 0.5), (16, 0.7))
"""Points along each side, and the box IoU over which a mask of the grid goes."""


def score_proposals(run: Path, split: str = "train", grids: tuple[tuple[int, float], ...] = GRIDS) -> int:
    """Score the proposals of every grid, with those of the clues' points, and Selective Search's.

    Args:
        run: folder of a run whose proposals are made.
        split: scored; its true tags are known.
        grids: [[side, IoU], ...].
    """
    opened = open_run(run)
    command = f"python benchmarks/weaksam_recall.py {run}" + (f" --split {split}" if split != "train" else "")
    command += f" --grids '{[list(grid) for grid in grids]}'" if grids != GRIDS else ""
    forms: list[tuple[str | None, tuple[Override, ...]]] = [(None, (("settings.proposals_by", "selective-search"),))]
    for side, iou in grids:
        grid = (("settings.proposals.grid.side", str(side)), ("settings.proposals.grid.nms", str(iou)))
        forms.append((f"grid of {side} x {side}, NMS {iou:g}", grid))
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


def _told(record: Record) -> str:
    details = record.details or {}
    found = ", ".join(f"{first} {recall['0.5']:.3f}" for first, recall in details["recall"].items())
    return f"{details['proposals_per_image']:.1f} an image; recall at IoU 0.5 of the first {found}"


if __name__ == "__main__":
    sys.exit(run_command(score_proposals, as_positional=True))
