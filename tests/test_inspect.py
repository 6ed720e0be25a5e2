"""What `burnish data check` shows: figures, findings, and rows as the model will see them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.inspect import inspect

ROWS = [{"text": f"message {n} about {'abcdefghij'[n] * 9}", "label": n % 2, "team": "x"} for n in range(10)]


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[0]]) + "{")
    return str(path)


def test_the_text_says_what_is_there_and_what_is_wrong(file: str):
    text = inspect([file]).as_text()
    assert "11 rows (11 labelled), of which 1 were there before; 1 more cannot be used" in text
    assert "2 labels: 0 6, 1 5" in text
    assert "team (1 values)" in text
    assert f"exact duplicate: {file}:11" in text
    assert "nothing: the first one stays" in text


def test_rows_are_shown_with_what_is_trained_marked(file: str, model_folder):
    inspection = inspect([file], model=model_folder())
    assert len(inspection.rendered) == 3
    assert "⟪0<|im_end|>⟫" in inspection.rendered[0]
    assert inspection.rendered[0] in inspection.as_text().replace("\n    ", "\n")


def test_the_lengths_are_those_of_the_rendered_rows(file: str, model_folder):
    least, middle, most = inspect([file], model=model_folder()).tokens
    assert len(ROWS[0]["text"]) < least <= middle <= most


def test_without_the_model_the_file_is_checked_all_the_same(file: str, tmp_path: Path):
    inspection = inspect([file], model=str(tmp_path / "nowhere"))
    assert inspection.rendered == []
    assert inspection.note.startswith("not rendered: ")
    assert inspection.check.rows == 11


def test_preferences_are_checked_and_not_rendered(tmp_path: Path, model_folder):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "Why?", "chosen": "So.", "rejected": "No."}\n')
    inspection = inspect([str(path)], model=model_folder())
    assert inspection.check.kinds == {"pair": 1}
    assert inspection.note.startswith("not rendered: ")


def test_an_inspection_is_json(file: str, model_folder):
    record = json.loads(json.dumps(inspect([file], model=model_folder()).as_json()))
    assert record["rows"] == 11
    assert len(record["rendered"]) == 3
