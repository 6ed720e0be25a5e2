from __future__ import annotations

import math

import pytest
import torch

from burnish.core import Outputs, Seq, pack
from burnish.errors import RecipeError
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


# Options -------------------------------------------------------------------------------------------------------------


def loss_of(batch, **options):
    objective = make_objective("classify", options)
    return objective, objective.loss(Outputs(score=SCORES), batch)


def test_focal_loss_scales_by_what_is_not_known_yet(batch):
    p = [1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))]
    _, loss = loss_of(batch, focal_gamma=2)
    assert float(loss.sum) == pytest.approx(sum(-((1 - one) ** 2) * math.log(one) for one in p))


def test_smoothing_is_that_of_torch():
    batch = pack([[Seq([1, 2], [0, 0], y=y)] for y in (0.0, 0.0, 1.0)], row_tokens=8)
    _, loss = loss_of(batch, label_smoothing=0.2)
    wanted = torch.nn.functional.cross_entropy(SCORES, torch.tensor([0, 0, 1]), label_smoothing=0.2, reduction="sum")
    assert float(loss.sum) == pytest.approx(float(wanted))


def test_class_weights_scale_the_loss_and_the_count_alike():
    batch = pack([[Seq([1, 2], [0, 0], y=y)] for y in (0.0, 0.0, 1.0)], row_tokens=8)
    objective, loss = loss_of(batch, class_weights=[0.5, 3.0])
    weights = torch.tensor([0.5, 3.0])
    wanted = torch.nn.functional.cross_entropy(SCORES, torch.tensor([0, 0, 1]), weight=weights, reduction="mean")
    assert float(objective.count(batch)) == 4
    assert float(loss.sum / objective.count(batch)) == pytest.approx(float(wanted))


def test_balanced_weights_give_every_class_the_same_sum():
    objective = make_objective("classify", {"class_weights": "balanced"}).fitted(["a", "b"], {"a": 30, "b": 10})
    assert objective.class_weights == pytest.approx((2 / 3, 2.0))


def test_weights_by_label_follow_the_order_of_the_labels():
    objective = make_objective("classify", {"class_weights": {"b": 2.0, "a": 1.0}}).fitted(["a", "b"], {})
    assert objective.class_weights == (1.0, 2.0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"label_smoothing": 1.5}, "loss.label_smoothing"),
        ({"focal_gamma": -1}, "loss.focal_gamma"),
        ({"class_weights": {"a": 0}}, "loss.class_weights"),
        ({"class_weights": "even"}, "loss.class_weights"),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(options, named):
    with pytest.raises(RecipeError) as caught:
        make_objective("classify", options)
    assert caught.value.where == named


def test_an_option_that_there_is_not_lists_those_that_there_are():
    with pytest.raises(RecipeError, match="no option 'reads'") as caught:
        make_objective("classify", {"reads": []})
    assert "class_weights, focal_gamma, label_smoothing" in caught.value.expected
