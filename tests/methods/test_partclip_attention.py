"""Attention of regions, and the losses on it, against loops over images, objects and classes (spec partclipseg)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partclip_scenes import (
    BIRD,
    DOG,
    FISH,
    NAMES,
    NO_CLASS,
    NO_OBJECT,
    RELEASED,
    TOKENS,
    Maps,
    attention_step,
    embeddings,
    empty,
    looks,
    paint,
    random_maps,
    train,
    two_images,
)
from tiny_clipseg import GRID, tiny_clipseg
from torch import Tensor

from partclip_reference import (
    post_norm_layer,
    reference_attention_loss,
    reference_maps,
    reference_smooth,
)
from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip import attention
from weakly.methods.partclip.attention import (
    find_objects,
    find_regions,
    gaussian_kernel,
    normalise,
    smooth,
)
from weakly.methods.partclip.attention_losses import AttentionLoss, attention_loss, overlaps, strengths
from weakly.methods.partclip.model import PartClipSeg


@pytest.fixture(scope="module")
def clipseg() -> ClipSeg:
    return tiny_clipseg()


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
