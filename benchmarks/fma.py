"""FMA-WSSS's two slow steps beside other code: mask generation, and activation maps with their affinity.

Masks: the same segmenter and settings in the mask-generation pipeline of transformers. Maps: one class of one image at
a time, as CLIP-ES makes them. Both sides see the same images in turn, and their results are compared. Seconds are those
of this machine, wall-clock and of the processor; only their ratios carry over to others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from command import machine, run_command
from fma_maps import BACKGROUNDS, build_clip, compare_maps
from fma_masks import build_segmenter, compare_mask_generation
from weakly import __version__
from weakly.data.menagerie.scene import render_scene
from weakly.files import write_json
from weakly.foundation.mask_settings import AutomaticMaskSettings

GPU_FIGURES = ("seconds per image of both steps on a GPU",)


def benchmark(
    segmenter: str = "random-vit-b",
    clip: str = "random-vit-b-16",
    images: int = 2,
    map_images: int = 40,
    height: int = 375,
    width: int = 500,
    points_per_side: int = 32,
    prompts_per_batch: int = 64,
    nms_threshold: float = 1.0,
    passing: float = 0.3,
    stable: float = 0.5,
    classes: int = 20,
    seed: int = 0,
    device: str = "auto",
    out: Path = Path("docs/results/fma-benchmark.json"),
) -> int:
    """Time mask generation against the pipeline of transformers, and CAM with affinity against an unbatched reference.

    Args:
        segmenter: random-vit-b (SAM ViT-B at 1024 px with random weights), bundled, a folder, a .pth file or a hub id.
        clip: random-vit-b-16 (CLIP ViT-B/16 with random weights), bundled, a folder or a hub id.
        images: rendered images for masks.
        map_images: rendered images for maps.
        height: of the images, in pixels.
        width: of the images, in pixels.
        points_per_side: of the grid of prompts.
        prompts_per_batch: prompts decoded at once, on both sides.
        nms_threshold: box IoU over which the worse of two masks goes, on both sides; SAM's is 0.7. Random masks reach
            across the image, and it would leave a handful; with 1 all that pass the tests are compared.
        passing: fraction of masks that pass the test of predicted IoU; the threshold is that quantile on a coarse grid
            over the first image, since random weights predict no meaningful IoU.
        stable: fraction of those that pass the test of stability, in the same way. Under SAM's thresholds trained
            weights let about 10 to 20 % of the masks of a grid pass both tests; the defaults let 15 %.
        classes: C, from which the classes of an image are drawn: 1 to 4 in turn, 2.5 on average, between VOC's 1.5
            and COCO's 2.9. One class has nothing to share; the ratio is also told by the number of classes.
        seed: of the images, classes, text features and random weights.
        device: torch device; auto: the GPU if there is one.
        out: the JSON that is written.

    Returns:
        Exit code: 0, or 1 where the two sides did not give the same results.
    """
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    scenes = [rendered(seed, index, (height, width)) for index in range(max(images, map_images))]
    frozen = build_segmenter(segmenter, seed).to(where)
    settings = AutomaticMaskSettings(
        points_per_side=points_per_side,
        prompts_per_batch=prompts_per_batch,
        crop_layers=0,  # the pipeline fails with fewer points on crops
        whole_iou_offset=0,
        whole_nms_offset=0,
        nms_threshold=nms_threshold,
        min_region=0,
    )
    masks = compare_mask_generation(frozen, scenes[:images], settings, (passing, stable), where)
    encoder = build_clip(clip, seed).to(where)
    maps = compare_maps(encoder, scenes[:map_images], classes, seed, where)
    result = {
        "benchmark": "fma",
        "command": " ".join(["python benchmarks/fma.py", *sys.argv[1:]]),
        "version": __version__,
        "machine": machine(where),
        "size": [height, width],
        "seed": seed,
        "masks": {"segmenter": segmenter, "side": frozen.side, **masks},
        "maps": {"clip": clip, "classes": classes, "backgrounds": BACKGROUNDS, **maps},
        "not_measured": [] if where.type == "cuda" else list(GPU_FIGURES),
    }
    write_json(out, result)
    say(result, out)
    return 0 if masks["same"] and maps["same"] else 1


def rendered(seed: int, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8: the upper left of a Menagerie scene."""
    height, width = size
    return np.ascontiguousarray(render_scene(seed, index, max(size)).image[:height, :width])


def say(result: dict[str, Any], out: Path) -> None:
    """The figures in a few lines."""
    masks, maps = result["masks"], result["maps"]
    settings, kept = masks["settings"], masks["masks_kept"]
    print(
        f"masks: {masks['images']} images, {masks['segmenter']} at {masks['side']} px,"
        f" {settings['points_per_side']}^2 points"
    )
    say_times(masks, "pipeline", "encoder, on both sides")
    print(
        f"  kept: pipeline {kept['pipeline']}, weakly {kept['weakly']}, both {kept['both']}"
        f" ({verdict(masks)}; of the rest {kept['box_convention']} by the bounds of boxes)"
    )
    print(f"maps: {maps['images']} images, {maps['clip']}, classes {maps['classes_per_image']}")
    say_times(maps, "reference", "encoder, on neither side")
    for count, ratio in maps["times_faster_by_cpu_of_classes"].items():
        print(f"    {'classes in image: ' + count:20} {ratio:.2f}")
    difference = maps["largest_relative_difference"]
    print(f"  difference: maps {difference['maps']:.1e}, after affinity {difference['affinity']:.1e} ({verdict(maps)})")
    for figure in result["not_measured"]:
        print(f"not measured (no GPU): {figure}")
    print(f"written to {out}")


def say_times(part: dict[str, Any], other: str, encoder: str) -> None:
    """Seconds per image and ratios of one step."""
    for name, label in ((other, other), ("weakly", "weakly"), ("encoder", encoder)):
        wall, cpu = part["seconds_per_image"][name], part["cpu_seconds_per_image"][name]
        print(f"  {label:26} {wall:10.3f} s per image, {cpu:10.3f} s of the processor")
    print(f"  times faster {part['times_faster']:.2f} (wanted: {part['wanted']:g}); by processor time:")
    for key, value in part.items():
        if key.startswith("times_faster_by_cpu") and not isinstance(value, dict):
            print(
                f"    {key.removeprefix('times_faster_by_cpu').replace('_', ' ').strip() or 'as above':20} {value:.2f}"
            )


def verdict(part: dict[str, Any]) -> str:
    """In words."""
    return "the same" if part["same"] else "NOT the same"


def main(args: Sequence[str] | None = None) -> int:
    """The command line; a user's error is one sentence."""
    return run_command(benchmark, args)


if __name__ == "__main__":
    sys.exit(main())
