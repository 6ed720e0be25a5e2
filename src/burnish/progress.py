"""What a run shows while it works, on stderr: a line for each step, and one that lives while training."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

PLAIN_EVERY = 10.0  # seconds between lines where the output is no terminal


class Progress:
    """Plain lines; in a terminal the current one is rewritten in place. quiet: nothing at all."""

    def __init__(self, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self._stream = None if quiet else (stream or sys.stderr)
        self._live = bool(self._stream and self._stream.isatty())
        self._open = False
        self._last = 0.0

    def begin(self, number: int, name: str) -> None:
        self._name = f"{number} {name:<9}"
        if self._live:
            self.update("...")

    def end(self, record: dict[str, Any]) -> None:
        mark = {"done": "✓", "reused": "↺", "failed": "✗"}.get(record["status"], "·")
        self.say(f"{mark} {record['n']} {record['name']:<9} {record['seconds']:7.1f} s  {record['summary']}")

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._stream:
            self._stream.write(("\r\x1b[2K" if self._open else "") + _printable(text, self._stream) + "\n")
            self._stream.flush()
            self._open = False

    def update(self, text: str) -> None:
        """A line that the next one replaces; where the output is no terminal, now and then a line that stays."""
        if self._live and self._stream:
            self._stream.write("\r\x1b[2K" + _printable(f"  {self._name} {text}", self._stream)[:160])
            self._stream.flush()
            self._open = True
        elif self._stream and time.monotonic() - self._last >= PLAIN_EVERY:
            self._last = time.monotonic()
            self.say(f"  {self._name} {text}")


def _printable(text: str, stream: TextIO) -> str:
    """The text as the stream's encoding can show it."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)


def as_time(seconds: float) -> str:
    """75 -> "1 min 15 s"; hours without seconds."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
