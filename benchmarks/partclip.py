"""PartCLIPSeg beside the unfactored formulation at the paper's sizes: a training step and an inference pass.

The other side (``partclip_reference.py``) does the same step by step: one sequence per image and prompt over copies of
the taps, attention weights of every layer, texts padded to the whole context, feature maps and texts concatenated class
by class, the whole vision tower. Every side is a process of its own, one after the other, with the same weights, images
and label maps, and what comes out is compared. Seconds and bytes are those of this machine; ratios carry over.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import CLIPConfig, CLIPModel, CLIPSegForImageSegmentation, CLIPTokenizer
from transformers.utils.logging import disable_progress_bar

from command import machine, run_command
from fma import verdict
from partclip_steps import IMAGE_SIZE, SIDES, UNFACTORED, Outputs
from weakly import __version__
from weakly.data.part_lists import part_list
from weakly.errors import UserError
from weakly.files import write_json
from weakly.foundation.clipseg import Preprocessing, attach_decoder, load_clipseg
from weakly.foundation.pretraining.small_clip import build_tokenizer
from weakly.methods.partclip.names import part_names

WANTED = 3.0
"""Times less time, and times less memory, that we want to need."""

TOLERANCE = {"masks": 1e-4, "losses": 1e-4, "gradients": 1e-3}
"""Largest difference of masks of a kind, of the losses, and of a tensor's gradient, relative to its largest value."""

NO_GRADIENT = 1e-6
"""Where a tensor's gradient is that much smaller than the largest of all, it is zero but for rounding."""

KEY_BIAS, KEY_WEIGHT = "k_proj.bias", "k_proj.weight"
"""A bias of the keys adds the same to all logits of a query, which a softmax does not see: its gradient is zero. What
is computed is rounding, compared with the gradient of the weight beside it."""

COUNTED = {
    "work": "bytes at the peak, less those held when all weights were loaded and read and the work began; in training "
    "gradients and the state of AdamW are in it, which are the same on all sides",
    "weights_and_work": "all weights, frozen ones too, and the work",
    "process": "the resident set of the whole process at its peak: interpreter, libraries, weights and work "
    "(on a GPU: what torch held there)",
}

COMPARED = ("wall_seconds", "cpu_seconds", *COUNTED)


@dataclass(frozen=True)
class Sizes:
    """Of a CLIPSeg; the defaults are those of ``CIDAS/clipseg-rd64-refined``."""

    side: int = 352
    image: int = 224
    width: int = 768
    layers: int = 12
    heads: int = 12
    text_width: int = 512
    text_layers: int = 12
    text_heads: int = 8
    joint: int = 512
    vocabulary: int = 49408
    taps: tuple[int, ...] = (3, 6, 9)
    reduce_dim: int = 64
    hidden: int = 2048


RANDOM = {
    "random-rd64": Sizes(),
    "random-small": Sizes(96, 64, 48, 4, 2, 32, 2, 2, 32, 2048, taps=(0, 1, 2), reduce_dim=16, hidden=64),
}


