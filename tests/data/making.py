"""What the tests of cleaning, comparing and splitting share: rows made from a few words, and rows at random."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from burnish.data.rows import Conversation, Judged, Labelled, Pair, Row, Text, Turn

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


def talk(
    prompt: str, answer: str = "Yes, that is so.", line: int = 1, *, file: str = "rows.jsonl", **extra: Any
) -> Row:
    return Conversation(file=file, line=line, extra=extra, turns=(Turn("user", prompt), Turn("assistant", answer)))


def labelled(text: str, label: Any, line: int = 1) -> Row:
    return Labelled(file="rows.csv", line=line, turns=(Turn("user", text),), label=label)


def pair(prompt: str, chosen: str, rejected: str) -> Row:
    sides = ((Turn("user", prompt),), (Turn("assistant", chosen),), (Turn("assistant", rejected),))
    return Pair(file="rows.jsonl", line=1, prompt=sides[0], chosen=sides[1], rejected=sides[2])


def shared_file(*parts: str) -> Path:
    """A file of the data that are shared beside the repository; the test is skipped where there is none."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is not there")
    return path


def sentence(words: int, seed: Any) -> str:
    """Words that nobody has said before."""
    draw = random.Random(f"sentence/{seed}")
    return " ".join("".join(draw.choices("abcdefghiklmnoprstuvw", k=draw.randint(3, 8))) for _ in range(words))


# Texts with all that has to be mended, glued together at random.
PIECES = [
    "Where is my order?",
    "caf\u00c3\u00a9",
    "\u00e2\u20ac\u0153quoted\u00e2\u20ac\u009d",
    "\u202e",
    "\u200b",
    "\u200d",
    "\U0001f468\u200d\U0001f469",
    "<p>",
    "</p>",
    "<br/>",
    "<b>bold</b>",
    "<<b>b>",
    "&amp;",
    "&lt;",
    "&amp;lt;p&gt;",
    "&#8203;",
    "&#195;&#169;",
    "<!-- -->",
    "<table>",
    "html",
    "\u00a0",
    " ",
    "\t",
    "\n",
    "\r\n",
    "\x0c",
    "\x00",
    "\u2028",
    "joe&#64;example.com",
    "joe@exam\u200bple.com",
    "4111 1111 1111 1111",
    "pwd: hunter22",
]
messy = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)
places = {"file": st.just("rows.jsonl"), "line": st.integers(1, 9)}
user, assistant = (st.tuples(st.builds(Turn, st.just(role), messy)) for role in ("user", "assistant"))
messy_rows = st.one_of(
    st.builds(Conversation, **places, turns=st.builds(lambda asked, said: asked + said, user, assistant)),
    st.builds(Text, **places, text=messy),
    st.builds(Labelled, **places, turns=user, label=st.sampled_from(["a", "b"])),
    st.builds(Pair, **places, prompt=user, chosen=assistant, rejected=assistant),
    st.builds(Judged, **places, prompt=user, completion=assistant, good=st.booleans()),
)
