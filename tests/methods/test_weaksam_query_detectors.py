"""RT-DETR and Mask2Former: their backbones, their answers, their masks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_students import STUDENTS

from weakly.errors import UserError
from weakly.methods.weaksam.mask2former import build_mask2former, instance_masks
from weakly.methods.weaksam.query_detectors import ResNetSettings, best_pairs
from weakly.methods.weaksam.rt_detr import RtDetrSettings, build_rt_detr
from weakly.methods.weaksam.students import rebuild_student
from weakly.segmentation import decode_masks


def test_a_local_transformers_backbone_is_loaded_frozen(tmp_path: Path) -> None:
    first = build_mask2former(STUDENTS["mask2former"], 3)  # type: ignore[arg-type]
    source = first.net.model.pixel_level_module.encoder
    source.save_pretrained(tmp_path / "resnet")
    pretrained = replace(STUDENTS["mask2former"], resnet=ResNetSettings(str(tmp_path / "resnet")))
    student = build_mask2former(pretrained, 3)  # type: ignore[arg-type]
    encoder = student.net.model.pixel_level_module.encoder
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in encoder.modules())
    x = torch.rand(1, 3, 64, 64)
    for a, b in zip(source.eval()(x).feature_maps, encoder.train()(x).feature_maps, strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    rebuild_student(json.loads(json.dumps(student.architecture())), 3).load_state_dict(student.state_dict())

    other = build_rt_detr(STUDENTS["rt_detr"], 3)  # type: ignore[arg-type]
    other.net.model.backbone.model.save_pretrained(tmp_path / "rt")
    detr = build_rt_detr(replace(STUDENTS["rt_detr"], resnet=ResNetSettings(str(tmp_path / "rt"))), 3)  # type: ignore[arg-type]
    weights = other.net.model.backbone.model.state_dict()
    loaded = detr.net.model.backbone.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in loaded.items())
    with pytest.raises(UserError, match="cannot be loaded as a backbone"):
        build_rt_detr(RtDetrSettings(ResNetSettings(str(tmp_path / "absent"))), 3)


def test_best_pairs_lets_a_query_stand_for_several_categories() -> None:
    scores = torch.tensor([[[0.9, 0.8], [0.1, 0.85]]])
    best, labels, queries = best_pairs(scores, 3)
    assert best[0].tolist() == pytest.approx([0.9, 0.85, 0.8])
    assert labels.tolist() == [[0, 1, 1]]
    assert queries.tolist() == [[0, 1, 0]]


def test_instance_masks_are_cut_from_the_padding_and_resized() -> None:
    logits = torch.full((2, 8, 8), -5.0)
    logits[0, :4, :6] = 5.0
    rles, quality = instance_masks(logits, (32, 32), (16, 24), (32, 48))
    masks = decode_masks(rles, (32, 48))
    assert masks[0].mean() > 0.95
    assert not masks[1].any()
    assert float(quality[0]) > 0.9
    assert float(quality[1]) == 0