def benchmark(
    clipseg: str = "random-rd64",
    images: int = 2,
    passes: int = 3,
    seed: int = 0,
    device: str = "auto",
    out: Path = Path("docs/results/partclip-benchmark.json"),
) -> int:
    """Time a training step and an inference pass of PartCLIPSeg, 116 classes, against the unfactored formulation.

    Args:
        clipseg: random-rd64 (random weights of CLIPSeg's sizes at 352 px), random-small (to try this out), bundled, a
            folder or a hub id.
        images: of the training step; the inference pass has one. The paper's 8 take 24 GB unfactored.
        passes: of inference in every process; the first of several is not timed.
        seed: of weights, images and label maps.
        device: torch device; auto: the GPU if there is one.
        out: the JSON that is written.

    Returns:
        Exit code: 0, or 1 where the two sides did not give the same results.
    """
    if images < 1 or passes < 1:
        raise UserError(f"There is nothing to time with {images} images and {passes} passes; give at least 1 of each.")
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    names = part_names(part_list("pascal_part_116").vocabulary())
    with TemporaryDirectory() as folder:
        root = Path(folder)
        if clipseg in RANDOM:
            save_random(root / "clipseg", RANDOM[clipseg], seed)
        source = str(root / "clipseg") if clipseg in RANDOM else clipseg
        side = load_clipseg(source).side
        common = {"clipseg": source, "seed": seed, "device": str(where)}
        training = compare("training", root, {**common, "images": images, "calls": 1})
        inference = compare("inference", root, {**common, "images": 1, "calls": passes})
    result = {
        "benchmark": "partclip",
        "command": " ".join(["python benchmarks/partclip.py", *sys.argv[1:]]),
        "version": __version__,
        "machine": machine(where),
        "clipseg": clipseg,
        "side": side,
        "image_size": list(IMAGE_SIZE),
        "seed": seed,
        "names": {
            "data": "Pascal-Part-116",
            "classes": len(names),
            "prompts": len(names.parts) + len(names.objects) + 1,
        },
        "counted": COUNTED,
        "training": training,
        "inference": inference,
    }
    write_json(out, result)
    say(result, out)
    return 0 if training["same"] and inference["same"] else 1


def save_random(folder: Path, sizes: Sizes, seed: int) -> None:
    """Write a CLIPSeg with random weights as a folder in Hugging Face form; Pascal-Part's words are a token each."""
    names = part_names(part_list("pascal_part_116").vocabulary())
    tokenizer = build_tokenizer([*names.parts, *names.objects])
    torch.manual_seed(seed)
    random_clipseg(sizes, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = Preprocessing(sizes.side)
    size = {"height": sizes.side, "width": sizes.side}
    write_json(folder / "preprocessor_config.json", {"size": size, "image_mean": told.mean, "image_std": told.std})


@torch.no_grad()
def random_clipseg(sizes: Sizes, tokenizer: CLIPTokenizer) -> CLIPSegForImageSegmentation:
    """Drawn from torch's global random state."""
    text = {
        "vocab_size": sizes.vocabulary,
        "hidden_size": sizes.text_width,
        "intermediate_size": 4 * sizes.text_width,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.text_heads,
        **{f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")},
    }
    vision = {
        "image_size": sizes.image,
        "patch_size": 16,
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
    }
    towers = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=sizes.joint))
    for parameter in towers.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)  # with the library's draw every attention is flat and every text the same
    return attach_decoder(towers, sizes.taps, reduce_dim=sizes.reduce_dim, hidden=sizes.hidden)


