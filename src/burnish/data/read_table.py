"""Tables: CSV, TSV and parquet files, and data sets of the Hugging Face hub. A row that cannot be read is dropped alone."""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from burnish.data.files import (
    MAX_RATIO,
    UNPACKED_FREELY,
    Intake,
    Lines,
    Record,
    holds_text,
    open_unpacked,
    refuse_other,
)
from burnish.errors import BurnishError, RowError

MAX_CELL = 1 << 28  # characters
MAX_CELL_LINES = 1000  # lines of a quoted cell; a quote that is still open then was never closed
BATCH = 1024  # rows of a parquet file held at once
HEAD = 512  # bytes that show whether a file is parquet at all


def csv_records(lines: Lines, intake: Intake, delimiter: str) -> Iterator[Record]:
    """The rows of a table whose first line names its columns; cells are text, and may span lines within quotes."""
    csv.field_size_limit(MAX_CELL)
    number, header = next((line for line in lines if holds_text(line, intake)), (0, ""))
    if not header:
        raise intake.empty()
    delimiter = _delimiter(header, delimiter, intake)
    names = _names(header, delimiter, number, intake)
    found = False
    for line, cells, raw in _table(lines, intake, delimiter):
        found = True
        if any(cell.strip() for cell in cells[len(names) :]):
            intake.drop(
                line,
                "too many cells",
                raw,
                f"{len(names)} cells, not {len(cells)}: put texts with {delimiter!r} in quotes",
            )
        elif len(cells) < len(names):
            intake.drop(line, "too few cells", raw, f"{len(names)} cells, not {len(cells)}: {', '.join(names)}")
        else:
            yield line, dict(zip(names, cells, strict=False)), raw
    if not found and not intake.drops:
        hint = "the first line names the columns, and each other line is a row"
        raise intake.useless("a header without a row", f"rows with {', '.join(names)}", hint)


def _delimiter(header: str, usual: str, intake: Intake) -> str:
    if usual not in header:
        for other in (";", "\t", ","):
            if other in header:
                intake.note_once(
                    1, f"cells parted by {other!r}", header, f"nothing: it is read so, though {usual!r} is usual"
                )
                return other
    return usual


def _names(header: str, delimiter: str, line: int, intake: Intake) -> list[str]:
    try:
        names = [name.strip() for name in next(csv.reader([header], delimiter=delimiter, strict=True))]
    except csv.Error as error:
        hint = "close each quote, or leave quotes out of the names"
        raise intake.useless(f"a broken header: {error}", "the names of the columns", hint, line) from error
    while len(names) > 1 and not names[-1]:  # spreadsheets write their empty columns too
        names.pop()
    if twice := sorted({name for name in names if names.count(name) > 1}):
        hint = "rename one of each in the first line"
        raise intake.useless(
            f"columns with the same name: {', '.join(map(repr, twice))}", "different names", hint, line
        )
    return names


def _table(lines: Lines, intake: Intake, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """First line, cells and text of each row. A row with broken quotes is dropped alone: what follows it is read."""
    ahead: list[tuple[int, str]] = []  # lines that were read in search of a closing quote
    while True:
        if not ahead:
            ahead = list(islice(lines, 1))
        if not ahead:
            return
        number, raw = ahead[0]
        cells, taken = _cells(ahead, lines, delimiter) if holds_text(ahead[0], intake) else ([], 1)
        del ahead[:taken]
        if cells:
            yield number, cells, raw
        elif raw.strip():
            fix = 'close each quote, and write a quote within a cell twice: "so ""to speak"""'
            intake.drop(number, "broken quotes", raw, fix)


def _cells(ahead: list[tuple[int, str]], lines: Lines, delimiter: str) -> tuple[list[str], int]:
    """The cells of the row that begins with the first line ahead, and the lines that it spans; no cells where it is broken."""
    text, taken = ahead[0][1], 1
    while True:
        try:
            return next(csv.reader([text], delimiter=delimiter, strict=True)), taken
        except csv.Error as error:
            if str(error) != "unexpected end of data":
                return [], 1
        added = ""
        while '"' not in added:  # the quote is open: only a line with another one can close it
            ahead += islice(lines, taken + 1 - len(ahead))
            if taken == min(len(ahead), MAX_CELL_LINES):
                return [], 1
            added += "\n" + ahead[taken][1]
            taken += 1
        text += added


def parquet_records(path: Path, intake: Intake) -> Iterator[Record]:
    """The rows of a parquet file, a batch at a time; the line is the row's number."""
    import pyarrow
    from pyarrow import parquet

    try:
        with open_unpacked(path, intake) as unpacked:
            refuse_other(unpacked.read(HEAD), intake)
            file = parquet.ParquetFile(unpacked)
            _refuse_bomb(file, path.stat().st_size, intake)
            rows = chain.from_iterable(_as_text(batch).to_pylist() for batch in file.iter_batches(BATCH))
            for number, row in enumerate(rows, 1):
                yield number, row, ""
    except RowError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # the last two: dates beyond Python's
        hint = "decrypt it first" if "encrypt" in str(error).lower() else "fetch the file again"
        raise intake.useless(f"no readable parquet file: {error}", "a parquet file", hint) from error


def _refuse_bomb(file: Any, size: int, intake: Intake) -> None:
    groups = (file.metadata.row_group(index) for index in range(file.metadata.num_row_groups))
    unpacked = sum(group.total_byte_size for group in groups)
    if unpacked > UNPACKED_FREELY and unpacked > size * MAX_RATIO:
        raise intake.bomb()


def _as_text(batch: Any) -> Any:
    """The batch with bytes read as text where they hold some, since older writers do not tell the two apart, and times as text."""
    import pyarrow

    for index, field in enumerate(batch.schema):
        kinds = (pyarrow.types.is_binary, pyarrow.types.is_large_binary, pyarrow.types.is_temporal)
        if any(is_kind(field.type) for is_kind in kinds):
            with contextlib.suppress(pyarrow.ArrowException):
                batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.string()))
    return batch


def hub_records(name: str, intake: Intake) -> Iterator[Record]:
    """The rows of the split `train` of a data set of the Hugging Face hub, as they come; the line is the row's number."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        hint = "pip install 'burnish[hub]'"
        raise intake.useless(
            "reading from the hub needs the package datasets", "a file, or that package", hint
        ) from error
    try:
        for number, row in enumerate(load_dataset(name, split="train", streaming=True), 1):
            yield number, row, ""
    except BurnishError:  # a signal to stop, too
        raise
    except Exception as error:  # the network, the hub and each data set's files fail in their own ways
        hint = "check the name and the network, or download it and give the file"
        raise intake.useless(
            f"the hub gives no such data set: {error}", "org/name with a split `train`", hint
        ) from error
