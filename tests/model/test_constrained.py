"""Answers held to a JSON schema: whatever the model, they fit."""

from __future__ import annotations

import json

import pytest

from burnish.errors import RecipeError
from burnish.model.constrained import Constraint
from burnish.model.sample import Sampler
from burnish.recipe import make_recipe
from burnish.scoring import parse_json

pytest.importorskip("llguidance")
SCHEMA = {
    "type": "object",
    "properties": {"team": {"enum": ["red", "green"]}, "urgent": {"type": "boolean"}},
    "required": ["team", "urgent"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_random_model_writes_nothing_but_what_fits(make_model, tokenizer, temperature):
    sampler = Sampler(make_model(), tokenizer, {tokenizer.eos_token_id}, constraint=Constraint(SCHEMA))
    prompts = [list(b"ab"), list(b"a longer prompt"), list(b"c")]
    for [completion] in sampler.sample(prompts, max_new_tokens=200, temperature=temperature):
        found = json.loads(completion.text)
        assert completion.stop == "end"
        assert found["team"] in ("red", "green")
        assert isinstance(found["urgent"], bool)


def test_without_a_constraint_a_random_model_writes_no_json(make_model, tokenizer):
    [[completion]] = Sampler(make_model(), tokenizer, {tokenizer.eos_token_id}).sample([list(b"ab")], max_new_tokens=60)
    assert parse_json(completion.text) == (None, False)


def test_a_schema_that_cannot_be_held_to_is_refused():
    with pytest.raises(RecipeError, match="cannot be held") as caught:
        Constraint({"type": "string", "pattern": "(?<=a)b"}).grammar  # noqa: B018
    assert caught.value.where == "task.schema"


def test_another_task_than_extract_is_refused():
    from burnish.parts import constraint_of

    recipe = make_recipe({"task": {"kind": "chat", "constrained": True}, "data": {"train": "rows.jsonl"}})
    with pytest.raises(RecipeError, match="the task is chat"):
        constraint_of(recipe)
