"""Errors: what they say, and with which code the command line ends."""

from __future__ import annotations

import inspect

import pytest

from burnish import errors
from burnish.errors import BurnishError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, BurnishError)]
CODES = {
    "BurnishError": 2,
    "RecipeError": 2,
    "RowError": 2,
    "ModelError": 2,
    "DataGuardError": 1,
    "SmokeError": 3,
    "TrainingError": 3,
    "CheckpointError": 3,
    "EndpointError": 3,
    "Interrupted": 3,
}


def make(kind, found="found", **said):
    return kind(found, **said, **({"rows": {}, "matches": []} if kind is errors.DataGuardError else {}))


def test_an_error_says_where_what_was_expected_and_what_to_type():
    error = BurnishError("the answer is empty", where="rows.jsonl:3", expected="some text", hint="burnish data clean")
    assert str(error) == "rows.jsonl:3: the answer is empty\n  expected some text\n  hint: burnish data clean"


def test_an_error_leaves_out_what_it_does_not_know():
    assert str(BurnishError("the answer is empty")) == "the answer is empty"


@pytest.mark.parametrize("kind", TREE)
def test_every_error_has_its_exit_code(kind):
    assert make(kind).exit_code == CODES[kind.__name__]


@pytest.mark.parametrize("kind", [kind for kind in TREE if kind is not BurnishError])
def test_every_error_can_be_caught_as_pythons_own_kind(kind):
    assert isinstance(make(kind), ValueError | RuntimeError)


@pytest.mark.parametrize("kind", TREE)
def test_the_docstring_of_the_module_shows_the_whole_tree(kind):
    assert kind.__name__ in errors.__doc__
