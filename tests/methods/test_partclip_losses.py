"""Mask and attention losses of PartCLIPSeg against loops over images, objects and classes (spec sections 3 and 11)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_clipseg import GRID, SIDE, tiny_clipseg
from torch import Tensor
from torch.nn import functional

from partclip_reference import (
    Reference,
    post_norm_layer,
    reference_attention_loss,
    reference_maps,
    reference_mask_loss,
    reference_smooth,
    unfactored,
)
from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip import attention
from weakly.methods.partclip.attention import (
    Regions,
    find_objects,
    find_regions,
    gaussian_kernel,
    normalise,
    region_attention,
    smooth,
)
from weakly.methods.partclip.attention_losses import AttentionLoss, attention_loss, overlaps, strengths
from weakly.methods.partclip.losses import MaskLoss, mask_loss, phrase_loss, total_loss
from weakly.methods.partclip.model import ClipSegBaseline, Decoded, NameEmbeddings, PartClipSeg
from weakly.methods.partclip.names import PartNames

NAMES = PartNames.from_classes(
    ["dog's head", "dog's body", "fish's tail", "dog's tail", "bird's head", "fish's fin", "bird's wing"]
)
BIRD, DOG, FISH, NO_OBJECT = range(4)
NO_CLASS = len(NAMES)
TOKENS = GRID[0] * GRID[1]

RELEASED = {"sep_loss": "hard", "enh_loss": "official", "part_scope": "image"}
NOTHING = AttentionLoss(torch.zeros(()), torch.zeros(()))

Maps = tuple[Tensor, Tensor]


@pytest.fixture(scope="module")
def clipseg() -> ClipSeg:
    return tiny_clipseg()


def empty(images: int) -> Maps:
    """Classes and objects of images that show nothing."""
    return torch.full((images, SIDE, SIDE), NO_CLASS), torch.full((images, SIDE, SIDE), NO_OBJECT)


def paint(maps: Maps, image: int, label: int, box: tuple[int, int, int, int]) -> None:
    """A class and its object in the pixels of a box x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    maps[0][image, y0:y1, x0:x1] = label
    maps[1][image, y0:y1, x0:x1] = NAMES.object_of[label]


def two_images() -> Maps:
    """A dog of two parts inside a ring without a part; a bird beside a fish, and background for a part-less object."""
    maps = empty(2)
    maps[1][0, 8:80, 8:90] = DOG
    paint(maps, 0, 0, (16, 16, 40, 40))
    paint(maps, 0, 1, (40, 20, 80, 70))
    paint(maps, 1, 4, (0, 0, 30, 20))
    paint(maps, 1, 6, (0, 20, 30, 60))
    paint(maps, 1, 2, (50, 10, 70, 96))
    return maps


RING = (0, slice(8, 16), slice(8, 90))


def random_maps(seed: int) -> Maps:
    """Up to five boxes of parts and one of an object without, in each of two images; always some background."""
    generator = torch.Generator().manual_seed(seed)
    maps = empty(2)
    for image in range(2):
        for index in range(int(torch.randint(1, 6, (), generator=generator))):
            x0, y0 = torch.randint(0, 80, (2,), generator=generator).tolist()
            x1, y1 = torch.randint(1, 50, (2,), generator=generator).tolist()
            box = (x0, y0, min(SIDE, x0 + x1), min(SIDE, y0 + y1))
            paint(maps, image, int(torch.randint(len(NAMES), (), generator=generator)), box)
            if index == 0:
                maps[0][image, box[1] : box[3], box[0] : box[2]] = NO_CLASS
        maps[0][image, -1, -1], maps[1][image, -1, -1] = NO_CLASS, NO_OBJECT
    return maps


class Leaves:
    """Logits that are leaves, so that every pixel's own gradient is seen."""

    def __init__(self, seed: int = 0, images: int = 2) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.trunk = torch.randn(images, 9, SIDE, SIDE, generator=generator, requires_grad=True)
        self.classes = torch.randn(images, 8, SIDE, SIDE, generator=generator, requires_grad=True)
        self.decoded: Any = SimpleNamespace(trunk=None)

    def prompt_logits(self, trunk: None, rows: Tensor) -> Tensor:
        return self.trunk[:, rows]

    def class_logits(self, decoded: Any, classes: Tensor) -> Tensor:
        return self.classes[:, classes]

    def loss(self, maps: Maps, chunk: int = 3) -> MaskLoss:
        return mask_loss(self, self.decoded, embeddings(), *maps, chunk=chunk)

    def reference(self, maps: Maps) -> Tensor:
        return reference_mask_loss(Reference(self.trunk, self.classes, torch.zeros(())), NAMES, *maps)


