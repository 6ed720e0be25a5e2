"""Classification and grading: a text or a conversation, and its label.

    {"text": "Where is my card?", "label": "card_arrival"}

The label is a class (text or integer), a grade (a number with a point) or a list of classes; true and false become the classes "true" and
"false". Beside a text, and nothing else that is learnt from, it may be named category, intent or class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape, label
from burnish.data.formats._turns import filled, in_order, messages, with_system
from burnish.data.rows import Labelled, Row, Turn, Turns

NAME = "labelled"
CONTENTS = ("messages", "conversations", "text")
LABELS = ("label", "category", "intent", "class")
SHAPES = (Shape(30, (CONTENTS, ("label",)), ("system",)), Shape(10, (("text",), LABELS), ("system",)))


def read(record: Mapping[str, Any], place: Place) -> Row:
    content, key = next(name for name in CONTENTS if name in record), place.key(record, LABELS)
    if content == "text":
        turns: Turns = (Turn("user", filled(record["text"], "text", place, "the text is empty")),)
    else:
        turns = messages(record[content], content, place)
    turns = in_order(with_system(record, turns, place), content, place)
    extra = place.rest(record, content, key, "system")
    found = label(record[key], key, place)
    return Labelled(file=place.file, line=place.line, extra=extra, turns=turns, label=found)
