"""Matching and loss, against explicit loops over images and queries."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch.nn import functional

from weakly.errors import WeaklyError
from weakly.methods.wps.losses import Matches, assign, match, matching_cost, prompt_loss
from weakly.methods.wps.model import Prompts

WEIGHTS = {"lambda_cls": 5.0, "lambda_reg": 20.0}
ALPHA_BETA = {"alpha": 10.0, "beta": 1.0}


def random_case(
    counts: tuple[int, ...], queries: int = 6, classes: int = 4, seed: int = 0
) -> tuple[Prompts, torch.Tensor, torch.Tensor]:
    """Prompts, padded labels and padded teacher tokens; T = 2, D = 3."""
    generator = torch.Generator().manual_seed(seed)
    fullest = max(counts)
    prompts = Prompts(
        torch.randn(len(counts), queries, classes + 1, generator=generator, requires_grad=True),
        torch.randn(len(counts), queries, 2, 3, generator=generator, requires_grad=True),
    )
    labels = torch.randint(classes, (len(counts), fullest), generator=generator)
    return prompts, labels, torch.randn(len(counts), fullest, 2, 3, generator=generator)


def reference_match(prompts: Prompts, labels: torch.Tensor, teacher: torch.Tensor, counts: tuple[int, ...]) -> list:
    """Per image the query of every instance, as a loop over images, queries and instances."""
    result = []
    for b, count in enumerate(counts):
        cost = np.zeros((prompts.logits.shape[1], count))
        for q, m in itertools.product(*map(range, cost.shape)):
            probability = prompts.logits[b, q].softmax(-1)[labels[b, m]]
            distance = (prompts.tokens[b, q] - teacher[b, m]).square().sum().sqrt()
            cost[q, m] = -10 * probability.item() + distance.item()
        rows, columns = linear_sum_assignment(cost)
        result.append(rows[np.argsort(columns)].tolist())
    return result


def reference_loss(
    prompts: Prompts, labels: torch.Tensor, teacher: torch.Tensor, queries_of: list
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """CE, regression and total, image by image."""
    entropies, errors = [], []
    images, queries, classes = prompts.logits.shape
    for b in range(images):
        target = torch.full((queries,), classes - 1)
        for m, q in enumerate(queries_of[b]):
            target[q] = labels[b, m]
        entropies.append(-prompts.logits[b].log_softmax(-1)[torch.arange(queries), target].mean())
        count = len(queries_of[b])
        if count == 0:
            errors.append(torch.zeros(()))
            continue
        difference = (prompts.tokens[b, queries_of[b]] - teacher[b, :count]).abs()
        errors.append(torch.where(difference < 1, 0.5 * difference**2, difference - 0.5).mean())
    ce, reg = sum(entropies) / images, sum(errors) / images
    return ce, reg, 5 * ce + 20 * reg


def queries_per_image(matches: Matches, images: int) -> list[list[int]]:
    return [matches.query[matches.image == b].tolist() for b in range(images)]


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple), seed=st.integers(0, 1000))
def test_batched_matching_and_loss_equal_explicit_loops(counts: tuple[int, ...], seed: int) -> None:
    prompts, labels, teacher = random_case(counts, seed=seed)
    matches = match(prompts, labels, teacher, counts, **ALPHA_BETA)
    expected = reference_match(prompts, labels, teacher, counts)
    assert queries_per_image(matches, len(counts)) == expected
    loss = prompt_loss(prompts, labels, teacher, matches, **WEIGHTS)
    ce, reg, total = reference_loss(prompts, labels, teacher, expected)
    assert loss.classification.item() == pytest.approx(ce.item(), abs=1e-5)
    assert loss.regression.item() == pytest.approx(reg.item(), abs=1e-5)
    assert loss.total.item() == pytest.approx(total.item(), abs=2e-5)
    ours = torch.autograd.grad(loss.total, prompts[:2])
    theirs = torch.autograd.grad(total, prompts[:2], allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, torch.zeros_like(a) if b is None else b, atol=1e-5)


@pytest.mark.parametrize("instances", range(1, 26))
def test_matching_follows_the_order_of_the_instances(instances: int) -> None:
    for seed in range(4):
        prompts, labels, teacher = random_case((instances,), queries=25, seed=seed)
        found = match(prompts, labels, teacher, (instances,), **ALPHA_BETA)
        assert found.instance.tolist() == list(range(instances))
        order = torch.randperm(instances, generator=torch.Generator().manual_seed(seed))
        permuted = match(prompts, labels[:, order], teacher[:, order], (instances,), **ALPHA_BETA)
        assert permuted.query.tolist() == found.query[order].tolist()
        if instances == 25:
            assert sorted(found.query.tolist()) == list(range(25))


def test_cost_weighs_probability_by_alpha_and_distance_by_beta() -> None:
    prompts = Prompts(torch.tensor([[[0.0, 0.0]]]), torch.zeros(1, 1, 1, 2))
    teacher = torch.tensor([[[[3.0, 4.0]]]])
    cost = matching_cost(prompts, torch.zeros(1, 1, dtype=torch.int64), teacher, alpha=10, beta=2)
    assert cost.item() == pytest.approx(-10 * 0.5 + 2 * 5)


def test_distances_are_exact_for_near_prompts_far_from_the_origin() -> None:
    """The matrix-product form of the distance would lose these digits."""
    teacher = torch.full((1, 40, 1, 512), 100.0)
    prompts = Prompts(torch.zeros(1, 40, 2), teacher + 1e-3)
    cost = matching_cost(prompts, torch.zeros(1, 40, dtype=torch.int64), teacher, alpha=0, beta=1)
    assert torch.allclose(cost, torch.tensor(1e-3 * 512**0.5), rtol=5e-3)


def test_more_instances_than_queries_keeps_the_cheapest() -> None:
    cost = np.array([[5.0, 1.0, 3.0], [9.0, 2.0, 0.0]], np.float32)
    queries, instances = assign(cost)
    assert (queries.tolist(), instances.tolist()) == ([0, 1], [1, 2])
    prompts, labels, teacher = random_case((9, 2), queries=6)
    matches = match(prompts, labels, teacher, (9, 2), **ALPHA_BETA)
    assert matches.per_image.tolist() == [6, 2]
    assert torch.isfinite(prompt_loss(prompts, labels, teacher, matches, **WEIGHTS).total)


def test_an_image_without_instances_is_all_background_and_no_regression() -> None:
    prompts, _, _ = random_case((1,))
    nothing = torch.zeros(1, 0, dtype=torch.int64), torch.zeros(1, 0, 2, 3)
    loss = prompt_loss(prompts, *nothing, match(prompts, *nothing, (0,), **ALPHA_BETA), **WEIGHTS)
    assert loss.regression == 0
    background = functional.cross_entropy(prompts.logits[0], torch.full((6,), 4))
    assert loss.total.item() == pytest.approx(5 * background.item(), abs=1e-6)
    loss.total.backward()
    assert not prompts.tokens.grad.any()


def test_duplicating_the_batch_leaves_the_loss_unchanged() -> None:
    counts = (3, 0, 5)
    prompts, labels, teacher = random_case(counts)

    def total(times: int) -> float:
        p = Prompts(prompts.logits.repeat(times, 1, 1), prompts.tokens.repeat(times, 1, 1, 1))
        batch = labels.repeat(times, 1), teacher.repeat(times, 1, 1, 1)
        return prompt_loss(p, *batch, match(p, *batch, counts * times, **ALPHA_BETA), **WEIGHTS).total.item()

    assert total(2) == pytest.approx(total(1), rel=1e-6)


@pytest.mark.parametrize(("norm", "expected"), [("matched", 0.5), ("queries", (1 + 20) / 2 / 25 / 2)])
def test_an_image_with_one_instance_weighs_as_much_as_one_with_twenty(norm: str, expected: float) -> None:
    counts = (1, 20)
    teacher = torch.zeros(2, 20, 2, 3)
    prompts = Prompts(torch.zeros(2, 25, 5), torch.ones(2, 25, 2, 3))
    labels = torch.zeros(2, 20, dtype=torch.int64)
    matches = match(prompts, labels, teacher, counts, **ALPHA_BETA)
    loss = prompt_loss(prompts, labels, teacher, matches, **WEIGHTS, reg_norm=norm)
    assert loss.regression.item() == pytest.approx(expected)


def test_background_weight_gives_the_weighted_mean() -> None:
    prompts, labels, teacher = random_case((2, 1))
    matches = match(prompts, labels, teacher, (2, 1), **ALPHA_BETA)
    got = prompt_loss(prompts, labels, teacher, matches, **WEIGHTS, eos_weight=0.1).classification
    expected = []
    for b in range(2):
        target = torch.full((6,), 4)
        here = matches.image == b
        target[matches.query[here]] = labels[b, matches.instance[here]]
        weight = torch.tensor([1.0, 1, 1, 1, 0.1])
        expected.append(functional.cross_entropy(prompts.logits[b], target, weight=weight))
    assert got.item() == pytest.approx(torch.stack(expected).mean().item(), abs=1e-6)


def test_everything_is_float32_under_autocast() -> None:
    prompts, labels, teacher = random_case((3, 2))
    exact = prompt_loss(prompts, labels, teacher, match(prompts, labels, teacher, (3, 2), **ALPHA_BETA), **WEIGHTS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        matches = match(prompts, labels, teacher, (3, 2), **ALPHA_BETA)
        mixed = prompt_loss(prompts, labels, teacher, matches, **WEIGHTS)
    assert mixed.total.dtype == torch.float32
    assert mixed.total.item() == exact.total.item()


def test_divergence_is_named() -> None:
    prompts, labels, teacher = random_case((2,))
    with pytest.raises(WeaklyError, match="diverged"):
        match(Prompts(prompts.logits * float("nan"), prompts.tokens), labels, teacher, (2,), **ALPHA_BETA)
