"""Learning-rate schedules and optimizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weakly.errors import UserError
from weakly.methods.optimisation import Optimisation, build_optimizer, build_schedule, lr_multiplier

OFFICIAL = {
    0: 0.0,
    125: 0.5,
    250: 1.0,
    2_558: 0.99098,
    10_000: 0.84709,
    19_310: 0.5,
    38_370: 0.0,
    57_430: 0.5,
    76_490: 1.0,
    114_610: 0.0,
    381_142: 0.99984,
}


@pytest.mark.parametrize(("step", "factor"), OFFICIAL.items())
def test_the_released_wps_sam_schedule_rises_again_after_its_first_zero(step: int, factor: float) -> None:
    got = lr_multiplier(step, warmup_steps=250, t_total=38_370, schedule="cosine_unclamped")
    assert got == pytest.approx(factor, abs=1e-5)


@given(total=st.integers(300, 5_000), warmup=st.integers(0, 250))
def test_the_default_falls_to_zero_and_stays(total: int, warmup: int) -> None:
    factors = [
        lr_multiplier(s, warmup_steps=warmup, t_total=total, schedule="cosine") for s in range(0, total + 500, 7)
    ]
    after = [f for s, f in zip(range(0, total + 500, 7), factors, strict=True) if s >= warmup]
    assert all(late <= early for early, late in zip(after, after[1:], strict=False))
    last = lr_multiplier(total - 1, warmup_steps=warmup, t_total=total, schedule="cosine")
    assert last == pytest.approx(0, abs=2e-3)
    assert lr_multiplier(total + 99, warmup_steps=warmup, t_total=total, schedule="cosine") == 0


def test_constant_is_constant_after_the_warm_up() -> None:
    factors = [lr_multiplier(s, warmup_steps=4, t_total=9, schedule="constant") for s in (0, 2, 4, 10**6)]
    assert factors == [0, 0.5, 1, 1]


def test_the_first_update_changes_nothing_and_the_second_does() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimisation = Optimisation(lr=0.1, warmup_steps=2)
    optimizer = build_optimizer([weight], optimisation)
    schedule = build_schedule(optimizer, optimisation, total_steps=10)
    for changed in (False, True):
        weight.sum().backward()
        optimizer.step()
        schedule.step()
        assert torch.equal(weight.detach(), torch.ones(3)) is not changed


def test_three_adam_steps_equal_the_textbook_with_coupled_decay() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = build_optimizer([weight], Optimisation(lr=1e-2, weight_decay=1e-1))
    expected, first, second = weight.detach().clone(), torch.zeros(2).double(), torch.zeros(2).double()
    for step in range(1, 4):
        gradient = 2 * expected + 0.1 * expected
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        expected = expected - 1e-2 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert torch.allclose(weight.detach(), expected, atol=1e-6)


def test_adamw_decouples_the_decay() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = build_optimizer([weight], Optimisation(lr=0.1, weight_decay=0.5, optimizer="adamw"))
    weight.grad = torch.zeros(1)
    optimizer.step()
    assert weight.item() == pytest.approx(1 - 0.1 * 0.5)


@pytest.mark.parametrize(("field", "value"), [("lr", 0.0), ("batch_size", 0), ("warmup_steps", -1)])
def test_impossible_values_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"optimisation.{field}"):
        Optimisation(**{field: value})
