"""Each kind of bad input gives its file, its line, a reason and a fix; the good rows around it are read."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from reading import GOOD, assert_entry, assert_refused, read, write

from burnish.data.ledger import Ledger
from burnish.data.rows import Row
from burnish.data.sources import read_rows
from burnish.errors import RowError

OTHER = '{"prompt": "Capital of Spain?", "completion": "Madrid"}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def answers(rows: list[Row]) -> list[str]:
    return [row.answer_text() for row in rows]


def says(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


# ---------------------------------------------------------------- JSON


def test_broken_json(file: Path):
    rows, entries = read(write(file, GOOD, '{"prompt": "a" "completion": "b"}', OTHER))
    assert_entry(entries, file, 2, "dropped", "broken JSON")
    assert answers(rows) == ["Paris", "Madrid"]


def test_two_objects_on_a_line_are_two_rows(file: Path):
    rows, entries = read(write(file, GOOD + " " + OTHER, GOOD))
    assert_entry(entries, file, 1, "noted", "several objects on one line")
    assert answers(rows) == ["Paris", "Madrid", "Paris"]


def test_truncated_last_line(file: Path):
    file.write_text(f'{GOOD}\n{OTHER}\n{{"prompt": "Capital of It')
    rows, entries = read(file)
    assert_entry(entries, file, 3, "dropped", "broken JSON: the last line is cut off")
    assert answers(rows) == ["Paris", "Madrid"]


def test_array_in_a_jsonl_line_is_read(file: Path):
    rows, entries = read(write(file, GOOD, f"[{GOOD}, {OTHER}]"))
    assert_entry(entries, file, 2, "noted", "an array within a line")
    assert answers(rows) == ["Paris", "Paris", "Madrid"]


def test_whole_array_in_a_jsonl_file_is_read(file: Path):
    rows, entries = read(write(file, "[", f"  {GOOD},", f"  {OTHER}", "]"))
    assert (answers(rows), entries) == (["Paris", "Madrid"], [])


def test_row_that_is_no_object(file: Path):
    rows, entries = read(write(file, GOOD, '"Paris"'))
    assert_entry(entries, file, 2, "dropped", "a row that is no object")
    assert len(rows) == 1


def test_duplicate_keys(file: Path):
    rows, entries = read(write(file, '{"prompt": "a", "completion": "b", "prompt": "c"}'))
    entry = assert_entry(entries, file, 1, "noted", "a key that stands twice")
    assert "prompt" in entry.fix
    assert rows[0].prompt_text() == "c"


def test_lone_surrogates(file: Path):
    rows, entries = read(write(file, r'{"prompt": "half \ud83d of one", "completion": "\ud83d\ude00"}'))
    assert_entry(entries, file, 1, "changed", "half of a character, replaced by a question mark")
    assert (rows[0].prompt_text(), rows[0].answer_text()) == ("half \ufffd of one", "\U0001f600")


def test_raw_nul_within_a_text(file: Path):
    rows, entries = read(write(file, '{"prompt": "a\0b", "completion": "c"}'))
    assert_entry(entries, file, 1, "noted", "a control character within a text")
    assert rows[0].prompt_text() == "a\0b"


def test_integer_beyond_all_bounds(file: Path):
    rows, entries = read(write(file, GOOD, '{"prompt": "a", "completion": "b", "id": ' + "9" * 5000 + "}"))
    assert_entry(entries, file, 2, "dropped", "a number beyond all bounds")
    assert len(rows) == 1


def test_nesting_without_end(file: Path):
    rows, entries = read(write(file, GOOD, '{"prompt": "a", "completion": ' + "[" * 100_000 + "]" * 100_000 + "}"))
    assert_entry(entries, file, 2, "dropped", "nested too deep")
    assert len(rows) == 1


def test_broken_record_of_an_array_over_several_lines(tmp_path: Path):
    file = write(tmp_path / "rows.json", "[", f"  {GOOD},", '  {"prompt": "a" "completion": "b"},', f"  {OTHER}", "]")
    rows, entries = read(file)
    entry = assert_entry(entries, file, 2, "dropped", "broken JSON")
    assert entry.fix.startswith("line 3, column 18")
    assert answers(rows) == ["Paris", "Madrid"]


def test_broken_array_on_one_line_is_refused_where_it_breaks(tmp_path: Path):
    """Behind the break nothing tells a row from an object within a row."""
    assert_refused(write(tmp_path / "rows.json", f'[{GOOD}, {{"prompt": "a" "b"}}, {OTHER}]'), 1, "broken JSON")


def test_array_that_is_cut_off(tmp_path: Path):
    file = tmp_path / "rows.json"
    file.write_text(f'[{GOOD}, {{"prompt": "Capital of Sp')
    rows, entries = read(file)
    assert [entry.reason for entry in entries] == ["broken JSON: the file is cut off", "the array is not closed"]
    assert entries[0].where == f"{file}:2"
    assert answers(rows) == ["Paris"]


# ---------------------------------------------------------------- encodings and line ends


def test_byte_order_mark(file: Path):
    file.write_text(GOOD, encoding="utf-8-sig")
    rows, entries = read(file)
    assert_entry(entries, file, 1, "noted", "a byte order mark, left out")
    assert len(rows) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_utf_16_and_its_like(file: Path, encoding: str):
    file.write_text(GOOD.replace("Paris", "Zürich"), encoding=encoding)
    rows, entries = read(file)
    entry = entries[-1]
    assert (entry.line, entry.reason[:11], bool(entry.fix)) == (1, "read as utf", True)
    assert answers(rows) == ["Zürich"]


def test_latin_1(file: Path):
    told = (
        '{"prompt": "Où se trouve la forêt près du château, à côté de la rivière?", "completion": "Là-bas, étranger."}'
    )
    rows, entries = read(write(file, GOOD, told.encode("latin-1")))
    assert_entry(entries, file, 2, "changed", "not UTF-8: read as cp1252")
    assert answers(rows) == ["Paris", "Là-bas, étranger."]


def test_line_ends_of_windows(file: Path):
    file.write_bytes(f"{GOOD}\r\n{OTHER}\r\n".encode())
    rows, entries = read(file)
    assert_entry(entries, file, 1, "noted", "line ends of Windows or of an old Mac")
    assert answers(rows) == ["Paris", "Madrid"]


def test_blank_lines(file: Path):
    rows, entries = read(write(file, GOOD, "", OTHER))
    assert_entry(entries, file, 2, "noted", "a blank line")
    assert [row.line for row in rows] == [1, 3]


# ---------------------------------------------------------------- tables


def test_csv_row_with_too_many_cells(tmp_path: Path):
    file = write(tmp_path / "rows.csv", "text,label", "Hello, you,greeting", "Bye,farewell")
    rows, entries = read(file)
    assert_entry(entries, file, 2, "dropped", "too many cells")
    assert [row.line for row in rows] == [3]


def test_csv_row_with_too_few_cells(tmp_path: Path):
    file = write(tmp_path / "rows.csv", "text,label", "Hello", "Bye,farewell")
    rows, entries = read(file)
    assert_entry(entries, file, 2, "dropped", "too few cells")
    assert [row.line for row in rows] == [3]


def test_csv_quote_that_is_never_closed_costs_its_own_row_alone(tmp_path: Path):
    file = write(tmp_path / "rows.csv", "text,label", "Hi,a", '"Hello,greeting', "Bye,farewell")
    rows, entries = read(file)
    assert_entry(entries, file, 3, "dropped", "broken quotes")
    assert [row.line for row in rows] == [2, 4]


def test_csv_columns_of_the_same_name(tmp_path: Path):
    assert_refused(write(tmp_path / "rows.csv", "text,label,text", "a,b,c"), 1, "columns with the same name: 'text'")


def test_csv_header_without_a_row(tmp_path: Path):
    assert_refused(write(tmp_path / "rows.csv", "text,label"), 1, "a header without a row")


def test_type_of_the_label_changes(file: Path):
    rows, entries = read(write(file, '{"text": "a", "label": "1"}', '{"text": "b", "label": 2}'))
    assert_entry(entries, file, 2, "changed", "a label of another type")
    assert [row.label for row in rows] == ["1", "2"]


def test_type_of_the_label_changes_beyond_repair(file: Path):
    rows, entries = read(write(file, '{"text": "a", "label": 1}', '{"text": "b", "label": "good"}'))
    assert_entry(entries, file, 2, "dropped", "a label of another type")
    assert len(rows) == 1


# ---------------------------------------------------------------- what rows hold

BAD_ROWS: dict[str, tuple[Mapping[str, Any], str]] = {
    "missing column": ({"prompt_": "a", "completion": "b"}, "no format has these columns"),
    "type that changes": ({"prompt": "a", "completion": 4}, "no text where text is needed"),
    "NaN as answer": ({"prompt": "a", "completion": float("nan")}, "no text where text is needed"),
    "NaN as label": ({"text": "a", "label": float("nan")}, "a number that is none, or beyond all bounds"),
    "huge integer as label": ({"text": "a", "label": 2**64}, "the label is of no use"),
    "infinite margin": (
        {"prompt": "a", "chosen": "b", "rejected": "c", "margin": float("inf")},
        "a number that is none, or beyond all bounds",
    ),
    "empty answer": ({"prompt": "a", "completion": ""}, "the answer is empty"),
    "blank answer": ({"prompt": "a", "completion": " \n\u00a0"}, "the answer is empty"),
    "null answer": ({"prompt": "a", "completion": None}, "the answer is empty"),
    "empty prompt": ({"prompt": " ", "completion": "b"}, "the prompt is empty"),
    "blank answer in a conversation": ({"messages": says(("user", "a"), ("assistant", " "))}, "the answer is empty"),
    "empty label": ({"text": "a", "label": ""}, "the label is empty"),
    "unknown role": ({"messages": says(("user", "a"), ("wizard", "b"))}, "an unknown role"),
    "assistant first": ({"messages": says(("assistant", "a"), ("user", "b"))}, "turns out of order"),
    "assistant twice": (
        {"messages": says(("user", "a"), ("assistant", "b"), ("assistant", "c"))},
        "turns out of order",
    ),
    "tool without a call": ({"messages": says(("user", "a"), ("tool", "b"), ("assistant", "c"))}, "turns out of order"),
    "nobody answers": ({"messages": says(("user", "a"))}, "no answer to learn from"),
    "late system turn": (
        {"messages": says(("user", "a"), ("system", "b"), ("assistant", "c"))},
        "a late system turn",
    ),
    "tool call without a name": (
        {"messages": [*says(("user", "a")), {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]},
        "a malformed tool call",
    ),
    "tool call with broken arguments": (
        {
            "messages": [
                *says(("user", "a")),
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{town: Bonn"}}]},
            ]
        },
        "text that is no JSON",
    ),
    "tool calls of a user": (
        {"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "f", "arguments": {}}]}]},
        "a malformed tool call",
    ),
    "chosen equal to rejected": ({"prompt": "a", "chosen": "b", "rejected": "b "}, "chosen and rejected are the same"),
    "pair with two prompts": (
        {
            "prompt": "a",
            "chosen": says(("user", "a"), ("assistant", "b")),
            "rejected": says(("user", "other"), ("assistant", "c")),
        },
        "a pair with two different prompts",
    ),
    "implicit pair with two prompts": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: other\n\nAssistant: c"},
        "a pair with two different prompts",
    ),
    "answer of a blank system turn alone": ({"prompt": "a", "completion": says(("system", " "))}, "no messages"),
    "pair without a prompt": ({"chosen": "a", "rejected": "b"}, "a pair without a prompt"),
    "verdict that is none": (
        {"prompt": "a", "completion": "b", "label": "maybe"},
        "the verdict is neither true nor false",
    ),
    "ranking of one": ({"prompt": "a", "responses": ["b"]}, "a ranking needs two answers"),
    "scores for fewer answers": (
        {"prompt": "a", "answers": ["b", "c"], "scores": [1]},
        "not one score for each answer",
    ),
    "weight below zero": (
        {"messages": [*says(("user", "a")), {"role": "assistant", "content": "b", "weight": -1}]},
        "a weight that cannot be used",
    ),
    "row nested beyond reason": (
        {"prompt": "a", "completion": "b", "deep": json.loads("[" * 200 + "]" * 200)},
        "nested too deep",
    ),
}


@pytest.mark.parametrize(("record", "reason"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_bad_row(file: Path, record: Mapping[str, Any], reason: str):
    rows, entries = read(write(file, GOOD, json.dumps(record), OTHER))
    assert_entry(entries, file, 2, "dropped", reason)
    assert answers(rows) == ["Paris", "Madrid"]


def test_nan_in_a_column_that_is_not_learnt_from_is_kept_as_null(file: Path):
    rows, entries = read(write(file, '{"prompt": "a", "completion": "b", "score": NaN}'))
    assert entries[0].reason == "a number that is none, read as null"
    assert rows[0].extra == {"score": None}


def test_a_user_who_speaks_twice_is_noted(file: Path):
    rows, entries = read(write(file, json.dumps({"messages": says(("user", "a"), ("user", "b"), ("assistant", "c"))})))
    assert_entry(entries, file, 1, "noted", "the user speaks twice in a row")
    assert len(rows) == 1


# ---------------------------------------------------------------- files that are no data


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.jsonl.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n", b"\xff\xfe", b"\xff\xfe\n\0"])
def test_empty_file(tmp_path: Path, name: str, content: bytes):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(RowError) as caught:
        read(file)
    assert caught.value.where == f"{file}:1"
    assert caught.value.hint


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
HTML = b"\n<!DOCTYPE html>\n<html><body>404</body></html>\n"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "rows.json.gz"])
@pytest.mark.parametrize(("content", "reason"), [(LFS, "a git-lfs pointer"), (HTML, "an HTML page")])
def test_pointer_or_page_in_place_of_the_file(tmp_path: Path, name: str, content: bytes, reason: str):
    file = tmp_path / name
    file.write_bytes(content)
    assert_refused(file, 1, reason)


@pytest.mark.parametrize("pack", [gzip.compress, lambda data: zstandard.compress(data, 19)])
def test_bomb(file: Path, pack):
    file.write_bytes(pack(f"{GOOD}\n".encode()) + pack(b" " * (1 << 20)) * 100)
    assert_refused(file, 1, "a bomb")


def test_parquet_bomb(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a" * 1000] * 100_000}), file, use_dictionary=False, compression="zstd")
    assert_refused(file, 1, "a bomb")


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress])
def test_packed_file_that_ends_early(file: Path, pack):
    file.write_bytes(pack("\n".join([GOOD, OTHER] * 500).encode())[:-9])
    assert_refused(file, 1, "the packed data end early")


def test_packed_file_that_is_damaged(file: Path):
    packed = bytearray(gzip.compress("\n".join([GOOD, OTHER] * 500).encode()))
    packed[-6] ^= 1
    file.write_bytes(packed)
    assert_refused(file, 1, "the packed data are damaged")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(range(256)) * 8, "binary data"),
        (b"PK\x03\x04" + bytes(40), "a zip archive"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"\x80\x04\x95", "a pickle"),
    ],
)
def test_binary_file(file: Path, content: bytes, reason: str):
    file.write_bytes(content)
    assert_refused(file, 1, reason)


def test_parquet_under_another_name(file: Path):
    parquet.write_table(pyarrow.table({"text": ["a"], "label": ["b"]}), file)
    assert "parquet" in assert_refused(file, 1, "a parquet file under another name").hint


def test_text_under_the_name_of_parquet(tmp_path: Path):
    assert_refused(write(tmp_path / "rows.parquet", GOOD), 1, "no readable parquet file")


def test_parquet_that_ends_early(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": ["a"] * 100, "label": ["b"] * 100}), file)
    file.write_bytes(file.read_bytes()[:-20])
    assert_refused(file, 1, "no readable parquet file")


def test_file_without_a_good_row_is_refused_with_its_first_problems(file: Path):
    error = assert_refused(write(file, '{"prompt": "a"', "17", GOOD.replace("Paris", " ")), 1, "no row of this file")
    assert "line 1: broken JSON" in error.found
    assert "line 2: a row that is no object" in error.found
    assert "line 3: the answer is empty" in error.found


def test_file_that_is_not_there_is_refused_with_the_name_that_was_meant(tmp_path: Path):
    write(tmp_path / "tickets.jsonl", GOOD)
    assert "tickets.jsonl" in assert_refused(tmp_path / "ticket.jsonl", 1, "there is no such file").hint


def test_folder_and_unknown_ending_are_refused(tmp_path: Path):
    assert_refused(tmp_path, 1, "a folder, not a file")
    assert_refused(write(tmp_path / "rows.docx", GOOD), 1, "a kind of file that is not read: .docx")


def test_sample_of_nothing_is_refused(file: Path):
    with pytest.raises(RowError, match="'0' is no number of rows"):
        list(read_rows(f"{file}#0", Ledger()))
