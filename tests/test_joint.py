"""What several tasks are in one step: the sum of their own gradients by their shares, however it is cut."""

from __future__ import annotations

import random

import pytest
import torch

from burnish.core import Outputs, Seq, pack
from burnish.joint import Sliced, by_heart
from burnish.model.load import Head, load_model
from burnish.model.net import Net
from burnish.objectives import make_objective
from burnish.train.loop import backward
from burnish.train.optim import Optim

WEIGHTS = {"written": 1.0, "named": 3.0}


def groups_of(seed, count=6):
    """Groups of one sequence each, that both objectives can read."""
    draw = random.Random(seed)
    lengths = [draw.randint(4, 20) for _ in range(count)]
    return [
        [Seq([draw.randrange(250) for _ in range(n)], [draw.choice([0.0, 0.5, 1.0]) for _ in range(n)], y=float(n % 2))]
        for n in lengths
    ]


GROUPS = {"written": groups_of(1), "named": groups_of(2, 4)}


@pytest.fixture
def net(model_folder, tokenizer):
    """A function to a fresh net that writes and scores four labels: the same weights each time."""
    head = Head(("a", "b", "c", "d"), tokenizer.pad_token_id, beside=True)
    return lambda: Net(load_model(model_folder(), dtype=torch.float32, head=head).eval())


@pytest.fixture
def gradient(net):
    """A function from the micro-batches of a step, as (task, groups), and the weights of the tasks to the gradient, laid end to end."""

    def of(micro, weights=WEIGHTS):
        one = net()
        objectives = {"written": make_objective("sft"), "named": Sliced(make_objective("classify"), 2, 4)}
        tasks = {name: (objectives[name], weight) for name, weight in weights.items()}
        parameters = dict(one.named_parameters())
        unclipped = Optim(parameters, learning_rate=0.0, total=1, clip=float("inf"))
        batches = [pack(groups, row_tokens=64, task=task) for task, groups in micro]
        _, stats, _ = backward(one, tasks, batches, unclipped)
        flat = [p.new_zeros(p.shape) if p.grad is None else p.grad for p in parameters.values()]
        return torch.cat([part.flatten() for part in flat]), stats

    return of


def assert_same(found, wanted):
    assert float(wanted.norm()) > 0
    assert float((found - wanted).norm() / wanted.norm()) < 1e-5


def test_a_mixed_step_has_the_sum_of_the_tasks_own_gradients_by_their_part_of_the_groups_and_weight(gradient):
    mixed, _ = gradient(list(GROUPS.items()))
    own = {name: gradient([(name, groups)], {name: 1.0})[0] for name, groups in GROUPS.items()}
    assert_same(mixed, 0.6 * 1.0 * own["written"] + 0.4 * 3.0 * own["named"])


def test_how_a_mixed_step_is_split_changes_nothing(gradient):
    parts = [(name, groups[start : start + 2]) for start in (0, 2, 4) for name, groups in GROUPS.items()]
    assert_same(gradient([part for part in parts if part[1]])[0], gradient(list(GROUPS.items()))[0])


def test_each_task_has_figures_of_its_own(gradient):
    _, stats = gradient(list(GROUPS.items()))
    assert set(stats) == {"written/loss", "named/loss", "named/accuracy"}


def test_a_task_moves_its_own_labels_of_the_head_and_no_others(net):
    scores = torch.randn(4, 4, requires_grad=True)
    batch = pack(GROUPS["named"], row_tokens=64)
    loss = Sliced(make_objective("classify"), 2, 4).loss(Outputs(score=scores), batch).sum
    loss.backward()
    assert not scores.grad[:, :2].any()
    assert scores.grad[:, 2:].any()
    own = make_objective("classify").loss(Outputs(score=scores[:, 2:]), batch).sum
    assert float(loss.detach()) == pytest.approx(float(own.detach()))


def test_a_head_beside_the_vocabulary_s_leaves_what_is_written_as_it_was(net, make_model):
    batch = pack(GROUPS["written"], row_tokens=64)
    with torch.no_grad():
        both, plain = net()(batch, frozenset({"logp", "score"})), Net(make_model())(batch, frozenset({"logp"}))
    torch.testing.assert_close(both.logp, plain.logp)
    assert both.score.shape == (6, 4)


def test_rows_are_learnt_by_heart_without_a_smoothing_that_keeps_the_loss_up():
    smoothed = make_objective("classify", {"label_smoothing": 0.3, "focal_gamma": 1.0})
    assert by_heart(smoothed) == make_objective("classify", {"focal_gamma": 1.0})
    part = by_heart(Sliced(smoothed, 2, 5))
    assert (part.inner, part.start, part.stop) == (make_objective("classify", {"focal_gamma": 1.0}), 2, 5)
    assert by_heart(make_objective("regress")) == make_objective("regress")
