"""What the tests of reading share: files written from a few lines, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.data.formats import parse
from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Row
from burnish.data.sources import read_rows
from burnish.errors import RowError

GOOD = '{"prompt": "Capital of France?", "completion": "Paris"}'


def write(path: Path, *lines: str | bytes) -> Path:
    """A file of these lines, each with its line end."""
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def read(path: Path, **options: Any) -> tuple[list[Row], list[Entry]]:
    ledger = Ledger()
    rows = list(read_rows(path, ledger, **options))
    assert sum(ledger.counts.values()) == len(ledger.examples), "the file is too large for this helper"
    return rows, ledger.examples


def assert_entry(entries: list[Entry], path: Path, line: int, action: str, reason: str) -> Entry:
    """There is one entry, it says this and how to put it right."""
    assert [(entry.where, entry.action, entry.reason) for entry in entries] == [(f"{path}:{line}", action, reason)]
    assert entries[0].fix
    return entries[0]


def assert_refused(path: Path, line: int, reason: str) -> RowError:
    """The whole file is refused, with place, reason and fix."""
    with pytest.raises(RowError, match=reason) as caught:
        list(read_rows(path, Ledger()))
    assert caught.value.where == f"{path}:{line}"
    assert caught.value.expected
    assert caught.value.hint
    return caught.value


def again(row: Row) -> Row:
    """The row after it was written and read."""
    return parse(json.loads(json.dumps(row.as_json())), row.file, row.line)
