"""RoI drop: which loss terms count."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.roi_heads import fastrcnn_loss

from weakly.errors import UserError
from weakly.methods.weaksam.roi_drop import DropMode, DropSettings, roi_losses

# The worked example counts background last; here, as in torchvision, it comes first.
LOGITS = torch.tensor([[6.0, 0, 0], [0, 5, 0], [1, 0, 0], [0, 0, 6], [0, 6, 0]])
LABELS = torch.tensor([1, 1, 0, 1, 0])
RESIDUALS = (1.5, 7.0, 100.0, 6.0, 100.0)
DROP = DropSettings(start=10)


def example() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits, deltas whose distance to the targets is as given, labels, targets."""
    logits = LOGITS.clone().requires_grad_()
    deltas = torch.zeros(5, 3, 4)
    deltas[:, 1] = torch.tensor(RESIDUALS)[:, None] * torch.tensor([0.5, -0.25, 0.125, -0.125])
    return logits, deltas.flatten(1).requires_grad_(), LABELS, torch.zeros(5, 4)


@pytest.mark.parametrize(
    ("mode", "classification", "regression"),
    [("none", 3.7159, 2.9), ("joint", 2.5149, 1.7), ("independent", 0.1130, 0.3)],
)
def test_the_worked_example(mode: DropMode, classification: float, regression: float) -> None:
    losses = roi_losses(*example(), replace(DROP, mode=mode), step=10)
    assert float(losses.classification) == pytest.approx(classification, abs=5e-5)
    assert float(losses.regression) == pytest.approx(regression, abs=5e-5)


def test_shares_of_what_was_dropped() -> None:
    """Three of five cross-entropies are above 4, two of three foreground residuals; one RoI has both."""
    independent = roi_losses(*example(), DROP, step=10)
    assert float(independent.dropped_classification) == pytest.approx(3 / 5)
    assert float(independent.dropped_regression) == pytest.approx(2 / 3)
    joint = roi_losses(*example(), replace(DROP, mode="joint"), step=10)
    assert float(joint.dropped_classification) == pytest.approx(1 / 5)
    assert float(joint.dropped_regression) == pytest.approx(1 / 3)


@pytest.mark.parametrize("mode", ["joint", "independent"])
@pytest.mark.parametrize(("limit", "step"), [(math.inf, 10), (4.0, 9), (4.0, None)])
def test_without_threshold_before_the_start_and_in_validation_nothing_is_dropped(
    mode: DropMode, limit: float, step: int | None
) -> None:
    drop = replace(DROP, mode=mode, cls=limit, reg=limit)
    plain = roi_losses(*example(), replace(DROP, mode="none"), step=10)
    assert roi_losses(*example(), drop, step) == plain


@pytest.mark.parametrize(
    ("mode", "silent_logits", "silent_deltas"), [("joint", [3], [2, 3, 4]), ("independent", [0, 3, 4], [1, 2, 3, 4])]
)
def test_what_is_dropped_gets_no_gradient(mode: DropMode, silent_logits: list[int], silent_deltas: list[int]) -> None:
    logits, deltas, labels, targets = example()
    losses = roi_losses(logits, deltas, labels, targets, replace(DROP, mode=mode), step=10)
    (losses.classification + losses.regression).backward()
    assert [i for i in range(5) if not logits.grad[i].any()] == silent_logits
    assert [i for i in range(5) if not deltas.grad[i].any()] == silent_deltas


@given(st.integers(0, 2**32 - 1), st.integers(1, 20), st.sampled_from([0.0, 1 / 9, 1.0]))
def test_with_drop_off_the_losses_are_those_of_torchvision(seed: int, rois: int, beta: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits, deltas = torch.randn(rois, 4, generator=generator), torch.randn(rois, 16, generator=generator)
    labels, targets = torch.randint(4, (rois,), generator=generator), torch.randn(rois, 4, generator=generator)
    losses = roi_losses(logits, deltas, labels, targets, DropSettings("none"), 0, beta)
    classification, regression = fastrcnn_loss(logits, deltas, [labels], [targets])
    assert float(losses.classification) == pytest.approx(float(classification), rel=1e-5)
    if beta == 1 / 9:
        assert float(losses.regression) == pytest.approx(float(regression), rel=1e-5, abs=1e-7)
    chosen = deltas.view(rois, 4, 4)[torch.arange(rois), labels]
    distance = torch.nn.functional.smooth_l1_loss(chosen, targets, beta=beta, reduction="none").sum(1)
    assert float(losses.regression) == pytest.approx(float(distance[labels > 0].sum() / rois), rel=1e-5, abs=1e-7)


def test_targets_of_background_may_be_infinite() -> None:
    """torchvision encodes an empty image's boxes as minus infinity."""
    logits, deltas, labels, targets = example()
    targets[labels == 0] = -math.inf
    losses = roi_losses(logits, deltas, labels, targets, DROP, step=0)
    (losses.classification + losses.regression).backward()
    assert float(losses.regression) == pytest.approx(2.9)
    assert torch.isfinite(deltas.grad).all()


def test_thresholds_are_checked() -> None:
    with pytest.raises(UserError, match=r"drop\.cls is 0; give a number above 0"):
        DropSettings(cls=0)
    with pytest.raises(UserError, match=r"drop\.start is -1"):
        DropSettings(start=-1)
