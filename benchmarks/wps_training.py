"""What the feature store buys WPS-SAM: an epoch with the frozen encoder in the loop against one from the store.

Both sides are the same run: the same segmenter, images, targets, initial student and order, so that the losses can be
compared step by step. Times are seconds on this machine; only their ratio carries over to others.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import SamConfig, SamModel, SamVisionConfig

from command import machine, run_command
from weakly import __version__
from weakly.data.dataset import Dataset
from weakly.data.menagerie.write import write_partimagenet
from weakly.data.partimagenet import read_partimagenet
from weakly.files import write_json
from weakly.foundation.feature_codec import FEATURE_DTYPES, FeatureDtype, drift, image_bytes
from weakly.foundation.features import FeatureStore
from weakly.foundation.sam import SamSegmenter, load_segmenter
from weakly.methods.optimisation import Optimisation, build_optimizer
from weakly.methods.wps.learner import WpsLearner, build_prompter
from weakly.methods.wps.settings import WpsSettings
from weakly.methods.wps.targets import Targets, WpsBatch, WpsData, teacher_targets

PAPER_EPOCHS = 150
PAPER_IMAGES = 20_466
"""Training images of PartImageNet's Seg split."""
PAPER_HOURS = 59
"""Training time of WPS-SAM with a frozen encoder (paper, Table A); the paper does not name the hardware."""

TOLERANCES: dict[FeatureDtype, float] = {"float32": 1e-5, "float16": 1e-2}
"""Largest relative difference of any step's loss between the two sides, by coding of the store."""

GPU_FIGURES = (
    "images per second of the full-size encoder and of the student, by batch and precision",
    "fraction of the GPU's bf16 peak that the encoder reaches",
    f"hours for {PAPER_EPOCHS} epochs of {PAPER_IMAGES:,} images, against the paper's {PAPER_HOURS}",
)


@dataclass(frozen=True)
class Epoch:
    """An epoch's time and the loss of every step."""

    seconds: float
    losses: list[float]


def benchmark(
    segmenter: str = "random-vit-b",
    images: int = 4,
    batch_size: int = 2,
    queries: int = 25,
    store_epochs: int = 3,
    seed: int = 0,
    device: str = "auto",
    peak_tflops: float = 790.0,
    out: Path = Path("docs/results/wps-training-benchmark.json"),
) -> int:
    """Time a training epoch of WPS-SAM with the encoder in the loop and from the feature store, in one run.

    Args:
        segmenter: random-vit-b (SAM ViT-B at 1024 px with random weights: time does not depend on them), bundled, a
            folder, a .pth file or a hub id.
        images: rendered training images.
        batch_size: images per step.
        queries: S of the student; all its other sizes are the paper's.
        store_epochs: epochs from the store; the median counts.
        seed: of the images and of the random weights.
        device: torch device; auto: the GPU if there is one.
        peak_tflops: dense bf16 peak of the GPU, in TFLOP/s, for the fraction reached.
        out: the JSON that is written.

    Returns:
        Exit code: 0, or 1 where the two sides did not train on the same losses.
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    frozen = build_segmenter(segmenter, seed).to(where)
    settings = WpsSettings(segmenter=segmenter, queries=queries)
    with tempfile.TemporaryDirectory() as folder:
        dataset = rendered(Path(folder) / "world", images, seed)
        comparison = compare(
            frozen, dataset, settings, Path(folder) / "features", where, batch_size, store_epochs, seed
        )
        flops = count_flops(frozen, settings, len(dataset.vocabulary))
        gpu = None
        if where.type == "cuda":
            gpu = throughput(frozen, dataset, settings, flops, where, peak_tflops)
    result = {
        "benchmark": "wps-training",
        "command": " ".join(["python benchmarks/wps_training.py", *sys.argv[1:]]),
        "version": __version__,
        "machine": machine(where),
        "segmenter": segmenter,
        "side": frozen.side,
        "images": images,
        "batch_size": batch_size,
        "queries": queries,
        "seed": seed,
        **comparison,
        "gflop": flops,
        "gpu": gpu,
        "not_measured": [] if gpu else list(GPU_FIGURES),
    }
    write_json(out, result)
    say(result, out)
    return 0 if all(loss["same"] for loss in comparison["losses"].values()) else 1


def build_segmenter(name: str, seed: int) -> SamSegmenter:
    """A frozen SAM; ``random-vit-b`` has SAM ViT-B's sizes, a N(0, 1) Gaussian matrix and random weights otherwise."""
    if name != "random-vit-b":
        return load_segmenter(name)
    torch.manual_seed(seed)
    # The library draws the ViT's weights 1e-10 small, which leaves embeddings of zeros.
    model = SamModel(SamConfig(vision_config=SamVisionConfig(initializer_range=0.02).to_dict()))
    nn.init.normal_(model.shared_image_embedding.positional_embedding)
    model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
    return SamSegmenter(model, name)


