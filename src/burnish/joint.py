"""What several tasks are together: one list of rows, one head that is wide enough, one sum of losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor

from burnish.core import Batch, Loss, Objective, Outputs
from burnish.data.mixture import shares_of
from burnish.data.render import Chat
from burnish.data.render import joined as joined_rows
from burnish.recipe import Recipe

if TYPE_CHECKING:
    from burnish.parts import Chosen, Tokenized


class Sliced:
    """An objective on its own part of a head that scores the labels of several tasks, those numbered from `start` to before `stop`."""

    def __init__(self, inner: Objective, start: int, stop: int) -> None:
        self.inner, self.start, self.stop = inner, start, stop
        self.rows, self.needs, self.reads, self.atom = inner.rows, inner.needs, inner.reads, inner.atom

    def count(self, batch: Batch) -> Tensor:
        return self.inner.count(batch)

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.score is not None
        return self.inner.loss(replace(outputs, score=outputs.score[:, self.start : self.stop]), batch)


def joined(parts: Mapping[str, Tokenized]) -> Tokenized:
    """The tokenized rows of several tasks as one, those of each in `parts`; a single task is itself.

    The chat of all is that of the first task that writes, its labels those of every task that scores.
    """
    first = next(iter(parts.values()))
    if len(parts) == 1:
        return first
    writer = next((part.chat for part in parts.values() if not part.chat.labels), first.chat)
    chat = Chat(writer.tokenizer, system=writer.system, max_length=writer.max_length)
    scoring = [name for name, part in parts.items() if part.chat.labels]
    chat.labels = tuple(
        f"{name}: {label}" if len(scoring) > 1 else label for name in scoring for label in parts[name].chat.labels
    )
    rows = (joined_rows([getattr(part, split) for part in parts.values()]) for split in ("train", "validation", "test"))
    return replace(first, chat=chat, **dict(zip(("train", "validation", "test"), rows, strict=True)), parts=dict(parts))


def starts_of(tokenized: Tokenized) -> dict[str, int]:
    """Where the labels of each task begin in the head of all."""
    starts, width = {}, 0
    for name, part in tokenized.tasks.items():
        starts[name] = width
        width += len(part.chat.labels)
    return starts


def shares(recipe: Recipe, tokenized: Tokenized) -> dict[str, float]:
    """The share of each task in a step's groups and in its loss, 1 in all."""
    sizes = {name: len(part.train.groups) for name, part in tokenized.tasks.items()}
    return shares_of(
        sizes, {name: one.weight for name, one in recipe.tasks.items()} or dict.fromkeys(sizes, 1.0), recipe.mixing
    )


def tasks_of(recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> dict[str, tuple[Objective, float]]:
    """Task -> its objective and the weight of its mean loss in a step, which is its share."""
    weights, starts, width = shares(recipe, tokenized), starts_of(tokenized), len(tokenized.chat.labels)
    found: dict[str, tuple[Objective, float]] = {}
    for name, objective in chosen.objectives.items():
        own = len(tokenized.tasks[name].chat.labels)
        objective = Sliced(objective, starts[name], starts[name] + own) if 0 < own < width else objective
        found[name] = objective, weights[name]
    return found


def described(recipe: Recipe, tokenized: Tokenized, seen: Mapping[str, int]) -> dict[str, Any]:
    """What the report says of each task. seen: how many groups of it the run deals."""
    parts, starts = shares(recipe, tokenized), starts_of(tokenized)
    return {
        name: {
            "kind": one.task.kind,
            "goal": one.task.goal,
            "objective": one.objective,
            "system": tokenized.tasks[name].chat.system,
            "weight": recipe.tasks[name].weight,
            "share": round(parts[name], 4),
            "dealt": seen[name],
            "passes": round(seen[name] / len(tokenized.tasks[name].train.groups), 2),
            **{split: len(getattr(tokenized.tasks[name], split).rows) for split in ("train", "validation", "test")},
            **(
                {"labels": list(tokenized.tasks[name].chat.labels), "first_label": starts[name]}
                if tokenized.tasks[name].chat.labels
                else {}
            ),
        }
        for name, one in recipe.each.items()
    }
