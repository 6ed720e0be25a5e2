"""OpenAI's preference files: a conversation, the preferred answer and the other one.

{"input": {"messages": [{"role": "user", "content": "Name a colour."}]},
 "preferred_output": [{"role": "assistant", "content": "Blue."}],
 "non_preferred_output": [{"role": "assistant", "content": "Dog."}]}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import messages
from burnish.data.formats.preference import pair
from burnish.data.rows import Row

NAME = "openai_preference"
COLUMNS = ("input", "preferred_output", "non_preferred_output")
SHAPES = (Shape(45, tuple((column,) for column in COLUMNS), ("margin",)),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    asked = record["input"]
    if not isinstance(asked, Mapping) or "messages" not in asked:
        raise place.error("no messages", "input", asked, 'an object such as {"messages": [...]}')
    stated = messages(asked["messages"], "input.messages", place)
    chosen, rejected = (messages(record[column], column, place) for column in COLUMNS[1:])
    beside = {key: value for key, value in asked.items() if key != "messages"}
    return pair({**beside, **record}, stated, chosen, rejected, COLUMNS, place)
