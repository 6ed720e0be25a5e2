from __future__ import annotations

import math

import pytest
import torch

from burnish.core import Outputs, Seq, pack
from burnish.objectives import make_objective

SCORES = torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])


@pytest.fixture
def batch():
    """Three sequences of the classes 0 and 0, and one without a class."""
    return pack([[Seq([1, 2], [0, 0], y=y)] for y in (0.0, 0.0, -1.0)], row_tokens=8)


def test_classify_is_the_summed_cross_entropy_of_the_sequences_with_a_class(batch):
    loss = make_objective("classify").loss(Outputs(score=SCORES), batch)
    assert float(loss.sum) == pytest.approx(math.log(1 + math.exp(-1)) + math.log(1 + math.exp(2)))


def test_classify_counts_sequences_with_a_class_and_no_tokens(batch):
    assert float(make_objective("classify").count(batch)) == 2


def test_the_figures_are_sums_with_counts(batch):
    stats = make_objective("classify").loss(Outputs(score=SCORES), batch).stats
    assert tuple(map(float, stats["accuracy"])) == (1, 2)
    assert float(stats["loss"][1]) == 2


def test_no_sequence_at_all_gives_a_loss_and_a_gradient_of_zero(batch):
    scores = SCORES.clone().requires_grad_()
    nobody = pack([[Seq([1, 2], [0, 0], y=-1.0)] for _ in range(3)], row_tokens=8)
    loss = make_objective("classify").loss(Outputs(score=scores), nobody).sum
    loss.backward()
    assert float(loss.detach()) == 0
    assert not scores.grad.any()
