"""DETR's loss is that of transformers, in one transfer to the host; padding and order mean nothing."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import box_convert, generalized_box_iou
from transformers import DetrConfig
from transformers.loss.loss_for_object_detection import ForObjectDetectionLoss

from weakly.errors import WeaklyError
from weakly.methods.baselines.det_sam.losses import Answers, set_loss
from weakly.methods.wps.boxes import pairwise_giou

LAYERS, QUERIES, CLASSES = 3, 7, 4
WEIGHTS = {"eos_weight": 0.1, "l1": 5.0, "giou": 2.0}


def boxes_of(*shape: int) -> torch.Tensor:
    return torch.cat([torch.rand(*shape, 2) * 0.6 + 0.2, torch.rand(*shape, 2) * 0.3 + 0.05], -1)


def case(seed: int, counts: tuple[int, ...]) -> tuple[Answers, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    images, most = len(counts), max(counts)
    logits = torch.randn(LAYERS, images, QUERIES, CLASSES + 1) * 2
    answers = Answers(logits.requires_grad_(), boxes_of(LAYERS, images, QUERIES).requires_grad_())
    return answers, torch.randint(CLASSES, (images, most)), boxes_of(images, most)


@pytest.mark.parametrize("counts", [(2, 5), (0, 3, 1), (7,), (0, 0)])
def test_it_is_the_loss_of_transformers(counts: tuple[int, ...]) -> None:
    answers, labels, boxes = case(len(counts), counts)
    ours = set_loss(answers, labels, boxes, counts, **WEIGHTS)
    config = DetrConfig(num_labels=CLASSES, decoder_layers=LAYERS, auxiliary_loss=True, backbone="resnet18")
    targets = [{"class_labels": labels[i, :n], "boxes": boxes[i, :n]} for i, n in enumerate(counts)]
    theirs, parts, _ = ForObjectDetectionLoss(
        answers.logits[-1], targets, "cpu", answers.boxes[-1], config, answers.logits, answers.boxes
    )
    assert float(ours["loss"].detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)
    l1 = sum(float(value.detach()) for name, value in parts.items() if "bbox" in name)
    assert float(ours["l1"].detach()) == pytest.approx(5 * l1, rel=1e-5)
    gradients = torch.autograd.grad(ours["loss"], answers, retain_graph=True)
    expected = torch.autograd.grad(theirs, answers, allow_unused=True)
    for mine, other in zip(gradients, expected, strict=True):
        assert torch.allclose(mine, torch.zeros_like(mine) if other is None else other, atol=1e-5)


def test_padding_means_nothing() -> None:
    answers, labels, boxes = case(0, (2, 4))
    first = set_loss(answers, labels, boxes, (2, 4), **WEIGHTS)
    labels[0, 2:], boxes[0, 2:] = 3, 0.0
    second = set_loss(answers, labels, boxes, (2, 4), **WEIGHTS)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_more_instances_than_queries_leave_the_dearest_out() -> None:
    answers, labels, boxes = case(1, (QUERIES + 2,))
    assert torch.isfinite(set_loss(answers, labels, boxes, (QUERIES + 2,), **WEIGHTS)["loss"])


def test_giou_of_pairs_is_torchvisions() -> None:
    torch.manual_seed(0)
    first, second = (box_convert(boxes_of(2, n), "cxcywh", "xyxy") for n in (6, 3))
    expected = torch.stack([generalized_box_iou(a, b) for a, b in zip(first, second, strict=True)])
    assert torch.allclose(pairwise_giou(first, second), expected, atol=1e-6)
    assert torch.isfinite(pairwise_giou(torch.zeros(1, 4), torch.zeros(1, 4))).all()


def test_divergence_is_one_sentence() -> None:
    answers, labels, boxes = case(0, (2,))
    with pytest.raises(WeaklyError, match="diverged"):
        set_loss(Answers(answers.logits * float("nan"), answers.boxes), labels, boxes, (2,), **WEIGHTS)
