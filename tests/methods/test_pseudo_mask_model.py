"""MaskFormer as a semantic segmenter: the library's network with the paper's losses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_maskformer import RESNET, SWIN, tiny_settings
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
)

from weakly.errors import UserError
from weakly.methods.baselines.pseudo_mask.model import MaskFormer, MaskFormerSettings, build_maskformer
from weakly.methods.baselines.pseudo_mask.pretrained import from_pretrained, save_pretrained
from weakly.methods.image_views import VOID
from weakly.vocabulary import Vocabulary

BOTH = pytest.mark.parametrize("settings", [RESNET, SWIN], ids=["resnet", "swin"])


def network(settings: MaskFormerSettings, classes: int = 3, seed: int = 0) -> MaskFormer:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_maskformer(replace(settings, dropout=0.0, drop_path=0.0), classes)


def batch(seed: int = 0, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, classes + 1, (2, 2, 2), generator=generator)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    return torch.randn(2, 3, 64, 64, generator=generator), labels


@BOTH
@torch.no_grad()
def test_the_last_answer_is_the_librarys(settings: MaskFormerSettings) -> None:
    model, (pixels, _) = network(settings).eval(), batch()
    theirs = model.net(pixels)
    for answers in (model.answers(pixels, earlier=False), model.answers(pixels, earlier=True)):
        assert torch.allclose(answers[-1].masks, theirs.masks_queries_logits, atol=1e-5)
        assert torch.allclose(answers[-1].classes, theirs.class_queries_logits, atol=1e-5)
    assert len(answers) == settings.decoder_layers


@torch.no_grad()
def test_an_earlier_answer_is_that_of_a_decoder_that_ends_there() -> None:
    model, (pixels, _) = network(RESNET).eval(), batch()
    first, last = model.answers(pixels, earlier=True)
    del model.net.model.transformer_module.decoder.layers[1]
    (short,) = model.answers(pixels, earlier=False)
    assert torch.allclose(first.masks, short.masks, atol=1e-5)
    assert torch.allclose(first.classes, short.classes, atol=1e-5)
    assert not torch.allclose(last.masks, short.masks, atol=1e-3)


def test_the_loss_of_one_layer_is_the_librarys_weighted() -> None:
    model, (pixels, labels) = network(replace(RESNET, decoder_layers=1)), batch()
    present = [image.unique() for image in labels]
    masks = [(image == some[:, None, None]).float() for image, some in zip(labels, present, strict=True)]
    theirs = model.net(pixels, mask_labels=masks, class_labels=present).loss
    ours = model.loss(pixels, labels)
    assert ours["loss"].item() == pytest.approx(theirs.item(), rel=1e-4)
    assert ours["loss"].item() == pytest.approx(sum(ours[part].item() for part in ("classification", "mask", "dice")))
    heavier = network(replace(RESNET, decoder_layers=1, dice_weight=1.0, class_weight=3.0)).loss(pixels, labels)
    assert heavier["classification"].item() == pytest.approx(3 * ours["classification"].item(), rel=1e-4)


def test_labels_at_the_stride_of_the_answers_are_compared_there() -> None:
    """Blocks of 32 px: every fourth pixel of them says the same, with less to compare."""
    (pixels, labels), coarse = batch(), network(replace(RESNET, label_stride=4))
    seen = labels[:, 2::4, 2::4]
    model = network(RESNET)
    expected = model.padded_loss(pixels, seen)
    for part, value in coarse.padded_loss(pixels, labels).items():
        assert value.item() == pytest.approx(expected[part].item(), rel=1e-5)


@BOTH
def test_ignored_pixels_are_in_no_mask_and_an_unlabelled_image_is_no_error(settings: MaskFormerSettings) -> None:
    model, (pixels, labels) = network(settings), batch()
    labels[0] = VOID
    loss = model.loss(pixels, labels)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    everything = torch.full_like(labels, VOID)
    assert torch.isfinite(model.loss(pixels, everything)["loss"])


@BOTH
@torch.no_grad()
def test_any_size_gives_probabilities(settings: MaskFormerSettings) -> None:
    model = network(settings).eval()
    outputs = model(torch.randn(1, 3, 37, 50))
    assert outputs.shape == (1, 4, 37, 50)
    assert torch.allclose(outputs.exp().sum(1), torch.ones(1, 37, 50), atol=1e-5)


def test_weight_decay_leaves_norms_queries_and_positions_alone() -> None:
    model = network(SWIN)
    kept = model.undecayed()
    assert all(
        any(part in name for name in kept)
        for part in (
            "relative_position_bias_table",
            "queries_embedder",
            "layernorm_before.weight",
            "hidden_states_norms",
        )
    )
    assert not any("mask_embedder" in name or name.endswith("q_proj.weight") for name in kept)
    assert any(name.startswith(model.backbone) for name, _ in model.named_parameters())


@torch.no_grad()
def test_a_pretrained_swin_sees_what_it_saw(tmp_path: Path) -> None:
    config = SwinConfig(image_size=128, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=4)
    trained = SwinForImageClassification(config)
    trained.save_pretrained(tmp_path / "swin")
    model = network(replace(SWIN, embed_dim=16, pretrained=str(tmp_path / "swin")))
    pixels = torch.randn(2, 3, 128, 128)
    ours = model.eval().net.model.pixel_level_module.encoder.model(pixels).last_hidden_state
    assert torch.allclose(ours, trained.eval().swin(pixels).last_hidden_state, atol=1e-5)


def test_a_pretrained_resnet_keeps_its_weights(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], num_labels=7)
    trained = ResNetForImageClassification(config)
    trained.save_pretrained(tmp_path / "resnet")
    model = network(replace(SWIN, pretrained=str(tmp_path / "resnet")))
    ours = model.net.model.pixel_level_module.encoder.state_dict()
    theirs = trained.resnet.state_dict()
    assert set(ours) == set(theirs) and all(torch.equal(value, ours[name]) for name, value in theirs.items())


@BOTH
def test_a_whole_maskformer_serves_other_categories(settings: MaskFormerSettings, tmp_path: Path) -> None:
    trained = network(settings, classes=5)
    trained.net.save_pretrained(tmp_path / "whole")
    model = network(MaskFormerSettings(pretrained=str(tmp_path / "whole")), classes=3, seed=1)
    name = "model.transformer_module.queries_embedder.weight"
    assert torch.equal(model.net.state_dict()[name], trained.net.state_dict()[name])
    assert model.net.class_predictor.out_features == 5


def test_what_is_no_backbone_is_refused(tmp_path: Path) -> None:
    ViTConfig().save_pretrained(tmp_path / "vit")
    for name in ("vit", "nothing"):
        with pytest.raises(UserError, match="cannot be loaded as a Swin, a ResNet or a MaskFormer"):
            network(replace(SWIN, pretrained=str(tmp_path / name)))


@pytest.mark.parametrize("change", [{"width": 32}, {"width": 80}, {"attention_heads": 64}, {"label_stride": 3}])
def test_impossible_sizes_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="maskformer"):
        replace(RESNET, **change)


@BOTH
@torch.no_grad()
def test_a_student_folder_gives_the_same_network(settings: MaskFormerSettings, tmp_path: Path) -> None:
    vocabulary = Vocabulary.from_names(("Red", "Green", "Blue"))
    about = tiny_settings(tmp_path, maskformer=settings, supervision="mask")
    model = network(settings)
    save_pretrained(tmp_path / "student", model, about, vocabulary)
    back, stored, names = from_pretrained(tmp_path / "student")
    assert (stored, names) == (about, vocabulary)
    pixels, _ = batch()
    assert torch.equal(back(pixels), model.eval()(pixels))
    assert "strong labels" in (tmp_path / "student" / "README.md").read_text()
    config = (tmp_path / "student" / "config.json").read_text()
    (tmp_path / "student" / "config.json").write_text(config.replace('"Red"', '"Rouge"').replace('"Blue"', '"Bleu"'))
    assert from_pretrained(tmp_path / "student").vocabulary.names == ("Rouge", "Green", "Bleu")
