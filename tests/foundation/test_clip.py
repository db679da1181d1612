"""The CLIP adapter against the library's own model: vision split at the last block, text from embeddings, loading.

The small model is that of spec fma-wsss section 11; its parity checks 1 and 3 are here.
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
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from weakly.errors import UserError
from weakly.foundation import clip as clip_module
from weakly.foundation.clip import CLIP_MEAN, CLIP_STD, Clip, load_clip
from weakly.foundation.pretraining.clip_command import release_clip
from weakly.foundation.pretraining.clip_recipe import ClipTraining
from weakly.foundation.pretraining.small_clip import SmallClipConfig, build_small_clip, build_tokenizer

torch.set_num_threads(1)

START, END, PAD = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
TEXTS = ["a cat.", "a photo of a person with clothes,people,human.", "", "Cat CAT  cat"]
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def tiny_tokenizer() -> CLIPTokenizer:
    """CLIP's byte-level BPE with one merged word; the end token does not have the largest id."""
    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(letter + "</w>" for letter in letters), "ca", "cat</w>", START, END, PAD]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[("c", "a"), ("ca", "t</w>")], pad_token=PAD, model_max_length=77)


def tiny_clip(seed: int = 0) -> CLIPModel:
    """14x14 patches of 16 pixels, 4 vision blocks 128 wide, 3 text blocks 64 wide, 32 joint dimensions."""
    tokenizer = tiny_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=224,
        patch_size=16,
        projection_dim=32,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=32))
    with torch.no_grad():  # the defaults make every attention flat and positions nearly nothing
        model.logit_scale.fill_(np.log(100))
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter *= 20 if "position" in name else 3
            elif "bias" in name:
                parameter += torch.randn(parameter.shape) / 10
    return model.eval()


def tent(count: int, native: int) -> Tensor:
    """(count, native) weights of linear interpolation between cell centres, borders repeated."""
    centres = ((torch.arange(count) + 0.5) * native / count - 0.5).clamp(0, native - 1)
    return (1 - (centres[:, None] - torch.arange(native)).abs()).clamp(min=0)


