"""The CLIPSeg adapter against the library's own model: taps, texts, decoder, preprocessing, loading.

Parity checks 3 and 4 of spec partclipseg section 11 are here, and that the decoder run on taps and texts of this
adapter is the forward pass of the library.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPModel, CLIPSegForImageSegmentation, CLIPTokenizer, ViTImageProcessor

from weakly.errors import UserError
from weakly.foundation import clip as clip_module
from weakly.foundation import clipseg as clipseg_module
from weakly.foundation.clip import CLIP_MEAN, CLIP_STD
from weakly.foundation.clipseg import DECODER, ClipSeg, Preprocessing, attach_decoder, load_clipseg
from weakly.foundation.pretraining.small_clip import SmallClipConfig, build_small_clip, build_tokenizer

torch.set_num_threads(1)

CONFIG = SmallClipConfig(
    image_size=64, width=32, layers=5, heads=2, text_width=32, text_layers=2, text_heads=2, projection=16
)
TAPPED = (0, 2, 3)
SQUARE = Preprocessing(96)
TEXTS = ["dog", "a dog's head.", "fox", "Gürteltier"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def tiny_towers(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPModel:
    """4x4 patches of 16 pixels, 5 vision blocks 32 wide, 2 text blocks, 16 joint dimensions."""
    torch.manual_seed(seed)
    model = build_small_clip(CONFIG, tokenizer)
    with torch.no_grad():  # the defaults make every attention flat and every text the same
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter *= 3
    return model


def tiny_model(tokenizer: CLIPTokenizer, seed: int = 0) -> CLIPSegForImageSegmentation:
    return attach_decoder(tiny_towers(tokenizer, seed), TAPPED, reduce_dim=8, heads=2, hidden=16).eval()


@pytest.fixture(scope="module")
def model(tokenizer) -> CLIPSegForImageSegmentation:
    return tiny_model(tokenizer)


@pytest.fixture(scope="module")
def clipseg(tokenizer) -> ClipSeg:
    return ClipSeg(tiny_model(tokenizer), tokenizer, "tiny", SQUARE)


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Two images of 6x6 patches, where the towers were made for 4x4."""
    return torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))


