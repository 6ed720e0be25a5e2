"""A prompt without an answer, a text or a list of messages.

{"prompt": "Write a limerick about a lighthouse."}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import ends_open, prompt
from burnish.data.rows import Prompt, Row

NAME = "prompt_only"
SHAPES = (Shape(5, (("prompt",),), ("system",)),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    turns, used = prompt(record, place)
    extra = place.rest(record, *used)
    return Prompt(file=place.file, line=place.line, extra=extra, turns=ends_open(turns, "prompt", place))
