"""From a file on disk to numbered lines of text, whatever its compression and encoding, without ever holding it whole.

A file that cannot be used at all raises a RowError that says what it is instead; what is odd but readable goes into the ledger.
"""

from __future__ import annotations

import codecs
import re
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import IO, Any

from burnish.data.ledger import Action, Entry, Ledger
from burnish.data.private import masked
from burnish.errors import BurnishError, RowError

CHUNK = 1 << 20  # bytes read at once
PACKED_CHUNK = 1 << 12  # bytes unpacked at once: so little that not even a bomb fills the memory in one step
MAX_LINE = 1 << 30  # bytes: as much as a file without any line end may hold
MAX_RATIO, UNPACKED_FREELY = 200, 1 << 26  # text packs 3 to 30 times; beyond this it was made to fill the disk
Record = tuple[
    int, dict[str, Any], str
]  # line, what stood there, its raw start (none for a row of a table that is no text)
Lines = Iterator[tuple[int, str]]  # number from 1, text without its line end
EXCERPT = 200  # characters of a raw line that the ledger shows

GZIP, ZSTD, PARQUET = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1"
BINARIES = {
    b"PK\x03\x04": ("a zip archive (or a spreadsheet)", "unzip it, or save the sheet as CSV"),
    b"%PDF": ("a PDF document", "take its text out first"),
    b"BZh": ("a bzip2 file", "bunzip2 it first"),
    b"\xfd7zXZ": ("an xz file", "unxz it first"),
    b"SQLite format 3": ("an SQLite database", "export its table as CSV"),
    b"ARROW1": ("an Arrow file", "save it as parquet"),
    b"\x80\x04": ("a pickle, which could run code", "save it as JSON Lines or parquet"),
}
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32le",
    codecs.BOM_UTF32_BE: "utf-32be",
    codecs.BOM_UTF16_LE: "utf-16le",
    codecs.BOM_UTF16_BE: "utf-16be",
}
ENCODINGS = ["cp1252", "cp1251", "cp932", "gb18030", "big5", "cp949"]  # what is left of the days before UTF-8


class Intake:
    """One file while it is read: what is dropped and noted of it, and the first drops for the error if all are.

    line: the row at which reading stands; what the formats note is entered there.
    """

    def __init__(self, file: str, ledger: Ledger) -> None:
        self.file, self.line = file, 1
        self.drops: list[tuple[int, str, str]] = []  # line, reason and fix of the first three
        self.unended = 0  # the number of the last line if no line end follows it
        self.encoding = ""  # of the lines that are not UTF-8, once there is one
        self._ledger = ledger
        self._noted: set[str] = set()

    def drop(self, line: int, reason: str, before: str, fix: str) -> None:
        if len(self.drops) < 3:
            self.drops.append((line, reason, fix))
        self._add("dropped", line, reason, before, "", fix)

    def note(self, reason: str, found: str, fix: str) -> None:
        self._add("noted", self.line, reason, found, "", fix)

    def note_once(self, line: int, reason: str, found: str, fix: str) -> None:
        """For what is true of the whole file."""
        if reason not in self._noted:
            self._noted.add(reason)
            self._add("noted", line, reason, found, "", fix)

    def change(self, line: int, reason: str, before: str, after: str, fix: str) -> None:
        self._add("changed", line, reason, before, after, fix)

    def _add(self, action: Action, line: int, reason: str, before: str, after: str, fix: str) -> None:
        self._ledger.add(Entry(self.file, line, action, reason, _excerpt(before), _excerpt(after), fix))

    def empty(self) -> RowError:
        return self.useless("the file is empty", "some rows", "check that the file was written, or fetched, to its end")

    def bomb(self) -> RowError:
        expected = f"data that unpack to at most {MAX_RATIO} times their size"
        hint = "if these are your data, unpack them yourself, and give the file that comes of it"
        return self.useless("a bomb: the file unpacks to far more than real data would", expected, hint)

    def useless(self, found: str, expected: str, hint: str, line: int = 1) -> RowError:
        """The error for a file that cannot be used at all."""
        return RowError(found, where=f"{self.file}:{line}", expected=expected, hint=hint)


