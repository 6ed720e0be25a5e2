from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burnish.core import Seq
from burnish.data.mixture import Mixture, deal, shares_of
from burnish.recipe import Mixing

SIZES = {"large": 30, "small": 6, "middle": 12}


def groups_of(name, count):
    """Groups of one sequence each, whose place says whose they are."""
    return [[Seq([1, 2, 3 + number % 5], [0, 1, 1], where=f"{name}:{number}")] for number in range(count)]


def make(shares=None, sizes=SIZES, **changes):
    settings = {"batch_size": 8, "epochs": 3, "row_tokens": 12, "micro_tokens": 12, "seed": 0} | changes
    shares = shares or {name: 1 / len(sizes) for name in sizes}
    return Mixture({name: groups_of(name, size) for name, size in sizes.items()}, shares, **settings)


def places(step):
    return [place for batch in step for place in batch.where]


def dealt(step):
    """Whose groups a step has, and how many of each."""
    owners = [place.split(":")[0] for place in places(step)]
    return {name: owners.count(name) for name in SIZES}


def test_a_batch_is_of_one_task_and_holds_its_groups_alone():
    for step in make():
        assert all(place.startswith(f"{batch.task}:") for batch in step for place in batch.where)


def test_each_step_has_groups_of_every_task_by_their_shares():
    steps = list(make({"large": 0.5, "small": 0.25, "middle": 0.25}))
    assert {tuple(dealt(step).values()) for step in steps} == {(4, 2, 2)}


def test_a_small_task_is_dealt_anew_once_all_of_it_was_seen():
    seen = [place for step in make() for place in places(step) if place.startswith("small")]
    first, second = seen[:6], seen[6:12]
    assert set(first) == set(second) == {f"small:{number}" for number in range(6)}
    assert first != second


def test_a_run_that_goes_on_has_the_batches_it_would_have_had_from_any_step():
    whole_run = [places(step) for step in make()]
    for step in range(len(whole_run)):
        feed = make()
        feed.load_state_dict({"step": step})
        assert [places(found) for found in feed] == whole_run[step:]
        assert feed.state_dict() == {"step": len(whole_run)}


def test_another_seed_is_another_order():
    first, second = (places(next(iter(make(seed=seed)))) for seed in (0, 1))
    assert first != second


def test_a_step_cut_finer_has_the_same_groups_in_the_same_order():
    feed = make(micro_tokens=3)
    assert [places(step) for step in feed] == [places(step) for step in make(micro_tokens=96)]
    assert len(feed.again()) > len(make(micro_tokens=96).hardest())


def test_the_hardest_batch_is_one_of_the_run_and_of_one_task():
    feed = make(micro_tokens=6)
    hardest = feed.hardest()[0]
    assert len({place.split(":")[0] for place in hardest.where}) == 1
    assert hardest.ids.numel() == max(batch.ids.numel() for step in make(micro_tokens=6) for batch in step)


def test_what_the_run_deals_is_said_before():
    feed = make({"large": 0.6, "small": 0.1, "middle": 0.3})
    seen = feed.seen()
    counted = [dealt(step) for step in feed]
    assert seen == {name: sum(step[name] for step in counted) for name in SIZES}
    assert sum(seen.values()) == 3 * sum(SIZES.values())


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=5), st.integers(1, 60))
def test_what_was_dealt_is_never_a_whole_group_from_the_shares(parts, count):
    shares = tuple(part / sum(parts) for part in parts)
    for number, counts in enumerate(deal(shares, tuple(range(count)))):
        assert sum(counts) == number
        assert all(abs(had - number * share) < 1 + 1e-6 for had, share in zip(counts, shares, strict=True))


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (Mixing(by="size"), (0.8, 0.2)),
        (Mixing(by="size", cap=100), (0.5, 0.5)),
        (Mixing(by="temperature", temperature=2), (2 / 3, 1 / 3)),
        (Mixing(by="temperature", temperature=1), (0.8, 0.2)),
        (Mixing(by="weights"), (0.5, 0.5)),
    ],
)
def test_shares_follow_the_mixing(mixing, expected):
    shares = shares_of({"a": 400, "b": 100}, {"a": 1.0, "b": 1.0}, mixing)
    assert tuple(shares.values()) == pytest.approx(expected)


def test_a_weight_is_times_the_share():
    shares = shares_of({"a": 400, "b": 100}, {"a": 1.0, "b": 4.0}, Mixing(by="size"))
    assert shares == pytest.approx({"a": 0.5, "b": 0.5})
