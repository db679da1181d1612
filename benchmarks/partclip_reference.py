"""PartCLIPSeg as its authors run it, step by step from spec partclipseg: the unfactored formulation.

One sequence per image and prompt over copies of the taps, attention weights of every layer, texts padded to the whole
context, and for every class a concatenated feature map and an embedding repeated over the grid. Slow and large; tests
and the benchmark compare the package with it. Losses are loops over images, objects and classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip.model import PartClipSeg
from weakly.methods.partclip.names import PartNames


class Reference(NamedTuple):
    """Logits (B, N, S, S) and (B, K + 1, S, S), and the last layer's attention (B, N, T, T), averaged over heads."""

    trunk_logits: Tensor
    class_logits: Tensor
    attention: Tensor


def unfactored(student: PartClipSeg, clipseg: ClipSeg, pixels: Tensor, names: PartNames) -> Reference:
    """(B, 3, S, S) pixels to all masks, with the weights of ``student`` (spec sections 1.2 to 1.7)."""
    decoder: Any = student.decoder
    images, count = len(pixels), len(names.parts) + len(names.objects) + 1
    embeddings = encode_padded(student, clipseg, [*names.parts, *names.objects])
    repeated = embeddings.repeat(images, 1)
    taps = [adapt(student, tap).repeat_interleave(count, 0) for tap in vision_taps(clipseg, pixels)]
    hidden = torch.zeros(())
    weights = torch.zeros(())
    for index, (tap, reduce, layer) in enumerate(zip(reversed(taps), decoder.reduces, decoder.layers, strict=True)):
        hidden = hidden + reduce(tap)
        if index == 0:
            hidden = decoder.film_mul(repeated)[:, None] * hidden + decoder.film_add(repeated)[:, None]
        hidden, weights = post_norm_layer(layer, hidden)
    maps = hidden[:, 1:].mT.unflatten(2, student.grid)
    trunk_logits = decoder.transposed_convolution(maps)[:, 0].unflatten(0, (images, count))
    maps = maps.unflatten(0, (images, count))
    class_logits = [
        class_mask(student, embeddings, maps, part, whole, text) for part, whole, text in class_prompts(student, names)
    ]
    return Reference(trunk_logits, torch.stack(class_logits, 1), weights.mean(1).unflatten(0, (images, count)))


def class_prompts(student: PartClipSeg, names: PartNames) -> list[tuple[int, int, int]]:
    """Prompts of every class: features of its part, of its object, and the text in the object's slot (D1)."""
    parts, last = len(names.parts), len(names.parts) + len(names.objects)
    shift = parts if student.obj_text_index == "offset" else 0
    rows = [(p, parts + o, shift + o) for p, o in zip(names.part_of, names.object_of, strict=True)]
    return [*rows, (last, last, last)]


def class_mask(student: PartClipSeg, embeddings: Tensor, maps: Tensor, part: int, whole: int, text: int) -> Tensor:
    """(B, S, S): features and texts concatenated, FiLM on every location of the grid."""
    pair = torch.cat([maps[:, part], maps[:, whole]], 1).permute(0, 2, 3, 1)
    features = student.combine_features(pair)
    texts = student.combine_texts(torch.cat([embeddings[text], embeddings[part]])).expand(*features.shape[:3], -1)
    conditioned = student.cond_film_mul(texts) * features + student.cond_film_add(texts)
    return student.head(conditioned.permute(0, 3, 1, 2))[:, 0]


def vision_taps(clipseg: ClipSeg, pixels: Tensor) -> list[Tensor]:
    """The whole vision tower, of which the tapped blocks' outputs are kept: index 0 is before the first block."""
    with torch.no_grad():
        vision = clipseg.model.clip.vision_model
        hidden = vision.pre_layrnorm(vision.embeddings(pixels, interpolate_pos_encoding=True))
        states = [hidden]
        for block in vision.encoder.layers:
            states.append(block(states[-1], None))
    return [states[layer + 1] for layer in clipseg.layers_tapped]


def adapt(student: PartClipSeg, tap: Tensor) -> Tensor:
    """Spec section 1.3."""
    down, up = student.adapter.down.weight, student.adapter.up.weight
    return 0.8 * tap + 0.2 * functional.relu(functional.relu(tap @ down.T) @ up.T)


def encode_padded(student: Any, clipseg: ClipSeg, texts: Sequence[str]) -> Tensor:
    """(n + 1, E): every text at the full context, read at its first end token; the background vector last."""
    ids = clipseg.tokenize(texts).to(student.background.device)
    length = ids.shape[1]
    hidden = student.token_embedding(ids) + student.position_embedding(torch.arange(length, device=ids.device))
    text = clipseg.model.clip.text_model
    causal = torch.full((length, length), torch.finfo(torch.float32).min, device=ids.device).triu(1)[None, None]
    hidden = text.final_layer_norm(text.encoder(inputs_embeds=hidden, attention_mask=causal).last_hidden_state)
    ends = (ids == clipseg.tokenizer.eos_token_id).int().argmax(1)
    embeddings = clipseg.model.clip.text_projection(hidden[torch.arange(len(ids), device=ids.device), ends])
    return torch.cat([embeddings, student.background[None]])


