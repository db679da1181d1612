"""The clue networks: shapes and sizes of the published WeakTr, its attention fusion, and where gradients go."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from weakly.errors import UserError
from weakly.methods.weaksam.class_tokens import (
    ClueNetwork,
    Logits,
    VitSettings,
    load_deit,
    resized_positions,
    soft_margin_loss,
)
from weakly.methods.weaksam.mctformer import Mctformer
from weakly.methods.weaksam.weaktr import WeakTr, class_rows

TINY = VitSettings(width=24, depth=3, heads=2, patch=8, image=32)
CLASSES = 4


def network(kind: type[ClueNetwork] = WeakTr, settings: VitSettings = TINY, seed: int = 0) -> ClueNetwork:
    """Random weights, three times as large as usual, so that attention is not flat."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = kind(settings, CLASSES).eval()
        with torch.no_grad():
            for parameter in made.encoder.parameters():
                parameter *= 3 if parameter.ndim > 1 else 1
    return made


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_attention(made: ClueNetwork, images: Tensor) -> Tensor:
    """(L, B, H, N, N)."""
    seen: list[Tensor] = []
    with torch.no_grad():
        made.encoder(images, lambda _, attention: seen.append(attention.clone()))
    return torch.stack(seen)


def test_the_published_network_has_its_parameters_and_shapes() -> None:
    made = WeakTr(VitSettings(), 20).eval()
    assert sum(p.numel() for p in made.parameters()) == 21_751_988
    assert sum(p.numel() for p in made.fusion.parameters()) == 2_592
    maps = made.maps(pixels(1, 3, 240, 320), range(1, 13))
    assert maps.coarse.shape == maps.cross.shape == maps.fine.shape == (1, 20, 15, 20)
    assert maps.affinity.shape == (1, 300, 300)
    assert maps.raw.shape == (1, 6 * 12, 20, 15, 20)
    assert maps.z_cls.shape == maps.z_pat.shape == maps.z_fine.shape == (1, 20)


def test_a_class_costs_two_tokens_and_a_filter() -> None:
    counts = [sum(p.numel() for p in WeakTr(VitSettings(depth=1), c).parameters()) for c in (20, 21)]
    assert counts[1] - counts[0] == 4_225


def test_maps_pool_to_one_over_the_tokens_so_gates_know_no_image() -> None:
    made = network()
    for height, width in ((32, 32), (24, 40)):
        tokens = CLASSES + height * width // 64
        pooled = all_attention(made, pixels(2, 3, height, width)).mean((-2, -1))
        assert torch.allclose(pooled, torch.full_like(pooled, 1 / tokens), atol=1e-8)
    assert not torch.equal(made.fusion(20), made.fusion(21))
    assert torch.allclose(made.fusion(10**9), torch.tensor(0.5), atol=1e-6)


def stacked_maps(made: ClueNetwork, images: Tensor) -> tuple[Tensor, Tensor]:
    """Fused attention (B, N, N) and gates as published: all maps stacked head by head, pooled, gated and averaged."""
    attention = all_attention(made, images)
    stacked = attention.permute(1, 2, 0, 3, 4).flatten(1, 2)
    pooled = stacked.mean((-2, -1))
    gates = (made.fusion.excite.weight @ (made.fusion.squeeze.weight @ pooled.T).relu()).sigmoid().T
    return (gates[:, :, None, None] * stacked).mean(1), gates


def test_fusing_on_the_fly_equals_fusing_all_maps_at_once() -> None:
    made, images = network(), pixels(2, 3, 32, 48)
    fused, gates = stacked_maps(made, images)
    assert torch.allclose(gates[0], gates[1], atol=1e-7), "the same for every image"
    assert gates[0].std() > 0, "and not the same for every map"
    maps = made.maps(images)
    grid = (4, 6)
    assert torch.allclose(maps.cross, fused[:, :CLASSES, CLASSES:].unflatten(2, grid), atol=1e-6)
    assert torch.allclose(maps.affinity, fused[:, CLASSES:, CLASSES:], atol=1e-6)


def test_logits_are_means_of_the_maps() -> None:
    made, images = network(), pixels(2, 3, 32, 48)
    maps, logits = made.maps(images), made(images)
    with torch.no_grad():
        class_tokens, patch_tokens = made.encoder(images)
        activations = made.head(patch_tokens)
    assert torch.allclose(maps.coarse, activations.relu()) and (activations < 0).any()
    fine = torch.einsum("bpq,bcq->bcp", maps.affinity, (maps.cross * activations.relu()).flatten(2))
    assert torch.allclose(maps.fine.flatten(2), fine, atol=1e-6)
    for name, value in {
        "z_cls": class_tokens.mean(2),
        "z_pat": activations.mean((2, 3)),
        "z_fine": fine.mean(2),
    }.items():
        assert torch.allclose(getattr(logits, name), value, atol=1e-6)
        assert torch.allclose(getattr(maps, name), value, atol=1e-6)
    assert (logits.z_fine >= 0).all() and (logits.z_fine > 0).any()


