"""How Pred-All should decide: finished PartCLIPSeg runs under every rule and threshold, on images of another seed.

`settings.pred_all` and `background_above` are choices like any other, so they are not made on the scored images: the
run's world is drawn again from another seed. ``strict`` figures count every pixel; there, parts everywhere are no gain.

    weakly fit recipes/partclip/menagerie.yaml
    python benchmarks/partclip_pred_all.py '[runs/menagerie]'
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
from weakly.methods.partclip.settings import PredAll

RULES: tuple[tuple[PredAll, float | None], ...] = (
    ("objects_first", None),
    ("objects_first", 0.5),
    ("objects_first", 0.8),
    ("all_at_once", None),
    ("all_at_once", 0.3),
    ("all_at_once", 0.5),
    ("all_at_once", 0.7),
)
"""How parts compete, and from which sigmoid on the background wins; None: where its logit is the highest."""


def compare_rules(
    runs: Sequence[Path], seed: int = 77, images: int = 100, out: Path = Path("runs/partclip-pred-all.json")
) -> int:
    """Score runs under every rule and write one row for each.

    Args:
        runs: folders of trained runs on the rendered world.
        seed: of the other world.
        images: in it.
        out: JSON file.
    """
    rows = [row for run in runs for row in _rows(run, seed, images)]
    command = f"python benchmarks/partclip_pred_all.py '[{','.join(str(run) for run in runs)}]'"
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
    knows = [rule for rule in RULES if recipe.settings.architecture == "partclip" or rule[0] == "all_at_once"]
    for pred_all, background_above in knows:
        settings = replace(predictor.settings, pred_all=pred_all, background_above=background_above)
        known = {"run": str(folder), "method": settings.architecture}
        figures = _figures(predictor, dataset, settings, recipe)
        row = {**known, "pred_all": pred_all, "background_above": background_above, **figures}
        print(row, flush=True)
        rows.append(row)
    return rows


def _figures(
    predictor: PartClipPredictor, dataset: Dataset, settings: PartClipSettings, recipe: Recipe
) -> dict[str, Any]:
    """Seen, unseen and harmonic mIoU in Pred-All, on part pixels and on all."""
    asked = PartClipPredictor(
        predictor.student,
        predictor.encoder,
        predictor.vocabulary,
        settings,
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
    sys.exit(run_command(compare_rules, as_positional=True))
