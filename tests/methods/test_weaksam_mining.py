"""Scores, mined boxes and labels equal what the papers define, written out loop by loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import box_iou, nms

from weakly.methods.weaksam.mining import (
    PseudoBoxes,
    RoiTargets,
    assign,
    box_loss,
    cross_entropy_loss,
    decode_boxes,
    encode_boxes,
    from_inclusive,
    image_loss,
    mil_scores,
    mine_near_top,
    mine_spread,
    mine_top,
    probability_loss,
    to_inclusive,
)

SEEDS = st.integers(0, 10_000)


def some_boxes(count: int, seed: int, side: float = 60) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat([corner, corner + 8 + torch.rand(count, 2, generator=generator) * 50], 1)


def some_scores(count: int, classes: int, seed: int) -> Tensor:
    return torch.rand(count, classes, generator=torch.Generator().manual_seed(seed + 1))


def mined(pseudo: PseudoBoxes) -> list[tuple[int, int]]:
    """(RoI, category) of the boxes that count, in order."""
    pairs = zip(pseudo.rois.tolist(), pseudo.categories.tolist(), pseudo.kept.tolist(), strict=True)
    return [(roi, category) for roi, category, kept in pairs if kept]


def inclusive_iou(a: list[float], b: list[float]) -> float:
    """The IoU of published code, each side one pixel longer than the difference of its ends."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (a, b)]
    return width * height / (sum(areas) - width * height)


def test_image_scores_of_the_worked_example() -> None:
    scores = mil_scores(torch.tensor([[1.0, 2, 0], [0, 1, 3]]), torch.tensor([[0.0, 1, 2], [1, 0, 0]]))
    torch.testing.assert_close(scores.sum(0), torch.tensor([0.0965, 0.5170, 0.1799]), atol=5e-5, rtol=0)
    loss = image_loss(scores.sum(0)[None], torch.tensor([[False, True, False]]))
    assert float(loss) == pytest.approx(0.3198, abs=5e-5)
    assert float(image_loss(scores.sum(0)[None], torch.tensor([[False, True, False]]), "sum")) == pytest.approx(
        3 * float(loss)
    )


def test_image_loss_is_finite_at_its_ends() -> None:
    probabilities = torch.tensor([[0.0, 1.0, 1.0000005]], requires_grad=True)
    loss = image_loss(probabilities, torch.tensor([[True, False, True]]))
    loss.backward()
    assert torch.isfinite(loss) and probabilities.grad is not None and torch.isfinite(probabilities.grad).all()


def test_spread_mining_of_the_worked_example() -> None:
    boxes = from_inclusive(torch.tensor([[0.0, 0, 99, 99], [50, 0, 149, 99], [100, 0, 199, 99]]))
    overlaps, scores = box_iou(boxes, boxes), torch.tensor([[0.9], [0.8], [0.7]])
    assert float(overlaps[0, 1]) == pytest.approx(1 / 3) and float(overlaps[0, 2]) == 0
    pseudo = mine_spread(scores, torch.tensor([0]), overlaps, portion=1.0, max_iou=0.2)
    assert mined(pseudo) == [(0, 0)]
    assert nms(boxes, scores[:, 0], 0.2).tolist() == [0, 2], "greedy suppression keeps a second one"


@pytest.mark.parametrize(("a", "b", "iou"), [([0, 0, 9, 9], [5, 0, 14, 9], 1 / 3), ([0, 0, 9, 9], [10, 0, 19, 9], 0.0)])
def test_exclusive_boxes_have_the_inclusive_iou(a: list[float], b: list[float], iou: float) -> None:
    overlap = float(box_iou(*(from_inclusive(torch.tensor([box], dtype=torch.float32)) for box in (a, b))))
    assert overlap == pytest.approx(iou) == pytest.approx(inclusive_iou(a, b))


@settings(max_examples=25, deadline=None)
@given(SEEDS)
def test_the_codec_is_the_inclusive_one_and_decodes_what_it_encodes(seed: int) -> None:
    boxes, targets = some_boxes(9, seed), some_boxes(9, seed + 1)
    offsets = encode_boxes(targets, boxes)
    torch.testing.assert_close(decode_boxes(offsets[:, None], boxes)[:, 0], targets, atol=1e-3, rtol=1e-5)

    def size_and_centre(inclusive: Tensor) -> tuple[Tensor, Tensor]:
        size = inclusive[:, 2:] - inclusive[:, :2] + 1
        return size, inclusive[:, :2] + 0.5 * size

    (size, centre), (wanted_size, wanted) = (size_and_centre(to_inclusive(each)) for each in (boxes, targets))
    published = torch.cat([10 * (wanted - centre) / size, 5 * (wanted_size / size).log()], 1)
    torch.testing.assert_close(offsets, published, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(from_inclusive(to_inclusive(boxes)), boxes)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60), st.sampled_from([(0,), (1, 3), (0, 1, 2)]))
