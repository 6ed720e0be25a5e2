from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch

from burnish.core import Loss, Seq, pack
from burnish.data.feed import Feed
from burnish.errors import RecipeError, TrainingError
from burnish.model.net import Net
from burnish.objectives import make_objective
from burnish.train.loop import backward, check_streams, fit
from burnish.train.optim import Optim

SFT = {"main": (make_objective("sft"), 1.0)}


@dataclass
class Watch:
    """Remembers each step, and says stop after `last`."""

    last: int | None = None
    seen: list = field(default_factory=list)

    def after(self, step):
        self.seen.append(step)
        return "enough" if step.number == self.last else None


@pytest.fixture
def net(make_model):
    return Net(make_model())


def groups_of(count, length=12):
    return [
        [
            Seq(
                [(7 * number + place) % 250 for place in range(length)],
                [0.0] * 4 + [1.0] * (length - 4),
                where=f"rows.jsonl:{number + 1}",
            )
        ]
        for number in range(count)
    ]


def make_feed(groups, batch_size=4, epochs=2):
    return Feed(groups, task="main", batch_size=batch_size, epochs=epochs, row_tokens=24, micro_tokens=24, seed=0)


def make_optim(net, rate=0.01, total=8, **settings):
    return Optim(dict(net.named_parameters()), learning_rate=rate, total=total, **settings)


def test_the_loss_falls(net):
    watch = Watch()
    fit(net, SFT, make_feed(groups_of(8), epochs=6), make_optim(net, total=12), [watch])
    assert watch.seen[-1].loss < 0.5 * watch.seen[0].loss


def test_a_step_tells_what_it_did(net):
    watch = Watch()
    reason = fit(net, SFT, make_feed(groups_of(8)), make_optim(net, total=4), [watch])
    first = watch.seen[0]
    assert (reason, [step.number for step in watch.seen], first.total) == ("end", [1, 2, 3, 4], 4)
    assert (first.tokens, first.trained, len(first.where)) == (4 * 12, 4 * 8, 4)
    assert first.loss == pytest.approx(first.stats["loss"])
    assert first.learning_rate == pytest.approx(0.01)


def test_a_hook_ends_the_training_and_says_why(net):
    watches = [Watch(last=2), Watch()]
    assert fit(net, SFT, make_feed(groups_of(8)), make_optim(net), watches) == "enough"
    assert [len(watch.seen) for watch in watches] == [2, 2]


def test_frozen_parameters_stay_as_they_are(net):
    frozen = dict(net.model.model.layers[0].named_parameters())
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    before = {name: parameter.clone() for name, parameter in frozen.items()}
    trained = {name: parameter for name, parameter in net.named_parameters() if parameter.requires_grad}
    fit(net, SFT, make_feed(groups_of(8)), Optim(trained, learning_rate=0.01, total=4), [])
    assert all(torch.equal(parameter, before[name]) for name, parameter in frozen.items())


def test_the_loss_of_a_step_is_the_mean_over_its_trained_tokens(net):
    batches = [
        pack(groups_of(5), row_tokens=24, task="main"),
        pack(groups_of(2, length=30), row_tokens=30, task="main"),
    ]
    with torch.no_grad():
        logp = torch.cat([net(batch, frozenset({"logp"})).logp[batch.weight != 0] for batch in batches])
    loss, stats, _ = backward(net, SFT, batches, make_optim(net))
    assert loss == pytest.approx(-float(logp.mean()), rel=1e-5)
    assert stats["loss"] == pytest.approx(loss, rel=1e-5)


def test_tasks_of_a_step_are_counted_apart_and_weighed_by_their_part_of_its_groups(net):
    batches = [pack(groups_of(5), row_tokens=24, task="one"), pack(groups_of(2, length=30), row_tokens=30, task="two")]
    tasks = {"one": (make_objective("sft"), 0.25), "two": (make_objective("sft"), 2.0)}
    alone = [
        backward(net, {batch.task: (make_objective("sft"), 1.0)}, [batch], make_optim(net))[0] for batch in batches
    ]
    wanted = 5 / 7 * 0.25 * alone[0] + 2 / 7 * 2.0 * alone[1]
    assert backward(net, tasks, batches, make_optim(net))[0] == pytest.approx(wanted, rel=1e-5)


class Poisoned:
    """An objective whose loss is not a number where a token is 249."""

    rows, needs, reads, atom = frozenset({"text"}), frozenset({"logp"}), frozenset(), "seq"

    def count(self, batch):
        return batch.weight.sum()

    def loss(self, outputs, batch):
        poison = torch.where((batch.ids == 249).any(), math.nan, 1.0)
        return Loss((outputs.logp * batch.weight).sum() * poison)


@pytest.fixture
def poisoned_groups():
    """Eight groups of which the fifth makes the loss NaN."""
    groups = groups_of(8)
    groups[4][0].ids[3] = 249
    return groups


def test_a_loss_that_is_no_number_stops_within_its_step_and_names_the_rows(net, poisoned_groups):
    watch = Watch()
    feed = Feed(poisoned_groups, task="main", batch_size=4, epochs=4, row_tokens=12, micro_tokens=12, seed=0)
    bad_step = next(
        number
        for number, micro in enumerate(list(feed), 1)
        if "rows.jsonl:5" in [place for batch in micro for place in batch.where]
    )
    feed.load_state_dict({"step": 0})
    with pytest.raises(TrainingError, match="nan") as caught:
        fit(net, {"main": (Poisoned(), 1.0)}, feed, make_optim(net), [watch])
    assert caught.value.where == f"step {bad_step}, rows rows.jsonl:5"
    assert len(watch.seen) == bad_step - 1


def test_weights_are_untouched_by_a_loss_that_is_no_number(net, poisoned_groups):
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    feed = make_feed(poisoned_groups, batch_size=8)
    with pytest.raises(TrainingError):
        fit(net, {"main": (Poisoned(), 1.0)}, feed, make_optim(net), [])
    assert all(torch.equal(parameter, before[name]) for name, parameter in net.named_parameters())


def test_a_weight_that_is_no_number_names_the_rows_of_the_step(net):
    with torch.no_grad():
        net.model.model.layers[1].mlp.up_proj.weight[0, 0] = math.nan
    with pytest.raises(TrainingError, match=r"rows\.jsonl:1.*and 1 more"):
        fit(net, SFT, make_feed(groups_of(9), batch_size=9), make_optim(net), [])


def test_a_gradient_that_is_no_number_is_caught_too(net):
    class Steep(Poisoned):
        def loss(self, outputs, batch):
            return Loss((outputs.logp * 0).sum().sqrt())  # the value is 0, its slope infinite times zero

    with pytest.raises(TrainingError, match="gradient's norm nan"):
        fit(net, {"main": (Steep(), 1.0)}, make_feed(groups_of(4)), make_optim(net), [])


def test_a_stream_that_the_feed_does_not_supply_is_named_before_step_0():
    class Reads(Poisoned):
        reads = frozenset({"ref_logp", "margin"})

    group = [Seq([1, 2], [0, 1], values={"margin": 1.0})]
    with pytest.raises(RecipeError, match="reads reads ref_logp; this feed supplies none"):
        check_streams({"main": (Reads(), 1.0)}, [pack([group], row_tokens=4, task="main")])


def test_streams_that_are_there_pass():
    check_streams(SFT, [pack(groups_of(2), row_tokens=24, task="main")])