class TestTaps:
    @torch.no_grad()
    @pytest.mark.parametrize("side", [96, 64])
    def test_they_are_the_hidden_states_after_the_tapped_blocks(self, model, clipseg, side):
        """Check 3: ``hidden_states[l + 1]`` of a whole pass, index 0 being the input of the first block."""
        pixels = torch.randn(2, 3, side, side)
        whole = model.clip.vision_model(pixels, interpolate_pos_encoding=True, output_hidden_states=True)
        found = clipseg.taps(pixels)
        assert found.shape == (2, 3, 1 + (side // 16) ** 2, 32)
        assert torch.equal(found, torch.stack([whole.hidden_states[layer + 1] for layer in TAPPED], 1))

    def test_the_blocks_after_the_last_tap_do_not_run(self, tokenizer, pixels):
        cut = tiny_model(tokenizer)
        cut.clip.vision_model.encoder.layers[TAPPED[-1] + 1] = None
        expected = ClipSeg(tiny_model(tokenizer), tokenizer, "whole", SQUARE).taps(pixels)
        assert torch.equal(ClipSeg(cut, tokenizer, "cut", SQUARE).taps(pixels), expected)

    def test_positions_are_resized_bicubically_and_the_class_keeps_its_own(self, model, clipseg, pixels):
        """Spec 1.2: ``align_corners=False``; written out for one patch whose pixels are zero."""
        vision = model.clip.vision_model
        weight = vision.embeddings.position_embedding.weight.detach()
        native = weight[1:].T.reshape(1, 32, 4, 4)
        resized = nn.functional.interpolate(native, (6, 6), mode="bicubic", align_corners=False)[0].flatten(1).T
        seen: list[Tensor] = []
        hook = clipseg.model.clip.vision_model.pre_layrnorm.register_forward_pre_hook(
            lambda _module, args: seen.append(args[0])
        )
        clipseg.taps(torch.zeros_like(pixels))
        hook.remove()
        torch.testing.assert_close(seen[0][0, 1:], resized, **CLOSE)
        torch.testing.assert_close(seen[0][0, 0], vision.embeddings.class_embedding.detach() + weight[0])

    def test_no_gradient_is_kept(self, clipseg, pixels):
        assert not clipseg.taps(pixels.clone().requires_grad_()).requires_grad

    def test_pixels_of_another_shape_are_refused(self, clipseg):
        with pytest.raises(UserError, match="'tiny' was given 64x96 pixels; use its own preprocessing"):
            clipseg.taps(torch.zeros(1, 3, 64, 96))
        with pytest.raises(UserError, match="squares of 72 pixels, no multiple of its patch of 16"):
            clipseg.taps(torch.zeros(1, 3, 72, 72))


class TestText:
    @torch.no_grad()
    def test_truncated_to_the_longest_text_is_exact(self, model, clipseg):
        """Check 4: the library computes all 77 tokens of the same ids."""
        ids = clipseg.tokenize(TEXTS)
        assert ids.shape == (4, 77)
        whole = model.clip.get_text_features(ids).pooler_output
        torch.testing.assert_close(clipseg.encode_text(ids, *clipseg.token_embedding_weights()), whole, **CLOSE)

    @torch.no_grad()
    def test_one_text_is_not_changed_by_the_others(self, clipseg):
        tables = clipseg.token_embedding_weights()
        together = clipseg.encode_text(clipseg.tokenize(TEXTS), *tables)
        for row, text in enumerate(TEXTS):
            alone = clipseg.encode_text(clipseg.tokenize([text]), *tables)
            torch.testing.assert_close(alone[0], together[row], **CLOSE)

    def test_gradient_reaches_the_tables_where_they_are_read_and_no_weight(self, clipseg):
        token, position = (table.clone().requires_grad_() for table in clipseg.token_embedding_weights())
        ids = clipseg.tokenize(["dog", "a dog's head."])
        clipseg.encode_text(ids, token, position).square().sum().backward()
        end = clipseg.tokenizer.eos_token_id
        longest = int((ids == end).int().argmax(1).max()) + 1
        assert set((token.grad.abs().sum(1) > 0).nonzero().flatten().tolist()) == set(ids.flatten().tolist())
        assert torch.equal(position.grad.abs().sum(1) > 0, torch.arange(77) < longest)
        assert all(parameter.grad is None for parameter in clipseg.parameters())

    def test_the_tables_are_what_is_read(self, clipseg):
        token, position = clipseg.token_embedding_weights()
        ids = clipseg.tokenize(["dog"])
        before = clipseg.encode_text(ids, token, position)
        assert (clipseg.encode_text(ids, token + 1e-1 * torch.randn_like(token), position) - before).abs().max() > 1e-3
        assert (clipseg.encode_text(ids, token, position.flip(0)) - before).abs().max() > 1e-3

    def test_no_texts_and_too_long_a_text(self, clipseg):
        assert clipseg.encode_text(clipseg.tokenize([]), *clipseg.token_embedding_weights()).shape == (0, 16)
        with pytest.raises(UserError, match=r"Text 1 .* tokens and CLIP reads 77; shorten it"):
            clipseg.tokenize(["dog", "dog " * 90])


class TestDecoder:
    @torch.no_grad()
    def test_taps_texts_and_decoder_are_the_librarys_forward_pass(self, model, clipseg, pixels):
        ids = clipseg.tokenize(TEXTS[:2])
        expected = model(input_ids=ids, pixel_values=pixels, interpolate_pos_encoding=True).logits
        texts = clipseg.encode_text(ids, *clipseg.token_embedding_weights())
        taps = clipseg.taps(pixels).unbind(1)
        logits = clipseg.new_decoder()(taps, texts).logits
        assert logits.shape == (2, 96, 96)
        torch.testing.assert_close(logits, expected, **CLOSE)

    def test_every_copy_trains_and_the_original_does_not_move(self, clipseg, pixels):
        decoder = clipseg.new_decoder()
        before = {key: value.clone() for key, value in clipseg.state_dict().items()}
        optimiser = torch.optim.SGD(decoder.parameters(), lr=1.0)
        texts = clipseg.encode_text(clipseg.tokenize(["dog", "fox"]), *clipseg.token_embedding_weights())
        decoder(clipseg.taps(pixels).unbind(1), texts).logits.square().sum().backward()
        assert all(parameter.grad is not None for parameter in decoder.parameters())
        optimiser.step()
        assert all(torch.equal(value, before[key]) for key, value in clipseg.state_dict().items())
        assert not torch.equal(decoder.film_mul.weight, clipseg.new_decoder().film_mul.weight)

    def test_a_new_one_is_drawn_in_the_usual_range(self, tokenizer):
        """The library would draw its linear layers with deviation 1 (spec 1.10, the trap at initialisation)."""
        for module in tiny_model(tokenizer, seed=3).decoder.modules():
            if isinstance(module, nn.Linear):
                assert module.weight.abs().max() <= module.in_features**-0.5

    def test_weights_of_the_last_layer_follow_from_its_projections(self, clipseg, pixels):
        """What the docstring of ``new_decoder`` promises, against the library's eager attention."""
        layer = clipseg.new_decoder().layers[-1].self_attn
        hidden = torch.randn(2, 37, 8)
        query, key = (project(hidden).unflatten(2, (2, 4)).transpose(1, 2) for project in (layer.q_proj, layer.k_proj))
        assert layer(hidden)[1] is None
        layer.config._attn_implementation = "eager"
        torch.testing.assert_close((query @ key.mT / 4**0.5).softmax(-1), layer(hidden)[1], **CLOSE)


class TestPreprocessing:
    @given(st.integers(1, 50), st.integers(1, 50))
    @settings(max_examples=10)
    def test_squashed_bilinearly_and_normalised(self, clipseg, height, width):
        image = np.random.default_rng(height * 64 + width).integers(0, 256, (height, width, 3), np.uint8)
        found = clipseg.preprocess(image)
        assert (found.shape, found.dtype) == ((1, 3, 96, 96), torch.float32)
        square = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BILINEAR)) / 255.0
        expected = (square - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
        np.testing.assert_allclose(found[0].permute(1, 2, 0).numpy(), expected, atol=1e-5)

    def test_the_defaults_are_those_of_the_published_checkpoint(self):
        assert Preprocessing() == Preprocessing(352, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class TestFrozen:
    def test_it_stays_as_it_is(self, clipseg):
        assert clipseg.train() is clipseg
        assert not any(module.training for module in clipseg.modules())
        assert not any(parameter.requires_grad for parameter in clipseg.parameters())

    def test_sizes(self, clipseg):
        assert (clipseg.name, clipseg.side, clipseg.patch, clipseg.grid) == ("tiny", 96, 16, (6, 6))
        assert (clipseg.width, clipseg.joint_width, clipseg.reduce_dim, clipseg.context) == (32, 16, 8, 77)
        assert (clipseg.layers_tapped, clipseg.device) == (TAPPED, torch.device("cpu"))

    def test_the_fingerprint_is_of_the_vision_side_and_its_preprocessing(self, clipseg, tokenizer):
        def changed(edit) -> str:
            model = tiny_model(tokenizer)
            with torch.no_grad():
                edit(model)
            return ClipSeg(model, tokenizer, "other", SQUARE).fingerprint

        same = (
            changed(lambda m: m.clip.text_projection.weight.zero_()),
            changed(lambda m: m.decoder.film_add.weight.zero_()),
        )
        assert {clipseg.fingerprint, *same} == {clipseg.fingerprint}
        others = [
            changed(lambda m: m.clip.vision_model.embeddings.class_embedding.add_(1e-3)),
            changed(lambda m: setattr(m.config, "extract_layers", [0, 1, 2])),
            changed(lambda m: setattr(m.config.vision_config, "num_attention_heads", 4)),
            ClipSeg(tiny_model(tokenizer), tokenizer, "tiny", Preprocessing(64)).fingerprint,
            ClipSeg(tiny_model(tokenizer), tokenizer, "tiny", Preprocessing(96, CLIP_MEAN)).fingerprint,
        ]
        assert len({clipseg.fingerprint, *others}) == 6
        assert all(len(fingerprint) == 64 for fingerprint in others)

    @pytest.mark.parametrize("layers", [[3, 2, 0], [1, 1, 2], [2, 5], [-1, 2], []])
    def test_impossible_taps_are_refused(self, tokenizer, layers):
        model = tiny_model(tokenizer)
        model.config.extract_layers = layers
        with pytest.raises(UserError, match="of a vision tower of 5; give rising numbers from 0 as extract_layers"):
            ClipSeg(model, tokenizer, "tiny", SQUARE)

    def test_a_side_of_broken_patches_is_refused(self, tokenizer):
        with pytest.raises(UserError, match="squares of 350 pixels"):
            ClipSeg(tiny_model(tokenizer), tokenizer, "tiny", Preprocessing(350))


@pytest.fixture
def folder(tmp_path: Path, tokenizer) -> Path:
    """The small model in Hugging Face form, weights in half precision."""
    path = tmp_path / "tiny"
    tiny_model(tokenizer).half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    processor = ViTImageProcessor(
        size={"height": 96, "width": 96}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]
    )
    processor.save_pretrained(path)
    return path


class TestLoading:
    def test_a_folder_needs_no_network(self, folder, tokenizer, pixels, monkeypatch):
        def refuse(*_: object) -> None:
            raise AssertionError("a local folder asked the network")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        loaded = load_clipseg(str(folder))
        expected = ClipSeg(tiny_model(tokenizer).half(), tokenizer, "half", SQUARE)
        assert loaded.preprocessing == SQUARE
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.fingerprint == expected.fingerprint
        assert torch.equal(loaded.taps(pixels), expected.taps(pixels))
        texts = [c.encode_text(c.tokenize(TEXTS), *c.token_embedding_weights()) for c in (loaded, expected)]
        torch.testing.assert_close(*texts, **CLOSE)
        state = loaded.new_decoder().state_dict()
        assert all(torch.equal(value, state[key]) for key, value in expected.new_decoder().state_dict().items())

    def test_the_untrue_end_token_of_the_published_checkpoint_does_not_matter(self, folder):
        def texts() -> Tensor:
            clipseg = load_clipseg(str(folder))
            return clipseg.encode_text(clipseg.tokenize(TEXTS), *clipseg.token_embedding_weights())

        expected = texts()
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        assert torch.equal(texts(), expected)

    def test_a_side_told_as_one_number(self, folder):
        told = json.loads((folder / "preprocessor_config.json").read_text())
        (folder / "preprocessor_config.json").write_text(json.dumps(told | {"size": 64}))
        assert load_clipseg(str(folder)).side == 64

    @pytest.mark.parametrize("content", [None, "torn", "{}", '{"size": 96}', '{"size": {"longest_edge": 1}}'])
    def test_an_unknown_preprocessing_is_refused(self, folder, content):
        (folder / "preprocessor_config.json").unlink()
        if content is not None:
            (folder / "preprocessor_config.json").write_text(content)
        with pytest.raises(UserError, match="tiny' has no preprocessor_config.json that tells size, image_mean"):
            load_clipseg(str(folder))

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(UserError, match="no config.json"):
            load_clipseg(str(tmp_path))
        with pytest.raises(UserError, match="There is no CLIPSeg at .*absent"):
            load_clipseg(str(tmp_path / "absent"))

    def test_a_hub_id_without_a_network(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match="'weakly-tests/no-such-clipseg' could not be loaded") as error:
            load_clipseg("weakly-tests/no-such-clipseg")
        assert "\n" not in str(error.value)

    def test_damaged_and_incomplete_weights(self, folder):
        weights = load_file(folder / "model.safetensors")
        weights.pop("decoder.film_add.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="its weights lack decoder.film_add.weight"):
            load_clipseg(str(folder))
        (folder / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(UserError, match="tiny' could not be loaded"):
            load_clipseg(str(folder))

    def test_no_tokenizer(self, folder):
        (folder / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="tiny' has no tokenizer"):
            load_clipseg(str(folder))


@pytest.fixture
def bundled(tmp_path: Path, tokenizer, monkeypatch) -> ClipSeg:
    """A bundled CLIP and a decoder that was trained on it, in folders of their own."""
    towers = tiny_towers(tokenizer).half()
    towers.save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    monkeypatch.setattr(clip_module, "BUNDLED", tmp_path / "clip")
    monkeypatch.setattr(clipseg_module, "BUNDLED", tmp_path / "clipseg")
    model = attach_decoder(towers.float(), TAPPED, reduce_dim=8, heads=2, hidden=16).eval()
    clipseg = ClipSeg(model, tokenizer, "bundled", Preprocessing(64, CLIP_MEAN, CLIP_STD))
    model.config.save_pretrained(tmp_path / "clipseg")
    weights = {key: value.half() for key, value in model.decoder.state_dict().items()}
    save_file(weights, tmp_path / "clipseg" / DECODER, metadata={"fingerprint": clipseg.fingerprint})
    return clipseg


class TestBundled:
    def test_the_towers_are_those_of_the_bundled_clip(self, bundled, tmp_path):
        loaded = load_clipseg("bundled")
        assert (loaded.name, loaded.side, loaded.layers_tapped) == ("bundled", 64, TAPPED)
        assert (loaded.preprocessing, loaded.fingerprint) == (bundled.preprocessing, bundled.fingerprint)
        pixels = torch.randn(1, 3, 64, 64)
        assert torch.equal(loaded.taps(pixels), bundled.taps(pixels))
        found, expected = (c.new_decoder().state_dict() for c in (loaded, bundled))
        assert all(torch.equal(value, expected[key].half().float()) for key, value in found.items())
        assert not any(key.startswith("clip.") for key in load_file(tmp_path / "clipseg" / DECODER))

    def test_it_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(clipseg_module, "BUNDLED", tmp_path / "clipseg")
        with pytest.raises(UserError, match=r"config.json is missing; .*`weakly foundation train-clipseg`"):
            load_clipseg("bundled")

    def test_a_decoder_of_another_clip_is_refused(self, bundled, tmp_path, tokenizer):
        tiny_towers(tokenizer, seed=5).save_pretrained(tmp_path / "clip")
        with pytest.raises(UserError, match="was trained on another bundled CLIP; train it"):
            load_clipseg("bundled")

    def test_a_decoder_for_other_sizes_or_a_damaged_one_is_refused(self, bundled, tmp_path):
        config = json.loads((tmp_path / "clipseg" / "config.json").read_text())
        (tmp_path / "clipseg" / "config.json").write_text(json.dumps(config | {"reduce_dim": 16}))
        with pytest.raises(UserError, match="does not fit the bundled CLIP; train it"):
            load_clipseg("bundled")
        (tmp_path / "clipseg" / DECODER).write_bytes(b"torn")
        with pytest.raises(UserError, match="does not fit the bundled CLIP") as error:
            load_clipseg("bundled")
        assert "\n" not in str(error.value)