def post_norm_layer(layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """(M, T, d) to the layer's output and its attention weights (M, heads, T, T)."""
    attention = layer.self_attn
    query, key, value = (
        projection(hidden).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    weights = (query @ key.mT / query.shape[-1] ** 0.5).softmax(-1)
    hidden = layer.layer_norm1(hidden + attention.out_proj((weights @ value).transpose(1, 2).flatten(2)))
    return layer.layer_norm2(hidden + layer.mlp.fc2(functional.relu(layer.mlp.fc1(hidden)))), weights


def reference_mask_loss(
    output: Reference, names: PartNames, classes: Tensor, objects: Tensor, background: float = 0.05
) -> Tensor:
    """Spec section 3.2 with both lambdas 1; NaN where the complement of Omega is empty.

    ``classes`` (B, S, S): K for none; ``objects``: N_o for the background.
    """
    k, n_o, n_p = len(names), len(names.objects), len(names.parts)

    def bce(logits: Tensor, targets: Tensor, pixels: Tensor, *, weighs_last: bool) -> Tensor:
        """(B, C, S, S) logits at (B, S, S) pixels."""
        chosen = logits.permute(0, 2, 3, 1)[pixels]
        weight = torch.ones(logits.shape[1], device=logits.device)
        if weighs_last:
            weight[-1] = background
        target = functional.one_hot(targets[pixels], logits.shape[1]).float()
        return functional.binary_cross_entropy_with_logits(chosen, target, weight)

    labelled, shown = classes < k, objects < n_o
    total = bce(output.trunk_logits[:, n_p:], objects, torch.ones_like(shown), weighs_last=True)
    if labelled.any():
        part_of = torch.tensor([*names.part_of, 0], device=classes.device)
        total = total + bce(output.class_logits, classes, labelled, weighs_last=True)
        total = total + bce(output.trunk_logits[:, :n_p], part_of[classes], labelled, weighs_last=False)
    if shown.any():
        total = total + bce(output.class_logits, torch.full_like(classes, k), ~shown, weighs_last=True)
    return total


def reference_maps(attention: Tensor, names: PartNames, image: int, label: int, mask: Tensor, divisor: float) -> Tensor:
    """(L,) v of one class in one image: ``M^T A_k`` over a divisor (spec section 3.3). ``mask`` is (L,)."""
    own = attention[image, [names.part_of[label], len(names.parts) + names.object_of[label]]].mean(0)[1:, 1:]
    return mask @ own / divisor


def reference_smooth(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """(L,) map through the full 3x3 kernel of section 3.3, reflected."""
    offsets = torch.arange(-1.0, 2.0)
    kernel = torch.exp(-((offsets / (2 * 0.5)) ** 2))
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2
    padded = functional.pad(maps.view(1, 1, *grid), (1, 1, 1, 1), mode="reflect")
    return functional.conv2d(padded, kernel[None, None].to(maps)).flatten()


def reference_attention_loss(
    attention: Tensor,
    names: PartNames,
    classes: Tensor,
    objects: Tensor,
    grid: tuple[int, int],
    gamma: float = 0.3,
) -> tuple[Tensor, Tensor]:
    """L_sep and L_enh as released (spec section 3.4); ``objects`` holds a larger number where there is none."""
    images, side = len(classes), classes.shape[1]
    step, tokens = side // grid[0], grid[0] * grid[1]
    separations, enhancements = [], []
    for image in range(images):
        sampled = classes[image, ::step, ::step].flatten()
        sampled_objects = objects[image, ::step, ::step].flatten()
        present = [int(label) for label in classes[image].unique() if label < len(names)]
        maps = [reference_maps(attention, names, image, k, (sampled == k).float(), tokens) for k in present]
        for owner in objects[image].unique()[:-1]:
            inside = sampled_objects == owner
            claims = torch.zeros(tokens, device=attention.device)
            for v in maps:
                sharp = reference_smooth((v - v.min()) / (v.max() - v.min() + 1e-9), grid)
                claims += ((sharp > gamma) & inside).float()
            separations.append((claims > 1).sum() / ((claims >= 1).sum() + 1e-9))
            peaks = [reference_smooth(v, grid).max() for v in maps]
            enhancements.append(1 - torch.stack([*peaks, attention.new_ones(())]).min())
    count = max(1, len(separations)) * images
    nothing = attention.new_zeros(())
    return sum(separations, nothing) / count, sum(enhancements, nothing) / count
