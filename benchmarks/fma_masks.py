"""Mask generation beside the pipeline of transformers: the same segmenter, the same settings, the same masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_iou  # type: ignore[import-untyped]
from transformers import SamConfig, SamImageProcessorPil, SamModel, pipeline

from side_by_side import Times, in_turn, summary, timed
from weakly.foundation.automatic_masks import AutomaticMasks, generate_masks
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.foundation.sam import SamSegmenter, load_segmenter
from weakly.segmentation import Rle

WANTED = 2.0
"""Times faster that we want to be."""

SAME_MASK = 0.99
"""Least IoU of two masks that count as one: both sides round differently at the edge of a mask."""

TOLERANCE = 0.02
"""Largest share of masks that one side alone may keep for another reason than the bounds of boxes."""

CONTENT = 0.1
"""Scale of random embeddings: below that of the positions, so that masks depend on the point."""

DIFFERENCES = (
    "upper bounds of boxes: inclusive in the pipeline, exclusive here, so box IoUs near the NMS threshold differ",
    "a stability of exactly the threshold: dropped by the pipeline, kept here",
    "rounding of scores and logits that lie on a threshold",
)
"""Why one side may keep a mask that the other does not."""


def build_segmenter(name: str, seed: int) -> SamSegmenter:
    """A frozen SAM; ``random-vit-b`` has SAM ViT-B's sizes and the weights of :func:`randomise`."""
    if name != "random-vit-b":
        return load_segmenter(name)
    return randomise(SamModel(SamConfig()), seed, name)


@torch.no_grad()
def randomise(model: SamModel, seed: int, name: str = "random") -> SamSegmenter:
    """Random weights whose masks look like masks: regions of the image, larger and smaller, that depend on the point.

    With plain random weights every mask is noise over the whole image: long run-length encodings, which cost the
    pipeline much, and equal boxes, of which NMS leaves one. Nothing here changes the number of operations.
    """
    torch.manual_seed(seed)
    decoder = model.mask_decoder
    for module in model.vision_encoder.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, 0, 0.02)  # the library's 1e-10 makes embeddings of zeros
    for module in (*model.prompt_encoder.modules(), *decoder.modules()):
        if isinstance(module, nn.Linear | nn.ConvTranspose2d | nn.Embedding):
            module.reset_parameters()
    gaussian = nn.Parameter(torch.randn_like(model.shared_image_embedding.positional_embedding))
    model.shared_image_embedding.positional_embedding = gaussian
    model.prompt_encoder.shared_embedding.positional_embedding = gaussian
    model.vision_encoder.neck.layer_norm2.weight.fill_(CONTENT)
    for conv in (decoder.upscale_conv1, decoder.upscale_conv2):  # no checkerboard
        conv.weight.copy_(2 * conv.weight.mean((2, 3), keepdim=True).expand_as(conv.weight))
    segmenter = SamSegmenter(model, name)
    _balance(segmenter)
    return segmenter


def _balance(segmenter: SamSegmenter) -> None:
    """Logits around 0 and of a few units, as SAM's, and predicted IoUs around 0.5; measured on noise."""
    decoder = segmenter.model.mask_decoder
    noise = CONTENT * torch.randn(1, *segmenter.embedding_shape)
    tokens = segmenter.point_tokens(segmenter.side * torch.rand(16, 2))
    index = torch.zeros(len(tokens), dtype=torch.int64)
    upscaled: list[Tensor] = []
    with decoder.upscale_conv2.register_forward_hook(lambda *call: upscaled.append(functional.gelu(call[2]))):
        segmenter.decode(noise, tokens, index, multimask=True)
    common = functional.normalize(upscaled[0].mean((0, 2, 3)), dim=0)
    for mlp in decoder.output_hypernetworks_mlps:  # what all pixels have in common makes no mask
        for parameter in (mlp.proj_out.weight, mlp.proj_out.bias):
            parameter.sub_(torch.tensordot(common, common @ parameter, 0))
    logits, iou = segmenter.decode(noise, tokens, index, multimask=True)
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.mul_(4 / logits.std())
        mlp.proj_out.bias.mul_(4 / logits.std())
    head = decoder.iou_prediction_head.proj_out
    head.weight.mul_(0.1 / iou.std())
    head.bias.copy_(0.5 + (head.bias - iou.mean()) * 0.1 / iou.std())


