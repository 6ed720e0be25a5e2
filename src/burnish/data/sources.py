"""From whatever the user names (files, samples of files, data sets of the hub) to rows.

for row in read_rows(["tickets.jsonl", "more.csv.gz#500"], ledger):
    ...
"""

from __future__ import annotations

import difflib
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish.data.files import Intake, Record, read_lines
from burnish.data.formats import parse
from burnish.data.formats._place import Place, show
from burnish.data.ledger import Ledger
from burnish.data.read_json import json_records
from burnish.data.read_table import csv_records, hub_records, parquet_records
from burnish.data.rows import Labelled, Row
from burnish.errors import RowError

KINDS = {
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".csv": ",",
    ".tsv": "\t",
    ".parquet": "parquet",
}
PACKED = (".gz", ".zst")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def read_rows(
    sources: Sequence[str | Path] | str | Path, ledger: Ledger, *, columns: Mapping[str, str] | None = None
) -> Iterator[Row]:
    """The rows of all sources, one after the other, none of which is held whole unless it is one JSON array.

    sources: files (json, jsonl, csv, tsv, parquet, and .gz or .zst of them) or ids of the hub ("org/name"); "file#500" takes a
    sample of 500 rows, the same at each run, in their order. columns: what a format calls it: what the file calls it.
    ledger: gets an entry for each row that is dropped or repaired, and for what is odd but kept.

    Raises RowError where a source cannot be used at all: it is missing, empty, no data, or each of its rows is broken.
    """
    for source in [sources] if isinstance(sources, str | Path) else sources:
        name, amount = _without_amount(str(source))
        intake = Intake(name, ledger)
        rows = _rows(_records(name, intake), intake, columns or {})
        yield from rows if amount is None else _sample(rows, amount, intake)


def _without_amount(source: str) -> tuple[str, int | None]:
    """The source, and the number of rows to take of it where it ends in one."""
    name, mark, amount = source.rpartition("#")
    if not mark or Path(source).exists():
        return source, None
    if not amount.isascii() or not amount.isdigit() or int(amount) == 0:
        raise RowError(
            f"{amount!r} is no number of rows", where=source, expected="a number above 0", hint=f"{name}#500"
        )
    return name, int(amount)


def _records(name: str, intake: Intake) -> Iterator[Record]:
    path = Path(name)
    if not path.exists() and HUB_ID.fullmatch(name) and _kind(path) is None:
        return hub_records(name, intake)
    if not path.is_file():
        raise _missing(path, intake)
    kind = _kind(path)
    if kind is None:
        raise intake.useless(
            f"a kind of file that is not read: {path.suffix or 'no ending'}",
            f"one of {', '.join(KINDS)}, or {' or '.join(PACKED)} of them",
            "rename it if its content is one of these",
        )
    if kind == "parquet":
        return parquet_records(path, intake)
    lines = read_lines(path, intake)
    return json_records(lines, intake) if kind == "json" else csv_records(lines, intake, kind)


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    for packed in PACKED:
        name = name.removesuffix(packed)
    return KINDS.get(Path(name).suffix)


def _missing(path: Path, intake: Intake) -> RowError:
    """The error for a path without a file, with the name that was probably meant."""
    if path.is_dir():
        return intake.useless("a folder, not a file", "the files in it, one by one", f"ls {path}")
    there = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
    alike = difflib.get_close_matches(path.name, there, n=1)
    hint = (
        f"{path.parent / alike[0]}   has almost this name"
        if alike
        else "check the path, which begins where you are now"
    )
    return intake.useless("there is no such file", "a file, or a data set of the hub as org/name", hint)


