"""Alpaca: an instruction, what it is about, and the answer.

    {"instruction": "Translate to German.", "input": "Good morning.", "output": "Guten Morgen."}

`input` (or `context`) follows the instruction after a blank line. `system` is the system prompt; `history` holds earlier exchanges as
[question, answer] and is learnt from too. `output` may be an object or a list: it is then learnt as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import BESIDE_PROMPT, answer, conversation, instruction
from burnish.data.rows import Row

NAME = "alpaca"
ANSWERS = ("output", "response", "completion", "answer")
SHAPES = (Shape(25, (("instruction",), ANSWERS), (*BESIDE_PROMPT, "tools")),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    key = place.key(record, ANSWERS)
    turns = instruction(record, place) + answer(record[key], key, place)
    return conversation(record, turns, key, ("instruction", key, *BESIDE_PROMPT), place)
