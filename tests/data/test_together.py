from __future__ import annotations

import json

import pytest

from burnish.data.ledger import Ledger
from burnish.data.together import joined, prepare_tasks
from burnish.errors import DataGuardError, RecipeError, RowError
from burnish.recipe import make_recipe
from tiny_runs import questions

KINDS = {"asked": {"conversation"}, "named": {"labelled"}}


def write(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def prepared(tmp_path):
    """A function from the texts of each task, and changes of the recipe, to what `prepare_tasks` makes of them, and the ledger."""

    def make(asked, named, /, action="block", **changes):
        answered = [{"prompt": text, "completion": f"yes {number}"} for number, text in enumerate(asked)]
        labelled = [{"text": text, "label": ("a", "b")[number % 2]} for number, text in enumerate(named)]
        tasks = {
            "asked": {"data": {"train": write(tmp_path / "asked.jsonl", answered), "validation": 4, "test": 8}},
            "named": {
                "data": {"train": write(tmp_path / "named.jsonl", labelled), "validation": 4, "test": 8},
                "task": {"kind": "classify"},
            },
        }
        for name, change in changes.items():
            tasks[name]["data"] |= change
        ledger = Ledger()
        recipe = make_recipe({"tasks": tasks, "guards": {"leakage": {"action": action}}})
        return prepare_tasks(recipe, ledger, special_tokens=(), kinds=KINDS), ledger

    return make


TEXTS = questions(120)


def test_each_task_has_its_own_splits_and_all_of_them_are_one(prepared):
    found, _ = prepared(TEXTS[:60], TEXTS[60:])
    guarded = found.guarded
    sizes = {name: (len(one.train), len(one.validation), len(one.test)) for name, one in guarded.tasks.items()}
    assert sizes == {"asked": (48, 4, 8), "named": (48, 4, 8)}
    assert found.read == 120
    assert len(guarded.train) == 96
    assert joined(guarded.parts).test_hash == guarded.test_hash


def test_a_test_row_of_one_task_in_the_training_rows_of_another_stops_the_run(prepared):
    with pytest.raises(DataGuardError, match="held-out rows also stand in train"):
        prepared(TEXTS[:60], TEXTS[:60])


def test_or_its_copy_goes_where_the_recipe_says_so(prepared):
    found, ledger = prepared(TEXTS[:60], TEXTS[30:90], action="drop")
    tasks = found.guarded.tasks
    for one in tasks.values():
        held_out = {row.prompt_text() for row in one.test}
        for other in tasks.values():
            assert not held_out & {row.prompt_text() for row in (*other.train, *other.validation)}
    assert [len(one.test) for one in tasks.values()] == [8, 8]
    assert ledger.by_reason("dropped")["leak (exact)"] > 0
    assert found.read == 120
    owners = {(match.train.file, match.held_out.file) for match in found.guarded.matches if match.kind == "exact"}
    assert owners
    assert all(one != other for one, other in owners)


def test_what_is_wrong_with_the_data_names_the_task_and_what_to_type(prepared):
    with pytest.raises(RecipeError) as caught:
        prepared(TEXTS[:20], TEXTS[60:], asked={"test": 40})
    assert caught.value.where.startswith("tasks.asked.data")
    assert "--set tasks.asked.data.test" in str(caught.value)


def test_rows_that_an_objective_cannot_learn_from_name_the_task(prepared, tmp_path):
    pairs = write(tmp_path / "pairs.jsonl", [{"prompt": text, "chosen": "y", "rejected": "n"} for text in TEXTS[:30]])
    with pytest.raises(RowError, match="task named"):
        prepared(TEXTS[:60], TEXTS[60:], named={"train": pairs})
