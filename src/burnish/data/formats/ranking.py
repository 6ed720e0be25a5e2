"""Ranking: several answers to one prompt, from the best to the worst. There is no standard; three ways of writing it are read.

    {"prompt": "Name a colour.", "answers": ["Blue.", "Sky.", "Dog."], "scores": [3, 2, 0.5]}
    {"prompt": "Name a colour.", "completions": [{"rank": 1, "completion": "Sky."}, {"rank": 0, "completion": "Blue."}]}
    {"prompt": "Name a colour.", "responses": ["Blue.", "Sky.", "Dog."]}

A higher score is better; rank 0 is the best; `responses` stand best first. Equal scores or ranks are a tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from burnish.data.formats._place import Place, Shape, number
from burnish.data.formats._turns import BESIDE_PROMPT, PROMPTS, answer, ends_open, in_order, prompt
from burnish.data.rows import Ranking, Row, Turns

NAME = "ranking"
READS = (*BESIDE_PROMPT,)
SHAPES = (
    Shape(40, (PROMPTS, ("answers",), ("scores",)), READS),
    Shape(40, (PROMPTS, ("completions",)), READS),
    Shape(40, (PROMPTS, ("responses",)), READS),
)


def read(record: Mapping[str, Any], place: Place) -> Row:
    asked, used = prompt(record, place)
    if "answers" in record and "scores" in record:
        key, (said, grades) = "answers", _scored(record, place)
    elif "completions" in record:
        key, (said, grades) = "completions", _ranked(record["completions"], place)
    else:
        key, said = "responses", _several(record["responses"], "responses", place)
        grades = [float(-index) for index in range(len(said))]
    answers = [answer(one, f"{key}[{index}]", place) for index, one in enumerate(said)]
    columns = (key, "scores") if key == "answers" else (key,)
    return ranking(asked, answers, grades, place.rest(record, *used, *columns), place)


def ranking(
    asked: Turns, answers: Sequence[Turns], grades: Sequence[float], extra: Mapping[str, Any], place: Place
) -> Ranking:
    """The ranking, after the order of its turns has been checked."""
    ends_open(asked, "prompt", place)
    for index, said in enumerate(answers):
        in_order(asked + said, f"answers[{index}]", place)
    return Ranking(
        file=place.file, line=place.line, extra=extra, prompt=asked, answers=tuple(answers), grades=tuple(grades)
    )


def _several(value: Any, field: str, place: Place) -> list[Any]:
    if not isinstance(value, list) or len(value) < 2:
        raise place.error("a ranking needs two answers", field, value, "a list of two answers or more")
    return value


def _scored(record: Mapping[str, Any], place: Place) -> tuple[list[Any], list[float]]:
    said, scores = _several(record["answers"], "answers", place), record["scores"]
    if not isinstance(scores, list) or len(scores) != len(said):
        raise place.error("not one score for each answer", "scores", scores, f"{len(said)} numbers")
    return said, [number(score, f"scores[{index}]", place) for index, score in enumerate(scores)]


def _ranked(value: Any, place: Place) -> tuple[list[Any], list[float]]:
    said, grades = [], []
    for index, one in enumerate(_several(value, "completions", place)):
        field = f"completions[{index}]"
        if not isinstance(one, Mapping) or not one.keys() >= {"rank", "completion"}:
            raise place.error("an answer without its rank", field, one, '{"rank": 0, "completion": ...}')
        said.append(one["completion"])
        grades.append(0.0 - number(one["rank"], f"{field}.rank", place))
    return said, grades
