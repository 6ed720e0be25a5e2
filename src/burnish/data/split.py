"""Train, validation and test, cut so that nothing of one stands in another; and the guard that makes sure of it."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from burnish.data.dedup import Match, find_matches, near_pairs
from burnish.data.ledger import Entry, Ledger
from burnish.data.private import masked
from burnish.data.rows import Row
from burnish.data.similar import Index
from burnish.errors import DataGuardError, RecipeError
from burnish.recipe import MAIN


@dataclass(frozen=True)
class Splits:
    """Rows told apart, but not yet guarded."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


@dataclass(frozen=True)
class Guarded:
    """Rows told apart of which no held-out one also stands in train. Only `guard` and `restored` make it; a feed takes nothing else.

    matches: what stood in two splits, or is near. test_hash: SHA-256 of the test rows, which lock them. parts: the same by task, where
    there are several.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    matches: list[Match]
    test_hash: str
    parts: Mapping[str, Guarded] = field(default_factory=dict)

    @property
    def tasks(self) -> Mapping[str, Guarded]:
        """The rows of each task by its name."""
        return self.parts or {MAIN: self}

    @staticmethod
    def restored(splits: Mapping[str, list[Row]], matches: Sequence[Mapping[str, Any]]) -> Guarded:
        """What `guard` returned in an earlier run of the same recipe on the same files."""
        return Guarded(
            splits["train"],
            splits["validation"],
            splits["test"],
            [Match.restored(match) for match in matches],
            hash_rows(splits["test"]),
        )


def split_rows(
    rows: Sequence[Row],
    *,
    validation: float,
    test: float,
    group_by: str | None = None,
    stratify: bool = False,
    seed: int = 0,
) -> Splits:
    """Cut rows into splits, each in the order of the file.

    validation, test: a share below 1, or a number of rows; 0 for none. Rows of one value of the column `group_by`, and rows whose
    prompts are equal, near (Jaccard 0.8) or share 13 words, stay together. stratify: each answer (a label) has its share in
    every split. Raises RecipeError where a row lacks the column, and where the sizes cannot be had.
    """
    sizes = {"test": _size(test, len(rows)), "validation": _size(validation, len(rows))}
    if min(sizes.values()) < 0 or sum(sizes.values()) >= max(len(rows), 1):
        raise RecipeError(
            f"{sizes['validation']} rows to validate and {sizes['test']} to test, of {len(rows)}",
            where="data.validation, data.test",
            expected="none below 0, and some rows left to train on",
            hint="--set data.validation=0.1 --set data.test=0.1",
        )
    components = _components(rows, group_by)
    chosen = _choose(components, [row.answer_text() if stratify else "" for row in rows], sizes, seed)
    for name, size in sizes.items():
        if size and not chosen[name]:
            largest = max(map(len, components))
            raise RecipeError(
                f"no row can be held out: {largest} of {len(rows)} rows belong together, by their {group_by or 'likeness'}",
                where=f"data.{name}",
                expected=f"rows that can be told apart, of which {size} are held out",
                hint=f"--set data.{name}=FILE   takes other rows",
            )
    held_out = chosen["test"] | chosen["validation"]
    return Splits(
        [row for number, row in enumerate(rows) if number not in held_out],
        *([rows[number] for number in sorted(chosen[name])] for name in ("validation", "test")),
    )


def _size(size: float, rows: int) -> int:
    return round(size * rows) if size < 1 else int(size)


def _choose(
    components: list[list[int]], labels: Sequence[str], sizes: Mapping[str, int], seed: int
) -> dict[str, set[int]]:
    """The rows of each held-out split. labels: of each row; every label gives its share to every split."""
    strata: dict[str, list[list[int]]] = defaultdict(list)
    for component in components:
        strata[labels[component[0]]].append(component)
    chosen: dict[str, set[int]] = {name: set() for name in sizes}
    owed = dict.fromkeys(sizes, 0.0)  # fractions of rows that a small label could not give are carried on to the next
    for label in sorted(strata):
        left = strata[label]
        random.Random(f"{seed}/{label}").shuffle(left)
        count = sum(map(len, left))
        for name, size in sizes.items():
            owed[name] += size * count / len(labels)
            left = _fill(left, chosen[name], owed, name, keep=1 if len(strata) > 1 else 0)
    return chosen


def _fill(
    components: list[list[int]], into: set[int], owed: dict[str, float], name: str, *, keep: int
) -> list[list[int]]:
    """Move components while they fit into what is owed; returns those that are left, at least `keep` of them."""
    left: list[list[int]] = []
    for number, component in enumerate(components):
        remaining = len(left) + len(components) - number - 1
        if len(component) <= owed[name] + 0.5 and remaining >= keep:
            into.update(component)
            owed[name] -= len(component)
        else:
            left.append(component)
    return left


def _too_tied(name: str, size: int, largest: int, rows: int, group_by: str | None) -> RecipeError:
    return RecipeError(
        f"no row can be held out: {largest} of {rows} rows belong together, by their {group_by or 'likeness'}",
        where=f"data.{name}",
        expected=f"rows that can be told apart, of which {size} are held out",
        hint=f"--set data.{name}=FILE   takes other rows",
    )


def _components(rows: Sequence[Row], group_by: str | None) -> list[list[int]]:
    """The rows that must stay together, each component ascending, ordered by its first row."""
    parent = list(range(len(rows)))

    def root(number: int) -> int:
        while parent[number] != number:
            parent[number] = parent[parent[number]]
            number = parent[number]
        return number

    index = Index()
    for row in rows:
        index.add(row.prompt_text())
    for one, other in (*_same_group(rows, group_by), *near_pairs(index)):
        parent[root(other)] = root(one)
    components: dict[int, list[int]] = defaultdict(list)
    for number in range(len(rows)):
        components[root(number)].append(number)
    return sorted(components.values())


def _same_group(rows: Sequence[Row], group_by: str | None) -> Iterator[tuple[int, int]]:
    if group_by is None:
        return
    firsts: dict[str, int] = {}
    for number, row in enumerate(rows):
        if group_by not in row.extra:
            expected = f"one of: {', '.join(row.extra)}" if row.extra else "a column that is not learnt from"
            raise RecipeError(f"{row.where} has no column {group_by!r}", where="data.group_by", expected=expected)
        value = row.extra[group_by]
        if value not in (None, ""):
            key = json.dumps(value, sort_keys=True)
            if (first := firsts.setdefault(key, number)) != number:
                yield first, number


def guard(splits: Splits, policy: Literal["block", "drop"], ledger: Ledger) -> Guarded:
    """Make sure that no held-out row stands in train, and no test row in validation.

    policy: "block" raises DataGuardError for equal rows, shared runs of 13 words and near rows; "drop" takes the copies out of
    train (or validation) and leaves the test as it is. Rows that are only alike (Jaccard 0.5 to 0.8) are told and kept.
    """
    matches = find_matches(splits.train, splits.validation, splits.test)
    surely = [match for match in matches if match.kind != "near"]
    if surely and policy == "block":
        raise _blocked(splits, matches, surely)
    gone: dict[int, Match] = {}  # by the row itself: a line may hold several, and a file may be given twice
    for match in surely:
        gone.setdefault(id(match.train), match)
    for match in gone.values():
        row, there = match.train, f"{match.held_out.where}: {match.held_out.prompt_text()}"
        fix = "nothing: the held-out row stays"
        ledger.add(Entry(row.file, row.line, "dropped", f"leak ({match.kind})", row.prompt_text(), there, fix))
    train, validation = ([row for row in rows if id(row) not in gone] for rows in (splits.train, splits.validation))
    return Guarded(train, validation, splits.test, matches, hash_rows(splits.test))


def _blocked(splits: Splits, matches: list[Match], surely: list[Match]) -> DataGuardError:
    leaked = {(match.held_out.file, match.held_out.line) for match in surely}
    shown = "\n".join(
        f"    {match.held_out.where} = {match.train.where} ({match.kind}): {masked(match.held_out.prompt_text())[:80]}"
        for match in surely[:5]
    )
    rows = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    return DataGuardError(
        f"{len(leaked)} held-out rows also stand in train: {by_kind(surely)}\n{shown}",
        where="data leakage",
        expected="held-out rows that training has not seen",
        hint="--set guards.leakage.action=drop   takes their copies out of train",
        rows=rows,
        matches=matches,
    )


def by_kind(matches: Sequence[Match]) -> str:
    """How many held-out rows matched, each counted once by the surest test: "25 exact, 22 13-gram"."""
    seen: set[tuple[str, int]] = set()
    counts: Counter[str] = Counter()
    for match in matches:  # the surest come first
        place = (match.held_out.file, match.held_out.line)
        counts[match.kind] += place not in seen
        seen.add(place)
    return ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)


def hash_rows(rows: Sequence[Row]) -> str:
    """SHA-256 of what rows say, whatever file they stand in."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row.as_json(), sort_keys=True).encode())
    return digest.hexdigest()
