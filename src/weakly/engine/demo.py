"""The whole house in a few minutes: draw a small world, learn parts from boxes and from points, score both."""

from __future__ import annotations

from pathlib import Path

from weakly.engine.evaluate import evaluate
from weakly.engine.fit import fit
from weakly.engine.logs import console
from weakly.engine.recipe import DataSettings, EvaluationSettings, FeatureSettings, Recipe, RenderSettings
from weakly.engine.runs import Run
from weakly.engine.typed import build
from weakly.errors import UserError
from weakly.evaluation.records import Record, update_records
from weakly.files import write_json
from weakly.methods.base import find_method
from weakly.methods.optimisation import Optimisation

# Chosen so that two cores end within six minutes.
TRAIN_IMAGES = 1200
VAL_IMAGES = 100
IMAGE_SIZE = 256
KINDS = ("sedan", "van", "truck", "beetle", "sailboat", "schooner", "airliner", "propplane", "winebottle", "flask")
"""A small world: four super-categories, whose 12 parts a student learns in minutes. The recipes use all 39 kinds."""
WORLD_SEED = 7
EPOCHS = 12
STUDENT = {
    "width": 128,
    "heads": 4,
    "layers": 3,
    "ffn": 384,
    "queries": 16,
    "downsamples": 2,
    "aux_weight": 1.0,
    "eos_weight": 0.3,
    "position": "tokens",
}
OPTIMISATION = {"lr": 8e-4, "weight_decay": 1e-4, "optimizer": "adamw", "warmup_steps": 100, "batch_size": 8}
SUPERVISIONS = ("box", "point")


def demo_recipe(
    out: Path, supervision: str, *, train: int, val: int, epochs: int, segmenter: str = "bundled"
) -> Recipe:
    """The recipe of one of the two students; both share the world and its features."""
    errors: list[str] = []
    settings = {"segmenter": segmenter, "supervision": supervision, **STUDENT}
    recipe = Recipe(
        method="wps",
        data=DataSettings(
            kind="menagerie",
            root=str(out / "world"),
            render=RenderSettings(train=train, val=val, seed=WORLD_SEED, size=IMAGE_SIZE, kinds=KINDS),
        ),
        settings=build(find_method("wps").Settings, settings, "settings", errors),
        optimisation=build(Optimisation, {**OPTIMISATION, "epochs": epochs}, "optimisation", errors),
        features=FeatureSettings(root=str(out / "features")),
        evaluation=EvaluationSettings(frame_side=IMAGE_SIZE),
    )
    if errors:
        raise UserError(f"The demo's settings are wrong: {'; '.join(errors)}.")
    return recipe


def demo(
    out: Path,
    *,
    train: int = TRAIN_IMAGES,
    val: int = VAL_IMAGES,
    epochs: int = EPOCHS,
    segmenter: str = "bundled",
    command: str = "weakly demo",
) -> list[Record]:
    """Train and score a student from boxes and one from points, beside their upper bounds.

    Args:
        out: gets ``world/``, ``features/``, the runs ``box/`` and ``point/``, and ``metrics.json`` over both.
        train: images drawn for training.
        val: images drawn for scoring.
        epochs: passes over the training images.
        segmenter: the frozen segmenter.
        command: what the records state as their command.

    Returns:
        Records of oracle box, oracle point, WPS-box and WPS-point, in this order.
    """
    found: dict[tuple[str, str | None], Record] = {}
    for supervision in SUPERVISIONS:
        console.print(f"Learning parts from {supervision} labels alone")
        recipe = demo_recipe(out, supervision, train=train, val=val, epochs=epochs, segmenter=segmenter)
        run = fit(recipe, out / supervision)
        for record in evaluate(run.folder, command=command).records:
            found.setdefault((record.method, record.supervision), record)
    records = sorted(found.values(), key=lambda record: (record.method != "oracle", str(record.supervision)))
    update_records(Run(out).metrics, records)
    write_json(out / "demo.json", {"command": command, "runs": list(SUPERVISIONS)})
    return records