def reference(*, bilinear: bool = True) -> CLIPModel:
    """The library's model run whole, with the one change that its positions are resized bilinearly."""
    model = tiny_clip()
    model.set_attn_implementation("eager")
    weight = model.vision_model.embeddings.position_embedding.weight
    native = weight[1:].view(14, 14, -1)

    def positions(embeddings: Tensor, height: int, width: int) -> Tensor:
        resized = torch.einsum("yr,xc,rck->yxk", tent(height // 16, 14), tent(width // 16, 14), native)
        return torch.cat([weight[:1], resized.flatten(0, 1)])[None]

    if bilinear:
        model.vision_model.embeddings.interpolate_pos_encoding = positions
    return model.requires_grad_(False)


def whole_pass(model: CLIPModel, pixels: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """F as a leaf from a hook, the attention of every block, and f with its graph down to F."""
    seen: list[Tensor] = []

    def cut(_module: object, _args: object, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[0]

    hook = model.vision_model.encoder.layers[-1].layer_norm1.register_forward_hook(cut)
    out = model.vision_model(pixels, interpolate_pos_encoding=True, output_attentions=True)
    hook.remove()
    tokens = model.vision_model.post_layernorm(out.last_hidden_state)
    return seen[0], out.attentions, model.visual_projection(tokens[:, 1:].mean(1))


@pytest.fixture(scope="module")
def clip() -> Clip:
    return Clip(tiny_clip(), tiny_tokenizer(), "tiny")


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    """Two images of 10x13 patches."""
    return torch.randn(2, 3, 160, 208, generator=torch.Generator().manual_seed(1))


class TestVision:
    def test_features_attention_and_embedding_are_those_of_the_whole_model(self, clip, pixels):
        normed, attentions, embedding = whole_pass(reference(), pixels)
        features = clip.encode(pixels)
        assert features.grid == (10, 13)
        torch.testing.assert_close(clip.last_norm(features.last_input), normed.detach(), **CLOSE)
        mean = torch.stack(attentions).mean((0, 2))[:, 1:, 1:]
        torch.testing.assert_close(features.attention, mean, **CLOSE)
        torch.testing.assert_close(clip.tail(features.last_input, normed), embedding, **CLOSE)
        torch.testing.assert_close(clip.image_features(pixels), embedding.detach(), **CLOSE)

    @pytest.mark.parametrize("layers", [1, 2])
    def test_the_attention_of_the_last_blocks_only(self, clip, pixels, layers):
        _, attentions, _ = whole_pass(reference(), pixels)
        mean = torch.stack(attentions[-layers:]).mean((0, 2))[:, 1:, 1:]
        torch.testing.assert_close(clip.encode(pixels, layers).attention, mean, **CLOSE)
        assert (clip.encode(pixels).attention - mean).abs().max() > 1e-3

    def test_bicubic_positions_or_the_class_token_are_something_else(self, clip, pixels):
        embedding = clip.image_features(pixels)
        normed, _, bicubic = whole_pass(reference(bilinear=False), pixels)
        assert (clip.last_norm(clip.encode(pixels).last_input) - normed).abs().max() > 1e-2
        assert (bicubic - embedding).abs().max() > 1e-3
        cls = reference().get_image_features(pixels, interpolate_pos_encoding=True).pooler_output
        assert (cls - embedding).abs().max() > 1e-2

    def test_at_its_own_size_the_positions_are_untouched(self, clip):
        pixels = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(2))
        vision = clip.model.vision_model
        tokens = vision.post_layernorm(vision(pixels).last_hidden_state)
        torch.testing.assert_close(clip.image_features(pixels), clip.model.visual_projection(tokens[:, 1:].mean(1)))

    def test_the_gradient_at_the_cut_is_that_of_the_whole_model(self, clip, pixels):
        normed, _, embedding = whole_pass(reference(), pixels)
        (expected,) = torch.autograd.grad(embedding.square().sum(), normed)
        last_input = clip.encode(pixels).last_input
        ours = clip.last_norm(last_input).requires_grad_()
        (gradient,) = torch.autograd.grad(clip.tail(last_input, ours).square().sum(), ours)
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-3)

    def test_the_tail_has_second_and_forward_derivatives(self, clip):
        """Both directions of the Jacobian agree, and the gradient itself has a gradient."""
        last_input = clip.encode(torch.randn(1, 3, 32, 32)).last_input
        normed = clip.last_norm(last_input).requires_grad_()
        step, weight = torch.randn_like(normed), torch.randn(1, 32)
        value, change = torch.func.jvp(lambda x: clip.tail(last_input, x), (normed.detach(),), (step,))
        (gradient,) = torch.autograd.grad((clip.tail(last_input, normed) * weight).sum(), normed, create_graph=True)
        torch.testing.assert_close((gradient * step).sum(), (change * weight).sum(), atol=1e-4, rtol=1e-4)
        (second,) = torch.autograd.grad((gradient * step).sum(), normed)
        assert value.shape == (1, 32)
        assert second.abs().max() > 0

    def test_images_of_a_batch_know_nothing_of_each_other(self, clip, pixels):
        both, second = clip.encode(pixels), clip.encode(pixels[1:])
        torch.testing.assert_close(both.last_input[1:], second.last_input, **CLOSE)
        torch.testing.assert_close(both.attention[1:], second.attention, **CLOSE)

    @settings(deadline=None, max_examples=25)
    @given(st.tuples(st.integers(1, 100), st.integers(1, 100)))
    def test_any_size(self, clip, size):
        image = np.random.default_rng(size[0]).integers(0, 256, (*size, 3)).astype(np.uint8)
        features = clip.encode(clip.preprocess(image))
        assert features.grid == (-(-size[0] // 16), -(-size[1] // 16))
        patches = features.grid[0] * features.grid[1]
        assert features.last_input.shape == (1, 1 + patches, 128)
        assert features.attention.shape == (1, patches, patches)
        assert features.attention.min() >= 0
        assert (features.attention.sum(2) < 1).all()
        assert features.last_input.dtype == features.attention.dtype == torch.float32
        assert not features.last_input.requires_grad

    def test_what_the_patches_see_in_the_last_block(self, clip, pixels):
        _, attentions, _ = whole_pass(reference(), pixels)
        features = clip.encode(pixels, 1)
        last = features.last_attention
        torch.testing.assert_close(last.weights, attentions[-1][:, :, 1:], **CLOSE)
        torch.testing.assert_close(last.normed, clip.last_norm(features.last_input))
        torch.testing.assert_close(last.seen, attentions[-1][:, :, 1:] @ last.value, **CLOSE)
        for found, again in zip(last, clip.last_attention(features.last_input), strict=True):
            assert torch.equal(found, again)

    def test_bad_input(self, clip, pixels):
        with pytest.raises(UserError, match="160x200 pixels, no multiples of its patch of 16"):
            clip.encode(pixels[..., :200])
        with pytest.raises(UserError, match="attention_layers is 0"):
            clip.encode(pixels, 0)


class TestPreprocess:
    def test_375x500_becomes_384x512_by_pils_bicubic_filter(self, clip):
        image = np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8)
        pixels = clip.preprocess(image)
        resized = np.asarray(Image.fromarray(image).resize((512, 384), Image.Resampling.BICUBIC))
        expected = torch.from_numpy((resized / 255 - np.array(CLIP_MEAN)) / np.array(CLIP_STD)).permute(2, 0, 1)
        assert pixels.shape == (1, 3, 384, 512)
        torch.testing.assert_close(pixels[0], expected.float(), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize(
        ("size", "long_side", "expected"),
        [
            ((375, 500), 320, (240, 320)),
            ((375, 500), 321, (256, 336)),
            ((375, 500), 500, (384, 512)),
            ((20, 30), 320, (32, 32)),
            ((3000, 10), 32, (32, 16)),
        ],
    )
    def test_a_limit_of_the_long_side_shrinks_and_never_enlarges(self, clip, size, long_side, expected):
        assert clip.preprocess(np.zeros((*size, 3), np.uint8), long_side).shape[2:] == expected


class TestText:
    def test_texts_are_those_of_the_library(self, clip):
        ids = tiny_tokenizer()(TEXTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
        expected = reference().get_text_features(ids).pooler_output
        torch.testing.assert_close(clip.encode_texts(TEXTS), expected, atol=1e-4, rtol=1e-4)

    def test_a_shared_encoding_in_parts(self, clip, monkeypatch):
        monkeypatch.setattr(clip_module, "TEXTS_AT_ONCE", 3)
        ids = clip.tokenize(TEXTS)
        whole = clip.encode_text_embeddings(clip.token_embedding(ids), clip.end_positions(ids))
        torch.testing.assert_close(clip.encode_texts(TEXTS), whole, **CLOSE)
        assert clip.encode_texts([]).shape == (0, 32)

    def test_ids_end_at_the_end_token_which_is_not_the_largest(self, clip):
        ids = clip.tokenize(TEXTS)
        tokenizer = clip.tokenizer
        assert (ids.shape, ids.dtype) == ((4, 77), torch.int64)
        assert tokenizer.pad_token_id > tokenizer.eos_token_id
        for row, text, end in zip(ids, TEXTS, clip.end_positions(ids), strict=True):
            alone = tokenizer(text).input_ids
            assert row[: end + 1].tolist() == alone
            assert (row[end:] == tokenizer.eos_token_id).all()
        padded = tokenizer(TEXTS, padding=True, return_tensors="pt").input_ids
        assert torch.equal(clip.end_positions(padded), clip.end_positions(ids))
        assert not torch.equal(padded.argmax(1), clip.end_positions(ids))

    def test_tokens_after_the_end_change_nothing(self, clip):
        ids = clip.tokenize(TEXTS)
        end = clip.end_positions(ids)
        embeddings = clip.token_embedding(ids)
        expected = clip.encode_text_embeddings(embeddings, end)
        noise = torch.randn_like(embeddings)
        after = torch.arange(77) > end[:, None]
        changed = torch.where(after[..., None], noise, embeddings)
        torch.testing.assert_close(clip.encode_text_embeddings(changed, end), expected, **CLOSE)
        cut = embeddings[:, : int(end.max()) + 1]
        torch.testing.assert_close(clip.encode_text_embeddings(cut, end), expected, **CLOSE)
        before = torch.where(after[..., None].roll(-1, 1), noise, embeddings)
        assert (clip.encode_text_embeddings(before, end) - expected).abs().max() > 1e-2

    def test_truncation_is_exact(self, clip):
        """Cut after the last end or not: the library computes all 77 tokens of the same ids."""
        ids = clip.tokenize(["cat", "a cat"])
        whole = reference().get_text_features(ids).pooler_output
        ours = clip.encode_text_embeddings(clip.token_embedding(ids), clip.end_positions(ids))
        torch.testing.assert_close(ours, whole, **CLOSE)

    def test_gradient_reaches_the_tokens_up_to_the_end_and_no_weight(self, clip):
        ids = clip.tokenize(TEXTS)
        end = clip.end_positions(ids)
        embeddings = clip.token_embedding(ids).requires_grad_()
        clip.encode_text_embeddings(embeddings, end).square().sum().backward()
        reached = embeddings.grad.abs().sum(2) > 0
        assert torch.equal(reached, torch.arange(77) <= end[:, None])
        assert all(parameter.grad is None for parameter in clip.parameters())

    def test_a_text_too_long_is_named(self, clip):
        assert clip.tokenize(["cat " * 75]).shape == (1, 77)
        with pytest.raises(UserError, match=r"Text 1 \('dog cat cat.*has 78 tokens and CLIP reads 77"):
            clip.encode_texts(["cat", "dog " + "cat " * 73])
        with pytest.raises(UserError, match="Prompt 1 has 80 tokens and CLIP reads 77"):
            clip.encode_text_embeddings(torch.zeros(2, 90, 64), torch.tensor([3, 79]))


class TestFrozen:
    def test_it_stays_as_it_is(self, clip):
        assert clip.train() is clip
        assert not clip.training
        assert not any(module.training for module in clip.modules())
        assert not any(parameter.requires_grad for parameter in clip.parameters())

    def test_sizes(self, clip):
        assert (clip.name, clip.patch, clip.width, clip.joint_width, clip.layers) == ("tiny", 16, 128, 32, 4)
        assert (clip.grid, clip.context, clip.device) == ((14, 14), 77, torch.device("cpu"))
        assert clip.logit_scale == pytest.approx(100, rel=1e-6)

    def test_fingerprint_follows_every_weight_and_what_weights_do_not_tell(self, clip):
        assert clip.fingerprint == Clip(tiny_clip(), tiny_tokenizer(), "other").fingerprint
        model = tiny_clip()
        with torch.no_grad():
            model.visual_projection.weight[0, 0] += 1e-3
        heads = tiny_clip()
        heads.config.vision_config.num_attention_heads = 4
        others = [Clip(m, tiny_tokenizer(), "tiny").fingerprint for m in (model, heads)]
        assert len({clip.fingerprint, *others}) == 3
        assert all(len(fingerprint) == 64 for fingerprint in others)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The small model in Hugging Face form, weights in half precision as released models have them."""
    tiny_clip().half().save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


class TestLoading:
    def test_a_folder_needs_no_network(self, folder, pixels, monkeypatch):
        def refuse(*_: object) -> None:
            raise AssertionError("a local folder asked the network")

        monkeypatch.setattr(socket.socket, "connect", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)
        loaded = load_clip(str(folder))
        expected = Clip(tiny_clip().half(), tiny_tokenizer(), "half")
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
        assert loaded.fingerprint == expected.fingerprint
        assert torch.equal(loaded.encode(pixels).attention, expected.encode(pixels).attention)
        assert torch.equal(loaded.tokenize(TEXTS), expected.tokenize(TEXTS))

    def test_vocabulary_and_merges_as_openai_saved_them(self, folder):
        expected = load_clip(str(folder)).tokenize(TEXTS)
        model = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        merges = (merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"])
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        assert torch.equal(load_clip(str(folder)).tokenize(TEXTS), expected)

    def test_openais_untrue_end_token_does_not_matter(self, folder):
        expected = load_clip(str(folder)).encode_texts(TEXTS)
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["eos_token_id"] = 2
        (folder / "config.json").write_text(json.dumps(config))
        assert torch.equal(load_clip(str(folder)).encode_texts(TEXTS), expected)

    def test_what_train_clip_writes(self, tmp_path):
        config = SmallClipConfig(image_size=64, width=32, layers=2, heads=2, text_width=32, text_layers=1, text_heads=2)
        model = build_small_clip(config, build_tokenizer())
        clip = load_clip(str(release_clip(model, tmp_path / "clip", config, ClipTraining(), 0, {})))
        assert (clip.grid, clip.width, clip.joint_width) == ((4, 4), 32, 128)
        assert clip.encode_texts(["a horse."]).isfinite().all()

    def test_the_bundled_one_is_not_there(self, tmp_path, monkeypatch):
        monkeypatch.setattr(clip_module, "BUNDLED", tmp_path / "clip")
        with pytest.raises(UserError, match=r"clip is missing; install weakly again.*`weakly foundation train-clip`"):
            load_clip("bundled")

    def test_the_bundled_one_is_an_ordinary_folder(self, folder, monkeypatch):
        monkeypatch.setattr(clip_module, "BUNDLED", folder)
        assert load_clip("bundled").name == "bundled"

    def test_no_such_folder(self, tmp_path):
        with pytest.raises(UserError, match="no config.json"):
            load_clip(str(tmp_path))
        with pytest.raises(UserError, match="There is no CLIP at .*absent"):
            load_clip(str(tmp_path / "absent"))

    def test_a_hub_id_without_a_network(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match="'weakly-tests/no-such-clip' could not be loaded") as error:
            load_clip("weakly-tests/no-such-clip")
        assert "\n" not in str(error.value)

    def test_damaged_and_incomplete_weights(self, folder):
        weights = load_file(folder / "model.safetensors")
        weights.pop("visual_projection.weight")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="its weights lack visual_projection.weight"):
            load_clip(str(folder))
        (folder / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(UserError, match="tiny' could not be loaded"):
            load_clip(str(folder))

    @pytest.mark.parametrize("content", ["torn", "{}", '{"model": {"type": "BPE"}}'])
    def test_a_damaged_tokenizer(self, folder, content):
        (folder / "tokenizer.json").write_text(content)
        with pytest.raises(UserError, match="The tokenizer of CLIP .*tiny' could not be loaded") as error:
            load_clip(str(folder))
        assert "\n" not in str(error.value)

    def test_no_tokenizer(self, folder):
        (folder / "tokenizer.json").unlink()
        with pytest.raises(UserError, match="tiny' has no tokenizer; add its tokenizer.json"):
            load_clip(str(folder))
        (folder / "tokenizer_config.json").unlink()
        with pytest.raises(UserError, match="tiny' has no tokenizer; add its tokenizer.json"):
            load_clip(str(folder))

    def test_the_tokenizer_of_another_model(self, folder):
        build_tokenizer().save_pretrained(folder)
        with pytest.raises(UserError, match="tokens and the text encoder 517; restore"):
            load_clip(str(folder))
        config = json.loads((folder / "config.json").read_text())
        tiny_tokenizer().save_pretrained(folder)
        config["text_config"]["eos_token_id"] = 7
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UserError, match="ends texts with token 515 and config.json says 7"):
            load_clip(str(folder))
