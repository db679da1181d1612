"""Boxes as a second answer of the student: costs and losses against torchvision, and where the segmenter is asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_segmenter import rectangle_dataset, tiny_segmenter
from torchvision.ops import box_convert, generalized_box_iou

from weakly.errors import UserError
from weakly.methods.wps.boxes import box_cost, box_loss, boxes_of_prompts, pairwise_giou
from weakly.methods.wps.learner import build_prompter
from weakly.methods.wps.losses import match, prompt_loss
from weakly.methods.wps.model import Prompts
from weakly.methods.wps.predictor import WpsPredictor
from weakly.methods.wps.settings import WpsSettings

SETTINGS = WpsSettings(queries=5, width=32, heads=4, layers=1, ffn=32, downsamples=1, lambda_box=2.0)


def random_boxes(*shape: int, seed: int = 0) -> torch.Tensor:
    """(..., 4) centre and size within the frame."""
    return torch.rand(*shape, 4, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.25


@given(st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_pairwise_giou_is_torchvisions_image_by_image(seed: int) -> None:
    first, second = (box_convert(random_boxes(3, n, seed=seed + n), "cxcywh", "xyxy") for n in (5, 4))
    expected = torch.stack([generalized_box_iou(a, b) for a, b in zip(first, second, strict=True)])
    assert torch.allclose(pairwise_giou(first, second), expected, atol=1e-5)


def test_cost_and_loss_of_equal_boxes_are_least() -> None:
    boxes = random_boxes(1, 4)
    assert torch.allclose(box_loss(boxes[0], boxes[0]), torch.zeros(4), atol=1e-5)
    cost = box_cost(boxes, boxes)[0]
    assert torch.allclose(cost.diagonal(), torch.full((4,), -2.0), atol=1e-5)
    assert (cost.argmin(1) == torch.arange(4)).all()
    # |difference| = 0.1 and GIoU = IoU = 0.3 / 0.5 of boxes that share 0.3 of a common height.
    moved = box_loss(torch.tensor([[0.5, 0.5, 0.4, 0.2]]), torch.tensor([[0.6, 0.5, 0.4, 0.2]]))
    assert moved.item() == pytest.approx(5 * 0.1 + 2 * (1 - 0.3 / 0.5), abs=1e-5)


def test_boxes_of_prompts_are_shares_of_the_frame() -> None:
    prompt = torch.tensor([[10.0, 20, 30, 60, 0, 0]])
    assert boxes_of_prompts(prompt, 100)[0].tolist() == pytest.approx([0.2, 0.4, 0.2, 0.4])


def test_boxes_decide_a_matching_that_classes_and_tokens_leave_open() -> None:
    given_boxes = random_boxes(1, 3)
    order = torch.tensor([2, 0, 1])
    prompts = Prompts(torch.zeros(1, 3, 4), torch.zeros(1, 3, 2, 8), given_boxes[:, order])
    labels, teacher = torch.zeros(1, 3).long(), torch.zeros(1, 3, 2, 8)
    matches = match(prompts, labels, teacher, (3,), alpha=1.0, beta=1.0, boxes=given_boxes, gamma=1.0)
    assert order[matches.query].tolist() == matches.instance.tolist()


def test_the_loss_of_boxes_is_averaged_over_the_pairs_of_an_image_then_over_images() -> None:
    prompts = Prompts(torch.zeros(2, 4, 3), torch.zeros(2, 4, 2, 8), random_boxes(2, 4).requires_grad_())
    labels, teacher, boxes = torch.zeros(2, 3).long(), torch.zeros(2, 3, 2, 8), random_boxes(2, 3, seed=1)
    matches = match(prompts, labels, teacher, (3, 1), alpha=1.0, beta=1.0)
    weights = {"lambda_cls": 5.0, "lambda_reg": 20.0}
    plain = prompt_loss(prompts, labels, teacher, matches, **weights)
    loss = prompt_loss(prompts, labels, teacher, matches, **weights, boxes=boxes, lambda_box=3.0)
    pairs = [
        box_loss(prompts.boxes[i, q][None], boxes[i, m][None])[0]
        for i, q, m in zip(matches.image, matches.query, matches.instance, strict=True)
    ]
    expected = (torch.stack(pairs[:3]).mean() + pairs[3]) / 2
    assert torch.allclose(loss.boxes, expected, atol=1e-5)
    assert torch.allclose(loss.total, plain.total + 3 * expected, atol=1e-4)
    loss.total.backward()
    assert prompts.boxes.grad.abs().sum() > 0


def test_the_segmenter_is_asked_with_the_tokens_of_the_boxes(tmp_path: Path) -> None:
    segmenter = tiny_segmenter(tmp_path / "sam")
    dataset = rectangle_dataset(tmp_path / "images", 2)
    student = build_prompter(SETTINGS, 3, segmenter)
    predictor = WpsPredictor(student, segmenter, dataset.vocabulary, replace(SETTINGS, answer="boxes"))
    prompts = predictor.prompts(torch.randn(2, *segmenter.embedding_shape))
    corners = box_convert(prompts.boxes[1, 3:4], "cxcywh", "xyxy") * segmenter.side
    assert torch.allclose(predictor._asked(prompts)[1, 3], segmenter.box_tokens(corners)[0], atol=1e-6)
    other = WpsPredictor(student, segmenter, dataset.vocabulary, SETTINGS)
    assert torch.equal(other._asked(prompts), prompts.tokens)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"lambda_box": 1.0, "supervision": "point"}, "lambda_box"),
        ({"answer": "boxes"}, "answer"),
        ({"refine": 1, "supervision": "point"}, "refine"),
    ],
)
def test_boxes_need_boxes(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(UserError, match=f"settings.{named}"):
        WpsSettings(**wrong)
