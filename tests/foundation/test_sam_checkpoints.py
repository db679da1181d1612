"""Every form of SAM's checkpoints, and those that are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_sam import random_image, tiny_sam
from transformers import SamConfig, SamModel, SamVisionConfig

from weakly.errors import UserError
from weakly.foundation.sam import SamSegmenter, load_segmenter
from weakly.foundation.sam_checkpoint import to_hugging_face_name, to_original, to_original_name
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam

torch.set_num_threads(1)


class TestCheckpoints:
    def test_names_of_a_vit_b_file(self):
        """Spot checks against the key list of the original ``sam_vit_b_01ec64.pth``."""
        pairs = {
            "image_encoder.patch_embed.proj.weight": "vision_encoder.patch_embed.projection.weight",
            "image_encoder.pos_embed": "vision_encoder.pos_embed",
            "image_encoder.blocks.11.norm2.bias": "vision_encoder.layers.11.layer_norm2.bias",
            "image_encoder.blocks.3.attn.qkv.weight": "vision_encoder.layers.3.attn.qkv.weight",
            "image_encoder.neck.3.weight": "vision_encoder.neck.layer_norm2.weight",
            "prompt_encoder.point_embeddings.2.weight": "prompt_encoder.point_embed.2.weight",
            "prompt_encoder.mask_downscaling.6.bias": "prompt_encoder.mask_embed.conv3.bias",
            "prompt_encoder.not_a_point_embed.weight": "prompt_encoder.not_a_point_embed.weight",
            "mask_decoder.transformer.layers.1.norm4.weight": "mask_decoder.transformer.layers.1.layer_norm4.weight",
            "mask_decoder.transformer.layers.0.mlp.lin1.bias": "mask_decoder.transformer.layers.0.mlp.lin1.bias",
            "mask_decoder.output_hypernetworks_mlps.3.layers.1.bias":
                "mask_decoder.output_hypernetworks_mlps.3.layers.0.bias",
            "mask_decoder.iou_prediction_head.layers.2.weight": "mask_decoder.iou_prediction_head.proj_out.weight",
        }  # fmt: skip
        assert {key: to_hugging_face_name(key) for key in pairs} == pairs
        assert {to_original_name(new): new for new in pairs.values()} == pairs

    def test_both_forms_load_and_are_the_same_model(self, tmp_path):
        model = tiny_sam()
        model.save_pretrained(tmp_path / "sam")
        torch.save(to_original(model), tmp_path / "sam.pth")
        loaded = [load_segmenter(str(tmp_path / name)) for name in ("sam", "sam.pth")]
        pixels = torch.randn(1, 3, 64, 64)
        expected = SamSegmenter(model, "original").encode(pixels)
        for segmenter in loaded:
            assert segmenter.fingerprint == SamSegmenter(model, "original").fingerprint
            assert torch.equal(segmenter.encode(pixels), expected)
            assert segmenter.pad == "sam"

    def test_the_bundled_form_widens_half_precision(self, tmp_path):
        segmenter = load_segmenter(str(small_folder(tmp_path)), pad="center_black")
        assert segmenter.pad == "center_black"
        assert segmenter.embedding_shape == (32, 8, 8)
        assert {value.dtype for value in segmenter.state_dict().values()} == {torch.float32}
        copies = segmenter.model.shared_image_embedding, segmenter.model.prompt_encoder.shared_embedding
        assert torch.equal(copies[0].positional_embedding, copies[1].positional_embedding)

    @pytest.mark.slow
    def test_a_full_size_vit_b_loads_from_both_forms(self, tmp_path):
        torch.manual_seed(0)
        model = SamModel(SamConfig(vision_config=SamVisionConfig(initializer_range=0.02).to_dict()))
        assert sum(p.numel() for p in model.vision_encoder.parameters()) == 89_670_912
        model.save_pretrained(tmp_path / "vit-b")
        torch.save(to_original(model), tmp_path / "sam_vit_b.pth")
        del model
        folder, original = (load_segmenter(str(tmp_path / name)) for name in ("vit-b", "sam_vit_b.pth"))
        state = folder.state_dict()
        assert state.keys() == original.state_dict().keys()
        assert all(torch.equal(value, state[key]) for key, value in original.state_dict().items())
        assert folder.model.config.vision_config.global_attn_indexes == [2, 5, 8, 11]
        for name in ("num_attention_heads", "window_size", "mlp_dim", "global_attn_indexes", "image_size"):
            ours, theirs = (s.model.config.vision_config for s in (original, folder))
            assert getattr(ours, name) == getattr(theirs, name), name
        boxes = torch.tensor([[20.48, 168.96, 225.28, 271.36]])
        assert torch.equal(folder.box_tokens(boxes), original.box_tokens(boxes))
        embedding = original.encode(original.preprocess([random_image(375, 500)]))
        assert embedding.shape == (1, 256, 64, 64)
        assert 0.5 < embedding.std() < 2


def small_folder(folder: Path) -> Path:
    config = SmallSamConfig(image_size=64, width=32, stem=8, stages=(8, 8, 8, 8), blocks=(1, 1, 1, 1), mlp_dim=32)
    tied = "prompt_encoder.shared_embedding.positional_embedding"
    state = {key: value.half() for key, value in build_small_sam(config).state_dict().items() if key != tied}
    (folder / "small_sam.json").write_text(json.dumps(config.to_dict()))
    save_file(state, folder / "model.safetensors")
    return folder


class Payload:
    """A pickle that would make a file when loaded with code allowed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.path,)