def compare(step: str, root: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run all sides of a step, one process after the other; their figures, ratios and differences.

    Raises:
        UserError: a process failed.
    """
    figures: dict[str, dict[str, Any]] = {}
    differences: dict[str, dict[str, float]] = {}
    expected: Outputs = {}
    for side in SIDES[step]:
        folder = root / f"{step}-{side}"
        folder.mkdir()
        figures[side] = run(step, side, folder, options)
        outputs = load_file(folder / "outputs.safetensors")
        if side == UNFACTORED:
            expected = outputs
        else:
            differences[side] = difference(expected, outputs)
        (folder / "outputs.safetensors").unlink()
    ratios = {side: ratio(figures[UNFACTORED], own) for side, own in figures.items() if side != UNFACTORED}
    return {
        "images": options["images"],
        "figures": figures,
        "times_less": ratios,
        "wanted": WANTED,
        "met": {side: {name: value >= WANTED for name, value in own.items()} for side, own in ratios.items()},
        "largest_relative_difference": differences,
        "tolerance": TOLERANCE,
        "same": all(value <= TOLERANCE[name] for own in differences.values() for name, value in own.items()),
    }


def run(step: str, side: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Mean seconds and the bytes of one side; the first call of several only warms up.

    Raises:
        UserError: the process failed.
    """
    told = {"step": step, "side": side, "out": folder, **options}
    program = [str(Path(__file__).with_name("partclip_steps.py")), *(f"--{key}={value}" for key, value in told.items())]
    if subprocess.run([sys.executable, *program], check=False).returncode != 0:
        raise UserError(f"The {step} of {side} failed; see its message above.")
    found = json.loads((folder / "figures.json").read_text())
    seconds = {f"{name}_seconds": mean(found[name][1:] or found[name]) for name in ("wall", "cpu")}
    work, weights = found["peak"] - found["loaded"], found["weights"]
    return {**seconds, "work": work, "weights_and_work": weights + work, "process": found["peak"], "weights": weights}


def difference(expected: Outputs, found: Outputs) -> dict[str, float]:
    """Largest relative difference of masks, losses and gradients, as far as there are any; see ``TOLERANCE``."""
    differences = {name: (found[name] - tensor).abs().max().item() for name, tensor in expected.items()}
    sizes = {name: tensor.abs().max().item() for name, tensor in expected.items()}
    for name in [name for name in sizes if name.endswith(KEY_BIAS)]:
        sizes[name] = max(sizes[name], sizes[name.removesuffix(KEY_BIAS) + KEY_WEIGHT])
    kinds = {name: kind_of(name) for name in expected}
    largest = {kind: max(sizes[name] for name in sizes if kinds[name] == kind) for kind in set(kinds.values())}
    least = {"masks": 0.0, "losses": 1.0, "gradients": NO_GRADIENT}
    compared = dict.fromkeys(largest, 0.0)
    for name, kind in kinds.items():
        size = max(sizes[name], least[kind] * largest[kind])
        compared[kind] = max(compared[kind], differences[name] / size)
    return compared


def kind_of(output: str) -> str:
    """Of an output of ``partclip_steps.py`` by its name."""
    if output.startswith("gradient."):
        return "gradients"
    return "masks" if output.endswith("_logits") else "losses"


def ratio(other: dict[str, Any], own: dict[str, Any]) -> dict[str, float]:
    """How many times less of everything a side takes."""
    return {name: other[name] / own[name] for name in COMPARED}


def mean(values: Sequence[float]) -> float:
    """Of one or more values."""
    return sum(values) / len(values)


def say(result: dict[str, Any], out: Path) -> None:
    """The figures in a few lines."""
    names = result["names"]
    print(f"{result['clipseg']} at {result['side']} px, {names['classes']} classes, {names['prompts']} prompts")
    for step in SIDES:
        say_step(step, result[step])
    for name, meaning in COUNTED.items():
        print(f"{words(name)}: {meaning}")
    print(f"written to {out}")


def say_step(step: str, part: dict[str, Any]) -> None:
    """Figures of all sides, then how many times less each takes and whether that is what was wanted."""
    print(f"{step}: {part['images']} image{'s' if part['images'] > 1 else ''} ({verdict(part)})")
    for side, own in part["figures"].items():
        memory = ", ".join(f"{words(name)} {own[name] / 2**30:.3f} GiB" for name in COUNTED)
        print(
            f"  {words(side):18} {own['wall_seconds']:8.3f} s, {own['cpu_seconds']:8.3f} s of the processor; {memory}"
        )
    for side, own in part["times_less"].items():
        told = ", ".join(
            f"{words(name)} {value:.2f} ({'met' if part['met'][side][name] else 'NOT met'})"
            for name, value in own.items()
        )
        print(f"  {words(side)}, times less (wanted: {part['wanted']:g}): {told}")
    for side, own in part["largest_relative_difference"].items():
        told = ", ".join(f"{name} {value:.1e}" for name, value in own.items())
        print(f"  {words(side)}, largest relative difference: {told}")


def words(name: str) -> str:
    """A key, to be read."""
    return name.replace("_", " ")


def main(args: Sequence[str] | None = None) -> int:
    """The command line; a user's error is one sentence."""
    disable_progress_bar()
    return run_command(benchmark, args)


if __name__ == "__main__":
    sys.exit(main())
