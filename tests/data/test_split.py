"""Splits: what belongs together stays together, the shares are met; and the guard, which blocks or drops what leaks."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from making import labelled, sentence, shared_file, talk

from burnish.data.dedup import NEAR
from burnish.data.ledger import Ledger
from burnish.data.rows import Row
from burnish.data.similar import jaccard, normalise
from burnish.data.sources import read_rows
from burnish.data.split import Guarded, Splits, by_kind, guard, hash_rows, split_rows
from burnish.errors import DataGuardError, RecipeError

NAMES = ("train", "validation", "test")


def distinct(count: int, **extra: Any) -> list[Row]:
    return [talk(sentence(9, number), line=number, **extra) for number in range(count)]


def sizes(splits: Splits | Guarded) -> dict[str, int]:
    return {name: len(getattr(splits, name)) for name in NAMES}


def lines(rows: list[Row]) -> list[int]:
    return [row.line for row in rows]


def split_of(splits: Splits) -> dict[int, str]:
    """Line -> the split in which it is."""
    return {row.line: name for name in NAMES for row in getattr(splits, name)}


# ---------------------------------------------------------------- shares


@pytest.mark.parametrize(
    ("validation", "test", "expected"),
    [
        (0.1, 0.2, (70, 10, 20)),
        (0.125, 0.0, (88, 12, 0)),
        (7, 15, (78, 7, 15)),
        (0, 0, (100, 0, 0)),
        (1, 0.5, (49, 1, 50)),
    ],
)
def test_shares_and_numbers_of_rows_are_met(validation: float, test: float, expected: tuple[int, ...]):
    splits = split_rows(distinct(100), validation=validation, test=test)
    assert tuple(sizes(splits).values()) == expected


def test_each_row_is_in_one_split_in_the_order_of_the_file():
    splits = split_rows(distinct(50), validation=0.2, test=0.2)
    assert sorted(split_of(splits)) == list(range(50))
    assert all(lines(getattr(splits, name)) == sorted(lines(getattr(splits, name))) for name in NAMES)


def test_each_label_has_its_share_in_every_split():
    rows = [labelled(sentence(9, number), "abc"[number % 10 // 4], number) for number in range(200)]
    splits = split_rows(rows, validation=0.1, test=0.2, stratify=True)
    assert Counter(row.answer_text() for row in splits.test) == {"a": 16, "b": 16, "c": 8}
    assert Counter(row.answer_text() for row in splits.validation) == {"a": 8, "b": 8, "c": 4}


def test_many_small_labels_give_their_fractions_in_turn():
    rows = [labelled(sentence(9, number), number // 3, number) for number in range(120)]
    splits = split_rows(rows, validation=0.1, test=0.1, stratify=True)
    assert sizes(splits) == {"train": 96, "validation": 12, "test": 12}


def test_a_label_of_one_row_stays_in_train():
    rows = [labelled(sentence(9, number), "common", number) for number in range(30)]
    splits = split_rows([*rows, labelled("a rare one", "rare", 99)], validation=0.4, test=0.4, stratify=True)
    assert split_of(splits)[99] == "train"


def test_the_same_seed_gives_the_same_split():
    rows = distinct(40)
    assert split_rows(rows, validation=0.2, test=0.2, seed=3) == split_rows(rows, validation=0.2, test=0.2, seed=3)


def test_another_seed_gives_another_split():
    rows = distinct(40)
    assert split_rows(rows, validation=0.2, test=0.2, seed=3) != split_rows(rows, validation=0.2, test=0.2, seed=4)


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (6, 4), (0, 10), (-1, 0), (0.2, -0.2)])
def test_sizes_that_leave_no_row_to_train_on_are_refused(validation: float, test: float):
    with pytest.raises(RecipeError, match="10") as caught:
        split_rows(distinct(10), validation=validation, test=test)
    assert caught.value.hint


# ---------------------------------------------------------------- what stays together


def test_rows_of_a_group_stay_together():
    rows = [talk(sentence(9, number), line=number, customer=f"c{number // 4}") for number in range(60)]
    splits = split_rows(rows, validation=0.2, test=0.2, group_by="customer")
    groups = [{row.extra["customer"] for row in getattr(splits, name)} for name in NAMES]
    assert all(one.isdisjoint(other) for one, other in combinations(groups, 2))
    assert sizes(splits) == {"train": 36, "validation": 12, "test": 12}


def test_rows_without_a_group_are_told_apart():
    rows = distinct(20, customer="")
    assert sizes(split_rows(rows, validation=0.2, test=0.2, group_by="customer"))["test"] == 4


def test_a_missing_group_column_names_the_row_and_those_that_are_there():
    rows = [talk("one", line=1, customer="c1"), talk("two", line=2, client="c1"), talk("three", line=3, customer="c2")]
    with pytest.raises(RecipeError, match=r"rows\.jsonl:2 has no column 'customer'") as caught:
        split_rows(rows, validation=1, test=0, group_by="customer")
    assert "client" in caught.value.expected


def test_one_group_of_all_rows_cannot_be_split():
    with pytest.raises(RecipeError, match="20 of 20 rows belong together, by their customer"):
        split_rows(distinct(20, customer="c1"), validation=0.1, test=0.1, group_by="customer")


def test_rows_that_share_thirteen_words_stay_together():
    runs = [sentence(13, f"run {number}") for number in range(20)]
    rows = [
        talk(f"{sentence(15, number)} {runs[number % 20]} {sentence(15, -number)}", line=number) for number in range(60)
    ]
    splits = split_of(split_rows(rows, validation=0.2, test=0.2))
    assert all(splits[number] == splits[number % 20] for number in range(60))


variants = st.tuples(
    st.integers(0, 3), st.sets(st.integers(0, 11), max_size=4)
)  # a sentence, and which words are others


@settings(max_examples=60)
@given(drawn=st.lists(variants, min_size=6, max_size=30), seed=st.integers(0, 9))
def test_no_near_duplicate_straddles_a_split(drawn: list[tuple[int, set[int]]], seed: int):
    texts = [sentence(9, "one"), sentence(9, "two")]
    for number, (of, others) in enumerate(drawn):
        words = [f"w{number}" if place in others else word for place, word in enumerate(sentence(12, of).split())]
        texts.append(f"{number} {' '.join(words)} {number}")
    splits = split_of(split_rows([talk(text, line=n) for n, text in enumerate(texts)], validation=1, test=1, seed=seed))
    for one, other in combinations(range(len(texts)), 2):
        if splits[one] != splits[other]:
            assert jaccard(normalise(texts[one]), normalise(texts[other])) < NEAR


@settings(max_examples=60)
@given(groups=st.lists(st.integers(0, 6), min_size=4, max_size=40), seed=st.integers(0, 9))
def test_no_group_straddles_a_split(groups: list[int], seed: int):
    rows = [talk(sentence(9, number), line=number, group=group) for number, group in enumerate([*groups, 7, 8])]
    splits = split_of(split_rows(rows, validation=1, test=1, group_by="group", seed=seed))
    assert all(
        splits[one] == splits[other]
        for one, other in combinations(range(len(groups)), 2)
        if groups[one] == groups[other]
    )


def test_the_guard_finds_nothing_in_what_was_split():
    """A signature of 13 words that many rows share is boilerplate for both, however few of them are held out."""
    signature = sentence(13, "signature")
    rows = [
        talk(sentence(9, number) + (f" {signature}" if number % 10 == 0 else ""), line=number) for number in range(300)
    ]
    guarded = guard(split_rows(rows, validation=0.1, test=0.1), "block", Ledger())
    assert sizes(guarded) == {"train": 240, "validation": 30, "test": 30}


# ---------------------------------------------------------------- the guard


LEAKING = Splits(
    train=[talk("Where is my lamp?", line=1), talk("Who are you?", line=2), talk("It broke in two", line=3)],
    validation=[talk("where is my lamp", line=4), talk("How tall is the tower?", line=5)],
    test=[talk("It broke in two!", line=6), talk("How tall is the tower", line=7), talk("Goodbye then", line=8)],
)


def test_block_raises_with_the_rows_and_the_matches():
    with pytest.raises(DataGuardError, match="3 held-out rows also stand in train: 3 exact") as caught:
        guard(LEAKING, "block", Ledger())
    assert caught.value.exit_code == 1
    assert caught.value.rows == {"train": 3, "validation": 2, "test": 3}
    assert {(match.train.line, match.held_out.line) for match in caught.value.matches} == {(1, 4), (3, 6), (5, 7)}
    assert "guards.leakage.action=drop" in caught.value.hint


def test_block_shows_no_personal_data():
    both = [talk("Write to joe@example.com", line=number) for number in (1, 2)]
    with pytest.raises(DataGuardError) as caught:
        guard(Splits(both[:1], [], both[1:]), "block", Ledger())
    assert "joe" not in str(caught.value)


def test_drop_takes_the_copies_out_of_train_and_says_so():
    ledger = Ledger()
    guarded = guard(LEAKING, "drop", ledger)
    assert (lines(guarded.train), lines(guarded.validation)) == ([2], [4])
    assert guarded.test == LEAKING.test
    assert {(entry.line, entry.action, entry.reason) for entry in ledger.examples} == {
        (line, "dropped", "leak (exact)") for line in (1, 3, 5)
    }
    assert any("rows.jsonl:6: It broke in two!" in entry.after for entry in ledger.examples)


def test_after_a_drop_nothing_is_left_to_block():
    guarded = guard(LEAKING, "drop", Ledger())
    again = guard(Splits(guarded.train, guarded.validation, guarded.test), "block", Ledger())
    assert again.matches == []


def test_each_row_of_a_line_is_judged_by_itself():
    """A line may hold several rows, and one file may serve as train and validation."""
    train = [talk("Where is my lamp?", line=1), talk("Who are you?", line=1)]
    guarded = guard(Splits(train, [talk("where is my lamp", line=1)], [talk("Goodbye then")]), "drop", Ledger())
    assert (guarded.train, len(guarded.validation)) == (train[1:], 1)


def test_rows_that_are_only_alike_are_told_and_kept():
    splits = Splits(
        [talk("I would like to know where my lamp is")], [], [talk("I would like to know where my son went")]
    )
    guarded = guard(splits, "block", Ledger())
    assert [match.kind for match in guarded.matches] == ["near"]
    assert sizes(guarded) == {"train": 1, "validation": 0, "test": 1}


def test_what_was_guarded_is_restored():
    guarded = guard(LEAKING, "drop", Ledger())
    rows = {name: getattr(guarded, name) for name in NAMES}
    assert Guarded.restored(rows, [match.as_json() for match in guarded.matches]) == guarded


def test_the_hash_of_rows_is_that_of_what_they_say():
    assert hash_rows([talk("a", line=1)]) == hash_rows([talk("a", line=2, file="other.jsonl")])
    assert hash_rows([talk("a")]) != hash_rows([talk("b")])


@pytest.mark.real_data
def test_banking77_as_it_is_is_blocked_for_its_25_equal_rows():
    train, test = (
        list(read_rows(shared_file("banking77", f"{name}.csv"), Ledger(), columns={"label": "category"}))
        for name in ("train", "test")
    )
    with pytest.raises(DataGuardError, match="held-out rows also stand in train: 25 exact") as caught:
        guard(Splits(train, [], test), "block", Ledger())
    assert by_kind(caught.value.matches).startswith("25 exact")
