"""A few training rows of each class: what few-shot learning learns from."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Labelled, Row
from burnish.errors import RecipeError, RowError


def draw_per_class(rows: Sequence[Row], count: int, seed: int, *, fewer: bool = False) -> list[Row]:
    """`count` rows of each label, in the order of the file.

    Each label's rows are shuffled by the seed and the label, and the first are taken: a smaller draw is part of a larger one, and a
    label more or less changes nothing for the others, so a curve over `count` compares nested sets.
    fewer: let a label that has fewer rows give all of them. Raises RowError for a row without a label, RecipeError where a label has
    too few rows or there is one label alone.
    """
    classes: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if not isinstance(row, Labelled):
            raise RowError(
                f"this is a {row.kind} row, which has no class to draw from",
                where=row.where,
                expected="a text and its label",
                hint="--set data.per_class=null --set data.sample=64   draws rows without regard to classes",
            )
        classes[row.answer_text()].append(number)
    _check(classes, count, fewer)
    kept: set[int] = set()
    for label, numbers in classes.items():
        random.Random(f"per_class/{seed}/{label}").shuffle(numbers)
        kept.update(numbers[:count])
    return [row for number, row in enumerate(rows) if number in kept]


def _check(classes: dict[str, list[int]], count: int, fewer: bool) -> None:
    if len(classes) < 2:
        raise RecipeError(
            f"all training rows have the label {next(iter(classes), '')!r}",
            where="data.per_class",
            expected="two classes or more",
        )
    label, least = min(((label, len(numbers)) for label, numbers in classes.items()), key=lambda pair: pair[1])
    if least < count and not fewer:
        short = sum(len(numbers) < count for numbers in classes.values())
        others = f", the smallest of {short} classes that have too few" if short > 1 else ""
        raise RecipeError(
            f"{count} rows of each class are wanted, and {label!r} has {least} to train on{others}",
            where="data.per_class",
            expected=f"at most {least}",
            hint=f"--set data.per_class={least}   or --set data.take_fewer=true",
        )


def keep_per_class(rows: Sequence[Row], count: int, seed: int, ledger: Ledger, *, fewer: bool) -> list[Row]:
    """`draw_per_class`, with a line in the ledger for each row that is left out."""
    kept = draw_per_class(rows, count, seed, fewer=fewer)
    drawn = {id(row) for row in kept}
    for row in rows:
        if id(row) not in drawn:
            ledger.add(Entry(row.file, row.line, "dropped", "left out by data.per_class"))
    return kept
