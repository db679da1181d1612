"""The benchmark of PartCLIPSeg against the unfactored formulation, run end to end on a CLIPSeg of tests' size."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def partclip():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import partclip

        yield partclip


@pytest.fixture
def one_process(partclip, monkeypatch):
    """Runs the sides in this process, which has imported everything already."""
    steps = sys.modules["partclip_steps"]
    monkeypatch.setattr(
        partclip.subprocess, "run", lambda words, check: subprocess.CompletedProcess(words, steps.main(words[2:]))
    )


@pytest.fixture(scope="module")
def clipseg(partclip, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clipseg")
    partclip.save_random(folder, partclip.RANDOM["random-small"], seed=0)
    return folder


def small(clipseg: Path, out: Path) -> list[str]:
    return [f"--clipseg={clipseg}", "--images=1", "--passes=2", "--device=cpu", f"--out={out}"]


def test_both_sides_give_the_same_and_every_figure_says_what_it_counts(
    partclip, one_process, clipseg, tmp_path, capsys
):
    out = tmp_path / "results.json"
    assert partclip.main(small(clipseg, out)) == 0
    result = json.loads(out.read_text())
    assert (result["names"]["classes"], result["names"]["prompts"], result["side"]) == (116, 59, 96)
    assert set(result["counted"]) == {"work", "weights_and_work", "process"}
    for step, last in (("training", "weakly_from_store"), ("inference", "weakly_names_known")):
        part = result[step]
        assert part["same"] and part["wanted"] == 3 and set(part["figures"]) == {"unfactored", "weakly", last}
        other = part["figures"]["unfactored"]
        for side, less in part["times_less"].items():
            own = part["figures"][side]
            assert less == {name: pytest.approx(other[name] / own[name]) for name in less}
            assert part["met"][side] == {name: value >= 3 for name, value in less.items()}
            assert own["weights_and_work"] == own["weights"] + own["work"] < own["process"]
            assert own["weights"] == other["weights"] and own["work"] > 0
    assert 0 < result["training"]["largest_relative_difference"]["weakly"]["gradients"] < 1e-4
    assert 0 < result["inference"]["largest_relative_difference"]["weakly"]["masks"] < 1e-5
    printed = capsys.readouterr().out
    assert "met" in printed and "NOT the same" not in printed
    assert printed.count("times less (wanted: 3)") == 4


def test_results_that_differ_are_told(partclip, one_process, clipseg, tmp_path, monkeypatch, capsys):
    steps = sys.modules["partclip_steps"]
    right = steps.unfactored_losses
    monkeypatch.setattr(
        steps, "unfactored_losses", lambda problem: {name: 1.001 * value for name, value in right(problem).items()}
    )
    assert partclip.main(small(clipseg, tmp_path / "results.json")) == 1
    printed = capsys.readouterr().out
    assert "training: 1 image (NOT the same)" in printed and "inference: 1 image (the same)" in printed


def test_a_side_is_a_process_of_its_own(partclip, clipseg, tmp_path):
    options = {"clipseg": str(clipseg), "seed": 0, "device": "cpu", "images": 1, "calls": 1}
    figures = partclip.run("inference", "weakly", tmp_path, options)
    outputs = partclip.load_file(tmp_path / "outputs.safetensors")
    assert outputs["trunk_logits"].shape == (1, 59, 96, 96) and outputs["class_logits"].shape == (1, 117, 96, 96)
    # The masks themselves are part of the work.
    assert sum(tensor.nbytes for tensor in outputs.values()) < figures["work"] < figures["process"]


def test_the_random_model_has_the_sizes_of_the_published_one(partclip):
    """The counts of spec section 1.9: towers and text tables, and the decoder as it comes with the checkpoint."""
    with torch.device("meta"):
        model = partclip.random_clipseg(partclip.RANDOM["random-rd64"], partclip.build_tokenizer(["head"]))
    towers = 85_799_424 + 393_216 + 37_829_632 + 262_144 + 1 + 25_336_320
    decoder = 843_456 + 147_648 + 70_241 + 2 * 32_832
    assert [sum(p.numel() for p in part.parameters()) for part in (model.clip, model.decoder)] == [towers, decoder]


def test_the_peak_is_that_of_the_work_alone(partclip):
    steps = sys.modules["partclip_steps"]
    before = torch.ones(64, 2**20)
    del before
    memory = steps.Memory(torch.device("cpu"))
    torch.ones(32, 2**20).sum()
    figures = memory.figures()
    # The kernel counts pages processor by processor and adds them up late.
    assert figures["peak"] - figures["loaded"] == pytest.approx(128 * 2**20, abs=8 * 2**20)


def test_made_up_images_show_labelled_and_unlabelled_pixels_of_two_objects(partclip):
    steps = sys.modules["partclip_steps"]
    names = steps.part_names(steps.part_list("pascal_part_116").vocabulary())
    classes, objects = steps.label_maps(names, 3, 96, seed=0)
    owner = torch.tensor([*names.object_of, len(names.objects)])
    labelled = classes < len(names)
    assert torch.equal(owner[classes][labelled], objects[labelled])
    for image in range(3):
        assert len(objects[image].unique()) == 3 and (objects[image] == len(names.objects)).any()
        assert ((objects[image] < len(names.objects)) & ~labelled[image]).any() and labelled[image].any()


def test_help_and_user_errors(partclip, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        partclip.main(["--help"])
    assert stopped.value.code == 0
    assert "--passes" in capsys.readouterr().out
    for wrong in (["--clipseg", str(tmp_path / "absent")], ["--images", "0"]):
        assert partclip.main(wrong) == 2
        assert capsys.readouterr().err.strip().count("\n") == 0


def test_a_process_that_failed_is_named(partclip, tmp_path, monkeypatch):
    monkeypatch.setattr(partclip.subprocess, "run", lambda words, check: subprocess.CompletedProcess(words, 1))
    with pytest.raises(partclip.UserError, match="The training of unfactored failed"):
        partclip.run("training", "unfactored", tmp_path, {})