def test_the_fine_loss_trains_the_gates_and_nothing_else() -> None:
    made, images = network(), pixels(3, 3, 32, 32)
    tags = torch.eye(3, CLASSES)
    soft_margin_loss(made(images), tags)["z_fine"].backward()
    reached = {name for name, p in made.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {"fusion.squeeze.weight", "fusion.excite.weight"}
    found = made.fusion.excite.weight.grad.clone()

    made.zero_grad()
    fused, _ = stacked_maps(made, images)
    coarse = made.maps(images).coarse.flatten(2)
    fine = (fused[:, :CLASSES, CLASSES:] * coarse) @ fused[:, CLASSES:, CLASSES:].mT
    torch.nn.functional.multilabel_soft_margin_loss(fine.mean(2), tags).backward()
    assert torch.allclose(found, made.fusion.excite.weight.grad, rtol=1e-4, atol=1e-12)


@pytest.mark.parametrize("kind", [WeakTr, Mctformer])
def test_the_loss_reaches_everything_but_the_norm_that_is_never_applied(kind: type[ClueNetwork]) -> None:
    made = network(kind).train()
    soft_margin_loss(made(pixels(2, 3, 32, 32)), torch.eye(2, CLASSES))["loss"].backward()
    without = {name for name, p in made.named_parameters() if p.grad is None}
    assert without == {"encoder.norm.weight", "encoder.norm.bias"}


def test_tokens_are_those_of_the_library_without_its_last_norm() -> None:
    made, images = network(), pixels(2, 3, 32, 32)
    with torch.no_grad():
        class_tokens, patch_tokens = made.encoder(images, lambda *_: None)
        patches = made.encoder.patch_embed.proj(images).flatten(2).mT
        tokens = torch.cat([made.encoder.cls_token.expand(2, -1, -1), patches], 1) + made.encoder.pos_embed
        tokens = made.encoder.blocks(tokens)
    assert torch.allclose(class_tokens, tokens[:, :CLASSES], atol=1e-5)
    assert torch.allclose(patch_tokens.flatten(2).mT, tokens[:, CLASSES:], atol=1e-5)


@pytest.mark.parametrize("kind", [WeakTr, Mctformer])
def test_raw_maps_are_the_attention_layer_by_layer_and_copies(kind: type[ClueNetwork]) -> None:
    made, images = network(kind), pixels(2, 3, 32, 48)
    attention = all_attention(made, images)
    raw = made.maps(images, (3, 1)).raw
    for number, layer in enumerate((3, 1)):
        rows = attention[layer - 1][:, :, :CLASSES, CLASSES:]
        assert torch.allclose(raw[:, 2 * number : 2 * number + 2].flatten(3), rows, atol=1e-6)
    assert made.maps(images).raw.shape == (2, 0, CLASSES, 4, 6)
    rows = class_rows(attention[0], CLASSES)
    assert rows.untyped_storage().nbytes() == 4 * rows.numel(), "no view of the whole attention"


def test_mctformer_fuses_three_layers_and_spreads_by_the_sum_of_all() -> None:
    made, images = network(Mctformer, replace(TINY, depth=5)), pixels(2, 3, 32, 48)
    attention = all_attention(made, images).mean(2)
    maps, logits = made.maps(images), made(images)
    cross = attention[2:].mean(0)[:, :CLASSES, CLASSES:].unflatten(2, (4, 6))
    affinity = attention.sum(0)[:, CLASSES:, CLASSES:]
    assert torch.allclose(maps.cross, cross, atol=1e-6) and torch.allclose(maps.affinity, affinity, atol=1e-6)
    fine = torch.einsum("bpq,bcq->bcp", affinity, (cross * maps.coarse).flatten(2)).unflatten(2, (4, 6))
    assert torch.allclose(maps.fine, fine, atol=1e-6)
    assert maps.z_fine is None and logits.z_fine is None
    assert set(soft_margin_loss(logits, torch.ones(2, CLASSES))) == {"loss", "z_cls", "z_pat"}


def test_the_loss_is_the_sum_of_soft_margins() -> None:
    z, tags = torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]])
    expected = (torch.log(torch.tensor(2.0)) + torch.log1p(torch.tensor(2.0).exp())) / 2
    losses = soft_margin_loss(Logits(z, z, z), tags)
    assert torch.allclose(losses["z_cls"], expected) and torch.allclose(losses["loss"], 3 * expected)


@pytest.mark.parametrize("kind", [WeakTr, Mctformer])
def test_half_precision_changes_little(kind: type[ClueNetwork]) -> None:
    made, images = network(kind), pixels(2, 3, 32, 32)
    exact = made(images)
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(images)
    soft_margin_loss(rough, torch.eye(2, CLASSES))["loss"].backward()
    assert all(p.grad.isfinite().all() for p in made.parameters() if p.grad is not None)
    for one, other in zip(exact, rough, strict=True):
        assert one is None or torch.allclose(one, other.float(), atol=0.05)


