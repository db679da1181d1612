"""Activation maps and their affinity beside an unbatched reference: one class of one image at a time, as in CLIP-ES."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.nn import functional
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from side_by_side import Times, in_turn, summary, timed
from weakly.foundation.clip import Clip, ClipFeatures, load_clip
from weakly.methods.fma.affinity import spread
from weakly.methods.fma.cam import GradCam
from weakly.methods.fma.settings import SeedSettings

WANTED = 3.0
"""Times faster that we want to be."""

TOLERANCE = 1e-4
"""Largest difference of two maps, relative to the largest value of the reference."""

BACKGROUNDS = 25
MAX_CLASSES = 4
"""Image i has ``1 + i mod MAX_CLASSES`` classes."""


def build_clip(name: str, seed: int) -> Clip:
    """A frozen CLIP; ``random-vit-b-16`` has CLIP ViT-B/16's sizes and the weights of :func:`random_clip`."""
    if name != "random-vit-b-16":
        return load_clip(name)
    return random_clip(CLIPVisionConfig(patch_size=16), seed, name)


@torch.no_grad()
def random_clip(vision: CLIPVisionConfig, seed: int, name: str = "random") -> Clip:
    """A CLIP with these vision sizes, random weights and the least of text encoders, which no map asks."""
    torch.manual_seed(seed)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel({"<end>": 0, "a": 1}, unk_token="<end>")),  # noqa: S106 - a text token
        eos_token="<end>",  # noqa: S106
        pad_token="<end>",  # noqa: S106
    )
    text = CLIPTextConfig(vocab_size=2, num_hidden_layers=1, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))
    model.logit_scale.fill_(math.log(100))
    for parameter in model.vision_model.parameters():
        if parameter.ndim > 1:
            parameter.mul_(3)  # with the library's draw every attention is flat
    return Clip(model, tokenizer, name)


def compare_maps(
    clip: Clip, images: Sequence[NDArray[np.uint8]], classes: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """Seconds per image on both sides, in turn, from the features of the frozen encoder on; and the maps' differences.

    Texts are random directions: neither time nor equality depends on what they say.
    """
    settings = SeedSettings()
    generator = torch.Generator().manual_seed(seed)
    text = functional.normalize(torch.randn(classes + BACKGROUNDS, clip.joint_width, generator=generator), dim=-1)
    text = text.to(device)
    times: Times = {"reference": [], "weakly": [], "encoder": []}
    differences: dict[str, list[float]] = {"maps": [], "affinity": []}
    counts = []
    for turn, image in enumerate(images):
        count = min(1 + turn % MAX_CLASSES, classes)
        labels = torch.randperm(classes, generator=generator)[:count].sort().values.to(device)
        pixels = clip.preprocess(image, settings.long_side).to(device)
        features, seconds = timed(partial(clip.encode, pixels, settings.layers), device)
        sides = {
            "reference": partial(reference, clip, features, text, labels, settings),
            "weakly": partial(batched, clip, features, text, labels, settings),
        }
        if turn == 0:
            in_turn(sides, turn, {name: [] for name in sides}, device)  # warms up
        wanted, found = in_turn(sides, turn, times, device)
        times["encoder"].append(seconds)
        for name, a, b in zip(differences, wanted, found, strict=True):
            differences[name] += relative_differences(a, b)
        counts.append(count)
    largest = {name: max(values) for name, values in differences.items()}
    return {
        "images": len(images),
        "grid": list(features.grid),
        "classes_per_image": counts,
        "settings": {key: getattr(settings, key) for key in ("spread", "threshold", "sinkhorn", "power", "layers")},
        **summary(times, "reference", encoder_inside=False, wanted=WANTED),
        "times_faster_by_cpu_of_classes": by_classes(times, counts),
        "largest_relative_difference": largest,
        "tolerance": TOLERANCE,
        "same": max(largest.values()) <= TOLERANCE,
    }


def by_classes(times: Times, counts: Sequence[int]) -> dict[str, float]:
    """{number of classes of an image: times faster by processor time}."""
    cpu = {name: np.array([each.cpu for each in times[name]]) for name in ("reference", "weakly")}
    images = {count: np.array(counts) == count for count in sorted(set(counts))}
    return {
        str(count): float(cpu["reference"][rows].sum() / cpu["weakly"][rows].sum()) for count, rows in images.items()
    }


@torch.no_grad()
def batched(
    clip: Clip, features: ClipFeatures, text: Tensor, labels: Tensor, settings: SeedSettings
) -> tuple[Tensor, Tensor]:
    """(P, h, w) maps of one image before and after the affinity, as the method makes them."""
    tags = torch.zeros(1, len(text) - BACKGROUNDS, dtype=torch.bool, device=text.device)
    tags[0, labels] = True
    maps = GradCam(clip, features.last_input, features.grid, features.last_attention).maps(text, tags)
    after = spread(
        maps,
        features.attention[0],
        threshold=settings.threshold,
        iterations=settings.sinkhorn,
        power=settings.power,
    )
    return maps, after


def reference(
    clip: Clip, features: ClipFeatures, text: Tensor, labels: Tensor, settings: SeedSettings
) -> tuple[Tensor, Tensor]:
    """The same class by class, as CLIP-ES does: nothing is shared but the features of the image."""
    present = torch.cat([text[labels], text[-BACKGROUNDS:]])
    maps = [reference_map(clip, features, present, row) for row in range(len(labels))]
    after = [reference_spread(each, features.attention[0], settings) for each in maps]
    return torch.stack(maps), torch.stack(after)


def reference_map(clip: Clip, features: ClipFeatures, present: Tensor, row: int) -> Tensor:
    """(h, w): forward through the last block, softmax over the texts present, backward from one score."""
    normed = clip.last_norm(features.last_input).detach().requires_grad_()
    embedding = clip.tail(features.last_input, normed)
    scores = (clip.logit_scale * functional.normalize(embedding, dim=-1) @ present.T).softmax(1)
    (gradient,) = torch.autograd.grad(scores[0, row], normed)
    weights = gradient[0, 1:].mean(0)
    values: Tensor = normed.detach()[0, 1:] @ weights
    return values.view(features.grid)


def reference_spread(values: Tensor, attention: Tensor, settings: SeedSettings) -> Tensor:
    """(h, w): boxes around the contours of the map, and the whole power of the affinity."""
    positive = values.clamp(min=0)
    score = (positive - positive.min()) / (positive.max() - positive.min()).clamp(min=1e-38)
    steps = (255 * score).cpu().numpy().astype(np.uint8)
    strong = (steps > int(settings.threshold * steps.max())).astype(np.uint8)
    inside = torch.zeros_like(score)
    height, width = score.shape
    for contour in cv2.findContours(strong, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, box_width, box_height = cv2.boundingRect(contour)
        inside[y : min(y + box_height, height - 1), x : min(x + box_width, width - 1)] = 1
    for _ in range(settings.sinkhorn):
        attention = attention / attention.sum(0, keepdim=True)
        attention = attention / attention.sum(1, keepdim=True)
    power = torch.linalg.matrix_power((attention + attention.T) / 2, settings.power)
    spread_out: Tensor = power @ (inside * score).flatten()
    return spread_out.view(height, width)


def relative_differences(wanted: Tensor, found: Tensor) -> list[float]:
    """Of every (h, w) map of (P, h, w): the largest difference over the largest absolute value."""
    size = wanted.abs().amax((1, 2)).clamp(min=1e-38)
    return ((wanted - found).abs().amax((1, 2)) / size).tolist()
