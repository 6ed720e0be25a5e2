r"""Preference: two answers to one prompt, of which one was preferred.

    {"prompt": "Name a colour.", "chosen": "Blue.", "rejected": "Dog."}

The prompt may be a text, messages, Alpaca's `instruction` and `input`, or ShareGPT's `conversations`. It may also be missing: then `chosen`
and `rejected` are two whole conversations (messages, or text with "\n\nHuman: " and "\n\nAssistant: "), and what they share is the prompt.
`margin` says by how much the one is better.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape, number
from burnish.data.formats._turns import BESIDE_PROMPT, answer, ends_open, in_order, is_message, messages, prompt
from burnish.data.rows import Pair, Role, Row, Turn, Turns

NAME = "preference"
PROMPTS = ("prompt", "instruction", "question", "query", "input", "conversations")
SHAPES = (Shape(40, (("chosen",), ("rejected",)), (*PROMPTS, *BESIDE_PROMPT, "margin")),)

SPOKEN = re.compile(r"\n\n(Human|Assistant):[ ]?")
SPEAKERS: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}


def read(record: Mapping[str, Any], place: Place) -> Row:
    stated, used = _stated(record, place)
    chosen, rejected = (_side(record[key], key, place) for key in ("chosen", "rejected"))
    return pair(record, stated, chosen, rejected, (*used, "chosen", "rejected"), place)


def pair(
    record: Mapping[str, Any], stated: Turns, chosen: Turns, rejected: Turns, used: tuple[str, ...], place: Place
) -> Pair:
    """The pair, after its prompt has been found and both answers have been checked.

    stated: the prompt that stands in a column of its own, or nothing. Raises RowError where the two answers have two prompts,
    are the same, or are blank.
    """
    if chosen and rejected and chosen[0].role != "assistant":
        stated, chosen, rejected = _split(stated, chosen, rejected, place)
    for key, side in (("chosen", chosen), ("rejected", rejected)):
        if not side or side[0].role != "assistant":
            found = [turn.as_json() for turn in side]
            raise place.error("a pair with two different prompts", key, found, "two answers to one prompt")
    if not stated:
        hint = "columns: {prompt: YOUR_COLUMN}"
        raise place.error(
            "a pair without a prompt", "chosen", chosen[0].content, "the prompt in a column `prompt`", hint
        )
    ends_open(stated, "prompt", place)
    in_order(stated + chosen, "chosen", place)
    in_order(stated + rejected, "rejected", place)
    if _spoken(chosen) == _spoken(rejected):
        raise place.error("chosen and rejected are the same", "chosen", chosen[0].content, "two different answers")
    margin = None if record.get("margin") is None else number(record["margin"], "margin", place)
    extra = place.rest(record, *used, "margin")
    return Pair(
        file=place.file, line=place.line, extra=extra, prompt=stated, chosen=chosen, rejected=rejected, margin=margin
    )


def _stated(record: Mapping[str, Any], place: Place) -> tuple[Turns, tuple[str, ...]]:
    """The prompt of a column of its own, and the columns that it was read from."""
    if not any(key in record for key in PROMPTS):
        return (), ()
    turns, used = prompt(record, place, PROMPTS)
    if len(turns) == 1 and turns[0].content.startswith("\n\nHuman:"):
        turns = _dialogue(turns[0].content)
        turns = turns[:-1] if not turns[-1].content.strip() else turns  # "\n\nAssistant:" only opens the answer
    return turns, used


def _side(value: Any, key: str, place: Place) -> Turns:
    """An answer, or the whole conversation that ends with it."""
    if isinstance(value, str) and value.startswith("\n\nHuman:"):
        turns = _dialogue(value)
        blank = next((turn for turn in turns if not turn.content.strip()), None)
        if blank is not None:
            raise place.error("the answer is empty", key, value[-100:], "some text in each turn")
        return turns
    if isinstance(value, list) and value and all(is_message(item) for item in value):
        return messages(value, key, place)
    return answer(value, key, place)


def _dialogue(text: str) -> Turns:
    r"""The turns of a conversation that is written "\n\nHuman: ...\n\nAssistant: ..."."""
    pieces = SPOKEN.split(text)[1:]
    return tuple(Turn(SPEAKERS[who], said) for who, said in zip(pieces[::2], pieces[1::2], strict=True))


def _split(stated: Turns, chosen: Turns, rejected: Turns, place: Place) -> tuple[Turns, Turns, Turns]:
    """What two whole conversations share, and what each goes on with."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) and _spoken(chosen[shared:][:1]) == _spoken(rejected[shared:][:1]):
        shared += 1
    if shared == len(chosen) == len(rejected):
        raise place.error("chosen and rejected are the same", "chosen", chosen[-1].content, "two different answers")
    start = chosen[:shared]
    asked, common = (_spoken(turns, without_system=True) for turns in (stated, start))
    if asked and asked not in (common, common[-1:]):
        raise place.error(
            "a pair with two different prompts",
            "prompt",
            stated[-1].content,
            "the prompt that chosen and rejected share",
        )
    if stated and stated[0].role == "system" and (not start or start[0].role != "system"):
        start = (stated[0], *start)
    return start, chosen[shared:], rejected[shared:]


def _spoken(turns: Turns, *, without_system: bool = False) -> list[tuple[str, str, Any]]:
    return [
        (turn.role, turn.content.strip(), turn.calls)
        for turn in turns
        if not (without_system and turn.role == "system")
    ]
