"""From which sigmoid on the background should win in Pred-All: finished PartCLIPSeg runs on images of another seed.

`settings.background_above` is a choice like any other, so it is not made on the images that are scored: the run's
world is drawn again from another seed. ``strict`` figures count every pixel; there, parts everywhere are no gain.

    weakly fit recipes/partclip/menagerie.yaml
    python benchmarks/partclip_background.py '[runs/menagerie]'
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from command import run_command
from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.engine.recipe import Recipe, load_recipe
from weakly.engine.runs import open_run, workspace
from weakly.engine.splits import open_split
from weakly.errors import UserError
from weakly.files import write_json
from weakly.methods.base import ImageSource, Skipped
from weakly.methods.partclip import METHOD, PartClipSettings
from weakly.methods.partclip.predictor import PartClipPredictor

THRESHOLDS = (None, 0.5, 0.7, 0.8, 0.9, 0.95)
"""None: the background wins where its logit is the highest, as published."""


def compare_thresholds(
    runs: Sequence[Path], seed: int = 77, images: int = 100, out: Path = Path("runs/partclip-background.json")
) -> int:
    """Score runs with every threshold and write one row for each.

    Args:
        runs: folders of trained runs on the rendered world.
        seed: of the other world.
        images: in it.
        out: JSON file.
    """
    rows = [row for run in runs for row in _rows(run, seed, images)]
    command = f"python benchmarks/partclip_background.py '[{','.join(str(run) for run in runs)}]'"
    write_json(out, {"command": command, "seed": seed, "images": images, "rows": rows})
    return 0


def _rows(folder: Path, seed: int, images: int) -> list[dict[str, Any]]:
    run = open_run(folder)
    elsewhere = [("data.root", f"worlds/other-{seed}"), ("data.render.seed", seed), ("data.render.val", images)]
    recipe = load_recipe(run.recipe_file, [(key, str(value)) for key, value in elsewhere])
    if not isinstance(recipe.settings, PartClipSettings):
        raise UserError(f"{folder} is a run of {recipe.method}; give runs of partclip.")
    dataset = open_split(recipe.data, recipe.evaluated_split())
    predictor = METHOD.load(run.chosen_student("last"), workspace(run, recipe)).with_vocabulary(dataset.vocabulary)
    rows = []
    for threshold in THRESHOLDS:
        figures = _figures(predictor, dataset, threshold, recipe)
        row = {"run": str(folder), "method": recipe.settings.architecture, "background_above": threshold, **figures}
        print(row, flush=True)
        rows.append(row)
    return rows


def _figures(predictor: PartClipPredictor, dataset: Dataset, threshold: float | None, recipe: Recipe) -> dict[str, Any]:
    """Seen, unseen and harmonic mIoU in Pred-All, on part pixels and on all."""
    asked = PartClipPredictor(
        predictor.student,
        predictor.encoder,
        predictor.vocabulary,
        replace(predictor.settings, background_above=threshold),
        predictor.store,
    )
    scoring = METHOD.scoring_of(recipe.settings)
    evaluator = scoring.evaluator(dataset.vocabulary, recipe.evaluation.frame_side, recipe.evaluation.official)
    sources = [ImageSource(sample.image_id, sample.path, partial(read_image, sample.path)) for sample in dataset]
    for index, result in enumerate(asked.predict(sources)):
        if isinstance(result, Skipped):
            raise UserError(f"{result.path} cannot be scored: {result.reason}")
        evaluator.update(scoring.truth(dataset, index), result, index)
    found = evaluator.compute().record_fields()
    groups = ("seen", "unseen", "harmonic")
    return {
        "part_pixels": {group: found[group] for group in groups},
        "strict": {group: found["details"]["strict"]["miou"][group] for group in groups},
    }


if __name__ == "__main__":
    sys.exit(run_command(compare_thresholds, as_positional=True))
