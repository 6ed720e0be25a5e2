"""What became of each row: nothing is dropped or changed without an entry here."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import IO, Literal

from burnish.data.private import masked

Action = Literal["dropped", "left out", "changed", "noted"]
KEPT_EXAMPLES = 50  # entries held in memory for the report, so that a million of them cost no memory
KEPT_PLACES = 5  # places held for each reason
EXCERPT = 2000  # characters of a text that an entry keeps


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened to one row.

    action: dropped (it cannot be used), left out (nothing is wrong with it, but the recipe wants fewer), changed (its text is another),
    noted (it stays as it is, but should be looked at).
    reason: a few words that recur, such as "exact duplicate", since entries are counted by it; of what is left out the recipe's key.
    fix: what to type or to do.
    """

    file: str
    line: int
    action: Action
    reason: str
    before: str = ""
    after: str = ""
    fix: str = ""

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"


class Ledger:
    """Entries, written to a JSON Lines file as they come; counts and a few examples stay in memory.

    Whoever enters a text, secrets and personal data in it are replaced by their kind: a ledger is read and passed on.

    path: where to write, None for nowhere. append: go on with the file that is there.
    """

    def __init__(self, path: Path | None = None, *, append: bool = False) -> None:
        self.counts: Counter[tuple[Action, str]] = Counter()
        self.examples: list[Entry] = []
        self.places: dict[tuple[Action, str], list[str]] = {}
        self.fixes: dict[tuple[Action, str], str] = {}
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a" if append else "w", encoding="utf-8")

    def add(self, entry: Entry) -> None:
        entry = replace(entry, before=masked(entry.before), after=masked(entry.after), fix=masked(entry.fix))
        key = (entry.action, entry.reason)
        self.counts[key] += 1
        if self.counts[key] <= KEPT_PLACES:
            self.places.setdefault(key, []).append(entry.where)
            self.fixes.setdefault(key, entry.fix)
        if len(self.examples) < KEPT_EXAMPLES:
            self.examples.append(entry)
        if self._file is not None:
            record = asdict(entry) | {"before": entry.before[:EXCERPT], "after": entry.after[:EXCERPT]}
            self._file.write(json.dumps(record) + "\n")

    def by_reason(self, action: Action) -> dict[str, int]:
        """How many entries of this action there are, by reason, the most frequent first."""
        return {reason: count for (did, reason), count in self.counts.most_common() if did == action}

    @property
    def gone(self) -> int:
        """How many rows were dropped or left out: those that were read are these and those that are there still."""
        return sum(count for (action, _), count in self.counts.items() if action in ("dropped", "left out"))

    def findings(self) -> list[dict[str, object]]:
        """One record for each reason: kind, action, count, the first places, and the fix."""
        return [
            {"kind": key[1], "action": key[0], "count": count, "where": self.places[key], "fix": self.fixes[key]}
            for key, count in self.counts.most_common()
        ]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
