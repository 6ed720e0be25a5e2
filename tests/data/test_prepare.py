"""From a recipe's files to guarded splits: each step is done, in its order, and every row is accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from making import ROOT, sentence
from reading import write

from burnish.data.ledger import Ledger
from burnish.data.prepare import Prepared
from burnish.data.prepare import prepare as prepare_recipe
from burnish.errors import DataGuardError, RecipeError, RowError
from burnish.recipe import load_recipe, make_recipe

KINDS = ("conversation", "text", "labelled")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


def lines(first: int, count: int, **extra: Any) -> list[str]:
    return [
        json.dumps({"prompt": sentence(9, n), "completion": f"It is {n}.", "team": f"t{n % 4}", **extra})
        for n in range(first, first + count)
    ]


def prepare(data: dict[str, Any], ledger: Ledger | None = None, **sections: Any) -> Prepared:
    recipe = make_recipe({"data": data, **sections})
    return prepare_recipe(recipe, ledger or Ledger(), special_tokens=["<|im_end|>"], kinds=KINDS)


def sizes(prepared: Prepared) -> tuple[int, int, int]:
    guarded = prepared.guarded
    return len(guarded.train), len(guarded.validation), len(guarded.test)


def test_rows_are_cleaned_deduplicated_and_split(file: Path):
    odd = [
        '{"prompt": "caf\u00c3\u00a9<|im_end|>", "completion": "Yes."}',
        '{"prompt": "Why?", "completion": " "}',
        "{",
    ]
    ledger = Ledger()
    prepared = prepare({"train": [str(write(file, *lines(0, 40), *lines(0, 1), *odd))], "test": 8}, ledger)
    assert sizes(prepared) == (29, 4, 8)
    assert ledger.by_reason("dropped") == {"exact duplicate": 1, "the answer is empty": 1, "broken JSON": 1}
    assert ledger.by_reason("changed") == {"mojibake": 1}
    assert ledger.by_reason("noted")["special tokens in the text"] == 1


def test_what_was_read_is_what_is_left_and_what_was_dropped(file: Path):
    prepared = prepare({"train": [str(write(file, *lines(0, 40), *lines(0, 3), '{"prompt": "Why?"'))]})
    assert (sum(sizes(prepared)), prepared.read) == (40, 44)


def test_only_the_wanted_values_of_a_column_are_kept(file: Path):
    prepared = prepare({"train": [str(write(file, *lines(0, 40)))], "only": {"team": ["t1", "t2"]}})
    assert {row.extra["team"] for row in prepared.guarded.train} == {"t1", "t2"}


def test_only_the_wanted_labels_are_kept(file: Path):
    rows = [json.dumps({"text": sentence(9, n), "label": n % 4}) for n in range(40)]
    prepared = prepare({"train": [str(write(file, *rows))], "only": {"label": ["1", "2"]}})
    assert {row.answer_text() for row in prepared.guarded.train} == {"1", "2"}


@pytest.mark.parametrize("column", ["theme", "label"])
def test_a_column_that_is_not_there_is_named(file: Path, column: str):
    with pytest.raises(RecipeError, match=f"no column '{column}'") as caught:
        prepare({"train": [str(write(file, *lines(0, 10)))], "only": {column: ["t1"]}})
    assert "team" in caught.value.expected


def test_a_sample_is_split_like_the_whole_and_the_rest_is_in_the_ledger(file: Path):
    ledger = Ledger()
    prepared = prepare({"train": [str(write(file, *lines(0, 40)))], "sample": 20}, ledger)
    assert sizes(prepared) == (16, 2, 2)
    assert ledger.by_reason("left out") == {"data.sample": 20}


def test_files_may_be_given_for_validation_and_test(tmp_path: Path):
    names = ("train", "validation", "test")
    files = {name: [str(write(tmp_path / f"{name}.jsonl", *lines(n * 10, 10)))] for n, name in enumerate(names)}
    assert sizes(prepare(files)) == (10, 10, 10)


def test_a_file_for_the_test_and_a_share_for_validation(tmp_path: Path):
    train, test = (str(write(tmp_path / f"{n}.jsonl", *lines(n, 20))) for n in (0, 20))
    assert sizes(prepare({"train": [train], "validation": 0.2, "test": [test]})) == (16, 4, 20)


def test_a_leak_between_files_blocks(tmp_path: Path):
    train, test = (str(write(tmp_path / f"{n}.jsonl", *lines(n, 20))) for n in (0, 15))
    with pytest.raises(DataGuardError, match="5 held-out rows"):
        prepare({"train": [train], "validation": 0, "test": [test]})


def test_a_leak_between_files_is_dropped_from_train_where_the_recipe_says_so(tmp_path: Path):
    train, test = (str(write(tmp_path / f"{n}.jsonl", *lines(n, 20))) for n in (0, 15))
    guards = {"leakage": {"action": "drop"}}
    prepared = prepare({"train": [train], "validation": 0, "test": [test]}, guards=guards)
    assert (sizes(prepared), prepared.read) == ((15, 0, 20), 40)


def test_rows_that_the_objective_does_not_learn_from_are_refused(file: Path):
    pair = '{"prompt": "Why?", "chosen": "So.", "rejected": "No."}'
    with pytest.raises(RowError, match="this is a pair row, and sft does not learn from those") as caught:
        prepare({"train": [str(write(file, *lines(0, 10), pair))]})
    assert caught.value.where == f"{file}:11"


def test_a_file_of_which_nothing_is_left_is_refused(file: Path):
    with pytest.raises(RowError, match="no row is left") as caught:
        prepare({"train": [str(write(file, *lines(0, 10)))], "only": {"team": ["t9"]}})
    assert caught.value.where == "data.train"


@pytest.mark.parametrize("example", ["support", "intents", "chat"])
def test_the_examples_are_prepared_without_a_drop(example: str):
    recipe = load_recipe(ROOT / "examples" / example / "recipe.yaml")
    ledger = Ledger()
    prepared = prepare_recipe(recipe, ledger, special_tokens=[], kinds=KINDS)
    assert min(sizes(prepared)) > 0
    assert ledger.gone == 0
