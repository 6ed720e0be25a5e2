"""Every type of file, several of them, samples and renamed columns."""

from __future__ import annotations

import bz2
import datetime
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pytest
import zstandard
from pyarrow import parquet
from reading import GOOD, assert_entry, assert_refused, read, write

from burnish.data.ledger import Ledger
from burnish.data.sources import read_rows
from burnish.errors import RowError

REAL = Path(__file__).parents[3] / "shared" / "data"
RECORDS = [{"text": f"Where is card {n}?\nAnd when?", "label": f"card, {n % 3}"} for n in range(6)]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


def as_table(delimiter: str) -> bytes:
    lines = [delimiter.join(f'"{cell}"' for cell in record.values()) for record in RECORDS]
    return "\n".join([delimiter.join(RECORDS[0]), *lines]).encode()


def as_parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(RECORDS), sink)
    return sink.getvalue().to_pybytes()


FILES = {
    "json": json.dumps(RECORDS).encode(),
    "jsonl": "\n".join(map(json.dumps, RECORDS)).encode(),
    "csv": as_table(","),
    "tsv": as_table("\t"),
    "parquet": as_parquet(),
}


@pytest.mark.parametrize("packing", PACKERS)
@pytest.mark.parametrize("kind", FILES)
def test_each_type_of_file_gives_the_same_rows(tmp_path: Path, kind: str, packing: str):
    file = tmp_path / f"rows.{kind}{packing}"
    file.write_bytes(PACKERS[packing](FILES[kind]))
    rows, entries = read(file)
    assert [{"text": row.prompt_text(), "label": row.label} for row in rows] == RECORDS
    assert entries == []


@pytest.mark.parametrize(("kind", "lines"), [("jsonl", [1, 2, 3]), ("csv", [2, 4, 6]), ("parquet", [1, 2, 3])])
def test_a_row_knows_its_line(tmp_path: Path, kind: str, lines: list[int]):
    """The first line that it stands on in a file of text, its number elsewhere."""
    file = tmp_path / f"rows.{kind}"
    file.write_bytes(FILES[kind])
    assert [(row.file, row.line) for row in read(file)[0]][:3] == [(str(file), line) for line in lines]


def test_a_pretty_printed_array_is_read(tmp_path: Path):
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(RECORDS, indent=2))
    assert [row.label for row in read(file)[0]] == [record["label"] for record in RECORDS]


def test_one_pretty_printed_object_is_one_row(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(RECORDS[0], indent=2))
    assert [row.label for row in read(file)[0]] == [RECORDS[0]["label"]]


def test_packed_files_in_several_parts_are_read_to_the_end(tmp_path: Path):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(b"".join(gzip.compress(json.dumps(record).encode() + b"\n") for record in RECORDS) + bytes(7))
    assert len(read(file)[0]) == len(RECORDS)


def test_a_packing_that_is_not_read_says_how_to_unpack_it(tmp_path: Path):
    file = tmp_path / "rows.jsonl"
    file.write_bytes(bz2.compress(GOOD.encode()))
    assert "bunzip2" in assert_refused(file, 1, "a bzip2 file").hint


def test_several_files_follow_one_another(tmp_path: Path):
    files = [write(tmp_path / "a.jsonl", GOOD), tmp_path / "b.csv"]
    files[1].write_bytes(FILES["csv"])
    rows = list(read_rows(files, Ledger()))
    assert [row.file for row in rows] == [str(files[0])] + [str(files[1])] * len(RECORDS)


