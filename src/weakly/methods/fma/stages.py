"""What every stage makes of an image, to be looked at: maps, quasi-superpixels and seeds of a trained run."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.labels import Sample
from weakly.methods.base import Panel
from weakly.methods.fma.affinity import map_scores
from weakly.methods.fma.pipeline import Pipeline, Stage
from weakly.methods.fma.seeds import SeedMaker, tags_of
from weakly.methods.fma.superpixels import Superpixels, quasi_superpixels


def stage_panels(pipeline: Pipeline, dataset: Dataset) -> list[list[Panel]]:
    """The panels of every image of a (small) dataset, in the order of the stages.

    ``CAM of <class>``, the map of one class by the prompts that make the fine seeds; the same ``after affinity``;
    ``quasi-superpixels``; ``coarse seed`` and ``fine seed``. The class is the one with the most of the fine seed.
    Stages that the settings leave out have no panel.

    Raises:
        UserError: the prompts are not trained yet.
    """
    settings = pipeline.settings
    stages: list[Stage] = ["fine"] if settings.segmentation is None else ["coarse", "fine"]
    makers = {stage: pipeline.maker(stage).without_void() for stage in stages}
    unspread = Pipeline(
        replace(settings, fine=replace(settings.fine, spread="none")), pipeline.vocabulary, pipeline.workspace
    )
    cams = [("", unspread.maker("fine"))]
    cams += [] if settings.fine.spread == "none" else [(" after affinity", makers["fine"])]
    return [_panels(pipeline, sample, makers, cams) for sample in dataset]


def _panels(
    pipeline: Pipeline, sample: Sample, makers: dict[Stage, SeedMaker], cams: list[tuple[str, SeedMaker]]
) -> list[Panel]:
    tags = tags_of(sample)
    if tags is None or len(tags) == 0:
        return []
    try:
        image = read_image(sample.path)
    except UserError:
        return []
    seeds = {stage: maker.labels(image, tags, str(sample.path)) for stage, maker in makers.items()}
    chosen = int(np.argmax([(seeds["fine"] == tag).sum() for tag in tags]))
    name = pipeline.vocabulary.names[int(tags[chosen])]
    panels = [
        Panel(f"CAM of {name}{suffix}", "heat", heat(maker.activations(image, tags)[chosen])) for suffix, maker in cams
    ]
    fine = pipeline.settings.for_fine
    if fine.fine.by_masks:
        found, thinning = pipeline.masks(fine.masks).of(image), fine.superpixels
        pixels = quasi_superpixels(found, thinning.ratio, against=thinning.against)
        panels.append(Panel("quasi-superpixels", "regions", regions(pixels)))
    return [*panels, *(Panel(f"{stage} seed", "labels", seed) for stage, seed in seeds.items())]


def heat(cam: Tensor) -> NDArray[np.uint8]:
    """(h, w) uint8 strengths of a signed (h, w) map, 255 its maximum, 0 what is not positive."""
    strengths: NDArray[np.uint8] = (255 * map_scores(cam)).round().to(torch.uint8).cpu().numpy()
    return strengths


def regions(superpixels: Superpixels) -> NDArray[np.uint16]:
    """(H, W) uint16: 1 + the index of the mask seen at each pixel, 0 where there is none.

    Parts lie on wholes and sub-parts on parts; of one level the smaller mask is seen.
    """
    masks, levels = superpixels
    order = masks.flatten(1).sum(1).argsort(descending=True, stable=True)
    order = order[levels[order].argsort(descending=True, stable=True)]
    # Of the masks that hold a pixel, the last in this order is seen: the one with the highest place.
    places = torch.arange(1, len(order) + 1, dtype=torch.int16)[:, None, None]
    held = masks[order] * places
    highest = torch.cat([held.new_zeros(1, *masks.shape[1:]), held]).amax(0).long()
    seen: NDArray[np.uint16] = functional.pad(order + 1, (1, 0))[highest].numpy().astype(np.uint16)
    return seen
