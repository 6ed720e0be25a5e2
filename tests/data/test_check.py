"""`data check`, `data clean` and `data split`: what they find, what they write, and what they refuse to write over."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from making import sentence
from reading import GOOD, write

from burnish.data import check as module
from burnish.data.check import check, write_clean, write_split
from burnish.data.ledger import Ledger
from burnish.data.rows import Row
from burnish.data.sources import read_rows
from burnish.errors import RecipeError, RowError

BROKEN = '{"prompt": "a" "completion": "b"}'
MOJIBAKE = '{"prompt": "Is the caf\u00c3\u00a9 open?", "completion": "Yes."}'
NAMES = ("train", "validation", "test")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def lines(count: int, **extra: Any) -> list[str]:
    return [json.dumps({"prompt": sentence(9, n), "completion": f"{n % 2}", **extra}) for n in range(count)]


def read(path: Path) -> list[Row]:
    """The rows of a file, whatever place they stand at."""
    return [replace(row, file="", line=0) for row in read_rows(path, Ledger())]


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---------------------------------------------------------------- check


def test_check_counts_rows_kinds_words_and_columns(file: Path):
    found = check(write(file, *lines(20, customer="c1"), '{"text": "some plain text", "customer": "c2"}'))
    assert (found.rows, found.kinds) == (21, {"conversation": 20, "text": 1})
    assert found.words == {"prompt": [3, 9, 9], "answer": [0, 1, 1]}
    assert found.columns == {"customer": 2}


def test_check_finds_labels_and_how_often_each_stands(file: Path):
    assert check(write(file, *lines(20))).labels == {"0": 10, "1": 10}


def test_sentences_and_grades_are_no_labels(tmp_path: Path):
    sentences = [json.dumps({"prompt": sentence(9, n), "completion": sentence(9, -n - 1)}) for n in range(20)]
    grades = [json.dumps({"text": sentence(9, n), "label": n % 2 + 0.5}) for n in range(20)]
    assert not check(write(tmp_path / "a.jsonl", *sentences)).labels
    assert not check(write(tmp_path / "b.jsonl", *grades)).labels


def test_more_different_answers_than_are_counted_are_no_labels(file: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "LABELS_HELD", 1)
    assert not check(write(file, *lines(20))).labels


def test_check_tells_findings_with_places_and_fixes(file: Path):
    found = check(write(file, GOOD, BROKEN, MOJIBAKE, GOOD))
    assert found.dropped == 2
    assert {(one["kind"], one["action"], *one["where"]) for one in found.findings} == {
        ("broken JSON", "dropped", f"{file}:2"),
        ("mojibake", "changed", f"{file}:3"),
        ("exact duplicate", "dropped", f"{file}:4"),
    }
    assert all(one["fix"] for one in found.findings)


def test_check_shows_no_personal_data(file: Path):
    row = '{"prompt": "Write to joe.bloggs@example.com", "completion": "Yes."}'
    assert "bloggs" not in json.dumps(check(write(file, row, row, row[:-9])).as_json())


def test_check_notes_conflicting_labels(file: Path):
    found = check(write(file, *lines(20), json.dumps({"prompt": sentence(9, 0), "completion": "1"})))
    assert [one["count"] for one in found.findings if one["kind"] == "conflicting labels"] == [2]


def test_a_check_is_json(file: Path):
    assert json.loads(json.dumps(check(write(file, *lines(20), BROKEN)).as_json()))["rows"] == 20


# ---------------------------------------------------------------- clean


def test_clean_writes_rows_that_read_back_clean(file: Path, tmp_path: Path):
    out = tmp_path / "clean.jsonl"
    written = write_clean(write(file, GOOD, BROKEN, MOJIBAKE, GOOD), out)
    assert (written["read"], written["written"]) == (4, 2)
    assert [row.prompt_text() for row in read(out)] == ["Capital of France?", "Is the café open?"]


def test_clean_writes_a_ledger_beside_the_rows(file: Path, tmp_path: Path):
    written = write_clean(write(file, GOOD, BROKEN, MOJIBAKE), tmp_path / "clean.jsonl")
    assert written["ledger"] == str(tmp_path / "clean.ledger.jsonl")
    assert Counter(entry["action"] for entry in records(Path(written["ledger"]))) == {"dropped": 1, "changed": 1}


def test_clean_of_what_is_clean_is_equal(file: Path, tmp_path: Path):
    write_clean(write(file, *lines(20), MOJIBAKE), tmp_path / "once.jsonl")
    write_clean(tmp_path / "once.jsonl", tmp_path / "twice.jsonl")
    assert (tmp_path / "twice.jsonl").read_bytes() == (tmp_path / "once.jsonl").read_bytes()
    assert records(tmp_path / "twice.ledger.jsonl") == []


def test_clean_redacts_where_it_is_told_to(file: Path, tmp_path: Path):
    write_clean(write(file, GOOD.replace("France", "joe@example.com")), tmp_path / "clean.jsonl", redact=True)
    assert read(tmp_path / "clean.jsonl")[0].prompt_text() == "Capital of [e-mail]?"


def test_a_failed_clean_leaves_nothing_behind(file: Path, tmp_path: Path):
    with pytest.raises(RowError):
        write_clean(write(file, BROKEN), tmp_path / "clean.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


# ---------------------------------------------------------------- split


def test_split_writes_rows_that_read_back_equal(file: Path, tmp_path: Path):
    written = write_split(write(file, *lines(40, customer="c1")), tmp_path / "out", test=0.2)
    splits = {name: read(tmp_path / "out" / f"{name}.jsonl") for name in NAMES}
    assert written["rows"] == {"train": 28, "validation": 4, "test": 8}
    together = [row for name in NAMES for row in splits[name]]
    assert sorted(map(repr, together)) == sorted(map(repr, read(file)))


def test_split_gives_each_label_its_share(file: Path, tmp_path: Path):
    write_split(write(file, *lines(40)), tmp_path / "out", test=0.2)
    answers = Counter(row.answer_text() for row in read(tmp_path / "out" / "test.jsonl"))
    assert answers == {"0": 4, "1": 4}


def test_a_failed_split_leaves_no_file_behind(file: Path, tmp_path: Path):
    with pytest.raises(RecipeError, match="customer"):
        write_split(write(file, *lines(20)), tmp_path / "out", group_by="customer")
    assert list((tmp_path / "out").iterdir()) == []


# ---------------------------------------------------------------- what must not be lost


def test_a_file_that_is_there_is_not_written_over_unless_forced(file: Path, tmp_path: Path):
    out = write(tmp_path / "clean.jsonl", "precious")
    with pytest.raises(RowError, match="already") as caught:
        write_clean(write(file, GOOD), out)
    assert "--force" in caught.value.hint
    assert out.read_text() == "precious\n"
    write_clean(file, out, overwrite=True)
    assert len(read(out)) == 1


def test_a_split_that_is_there_is_not_written_over(file: Path, tmp_path: Path):
    write_split(write(file, *lines(20)), tmp_path / "out")
    with pytest.raises(RowError, match="already"):
        write_split(file, tmp_path / "out")


@pytest.mark.parametrize("name", ["{}", "{}#2"])
def test_the_source_is_never_written_over_even_if_forced(file: Path, name: str):
    content = write(file, GOOD, MOJIBAKE).read_bytes()
    with pytest.raises(RowError, match="the file to write is the file to read"):
        write_clean(name.format(file), file, overwrite=True)
    assert file.read_bytes() == content


def test_the_source_is_known_by_another_path(file: Path, tmp_path: Path):
    write(file, GOOD)
    (tmp_path / "link.jsonl").symlink_to(file)
    with pytest.raises(RowError, match="the file to write is the file to read"):
        write_clean(tmp_path / "link.jsonl", file, overwrite=True)


def test_a_split_does_not_write_over_its_source(tmp_path: Path):
    source = write(tmp_path / "train.jsonl", *lines(20))
    with pytest.raises(RowError, match="the file to write is the file to read"):
        write_split(source, tmp_path, overwrite=True)


def test_a_broken_line_is_shown_without_the_secret_in_it(file: Path, tmp_path: Path):
    """Neither whole nor by half, where the line is cut to an excerpt."""
    secret = "sk-abcdEFGH1234ijklMNOP5678"
    broken = [f'{{"prompt": "{"x" * length} {secret}' for length in range(140, 200, 7)]
    written = write_clean(write(file, GOOD, *broken, GOOD), tmp_path / "clean.jsonl")
    assert Counter(entry["reason"] for entry in records(Path(written["ledger"])))["broken JSON"] == len(broken)
    assert secret[:12] not in Path(written["ledger"]).read_text()
