"""Cleaning: what is mended, what is left alone, what is dropped and noted; and that the ledger knows of all of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from making import labelled, messy_rows, pair, talk

from burnish.data.clean import SEEN, clean_rows
from burnish.data.ledger import EXCERPT, Entry, Ledger
from burnish.data.rows import Row

ENGLISH = "I ordered a lamp in blue last week and would like to know when it will arrive, please, since I am away from Friday."
GERMAN = "Ich habe letzte Woche eine blaue Lampe bestellt und wüsste gern, wann sie ankommt, weil ich ab Freitag nicht da bin."


def clean(*rows: Row, **options: Any) -> tuple[list[Row], list[Entry]]:
    ledger = Ledger()
    cleaned = list(clean_rows(rows, ledger, **options))
    return cleaned, ledger.examples


def mended(text: str) -> str:
    """What becomes of a prompt."""
    (row,), _ = clean(talk(text))
    return row.prompt_text()


def reasons(entries: list[Entry], action: str) -> list[str]:
    return [entry.reason for entry in entries if entry.action == action]


# ---------------------------------------------------------------- what is mended


def test_mojibake_is_mended_with_before_and_after_in_the_ledger():
    (row,), entries = clean(talk("Is the caf\u00c3\u00a9 open?", line=7))
    assert row.prompt_text() == "Is the café open?"
    assert [(entry.line, entry.action, entry.reason, entry.before, entry.after) for entry in entries] == [
        (7, "changed", "mojibake", "Is the caf\u00c3\u00a9 open?", "Is the café open?")
    ]


@pytest.mark.parametrize("sign", ["\x00", "\x1b", "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff", "\xad", "\U000e0041"])
def test_control_bidi_and_zero_width_characters_are_removed(sign: str):
    (row,), entries = clean(talk(f"or{sign}der"))
    assert row.prompt_text() == "order"
    assert reasons(entries, "changed") == ["control or bidi characters"]


@pytest.mark.parametrize(
    "text",
    [
        "\U0001f468\u200d\U0001f469\u200d\U0001f467 at home",
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",
        "\u0915\u094d\u200d\u0937",
        "\u05e9\u05dc\u05d5\u05dd\u200f!",
        "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
        "naïve — “quoted” … ½ €",
    ],
    ids=["family", "persian", "devanagari", "hebrew mark", "flag of Scotland", "typography"],
)
def test_what_scripts_and_emoji_need_stays(text: str):
    assert mended(text) == text


def test_a_joiner_between_plain_letters_is_removed():
    assert mended("pass\u200dword") == "password"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("<p>Where is my <b>order</b>?</p>", "Where is my order?"),
        ("Hi,<br/>it broke.<br><br>Ann", "Hi,\nit broke.\n\nAnn"),
        ("Hello<p>How are you", "Hello\nHow are you"),
        ('See <a href="https://x.example/a">this page</a> first', "See this page first"),
        ("<!-- banner --><style>p {color: red;}</style>It broke", "It broke"),
        ("Salt &amp; pepper, 3 &lt; 4, &pound;5&nbsp;each", "Salt & pepper, 3 < 4, £5 each"),
        ("&lt;p&gt;It broke again&lt;/p&gt;", "It broke again"),
    ],
)
def test_residue_of_markup_is_stripped(text: str, plain: str):
    assert mended(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "How do I make a word bold in HTML, with <b>word</b>?",
        "What does the tag <br> do?",
        "```\n<p>one</p>\n```",
        "<table><tr><td>1</td><td>2</td></tr></table>",
        'const a = () => <div className="x">hi</div>;',
        "vector<a> x = f<b>(y);",
        "if a <b and c> d, stop",
        "Summarise. <article>It rained.</article> <input>x</input>",
        "It is 10<sup>6</sup> m",
        "Tom & Jerry, R&D, a < b > c, <3",
        "<br>",
        "<|im_end|> and <think>x</think>",
    ],
)
def test_text_about_markup_and_code_is_left_alone(text: str):
    _, entries = clean(talk(text))
    assert reasons(entries, "changed") == []


def test_an_answer_in_markup_stays_where_the_prompt_asks_for_it():
    (row,), _ = clean(talk("Write it as HTML: hello", "<p>hello</p>"))
    assert row.answer_text() == "<p>hello</p>"


def test_white_space_is_evened_out_and_indents_stay():
    text = "\ufeff  def f(x):\r\n    return\u00a0x  \r\n\n\n\n\n\x0cend\u3000of it\t\n"
    assert mended(text) == "def f(x):\n    return x\n\n\nend of it"


# ---------------------------------------------------------------- what is dropped


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (talk("Why?", " \u200b "), "the answer is empty"),
        (talk("\x00\n", "Yes."), "the prompt is empty"),
        (labelled("\ufeff", "a"), "the prompt is empty"),
        (pair("Why?", "So.", ""), "the answer is empty"),
        (pair("Why?", "It is caf\u00c3\u00a9 ", "It is café"), "chosen and rejected are the same"),
    ],
)
def test_what_says_nothing_after_cleaning_is_dropped(row: Row, reason: str):
    rows, entries = clean(row)
    assert rows == []
    assert reasons(entries, "dropped") == [reason]


def test_chosen_and_rejected_that_differ_are_kept():
    rows, _ = clean(pair("Why?", "So.", "So?"))
    assert len(rows) == 1


# ---------------------------------------------------------------- what is noted


def test_special_tokens_in_a_text_are_noted_and_left():
    (row,), entries = clean(talk("Ignore it.<|im_end|>"), special_tokens=["<|im_end|>", "</s>"])
    assert reasons(entries, "noted") == ["special tokens in the text"]
    assert "<|im_end|>" in row.prompt_text()


@pytest.mark.parametrize(
    "answer", ["N/A", "TODO", "...", "Lorem ipsum dolor sit amet", "[your answer here]", "null", "???"]
)
def test_placeholder_answers_are_noted(answer: str):
    _, entries = clean(talk("Why?", answer))
    assert reasons(entries, "noted") == ["a placeholder for an answer"]


@pytest.mark.parametrize("answer", ["None of them fits.", "No", "-1", "todo list", "42"])
def test_short_answers_are_no_placeholders(answer: str):
    _, entries = clean(talk("Why?", answer))
    assert entries == []


def test_a_label_is_no_placeholder():
    _, entries = clean(labelled("It broke", "none"))
    assert entries == []


@pytest.mark.parametrize("place", [0, 7, SEEN + 5])
def test_the_only_row_in_another_language_is_noted_wherever_it_stands(place: int):
    rows = [talk(f"{ENGLISH} It has the number {number}.", line=number + 1) for number in range(SEEN + 5)]
    rows.insert(place, talk(GERMAN, line=99))
    kept, entries = clean(*rows)
    assert len(kept) == len(rows)
    assert [(entry.line, entry.reason) for entry in entries] == [(99, "another language (de) than most rows (en)")]


def test_an_answer_in_another_language_is_noted():
    rows = [talk(f"What about {number}?", ENGLISH, line=number) for number in range(SEEN)]
    _, entries = clean(*rows, talk("And now?", GERMAN, line=99))
    assert [(entry.line, entry.reason) for entry in entries] == [(99, "another language (de) than most answers (en)")]


def test_two_languages_that_share_a_file_are_not_noted():
    _, entries = clean(*(talk(text) for text in [ENGLISH, GERMAN] * SEEN))
    assert entries == []


def test_json_and_code_have_no_language():
    _, entries = clean(
        *(talk(ENGLISH, '{"category": "billing", "product": "plus", "urgency": "high", "order": null}'),) * SEEN,
        talk(ENGLISH, '{"kategorie": "rechnung", "produkt": "lampe", "dringend": "ja", "bestellung": null}'),
    )
    assert entries == []


# ---------------------------------------------------------------- secrets and personal data


def test_personal_data_are_noted_and_left():
    (row,), entries = clean(talk("Write to joe@example.com"))
    assert [(entry.reason, entry.before) for entry in entries] == [("personal data: e-mail", "Write to [e-mail]")]
    assert row.prompt_text() == "Write to joe@example.com"


def test_redact_replaces_personal_data_and_says_so():
    (row,), entries = clean(talk("Write to joe@example.com", "I wrote to joe@example.com."), redact=True)
    assert (row.prompt_text(), row.answer_text()) == ("Write to [e-mail]", "I wrote to [e-mail].")
    assert [(entry.action, entry.reason) for entry in entries] == [("changed", "redacted personal data: e-mail")] * 2


@pytest.mark.parametrize("obfuscated", ["joe&#64;example.com", "joe@exam\u200bple.com", "jo\u00ade@example.com"])
def test_what_only_mending_brings_to_light_is_not_shown_either(obfuscated: str):
    _, entries = clean(talk(f"Write to {obfuscated}"))
    assert reasons(entries, "noted") == ["personal data: e-mail"]
    assert not any("joe" in text or "example.com" in text for entry in entries for text in (entry.before, entry.after))


SECRETS = st.sampled_from(
    [
        "joe.bloggs@mail.example.com",
        "4111 1111 1111 1111",
        "AKIAIOSFODNN7EXAMPLE",
        "sk-abcdEFGH1234ijklMNOP5678qrst",
        "+44 20 7946 0958",
    ]
)


@given(before=st.text(max_size=12), secret=SECRETS, after=st.text(max_size=12), redact=st.booleans())
def test_a_secret_is_never_shown_by_the_ledger(before: str, secret: str, after: str, redact: bool):
    text = f"{before} {secret} {after}"
    _, entries = clean(talk(text, text), redact=redact)
    assert not any(
        secret in field for entry in entries for field in (entry.reason, entry.before, entry.after, entry.fix)
    )


# ---------------------------------------------------------------- the ledger


def test_the_ledger_shows_a_long_text_where_it_changed():
    _, entries = clean(talk("word " * EXCERPT + "caf\u00c3\u00a9"))
    assert entries[0].before[:EXCERPT].endswith("caf\u00c3\u00a9")
    assert entries[0].after[:EXCERPT].endswith("café")


@given(rows=st.lists(messy_rows, max_size=3), redact=st.booleans())
def test_no_row_is_lost_without_an_entry(rows: list[Row], redact: bool):
    ledger = Ledger()
    assert len(list(clean_rows(rows, ledger, redact=redact))) + ledger.gone == len(rows)


@given(row=messy_rows, redact=st.booleans())
def test_a_text_changes_if_and_only_if_the_ledger_says_so(row: Row, redact: bool):
    cleaned, entries = clean(row, redact=redact)
    if cleaned:
        assert (cleaned != [row]) == bool(reasons(entries, "changed"))


@given(row=messy_rows, redact=st.booleans())
def test_cleaning_again_changes_nothing(row: Row, redact: bool):
    once, _ = clean(row, redact=redact)
    twice, entries = clean(*once, redact=redact)
    assert twice == once
    assert Counter(reasons(entries, "changed") + reasons(entries, "dropped")) == {}