def test_a_sample_has_its_size_keeps_the_order_and_recurs(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", *[json.dumps({"text": f"text {n}"}) for n in range(200)])
    lines = [row.line for row in read_rows(f"{file}#20", Ledger())]
    assert len(set(lines)) == 20
    assert lines == sorted(lines)
    assert max(lines) > 100
    assert lines == [row.line for row in read_rows(f"{file}#20", Ledger())]


def test_a_sample_is_noted(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", GOOD, GOOD, GOOD)
    ledger = Ledger()
    list(read_rows(f"{file}#2", ledger))
    assert assert_entry(ledger.examples, file, 1, "noted", "a sample was taken").before == "2 of 3 rows"


def test_a_path_that_exists_is_no_sample(tmp_path: Path):
    (tmp_path / "lot#2").mkdir()
    rows, _ = read(write(tmp_path / "lot#2" / "rows.jsonl", GOOD))
    assert len(rows) == 1


def test_nothing_is_read_before_a_row_is_asked_for(tmp_path: Path):
    """Rows come one by one: the second, which could not be read, has not been looked at."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(gzip.compress(b"\n".join([GOOD.encode()] * 200_000))[:-9])
    assert next(read_rows(file, Ledger())).line == 1


def test_columns_are_renamed(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", '{"ticket": "My lamp is broken.", "reply": "We are sorry.", "shop": 4}')
    rows, _ = read(file, columns={"prompt": "ticket", "completion": "reply"})
    assert (rows[0].prompt_text(), rows[0].answer_text()) == ("My lamp is broken.", "We are sorry.")
    assert rows[0].extra == {"shop": 4}


def test_a_renamed_column_that_is_missing_is_named(tmp_path: Path):
    file = write(
        tmp_path / "rows.jsonl", '{"ticket": "My lamp is broken.", "reply": "We are sorry."}', '{"reply": "a"}'
    )
    _, entries = read(file, columns={"prompt": "ticket", "completion": "reply"})
    entry = assert_entry(entries, file, 2, "dropped", "a column is missing")
    assert "ticket" in entry.fix


def test_unread_columns_are_noted_once_and_kept(tmp_path: Path):
    line = json.dumps(json.loads(GOOD) | {"customer": "c1"})
    rows, entries = read(write(tmp_path / "rows.jsonl", line, line))
    entry = assert_entry(entries, tmp_path / "rows.jsonl", 1, "noted", "columns that are not learnt from")
    assert entry.before == "customer"
    assert [row.extra for row in rows] == [{"customer": "c1"}] * 2


def test_semicolons_may_part_the_cells_of_a_csv_file(tmp_path: Path):
    file = write(tmp_path / "rows.csv", "text;label", "Hello, you;greeting")
    rows, entries = read(file)
    assert_entry(entries, file, 1, "noted", "cells parted by ';'")
    assert (rows[0].prompt_text(), rows[0].label) == ("Hello, you", "greeting")


def test_empty_columns_that_a_spreadsheet_added_are_passed_over(tmp_path: Path):
    rows, entries = read(write(tmp_path / "rows.csv", "text,label,,", "Hello,greeting,,"))
    assert (rows[0].extra, entries) == ({}, [])


def test_a_parquet_column_of_times_or_bytes_is_kept_as_text(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    times = pyarrow.array([1_700_000_000_000_000_001], pyarrow.timestamp("ns"))
    columns = {"text": pyarrow.array([b"Hello"]), "at": times, "day": [datetime.date(2026, 11, 1)]}
    parquet.write_table(pyarrow.table(columns), file)
    rows, _ = read(file)
    assert rows[0].text == "Hello"
    assert rows[0].extra == {"at": "2023-11-14 22:13:20.000000001", "day": "2026-11-01"}


def test_a_label_of_a_parquet_file_that_breaks_is_shown(tmp_path: Path):
    file = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{"text": "a", "label": "b"}, {"text": "c", "label": None}]), file)
    _, entries = read(file)
    entry = assert_entry(entries, file, 2, "dropped", "the label is empty")
    assert entry.before == '{"text": "c", "label": null}'


def test_a_data_set_of_the_hub_is_read_as_it_comes(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(name: str, *, split: str, streaming: bool):
        assert (name, split, streaming) == ("someone/cards", "train", True)
        return iter(RECORDS)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = list(read_rows("someone/cards#3", Ledger()))
    assert [row.file for row in rows] == ["someone/cards"] * 3


def test_a_data_set_of_the_hub_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch):
    def load_dataset(name: str, **_: object):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(RowError, match="the hub gives no such data set: no network"):
        list(read_rows("someone/cards", Ledger()))


def test_the_hub_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RowError, match=r"pip install 'burnish\[hub\]'"):
        list(read_rows("someone/cards", Ledger()))


REAL_FILES = {
    "alpaca_demo/alpaca_en_demo.json.gz": ("conversation", 999),
    "alpaca_demo/dpo_en_demo.json.gz": ("pair", 300),
    "banking77/train.csv": ("labelled", 10003),
    "banking77/test.csv": ("labelled", 3080),
    "gsm8k/test.jsonl.gz": ("conversation", 1319),
    "hh_rlhf/harmless-base/test.jsonl.gz": ("pair", 2299),
    "ifeval/input_data.jsonl": ("prompt", 541),
    "medquad_sample/medquad_3000.jsonl.gz": ("conversation", 3000),
}


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not there")
@pytest.mark.parametrize("name", REAL_FILES)
def test_real_data_are_read(name: str):
    kind, amount = REAL_FILES[name]
    ledger = Ledger()
    rows = list(read_rows(REAL / name, ledger))
    assert {row.kind for row in rows} == {kind}
    assert len(rows) == amount


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.is_dir(), reason="../shared/data is not there")
def test_rows_of_real_data_that_cannot_be_used_are_in_the_ledger():
    ledger = Ledger()
    rows = list(read_rows(REAL / "hh_rlhf/harmless-base/test.jsonl.gz", ledger))
    assert len(rows) + sum(ledger.by_reason("dropped").values()) == 2312
