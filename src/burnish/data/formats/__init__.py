"""The formats of rows: one module for each, found by looking into this folder, so that a new format is one new file.

A format's module has three names: NAME; SHAPES, the columns by which it is recognised (`_place.Shape`); and
`read(record, place)`, which returns a Row or raises `place.error(...)`. Its docstring shows a row.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Collection, Mapping
from functools import cache, lru_cache
from typing import Any, Protocol, cast

from burnish.data.formats._place import Note, Place, Shape
from burnish.data.rows import Row
from burnish.errors import RowError

EXPORTS = 50  # the level of the formats that an annotation tool writes, and nobody by hand

# What `Row.as_json` writes for each kind: the columns that name the format, and those that it reads beside them.
WRITTEN: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "conversation": (("messages",), ("system", "tools")),
    "text": (("text",), ()),
    "prompt": (("prompt",), ("system",)),
    "labelled": (("messages", "label"), ("system",)),
    "tagged": (("tokens", "tags"), ()),
    "pair": (("prompt", "chosen", "rejected"), ("system", "margin")),
    "judged": (("prompt", "completion", "label"), ("system", "kto_tag")),
    "ranking": (("prompt", "answers", "scores"), ("system",)),
}


class Format(Protocol):
    """What a module of this folder offers."""

    NAME: str
    SHAPES: tuple[Shape, ...]

    def read(self, record: Mapping[str, Any], place: Place) -> Row: ...


def parse(record: Mapping[str, Any], file: str, line: int, note: Note | None = None) -> Row:
    """The row that a JSON object holds, in whichever format its keys show.

    note: called with a reason, what was found and a fix, for what is odd but good enough to keep. Raises RowError, which
    names the field, what stood there and what was expected.
    """
    place = Place(file, line, note)
    row = _format_of(record, place).read(record, place)
    if row.extra and (twice := _read_twice(row.kind, tuple(row.extra))):
        used = ", ".join(name for name in record if name not in row.extra)
        raise place.error(
            "several columns mean the same",
            twice,
            row.extra[twice],
            f"either {used} or {twice}, not both",
            f"columns: {{my_{twice}: {twice}}}   keeps it under a name that no format reads",
        )
    return row


@cache
def formats() -> tuple[Format, ...]:
    """All formats, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(cast(Format, importlib.import_module(f"{__name__}.{name}")) for name in names)


@lru_cache(maxsize=4096)
def _fitting(columns: tuple[str, ...]) -> tuple[Format, ...]:
    """The formats of the highest level that fit: one, unless the columns are unknown or ambiguous."""
    fitting = [(shape.level, format) for format in formats() for shape in format.SHAPES if shape.fits(columns)]
    highest = max((level for level, _ in fitting), default=0)
    return tuple(dict.fromkeys(format for level, format in fitting if level == highest))


def _format_of(record: Mapping[str, Any], place: Place) -> Format:
    columns = tuple(record)
    found = _fitting(columns)
    if len(found) == 1:
        return found[0]
    if not found:
        raise _unknown(record, place)
    names = " and ".join(format.NAME for format in found)
    needed = [name for format in found[1:] for names in format.SHAPES[0].needs for name in names if name in columns]
    raise RowError(
        f"the columns fit two formats\n  columns: {', '.join(columns)}",
        where=f"{place.file}:{place.line}",
        expected=f"one of {names}",
        hint=f"columns: {{my_{needed[0]}: {needed[0]}}}   keeps it under a name that no format reads",
    )


@lru_cache(maxsize=4096)
def _read_twice(kind: str, extra: tuple[str, ...]) -> str:
    """A column that nobody read, but that would be read once the row is written: both cannot be kept. Empty if none."""
    needed, beside = WRITTEN[kind]
    taken = next((name for name in extra if name in needed or name in beside), "")
    if taken or _fitting((*needed, *extra)) == _fitting(needed):
        return taken
    return next((name for name in extra if _fitting((*needed, name)) != _fitting(needed)), extra[0])


def _unknown(record: Mapping[str, Any], place: Place) -> RowError:
    """The error for columns that no format has: the nearest format, what it misses, and the line to type."""

    def distance(candidate: tuple[Format, Shape]) -> tuple[bool, bool, int, int]:
        format, shape = candidate
        missing = len(_missing(shape, record))
        strange = missing == len(shape.needs)
        return strange, strange and format.NAME != "prompt_completion", missing, shape.level

    by_hand = ((format, shape) for format in formats() for shape in format.SHAPES if shape.level < EXPORTS)
    format, shape = min(by_hand, key=distance)
    needed = {name for names in shape.needs for name in names}
    free = [
        name for name, value in record.items() if name not in needed and name.strip() and isinstance(value, str | list)
    ]
    renamed = []
    for names in _missing(shape, record):
        alike = [match for name in names for match in difflib.get_close_matches(name, free, n=1)]
        theirs = alike[0] if alike else free[0] if free else "YOUR_COLUMN"
        free = [name for name in free if name != theirs]
        renamed.append(f"{names[0]}: {theirs}")
    hint = f"columns: {{{', '.join(renamed)}}}   in the recipe, under data; put your own column's name there"
    for name, value in record.items():
        if len(renamed) == len(shape.needs) and isinstance(value, list) and value and isinstance(value[0], dict):
            hint = f"jq -c '.{name}[]' {place.file} > rows.jsonl   if the rows are in {name!r}"
    return RowError(
        f"no format has these columns\n  columns: {', '.join(record) or 'none'}",
        where=f"{place.file}:{place.line}",
        expected=f"{' and '.join(names[0] for names in _missing(shape, record))} as well, for the nearest format, {format.NAME}",
        hint=hint,
    )


def _missing(shape: Shape, columns: Collection[str]) -> list[tuple[str, ...]]:
    return [names for names in shape.needs if not any(name in columns for name in names)]
