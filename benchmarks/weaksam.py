"""WeakSAM's proposals beside the one-at-a-time way, and its peak pooling beside two-dimensional windows.

Proposals: one side encodes the image again for every group of prompts, decodes one point at a time and takes boxes
from full-size masks on the CPU, as the released code does; the other encodes once and decodes in batches. Peaks: one
side pools square windows, the other along rows and columns. Both sides see the same images in turn, and their results
are compared. Seconds are those of this machine; only their ratios carry over to others.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from command import machine, run_command
from fma import rendered, verdict
from fma_masks import build_segmenter
from weakly import __version__
from weakly.errors import UserError
from weakly.files import write_json
from weakly.methods.weaksam.proposal_settings import GridSettings, ProposalSettings
from weaksam_peaks import compare_peaks
from weaksam_proposals import compare_proposals


def benchmark(
    segmenter: str = "random-vit-b",
    images: int = 2,
    grid_images: int = 1,
    height: int = 375,
    width: int = 500,
    classes: int = 2,
    points_per_class: int = 4,
    cross_points: int = 12,
    points_per_side: int = 32,
    prompts_per_batch: int = 64,
    maps: int = 2,
    kernel: int = 129,
    seed: int = 0,
    device: str = "auto",
    out: Path = Path("docs/results/weaksam-benchmark.json"),
) -> int:
    """Time WeakSAM's proposals against the one-at-a-time way, and its peak pooling against two-dimensional windows.

    Args:
        segmenter: random-vit-b (SAM ViT-B at 1024 px with random weights), bundled, a folder, a .pth file or a hub id.
        images: rendered images for the proposals of points.
        grid_images: of them, those for the proposals of points and grid together; 0: not measured.
        height: of the images and maps, in pixels.
        width: of the images and maps, in pixels.
        classes: in every image.
        points_per_class: of the coarse and of the fine maps, each.
        cross_points: clusters of the attention maps.
        points_per_side: of the grid.
        prompts_per_batch: prompts decoded at once; the other side does so in the grid alone.
        maps: smooth random maps for peaks.
        kernel: of their windows, in pixels.
        seed: of the images, points, maps and random weights.
        device: torch device; auto: the GPU if there is one.
        out: the JSON that is written.

    Returns:
        Exit code: 0, or 1 where the two sides did not give the same results.
    """
    if images < 1 or maps < 1:
        raise UserError(f"There is nothing to time with {images} images and {maps} maps; give at least 1 of each.")
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    scenes = [rendered(seed, index, (height, width)) for index in range(max(images, grid_images))]
    frozen = build_segmenter(segmenter, seed).to(where)
    settings = ProposalSettings(grid=GridSettings(side=points_per_side), prompts_per_batch=prompts_per_batch)
    no_grid = replace(settings, grid=GridSettings(side=0))
    counts = (classes, points_per_class, cross_points)
    points = compare_proposals(frozen, scenes[:images], no_grid, counts, seed, where)
    whole = compare_proposals(frozen, scenes[:grid_images], settings, counts, seed, where) if grid_images else None
    peaks = compare_peaks((height, width), maps, kernel, seed, where)
    result = {
        "benchmark": "weaksam",
        "command": " ".join(["python benchmarks/weaksam.py", *sys.argv[1:]]),
        "version": __version__,
        "machine": machine(where),
        "size": [height, width],
        "seed": seed,
        "segmenter": segmenter,
        "side": frozen.side,
        "points": points,
        "points_and_grid": whole,
        "peaks": peaks,
    }
    write_json(out, result)
    say(result, out)
    return 0 if all(part["same"] for part in (points, whole, peaks) if part) else 1


def say(result: dict[str, Any], out: Path) -> None:
    """The figures in a few lines."""
    for key in ("points", "points_and_grid"):
        if result[key]:
            say_proposals(key.replace("_", " "), result[key])
    peaks = result["peaks"]
    print(f"peaks: {peaks['maps']} maps, windows of {peaks['kernel']} px")
    say_times(peaks)
    print(f"  points: {peaks['points']} ({verdict(peaks)})")
    print(f"written to {out}")


def say_proposals(name: str, part: dict[str, Any]) -> None:
    """Figures of the proposals of points, or of points and grid."""
    print(f"{name}: {part['images']} images, {part['prompts']} prompts of points and {part['grid_prompts']} of a grid")
    say_times(part)
    boxes = part["boxes"]
    print(
        f"  encoded: one at a time {part['encodes']['one_at_a_time']}, weakly {part['encodes']['weakly']};"
        f" decoding alone {part['times_faster_by_cpu_decoding_alone']:.2f} times faster by processor time"
    )
    print(
        f"  proposals: one at a time {boxes['one_at_a_time']}, weakly {boxes['weakly']}, both {boxes['both']}"
        f" ({verdict(part)}); pixels of masks that agree {part['pixels_that_agree']:.7f}"
    )


def say_times(part: dict[str, Any]) -> None:
    """Seconds and ratios of one step."""
    for name, wall in part["seconds"].items():
        print(f"  {name.replace('_', ' '):16} {wall:10.4f} s, {part['cpu_seconds'][name]:10.4f} s of the processor")
    wanted = f" (wanted: {part['wanted']:g})" if part["wanted"] else ""
    print(f"  times faster {part['times_faster']:.2f}{wanted}; by processor time {part['times_faster_by_cpu']:.2f}")


def main(args: Sequence[str] | None = None) -> int:
    """The command line; a user's error is one sentence."""
    return run_command(benchmark, args)


if __name__ == "__main__":
    sys.exit(main())