def compare_mask_generation(
    segmenter: SamSegmenter,
    images: Sequence[NDArray[np.uint8]],
    settings: AutomaticMaskSettings,
    fractions: tuple[float, float],
    device: torch.device,
) -> dict[str, Any]:
    """Seconds per image on both sides, in turn, and how many masks both keep."""
    settings = with_thresholds(segmenter, images[0], settings, fractions)
    generator = pipeline(
        "mask-generation",
        model=segmenter.model,
        image_processor=SamImageProcessorPil(  # resizes as we do
            size={"longest_edge": segmenter.side},
            pad_size={"height": segmenter.side, "width": segmenter.side},
        ),
        device=device,
    )
    by_pipeline(generator, images[0], replace(settings, points_per_side=1))  # warms up, as the thresholds did for us
    times: Times = {"pipeline": [], "weakly": [], "encoder": []}
    comparisons = []
    for turn, image in enumerate(images):
        sides: dict[str, Callable[[], Any]] = {
            "pipeline": partial(by_pipeline, generator, image, settings),
            "weakly": partial(generate_masks, segmenter, image, settings),
        }
        output, masks = in_turn(sides, turn, times, device)
        comparisons.append(compare_masks(from_pipeline(output), masks, settings.nms_threshold))
        times["encoder"].append(timed(partial(segmenter.encode, segmenter.preprocess([image])), device)[1])
    counts = {key: sum(each[key] for each in comparisons) for key in ("pipeline", "weakly", "both", "box_convention")}
    kept = counts["pipeline"] + counts["weakly"]
    unexplained = kept - 2 * counts["both"] - counts["box_convention"]
    return {
        "images": len(images),
        "settings": asdict(settings),
        "thresholds": f"{fractions[0]:g} of the masks pass predicted IoU, {fractions[1]:g} of those stability",
        **summary(times, "pipeline", encoder_inside=True, wanted=WANTED),
        "masks_kept": counts,
        "runs_per_mask": float(np.mean([each["runs"] for each in comparisons])),
        "least_iou_of_common_masks": min(each["least_iou"] for each in comparisons),
        "largest_difference_of_predicted_iou": max(each["score_difference"] for each in comparisons),
        "tolerance": {"mask_iou": SAME_MASK, "unexplained_on_one_side": TOLERANCE},
        "may_differ": list(DIFFERENCES),
        "same": counts["both"] > 0 and unexplained <= TOLERANCE * kept,
    }


def with_thresholds(
    segmenter: SamSegmenter,
    image: NDArray[np.uint8],
    settings: AutomaticMaskSettings,
    fractions: tuple[float, float],
) -> AutomaticMaskSettings:
    """The settings with thresholds that let given fractions of the masks of a coarse grid pass."""
    coarse = replace(
        settings,
        points_per_side=min(8, settings.points_per_side),
        iou_threshold=0,
        stability_threshold=0,
        nms_threshold=1,
    )
    found = generate_masks(segmenter, image, coarse)
    if len(found) == 0:
        return settings
    iou = upper_quantile(found.predicted_iou, fractions[0])
    return replace(
        settings,
        iou_threshold=iou,
        stability_threshold=upper_quantile(found.stability[found.predicted_iou > iou], fractions[1]),
    )


def upper_quantile(values: NDArray[np.float32], fraction: float) -> float:
    """The value that a fraction of the values exceeds; above 0, where the pipeline would leave the test out."""
    return float(np.clip(np.quantile(values, 1 - fraction), 1e-6, 1)) if len(values) else 1e-6


def by_pipeline(generator: Any, image: NDArray[np.uint8], settings: AutomaticMaskSettings) -> dict[str, Any]:
    """The pipeline's output under our settings."""
    output: dict[str, Any] = generator(
        Image.fromarray(image),
        points_per_crop=settings.points_per_side,
        points_per_batch=settings.prompts_per_batch,
        pred_iou_thresh=settings.iou_threshold,
        stability_score_thresh=settings.stability_threshold,
        stability_score_offset=settings.stability_offset,
        crops_nms_thresh=settings.nms_threshold,
        output_rle_mask=True,  # it makes them in any case
    )
    return output


def from_pipeline(output: dict[str, Any]) -> AutomaticMasks:
    """Its masks as ours; levels and stability, which it does not tell, are zero."""
    runs = output["rle_mask"]
    size = tuple(runs[0]["size"]) if runs else (0, 0)
    rles = [coco_mask.frPyObjects(rle, *rle["size"]) for rle in runs]
    unknown = np.zeros(len(rles))
    return AutomaticMasks.from_rles(size, rles, unknown, output["scores"].cpu().numpy(), unknown)


def compare_masks(theirs: AutomaticMasks, ours: AutomaticMasks, threshold: float) -> dict[str, Any]:
    """How many masks both sides keep, and for how many others the bounds of boxes explain the difference."""
    overlap = np.zeros((len(theirs), len(ours)))
    if overlap.size:
        rles = [[dict(rle) for rle in side.rles] for side in (theirs, ours)]
        overlap = np.asarray(coco_mask.iou(*rles, [0] * len(ours)))
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    same = overlap[rows, columns] >= SAME_MASK
    rows, columns = rows[same], columns[same]
    lone_theirs = theirs.take(np.setdiff1d(np.arange(len(theirs)), rows))
    lone_ours = ours.take(np.setdiff1d(np.arange(len(ours)), columns))
    differences = np.abs(theirs.predicted_iou[rows] - ours.predicted_iou[columns])
    return {
        "pipeline": len(theirs),
        "weakly": len(ours),
        "both": len(rows),
        "box_convention": box_convention(lone_theirs, ours, threshold) + box_convention(lone_ours, theirs, threshold),
        "least_iou": float(overlap[rows, columns].min(initial=1)),
        "score_difference": float(differences.max(initial=0)),
        "runs": float(np.mean([runs(rle) for rle in ours.rles])) if len(ours) else 0.0,
    }


def runs(rle: Rle) -> int:
    """Lengths in a COCO encoding: every one ends with the only kind of character that has no continuation bit."""
    return sum((character - 48) & 0x20 == 0 for character in rle["counts"])


def box_convention(lone: AutomaticMasks, kept: AutomaticMasks, threshold: float) -> int:
    """Of masks that one side alone keeps: those that inclusive and exclusive bounds decide differently about in NMS."""
    exclusive = [torch.from_numpy(side.boxes) for side in (lone, kept)]
    inclusive = [boxes - torch.tensor([0, 0, 1, 1]) for boxes in exclusive]
    return int(((box_iou(*exclusive) > threshold) != (box_iou(*inclusive) > threshold)).any(1).sum())
