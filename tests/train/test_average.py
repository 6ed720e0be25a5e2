"""The average of the weights: what is validated and saved, and what training goes on from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from burnish.train.average import Average


@pytest.fixture
def weights():
    return {"a": nn.Parameter(torch.tensor([1.0, 2.0])), "b": nn.Parameter(torch.tensor([[3.0]]))}


def step_to(average, weights, number, value):
    with torch.no_grad():
        for parameter in weights.values():
            parameter.fill_(value)
    average.after(SimpleNamespace(number=number))


def test_each_step_keeps_its_share_of_the_average(weights):
    average = Average(weights, 0.5)
    step_to(average, weights, 100, 4.0)
    step_to(average, weights, 101, 8.0)
    with average.held():
        assert weights["a"].tolist() == [(1 / 2 + 4 / 2) / 2 + 8 / 2, (2 / 2 + 4 / 2) / 2 + 8 / 2]
    assert weights["a"].tolist() == [8.0, 8.0]


def test_the_beginning_is_soon_forgotten(weights):
    average = Average(weights, 0.999)
    step_to(average, weights, 1, 5.0)
    with average.held():
        assert weights["b"].item() == pytest.approx(3 * 2 / 11 + 5 * 9 / 11)


def test_without_a_decay_nothing_is_averaged(weights):
    average = Average(weights, 0.0)
    step_to(average, weights, 1, 5.0)
    with average.held() as iterates:
        assert weights["b"].item() == 5.0
        assert iterates == {}


def test_a_restored_average_goes_on_as_the_first_one_does(weights):
    first = Average(weights, 0.9)
    step_to(first, weights, 50, 4.0)
    with first.held() as iterates:
        saved = {name: value.clone() for name, value in iterates.items()}
        there = {name: nn.Parameter(parameter.detach().clone()) for name, parameter in weights.items()}
    second = Average(there, 0.9)
    second.restore(saved)
    assert there["a"].tolist() == [4.0, 4.0]
    step_to(first, weights, 51, 6.0)
    step_to(second, there, 51, 6.0)
    with first.held(), second.held():
        assert torch.equal(weights["a"], there["a"])
