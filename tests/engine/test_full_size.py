"""A SAM ViT-B at 1024 px, in either form it comes in, is served by the commands that serve the bundled one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import SamConfig, SamModel, SamVisionConfig

from weakly.cli import main
from weakly.data.menagerie.write import write_partimagenet
from weakly.foundation.sam_checkpoint import to_original

RECIPE = Path(__file__).parents[2] / "recipes" / "wps" / "partimagenet.yaml"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights of the real size: a Hugging Face folder and an original .pth file of the same model."""
    folder = tmp_path_factory.mktemp("vit-b")
    torch.manual_seed(0)
    model = SamModel(SamConfig(vision_config=SamVisionConfig(initializer_range=0.02).to_dict()))
    model.save_pretrained(folder / "hf")
    torch.save(to_original(model), folder / "sam_vit_b.pth")
    return {"folder": folder / "hf", "pth": folder / "sam_vit_b.pth"}


@pytest.mark.slow
@pytest.mark.parametrize("form", ["folder", "pth"])
def test_the_partimagenet_recipe_trains_a_step(checkpoints: dict[str, Path], form: str, tmp_path: Path) -> None:
    world = tmp_path / "PartImageNet"
    write_partimagenet(world, {"train": 40, "val": 8}, seed=3, size=96, workers=1)
    run = tmp_path / "run"
    options = {
        "settings.segmenter": checkpoints[form],
        "data.root": world,
        "data.limit_train": 1,
        "data.limit_val": 1,
        "features.root": tmp_path / "features",
        "optimisation.epochs": 2,
        "evaluation.references": "false",
        "device": "cpu",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    assert main(["fit", str(RECIPE), "--out", str(run), *words]) == 0
    config = json.loads((run / "student" / "config.json").read_text())
    assert config["settings"]["queries"] == 25
    rows = [json.loads(line) for line in (run / "logs" / "log.jsonl").read_text().splitlines()]
    assert any("val/loss" in row for row in rows)
    (record,) = json.loads((run / "metrics.json").read_text())["records"]
    assert record["protocols"].keys() == {"dataset41", "dataset40", "pair_binary", "official_rowwise"}
    assert (run / "report.html").stat().st_size > 10_000