def _excerpt(text: str) -> str:
    """The start of a raw line, masked before it is cut: half a secret is not recognised."""
    return masked(text[: 10 * EXCERPT])[:EXCERPT]


def read_bytes(path: Path, intake: Intake) -> Iterator[bytes]:
    """The file's bytes, unpacked where it is a gzip or zstd file, whatever its name.

    Raises RowError where it cannot be opened, where its packed data end early or are damaged, and for a bomb.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
            file.seek(0)
            if head[:2] == GZIP or head == ZSTD:
                yield from _unpack(iter(lambda: file.read(PACKED_CHUNK), b""), head == ZSTD, intake)
            else:
                yield from iter(lambda: file.read(CHUNK), b"")
    except OSError as error:
        found, hint = f"the file cannot be read: {error.strerror or error}", f"ls -l {path}   shows who may read it"
        raise intake.useless(found, "a file that may be read", hint) from error


@contextmanager
def open_unpacked(path: Path, intake: Intake) -> Iterator[IO[bytes]]:
    """The file to read in any order; where it is packed, a temporary copy that is not."""
    with path.open("rb") as file:
        packed = file.read(4)
        file.seek(0)
        if packed[:2] != GZIP and packed != ZSTD:
            yield file
            return
    with tempfile.TemporaryFile() as copy:
        copy.writelines(read_bytes(path, intake))
        copy.seek(0)
        yield copy


def _unpack(packed: Iterable[bytes], zstd: bool, intake: Intake) -> Iterator[bytes]:
    came, went = 0, 0
    unpacker = _unpacker(zstd)
    for piece in packed:
        came += len(piece)
        while piece:
            if unpacker.eof:  # another member follows, unless zeros fill up the last block
                if not piece.strip(b"\0"):
                    break
                unpacker = _unpacker(zstd)
            try:
                data = unpacker.decompress(piece)
            except BurnishError:  # a signal to stop, too
                raise
            except Exception as error:  # zstandard's own error type exists only where it is installed
                found = f"the packed data are damaged: {error}"
                raise intake.useless(found, "the whole file", "fetch it again") from error
            piece = unpacker.unused_data if unpacker.eof else b""
            went += len(data)
            if went > UNPACKED_FREELY and went > came * MAX_RATIO:
                raise intake.bomb()
            yield data
    if not unpacker.eof:
        raise intake.useless("the packed data end early", "the whole file", "fetch it again")


def _unpacker(zstd: bool) -> Any:
    if not zstd:
        return zlib.decompressobj(wbits=31)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()


def read_lines(path: Path, intake: Intake) -> Lines:
    """Number and text of each line, the first being 1, without its line end.

    Lines that are not UTF-8 are read in the encoding that the file seems to have. Raises RowError where the file is empty or
    holds something else than text.
    """
    chunks = _unified(read_bytes(path, intake), intake)
    number, begun, length = 1, [b""], 0  # begun: the pieces of a line whose end has not come yet; length: theirs
    for chunk in chunks:
        block, found, rest = chunk.rpartition(b"\n")
        if not found:
            begun.append(rest)
            length += len(rest)
            if length > MAX_LINE:
                hint = "one row to a line"
                raise intake.useless("a line that is too long to be a row", f"at most {MAX_LINE} bytes", hint, number)
            continue
        block = b"".join([*begun, block])
        begun, length = [rest], len(rest)
        yield from enumerate(_decode(block, number, intake), number)
        number += block.count(b"\n") + 1
    if rest := b"".join(begun):
        intake.unended = number
        yield from enumerate(_decode(rest, number, intake), number)


def holds_text(line: tuple[int, str], intake: Intake) -> bool:
    """Whether there is anything in the line; that a blank one is skipped is noted."""
    if line[1].strip():
        return True
    intake.line = line[0]
    intake.note("a blank line", "", "nothing: it is skipped")
    return False


def _unified(chunks: Iterator[bytes], intake: Intake) -> Iterator[bytes]:
    """The same text as UTF-8 with \\n at its line ends, once its head shows that it is text."""
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= CHUNK // 16:
            break
    refuse_other(head, intake)
    whole: Iterator[bytes] = chain((head,), chunks)
    encoding, mark = _encoding(head)
    if mark:
        intake.note_once(1, "a byte order mark, left out", encoding, "save the file as UTF-8 without one")
    if encoding != "utf-8":
        intake.note_once(1, f"read as {encoding}", "", _iconv(encoding))
        whole = _as_utf8(whole, encoding, intake)
    else:
        _refuse_binary(head, intake)
    if b"\r" in head:
        intake.note_once(1, "line ends of Windows or of an old Mac", "", "nothing: they are read like any other")
        if b"\n" not in head and encoding == "utf-8":
            whole = (chunk.replace(b"\r", b"\n") for chunk in whole)
    first = next(whole)
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from whole


def _encoding(head: bytes) -> tuple[str, bool]:
    """The encoding that a byte order mark or the places of the zeros show, and whether there is a mark."""
    for mark, encoding in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return encoding, True
    even, odd = head[::2].count(0), head[1::2].count(0)
    if max(even, odd) > len(head) // 5 and min(even, odd) * 10 < max(even, odd):
        return ("utf-16le" if odd > even else "utf-16be"), False
    return "utf-8", False


def _as_utf8(chunks: Iterator[bytes], encoding: str, intake: Intake) -> Iterator[bytes]:
    try:
        for text in codecs.iterdecode(chunks, encoding):
            yield text.encode("utf-8")
    except UnicodeError as error:
        found = f"the file begins as {encoding}, and is not: {error}"
        raise intake.useless(found, "text in one encoding", "save the file as UTF-8") from error


def refuse_other(head: bytes, intake: Intake) -> None:
    """Raise RowError where the first bytes of a file show what is often found in place of data, or nothing at all."""
    if not head.strip():
        raise intake.empty()
    opening = head[:512].removeprefix(codecs.BOM_UTF8).lstrip().lower()
    if opening.startswith((b"<!doctype html", b"<html")):
        hint = "the download gave a web page: look for the link to the raw file"
        raise intake.useless("an HTML page, not data", "JSON, CSV or parquet", hint)
    if opening.startswith(b"version https://git-lfs"):
        raise intake.useless("a git-lfs pointer, not the file itself", "the file's content", "git lfs pull")
    for magic, (what, hint) in BINARIES.items():
        if head.startswith(magic):
            raise intake.useless(f"{what}, not data that is read", "JSON, CSV or parquet", hint)


def _refuse_binary(head: bytes, intake: Intake) -> None:
    if head.startswith(PARQUET):
        raise intake.useless("a parquet file under another name", "text", "rename it to end in .parquet")
    control = len(re.findall(rb"[\x00-\x08\x0e-\x1f]", head))
    if control * 10 > len(head):
        hint = "open it with the program that wrote it, and save it as one of these"
        raise intake.useless("binary data, not text", "JSON, CSV or parquet", hint)


def _decode(block: bytes, number: int, intake: Intake) -> list[str]:
    """The lines of a block; one that is not UTF-8 does not spoil the others."""
    try:
        text = block.decode("utf-8")
        lines = text.split("\n")
    except UnicodeDecodeError:
        raw = block.split(b"\n")
        lines = [_decode_line(line, raw, number + index, intake) for index, line in enumerate(raw)]
    return [line.removesuffix("\r") for line in lines] if b"\r" in block else lines


def _decode_line(line: bytes, around: list[bytes], number: int, intake: Intake) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError:
        intake.encoding = intake.encoding or _guess(line, around)
    text = line.decode(intake.encoding, errors="replace")
    intake.change(number, f"not UTF-8: read as {intake.encoding}", repr(line[:EXCERPT]), text, _iconv(intake.encoding))
    return text


def _iconv(encoding: str) -> str:
    return f"save the file as UTF-8: iconv -f {encoding} -t UTF-8"


def _guess(line: bytes, around: list[bytes]) -> str:
    """The encoding of lines that are not UTF-8, from the first of them."""
    from charset_normalizer import from_bytes

    foreign = [one for one in around if not one.isascii()][:50]
    best = from_bytes(b"\n".join([line, *foreign])[:CHUNK], cp_isolation=ENCODINGS).best()
    return best.encoding if best is not None else "cp1252"
