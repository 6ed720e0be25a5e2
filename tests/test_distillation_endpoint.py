"""Whole runs whose teacher is an endpoint: good answers, figures of its tokens, nonsense, and none at all."""

from __future__ import annotations

import json

import pytest

import burnish
from burnish.errors import ModelError, RecipeError
from endpoints import said, serving
from tiny_runs import asked_and_answered, recipe_of, write_rows

BY_LETTER = [("o", -0.05, [("o", -0.05), ("a", -4.0)]), ("k", -0.1, [("k", -0.1), ("zz", -3.0)])]
AS_ONE = [("ok", -0.1, [])]


@pytest.fixture
def go(model_folder, tmp_path):
    """A function from what the endpoint replies, in turn, and keys of `distill`, to (folder, report, what was asked)."""
    file = write_rows(tmp_path / "rows.jsonl", asked_and_answered(40))

    def run(*replies, folder="run", **distill):
        with serving(*replies) as server:
            keys = {"teacher": server.url, "endpoint_model": "large", "time_prompts": 2, "retries": 0, **distill}
            recipe = recipe_of(model_folder(), file, train={"epochs": 2}) | {"distill": keys}
            return tmp_path / folder, burnish.run(recipe, out=tmp_path / folder, quiet=True), server.seen

    return run


def saying(text, tokens=()):
    return lambda body: said(text, tokens=tokens if body.get("logprobs") else ())


@pytest.mark.parametrize(
    ("distill", "tokens"),
    [
        ({"on": "answers"}, ()),
        ({"on": "probabilities", "top_k": 2}, BY_LETTER),
        ({"on": "probabilities"}, BY_LETTER),
        ({"on": "probabilities"}, AS_ONE),
    ],
    ids=["answers", "top", "spans by letter", "spans of more letters"],
)
def test_a_student_learns_from_an_endpoint(go, distill, tokens):
    folder, report, asked = go(saying("ok", tokens), **distill)
    assert report["distillation"]["seconds"]["over_the_network"]
    assert report["distillation"]["quality"]["teacher"] == 1.0
    assert report["distillation"]["quality"]["student"] > 0.5
    assert report["teacher"] == {"asked": report["data"]["train"], "learnt": report["data"]["train"], "rejected": {}}
    assert asked[0][1]["messages"][0] == {"role": "system", "content": "Say ok."}
    assert len((folder / "teacher" / "answers.jsonl").read_text().split()) > 0


def test_an_endpoint_of_other_tokens_cannot_give_its_likeliest(go):
    with pytest.raises(ModelError, match=r"another vocabulary(.|\n)*leave distill.top_k out"):
        go(saying("ok ok", [("ok ok", -0.1, [])]), top_k=2, min_score=0.0)


def test_an_endpoint_without_log_probabilities_can_still_give_its_answers(go):
    with pytest.raises(ModelError, match="no log-probabilities") as caught:
        go(saying("ok"))
    assert caught.value.hint == "distill: {on: answers}   needs nothing but text"


def test_some_nonsense_is_left_out_and_stands_in_the_ledger(go):
    nonsense = [said(""), said("ha " * 200), said("wrong"), said("ok", finish="length")]
    folder, report, _ = go(*nonsense, said("ok"), on="answers", parallel=1)
    rejected = report["teacher"]["rejected"]
    assert set(rejected) == {"is empty", "repeats itself", "fails the task's metric", "does not end"}
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    told = [one for one in entries if one["action"] == "dropped" and "teacher" in one["reason"]]
    assert len(told) == sum(rejected.values())
    assert report["data"]["train"] == report["teacher"]["learnt"]


def test_mostly_nonsense_is_an_error_and_nothing_is_lost(go, tmp_path):
    with pytest.raises(ModelError, match="nonsense"):
        go(saying(""), on="answers")
    assert len((tmp_path / "run" / "teacher" / "answers.jsonl").read_text().splitlines()) > 1
    assert json.loads((tmp_path / "run" / "report.json").read_text())["verdict"] == "stop"


def test_a_run_goes_on_with_the_answers_that_came_before_the_endpoint_fell_silent(go):
    with pytest.raises(ModelError, match="no answer within"):
        go(*[said("ok")] * 9, 0.3, on="answers", timeout=0.1, parallel=1)
    # Answers belong to an address and a question; another port is another address.
    _, report, _ = go(saying("ok"), on="answers")
    assert report["teacher"]["rejected"] == {}


@pytest.mark.parametrize(
    ("distill", "said"),
    [
        ({"on": "samples"}, "no endpoint judges"),
        ({"endpoint_model": ""}, "which model to ask"),
        ({"temperature": 2.0}, "temperature 1"),
        ({"student": {"layers": 2}}, "no student can be cut"),
    ],
)
def test_what_an_endpoint_cannot_do_is_said_before_it_is_asked(go, distill, said):
    with pytest.raises(RecipeError, match=said):
        go(saying("ok"), **distill)
