"""The ledger: what is written, what is counted, and what is held in memory."""

from __future__ import annotations

import json
from pathlib import Path

from burnish.data.ledger import EXCERPT, KEPT_EXAMPLES, KEPT_PLACES, Entry, Ledger

ENTRY = Entry("rows.jsonl", 7, "dropped", "exact duplicate", "before", "", "leave one out")


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_entry_is_written_with_all_that_it_says(tmp_path: Path):
    with Ledger(tmp_path / "new" / "ledger.jsonl") as ledger:
        ledger.add(ENTRY)
    assert records(tmp_path / "new" / "ledger.jsonl") == [
        {
            "file": "rows.jsonl",
            "line": 7,
            "action": "dropped",
            "reason": "exact duplicate",
            "before": "before",
            "after": "",
            "fix": "leave one out",
        }
    ]


def test_a_new_ledger_replaces_the_file(tmp_path: Path):
    for _ in range(2):
        with Ledger(tmp_path / "ledger.jsonl") as ledger:
            ledger.add(ENTRY)
    assert len(records(tmp_path / "ledger.jsonl")) == 1


def test_append_goes_on_with_the_file(tmp_path: Path):
    for _ in range(2):
        with Ledger(tmp_path / "ledger.jsonl", append=True) as ledger:
            ledger.add(ENTRY)
    assert len(records(tmp_path / "ledger.jsonl")) == 2


def test_reasons_are_counted_by_action_the_most_frequent_first():
    ledger = Ledger()
    for action, reason in [("dropped", "a"), ("dropped", "b"), ("dropped", "b"), ("noted", "c")]:
        ledger.add(Entry("rows.jsonl", 1, action, reason))
    assert list(ledger.by_reason("dropped").items()) == [("b", 2), ("a", 1)]
    assert ledger.by_reason("changed") == {}


def test_a_finding_has_its_first_places_and_the_fix():
    ledger = Ledger()
    for line in range(1, 10):
        ledger.add(Entry("rows.jsonl", line, "noted", "a blank line", fix="nothing"))
    where = [f"rows.jsonl:{line}" for line in range(1, KEPT_PLACES + 1)]
    finding = {"kind": "a blank line", "action": "noted", "count": 9, "where": where, "fix": "nothing"}
    assert ledger.findings() == [finding]


def test_the_memory_of_a_ledger_is_bounded():
    ledger = Ledger()
    for line in range(10 * KEPT_EXAMPLES):
        ledger.add(Entry("rows.jsonl", line, "noted", "a blank line"))
    assert len(ledger.examples) == KEPT_EXAMPLES


def test_long_texts_are_cut_and_odd_ones_written(tmp_path: Path):
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.add(Entry("rows.jsonl", 1, "changed", "a", "x" * 2 * EXCERPT, "half \ud83d"))
    (record,) = records(tmp_path / "ledger.jsonl")
    assert (len(record["before"]), record["after"]) == (EXCERPT, "half \ud83d")


def test_what_is_private_is_never_shown_whoever_enters_it(tmp_path: Path):
    secret = "joe.bloggs@example.com"
    with Ledger(tmp_path / "ledger.jsonl") as ledger:
        ledger.add(Entry("rows.jsonl", 1, "changed", "a", f"to {secret}", f"to {secret}.", f"leave {secret} out"))
    (record,) = records(tmp_path / "ledger.jsonl")
    assert (record["before"], record["after"], record["fix"]) == ("to [e-mail]", "to [e-mail].", "leave [e-mail] out")
    assert secret not in str(ledger.examples) + str(ledger.findings())


def test_rows_that_are_gone_are_counted_over_all_reasons():
    ledger = Ledger()
    for action, reason in [("dropped", "a"), ("dropped", "b"), ("left out", "data.sample"), ("noted", "c")]:
        ledger.add(Entry("rows.jsonl", 1, action, reason))
    assert ledger.gone == 3
