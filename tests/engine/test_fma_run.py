"""FMA-WSSS through the whole engine on a rendered world in VOC's layout, on models with random weights."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "methods"))
from tiny_clip import tiny_clip

from weakly.cli import DONE, DONE_WITH_SKIPS, WRONG_USE, main
from weakly.engine.fit import fit
from weakly.engine.recipe import load_recipe
from weakly.engine.splits import open_split
from weakly.evaluation.records import read_records
from weakly.foundation.sam import SamSegmenter

RECIPE = """\
method: fma
data:
  kind: voc
  root: {root}/world
  render: {{layout: voc, train: 6, val: 3, seed: 5, size: 64, kinds: [dog, bear, sedan], workers: 1}}
settings:
  clip: {root}/clip
  segmenter: {root}/sam
  backgrounds: [grass, tree]
  masks: {{points_per_side: 3, crop_layers: 0, iou_threshold: 0.0, whole_iou_offset: 1.0, stability_threshold: 0.0,
           nms_threshold: 1.0, min_region: 4, level_of: area}}
  views: {{count: 2, crop: 32, long: [40, 60]}}
  classification: {{iterations: 30, warmup: 2, batch_size: 4, length: 4, lr: 0.05}}
  segmentation: {{iterations: 28, warmup: 2, batch_size: 4, length: 4, lr: 0.05}}
  deeplab: {{encoder: resnet18, output_stride: 16, decoder_channels: 16, atrous_rates: [1, 2, 3], aux_channels: 8}}
  augmentation: {{crop: 32, short: 32, long: 64}}
  inference: {{short: 32, long: 64}}
  refine: {{by: sams}}
optimisation:
  epochs: 2
  batch_size: 4
  lr: 0.001
  warmup_steps: 0
  optimizer: adamw
features:
  root: {root}/features
evaluation:
  frame_side: 64