def test_spread_mining_is_its_definition(seed: int, count: int, tags: tuple[int, ...]) -> None:
    boxes, scores = some_boxes(count, seed), some_scores(count, 4, seed)
    overlaps = box_iou(boxes, boxes)
    wanted = []
    for category in tags:
        ranked = scores[:, category].argsort(descending=True, stable=True).tolist()[: max(1, int(0.15 * count))]
        for rank, roi in enumerate(ranked):
            if all(float(overlaps[roi, better]) < 0.2 for better in ranked[:rank]):
                wanted.append((roi, category))
    pseudo = mine_spread(scores, torch.tensor(tags), overlaps)
    assert mined(pseudo) == wanted
    assert torch.equal(pseudo.scores, scores[pseudo.rois, pseudo.categories])


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(2, 40), st.sampled_from([(0,), (1, 3)]))
def test_near_top_mining_is_its_definition(seed: int, count: int, tags: tuple[int, ...]) -> None:
    boxes, scores = some_boxes(count, seed), some_scores(count, 4, seed)
    overlaps = box_iou(boxes, boxes)
    near = [
        (float(scores[roi, c]), roi, c)
        for c in tags
        for roi in range(count)
        if scores[roi, c] >= 0.7 * scores[:, c].max()
    ]
    wanted: list[tuple[int, int]] = []
    for _, roi, category in sorted(near, reverse=True):
        if all(float(overlaps[roi, kept]) <= 0.5 for kept, _ in wanted):
            wanted.append((roi, category))
    assert mined(mine_near_top(scores, torch.tensor(tags), boxes, ratio=0.7)) == wanted


def test_top_mining_gives_a_roi_to_one_category() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.8], [0.2, 0.3, 0.1], [0.1, 0.4, 0.6]])
    pseudo = mine_top(scores, torch.tensor([0, 2]))
    assert mined(pseudo) == [(0, 0), (2, 2)], "the best RoI of category 2 is taken"
    torch.testing.assert_close(pseudo.scores, torch.tensor([0.9, 0.6]))
    lonely = mine_top(scores[:1], torch.tensor([0, 2]))
    assert lonely.rois.tolist() == [0, 0] and float(lonely.scores[1]) == 0, "nothing is left, and weighs nothing"


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 60))
def test_labels_and_weights_are_those_of_the_nearest_box(seed: int, count: int) -> None:
    boxes, scores = some_boxes(count, seed, side=30), some_scores(count, 4, seed)
    overlaps = box_iou(boxes, boxes)
    pseudo = mine_spread(scores, torch.tensor([1, 3]), overlaps, portion=0.5)
    targets = assign(overlaps, pseudo)
    pairs = mined(pseudo)
    for roi in range(count):
        shares = [float(overlaps[roi, other]) for other, _ in pairs]
        other, category = pairs[shares.index(max(shares))]
        assert int(targets.labels[roi]) == (category + 1 if max(shares) >= 0.5 else 0)
        assert float(targets.weights[roi]) == float(scores[other, category])
        assert int(targets.matched[roi]) == other


def test_a_box_at_the_threshold_is_foreground_unless_it_must_be_above() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]])
    overlaps = box_iou(boxes, boxes)
    pseudo = PseudoBoxes(torch.tensor([0]), torch.tensor([2]), torch.tensor([0.7]), torch.tensor([True]))
    assert assign(overlaps, pseudo).labels.tolist() == [3, 3]
    assert assign(overlaps, pseudo, above=True).labels.tolist() == [3, 0]


@pytest.mark.parametrize("mine", [mine_top, lambda s, t: mine_near_top(s, t, torch.zeros(3, 4))])
def test_without_tags_all_is_background_of_no_weight(mine) -> None:
    overlaps = torch.eye(3)
    pseudo = mine(torch.rand(3, 2), torch.zeros(0, dtype=torch.int64))
    for candidates in (
        pseudo,
        PseudoBoxes(*(torch.zeros(1, dtype=t) for t in (torch.int64, torch.int64, torch.float32, torch.bool))),
    ):
        targets = assign(overlaps, candidates)
        assert not targets.labels.any() and not targets.weights.any()


def test_refinement_losses_are_their_formulas() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 3, generator=generator)
    targets = RoiTargets(
        torch.tensor([0, 1, 2, 0, 1]), torch.rand(5, generator=generator), torch.tensor([0, 1, 1, 3, 4])
    )
    own = logits.softmax(1)[torch.arange(5), targets.labels]
    torch.testing.assert_close(cross_entropy_loss(logits, targets), -(targets.weights * own.log()).sum() / 5)
    torch.testing.assert_close(probability_loss(logits, targets), -(targets.weights * (own + 1e-6).log()).sum() / 5)
    hopeless = torch.tensor([[1000.0, 0.0]])
    bounded = probability_loss(hopeless, RoiTargets(torch.tensor([1]), torch.ones(1), torch.tensor([0])))
    assert float(bounded) == pytest.approx(13.8155, abs=1e-3)


def test_box_loss_counts_foreground_alone_over_all_rois() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [50, 50, 60, 60]])
    targets = RoiTargets(torch.tensor([1, 1, 0, 0]), torch.tensor([0.5, 0.25, 1, 1]), torch.tensor([0, 0, 0, 0]))
    offsets = torch.zeros(4, 2, 4, requires_grad=True)
    loss = box_loss(offsets, boxes, targets)
    assert float(loss.detach()) == pytest.approx(0.25 * 0.5 / 4), (
        "RoI 1 is off by a tenth of its width: 1 unit, 1/2 in smooth L1"
    )
    loss.backward()
    assert offsets.grad is not None and offsets.grad.nonzero()[:, 0].unique().tolist() == [1]