def embeddings() -> NameEmbeddings:
    parts, objects = len(NAMES.parts), len(NAMES.objects)
    return NameEmbeddings(
        torch.zeros(parts + objects + 1, 4),
        torch.tensor([*NAMES.part_of, parts + objects]),
        torch.tensor([*(parts + owner for owner in NAMES.object_of), parts + objects]),
        parts,
        objects,
    )


# Masks


def test_mask_losses_are_means_over_pixels_and_channels() -> None:
    """Check 8: the scalar of spec section 3.2."""
    leaves, maps = Leaves(), two_images()
    torch.testing.assert_close(total_loss(leaves.loss(maps), NOTHING), leaves.reference(maps), rtol=1e-6, atol=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), chunk=st.integers(1, 9))
def test_mask_losses_and_gradients_equal_explicit_means(seed: int, chunk: int) -> None:
    leaves, maps = Leaves(seed), random_maps(seed)
    inputs = (leaves.trunk, leaves.classes)
    ours, theirs = total_loss(leaves.loss(maps, chunk), NOTHING), leaves.reference(maps)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for mine, expected in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-10)


def test_an_object_without_a_part_teaches_object_masks_alone() -> None:
    """Check 8: the ring."""
    leaves = Leaves()
    total_loss(leaves.loss(two_images()), NOTHING).backward()
    image, rows, columns = RING
    parts = len(NAMES.parts)
    assert not leaves.classes.grad[image, :, rows, columns].any()
    assert not leaves.trunk.grad[image, :parts, rows, columns].any()
    assert leaves.trunk.grad[image, parts:, rows, columns].all()


def test_pixels_nobody_knows_count_nowhere() -> None:
    """Unseen objects with ``unseen_pixels: ignore``: neither gradient nor part of a divisor."""
    leaves, maps = Leaves(), two_images()
    whole = leaves.loss(maps)
    maps[1][:, :, 90:] = -1
    cut = leaves.loss(maps)
    (gradient,) = torch.autograd.grad(total_loss(cut, NOTHING), leaves.trunk)
    assert not gradient[..., 90:].any()
    smaller = Leaves()
    smaller.trunk, smaller.classes = leaves.trunk[..., :90], leaves.classes[..., :90]
    expected = smaller.loss((maps[0][..., :90], maps[1][..., :90]))
    torch.testing.assert_close(cut, expected)
    assert cut.classes != whole.classes


def test_weights_of_the_three_losses() -> None:
    one, two, three, four, five = torch.tensor([1.0, 10.0, 100.0, 1000.0, 10000.0])
    masks, looks = MaskLoss(one, two, three, torch.tensor(False)), AttentionLoss(four, five)
    assert total_loss(masks, looks).item() == 1 + 10 + 100 + 0.1 * 1000 + 0.01 * 10000
    weights = {"objects": 2.0, "parts": 0.0, "separation": 0.0, "enhancement": 1.0}
    assert total_loss(masks, looks, **weights).item() == 1 + 20 + 10000


def test_a_batch_without_background_is_nothing_in_the_release() -> None:
    """Check 9."""
    leaves, maps = Leaves(images=1), empty(1)
    maps[1][:] = DOG
    paint(maps, 0, 0, (0, 0, 40, 96))
    assert leaves.reference(maps).isnan()
    masks = leaves.loss(maps)
    assert masks.undefined
    released, fixed = (total_loss(masks, NOTHING, empty_term=kind) for kind in ("nan_to_zero", "skip"))
    for gradient in torch.autograd.grad(released, (leaves.trunk, leaves.classes), retain_graph=True):
        assert not gradient.any()
    assert released == 0
    assert fixed.isfinite()
    for gradient in torch.autograd.grad(fixed, (leaves.trunk, leaves.classes)):
        assert gradient.isfinite().all()
        assert gradient.any()


