"""From the recipe's files to guarded splits: read, clean, de-duplicate, select, split, guard."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from burnish.data.augment import told_apart, with_known
from burnish.data.clean import clean_rows
from burnish.data.dedup import Match, drop_duplicates
from burnish.data.draw import keep_per_class
from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Labelled, Row
from burnish.data.sources import read_rows
from burnish.data.split import Guarded, Splits, guard, split_rows
from burnish.errors import RecipeError, RowError
from burnish.recipe import Data, Recipe


@dataclass(frozen=True)
class Prepared:
    """Guarded splits, and how many rows were read before any was dropped."""

    guarded: Guarded
    read: int


def prepare(recipe: Recipe, ledger: Ledger, *, special_tokens: Collection[str], kinds: Collection[str]) -> Prepared:
    """All that happens to rows before they are tokenized.

    special_tokens: the model's control tokens, which no user text may spell. kinds: the rows that the objective learns from.
    Raises RowError, RecipeError or DataGuardError.
    """
    data = recipe.data

    def rows_of(files: Sequence[str]) -> Iterator[Row]:
        rows = read_rows(files, ledger, columns=data.columns)
        return clean_rows(_only(rows, data.only, ledger), ledger, special_tokens=special_tokens, redact=data.redact)

    pool, made = told_apart(rows_of(data.train))
    given = {
        split: _written(rows_of(files), split, ledger)
        for split in ("validation", "test")
        if isinstance(files := getattr(data, split), list)
    }
    action, leaks = recipe.guards.leakage.action, list[Match]()
    if (
        given
    ):  # held against the files as they are: once its duplicates are gone, the very copy of a test row may be gone too
        whole = guard(Splits(pool, given.get("validation", []), given.get("test", [])), action, ledger)
        pool, leaks = whole.train, [match for match in whole.matches if match.kind != "near"]
        given = {split: getattr(whole, split) for split in given}
    pool = drop_duplicates(pool, ledger, near=data.near_duplicates)
    if data.sample:
        pool = _sample(pool, data.sample, recipe.train.seed, ledger)
        given = {
            split: _sample(rows, max(8, data.sample // 4), recipe.train.seed, ledger) for split, rows in given.items()
        }
    _check(pool, given, kinds, recipe)
    guarded = guard(_split(pool, given, data, recipe), action, ledger)
    guarded = with_known(replace(guarded, matches=[*leaks, *guarded.matches]), made, ledger)
    if data.per_class:  # after the guard, so that validation and test are the same whatever the number
        few = keep_per_class(guarded.train, data.per_class, recipe.train.seed, ledger, fewer=data.take_fewer)
        guarded = replace(guarded, train=few)
    left = len(guarded.train) + len(guarded.validation) + len(guarded.test)
    return Prepared(guarded, left + ledger.gone)


def _written(rows: Iterable[Row], split: str, ledger: Ledger) -> list[Row]:
    """The rows of a held-out file that somebody wrote: nothing is measured on generated ones."""
    written, made = told_apart(rows)
    for row in made:
        ledger.add(Entry(row.file, row.line, "dropped", f"generated, and so not for {split}", row.prompt_text()))
    return written


def _split(pool: list[Row], given: Mapping[str, list[Row]], data: Data, recipe: Recipe) -> Splits:
    """Cut from the pool what no file was given for."""
    shares = {split: 0 if isinstance(size := getattr(data, split), list) else size for split in ("validation", "test")}
    splits = split_rows(
        pool,
        validation=shares["validation"],
        test=shares["test"],
        group_by=data.group_by,
        stratify=recipe.task.kind == "classify",
        seed=recipe.train.seed,
    )
    return Splits(splits.train, given.get("validation", splits.validation), given.get("test", splits.test))


def _only(rows: Iterable[Row], only: Mapping[str, Sequence[str]], ledger: Ledger) -> Iterator[Row]:
    """The rows whose columns hold one of the wanted values; the label's column is `label`."""
    for row in rows:
        values = {**row.extra, "label": row.label} if isinstance(row, Labelled) else row.extra
        if missing := only.keys() - values.keys():
            raise RecipeError(
                f"{row.where} has no column {min(missing)!r}",
                where="data.only",
                expected=f"one of: {', '.join(values)}" if values else "a column that is not learnt from, or a label",
            )
        if all(str(values[column]) in wanted for column, wanted in only.items()):
            yield row
        else:
            ledger.add(Entry(row.file, row.line, "left out", "data.only"))


def _sample(rows: Sequence[Row], size: int, seed: int, ledger: Ledger) -> list[Row]:
    """`size` of the rows, in their order."""
    kept = set(random.Random(f"sample/{seed}").sample(range(len(rows)), min(size, len(rows))))
    for number, row in enumerate(rows):
        if number not in kept:
            ledger.add(Entry(row.file, row.line, "left out", "data.sample"))
    return [row for number, row in enumerate(rows) if number in kept]


def _check(pool: Sequence[Row], given: Mapping[str, Sequence[Row]], kinds: Collection[str], recipe: Recipe) -> None:
    for split, rows in {"train": pool, **given}.items():
        if not rows:
            hint = "burnish data check FILE   shows what became of each"
            raise RowError("no row is left after cleaning", where=f"data.{split}", expected="some examples", hint=hint)
        wrong = next((row for row in rows if row.kind not in kinds), None)
        if wrong is not None:
            raise RowError(
                f"this is a {wrong.kind} row, and {recipe.objective} does not learn from those",
                where=wrong.where,
                expected=f"rows of the kinds: {', '.join(sorted(kinds))}",
                hint="rows with prompt and completion, or messages",
            )
