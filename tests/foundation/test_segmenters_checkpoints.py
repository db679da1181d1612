"""Every form of checkpoint that a segmenter comes in, and one network of the real size per architecture.

The real weights are not at hand: files have the published names and shapes (``published_layouts``) and random weights.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import published_layouts as published
import pytest
import tiny_segmenters as tiny
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    Sam2Config,
    Sam2Model,
    Sam2VideoConfig,
    Sam3TrackerConfig,
    Sam3TrackerModel,
    SamHQConfig,
    SamHQModel,
    SamHQVisionConfig,
)

from weakly.errors import UserError
from weakly.foundation.efficient_sam import EfficientSamSegmenter, efficient_sam_from_state
from weakly.foundation.promptable import PromptableSegmenter
from weakly.foundation.sam import SamSegmenter, load_segmenter
from weakly.foundation.sam2 import Sam2Segmenter, Sam3Segmenter
from weakly.foundation.sam_checkpoint import sam_from_state
from weakly.foundation.sam_hq import SamHqSegmenter
from weakly.methods.wps import WpsSettings
from weakly.methods.wps.learner import build_prompter
from weakly.methods.wps.losses import match, prompt_loss

torch.set_num_threads(1)

MIB = 1 << 20
IMAGE = np.random.default_rng(0).integers(0, 256, (375, 500, 3)).astype(np.uint8)


def works(segmenter: PromptableSegmenter, box: tuple[float, ...] = (100, 80, 300, 250)) -> Tensor:
    """Encode, ask for a box, decode, take one step of the paper's student; the embedding."""
    frame = segmenter.frame(IMAGE.shape[:2])
    embedding = segmenter.encode(segmenter.preprocess([IMAGE]))
    assert embedding.shape == (1, *segmenter.embedding_shape)
    assert 0.05 < embedding[:, : segmenter.student_channels].std() < 20
    tokens = segmenter.box_tokens(torch.from_numpy(frame.boxes_to_frame(np.array([box]))))
    logits, iou = segmenter.decode(embedding, tokens, torch.zeros(1, dtype=torch.int64), multimask=True)
    assert frame.logits_to_image(logits[0]).shape == (3, 375, 500)
    assert logits.isfinite().all()
    assert iou.isfinite().all()
    torch.manual_seed(0)
    student = build_prompter(WpsSettings(), 40, segmenter)
    optimizer = torch.optim.Adam(student.parameters(), 1e-4)
    losses = []
    for _ in range(2):
        answer = student(embedding)
        matches = match(answer, torch.tensor([[7]]), tokens[None], (1,), alpha=10, beta=1)
        loss = prompt_loss(answer, torch.tensor([[7]]), tokens[None], matches, lambda_cls=5, lambda_reg=20).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    return embedding


