"""One training step, or inference passes, of PartCLIPSeg in a process of its own: seconds, memory, and what came out.

``benchmarks/partclip.py`` starts this program once per side. Memory is that of the whole process on a CPU (the resident
set of Linux, whose peak can be set back), that of torch's allocator on a GPU.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import move_data_to_device
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from command import run_command
from fma import rendered
from partclip_reference import reference_attention_loss, reference_mask_loss, unfactored
from side_by_side import timed
from weakly.data.part_lists import part_list
from weakly.files import write_json
from weakly.foundation.clipseg import ClipSeg
from weakly.methods.optimisation import Optimisation
from weakly.methods.partclip import build_student
from weakly.methods.partclip.attention import find_objects, find_regions
from weakly.methods.partclip.learner import PartClipLearner
from weakly.methods.partclip.names import PartNames, part_names
from weakly.methods.partclip.presets import OFFICIAL_SWITCHES, OPTIMISATION
from weakly.methods.partclip.settings import LossWeights, PartClipSettings, Switches
from weakly.methods.partclip.taps import frozen_encoder
from weakly.methods.partclip.targets import PartBatch

UNFACTORED, WEAKLY, FROM_STORE, NAMES_KNOWN = "unfactored", "weakly", "weakly_from_store", "weakly_names_known"

SIDES = {"training": (UNFACTORED, WEAKLY, FROM_STORE), "inference": (UNFACTORED, WEAKLY, NAMES_KNOWN)}
"""All begin with pixels and names, but for the last: taps from the feature store, as ``fit`` has them; names encoded
before, as ``predict`` has them from its second image on."""

IMAGE_SIZE = (375, 500)
NOISE = 0.05
STRIPES = 6
"""Parts that an image shows of an object, at most."""

Outputs = dict[str, Tensor]


class Problem(NamedTuple):
    """What both sides are given.

    Attributes:
        learner: holds the student; its losses are those of the released code (``compat``), which both sides know.
        clipseg: the frozen towers.
        names: of all classes.
        pixels: (B, 3, S, S).
        classes: (B, S, S) class of a pixel.
        objects: (B, S, S) object of a pixel.
    """

    learner: PartClipLearner
    clipseg: ClipSeg
    names: PartNames
    pixels: Tensor
    classes: Tensor
    objects: Tensor


def measure(
    step: Literal["training", "inference"],
    side: str,
    clipseg: str,
    out: Path,
    images: int = 1,
    calls: int = 1,
    seed: int = 0,
    device: str = "cpu",
) -> int:
    """Run one side and write ``figures.json`` and ``outputs.safetensors``.

    Args:
        step: training or inference.
        side: see SIDES.
        clipseg: bundled, a folder or a hub id.
        out: folder of the results, which must exist.
        images: B.
        calls: how often; outputs are those of the last one. A training step changes the weights, so it runs once.
        seed: of images, targets and new weights.
        device: torch device.
    """
    problem = build_problem(clipseg, images, seed, torch.device(device))
    call = training_side(side, problem) if step == "training" else inference_side(side, problem)
    weights = read_weights(problem)
    memory = Memory(torch.device(device))
    seconds = []
    outputs: Outputs = {}
    for _ in range(calls):
        outputs.clear()  # or two results would be held at once
        outputs, spent = timed(call, torch.device(device))
        seconds.append(spent)
    times = {"wall": [each.wall for each in seconds], "cpu": [each.cpu for each in seconds]}
    write_json(out / "figures.json", {**times, "weights": weights, **memory.figures()})
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in outputs.items()}
    save_file(kept, out / "outputs.safetensors")
    return 0


def build_problem(clipseg: str, images: int, seed: int, device: torch.device) -> Problem:
    """Rendered images, made-up label maps of Pascal-Part-116, and a student whose copies are no longer equal."""
    encoder = frozen_encoder(clipseg, device=str(device))
    vocabulary = part_list("pascal_part_116").vocabulary()
    settings = PartClipSettings(clipseg=clipseg, switches=Switches(**OFFICIAL_SWITCHES))  # type: ignore[arg-type]
    torch.manual_seed(seed)
    student = build_student(settings, encoder.clipseg)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=NOISE)
    learner = PartClipLearner(student, settings, vocabulary, Optimisation(**OPTIMISATION), 1).to(device)
    names = part_names(vocabulary)
    classes, objects = label_maps(names, images, encoder.side, seed)
    pixels = encoder.preprocess([rendered(seed, index, IMAGE_SIZE) for index in range(images)])
    return Problem(learner, encoder.clipseg, names, pixels.to(device), classes.to(device), objects.to(device))


def label_maps(names: PartNames, images: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """(B, S, S) classes and objects: two objects per image side by side, stripes of parts in a frame without any."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.full((images, side, side), len(names))
    objects = torch.full((images, side, side), len(names.objects))
    edge = side // 8
    for image in range(images):
        chosen = torch.randperm(len(names.objects), generator=generator)[:2].tolist()
        for owner, left in zip(chosen, (edge // 2, side // 2), strict=True):
            right = left + side // 2 - edge
            objects[image, edge : side - edge, left:right] = owner
            shown = [k for k, whole in enumerate(names.object_of) if whole == owner][:STRIPES]
            rows = torch.linspace(2 * edge, side - 2 * edge, len(shown) + 1).long().tolist()
            for label, top, bottom in zip(shown, rows, rows[1:], strict=False):
                classes[image, top:bottom, left + edge // 2 : right - edge // 2] = label
    return classes, objects


def training_side(side: str, problem: Problem) -> Callable[[], Outputs]:
    """A whole step: losses, gradients, clipping, AdamW."""
    learner, clipseg = problem.learner, problem.clipseg
    optimizer = learner.configure_optimizers()["optimizer"]
    taps = clipseg.taps(problem.pixels) if side == FROM_STORE else None

    def losses() -> Outputs:
        if side == UNFACTORED:
            return unfactored_losses(problem)
        return factored_losses(problem, clipseg.taps(problem.pixels) if taps is None else taps)

    def step() -> Outputs:
        found = losses()
        found["loss"].backward()
        trained = {name: each for name, each in learner.student.named_parameters() if each.requires_grad}
        torch.nn.utils.clip_grad_norm_(trained.values(), learner.optimisation.grad_clip or 0)
        optimizer.step()
        return {**found, **{f"gradient.{name}": each.grad for name, each in trained.items() if each.grad is not None}}

    return step


def factored_losses(problem: Problem, taps: Tensor) -> Outputs:
    """As :class:`PartClipLearner` trains; its loader finds the regions on the CPU, here they are part of the step."""
    grid, counts = problem.clipseg.grid, (len(problem.names), len(problem.names.objects))
    parts = find_regions(problem.classes, counts[0], grid, "nearest")
    wholes = find_objects(problem.objects, counts[1], grid, "nearest", "image")
    batch = PartBatch(taps, problem.classes, problem.objects, parts, wholes)
    found = problem.learner.losses(move_data_to_device(batch, taps.device))
    masks = found["classes"] + found["objects"] + found["parts"]
    return {"masks": masks, **{name: found[name] for name in ("separation", "enhancement", "loss")}}


def unfactored_losses(problem: Problem) -> Outputs:
    """The same losses by loops over images, objects and classes."""
    student, names, maps = problem.learner.student, problem.names, (problem.classes, problem.objects)
    output = unfactored(student, problem.clipseg, problem.pixels, names)
    masks = reference_mask_loss(output, names, *maps)
    separation, enhancement = reference_attention_loss(output.attention, names, *maps, student.grid)
    weights = LossWeights()
    loss = masks + weights.separation * separation + weights.enhancement * enhancement
    return {"masks": masks, "separation": separation, "enhancement": enhancement, "loss": loss}


def inference_side(side: str, problem: Problem) -> Callable[[], Outputs]:
    """A pass from pixels to the masks of all prompts and all classes."""
    student, clipseg, names = problem.learner.student, problem.clipseg, problem.names
    chunk = problem.learner.settings.class_chunk
    with torch.no_grad():
        known = student.encode_names(clipseg, names) if side == NAMES_KNOWN else None

    @torch.no_grad()
    def masks() -> Outputs:
        found: Any
        if side == UNFACTORED:
            found = unfactored(student, clipseg, problem.pixels, names)
        else:
            embedded = student.encode_names(clipseg, names) if known is None else known
            found = student(clipseg.taps(problem.pixels), embedded, chunk=chunk)
        return {"trunk_logits": found.trunk_logits, "class_logits": found.class_logits}

    return masks


def read_weights(problem: Problem) -> int:
    """Bytes of all weights; each is read once, so that none is still on disk when memory is first looked at."""
    weights = [each for module in (problem.clipseg, problem.learner) for each in module.parameters()]
    for each in weights:
        each.detach().sum()
    return sum(each.nbytes for each in weights)


class Memory:
    """Bytes held from now on, at most; what loading took for a while does not count.

    Args:
        device: whose memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        gc.collect()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.loaded = torch.cuda.memory_allocated(device)
            return
        ctypes.CDLL(None).malloc_trim(0)  # what was freed must not hide what will be taken
        Path("/proc/self/clear_refs").write_text("5")
        self.loaded = resident("VmRSS")

    def figures(self) -> dict[str, int]:
        """Bytes ``loaded`` when this was made, and the ``peak`` since."""
        peak = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else resident("VmHWM")
        return {"loaded": self.loaded, "peak": peak}


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process in memory: now, or at most since the peak was set back."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def main(args: Sequence[str] | None = None) -> int:
    """The command line; a user's error is one sentence."""
    disable_progress_bar()
    return run_command(measure, args)


if __name__ == "__main__":
    sys.exit(main())