class TestBadCheckpoints:
    """Each is one sentence that names the file and what to do."""

    @pytest.mark.parametrize("name", ["absent.pth", "absent-folder"])
    def test_missing(self, tmp_path, name):
        with pytest.raises(UserError, match=name):
            load_segmenter(str(tmp_path / name))

    def test_a_folder_that_is_no_model(self, tmp_path):
        with pytest.raises(UserError, match="no config.json"):
            load_segmenter(str(tmp_path))

    def test_code_in_a_pickle_does_not_run(self, tmp_path):
        torch.save({"image_encoder.pos_embed": Payload(tmp_path / "owned")}, tmp_path / "evil.pth")
        with pytest.raises(UserError, match=r"evil\.pth is not a checkpoint of plain tensors"):
            load_segmenter(str(tmp_path / "evil.pth"))
        assert not (tmp_path / "owned").exists()

    @pytest.mark.parametrize("content", [b"", b"no checkpoint at all", b"PK\x03\x04broken"])
    def test_no_checkpoint_file(self, tmp_path, content):
        (tmp_path / "x.pth").write_bytes(content)
        with pytest.raises(UserError, match=r"x\.pth is not a checkpoint"):
            load_segmenter(str(tmp_path / "x.pth"))

    def test_tensors_of_something_else(self, tmp_path):
        torch.save({"conv1.weight": torch.zeros(3)}, tmp_path / "resnet.pth")
        with pytest.raises(UserError, match=r"resnet\.pth is not a SAM ViT-B, ViT-L or ViT-H checkpoint"):
            load_segmenter(str(tmp_path / "resnet.pth"))
        torch.save([torch.zeros(3)], tmp_path / "list.pth")
        with pytest.raises(UserError, match="not a dictionary of tensors"):
            load_segmenter(str(tmp_path / "list.pth"))

    def test_a_missing_an_unknown_and_a_misshapen_parameter(self, tmp_path):
        good, file = to_original(tiny_sam()), tmp_path / "sam.pth"
        key = "mask_decoder.iou_token.weight"
        for bad, said in (
            ({k: v for k, v in good.items() if k != key}, f"lacks parameter {key}"),
            ({**good, "mask_decoder.hq_token.weight": torch.zeros(1)}, "unknown parameter mask_decoder.hq_token"),
            ({**good, key: torch.zeros(1, 8)}, r"shape \(1, 8\) instead of \(1, 32\)"),
        ):
            torch.save(bad, file)
            with pytest.raises(UserError, match=said):
                load_segmenter(str(file))

    def test_a_folder_whose_weights_are_incomplete_does_not_get_random_ones(self, tmp_path):
        tiny_sam().save_pretrained(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        weights.pop("mask_decoder.iou_token.weight")
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(UserError, match="mask_decoder.iou_token.weight"):
            load_segmenter(str(tmp_path))

    def test_a_damaged_folder(self, tmp_path):
        tiny_sam().save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(UserError, match="could not be loaded"):
            load_segmenter(str(tmp_path))

    def test_a_damaged_bundled_form(self, tmp_path):
        small_folder(tmp_path)
        (tmp_path / "small_sam.json").write_text('{"width": 64}')
        with pytest.raises(UserError, match="model.safetensors"):
            load_segmenter(str(tmp_path))
        (tmp_path / "small_sam.json").write_text('{"breadth": 64}')
        with pytest.raises(UserError, match="small_sam.json is no description"):
            load_segmenter(str(tmp_path))
        small_folder(tmp_path)
        (tmp_path / "model.safetensors").write_bytes(b"torn")
        with pytest.raises(UserError, match="model.safetensors is damaged"):
            load_segmenter(str(tmp_path))
        (tmp_path / "model.safetensors").unlink()
        with pytest.raises(UserError, match="model.safetensors is missing"):
            load_segmenter(str(tmp_path))

    def test_a_hub_id_without_a_network(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError, match="'weakly-tests/no-such-sam' could not be loaded") as error:
            load_segmenter("weakly-tests/no-such-sam")
        assert "\n" not in str(error.value)
