"""Rows: what every kind of them offers to whoever comes after reading."""

from __future__ import annotations

import dataclasses

import pytest
from reading import again

from burnish.data.rows import Conversation, Judged, Labelled, Pair, Prompt, Ranking, Row, Tagged, Text, Turn

HERE = {"file": "rows.jsonl", "line": 7, "extra": {"customer": "c1", "tags": ["a", {"b": None}]}}
SYSTEM, ASKED, SAID = Turn("system", "Be brief."), Turn("user", "A colour?"), Turn("assistant", "Blue.")
OTHER = Turn("assistant", "Dog.")

ROWS: list[tuple[Row, str, str]] = [  # row, prompt, answer
    (Conversation(**HERE, turns=(SYSTEM, ASKED, SAID)), "A colour?", "Blue."),
    (Text(**HERE, text="Blue is a colour."), "Blue is a colour.", ""),
    (Prompt(**HERE, turns=(ASKED,)), "A colour?", ""),
    (Labelled(**HERE, turns=(ASKED,), label="question"), "A colour?", "question"),
    (Labelled(**HERE, turns=(ASKED,), label=3), "A colour?", "3"),
    (Labelled(**HERE, turns=(ASKED,), label=3.0), "A colour?", "3.0"),
    (Labelled(**HERE, turns=(ASKED,), label=("question", "brief")), "A colour?", "question, brief"),
    (Tagged(file="rows.jsonl", line=7, words=("Blue",), tags=("B-COL",)), "Blue", "B-COL"),
    (Pair(**HERE, prompt=(ASKED,), chosen=(SAID,), rejected=(OTHER,), margin=0.5), "A colour?", "Blue."),
    (Judged(**HERE, prompt=(ASKED,), completion=(OTHER,), good=False), "A colour?", "Dog."),
    (Ranking(**HERE, prompt=(ASKED,), answers=((OTHER,), (SAID,)), grades=(-1.0, 2.5)), "A colour?", "Blue."),
]
IDS = [f"{row.kind}-{index}" for index, (row, _, _) in enumerate(ROWS)]


def test_every_kind_of_row_is_among_the_examples():
    assert {row.kind for row, _, _ in ROWS} == {kind.kind for kind in Row.__subclasses__()}


@pytest.mark.parametrize("row", [row for row, _, _ in ROWS], ids=IDS)
def test_a_written_row_reads_back_equal(row: Row):
    back = again(row)
    assert back == row
    assert type(getattr(back, "label", None)) is type(getattr(row, "label", None))  # since 3 == 3.0


@pytest.mark.parametrize(("row", "prompt", "answer"), ROWS, ids=IDS)
def test_prompt_and_answer_are_plain_text(row: Row, prompt: str, answer: str):
    assert (row.prompt_text(), row.answer_text()) == (prompt, answer)


@pytest.mark.parametrize("row", [row for row, _, _ in ROWS], ids=IDS)
def test_a_row_is_a_value_that_nothing_changes(row: Row):
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.line = 8


@pytest.mark.parametrize("row", [row for row, _, _ in ROWS], ids=IDS)
def test_every_text_is_mapped_and_nothing_else(row: Row):
    seen: list[str] = []

    def mark(role: str, text: str) -> str:
        seen.append(text)
        return f"<{text}>"

    mapped = row.map_texts(mark)
    assert mapped.map_texts(lambda role, text: text[1:-1]) == row
    assert mapped.prompt_text().count("<") == row.prompt_text().count("\n") + 1
    assert len(seen) == str(mapped.as_json()).count("<")


def test_a_conversation_is_asked_by_all_that_comes_before_its_last_answer():
    row = Conversation(
        file="f", line=1, turns=(SYSTEM, ASKED, OTHER, Turn("user", "Really?"), SAID, Turn("user", "Oh."))
    )
    assert (row.prompt_text(), row.answer_text()) == ("A colour?\nDog.\nReally?", "Blue.")


def test_a_word_that_would_vanish_or_split_stays_since_it_has_a_tag():
    row = Tagged(file="f", line=1, words=("Blue", "<b>"), tags=("B-COL", "O"))
    assert row.map_texts(lambda role, text: text.replace("<b>", "").replace("Blue", "a b")) == row


def test_where_names_file_and_line():
    assert Text(file="rows.jsonl", line=7, text="a").where == "rows.jsonl:7"