def drawn_like(model: torch.nn.Module) -> torch.nn.Module:
    """Weights of a library's model that keep the size of what passes through them; its own are 1e-10."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.02)
    return model


class TestFiles:
    @pytest.mark.parametrize(
        ("sizes", "count"),
        [
            ((768, 12, 12, (2, 5, 8, 11)), 93_735_472),
            ((1024, 24, 16, (5, 11, 17, 23)), 312_342_832),
            ((1280, 32, 16, (7, 15, 23, 31)), 641_090_608),
        ],
        ids=["vit-b", "vit-l", "vit-h"],
    )
    def test_sams_three_sizes_are_read_from_names_and_shapes(self, sizes, count):
        """On the meta device: names and shapes without their 2.4 GiB."""
        layout = published.sam(*sizes)
        assert published.parameters(layout) == count
        state = {name: torch.empty(shape, device="meta") for name, shape in layout.items()}
        model = sam_from_state(state, Path("sam_vit.pth"))
        trained = {name: value for name, value in model.named_parameters() if "positional_embedding" not in name}
        assert sum(value.numel() for value in trained.values()) == count
        vision = model.config.vision_config
        assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == sizes[:3]
        assert tuple(vision.global_attn_indexes) == sizes[3]
        assert (vision.window_size, vision.mlp_dim, vision.image_size) == (14, 4 * sizes[0], 1024)
        segmenter = SamSegmenter(model, "meta")
        assert segmenter.embedding_shape == (256, 64, 64)

    def test_an_efficient_sam_of_another_size(self):
        """Positions of the class token are dropped, those of the grid resized once."""
        model = tiny.tiny_efficient_sam()
        state = dict(model.state_dict())
        state["image_encoder.pos_embed"] = torch.randn(1, 1 + 5 * 5, 32)
        loaded, config = efficient_sam_from_state(state, Path("x.pt"), tiny.TINY_EFFICIENT)
        assert config == tiny.TINY_EFFICIENT
        positions = loaded.image_encoder.pos_embed
        grid = state["image_encoder.pos_embed"][:, 1:].reshape(1, 5, 5, 32).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(grid, (8, 8), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 64, 32)
        torch.testing.assert_close(positions, expected)

    @pytest.mark.slow
    def test_mobile_sam_at_its_size(self, tmp_path):
        layout = published.mobile_sam()
        assert published.parameters(layout) == 10_130_092
        state = published.drawn(layout)
        torch.save(state, tmp_path / "mobile_sam.pt")
        segmenter = load_segmenter(str(tmp_path / "mobile_sam.pt"), pad="center_black")
        assert isinstance(segmenter, SamSegmenter)
        assert segmenter.pad == "center_black"
        encoder = segmenter.model.vision_encoder
        for ours, theirs in (
            (encoder.stages[3].downsample.conv2.conv.weight, "layers.2.downsample.conv2.c.weight"),
            (encoder.stages[2].blocks[5].attn.attention_biases, "layers.2.blocks.5.attn.attention_biases"),
            (encoder.patch_embed.conv2.bn.running_var, "patch_embed.seq.2.bn.running_var"),
            (encoder.neck.layer_norm2.bias, "neck.3.bias"),
        ):
            assert torch.equal(ours, state[f"image_encoder.{theirs}"])
        works(segmenter)

    @pytest.mark.slow
    @pytest.mark.parametrize(("width", "count"), [(192, 10_223_204), (384, 26_413_028)], ids=["vit-t", "vit-s"])
    def test_efficient_sam_at_its_size(self, tmp_path, width, count):
        layout = published.efficient_sam(width)
        assert published.parameters(layout) == count
        torch.save({"model": published.drawn(layout)}, tmp_path / "efficient_sam.pt")
        segmenter = load_segmenter(str(tmp_path / "efficient_sam.pt"))
        assert isinstance(segmenter, EfficientSamSegmenter)
        assert segmenter.embedding_shape == (256, 64, 64)
        assert segmenter.model.image_encoder.blocks[0].attn.num_heads == width // 64
        works(segmenter)


class TestLibrary:
    @pytest.mark.parametrize(
        ("make", "adapter"),
        [(tiny.tiny_sam_hq, SamHqSegmenter), (tiny.tiny_sam2, Sam2Segmenter), (tiny.tiny_sam3, Sam3Segmenter)],
        ids=["sam-hq", "sam2", "sam3"],
    )
    def test_a_saved_folder_is_the_same_segmenter(self, tmp_path, make, adapter):
        model = make()
        model.save_pretrained(tmp_path)
        loaded = load_segmenter(str(tmp_path))
        assert isinstance(loaded, adapter)
        assert loaded.fingerprint == adapter(model, "as it was").fingerprint

    def test_sam2_as_it_is_published_with_its_video_part(self, tmp_path):
        """``facebook/sam2.1-hiera-*`` are of ``model_type`` sam2_video and hold a memory that images do not need."""
        model = tiny.tiny_sam2()
        model.save_pretrained(tmp_path)
        parts = {name: getattr(model.config, name).to_dict() for name in ("vision_config", "prompt_encoder_config")}
        decoder = model.config.mask_decoder_config.to_dict()
        Sam2VideoConfig(**parts, mask_decoder_config=decoder).save_pretrained(tmp_path)
        state = {**load_file(tmp_path / "model.safetensors"), "memory_encoder.projection.bias": torch.zeros(4)}
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "sam2_video"
        assert load_segmenter(str(tmp_path)).fingerprint == Sam2Segmenter(model, "as it was").fingerprint

    def test_sam3_as_it_is_published_with_its_detector(self, tmp_path):
        """``facebook/sam3`` is of ``model_type`` sam3_video: encoder in the detector, neck and heads in the tracker."""
        model = tiny.tiny_sam3()
        state = {}
        for name, value in model.state_dict().items():
            if name.startswith("vision_encoder.neck."):
                state[name.replace("vision_encoder.neck.", "tracker_neck.")] = value.contiguous()
            elif name.startswith("vision_encoder."):
                state[f"detector_model.{name}"] = value.contiguous()
            else:
                state[f"tracker_model.{name}"] = value.contiguous()
        state["detector_model.text_projection.weight"] = torch.zeros(2, 2)
        config = {"model_type": "sam3_video", "tracker_config": model.config.to_dict()}
        (tmp_path / "config.json").write_text(json.dumps(config))
        save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
        loaded = load_segmenter(str(tmp_path))
        assert isinstance(loaded, Sam3Segmenter)
        assert loaded.fingerprint == Sam3Segmenter(model, "as it was").fingerprint

    def test_sam3_at_its_size_takes_so_much_room(self):
        """On the meta device: 0.46 billion parameters are too many for a test."""
        with torch.device("meta"):
            segmenter = Sam3Segmenter(Sam3TrackerModel(Sam3TrackerConfig()), "sam3")
        assert (segmenter.side, segmenter.embedding_shape) == (1008, (1024, 72, 72))
        assert 2 * np.prod(segmenter.embedding_shape) / MIB == pytest.approx(10.125)

    @pytest.mark.slow
    def test_sam2_at_its_size(self, tmp_path):
        drawn_like(Sam2Model(Sam2Config())).save_pretrained(tmp_path)
        segmenter = load_segmenter(str(tmp_path))
        assert (segmenter.side, segmenter.embedding_shape) == (1024, (1024, 64, 64))
        assert 2 * works(segmenter).numel() == 8 * MIB

    @pytest.mark.slow
    def test_sam_hq_at_its_size(self, tmp_path):
        """ViT-B's widths and decoder; four of its twelve blocks, two of them global, for the time it takes."""
        vision = SamHQVisionConfig(num_hidden_layers=4, global_attn_indexes=[1, 3])
        drawn_like(SamHQModel(SamHQConfig(vision_config=vision.to_dict()))).save_pretrained(tmp_path)
        segmenter = load_segmenter(str(tmp_path), pad="center_black")
        assert segmenter.embedding_shape == (768, 64, 64)
        assert 2 * works(segmenter).numel() == 6 * MIB


