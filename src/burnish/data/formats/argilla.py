"""Argilla's records, of version 1 or 2: the fields that were shown and what the annotators answered.

    {"fields": {"prompt": "Name a colour.", "reply-1": "Blue.", "reply-2": "Dog."},
     "responses": {"order": [{"value": [{"value": "reply-1", "rank": 1}, {"value": "reply-2", "rank": 2}]}]}}

Records do not say what kind a question was, so its answers do. Ranks, or a list of the fields' names with the best first, give a ranking
(rank 1 is the best, equal ranks are a tie); a number gives a grade; a list of texts, several labels. A text is a label if it is short
and the record shows a `text` or an answer for it to judge; otherwise it is the answer to learn. Where a record has several
questions the first kind in that order is read, and the others stay in columns that bear their names.

Where there are several annotators the majority decides, and rankings and ratings are averaged; only submitted responses count.
Source: docs.argilla.io, Record, RankingQuestion, RatingQuestion, LabelQuestion, TextQuestion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from burnish.data.formats._annotated import Task, labelled, mean, one_label, ranked, task, written
from burnish.data.formats._place import Place, Shape, label, number
from burnish.data.formats._turns import ANSWERS
from burnish.data.rows import Row

NAME = "argilla"
SHAPES = (Shape(50, (("fields",), ("responses",))),)
KINDS = ("ranking", "answer", "label", "grade")
LONGEST_LABEL = 50  # characters


def read(record: Mapping[str, Any], place: Place) -> Row:
    fields = record["fields"]
    if not isinstance(fields, Mapping):
        raise place.error("a record without fields", "fields", fields, "an object with the record's texts")
    given = _given(record["responses"], place)
    kinds = {question: _kind(values[0], fields) for question, values in given.items()}
    if not kinds:
        raise place.error("nothing was annotated", "responses", record["responses"], "a submitted response")
    question = min(kinds, key=lambda name: KINDS.index(kinds[name]))
    beside = {name: value for name, value in record.items() if name not in ("fields", "responses")}
    others = {name: values for name, values in given.items() if name != question}
    return _row(kinds[question], question, given[question], task(fields, {**beside, **others}, place))


def _given(responses: Any, place: Place) -> dict[str, list[Any]]:
    """The values that were submitted, by question. Version 1 lists the annotators, version 2 the questions."""
    pairs: list[tuple[Any, Any]] = []
    if isinstance(responses, Mapping):
        pairs = [(name, one) for name, ones in responses.items() if isinstance(ones, list) for one in ones]
    elif isinstance(responses, list) and all(isinstance(one, Mapping) for one in responses):
        submitted = [one for one in responses if _submitted(one) and isinstance(one.get("values"), Mapping)]
        pairs = [item for one in submitted for item in one["values"].items()]
    else:
        raise place.error("malformed responses", "responses", responses, "the responses by question, or a list of them")
    given: dict[str, list[Any]] = {}
    for name, one in pairs:
        if isinstance(one, Mapping) and _submitted(one) and one.get("value") is not None:
            given.setdefault(str(name), []).append(one["value"])
    return given


def _submitted(response: Mapping[str, Any]) -> bool:
    return response.get("status") in (None, "submitted")


def _kind(value: Any, fields: Mapping[str, Any]) -> str:
    if isinstance(value, list) and all(isinstance(one, Mapping) or one in fields for one in map(_hashable, value)):
        return "ranking"
    if isinstance(value, str):
        judged = "text" in fields or any(name in fields for name in ANSWERS)
        return "label" if judged and len(value) <= LONGEST_LABEL and "\n" not in value else "answer"
    return "label" if isinstance(value, list) else "grade"


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | Mapping) else str(value)


def _row(kind: str, question: str, values: list[Any], task: Task) -> Row:
    field = f"responses.{question}"
    if kind == "ranking":
        ranks = [_ranks(value, field, task.place) for value in values]
        texts = {name: task.columns.get(name) for name in ranks[0]}
        return ranked(task, texts, ranks, list(texts))
    if kind == "answer":
        return written(task, [value if isinstance(value, str) else str(value) for value in values], field)
    if kind == "label":
        return labelled(task, one_label([label(value, field, task.place) for value in values], field, task.place))
    return labelled(task, mean([number(value, field, task.place) for value in values]))


def _ranks(value: Any, field: str, place: Place) -> dict[str, float]:
    """The rank of each name: as it was given, or its place in the list."""
    if not isinstance(value, list):
        raise place.error("a malformed ranking", field, value, "a list of names, or of names with ranks")
    ranks: dict[str, float] = {}
    for position, one in enumerate(value):
        if isinstance(one, Mapping):
            ranks[str(one.get("value"))] = number(one.get("rank"), f"{field}.rank", place)
        else:
            ranks[str(one)] = float(position)
    return ranks
