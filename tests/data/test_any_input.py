"""Whatever a file holds, reading it gives rows, entries in the ledger or a RowError: never a traceback, and nothing is lost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import again

from burnish.data.ledger import Ledger
from burnish.data.rows import Row
from burnish.data.sources import read_rows
from burnish.errors import RowError

BATCH, BATCHES = 10, 1000  # ten thousand rows
COLUMNS = """
prompt completion
question answer
query response
instruction input output
instruction output history system
text
text label
prompt
messages
messages tools
messages label
conversations
conversations tools
prompt chosen rejected
prompt chosen rejected margin
prompt completion label
messages kto_tag
prompt completions
prompt responses
prompt answers scores
input preferred_output non_preferred_output
data annotations
fields responses
"""
FORMATS = [line.split() for line in COLUMNS.strip().splitlines()]
WITHIN = ["role", "content", "from", "value", "weight", "tool_calls", "name", "arguments", "function", "rank", "type"]
KEYS = sorted({*WITHIN, *(name for columns in FORMATS for name in columns)})
ROLES = ["system", "user", "assistant", "tool", "human", "gpt", "function_call", "observation", "wizard"]

# Single values, likely ones and odd ones.
words = st.sampled_from(
    [
        "Hello",
        "Bye",
        "Blue.",
        "Red.",
        "text",
        "",
        " ",
        "a\0b",
        "\ud800",
        "[1",
        '{"name": "f", "arguments": {}}',
        "é\u202e",
    ]
)
texts = words | st.text(st.characters(codec=None), max_size=8)
numbers = st.integers(-3, 3) | st.sampled_from([2**64, 10**400, 0.5, math.nan, math.inf, -math.inf])
leaves = st.none() | st.booleans() | numbers | texts
names = st.sampled_from(KEYS) | texts
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))

# What stands in the columns: usually what the formats ask for, and sometimes anything.
calls = st.fixed_dictionaries({"function": st.fixed_dictionaries({"name": words, "arguments": anything})})
turns = st.fixed_dictionaries(
    {"role": st.sampled_from(ROLES), "content": leaves},
    optional={"weight": leaves, "tool_calls": st.lists(calls, max_size=2), "name": leaves},
)
said = st.fixed_dictionaries({"from": st.sampled_from(ROLES), "value": words})
dialogue = st.lists(words, min_size=1, max_size=4).map(
    lambda told: [{"role": ("user", "assistant")[n % 2], "content": one} for n, one in enumerate(told)]
)
written = words.map(lambda text: f"\n\nHuman: {text}\n\nAssistant: Blue.{text}")
results = st.fixed_dictionaries(
    {
        "type": st.sampled_from(["pairwise", "ranker", "choices", "rating", "textarea"]),
        "to_name": st.sampled_from(["prompt,text", "text"]),
        "value": st.dictionaries(
            st.sampled_from(["selected", "ranker", "choices", "rating", "text"]),
            st.sampled_from(["left", ["prompt", "text"], 3]) | anything,
        ),
    }
)
conversations = dialogue | st.lists(turns | said, max_size=4)
TYPICAL = {
    "messages": conversations,
    "conversations": conversations,
    "chosen": words | said | dialogue | written,
    "rejected": words | said | dialogue | written,
    "preferred_output": conversations,
    "non_preferred_output": conversations,
    "input": words | st.fixed_dictionaries({"messages": conversations}),
    "label": leaves | st.lists(words, max_size=2),
    "kto_tag": leaves,
    "margin": numbers,
    "tools": st.lists(st.dictionaries(names, anything, max_size=2), max_size=2),
    "history": st.lists(st.lists(words, min_size=2, max_size=2), max_size=2),
    "completions": st.lists(st.fixed_dictionaries({"rank": numbers, "completion": words}), min_size=1, max_size=3),
    "responses": st.lists(words, min_size=2, max_size=3)
    | st.dictionaries(words, st.lists(st.fixed_dictionaries({"value": anything}), max_size=2), max_size=2),
    "answers": st.lists(words, min_size=2, max_size=2),
    "scores": st.lists(numbers, min_size=2, max_size=2),
    "data": st.dictionaries(st.sampled_from(["prompt", "text", "items"]), words | conversations),
    "fields": st.dictionaries(st.sampled_from(["prompt", "text"]), words | conversations),
    "annotations": st.lists(st.fixed_dictionaries({"result": st.lists(results, max_size=2)}), max_size=3),
}


def column(name: str) -> st.SearchStrategy[Any]:
    typical = TYPICAL.get(name, words | conversations)
    return st.integers(0, 7).flatmap(lambda luck: typical if luck < 7 else anything)


plausible = st.sampled_from(FORMATS).flatmap(
    lambda columns: st.fixed_dictionaries(
        {name: column(name) for name in columns}, optional={"id": leaves, "customer": anything}
    )
)
wild = st.dictionaries(names, anything, max_size=5)
records = st.integers(0, 15).flatmap(lambda luck: plausible if luck < 13 else wild if luck < 15 else leaves)


def read_all(path: Path) -> tuple[list[Row], Ledger, RowError | None]:
    """The rows, and the error if the file was refused, which has to say where and how to put it right."""
    ledger, rows, refusal = Ledger(), [], None
    try:
        rows.extend(read_rows(path, ledger))
    except RowError as error:
        refusal = error
    assert refusal is None or (refusal.where.startswith(f"{path}:") and refusal.expected and refusal.hint)
    return rows, ledger, refusal


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("any")


@pytest.mark.slow
@settings(max_examples=BATCHES, deadline=None, suppress_health_check=list(HealthCheck))
@given(batch=st.lists(records, min_size=BATCH, max_size=BATCH))
def test_ten_thousand_rows_of_any_kind_are_read_or_dropped_one_by_one(folder: Path, batch: list[Any]):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in batch))
    rows, ledger, error = read_all(path)
    assert len(rows) + sum(ledger.by_reason("dropped").values()) == BATCH
    assert (error is None) == bool(rows)
    for row in rows:
        assert again(row) == row


ENDINGS = ["jsonl", "json", "csv", "tsv", "parquet", "jsonl.gz", "csv.zst"]
OPENINGS = [
    b"",
    b"\x1f\x8b\x08",
    b"\x28\xb5\x2f\xfd",
    b"PAR1",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"text,label\n",
    b'[{"text": "a"}, ',
]


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(ending=st.sampled_from(ENDINGS), opening=st.sampled_from(OPENINGS), content=st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(folder: Path, ending: str, opening: bytes, content: bytes):
    path = folder / f"rows.{ending}"
    path.write_bytes(opening + content)
    rows, _, error = read_all(path)
    assert rows or error


@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    ending=st.sampled_from(ENDINGS[:4]),
    pieces=st.lists(st.sampled_from([*'{}[]",:;\n\r\t\0 a\\', '{"text": "a"}', '"text"', "label", "\\ud83d", "1e999"])),
)
def test_any_torn_text_is_read_or_refused(folder: Path, ending: str, pieces: list[str]):
    path = folder / f"rows.{ending}"
    path.write_text("".join(pieces))
    rows, _, error = read_all(path)
    assert rows or error
