"""The tasks that a score head answers: what of the training rows they need, and what turns rows into ids for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from burnish.core import Objective
from burnish.data.classes import Classes
from burnish.data.heads import Grades, MultiLabel, Tags, labels_in, number_of
from burnish.data.render import Chat
from burnish.data.rows import Labelled, Row, Tagged
from burnish.errors import RecipeError
from burnish.recipe import Recipe

SCORED = ("classify", "multilabel", "regress", "tag")  # kinds of task, each learnt by the objective of the same name
NAMERS: dict[str, type[Classes]] = {"classify": Classes, "multilabel": MultiLabel, "tag": Tags}


def check_kind(recipe: Recipe, objective: Objective) -> None:
    """Raise RecipeError where the objective learns another kind of answer than the task asks for, or reads no text in that frame."""
    kind, name = recipe.task.kind, recipe.objective
    if recipe.task.frame == "chat" and "score" not in objective.needs:
        scored = f"--set objective={kind}   or " if kind in ("classify", "multilabel", "regress") else ""
        raise RecipeError(
            f"the objective {name} has no head that scores a whole text, and the frame is what such a head reads",
            where="task.frame",
            expected="plain, or the objective classify, multilabel or regress",
            hint=f"{scored}--set task.frame=plain",
        )
    if {"score", "token_score"} & objective.needs and name != kind:
        raise RecipeError(
            f"the objective {name} learns labels, and the task is to {kind}"
            if name == "classify"
            else f"the objective {name} is for the task {name}, and the task is {kind}",
            where="task.kind",
            expected=name,
            hint=f"--set task.kind={name}   or --set objective={kind if kind in SCORED else 'sft'}",
        )


def labels_of(recipe: Recipe, train: Sequence[Row]) -> list[str]:
    """The labels to choose from, from the recipe or from the training rows; none for other tasks and for numbers."""
    kind = recipe.task.kind
    if kind not in NAMERS:
        return []
    return recipe.task.labels or sorted(set(label_counts(kind, train)) - {""})


def label_counts(kind: str, train: Sequence[Row]) -> Counter[str]:
    """Training items of each label; of tags the words, of several labels the rows, and of all rows under the empty text."""
    if kind == "tag":
        return Counter(tag for row in train if isinstance(row, Tagged) for tag in row.tags)
    if kind == "multilabel":
        counts = Counter(label for row in train for label in set(labels_in(row)))
        return counts + Counter({"": len(train)})
    return Counter(row.answer_text() for row in train)


def chat_for(kind: str, tokenizer: Any, labels: Sequence[str], train: Sequence[Row], **how: Any) -> Chat:
    """What turns rows into ids for a score head. Raises RecipeError where the training rows teach nothing."""
    if kind == "regress":
        numbers = np.array([number_of(row) for row in train])
        if not numbers.size or numbers.min() == numbers.max():
            found = (
                f"all {len(numbers)} training rows have the label {numbers[0]:g}" if numbers.size else "no training row"
            )
            raise RecipeError(found, where="data.train", expected="numbers that differ, or there is nothing to learn")
        return Grades(tokenizer, float(numbers.mean()), float(numbers.std()), **how)
    if len(labels) < 2 and kind != "multilabel":
        raise RecipeError(
            f"the training rows have only the label {labels[0]!r}" if labels else "the training rows have no label",
            where="data.train",
            expected="two labels or more, or there is nothing to tell apart",
            hint="task: {labels: [...]}   names labels that only later data has",
        )
    return NAMERS[kind](tokenizer, labels, **how)


def chat_of_report(report: Mapping[str, Any], tokenizer: Any, head: Any) -> Chat:
    """The same for the model of a run."""
    task = report["task"]
    how: dict[str, Any] = {"system": task["system"], "max_length": task["max_length"], "frame": head.frame}
    if head.kind == "regress":
        return Grades(tokenizer, head.mean, head.spread, **how)
    return NAMERS[head.kind](tokenizer, head.labels, **how)


def span_of(kind: str, train: Sequence[Row]) -> tuple[float, float]:
    """The lowest and highest number of a regression's training rows."""
    numbers = [number_of(row) for row in train if isinstance(row, Labelled)] if kind == "regress" else []
    return (min(numbers), max(numbers)) if numbers else (0.0, 1.0)


def fitted(objective: Objective, kind: str, labels: Sequence[str], train: Sequence[Row]) -> Objective:
    """The objective with what its options need of the training labels, such as balanced weights. Raises RecipeError."""
    fit: Callable[..., Objective] | None = getattr(objective, "fitted", None)
    if fit is None:
        return objective
    try:
        return fit(labels, label_counts(kind, train))
    except ValueError as error:
        raise RecipeError(
            str(error), where="loss.class_weights", expected=f"a weight for each of: {', '.join(labels)}"
        ) from error
