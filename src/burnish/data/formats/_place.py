"""What every format needs: the place of a row, its errors, and the columns that nobody reads."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from burnish.errors import RowError

MAX_DEPTH = 64  # lists and objects within each other: far above any real row, far below Python's recursion limit
SHOWN = 120  # characters of a value that an error shows
LARGEST_LABEL = 2**53  # above it a float cannot tell two integers apart

Note = Callable[[str, str, str], None]  # reason, what stands there, fix


class Shape(NamedTuple):
    """The columns by which a format is recognised.

    level: where several formats fit, the highest level is read, and two of one level are ambiguous. needs: for each column
    that must be there, the names it may have, the usual one first. reads: the columns that may be there as well.
    """

    level: int
    needs: tuple[tuple[str, ...], ...]
    reads: tuple[str, ...] = ()

    def fits(self, columns: Collection[str]) -> bool:
        return all(any(name in columns for name in names) for names in self.needs)


class Place:
    """Where a record stands: makes its errors, and passes on what should be looked at although the row is good."""

    __slots__ = ("_note", "file", "line")

    def __init__(self, file: str, line: int, note: Note | None = None) -> None:
        self.file, self.line, self._note = file, line, note

    def error(self, reason: str, field: str, value: Any, expected: str, hint: str = "") -> RowError:
        """reason: a few words that recur, since rows are counted by them; field and value: what stood there."""
        found = f'{reason}\n  "{field}": {show(value)}' if field else reason
        return RowError(found, where=f"{self.file}:{self.line}", expected=expected, hint=hint)

    def note(self, reason: str, found: str, fix: str) -> None:
        if self._note is not None:
            self._note(reason, found, fix)

    def key(self, record: Mapping[str, Any], names: Sequence[str]) -> str:
        """Which of the names the record has. Raises RowError where it has several and none is the usual one."""
        if names[0] in record:
            return names[0]
        found = [name for name in names if name in record]
        if len(found) == 1:
            return found[0]
        if not found:
            raise self.error(
                "a column is missing",
                "",
                None,
                f"one of {', '.join(names)} beside {', '.join(record)}",
                f"columns: {{{names[0]}: YOUR_COLUMN}}",
            )
        expected = f"one column to be read as {names[0]!r}"
        hint = f"columns: {{{names[0]}: {found[0]}}}"
        raise self.error("several columns mean the same", ", ".join(found), record[found[0]], expected, hint)

    def rest(self, record: Mapping[str, Any], *used: str) -> dict[str, Any]:
        """The columns that the format does not read, as JSON can hold them."""
        return {name: plain(value, name, self) for name, value in record.items() if name not in used}


def show(value: Any) -> str:
    """The start of a value as JSON, fit for any terminal."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        text = f"a {type(value).__name__} that JSON cannot hold"
    text = text if len(text) <= SHOWN else text[:SHOWN] + "..."
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def plain(value: Any, field: str, place: Place, depth: int = 0) -> Any:
    """The value with everything that JSON lacks replaced: not-a-number by null, dates and the like by their text.

    Raises RowError where it is nested deeper than MAX_DEPTH.
    """
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        place.note("a number that is none, read as null", f'"{field}": {value}', "leave the cell empty, or write null")
        return None
    if depth > MAX_DEPTH:
        raise place.error("nested too deep", field, None, f"at most {MAX_DEPTH} lists or objects within each other")
    if isinstance(value, Mapping):
        return {str(key): plain(item, field, place, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, field, place, depth + 1) for item in value]
    if isinstance(value, bytes):
        place.note("a column of bytes is left out", f'"{field}"', "leave the column out of the file")
        return None
    return str(value)


def number(value: Any, field: str, place: Place) -> float:
    """A finite number. Raises RowError otherwise; true and false are no numbers."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            if math.isfinite(value):
                return float(value)
        except OverflowError:
            pass
        raise place.error("a number that is none, or beyond all bounds", field, value, "a finite number")
    raise place.error("no number where one is needed", field, value, "a finite number")


def label(value: Any, field: str, place: Place) -> str | int | float | tuple[str, ...]:
    """A class (text or integer), a grade (float), or several classes; true and false become the classes "true" and "false".

    Raises RowError where it is null, blank, an object, or a number out of bounds.
    """
    if isinstance(value, str) and value.strip():
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value, field, place)
    if isinstance(value, int) and abs(value) <= LARGEST_LABEL:
        return value
    if isinstance(value, list) and value and all(isinstance(item, str | int) for item in value):
        return tuple(str(label(item, f"{field}[{index}]", place)) for index, item in enumerate(value))
    reason = "the label is empty" if value in (None, "", []) or isinstance(value, str) else "the label is of no use"
    raise place.error(reason, field, value, "a class (text or integer), a grade (number) or a list of classes")


def parsed_json(text: str, field: str, place: Place, expected: str) -> Any:
    """The value of JSON that stands as text in a column. Raises RowError where it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise place.error("text that is no JSON", field, text, expected) from error
