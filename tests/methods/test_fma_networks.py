"""DeepLabV3+ and Mask2Former: one interface, the same promises, and what is special to each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import SwinConfig, SwinForImageClassification, ViTConfig

from weakly.errors import UserError
from weakly.methods.fma.deeplab import DeepLabSettings
from weakly.methods.fma.mask2former import Mask2Former, Mask2FormerSettings
from weakly.methods.fma.networks import build_network, rebuild_network
from weakly.methods.mask_classification import mask_targets, semantic_log_probabilities
from weakly.methods.semantic_network import SemanticNetwork, cross_entropy

CLASSES = 3
DEEPLAB = DeepLabSettings(
    encoder="resnet18", output_stride=16, decoder_channels=16, atrous_rates=(1, 2, 3), aux_channels=8
)
MASK2FORMER = Mask2FormerSettings(
    embed_dim=8,
    depths=(1, 1, 1, 1),
    heads=(1, 1, 2, 2),
    window=4,
    queries=6,
    width=64,
    encoder_layers=1,
    encoder_ffn=16,
    decoder_layers=2,
    decoder_ffn=16,
    attention_heads=2,
    points=64,
)


def network(settings: Any, seed: int = 0) -> SemanticNetwork:
    torch.manual_seed(seed)
    return build_network(settings, CLASSES)


def batch(images: int = 2, height: int = 50, width: int = 70) -> tuple[Tensor, Tensor]:
    """Noise, with labels in quarters and a void row."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(images, height, width).long()
    labels[:, height // 2 :] += 1
    labels[:, :, width // 2 :] += 2
    labels[:, 3] = 255
    return torch.randn(images, 3, height, width, generator=generator), labels


@pytest.fixture(scope="module", params=[DEEPLAB, MASK2FORMER], ids=["deeplab", "mask2former"])
def settings(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture(scope="module")
def shared(settings: Any) -> SemanticNetwork:
    """Not changed by any test."""
    return network(settings).eval()


@pytest.mark.parametrize("size", [(50, 70), (64, 64), (1, 97)])
@torch.no_grad()
def test_any_size_gives_probabilities_of_the_same_size(shared: SemanticNetwork, size: tuple[int, int]) -> None:
    outputs = shared(torch.randn(2, 3, *size))
    assert outputs.shape == (2, CLASSES + 1, *size)
    assert torch.isfinite(outputs).all()
    resized = shared.probabilities(outputs, (33, 20))
    assert resized.shape == (2, CLASSES + 1, 33, 20)
    assert torch.allclose(resized.sum(1), torch.ones(2, 33, 20), atol=1e-5)
    assert torch.allclose(shared.probabilities(outputs, size), outputs.softmax(1), atol=1e-6)


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other(shared: SemanticNetwork) -> None:
    pixels = torch.randn(3, 3, 40, 64)
    assert torch.allclose(shared(pixels)[1:2], shared(pixels[1:2]), atol=1e-4)


def test_the_loss_is_the_sum_of_its_parts_and_reaches_every_trained_weight(settings: Any) -> None:
    model = network(settings)
    losses = model.loss(*batch())
    parts = [value for name, value in losses.items() if name != "loss"]
    assert len(parts) >= 2
    assert losses["loss"].item() == pytest.approx(sum(part.item() for part in parts), rel=1e-5)
    losses["loss"].backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in trained)


@pytest.mark.parametrize("images", [1, 2])
def test_a_lone_image_and_images_without_any_label_are_no_error(settings: Any, images: int) -> None:
    pixels, labels = batch(images)
    assert torch.isfinite(network(settings).loss(pixels, torch.full_like(labels, 255))["loss"])
    assert network(settings).loss(pixels, labels)["loss"] > 0


def test_half_precision_gives_about_the_same_loss(settings: Any) -> None:
    full = network(settings).loss(*batch())["loss"].item()
    with torch.autocast("cpu", torch.bfloat16):
        half = network(settings).loss(*batch())["loss"]
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full, rel=0.05)


def test_a_few_steps_fit_one_batch(settings: Any) -> None:
    model = network(settings)
    pixels, labels = batch(2, 32, 32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for step in range(12):
        torch.manual_seed(step)
        loss = model.loss(pixels, labels)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < 0.8 * losses[0]


def test_the_same_seed_gives_the_same_weights(settings: Any) -> None:
    first, second, other = (network(settings, seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@torch.no_grad()
def test_the_description_survives_json_and_rebuilds_the_network(shared: SemanticNetwork) -> None:
    rebuilt = rebuild_network(json.loads(json.dumps(shared.architecture())), CLASSES)
    rebuilt.load_state_dict(shared.state_dict())
    pixels = batch()[0]
    assert torch.equal(rebuilt.eval()(pixels), shared(pixels))
    assert rebuilt.architecture() == shared.architecture()


@pytest.mark.parametrize(
    "damage", [{"kind": "other"}, {"settings": {"unheard_of": 1}}, {"kind": "mask2former", "config": None}]
)
def test_a_description_that_is_not_understood_is_one_sentence(damage: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="network"):
        rebuild_network({"kind": "deeplab", "settings": {}, **damage}, CLASSES)


def test_names_of_the_backbone_and_of_undecayed_weights_exist(shared: SemanticNetwork) -> None:
    names = {name for name, _ in shared.named_parameters()}
    backbone = {name for name in names if name.startswith(shared.backbone)}
    assert 0 < len(backbone) < len(names)
    assert shared.undecayed() <= names


def test_mask2former_decays_no_norm_no_position_bias_and_no_embedding() -> None:
    model = network(MASK2FORMER)
    decayed = {name for name, _ in model.named_parameters()} - model.undecayed()
    assert not [name for name in decayed if "norm" in name or "bias_table" in name or "embedder.weight" in name]
    assert not [name for name in decayed if "level_embed" in name or "queries_features" in name]
    assert [name for name in decayed if name.endswith("q_proj.weight")]
    assert network(DEEPLAB).undecayed() == set()


# DeepLabV3+ -----------------------------------------------------------------------------------------------------------


def test_void_pixels_are_not_counted() -> None:
    """Two pixels with probabilities 1/2 and 1/4 for their label, one void: (ln 2 + ln 4) / 2."""
    logits = torch.tensor([[0.5, 0.25, 0.9], [0.5, 0.75, 0.1]]).log().view(1, 2, 1, 3)
    labels = torch.tensor([[[0, 0, 255]]])
    assert cross_entropy(logits, labels).item() == pytest.approx(torch.tensor(8.0).log().item() / 2)
    assert cross_entropy(logits, torch.full_like(labels, 255)).item() == 0


def test_the_auxiliary_loss_has_its_weight() -> None:
    light, heavy = (network(replace(DEEPLAB, aux_weight=weight)).eval().loss(*batch()) for weight in (0.2, 0.6))
    assert heavy["auxiliary"].item() == pytest.approx(3 * light["auxiliary"].item(), rel=1e-4)
    assert heavy["cross_entropy"].item() == pytest.approx(light["cross_entropy"].item(), rel=1e-5)
    assert "auxiliary" not in network(replace(DEEPLAB, aux_weight=0)).eval().loss(*batch())


def test_the_output_stride_is_that_of_the_last_stage() -> None:
    for stride in (8, 16):
        features = network(replace(DEEPLAB, output_stride=stride)).net.encoder(torch.zeros(1, 3, 64, 64))
        assert features[-1].shape[-1] == 64 // stride


def test_an_unknown_encoder_is_one_sentence() -> None:
    with pytest.raises(UserError, match="resnet9000"):
        network(replace(DEEPLAB, encoder="resnet9000"))


# Mask2Former ----------------------------------------------------------------------------------------------------------


def test_there_is_one_target_mask_per_category_present() -> None:
    labels = torch.tensor([[[0, 3], [3, 255]], [[255, 255], [255, 255]]])
    masks, classes = mask_targets(labels)
    assert classes[0].tolist() == [0, 3]
    assert masks[0].tolist() == [[[1, 0], [0, 0]], [[0, 1], [1, 0]]]
    assert masks[1].shape == (0, 2, 2)
    assert classes[1].shape == (0,)


def test_masks_and_classes_combine_to_probabilities() -> None:
    """Two queries, two classes: masks 1/2 and 1/4, classes (.6, .2) and (.1, .3): sums .325 and .175."""
    masks = torch.tensor([0.5, 0.25]).logit().view(1, 2, 1, 1)
    classes = torch.tensor([[[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]]]).log()
    probabilities = semantic_log_probabilities(masks, classes).exp().flatten()
    assert probabilities.tolist() == pytest.approx([0.325 / 0.5, 0.175 / 0.5], rel=1e-5)


def test_pixels_outside_every_mask_still_have_probabilities() -> None:
    """Sigmoid(-200) and sigmoid(-190) are 0 in float32; only their ratio matters."""
    masks = torch.tensor([-200.0, -190.0]).view(1, 2, 1, 1)
    classes = torch.tensor([[[0.9, 0.1, 1e-6], [0.3, 0.7, 1e-6]]]).log()
    probabilities = semantic_log_probabilities(masks, classes).exp().flatten()
    assert probabilities.tolist() == pytest.approx([0.3, 0.7], rel=1e-3)


def test_a_confident_pixel_is_not_flattened() -> None:
    """FMA-WSSS section 6, defect b: a second softmax makes .12 of 1 among 21 classes."""
    classes = torch.full((1, 1, 22), -20.0)
    classes[..., 4] = 20
    probabilities = semantic_log_probabilities(torch.full((1, 1, 1, 1), 9.0), classes).exp()
    assert probabilities[0, 4].item() > 0.999


def test_a_pretrained_mask2former_gets_as_many_classes_as_needed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = build_network(MASK2FORMER, 5)
    assert isinstance(source, Mask2Former)
    source.net.save_pretrained(tmp_path)
    loaded = network(replace(MASK2FORMER, pretrained=str(tmp_path), queries=99))
    kept, fresh = source.state_dict(), loaded.state_dict()
    assert kept.keys() == fresh.keys()
    different = {name for name in kept if kept[name].shape != fresh[name].shape}
    assert different == {"net.class_predictor.weight", "net.class_predictor.bias", "net.criterion.empty_weight"}
    assert all(torch.equal(kept[name], fresh[name]) for name in kept.keys() - different)
    assert loaded(batch()[0]).shape[1] == CLASSES + 1


def test_a_pretrained_swin_becomes_the_backbone(tmp_path: Path) -> None:
    """An image classifier's, as the 22k-classes Swin is."""
    torch.manual_seed(3)
    swin = SwinForImageClassification(
        SwinConfig(embed_dim=16, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 4], window_size=4)
    )
    swin.save_pretrained(tmp_path)
    loaded = network(replace(MASK2FORMER, pretrained=str(tmp_path)))
    assert isinstance(loaded, Mask2Former)
    weights = loaded.net.model.pixel_level_module.encoder.state_dict()
    kept = {name: value for name, value in swin.state_dict().items() if name.startswith("swin.")}
    assert kept
    assert all(torch.equal(value, weights[name]) for name, value in kept.items())
    assert loaded.net.config.backbone_config.drop_path_rate == MASK2FORMER.drop_path


def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Swin or a Mask2Former"):
        network(replace(MASK2FORMER, pretrained=str(tmp_path)))
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="it is a vit"):
        network(replace(MASK2FORMER, pretrained=str(tmp_path)))


@pytest.mark.parametrize("width", [32, 80])
def test_a_width_that_the_norms_cannot_divide_is_refused(width: int) -> None:
    with pytest.raises(UserError, match="multiple of 32"):
        replace(MASK2FORMER, width=width)