device: cpu
"""


@pytest.fixture
def fma_recipe(small_sam: Path, tmp_path: Path) -> Path:
    clip = tiny_clip()
    clip.model.save_pretrained(tmp_path / "clip")
    clip.tokenizer.save_pretrained(tmp_path / "clip")
    path = tmp_path / "fma.yaml"
    path.write_text(RECIPE.format(root=tmp_path))
    return path


def test_tags_to_masks_through_fit_evaluate_and_predict(
    fma_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded: list[int] = []
    encode = SamSegmenter.encode
    monkeypatch.setattr(SamSegmenter, "encode", lambda self, x: (encoded.append(len(x)), encode(self, x))[1])
    assert main(["fit", str(fma_recipe), "--out", "run"]) == DONE
    assert sum(encoded) == 9, "masks of both splits, once; post-processing reads them"
    assert main(["evaluate", "run", "--split", "train"]) == DONE
    assert sum(encoded) == 9
    records = read_records(work / "run" / "metrics.json")
    rows = (("fma", "final"), ("fma", "coarse-seeds"), ("fma", "seeds"), ("clip-es", "seeds"))
    assert {(r.method, r.supervision, r.row, r.data, r.split, r.images) for r in records} == {
        (method, "tags", row, "menagerie", split, images)
        for method, row in rows
        for split, images in (("val", 3), ("train", 6))
    }
    assert all(0 <= r.miou == r.protocols["semantic"]["miou"] <= 1 for r in records)
    assert {(r.segmenter, r.segmenter_weights) for r in records if r.method == "clip-es"} == {(None, None)}
    assert "seeds" in (work / "run" / "metrics.json").read_text()
    assert (work / "run" / "report.html").is_file()
    assert len(list((work / "run" / "seeds" / "fine").iterdir())) == 9
    assert len(list((work / "run" / "seeds" / "coarse").iterdir())) == 9, "those of validation are scored alone"

    (work / "photos").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    Image.fromarray(noise).save(work / "photos" / "good.png")
    (work / "photos" / "bad.jpg").write_bytes(b"no image")
    assert main(["predict", "run", "photos", "--out", "masks"]) == DONE_WITH_SKIPS
    assert sum(encoded) == 10
    content = json.loads((work / "masks" / "predictions.json").read_text())
    assert [image["file_name"] for image in content["images"]] == [str(work / "photos" / "good.png")]
    with Image.open(work / "masks" / "label-maps" / "good.png") as picture:
        assert picture.size == (56, 40)
    assert capsys.readouterr().out


def test_the_stages_run_one_by_one(fma_recipe: Path, work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = {
        "classification": "prompts/classification-*[0-9a-f].safetensors",
        "coarse-seeds": "seeds/coarse/*.png",
        "segmentation": "prompts/segmentation-*[0-9a-f].safetensors",
        "seeds": "seeds/fine/*.png",
    }
    order = list(made)
    for place, stage in enumerate(["masks", *order]):
        assert main(["fit", str(fma_recipe), "--out", "run", "--until", stage]) == DONE
        there = [name for name, pattern in made.items() if any((work / "run").glob(pattern))]
        assert there == order[:place]
        assert not (work / "run" / "student").exists()
    assert main(["fit", str(fma_recipe), "--out", "run", "--until", "wsod"]) == WRONG_USE
    assert "no stage 'wsod'; its stages are masks, classification" in capsys.readouterr().err


def test_a_network_on_the_baselines_seeds_is_the_baselines(fma_recipe: Path, work: Path) -> None:
    assert main(["fit", str(fma_recipe), "--settings.seeds_by", "clip-es", "--out", "run"]) == DONE
    assert not (work / "run" / "prompts").exists(), "it learns no prompt"
    assert sorted(path.name for path in (work / "run" / "seeds").iterdir()) == ["clip-es"]
    records = read_records(work / "run" / "metrics.json")
    assert {(r.method, r.row) for r in records} == {("clip-es", "final"), ("clip-es", "seeds")}


def test_an_interrupted_run_ends_with_the_same_bytes(
    fma_recipe: Path, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in the masks, in each prompt set, in the coarse seeds and in the network's training."""
    recipe = load_recipe(fma_recipe, [("features.root", str(work / "features-a"))])
    whole = fit(recipe, work / "whole")
    again = load_recipe(fma_recipe, [("features.root", str(work / "features-b"))])
    moments = [
        ("masks train", 3),
        ("classification prompts", 26),
        ("coarse seeds train", 4),
        ("segmentation prompts", 27),
    ]
    for title, moment in moments:

        def stop(told: str, done: int, _: int, title: str = title, moment: int = moment) -> None:
            if (told, done) == (title, moment):
                raise RuntimeError(title)

        with monkeypatch.context() as patch:
            patch.setattr("weakly.engine.runs.show_progress", stop)
            with pytest.raises(RuntimeError, match=title):
                fit(again, work / "stopped")

    def stop_training(self: object, trainer: object, *_: object, **__: object) -> None:
        if trainer.global_step == 3:  # type: ignore[attr-defined]
            raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr("weakly.engine.logs.TrainingBar.on_train_batch_end", stop_training)
        with pytest.raises(RuntimeError):
            fit(again, work / "stopped")
    stopped = fit(again, work / "stopped")
    names = ["student/student.safetensors", "best/student.safetensors"]
    names += [str(path.relative_to(whole.folder)) for path in sorted((whole.folder / "seeds").rglob("*.png"))]
    names += [str(path.relative_to(whole.folder)) for path in sorted((whole.folder / "prompts").iterdir())]
    assert len(names) == 2 + 9 + 6 + 4
    for name in names:
        assert (whole.folder / name).read_bytes() == (stopped.folder / name).read_bytes(), name


def test_a_rendered_world_is_the_menagerie_in_either_layout(fma_recipe: Path, tmp_path: Path) -> None:
    data = load_recipe(fma_recipe).data
    dataset = open_split(data, "val")
    assert dataset.name == "menagerie" and len(dataset) == 3
    truth = dataset.truth(0).to_label_map(dataset.vocabulary.background)
    assert set(np.unique(truth).tolist()) == {*dataset[0].tags.labels.tolist(), dataset.vocabulary.background}


def test_a_missing_bundled_clip_is_one_sentence(
    fma_recipe: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("weakly.foundation.clip.BUNDLED", tmp_path / "none")
    assert main(["fit", str(fma_recipe), "--settings.clip", "bundled", "--out", "run"]) == WRONG_USE
    error = capsys.readouterr().err
    assert "train-clip" in error and "Traceback" not in error