def test_the_release_is_nothing_only_where_it_would_be_undefined() -> None:
    masks = Leaves().loss(two_images())
    assert not masks.undefined
    assert total_loss(masks, NOTHING, empty_term="nan_to_zero") == total_loss(masks, NOTHING)
    assert not Leaves().loss(empty(2)).undefined


def test_the_baseline_has_one_mean_over_everything(clipseg: ClipSeg) -> None:
    torch.manual_seed(0)
    model, maps = ClipSegBaseline(clipseg), two_images()
    maps[1][1, :5] = -1
    names, taps = model.encode_names(clipseg, NAMES), clipseg.taps(torch.randn(2, 3, SIDE, SIDE))
    ours = phrase_loss(model, model.decode(taps, names), *maps, chunk=3)
    known = maps[1] >= 0
    target = functional.one_hot(maps[0], NO_CLASS + 1).float()[known]
    weight = torch.tensor([1.0] * NO_CLASS + [0.05])
    logits = model(taps, names).permute(0, 2, 3, 1)[known]
    torch.testing.assert_close(ours, functional.binary_cross_entropy_with_logits(logits, target, weight))


# The whole training step


def train(clipseg: ClipSeg, seed: int = 0, **arguments: str) -> tuple[PartClipSeg, Tensor]:
    torch.manual_seed(seed)
    model = PartClipSeg(clipseg, **arguments)
    with torch.no_grad():
        for layer in model.decoder.layers:  # attention that is not flat
            layer.self_attn.q_proj.weight *= 3
            layer.self_attn.k_proj.weight *= 3
    return model, torch.randn(2, 3, SIDE, SIDE)


def looks(model: PartClipSeg, decoded: Decoded, names: NameEmbeddings, parts: Regions, pooling: str) -> Tensor:
    prompts = torch.stack([names.part_prompt[parts.label], names.object_prompt[parts.label]], 1)
    return region_attention(model.decoder.layers[-1].self_attn, decoded.trunk.last_input, parts, prompts, pooling)


def attention_step(
    model: PartClipSeg, decoded: Decoded, names: NameEmbeddings, maps: Maps, pooling: str, **switches: str
) -> AttentionLoss:
    parts = find_regions(maps[0], NO_CLASS, GRID, pooling)
    objects = find_objects(maps[1], NO_OBJECT, GRID, pooling, switches.get("part_scope", "object"))
    v = looks(model, decoded, names, parts, pooling)
    return attention_loss(v, parts, objects, names.object_of, GRID, len(maps[0]), **switches)


def gradient_differences(clipseg: ClipSeg, seed: int) -> dict[str, float]:
    """{parameter: largest difference between its gradients in both formulations, over its largest value}."""
    model, images = train(clipseg, seed, obj_text_index="official", background_vector="frozen")
    maps = two_images()
    names = model.encode_names(clipseg, NAMES)
    decoded = model.decode(clipseg.taps(images), names)
    masks = mask_loss(model, decoded, names, *maps, chunk=3)
    ours = total_loss(masks, attention_step(model, decoded, names, maps, "nearest", **RELEASED), enhancement=1.0)
    ours.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = unfactored(model, clipseg, images, NAMES)
    separation, enhancement = reference_attention_loss(output.attention, NAMES, *maps, GRID)
    theirs = reference_mask_loss(output, NAMES, *maps) + 0.1 * separation + enhancement
    theirs.backward()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert set(gradients) == {name for name, _ in model.named_parameters()} - {"background"}
    expected = {name: p.grad for name, p in model.named_parameters() if name in gradients}
    sizes = {name: max(grad.abs().max().item(), 1e-3) for name, grad in expected.items()}
    return {name: (gradients[name] - grad).abs().max().item() / sizes[name] for name, grad in expected.items()}


def test_a_released_training_step_is_that_of_the_unfactored_formulation(clipseg: ClipSeg) -> None:
    """Loss and every gradient, from pixels to text tables.

    The two round differently, and a ReLU or a maximum near its edge then falls on either side, which shows in the
    gradients of that draw; a formula that is wrong is so in every draw.
    """
    found = [gradient_differences(clipseg, seed) for seed in range(4)]
    for name in found[0]:
        assert min(differences[name] for differences in found) < 1e-3, name