def rendered(folder: Path, images: int, seed: int) -> Dataset:
    """The training split of a small menagerie: 40 part categories, like PartImageNet."""
    write_partimagenet(folder, {"train": images, "val": 1}, seed=seed, workers=1)
    return read_partimagenet(folder, "train", allow_ood=True)  # so few images need not share classes with "val"


def compare(
    segmenter: SamSegmenter,
    dataset: Dataset,
    settings: WpsSettings,
    features: Path,
    device: torch.device,
    batch_size: int,
    store_epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Epoch times, their ratio, losses side by side, and what the store's codings change."""
    paths = [sample.path for sample in dataset]
    targets = teacher_targets(segmenter, dataset, settings)
    stores, built = {}, {}
    for dtype in TOLERANCES:
        clock = Clock(device)
        stores[dtype] = FeatureStore.open(features, segmenter, dtype)
        keys = stores[dtype].build(paths, batch_size=batch_size).keys
        built[dtype] = clock.seconds()

    def learner() -> WpsLearner:
        return fresh_learner(segmenter, dataset, settings, seed).to(device)

    data = {dtype: WpsData((store.hold(keys, 4 << 30, device),), targets) for dtype, store in stores.items()}
    train(learner(), from_store(data["float16"], batch_size, device), device)  # warms up allocator and kernels
    loop = train(learner(), encoder_in_the_loop(segmenter, dataset, targets, batch_size, device), device)
    stored = {
        dtype: [train(learner(), from_store(data[dtype], batch_size, device), device) for _ in range(store_epochs)]
        for dtype in TOLERANCES
    }
    seconds = median([epoch.seconds for epoch in stored["float16"]])
    exact = stores["float32"].get(keys)
    return {
        "seconds": {
            "epoch_with_encoder_in_the_loop": loop.seconds,
            "epoch_from_store": seconds,
            "building_the_store_once": built["float16"],
        },
        "ratio_of_epochs": loop.seconds / seconds,
        "ratio_of_paper_training": PAPER_EPOCHS * loop.seconds / (built["float16"] + PAPER_EPOCHS * seconds),
        "targets": "teacher tokens computed once, on both sides",
        "losses": {dtype: compare_losses(loop, epochs[0], TOLERANCES[dtype]) for dtype, epochs in stored.items()},
        "store": {dtype: coding(exact, dtype) for dtype in FEATURE_DTYPES},
    }


def fresh_learner(segmenter: SamSegmenter, dataset: Dataset, settings: WpsSettings, seed: int) -> WpsLearner:
    """The same student every time."""
    torch.manual_seed(seed)
    student = build_prompter(settings, len(dataset.vocabulary), segmenter)
    optimisation = Optimisation(warmup_steps=0)
    return WpsLearner(student, settings, dataset.vocabulary, optimisation, total_steps=1, segmenter=segmenter)


def encoder_in_the_loop(
    segmenter: SamSegmenter, dataset: Dataset, targets: Targets, batch_size: int, device: torch.device
) -> Iterator[WpsBatch]:
    """An epoch as the released code does it: every image is read, resized and encoded again."""
    for rows in torch.arange(len(dataset)).split(batch_size):
        pixels = segmenter.preprocess([dataset.image(row) for row in rows.tolist()])
        yield WpsBatch(segmenter.encode(pixels), *targets.gather(rows)).to(device)


def from_store(data: WpsData, batch_size: int, device: torch.device) -> Iterator[WpsBatch]:
    """An epoch from stored features, in the same order."""
    for rows in torch.arange(len(data)).split(batch_size):
        yield data.__getitems__(rows.tolist()).to(device)


def train(
    learner: WpsLearner, batches: Iterable[WpsBatch], device: torch.device, dtype: torch.dtype = torch.float32
) -> Epoch:
    """One optimiser step per batch."""
    optimizer = build_optimizer(learner.student.parameters(), learner.optimisation)
    losses: list[Tensor] = []
    clock = Clock(device)
    for batch in batches:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss, _ = learner.training_loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return Epoch(clock.seconds(), torch.stack(losses).tolist())


def compare_losses(loop: Epoch, stored: Epoch, tolerance: float) -> dict[str, Any]:
    """Losses side by side and whether they are the same training."""
    difference = max(abs(a - b) / abs(a) for a, b in zip(loop.losses, stored.losses, strict=True))
    return {
        "encoder_in_the_loop": loop.losses,
        "from_store": stored.losses,
        "largest_relative_difference": difference,
        "tolerance": tolerance,
        "same": difference <= tolerance,
    }


def coding(exact: Tensor, dtype: FeatureDtype) -> dict[str, float]:
    """Bytes per image and drift of one coding of (n, C, h, w) features."""
    change = drift(exact, dtype)
    _, channels, height, width = exact.shape
    size = image_bytes(dtype, (channels, height, width))
    return {"bytes_per_image": size, "max_abs": change.max_abs, "relative_l2": change.relative_l2}


def count_flops(segmenter: SamSegmenter, settings: WpsSettings, classes: int) -> dict[str, float]:
    """GFLOP per image (2 per multiply-add), counted on tensors without storage."""
    encoder = copy.deepcopy(segmenter.model.vision_encoder).to("meta")
    student = build_prompter(settings, classes, segmenter).to("meta")
    with FlopCounterMode(display=False) as encoding, torch.no_grad():
        encoder(torch.empty(1, 3, segmenter.side, segmenter.side, device="meta"))
    with FlopCounterMode(display=False) as step:
        logits, tokens, _ = student(torch.empty(1, *segmenter.embedding_shape, device="meta"))
        (logits.sum() + tokens.sum()).backward()
    once, every = encoding.get_total_flops() / 1e9, step.get_total_flops() / 1e9
    return {
        "encoder": once,
        "student_forward_and_backward": every,
        "ratio_of_paper_training": PAPER_EPOCHS * (once + every) / (once + PAPER_EPOCHS * every),
    }


def throughput(
    segmenter: SamSegmenter,
    dataset: Dataset,
    settings: WpsSettings,
    flops: dict[str, float],
    device: torch.device,
    peak_tflops: float,
    *,
    batches: Sequence[int] = (8, 32, 64),
    steps: int = 10,
) -> dict[str, Any]:
    """Images per second of encoder and student, and how long the paper's training would take at the best of them."""
    result: dict[str, Any] = {"encoder": [], "student": []}
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for batch in batches:
            pixels = torch.randn(batch, 3, segmenter.side, segmenter.side, device=device)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                speed = batch / seconds_per_call(partial(segmenter.encode, pixels), device, steps)
            tflops = speed * flops["encoder"] / 1e3
            peak = {"fraction_of_bf16_peak": tflops / peak_tflops} if dtype == torch.bfloat16 else {}
            row = {"dtype": name, "batch": batch, "images_per_second": speed, "tflops": tflops, **peak}
            result["encoder"].append(row)
        for batch in batches:
            speed = student_speed(segmenter, dataset, settings, batch, dtype, device, steps)
            result["student"].append({"dtype": name, "batch": batch, "images_per_second": speed})
    encoder, student = (max(row["images_per_second"] for row in result[side]) for side in ("encoder", "student"))
    hours = {
        "store_once": PAPER_IMAGES / encoder / 3600,
        "epochs": PAPER_EPOCHS * PAPER_IMAGES / student / 3600,
    }
    total = sum(hours.values())
    result["extrapolated_paper_training"] = {
        "epochs": PAPER_EPOCHS,
        "images": PAPER_IMAGES,
        "hours": {**hours, "total": total},
        "hours_of_the_paper": PAPER_HOURS,
        "ratio": PAPER_HOURS / total,
        "note": "compute alone, at the best speeds above; reading images is not in it, the paper names no hardware",
    }
    return result


def student_speed(
    segmenter: SamSegmenter,
    dataset: Dataset,
    settings: WpsSettings,
    batch: int,
    dtype: torch.dtype,
    device: torch.device,
    steps: int,
) -> float:
    """Images per second of whole training steps, matching included, on random embeddings and real targets."""
    targets = teacher_targets(segmenter, dataset, settings)
    embeddings = torch.randn(batch, *segmenter.embedding_shape, device=device)
    once = WpsBatch(embeddings, *targets.gather(torch.arange(batch) % len(dataset))).to(device)
    learner = fresh_learner(segmenter, dataset, settings, seed=0).to(device)
    train(learner, [once] * 2, device, dtype)
    return batch * steps / train(learner, [once] * steps, device, dtype).seconds


def seconds_per_call(call: Callable[[], object], device: torch.device, steps: int) -> float:
    """Mean over ``steps`` calls, after two that do not count."""
    for _ in range(2):
        call()
    clock = Clock(device)
    for _ in range(steps):
        call()
    return clock.seconds() / steps


class Clock:
    """Wall time from its creation, once all work on the device is done."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.start = self._now()

    def seconds(self) -> float:
        """Since the clock was made."""
        return self._now() - self.start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def median(values: list[float]) -> float:
    """Of one or more values."""
    return sorted(values)[len(values) // 2]


def say(result: dict[str, Any], out: Path) -> None:
    """The figures in a few lines."""
    seconds, gflop = result["seconds"], result["gflop"]
    print(f"{result['images']} images, batch {result['batch_size']}, {result['segmenter']} at {result['side']} px")
    print(f"  epoch with the encoder in the loop  {seconds['epoch_with_encoder_in_the_loop']:10.3f} s")
    print(f"  epoch from the store                {seconds['epoch_from_store']:10.3f} s")
    print(f"  ratio                               {result['ratio_of_epochs']:10.1f}")
    print(f"  ratio over {PAPER_EPOCHS} epochs, store included {result['ratio_of_paper_training']:8.1f}")
    print(f"  encoder {gflop['encoder']:.1f} GFLOP, student step {gflop['student_forward_and_backward']:.1f} GFLOP")
    for dtype, loss in result["losses"].items():
        verdict = "same" if loss["same"] else "NOT the same"
        print(
            f"  losses, {dtype} store: {verdict} (difference {loss['largest_relative_difference']:.1e},"
            f" tolerance {loss['tolerance']:.0e})"
        )
    for dtype, store in result["store"].items():
        print(f"  {dtype}: {store['bytes_per_image']:,} bytes per image, relative drift {store['relative_l2']:.1e}")
    if result["gpu"]:
        for side in ("encoder", "student"):
            for row in result["gpu"][side]:
                print(f"  {side} {row}")
        print(f"  {result['gpu']['extrapolated_paper_training']}")
    for figure in result["not_measured"]:
        print(f"  not measured (no GPU): {figure}")
    print(f"written to {out}")


def main(args: Sequence[str] | None = None) -> int:
    """The command line; a user's error is one sentence."""
    return run_command(benchmark, args)


if __name__ == "__main__":
    sys.exit(main())
