"""Examples in the prompt: how many fit, in which balance, and what is asked."""

from __future__ import annotations

from collections import Counter

import pytest

from burnish.data.render import Chat
from burnish.data.rows import Labelled, Turn
from burnish.few_shot.shots import choose_shots, with_shots


@pytest.fixture
def chat(tokenizer):
    return Chat(tokenizer, system="Say the colour.", max_length=4096)


def rows_of(count=8, labels=("red", "green", "blue")):
    return [
        Labelled(file="a", line=n, turns=(Turn("user", f"text number {n}"),), label=labels[n % len(labels)])
        for n in range(count * len(labels))
    ]


def labels_of(shots):
    return dict(Counter(row.label for row in shots.rows))


def test_all_examples_stand_there_where_there_is_room(chat):
    shots = choose_shots(rows_of(), 4, 0, chat, 10_000, by_label=True)
    assert labels_of(shots) == {"red": 4, "green": 4, "blue": 4}
    assert shots.note == ""


def test_what_does_not_fit_is_left_out_in_whole_rounds(chat):
    full = choose_shots(rows_of(), 4, 0, chat, 10_000, by_label=True)
    shots = choose_shots(rows_of(), 4, 0, chat, 400, by_label=True)
    each = len(shots.rows) // 3
    assert 0 < each < 4
    assert labels_of(shots) == {"red": each, "green": each, "blue": each}
    assert shots.rows == full.rows[: len(shots.rows)]
    assert shots.note == f"{len(shots.rows)} of 12 examples fit into the prompt, {each} of each class"


def test_where_no_round_fits_some_classes_have_one(chat):
    shots = choose_shots(rows_of(), 4, 0, chat, 100, by_label=True)
    assert 0 < len(shots.rows) < 3
    assert f"one of each of {len(shots.rows)} of 3 classes" in shots.note


def test_no_room_is_no_example(chat):
    assert choose_shots(rows_of(), 4, 0, chat, 5, by_label=True).note == "0 of 12 examples fit into the prompt"


def test_a_small_draw_is_the_beginning_of_a_larger_one(chat):
    few, many = (choose_shots(rows_of(), k, 3, chat, 10_000, by_label=True).rows for k in (2, 4))
    assert many[: len(few)] == few


def test_the_prompt_with_its_shots_is_as_long_as_was_reckoned(chat):
    rows, room = rows_of(), 900
    shots = choose_shots(rows[:-1], 8, 0, chat, room, by_label=True)
    bare, whole = (len(chat.prompt(with_shots(rows[-1], chosen).turns[:-1])) for chosen in ([], shots.rows))
    assert 0 < whole - bare <= room


def test_only_the_last_answer_is_weighed(chat):
    rows = rows_of()
    conversation = with_shots(rows[0], rows[1:4])
    [seq] = chat.render(conversation)
    assert chat.show(seq).count("⟪") == 1
    assert chat.show(seq).endswith("⟪red<|im_end|>⟫\n")
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * 4