# Attention


def test_the_kernel_is_the_published_one() -> None:
    """Check 11."""
    assert gaussian_kernel().tolist() == pytest.approx([0.2119, 0.5761, 0.2119], abs=1e-4)
    assert gaussian_kernel().sum().item() == pytest.approx(1)
    point = torch.zeros(1, 5, 7)
    point[0, 2, 3] = 1
    kernel = smooth(point.flatten(1), (5, 7)).view(5, 7)
    assert kernel[1, 2].item() == pytest.approx(0.0449, abs=1e-4)
    assert kernel[1, 3].item() == pytest.approx(0.1221, abs=1e-4)
    assert kernel[2, 3].item() == pytest.approx(0.3319, abs=1e-4)
    corner = torch.zeros(1, 5, 7)
    corner[0, 1, 1] = 1  # also reflected onto the rows and columns beyond the border
    assert smooth(corner.flatten(1), (5, 7)).view(5, 7)[0, 0].item() == pytest.approx(4 * 0.0449, abs=1e-4)


@given(seed=st.integers(0, 10**6))
def test_smoothing_is_the_two_dimensional_kernel(seed: int) -> None:
    maps = torch.rand(3, 20, generator=torch.Generator().manual_seed(seed))
    expected = torch.stack([reference_smooth(one, (4, 5)) for one in maps])
    torch.testing.assert_close(smooth(maps, (4, 5)), expected)
    torch.testing.assert_close(smooth(torch.ones(1, 20), (4, 5)), torch.ones(1, 20))


@pytest.mark.parametrize("at_once", [2**25, 1])
@pytest.mark.parametrize("seed", range(3))
def test_region_attention_is_mask_times_the_mean_attention(clipseg, seed, at_once, monkeypatch) -> None:
    """Check 11: ``(1 / L) M^T A_k``, of rows of present classes alone, and at most the part's share of the grid."""
    monkeypatch.setattr(attention, "WEIGHT_FLOATS", at_once)
    model, images = train(clipseg, seed)
    maps = random_maps(seed)
    with torch.no_grad():
        names = model.encode_names(clipseg, NAMES)
        decoded = model.decode(clipseg.taps(images), names)
        weights = post_norm_layer(model.decoder.layers[-1], decoded.trunk.last_input.flatten(0, 1))[1]
        full = weights.mean(1).unflatten(0, (2, names.prompts))
        for pooling in ("nearest", "area"):
            parts = find_regions(maps[0], NO_CLASS, GRID, pooling)
            found = looks(model, decoded, names, parts, pooling)
            for row, (image, label, mask) in enumerate(zip(parts.image, parts.label, parts.masks, strict=True)):
                divisor = TOKENS if pooling == "nearest" else float(mask.sum())
                expected = reference_maps(full, NAMES, int(image), int(label), mask, divisor)
                torch.testing.assert_close(found[row], expected, rtol=1e-5, atol=1e-7)
                if pooling == "nearest":
                    assert found[row].max() <= mask.sum() / TOKENS


@given(seed=st.integers(0, 10**6))
def test_regions_are_the_labels_present(seed: int) -> None:
    labels, _ = random_maps(seed)
    for pooling in ("nearest", "area"):
        regions = find_regions(labels, NO_CLASS, GRID, pooling)
        expected = [(b, k) for b in range(2) for k in labels[b].unique().tolist() if k < NO_CLASS]
        assert list(zip(regions.image.tolist(), regions.label.tolist(), strict=True)) == expected
        for image, label, mask in zip(*regions[:3], strict=True):
            patches = (labels[image] == label).float().unflatten(0, (GRID[0], -1)).unflatten(2, (GRID[1], -1))
            share = patches.mean((1, 3)).flatten()
            own = patches[:, 0, :, 0].flatten() if pooling == "nearest" else share / share.max()
            torch.testing.assert_close(mask, own)
        most = max([1, *((regions.masks > 0).sum(1).tolist())])
        assert regions.longest == most


