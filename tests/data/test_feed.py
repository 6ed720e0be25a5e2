from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.core import Seq
from burnish.data.feed import Feed, micro_batches, steps_per_epoch, total_steps


def make_feed(count=23, **changes):
    groups = [
        [Seq([number] * (1 + number % 7), [1.0] * (1 + number % 7), where=f"rows.jsonl:{number}")]
        for number in range(count)
    ]
    settings = {"batch_size": 4, "epochs": 3, "row_tokens": 16, "micro_tokens": 8, "seed": 0} | changes
    return Feed(groups, task="main", **settings)


def places(micro):
    return [place for batch in micro for place in batch.where]


def test_an_epoch_meets_each_group_once():
    feed = make_feed()
    steps = [places(micro) for micro in feed]
    for epoch in range(3):
        mine = steps[epoch * feed.steps_per_epoch : (epoch + 1) * feed.steps_per_epoch]
        assert Counter(place for step in mine for place in step) == Counter(f"rows.jsonl:{n}" for n in range(23))


def test_epochs_differ_in_order():
    feed = make_feed(epochs=2)
    steps = [places(micro) for micro in feed]
    assert steps[: feed.steps_per_epoch] != steps[feed.steps_per_epoch :]


def test_the_same_seed_gives_the_same_steps_and_another_does_not():
    first, again, other = ([places(micro) for micro in make_feed(seed=seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


@given(st.integers(1, 60), st.integers(1, 20), st.floats(0.1, 4))
def test_steps_of_an_epoch_differ_by_at_most_one_group(count, batch_size, epochs):
    feed = make_feed(count, batch_size=batch_size, epochs=epochs)
    sizes = [len(places(micro)) for micro in feed]
    assert len(sizes) == feed.total_steps
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes[: feed.steps_per_epoch]) <= count


@pytest.mark.parametrize("done", [0, 1, 7, 16, 17])
def test_a_feed_that_is_taken_up_goes_on_with_the_very_same_batches(done):
    whole = list(make_feed())
    stopped = make_feed()
    for _, _ in zip(range(done), stopped, strict=False):
        pass
    resumed = make_feed()
    resumed.load_state_dict({"step": done})
    rest = list(resumed)
    assert [places(micro) for micro in rest] == [places(micro) for micro in whole[done:]]
    assert all(
        torch.equal(a.ids, b.ids) for x, y in zip(rest, whole[done:], strict=True) for a, b in zip(x, y, strict=True)
    )


def test_the_state_tells_how_many_steps_were_given():
    feed = make_feed()
    steps = iter(feed)
    next(steps), next(steps)
    assert feed.state_dict() == {"step": 2}


def test_micro_batches_bound_memory_and_lose_nothing():
    feed = make_feed(batch_size=23, epochs=1)
    (micro,) = list(feed)
    assert len(micro) > 1
    assert all(batch.real_tokens <= 8 for batch in micro)
    assert len(places(micro)) == 23


def test_a_group_is_never_split_over_micro_batches():
    pairs = [[Seq([1] * 6, [1.0] * 6), Seq([2] * 6, [1.0] * 6)] for _ in range(3)]
    assert [batch.groups for batch in micro_batches(pairs, "main", row_tokens=8, micro_tokens=8)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("groups", "batch_size", "epochs", "most", "steps"),
    [(100, 8, 3, None, 36), (100, 8, 3, 10, 10), (3, 8, 1, None, 1), (100, 8, 0.5, None, 6)],
)
def test_steps_follow_from_rows_batch_and_epochs(groups, batch_size, epochs, most, steps):
    assert total_steps(groups, batch_size, epochs, most) == steps


def test_a_batch_larger_than_the_data_is_one_step():
    assert steps_per_epoch(5, 64) == 1


def test_a_step_can_be_cut_anew_with_the_same_rows_in_the_same_order():
    feed = make_feed(micro_tokens=64)
    for micro in feed:
        feed.micro_tokens = 8
        smaller = feed.again()
        assert places(smaller) == places(micro)
        assert max(batch.real_tokens for batch in smaller) <= 8
        feed.micro_tokens = 64
    assert feed.step == feed.total_steps


def test_the_hardest_micro_batch_is_the_largest_of_the_run():
    feed = make_feed()
    largest = max(batch.ids.numel() for micro in feed for batch in micro)
    assert [batch.ids.numel() for batch in feed.hardest()] == [largest, largest]  # its step has another beside it
    assert feed.largest_step() == max(sum(batch.real_tokens for batch in micro) for micro in make_feed())


def test_a_micro_batch_that_is_a_whole_step_is_hardest_alone():
    feed = make_feed(micro_tokens=1000)
    assert len(feed.hardest()) == 1
    assert feed.longest == 7


def test_a_smaller_micro_batch_holds_from_the_very_next_step_and_loses_no_group():
    feed, whole = make_feed(), [places(micro) for micro in make_feed()]
    seen = []
    for number, micro in enumerate(feed):
        if number > 2:
            assert max(int((batch.seq >= 0).sum()) for batch in micro) <= 7  # the longest group, which cannot be split
        if number == 2:
            feed.micro_tokens = 2
        seen.append(places(micro))
    assert seen == whole


def test_one_row_holds_a_whole_micro_batch():
    for micro in make_feed(row_tokens=None, micro_tokens=64):
        assert all(batch.ids.shape[0] == 1 for batch in micro)
