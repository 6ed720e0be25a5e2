"""A few training rows of each class, or a few in all: what few-shot learning learns from."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Labelled, Row
from burnish.errors import RecipeError, RowError


def ranked_classes(rows: Sequence[Row], seed: int, *, by_label: bool = True) -> dict[str, list[int]]:
    """Label -> the numbers of its rows in the order in which they are drawn; with by_label off all rows are of one class, ''.

    Each label's rows are shuffled by the seed and the label, and a draw takes the first: a smaller draw is part of a larger one, and a
    label more or less changes nothing for the others, so a curve over the size of the draw compares nested sets.
    Raises RowError for a row without a label.
    """
    classes: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        if by_label and not isinstance(row, Labelled):
            raise RowError(
                f"this is a {row.kind} row, which has no class to draw from",
                where=row.where,
                expected="a text and its label",
                hint="--set data.per_class=null --set data.sample=64   draws rows without regard to classes",
            )
        classes[row.answer_text() if by_label else ""].append(number)
    for label, numbers in classes.items():
        random.Random(f"per_class/{seed}/{label}").shuffle(numbers)
    return classes


def draw(
    rows: Sequence[Row],
    count: int,
    seed: int,
    *,
    by_label: bool = True,
    fewer: bool = False,
    where: str = "data.per_class",
) -> list[Row]:
    """`count` rows of each label, or in all, in the order of the file.

    fewer: let a label that has fewer rows give all of them. where: the key or option that asked. Raises RowError as `ranked_classes`
    does, RecipeError where a label has too few rows or there is one label alone.
    """
    classes = ranked_classes(rows, seed, by_label=by_label)
    if by_label and len(classes) < 2:
        found = f"all training rows have the label {next(iter(classes), '')!r}"
        raise RecipeError(found, where=where, expected="two classes or more")
    if not fewer:
        _refuse_small(classes, count, where)
    kept = {number for numbers in classes.values() for number in numbers[:count]}
    return [row for number, row in enumerate(rows) if number in kept]


def _refuse_small(classes: dict[str, list[int]], count: int, where: str) -> None:
    label, least = min(((label, len(numbers)) for label, numbers in classes.items()), key=lambda pair: pair[1])
    if least >= count:
        return
    if "" in classes:
        raise RecipeError(
            f"{count} rows are wanted, and there are {least} to train on", where=where, expected=f"at most {least}"
        )
    short = sum(len(numbers) < count for numbers in classes.values())
    others = f", the smallest of {short} classes that have too few" if short > 1 else ""
    raise RecipeError(
        f"{count} rows of each class are wanted, and {label!r} has {least} to train on{others}",
        where=where,
        expected=f"at most {least}",
        hint="--set data.take_fewer=true   lets a small class give all that it has",
    )


def keep_per_class(rows: Sequence[Row], count: int, seed: int, ledger: Ledger, *, fewer: bool) -> list[Row]:
    """`draw`, with a line in the ledger for each row that is left out."""
    kept = draw(rows, count, seed, fewer=fewer)
    drawn = {id(row) for row in kept}
    for row in rows:
        if id(row) not in drawn:
            ledger.add(Entry(row.file, row.line, "left out", "data.per_class"))
    return kept
