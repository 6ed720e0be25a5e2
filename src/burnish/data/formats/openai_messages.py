"""OpenAI: a conversation under `messages`.

    {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day!"}]}

A message may carry `tool_calls`, `name`, `tool_call_id` and, as `weight` or `loss`, what it counts in the loss; its content may be a list
of text parts. `tools` lists the tools that may be called.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import conversation, messages, with_system
from burnish.data.rows import Row

NAME = "openai_messages"
SHAPES = (Shape(20, (("messages",),), ("system", "tools")),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    turns = with_system(record, messages(record["messages"], "messages", place), place)
    return conversation(record, turns, "messages", ("messages",), place)
