"""KTO: an answer that was judged good or bad on its own.

    {"prompt": "Name a colour.", "completion": "Dog.", "label": false}

LLaMA-Factory's `kto_tag` is read like `label`, beside Alpaca's columns or a conversation that ends with the judged answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._place import Place, Shape
from burnish.data.formats._turns import (
    ANSWERS,
    BESIDE_PROMPT,
    answer,
    ends_open,
    in_order,
    messages,
    prompt,
    with_system,
)
from burnish.data.rows import Judged, Row, Turns

NAME = "kto"
CONVERSATIONS = ("messages", "conversations")
VERDICTS = ("label", "kto_tag")
TRUE, FALSE = (True, 1, "true", "True", "1"), (False, 0, "false", "False", "0")
SHAPES = (
    Shape(40, (("prompt", "instruction", "question", "query", "input"), ANSWERS, VERDICTS), BESIDE_PROMPT),
    Shape(40, (CONVERSATIONS, ("kto_tag",)), ("system",)),
)


def read(record: Mapping[str, Any], place: Place) -> Row:
    verdict = "kto_tag" if "kto_tag" in record else "label"
    if any(key in record for key in ANSWERS):
        key = place.key(record, ANSWERS)
        asked, used = prompt(record, place)
        said = answer(record[key], key, place)
    else:
        key = place.key(record, CONVERSATIONS)
        asked, said = _last_answer(with_system(record, messages(record[key], key, place), place), key, place)
        used = ("system",)
    in_order(ends_open(asked, "prompt", place) + said, key, place)
    good = _verdict(record[verdict], verdict, place)
    extra = place.rest(record, *used, key, verdict)
    return Judged(file=place.file, line=place.line, extra=extra, prompt=asked, completion=said, good=good)


def _last_answer(turns: Turns, field: str, place: Place) -> tuple[Turns, Turns]:
    if turns[-1].role != "assistant":
        raise place.error("no answer to judge", field, turns[-1].content, "a conversation that ends with the answer")
    return turns[:-1], turns[-1:]


def _verdict(value: Any, field: str, place: Place) -> bool:
    if isinstance(value, str | int) and value in TRUE:
        return True
    if isinstance(value, str | int) and value in FALSE:
        return False
    hint = f"columns: {{my_{field}: {field}}}   where the column is no verdict on the answer"
    raise place.error("the verdict is neither true nor false", field, value, "true (good) or false (bad)", hint)