class TestRefusals:
    """Each is one sentence that names the file and what to do."""

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("model.0.conv.weight", "only choose among masks that were made without them"),
            ("mask_decoder.hf_token.weight", "give its Hugging Face form, e.g. syscv-community/sam-hq-vit-base"),
            ("image_encoder.trunk.pos_embed", "give its Hugging Face form, e.g. facebook/sam2.1-hiera-tiny"),
            (
                "backbone.conv.weight",
                "is not a SAM ViT-B, ViT-L or ViT-H checkpoint, nor MobileSAM's or EfficientSAM's",
            ),
        ],
    )
    def test_files_of_other_families(self, tmp_path, name, said):
        torch.save({"model": {name: torch.zeros(1)}}, tmp_path / "x.pt")
        with pytest.raises(UserError, match=rf"x\.pt .*{said}"):
            load_segmenter(str(tmp_path / "x.pt"))

    def test_a_pickled_fast_sam(self, tmp_path, monkeypatch):
        """As it is published: objects of a package that is not here; nothing of them is run."""
        module: Any = types.ModuleType("ultralytics.nn.tasks")
        module.SegmentationModel = type("SegmentationModel", (), {"__module__": "ultralytics.nn.tasks"})
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "ultralytics", types.ModuleType("ultralytics"))
            patched.setitem(sys.modules, "ultralytics.nn", types.ModuleType("ultralytics.nn"))
            patched.setitem(sys.modules, "ultralytics.nn.tasks", module)
            torch.save({"model": module.SegmentationModel()}, tmp_path / "FastSAM-x.pt")
        with pytest.raises(UserError, match=r"FastSAM-x\.pt is FastSAM or another YOLO"):
            load_segmenter(str(tmp_path / "FastSAM-x.pt"))

    @pytest.mark.parametrize("layout", [published.mobile_sam, lambda: published.efficient_sam(192)])
    def test_a_parameter_is_missing_unknown_or_misshapen(self, tmp_path, layout):
        good = {name: torch.zeros(shape) for name, shape in layout().items()}
        key = "mask_decoder.iou_token.weight"
        for bad, said in (
            ({name: value for name, value in good.items() if name != key}, f"lacks parameter {key}"),
            ({**good, "mask_decoder.extra": torch.zeros(1)}, "unknown parameter mask_decoder.extra"),
            ({**good, key: torch.zeros(1, 8)}, r"shape \(1, 8\) instead of \(1, 256\)"),
        ):
            torch.save(bad, tmp_path / "x.pt")
            with pytest.raises(UserError, match=said):
                load_segmenter(str(tmp_path / "x.pt"))

    def test_an_efficient_sam_without_positions(self, tmp_path):
        torch.save({"prompt_encoder.bbox_top_left_embeddings.weight": torch.zeros(1, 256)}, tmp_path / "x.pt")
        with pytest.raises(UserError, match=r"x\.pt lacks parameter image_encoder\.pos_embed"):
            load_segmenter(str(tmp_path / "x.pt"))

    def test_no_black_padding_where_images_are_stretched(self, tmp_path):
        tiny.tiny_sam2().save_pretrained(tmp_path)
        with pytest.raises(
            UserError, match="stretches images and has no padding 'center_black'; set settings.pad to sam"
        ):
            load_segmenter(str(tmp_path), pad="center_black")

    def test_a_library_model_that_is_no_segmenter(self, tmp_path):
        CLIPVisionConfig().save_pretrained(tmp_path)
        with pytest.raises(
            UserError, match="is a 'clip_vision_model', no SAM; give one whose model_type is sam, sam_hq"
        ):
            load_segmenter(str(tmp_path))
