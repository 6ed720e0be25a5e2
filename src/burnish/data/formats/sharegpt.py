"""ShareGPT: a conversation under `conversations`.

    {"conversations": [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Good day!"}], "system": "Be polite."}

Messages may also be written role/content. `function_call` holds a call as JSON text and `observation` what came of it; `tools`
holds the tools as a list or as JSON text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import conversation, messages, with_system
from burnish.data.rows import Row

NAME = "sharegpt"
SHAPES = (Shape(20, (("conversations",),), ("system", "tools")),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    turns = with_system(record, messages(record["conversations"], "conversations", place), place)
    return conversation(record, turns, "conversations", ("conversations",), place)
