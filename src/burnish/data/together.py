"""The rows of several tasks: each read, cleaned and split as if it were alone, then guarded against each other."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

from burnish.data.ledger import Ledger
from burnish.data.prepare import Prepared, prepare
from burnish.data.rows import Row
from burnish.data.split import Guarded, Splits, guard
from burnish.errors import BurnishError, Interrupted
from burnish.recipe import Recipe

SPLITS = ("train", "validation", "test")


def prepare_tasks(
    recipe: Recipe, ledger: Ledger, *, special_tokens: Collection[str], kinds: Mapping[str, Collection[str]]
) -> Prepared:
    """`prepare` for each task; no row held out for one of them stands in the training rows of any.

    kinds: task -> the rows that its objective learns from. Raises RowError, RecipeError or DataGuardError, which names the task.
    """
    alone: dict[str, Prepared] = {}
    for name, one in recipe.each.items():
        with named(recipe, name):
            alone[name] = prepare(one, ledger, special_tokens=special_tokens, kinds=kinds[name])
    if not recipe.tasks:
        return next(iter(alone.values()))
    found = {name: prepared.guarded for name, prepared in alone.items()}
    every = {split: [row for one in found.values() for row in getattr(one, split)] for split in SPLITS}
    whole = guard(Splits(**every), recipe.guards.leakage.action, ledger)
    left = {split: {id(row) for row in getattr(whole, split)} for split in SPLITS}

    def kept(one: Guarded, split: str) -> list[Row]:
        return [row for row in getattr(one, split) if id(row) in left[split]]

    parts = {
        name: replace(one, train=kept(one, "train"), validation=kept(one, "validation")) for name, one in found.items()
    }
    owner = {id(row): name for name, one in found.items() for split in SPLITS for row in getattr(one, split)}
    across = [match for match in whole.matches if owner[id(match.train)] != owner[id(match.held_out)]]
    matches = [match for one in found.values() for match in one.matches] + across
    rows = sum(len(getattr(whole, split)) for split in SPLITS)
    return Prepared(replace(whole, matches=matches, parts=parts), rows + ledger.gone)


def joined(parts: Mapping[str, Guarded]) -> Guarded:
    """The guarded rows of several tasks as one, with the tasks in `parts`."""
    every = {split: [row for one in parts.values() for row in getattr(one, split)] for split in SPLITS}
    return replace(Guarded.restored(every, []), parts=parts)


@contextlib.contextmanager
def named(recipe: Recipe, task: str) -> Iterator[None]:
    """Whatever is wrong within the block is said of this task, where there are several."""
    try:
        yield
    except BurnishError as error:
        if recipe.tasks and not isinstance(error, Interrupted):
            inside = error.where.startswith(("data", "task", "objective")) and "leakage" not in error.where
            error.where = f"tasks.{task}.{error.where}" if inside else f"{error.where} (task {task})"
            for setting in ("data.", "task.", "objective="):
                error.hint = error.hint.replace(f"--set {setting}", f"--set tasks.{task}.{setting}")
            error.args = (str(error),)
        raise