def _rows(records: Iterator[Record], intake: Intake, columns: Mapping[str, str]) -> Iterator[Row]:
    """The rows of the records that can be used. Raises RowError, with the first three problems, where there is none."""
    labels = Labels(intake)
    unread: set[str] = set()
    good = False
    for line, record, raw in records:
        intake.line = line
        try:
            if columns:
                record = _renamed(record, columns, intake)
            row = parse(record, intake.file, line, intake.note)
            if isinstance(row, Labelled):
                row = labels.alike(row)
        except RowError as error:
            reason, _, found = error.found.partition("\n")
            wanted = [found.strip(), f"expected {error.expected}" if error.expected else "", error.hint]
            intake.drop(line, reason, raw or show(record), "; ".join(part for part in wanted if part))
            continue
        if row.extra and not unread.issuperset(row.extra):
            names = ", ".join(name for name in row.extra if name not in unread)
            unread.update(row.extra)
            intake.note("columns that are not learnt from", names, "nothing: they serve for group_by, only and slices")
        good = True
        yield row
    if not good:
        raise _all_broken(intake)


def _all_broken(intake: Intake) -> RowError:
    if not intake.drops:
        return intake.empty()
    shown: list[str] = []
    for index, (line, reason, fix) in enumerate(intake.drops):
        again = any(reason == earlier for _, earlier, _ in intake.drops[:index])
        shown.append(f"line {line}: {reason}" if again else f"line {line}: {reason}\n    {fix}")
    found = "no row of this file can be used; its first problems are\n  " + "\n  ".join(shown)
    hint = "put the first of them right: the others are often like it"
    return intake.useless(found, "at least one good row", hint, intake.drops[0][0])


def _renamed(record: dict[str, Any], columns: Mapping[str, str], intake: Intake) -> dict[str, Any]:
    """The record under the names that the formats know. A column that bears such a name already may stay as it is."""
    place = Place(intake.file, intake.line)
    theirs = {their: ours for ours, their in columns.items() if their in record}
    for ours, their in columns.items():
        if their not in record and ours not in record:
            alike = difflib.get_close_matches(their, record, n=1) or list(record)[:1] or ["YOUR_COLUMN"]
            raise place.error(
                "a column is missing", their, None, f"one of {', '.join(record)}", f"columns: {{{ours}: {alike[0]}}}"
            )
        if their in record and ours in record and ours not in theirs:
            hint = f"columns: {{{ours}: {their}, my_{ours}: {ours}}}"
            raise place.error("several columns mean the same", ours, record[ours], f"either {ours} or {their}", hint)
    return {theirs.get(name, name): value for name, value in record.items()}


class Labels:
    """Keeps the labels of a file to one type, the first one's, so that 1 and "1" do not become two classes."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.first: type | None = None

    def alike(self, row: Labelled) -> Labelled:
        """The row with its label in the file's type. Raises RowError where it cannot be written so."""
        found = type(row.label)
        self.first = self.first or found
        if found is self.first or {found, self.first} == {int, float}:
            return row
        label: Any = None
        if self.first is str and not isinstance(row.label, tuple):
            label = str(row.label)
        elif self.first is tuple:
            label = (str(row.label),)
        elif self.first is int and isinstance(row.label, str) and re.fullmatch(r"-?[0-9]{1,15}", row.label):
            label = int(row.label)
        if label is None:
            expected = f"a label like the first one, of type {self.first.__name__}"
            raise Place(row.file, row.line).error("a label of another type", "label", row.label, expected)
        fix = "write all labels alike"
        self.intake.change(row.line, "a label of another type", repr(row.label), repr(label), fix)
        return replace(row, label=label)


def _sample(rows: Iterator[Row], amount: int, intake: Intake) -> Iterator[Row]:
    """So many of the rows, each as likely as any other, in their order (Vitter 1985, algorithm R)."""
    draw = random.Random(f"{Path(intake.file).name}#{amount}")
    kept: list[tuple[int, Row]] = []
    count = 0
    for count, row in enumerate(rows, 1):
        if count <= amount:
            kept.append((count, row))
        elif (place := draw.randrange(count)) < amount:
            kept[place] = (count, row)
    found = f"{len(kept)} of {count} rows"
    intake.note_once(1, "a sample was taken", found, f"leave out #{amount} to read all")
    yield from (row for _, row in sorted(kept, key=lambda one: one[0]))
