"""A prompt and its completion, each a text or a list of messages.

    {"prompt": "Capital of France?", "completion": "Paris"}

Also named question/answer, query/response and input/output. A completion that is an object or a list is learnt as compact JSON text.
Answers within the prompt are not learnt, unless a message says so by its weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import ANSWERS, answer, conversation, prompt
from burnish.data.rows import Row

NAME = "prompt_completion"
PROMPTS = ("prompt", "question", "query", "input")
SHAPES = (Shape(20, (PROMPTS, ANSWERS), ("system", "tools")),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    turns, used = prompt(record, place, PROMPTS)
    key = place.key(record, ANSWERS)
    quiet = tuple(
        replace(turn, weight=0.0) if turn.role == "assistant" and turn.weight is None else turn for turn in turns
    )
    return conversation(record, quiet + answer(record[key], key, place), key, (*used, key), place)
