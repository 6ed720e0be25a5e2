"""What annotation tools have in common: a task that was shown, and what several annotators made of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from burnish.data.formats._place import Place
from burnish.data.formats._turns import ANSWERS, answer, conversation, in_order, prompt
from burnish.data.formats.ranking import ranking
from burnish.data.rows import Label, Labelled, Row, Turns

PROMPTS = ("prompt", "instruction", "question", "query", "text", "input", "messages", "conversations", "dialogue")

Value = TypeVar("Value", bound=Hashable)


class Task(NamedTuple):
    """columns: all that the task holds. asked: its prompt. used: the columns that the prompt was read from."""

    columns: Mapping[str, Any]
    asked: Turns
    used: tuple[str, ...]
    place: Place


def task(shown: Mapping[str, Any], beside: Mapping[str, Any], place: Place) -> Task:
    """shown: the texts that the annotators saw. beside: what else the record holds."""
    return Task({**beside, **shown}, *prompt(shown, place, PROMPTS), place)


def majority(values: Sequence[Value], field: str, place: Place) -> Value:
    """The value that most of the annotators gave. Raises RowError where two are equally frequent."""
    counts = Counter(values).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        expected = "one value that most of them gave"
        raise place.error(
            "the annotators disagree", field, [value for value, _ in counts], expected, "let one more decide"
        )
    return counts[0][0]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def labelled(task: Task, label: Label) -> Row:
    """The label of the text, or of the answer to it where the task shows one."""
    said = next((name for name in ANSWERS if name in task.columns and name not in task.used), None)
    turns = task.asked + answer(task.columns[said], said, task.place) if said else task.asked
    extra = task.place.rest(task.columns, *task.used, *([said] if said else []))
    file, line = task.place.file, task.place.line
    return Labelled(file=file, line=line, extra=extra, turns=in_order(turns, "text", task.place), label=label)


def one_label(labels: Sequence[Label], field: str, place: Place) -> Label:
    """The label that most annotators gave; the order of several classes does not matter."""
    return majority([tuple(sorted(one)) if isinstance(one, tuple) else one for one in labels], field, place)


def written(task: Task, texts: Sequence[str], field: str) -> Row:
    """The answer that most annotators wrote, to be learnt."""
    turns = task.asked + answer(majority(texts, field, task.place), field, task.place)
    return conversation(task.columns, turns, field, task.used, task.place)


def ranked(task: Task, texts: Mapping[str, Any], ranks: Sequence[Mapping[str, float]], used: Sequence[str]) -> Row:
    """texts: the answers by name. ranks: for each annotator, the rank of each name, the lowest the best."""
    for one in ranks:
        if len(texts) < 2 or one.keys() != texts.keys():
            expected = f"a rank for each of {', '.join(texts)}, and two of them at least"
            raise task.place.error("the ranked answers are not those of the task", "rank", list(one), expected)
    answers = [answer(said, name, task.place) for name, said in texts.items()]
    grades = [0.0 - mean([one[name] for one in ranks]) for name in texts]
    return ranking(task.asked, answers, grades, task.place.rest(task.columns, *task.used, *used), task.place)