def test_no_region_is_no_loss(clipseg: ClipSeg) -> None:
    model, images = train(clipseg)
    names = model.encode_names(clipseg, NAMES)
    decoded = model.decode(clipseg.taps(images), names)
    ringed = empty(2)
    ringed[1][0, :50] = DOG
    for maps in (empty(2), ringed):
        assert attention_step(model, decoded, names, maps, "area") == (0, 0)
        assert attention_step(model, decoded, names, maps, "nearest", **RELEASED) == (0, 0)


def test_uniform_attention_claims_nothing() -> None:
    """Check 11."""
    maps = two_images()
    parts, objects = (find_regions(m, n, GRID, "nearest") for m, n in zip(maps, (NO_CLASS, NO_OBJECT), strict=True))
    flat = torch.full((len(parts.image), TOKENS), 1 / (TOKENS + 1))
    for kind in ("hard", "soft"):
        loss = attention_loss(flat, parts, objects, embeddings().object_of, GRID, 2, sep_loss=kind)
        assert loss.separation == 0


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6))
def test_released_attention_losses_equal_loops(seed: int) -> None:
    """Spec section 3.4, on attention that is anything."""
    generator = torch.Generator().manual_seed(seed)
    full = torch.randn(2, 9, TOKENS + 1, TOKENS + 1, generator=generator).mul(2).softmax(-1)
    maps, names = random_maps(seed), embeddings()
    parts = find_regions(maps[0], NO_CLASS, GRID, "nearest")
    objects = find_objects(maps[1], NO_OBJECT, GRID, "nearest", "image")
    rows = [
        reference_maps(full, NAMES, int(image), int(label), mask, TOKENS)
        for image, label, mask in zip(*parts[:3], strict=True)
    ]
    v = torch.stack(rows) if rows else torch.zeros(0, TOKENS)
    ours = attention_loss(v, parts, objects, names.object_of, GRID, 2, **RELEASED)
    for mine, expected in zip(ours, reference_attention_loss(full, NAMES, *maps, GRID), strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-5, atol=1e-6)


def test_overlap_counts_tokens_claimed_twice() -> None:
    """Two parts of one object and one of another, five tokens: worked by hand."""
    maps = torch.tensor([[0.9, 0.9, 0.0, 0.0, 0.9], [0.0, 0.9, 0.9, 0.0, 0.9], [0.9, 0.9, 0.9, 0.9, 0.9]])
    owns = torch.tensor([[True, True, False], [False, False, True], [True, True, True]])
    inside = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0]]).expand(3, -1)
    hard = overlaps(maps, owns, inside, "hard")
    assert hard.tolist() == pytest.approx([1 / 3, 0, 3 / 4])
    soft = overlaps(maps, owns, inside, "soft", temperature=1e-3)
    assert soft.tolist() == pytest.approx([1 / 3, 0, 4 / 4])  # a third claim counts once more


