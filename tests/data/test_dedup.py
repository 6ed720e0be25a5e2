"""Rows that are there twice, labels that contradict each other, and what stands on both sides of a split."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import ROOT, labelled, sentence, shared_file, talk

from burnish.data.check import check
from burnish.data.dedup import LIKE, NEAR, Match, drop_duplicates, find_matches
from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Row
from burnish.data.similar import jaccard, normalise
from burnish.data.sources import read_rows

LONG = (
    "I ordered the blue lamp for my mother on Monday and it has not arrived in Leeds yet, could you look where it is?"
)
NEARLY = LONG.replace("Monday", "Tuesday")
ALIKE = LONG.replace("blue lamp for my mother", "green lamp for my garden")
FORM = "Read the customer's message below with care and name the one team that should answer it, with nothing else: "
TEAMS = ("billing", "delivery")


def deduplicate(*rows: Row, **options: Any) -> tuple[list[int], list[Entry]]:
    """The lines of the rows that are left."""
    ledger = Ledger()
    return [row.line for row in drop_duplicates(rows, ledger, **options)], ledger.examples


def kinds(train: list[Row], held_out: list[Row]) -> list[str]:
    return [match.kind for match in find_matches(train, held_out)]


# ---------------------------------------------------------------- duplicates


def test_an_equal_row_is_dropped_and_the_ledger_names_the_one_that_stays():
    lines, entries = deduplicate(talk("Where is it?", line=1), talk("where is it", line=2))
    assert lines == [1]
    assert [(entry.line, entry.action, entry.reason) for entry in entries] == [(2, "dropped", "exact duplicate")]
    assert entries[0].before == "where is it"
    assert "rows.jsonl:1 stays" in entries[0].after


def test_a_near_row_with_an_equal_answer_is_dropped():
    assert jaccard(normalise(LONG), normalise(NEARLY)) >= NEAR
    lines, entries = deduplicate(talk(LONG, line=1), talk(NEARLY, line=2))
    assert lines == [1]
    assert entries[0].reason == "near-duplicate"


def test_a_row_that_is_only_alike_is_kept():
    assert LIKE < jaccard(normalise(LONG), normalise(ALIKE)) < NEAR
    assert deduplicate(talk(LONG, line=1), talk(ALIKE, line=2)) == ([1, 2], [])


def test_near_rows_are_kept_where_only_equal_ones_are_to_go():
    assert deduplicate(talk(LONG, line=1), talk(NEARLY, line=2), talk(LONG, line=3), near=1)[0] == [1, 2]


@pytest.mark.parametrize(
    ("one", "other"), [("billing", "delivery"), ('{"order": "A1"}', '{"order": "A2"}'), ("12", "13")]
)
def test_near_rows_with_different_short_answers_are_kept(one: str, other: str):
    assert deduplicate(talk(LONG, one, 1), talk(NEARLY, other, 2))[0] == [1, 2]


def test_near_rows_whose_long_answers_differ_are_kept():
    assert deduplicate(talk(LONG, sentence(20, 1), 1), talk(LONG, sentence(20, 2), 2))[0] == [1, 2]


def test_texts_of_which_one_repeats_the_other_are_no_exact_duplicates():
    _, entries = deduplicate(talk("ha " * 10, line=1), talk("ha " * 11, line=2))
    assert [entry.reason for entry in entries] == ["near-duplicate"]


def test_short_texts_under_one_long_instruction_are_no_duplicates():
    rows = [talk(f"{FORM}{sentence(4, number)}", TEAMS[number % 2], number) for number in range(30)]
    assert deduplicate(*rows) == (list(range(30)), [])


def test_near_rows_under_one_long_instruction_are_found():
    rows = [talk(f"{FORM}{sentence(20, number)}", "billing", number) for number in range(30)]
    near = talk(f"{FORM}{sentence(20, 3)} again", "billing", 99)
    assert deduplicate(*rows, near)[0] == list(range(30))


def test_one_text_under_two_instructions_is_two_rows():
    one, other = (sentence(14, name) for name in ("one", "other"))
    rows = [talk(f"{form} {sentence(4, n)}", "yes", n) for form in (one, other) for n in range(20)]
    assert len(deduplicate(*rows)[0]) == 40


def test_the_support_tickets_of_the_examples_hold_no_duplicate():
    found = check(ROOT / "examples" / "support" / "tickets.jsonl")
    assert (found.rows, found.duplicates) == (340, 0)


def test_the_ledger_hides_what_is_private_in_duplicates_and_conflicts():
    text = "Write to joe.bloggs@example.com about it"
    rows = [talk(text, "yes", 1), talk(text, "yes", 2), *(talk(f"Question {n}", "yes", n) for n in range(10))]
    _, entries = deduplicate(*rows, talk(text, "no", 99))
    assert {entry.reason for entry in entries} == {"exact duplicate", "conflicting labels"}
    assert not any("bloggs" in entry.before + entry.after for entry in entries)


@given(st.lists(st.tuples(st.sampled_from(["a", "b", LONG, NEARLY]), st.sampled_from(["yes", "no"])), max_size=8))
def test_rows_in_are_rows_out_and_entries(said: list[tuple[str, str]]):
    lines, entries = deduplicate(*(talk(*both, number) for number, both in enumerate(said)))
    dropped = [entry.line for entry in entries if entry.action == "dropped"]
    assert sorted(lines + dropped) == list(range(len(said)))


# ---------------------------------------------------------------- conflicting labels


def test_labels_that_contradict_each_other_are_noted_both_and_kept():
    rows = [labelled(f"question {number}", "yes", number) for number in range(8)]
    lines, entries = deduplicate(*rows, labelled("Is it?", "yes", 20), labelled("is it", "no", 21))
    assert lines == [*range(8), 20, 21]
    assert [(entry.line, entry.action, entry.reason) for entry in entries] == [
        (20, "noted", "conflicting labels"),
        (21, "noted", "conflicting labels"),
    ]


def test_different_answers_in_sentences_are_no_conflict():
    rows = [talk("Tell me a joke", sentence(9, number), number) for number in range(10)]
    assert deduplicate(*rows) == (list(range(10)), [])


def test_different_grades_of_one_text_are_no_conflict():
    assert deduplicate(labelled("a film", 0.5, 1), labelled("a film", 0.7, 2)) == ([1, 2], [])


# ---------------------------------------------------------------- matches between splits


RUN = sentence(13, "run")


@pytest.mark.parametrize(
    ("train", "held_out", "kind"),
    [
        ("Where is it?", "where is it", ["exact"]),
        (f"{RUN} {sentence(20, 1)}", f"{sentence(20, 2)} {RUN}", ["13-gram"]),
        ("Where is the blue lamp?", "Where is the blue lamp now?", ["minhash"]),
        ("I would like to know where my lamp is", "I would like to know where my son went", ["near"]),
        ("Where is it?", "Who are you?", []),
    ],
)
def test_the_kinds_of_a_match(train: str, held_out: str, kind: list[str]):
    assert kinds([talk(train)], [talk(held_out)]) == kind


def test_a_match_does_not_look_at_the_answer():
    assert kinds([talk("Where is it?", "Here")], [talk("Where is it?", "There")]) == ["exact"]


def test_each_copy_in_train_and_each_copy_held_out_is_matched():
    matches = find_matches([talk("a b c", line=n) for n in (1, 2)], [talk("a b c", line=n) for n in (3, 4)])
    assert {match.train.line for match in matches} == {1, 2}
    assert {match.held_out.line for match in matches} == {3, 4}


def test_short_texts_under_one_long_instruction_do_not_match():
    rows = [talk(f"{FORM}{sentence(4, number)}", "billing", number) for number in range(30)]
    assert kinds(rows[:20], rows[20:]) == []


def test_an_instruction_and_a_word_are_no_thirteen_words_in_common():
    form = sentence(12, "form")
    rows = [talk(f"{form} {('please', 'when', 'my')[number % 3]} {sentence(9, number)}") for number in range(12)]
    assert kinds(rows[:6], rows[6:]) == []


def test_a_leak_under_one_long_instruction_is_found():
    rows = [talk(f"{FORM}{sentence(9, number)}") for number in range(30)]
    assert kinds(rows[:20], [*rows[20:], rows[3]]) == ["exact"]


def test_a_match_is_restored_from_what_was_written():
    (match,) = find_matches([talk("Where is it?", line=1, customer="c1")], [talk("Where is it?", line=2)])
    assert Match.restored(json.loads(json.dumps(match.as_json()))) == match


@pytest.mark.real_data
def test_banking77_has_25_test_texts_that_stand_in_its_train_file():
    train, test = (
        list(read_rows(shared_file("banking77", f"{name}.csv"), Ledger(), columns={"label": "category"}))
        for name in ("train", "test")
    )
    assert (len(train), len(test)) == (10003, 3080)
    exact = [match for match in find_matches(train, test) if match.kind == "exact"]
    assert len({match.held_out.line for match in exact}) == 25
