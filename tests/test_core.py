from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from burnish.core import GRAIN, Seq, by_sequence, pack

lengths_of_groups = st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=8)


def groups_of(lengths):
    """Groups of sequences of these lengths, each token and weight told apart by a running number."""
    number = iter(range(1, 10_000))
    groups = []
    for sizes in lengths:
        numbered = [[next(number) for _ in range(size)] for size in sizes]
        groups.append(
            [Seq(ids, [float(n) for n in ids], tokens={"stream": [-float(n) for n in ids]}) for ids in numbered]
        )
    return groups


@given(lengths_of_groups, st.integers(1, 30))
def test_packing_keeps_every_sequence_whole_and_in_order(lengths, row_tokens):
    groups = groups_of(lengths)
    batch = pack(groups, row_tokens=row_tokens)
    found = [batch.ids[batch.seq == number].tolist() for number in range(batch.sequences)]
    assert found == [seq.ids for group in groups for seq in group]


@given(lengths_of_groups, st.integers(1, 30))
def test_edges_keep_sequences_apart_and_cut_the_padding_no_longer_than_they_are(lengths, row_tokens):
    batch = pack(groups_of(lengths), row_tokens=row_tokens)
    flat, edges = batch.seq.flatten(), batch.edges.tolist()
    inside = sorted({*range(flat.numel())} - {*edges})
    assert all(flat[place] == flat[place - 1] for place in inside)
    assert (edges[0], edges[-1]) == (0, flat.numel())
    longest = max(map(max, lengths))
    assert batch.edges.diff().min() > 0
    assert batch.edges.diff().max() == longest
    assert longest <= batch.longest < max(2 * longest, 256)
    assert batch.longest >= 128


@given(lengths_of_groups, st.integers(1, 30))
def test_positions_restart_at_each_sequence_and_at_the_padding(lengths, row_tokens):
    batch = pack(groups_of(lengths), row_tokens=row_tokens)
    for row in range(batch.ids.shape[0]):
        for number in batch.seq[row].unique():
            mine = batch.pos[row][batch.seq[row] == number]
            assert mine.tolist() == list(range(len(mine)))


@given(lengths_of_groups, st.integers(1, 30))
def test_rows_are_no_longer_than_asked_unless_one_sequence_is(lengths, row_tokens):
    batch = pack(groups_of(lengths), row_tokens=row_tokens)
    assert (batch.seq >= 0).sum(1).max() <= max(row_tokens, max(max(sizes) for sizes in lengths))


@given(lengths_of_groups, st.integers(1, 200))
def test_a_row_is_filled_up_to_the_next_grain_and_no_further(lengths, row_tokens):
    batch = pack(groups_of(lengths), row_tokens=row_tokens)
    assert batch.ids.shape[1] % GRAIN == 0
    assert batch.ids.shape[1] - (batch.seq >= 0).sum(1).max() < GRAIN


@given(lengths_of_groups, st.integers(1, 30))
def test_streams_and_weights_lie_beside_their_tokens(lengths, row_tokens):
    batch = pack(groups_of(lengths), row_tokens=row_tokens)
    assert torch.equal(batch.tokens["stream"], -batch.ids.float())
    later = batch.pos > 0
    assert torch.equal(batch.weight[later], (batch.ids * (batch.seq >= 0)).float()[later])


@given(lengths_of_groups)
def test_a_first_token_is_never_trained(lengths):
    batch = pack(groups_of(lengths), row_tokens=16)
    assert batch.weight[batch.pos == 0].abs().sum() == 0


@given(lengths_of_groups)
def test_last_points_at_the_last_token_of_each_sequence(lengths):
    groups = groups_of(lengths)
    batch = pack(groups, row_tokens=16)
    assert batch.ids.flatten()[batch.last].tolist() == [seq.ids[-1] for group in groups for seq in group]


@given(lengths_of_groups)
def test_group_numbers_follow_the_groups(lengths):
    batch = pack(groups_of(lengths), row_tokens=16)
    assert batch.group.tolist() == [number for number, sizes in enumerate(lengths) for _ in sizes]
    assert batch.groups == len(lengths)


@given(lengths_of_groups)
def test_sums_by_sequence_leave_padding_out(lengths):
    groups = groups_of(lengths)
    batch = pack(groups, row_tokens=16)
    sums = by_sequence(torch.where(batch.seq < 0, 1e9, batch.ids.float()), batch)
    assert sums.tolist() == [sum(seq.ids) for group in groups for seq in group]


def test_values_and_places_stand_in_the_order_of_sequences():
    group = [
        Seq([1, 2], [0, 1], y=1.0, values={"margin": 0.5}, where="a:1"),
        Seq([3], [0], y=0.0, values={"margin": 2.0}, where="a:2"),
    ]
    batch = pack([group], row_tokens=8)
    assert (batch.y.tolist(), batch.values["margin"].tolist(), batch.where) == ([1.0, 0.0], [0.5, 2.0], ("a:1", "a:2"))


def test_trained_tokens_do_not_count_the_first():
    assert Seq([1, 2, 3, 4], [1, 0, 0.5, 1]).trained == 2
