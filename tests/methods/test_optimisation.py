"""Learning-rate schedules and optimizers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from weakly.errors import UserError
from weakly.methods.optimisation import (
    Optimisation,
    build_optimizer,
    build_schedule,
    lr_multiplier,
    norm_parameters,
    parameter_groups,
)

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


@pytest.mark.parametrize(("step", "rate"), [(0, 0.01), (10_000, 0.0077417), (20_000, 0.0054053), (40_000, 1e-4)])
def test_poly_falls_by_its_power_to_its_end(step: int, rate: float) -> None:
    """DeepLabV3+ of FMA-WSSS: 0.01 to 1e-4 in 40k steps, (0.01 - 1e-4) (1 - t/T)^0.9 + 1e-4."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimisation = Optimisation(lr=0.01, optimizer="sgd", schedule="poly", lr_end=1e-4, warmup_steps=0)
    schedule = build_schedule(build_optimizer([weight], optimisation), optimisation, total_steps=40_000)
    assert 0.01 * schedule.lr_lambdas[0](step) == pytest.approx(rate, abs=1e-7)
    assert schedule.lr_lambdas[0](90_000) == schedule.lr_lambdas[0](40_000), "stays at its end"


@given(st.floats(0.1, 3), st.floats(0, 1), st.integers(0, 20))
def test_poly_never_rises_and_stays_between_peak_and_end(power: float, end: float, warmup: int) -> None:
    factors = [
        lr_multiplier(s, warmup_steps=warmup, t_total=60, schedule="poly", power=power, end=end)
        for s in range(warmup, 80)
    ]
    assert factors[0] == 1
    assert all(late <= early + 1e-12 for early, late in zip(factors, factors[1:], strict=False))
    assert factors[-1] == pytest.approx(end)


def test_sgd_keeps_momentum_and_couples_the_decay() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = build_optimizer([weight], Optimisation(lr=0.1, momentum=0.8, weight_decay=0.5, optimizer="sgd"))
    expected, velocity = weight.detach().clone(), torch.zeros(2).double()
    for _ in range(3):
        velocity = 0.8 * velocity + 2 * expected + 0.5 * expected
        expected = expected - 0.1 * velocity
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert torch.allclose(weight.detach(), expected)


class TwoParts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
        self.head = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.GroupNorm(1, 3))
        self.frozen = torch.nn.Linear(2, 2).requires_grad_(False)


def test_groups_hold_every_trained_parameter_once_with_its_rate_and_decay() -> None:
    module, optimisation = TwoParts(), Optimisation(lr=1e-2, weight_decay=0.3, optimizer="adamw")
    groups = parameter_groups(
        module, optimisation, lr_factors={"backbone.": 0.1}, undecayed={"head.0.bias", *norm_parameters(module)}
    )
    found = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(found)
    names = {name: found.get(id(parameter)) for name, parameter in module.named_parameters()}
    slow, fast = pytest.approx(1e-3), 1e-2
    assert names == {
        "backbone.0.weight": (slow, 0.3),
        "backbone.0.bias": (slow, 0.3),
        "backbone.1.weight": (slow, 0),
        "backbone.1.bias": (slow, 0),
        "head.0.weight": (fast, 0.3),
        "head.0.bias": (fast, 0),
        "head.1.weight": (fast, 0),
        "head.1.bias": (fast, 0),
        "head.2.weight": (fast, 0),
        "head.2.bias": (fast, 0),
        "frozen.weight": None,
        "frozen.bias": None,
    }


def test_the_schedule_multiplies_the_rate_of_every_group() -> None:
    module, optimisation = TwoParts(), Optimisation(lr=1e-2, schedule="poly", power=1, warmup_steps=0)
    groups = parameter_groups(module, optimisation, lr_factors={"backbone.": 0.1})
    optimizer = build_optimizer(groups, optimisation)
    schedule = build_schedule(optimizer, optimisation, total_steps=4)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.75e-3, 0.75e-2])


@pytest.mark.parametrize(
    ("field", "value"),
    [("lr", 0.0), ("batch_size", 0), ("warmup_steps", -1), ("momentum", 1.0), ("power", 0.0), ("lr_end", 1.0)],
)
def test_impossible_values_are_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(UserError, match=f"optimisation.{field}"):
        Optimisation(**{field: value})
