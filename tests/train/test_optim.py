from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from burnish.train.optim import Optim, auto_batch_size, auto_learning_rate, rate_at


def test_loras_rate_is_ten_times_that_of_full_fine_tuning():
    assert auto_learning_rate(576, "lora", 100) == pytest.approx(10 * auto_learning_rate(576, "full", 100))


def test_loras_rate_is_fifteen_times_in_runs_under_a_hundred_steps():
    assert auto_learning_rate(576, "lora", 99) == pytest.approx(15 * auto_learning_rate(576, "full", 99))


def test_the_full_rate_is_five_millionths_of_ten_at_a_width_of_two_thousand_and_falls_with_it():
    assert auto_learning_rate(2000, "full", 500) == pytest.approx(5e-5)
    assert auto_learning_rate(4000, "full", 500) == pytest.approx(5e-5 * 2**-0.781)


@pytest.mark.parametrize(("rows", "batch"), [(1, 4), (64, 4), (320, 8), (1000, 16), (10_000, 64), (1_000_000, 64)])
def test_the_batch_grows_with_the_root_of_the_rows(rows, batch):
    assert auto_batch_size(rows) == batch


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.05), (2, 0.5), (100, 0.05), (100, 0.0), (37, 0.3)])
def test_the_rate_rises_to_its_peak_once_and_falls_from_there(total, warmup):
    rates = [rate_at(step, total, warmup) for step in range(total)]
    peak = rates.index(max(rates))
    assert max(rates) == 1
    assert all(rate > 0 for rate in rates)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_the_rate_warms_up_in_equal_parts_and_ends_near_zero():
    rates = [rate_at(step, 100, 0.05) for step in range(100)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] < 0.001


@pytest.fixture
def parameters():
    torch.manual_seed(0)
    return {"matrix": nn.Parameter(torch.randn(3, 4)), "vector": nn.Parameter(torch.randn(4))}


def give_gradients(parameters, scale=1.0):
    for number, parameter in enumerate(parameters.values()):
        parameter.grad = scale * torch.linspace(-1, 1, parameter.numel()).view_as(parameter) + number


def test_vectors_do_not_decay_and_matrices_do(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, warmup=0.0, weight_decay=0.5)
    before = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optim.step()
    torch.testing.assert_close(parameters["matrix"].data, before["matrix"] * (1 - 0.1 * 0.5))
    assert torch.equal(parameters["vector"].data, before["vector"])


def test_the_first_step_moves_each_weight_by_the_rate(parameters):
    optim = Optim({"vector": parameters["vector"]}, learning_rate=0.1, total=10, warmup=0.0)
    before = parameters["vector"].detach().clone()
    parameters["vector"].grad = torch.tensor([1.0, -2.0, 3.0, -4.0])
    optim.step()
    torch.testing.assert_close(before - parameters["vector"].data, 0.1 * torch.tensor([1.0, -1, 1, -1]))


def test_the_norm_is_told_before_clipping_and_gradients_after(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, clip=0.5)
    give_gradients(parameters, scale=3.0)
    whole = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters.values()))
    assert float(optim.gradient_norm()) == pytest.approx(whole)
    clipped = math.sqrt(sum(float(parameter.grad.square().sum()) for parameter in parameters.values()))
    assert clipped == pytest.approx(0.5, rel=1e-4)


def test_a_small_gradient_is_not_scaled_up(parameters):
    optim = Optim(parameters, learning_rate=0.1, total=10, clip=1e6)
    give_gradients(parameters)
    before = parameters["matrix"].grad.clone()
    optim.gradient_norm()
    assert torch.equal(parameters["matrix"].grad, before)


def test_an_optimiser_taken_up_from_its_state_steps_bit_for_bit_alike(parameters):
    settings = {"learning_rate": 0.1, "total": 10, "warmup": 0.3}
    first = Optim(parameters, **settings)
    for scale in (1.0, -2.0, 0.5):
        give_gradients(parameters, scale)
        first.step()
    copies = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in parameters.items()}
    second = Optim(copies, **settings)
    second.load_state_tensors({name: value.clone() for name, value in first.state_tensors().items()}, first.steps)
    for optim, mine in ((first, parameters), (second, copies)):
        give_gradients(mine, 3.0)
        optim.step()
    assert second.rate == first.rate
    assert all(torch.equal(parameters[name], copies[name]) for name in parameters)
