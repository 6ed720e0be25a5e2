"""Label Studio's JSON export: a task with its data and what the annotators made of it.

    {"id": 1, "data": {"prompt": "Name a colour.", "answer1": "Blue.", "answer2": "Dog."},
     "annotations": [{"result": [{"type": "pairwise", "to_name": "answer1,answer2", "value": {"selected": "left"}}]}]}

pairwise gives a preference, ranker a ranking (of `data.items`, or of columns that bear the ranked names), textarea the answer to learn,
choices a label, rating a grade; the first of these is read, and the annotations stay in a column of their own where there are others.
Where there are several annotators the majority decides, and rankings and ratings are averaged; a cancelled annotation does not count.
Source: labelstud.io, tags Pairwise, Ranker, TextArea, Choices, Rating.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from burnish.data.formats._annotated import Task, labelled, majority, mean, one_label, ranked, task, written
from burnish.data.formats._place import Place, Shape, label, number
from burnish.data.formats._turns import answer
from burnish.data.formats.preference import pair
from burnish.data.rows import Row

NAME = "label_studio"
SHAPES = (Shape(50, (("data",), ("annotations",))),)

Result = Mapping[str, Any]


def read(record: Mapping[str, Any], place: Place) -> Row:
    if not isinstance(record["data"], Mapping):
        raise place.error("a task without data", "data", record["data"], "an object with the task's texts")
    results = _results(record["annotations"], place)
    kind = next((kind for kind in READERS if any(result.get("type") == kind for result in results)), None)
    if kind is None:
        types = [result.get("type") for result in results]
        raise place.error("nothing was annotated", "annotations", types, f"a result of type {', '.join(READERS)}")
    read_now = [result for result in results if result.get("type") == kind]
    unread = () if len(read_now) < len(results) else ("annotations",)
    beside = {name: value for name, value in record.items() if name not in ("data", *unread)}
    return READERS[kind](task(record["data"], beside, place), read_now)


def _results(annotations: Any, place: Place) -> list[Result]:
    if not isinstance(annotations, list) or not all(isinstance(one, Mapping) for one in annotations):
        raise place.error("malformed annotations", "annotations", annotations, "a list of annotations")
    return [
        result
        for one in annotations
        if not one.get("was_cancelled") and isinstance(one.get("result"), list)
        for result in one["result"]
        if isinstance(result, Mapping) and isinstance(result.get("value"), Mapping)
    ]


def _pairwise(task: Task, results: Sequence[Result]) -> Row:
    place = task.place
    selected = majority([str(result["value"].get("selected")) for result in results], "value.selected", place)
    if selected not in ("left", "right"):
        raise place.error("no answer was selected", "value.selected", selected, "left or right")
    names = [name.strip() for name in str(results[0].get("to_name")).split(",")]
    if len(names) != 2 or not all(name in task.columns for name in names):
        expected = f"two of the data's columns: {', '.join(task.columns)}"
        raise place.error("the compared texts are not in the data", "to_name", names, expected)
    best, worst = names if selected == "left" else names[::-1]
    chosen, rejected = (answer(task.columns[name], f"data.{name}", place) for name in (best, worst))
    return pair(task.columns, task.asked, chosen, rejected, (*task.used, *names), place)


def _ranker(task: Task, results: Sequence[Result]) -> Row:
    orders = [_order(result["value"].get("ranker"), task.place) for result in results]
    ranks = [{name: float(rank) for rank, name in enumerate(order)} for order in orders]
    items = task.columns.get("items")
    if isinstance(items, list):
        shown = [item for item in items if isinstance(item, Mapping)]
        texts = {str(item.get("id")): item.get("body") or item.get("text") for item in shown}
        return ranked(task, texts, ranks, ["items"])
    return ranked(task, {name: task.columns.get(name) for name in orders[0]}, ranks, orders[0])


def _order(value: Any, place: Place) -> list[str]:
    """The ranked names, the best first: a list, or an object with the one bucket that holds it."""
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    if not isinstance(value, list):
        raise place.error("a malformed ranking", "value.ranker", value, "a list of names, the best first")
    return [str(name) for name in value]


def _textarea(task: Task, results: Sequence[Result]) -> Row:
    given = [result["value"].get("text") for result in results]
    texts = ["\n".join(map(str, text)) if isinstance(text, list) else str(text or "") for text in given]
    return written(task, texts, "value.text")


def _choices(task: Task, results: Sequence[Result]) -> Row:
    given = [label(result["value"].get("choices"), "value.choices", task.place) for result in results]
    found = one_label(given, "value.choices", task.place)
    return labelled(task, found[0] if isinstance(found, tuple) and len(found) == 1 else found)


def _rating(task: Task, results: Sequence[Result]) -> Row:
    return labelled(task, mean([number(one["value"].get("rating"), "value.rating", task.place) for one in results]))


READERS: Mapping[str, Callable[[Task, Sequence[Result]], Row]] = {
    "pairwise": _pairwise,
    "ranker": _ranker,
    "textarea": _textarea,
    "choices": _choices,
    "rating": _rating,
}