@given(seed=st.integers(0, 10**6))
def test_soft_overlap_of_two_parts_becomes_hard_as_the_temperature_falls(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    maps = torch.rand(2, 12, generator=generator)
    maps = torch.where((maps - 0.3).abs() < 1e-3, 0.5, maps)
    owns, inside = torch.ones(1, 2, dtype=torch.bool), (torch.rand(1, 12, generator=generator) > 0.3).float()
    hard, soft = (overlaps(maps, owns, inside, kind, temperature=1e-5) for kind in ("hard", "soft"))
    torch.testing.assert_close(soft, hard, atol=1e-5, rtol=1e-4)


@given(seed=st.integers(0, 10**6))
def test_strength_is_a_share_of_attention(seed: int) -> None:
    """1 where a part looks at nothing but itself; the area over the grid, about, where attention is uniform."""
    labels, _ = random_maps(seed)
    parts = find_regions(labels, NO_CLASS, GRID, "area")
    self_centred = (parts.masks == 1).float()
    self_centred /= self_centred.sum(1, keepdim=True)
    torch.testing.assert_close(strengths(self_centred, parts.masks, GRID, "area_norm"), torch.ones(len(parts.image)))
    flat = torch.full_like(parts.masks, 1 / TOKENS)
    torch.testing.assert_close(strengths(flat, parts.masks, GRID, "area_norm"), parts.masks.mean(1))


def test_minimum_and_maximum_are_taken_out_before_smoothing() -> None:
    maps = normalise(torch.tensor([[2.0, 4.0, 3.0], [5.0, 5.0, 5.0]]))
    torch.testing.assert_close(maps, torch.tensor([[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]))


# Check 12: what the release does not train, and the fixed losses do


def released_and_fixed(clipseg: ClipSeg, maps: Maps) -> tuple[PartClipSeg, AttentionLoss, AttentionLoss]:
    model, images = train(clipseg)
    names = model.encode_names(clipseg, NAMES)
    decoded = model.decode(clipseg.taps(images)[: len(maps[0])], names)
    released = attention_step(model, decoded, names, maps, "nearest", **RELEASED)
    return model, released, attention_step(model, decoded, names, maps, "area")


def gradient_of(loss: Tensor, model: PartClipSeg) -> float:
    """Largest gradient on the queries of the last layer."""
    (gradient,) = torch.autograd.grad(loss, model.decoder.layers[-1].self_attn.q_proj.weight, retain_graph=True)
    return float(gradient.abs().max())


def test_hard_separation_has_no_gradient_even_where_it_is_positive(clipseg: ClipSeg) -> None:
    model, released, fixed = released_and_fixed(clipseg, two_images())
    assert released.separation > 0
    assert not released.separation.requires_grad
    assert fixed.separation > 0
    assert gradient_of(fixed.separation, model) > 0


def test_a_part_without_a_token_switches_enhancement_off_in_the_release(clipseg: ClipSeg) -> None:
    maps = empty(1)
    paint(maps, 0, 0, (16, 16, 80, 80))
    model, released, fixed = released_and_fixed(clipseg, maps)
    assert gradient_of(released.enhancement, model) > 0
    paint(maps, 0, 3, (34, 35, 41, 42))  # seven pixels wide, between the first pixels of all tokens
    model, released, fixed = released_and_fixed(clipseg, maps)
    assert released.enhancement == 1
    assert gradient_of(released.enhancement, model) == 0
    assert gradient_of(fixed.enhancement, model) > 0


def test_an_object_that_fills_the_image_is_dropped_in_the_release(clipseg: ClipSeg) -> None:
    maps = empty(1)
    maps[1][:] = DOG
    paint(maps, 0, 0, (0, 0, 50, 96))
    paint(maps, 0, 1, (50, 0, 96, 96))
    assert len(find_objects(maps[1], NO_OBJECT, GRID, "nearest", "image").image) == 0
    model, released, fixed = released_and_fixed(clipseg, maps)
    assert released == (0, 0)
    assert gradient_of(fixed.separation, model) > 0
    assert gradient_of(fixed.enhancement, model) > 0


def test_only_the_last_object_of_a_full_image_is_dropped() -> None:
    maps = empty(2)
    maps[1][:, :, :40] = BIRD
    maps[1][:, :, 40:] = FISH
    maps[1][1, 0, 0] = NO_OBJECT
    kept = find_objects(maps[1], NO_OBJECT, GRID, "nearest", "image")
    assert list(zip(kept.image.tolist(), kept.label.tolist(), strict=True)) == [(0, BIRD), (1, BIRD), (1, FISH)]
    assert len(find_objects(maps[1], NO_OBJECT, GRID, "nearest", "object").image) == 4


def test_parts_of_other_objects_do_not_count_in_the_fixed_losses() -> None:
    """The bird's parts look at the same tokens as the fish's, whose one part overlaps with none of its own."""
    maps = two_images()
    parts = find_regions(maps[0], NO_CLASS, GRID, "area")
    objects = find_objects(maps[1], NO_OBJECT, GRID, "area", "object")
    v = torch.zeros(len(parts.image), TOKENS)
    v[:, 7:10] = 1 / 3
    shared = {"maps": v, "parts": parts, "objects": objects, "object_of": embeddings().object_of, "grid": GRID}
    per_image = attention_loss(**shared, images=2, part_scope="image", sep_loss="hard").separation
    per_object = attention_loss(**shared, images=2, part_scope="object", sep_loss="hard").separation
    assert parts.label.tolist() == [0, 1, 2, 4, 6]
    assert per_object.item() == pytest.approx(2 / 3)  # dog and bird in full, fish not at all
    assert per_image.item() == pytest.approx(3 / 3 / 2)  # and once more over the number of images