def test_positions_are_kept_on_the_native_grid_and_interpolated_on_others() -> None:
    made = network()
    assert torch.equal(made.encoder.positions((4, 4)), made.encoder.pos_embed)
    resized = made.encoder.positions((3, 7))
    assert resized.shape == (1, CLASSES + 21, 24)
    assert torch.equal(resized[:, :CLASSES], made.encoder.pos_embed[:, :CLASSES])
    flat = resized_positions(torch.full((1, 16, 2), 1.5), (4, 4), (9, 5))
    assert flat.shape == (1, 45, 2) and torch.allclose(flat, torch.tensor(1.5))


def test_a_tenth_of_a_patch_shifts_the_sampling_points_of_positions() -> None:
    values = torch.randn(14, generator=torch.Generator().manual_seed(0))
    resized = resized_positions(values.repeat(14, 1).reshape(1, 196, 1), (14, 14), (14, 28)).view(14, 28)[5]
    places = ((torch.arange(28.0) + 0.5) * 14 / 28.1 - 0.5)[4:-4]
    taps = places.floor()[:, None] + torch.arange(-1.0, 3.0)
    away = (places[:, None] - taps).abs()
    near, far = 1.25 * away**3 - 2.25 * away**2 + 1, -0.75 * (away**3 - 5 * away**2 + 8 * away - 4)
    expected = (torch.where(away <= 1, near, far) * values[taps.long()]).sum(1)
    # The rows are shifted too, by 14 / 14.1, but all are the same.
    assert torch.allclose(resized[4:-4], expected, atol=1e-4)


def test_what_exceeds_whole_patches_is_cut_off() -> None:
    made, images = network(), pixels(1, 3, 35, 47)
    whole, cut = made.maps(images), made.maps(images[..., :32, :40])
    assert torch.equal(whole.fine, cut.fine) and whole.fine.shape[-2:] == (4, 5)
    with pytest.raises(UserError, match="7x40 pixels is smaller than a patch of 8"):
        made.maps(images[..., :7, :40])


def deit(width: int = 24, depth: int = 3, patch: int = 8, image: int = 32) -> dict[str, Tensor]:
    torch.manual_seed(1)
    vit = VisionTransformer(image, patch, embed_dim=width, depth=depth, num_heads=2, num_classes=5)
    return vit.state_dict()


def test_a_deit_gives_its_token_and_position_to_every_class() -> None:
    made, state = network(), deit()
    made.from_deit(state)
    encoder = made.encoder
    assert torch.equal(encoder.cls_token, state["cls_token"].expand(1, CLASSES, -1))
    assert torch.equal(encoder.pos_embed[:, :CLASSES], state["pos_embed"][:, :1].expand(1, CLASSES, -1))
    assert torch.equal(encoder.pos_embed[:, CLASSES:], state["pos_embed"][:, 1:])
    for name, value in state.items():
        if not name.startswith(("head", "cls_token", "pos_embed")):
            assert torch.equal(encoder.state_dict()[name], value)


def test_a_deit_of_other_patches_or_with_a_distillation_token_fits_too() -> None:
    made, state = network(), deit(patch=16, image=96)
    made.from_deit(state)
    assert made.encoder.patch_embed.proj.weight.shape[-2:] == (8, 8) and made.encoder.pos_embed.shape[1] == CLASSES + 16
    plain = deit()
    position = torch.cat([plain["pos_embed"][:, :1], torch.full((1, 1, 24), 9.0), plain["pos_embed"][:, 1:]], 1)
    made.from_deit({**plain, "pos_embed": position, "dist_token": torch.ones(1, 1, 24)})
    assert torch.equal(made.encoder.pos_embed[:, CLASSES:], plain["pos_embed"][:, 1:])


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (deit(width=32), "do not fit a transformer of 3 layers and width 24"),
        (deit(depth=2), "Missing key"),
        (deit(depth=4), "hold blocks.3"),
        ({"weight": torch.ones(1)}, "lacks 'pos_embed'"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(state: dict[str, Tensor], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        network().from_deit(state)


def test_weights_are_read_from_files_and_folders_without_unpickling(tmp_path: Path) -> None:
    state = deit()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    torch.save({"model": state}, tmp_path / "deit.pth")
    torch.save({"model": network()}, tmp_path / "objects.pth")
    for name in (tmp_path, tmp_path / "model.safetensors", tmp_path / "deit.pth"):
        found = load_deit(str(name))
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    with pytest.raises(UserError, match=r"objects.pth cannot be read"):
        load_deit(str(tmp_path / "objects.pth"))
    with pytest.raises(UserError, match="There are no DeiT weights at .*nothing.pth"):
        load_deit(str(tmp_path / "nothing.pth"))
    with pytest.raises(UserError, match="'no_such_deit' could not be loaded"):
        load_deit("no_such_deit")


@pytest.mark.parametrize(
    ("changes", "name"),
    [({"heads": 5}, "width"), ({"depth": 0}, "depth"), ({"image": 4}, "image"), ({"drop_path": 1.0}, "drop_path")],
)
def test_impossible_sizes_are_refused(changes: dict[str, float], name: str) -> None:
    with pytest.raises(UserError, match=f"vit.{name} is"):
        replace(TINY, **changes)
