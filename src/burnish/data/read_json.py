"""JSON and JSON Lines, told apart by their content. What cannot be read is dropped alone: reading goes on behind it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Literal

from burnish.data.files import EXCERPT, Intake, Lines, Record, holds_text

MAX_DOCUMENT = 1 << 30  # characters of a file that is one array, which has to be held whole
LONE = re.compile("[\ud800-\udfff]")
BETWEEN = re.compile(r"[\s,\[\]}]*")  # what stands between the records of an array, the rests of a broken one included


class Json:
    """Decodes JSON, and sees what Python's decoder passes over: keys that stand twice, and halves of characters."""

    def __init__(self, intake: Intake) -> None:
        self.intake = intake
        self.twice: list[str] = []
        self.decode = json.JSONDecoder(object_pairs_hook=self._object).decode
        self.decode_at = json.JSONDecoder(object_pairs_hook=self._object).raw_decode
        self.decode_loosely = json.JSONDecoder(object_pairs_hook=self._object, strict=False).decode

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.twice += [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
        return found

    def record(self, line: int, value: Any, raw: str) -> Iterator[Record]:
        """The value if it is a row: repaired where it holds halves of characters, its doubled keys noted."""
        if self.twice:
            fix = f"keep one of each: {', '.join(dict.fromkeys(self.twice))}; the last one is read"
            self.intake.line = line
            self.intake.note("a key that stands twice", raw, fix)
            self.twice = []
        if not isinstance(value, dict):
            self.intake.drop(
                line, "a row that is no object", raw, 'write an object such as {"prompt": ..., "completion": ...}'
            )
            return
        if "\\ud" in raw or "\\uD" in raw:
            try:
                value = self._repaired(line, value, raw)
            except RecursionError as error:
                reason, fix = _unreadable(error)
                self.intake.drop(line, reason, raw, fix)
                return
        yield line, value, raw

    def _repaired(self, line: int, value: Any, raw: str) -> Any:
        text = json.dumps(value, ensure_ascii=False)
        if not LONE.search(text):
            return value
        fix = "write each character whole, or as a pair of escapes"
        self.intake.change(line, "half of a character, replaced by a question mark", raw, "\ufffd", fix)
        return json.loads(LONE.sub("\ufffd", text))


def json_records(lines: Lines, intake: Intake) -> Iterator[Record]:
    """The rows of a JSON or JSON Lines file; which of the two it is shows in its first lines, not in its name."""
    filled = (line for line in lines if holds_text(line, intake))
    opening = list(islice(filled, 2))
    if not opening:
        raise intake.empty()
    reader = Json(intake)
    if _is_document(opening, reader):
        yield from _document(chain(opening, filled), reader)
    else:
        for line, text in chain(opening, filled):
            yield from _line(line, text, reader)


def _is_document(opening: list[tuple[int, str]], reader: Json) -> bool:
    """Whether the first lines begin one JSON value that spans the file."""
    first, second = opening[0][1].strip(), "".join(text for _, text in opening[1:]).strip()
    if first.startswith("["):
        return not second or _state(first, reader) != "whole"
    spans = first.startswith("{") and _state(first, reader) == "open" and second != "" and not second.startswith("{")
    return spans and _state(f"{first}\n{second}", reader) != "broken"


def _state(text: str, reader: Json) -> Literal["whole", "open", "broken"]:
    """Whether a text is JSON, or the beginning of some."""
    try:
        reader.decode(text)
        return "whole"
    except json.JSONDecodeError as error:
        return "open" if error.pos >= len(text) else "broken"
    except (ValueError, RecursionError):
        return "broken"
    finally:
        reader.twice = []


def _line(line: int, text: str, reader: Json) -> Iterator[Record]:
    """The row of a line; or its rows, where it holds an array or several objects."""
    text = text.strip("\ufeff \t")
    try:
        value = reader.decode(text)
    except json.JSONDecodeError as error:
        yield from _broken_line(line, text, error, reader)
        return
    except (ValueError, RecursionError) as error:
        reason, fix = _unreadable(error)
        reader.intake.drop(line, reason, text, fix)
        return
    if isinstance(value, list):
        reader.intake.line = line
        reader.intake.note("an array within a line", text, "nothing: each of its objects is read as a row")
        for item in value:
            yield from reader.record(line, item, text)
    else:
        yield from reader.record(line, value, text)


def _unreadable(error: Exception) -> tuple[str, str]:
    """Reason and fix for what is no JSON, or too much of it."""
    if isinstance(error, json.JSONDecodeError):
        return "broken JSON", f"column {error.colno}: {error.msg}"
    if isinstance(error, RecursionError):
        return "nested too deep", "flatten it"
    return "a number beyond all bounds", "write it as text"


def _broken_line(line: int, text: str, error: json.JSONDecodeError, reader: Json) -> Iterator[Record]:
    intake = reader.intake
    reader.twice = []
    if error.msg == "Extra data" and (values := _several(text, reader)):
        intake.line = line
        intake.note("several objects on one line", text, "nothing: each is read as a row")
        for value in values:
            yield from reader.record(line, value, text)
        return
    if error.msg.startswith("Invalid control character"):
        try:
            value = reader.decode_loosely(text)
        except (ValueError, RecursionError):
            reader.twice = []
        else:
            intake.line = line
            intake.note("a control character within a text", text, "write it as an escape, such as \\n or \\t")
            yield from reader.record(line, value, text)
            return
    cut = line == intake.unended and (error.pos >= len(text) or error.msg.startswith("Unterminated"))
    reason, fix = _unreadable(error)
    intake.drop(line, f"{reason}: the last line is cut off" if cut else reason, text, fix)


def _several(text: str, reader: Json) -> list[Any]:
    """The objects that stand one after the other, or nothing where something else is among them."""
    values, position = [], 0
    while position < len(text):
        try:
            value, position = reader.decode_at(text, position)
        except (ValueError, RecursionError):
            reader.twice = []
            return []
        values.append(value)
        while position < len(text) and text[position] in " \t,;":
            position += 1
    return values


def _document(lines: Iterable[tuple[int, str]], reader: Json) -> Iterator[Record]:
    """The rows of a file that is an array, or objects over several lines. They are counted from 1: the line is the row's number."""
    intake, text = reader.intake, _whole(lines, reader.intake)
    number, start = 0, _skip(text, 0)
    while start < len(text):
        number += 1
        try:
            value, end = reader.decode_at(text, start)
        except (ValueError, RecursionError) as error:
            reader.twice = []
            end = _drop_broken(text, start, number, error, intake)
        else:
            yield from reader.record(number, value, text[start:end])
        start = _skip(text, end)
    if text.lstrip().startswith("[") and not text.rstrip().endswith("]"):
        intake.note_once(number, "the array is not closed", text[-EXCERPT:], "the file may be cut off: fetch it again")


def _whole(lines: Iterable[tuple[int, str]], intake: Intake) -> str:
    """The file's text, each line of it at its number. Raises RowError where it is too much to be held."""
    kept, last, size = [], 1, 0
    for number, line in lines:
        kept.append("\n" * (number - last) + line)
        last = number
        size += len(kept[-1])
        if size > MAX_DOCUMENT:
            hint = f"jq -c '.[]' {intake.file} > rows.jsonl"
            raise intake.useless("a JSON array too large to be held whole", f"at most {MAX_DOCUMENT} characters", hint)
    return "".join(kept)


def _skip(text: str, position: int) -> int:
    found = BETWEEN.match(text, position)
    return found.end() if found else position


def _drop_broken(text: str, start: int, number: int, error: Exception, intake: Intake) -> int:
    """Drop the broken record, and return where the next one begins: the next object that opens a line at the same indent.

    Raises RowError where records do not open lines, since nothing then tells a row from a part of one.
    """
    reason, fix = _unreadable(error)
    broken, cut = start, False
    if isinstance(error, json.JSONDecodeError):
        broken = max(error.pos, start)
        cut = broken >= len(text) or error.msg.startswith("Unterminated")
    line = text.count("\n", 0, broken) + 1
    indent = text[text.rfind("\n", 0, start) + 1 : start]
    opens_line = start > 0 and not indent.strip()
    behind = text.find(f"\n{indent}{{", broken) if opens_line else -1
    if behind < 0 and not cut and not opens_line:
        expected = "an array of objects, or one object to a line"
        raise intake.useless(f"{reason}, behind which no row can be told from another", expected, fix, line)
    if behind < 0 and cut:
        reason += ": the file is cut off"
    intake.drop(number, reason, text[start : start + EXCERPT], f"line {line}, {fix}")
    return behind + 1 if behind >= 0 else len(text)
