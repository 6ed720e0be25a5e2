"""Plain text, learnt from its first word to its last.

{"text": "The harbour of Rotterdam ..."}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import filled
from burnish.data.rows import Row, Text

NAME = "text"
SHAPES = (Shape(5, (("text",),)),)


def read(record: Mapping[str, Any], place: Place) -> Row:
    text = filled(record["text"], "text", place, "the text is empty")
    return Text(file=place.file, line=place.line, extra=place.rest(record, "text"), text=text)
