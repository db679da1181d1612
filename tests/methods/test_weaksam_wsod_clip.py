"""A frozen CLIP as the backbone of the weakly supervised detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_clip import tiny_clip

from weakly.errors import UserError
from weakly.foundation.clip import CLIP_MEAN, CLIP_STD, normalise
from weakly.methods.weaksam.wsod import build_detector, rebuild_detector
from weakly.methods.weaksam.wsod_clip import CHANNELS, ClipBody
from weakly.methods.weaksam.wsod_settings import WsodSettings


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    clip = tiny_clip()
    clip.model.save_pretrained(tmp_path)
    clip.tokenizer.save_pretrained(tmp_path)
    return tmp_path


@pytest.fixture
def settings(folder: Path) -> WsodSettings:
    return WsodSettings(backbone="clip", colours="clip", weights=str(folder), pool="align", width=16, drop_block=None)


def test_patches_average_to_the_image() -> None:
    clip, pixels = tiny_clip(), torch.randn(2, 3, 48, 64)
    patches = clip.patch_embeddings(pixels)
    assert patches.shape == (2, clip.joint_width, 3, 4)
    torch.testing.assert_close(patches.mean((2, 3)), clip.image_features(pixels), rtol=1e-4, atol=1e-5)


def test_stride_8_and_only_the_convolution_trains() -> None:
    body = ClipBody(tiny_clip())
    features = body(torch.randn(1, 3, 64, 96))
    assert features.shape == (1, CHANNELS, 8, 12)
    features.sum().backward()
    trained = {name for name, parameter in body.named_parameters() if parameter.grad is not None}
    assert trained == {"mix.weight", "norm.weight", "norm.bias"} == set(dict(body.named_parameters()))


def test_pixels_arrive_in_the_colours_of_the_clip(settings: WsodSettings) -> None:
    image = torch.randint(0, 256, (3, 32, 64), dtype=torch.uint8)
    prepared = build_detector(settings, 2).prepare([image])
    expected = normalise(image.permute(1, 2, 0).numpy()[None])
    torch.testing.assert_close(prepared, expected, rtol=1e-4, atol=1e-4)
    assert len(CLIP_MEAN) == len(CLIP_STD) == 3


def test_the_clip_is_stored_by_name_and_digest(settings: WsodSettings, folder: Path) -> None:
    detector = build_detector(settings, 2)
    stored = detector.state_dict()
    assert {name for name in stored if name.startswith("body.")} == {
        "body.fingerprint", "body.mix.weight", "body.norm.weight", "body.norm.bias"
    }  # fmt: skip
    again = rebuild_detector(settings, 2)
    again.load_state_dict(stored)
    pixels, boxes = torch.randn(1, 3, 32, 32), [torch.tensor([[0.0, 0, 16, 24]])]
    torch.testing.assert_close(again.eval()(pixels, boxes).logits, detector.eval()(pixels, boxes).logits)

    with pytest.raises(UserError, match="trained on another CLIP"):
        ClipBody(tiny_clip(seed=1)).load_state_dict(detector.body.state_dict())


def test_colours_and_backbone_belong_together() -> None:
    for wrong in ({"backbone": "clip"}, {"colours": "clip"}):
        with pytest.raises(UserError, match="set both to clip, or neither"):
            WsodSettings(**wrong)  # type: ignore[arg-type]
