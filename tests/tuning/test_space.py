"""What a study may vary: how it is written, and what is refused before anything runs."""

from __future__ import annotations

import pytest

from burnish.errors import RecipeError
from burnish.recipe import load_recipe, make_recipe
from burnish.tuning.space import (
    Budget,
    Choices,
    Range,
    read_budget,
    read_space,
    recipe_with,
    starting_values,
    usual_space,
    with_start,
)

RECIPE = make_recipe({"data": {"train": "rows.jsonl"}})
START = {"train.learning_rate": 1e-3, "train.batch_size": 8}


def recipe_with_space(space):
    return make_recipe({"data": {"train": "rows.jsonl"}, "tune": {"space": space}})


# Reading -------------------------------------------------------------------------------------------------------------


def test_a_recipe_names_ranges_and_choices(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {train: rows.jsonl}\n"
        "tune:\n  space:\n    train.learning_rate: [1e-5, 1e-3, log]\n    adapter.rank: {choices: [8, 16]}\n"
        "    train.weight_decay: [0, 1]\n"
    )
    assert read_space(load_recipe(path)) == {
        "train.learning_rate": Range(1e-5, 1e-3, log=True),
        "adapter.rank": Choices((8, 16)),
        "train.weight_decay": Range(0, 1),
    }


def test_the_command_line_names_them_too_and_replaces_the_recipes():
    recipe = recipe_with_space({"train.epochs": [1, 9], "train.clip": [0.5, 2]})
    space = read_space(recipe, ["train.epochs=1:4.5", "train.learning_rate=1e-5:1e-3:log"], ["adapter.rank=8,16,16"])
    assert space == {
        "train.epochs": Range(1, 4.5),
        "train.clip": Range(0.5, 2),
        "train.learning_rate": Range(1e-5, 1e-3, log=True),
        "adapter.rank": Choices((8, 16)),
    }


def test_a_key_may_have_the_name_that_others_give_it():
    space = read_space(RECIPE, ["num_train_epochs=1:4", "learning_rate=0.1:0.2"], ["r=4,8"])
    assert list(space) == ["train.epochs", "train.learning_rate", "adapter.rank"]


def test_a_key_that_takes_integers_gets_integers():
    space = read_space(RECIPE, ["train.patience=1:4", "adapter.rank=4:64:log", "train.epochs=1:4"])
    assert [one.whole for one in space.values()] == [True, True, False]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"train.learning_rate": [1e-3, 1e-5]}, "from 0.001 to 1e-05"),
        ({"train.learning_rate": [1e-3, 1e-3]}, "from 0.001 to 0.001"),
        ({"train.weight_decay": [0, 0.1, "log"]}, "logarithm"),
        ({"train.learning_rat": [1e-5, 1e-3]}, "unknown key `train.learning_rat`"),
        ({"nothing": [1, 2]}, "unknown key `nothing`"),
        ({"adapter.rank": {"choices": [8, 0]}}, "`adapter.rank` is 0"),
        ({"adapter.dropout": [0, 1]}, "`adapter.dropout` is 1"),
        ({"adapter.rank": [1.5, 8]}, "`adapter.rank` is 1.5"),
        ({"adapter.rank": {"choices": [8]}}, "found [8]"),
        ({"adapter.rank": {"choices": [8, 16], "log": True}}, "found"),
        ({"adapter.rank": 8}, "found 8"),
        ({"train.learning_rate": [1e-5, 1e-3, "lin"]}, "found"),
        ({"train.learning_rate": [1e-5]}, "found"),
        ({"train.learning_rate": [float("nan"), 1]}, "found"),
        ({"train.learning_rate": [True, 2]}, "found"),
        ({"train.seed": [0, 4]}, "cannot be tuned"),
        ({"data.near_duplicates": [0.5, 1]}, "cannot be tuned"),
        ({"model": {"choices": ["a", "b"]}}, "cannot be tuned"),
        ({"tune.seeds": [1, 3]}, "cannot be tuned"),
        ({"train.save_every": [10, 30]}, "cannot be tuned"),
        ({"distill.teacher": {"choices": ["a", "b"]}}, "cannot be tuned"),
        ({"distill.student.layers": [2, 8]}, "cannot be tuned"),
    ],
)
def test_what_cannot_be_a_space_says_why_and_where(space, said):
    with pytest.raises(RecipeError) as caught:
        read_space(recipe_with_space(space))
    assert said in caught.value.found
    assert next(iter(space)) in caught.value.where


@pytest.mark.parametrize(
    ("method", "key", "expected"),
    [
        ("head", "adapter.rank", "another key"),
        ("full", "r", "another key"),
        ("ia3", "adapter.dropout", "one of: adapter.targets"),
    ],
)
def test_a_key_that_the_method_has_no_use_for_is_refused(method, key, expected):
    recipe = make_recipe({"data": {"train": "rows.jsonl"}, "adapter": {"method": method}})
    with pytest.raises(RecipeError, match=f"the method {method} has no use for it") as caught:
        read_space(recipe, [f"{key}=0.1:0.2"])
    assert caught.value.where == f"--range {key}"
    assert expected in caught.value.expected
    assert caught.value.hint == "--set adapter.method=lora   uses it"


HEAD = {"adapter": {"method": "head"}, "objective": "classify", "task": {"kind": "classify"}}
TAGS = {**HEAD, "objective": "tag", "task": {"kind": "tag"}}
TAUGHT = {"distill": {"teacher": "runs/teacher"}}
TASKS = {"tasks": {name: {"data": {"train": f"{name}.jsonl"}} for name in ("one", "other")}}


def recipe_like(values):
    return make_recipe(values if "tasks" in values else {"data": {"train": "rows.jsonl"}, **values})


@pytest.mark.parametrize(
    ("values", "key", "who", "hint"),
    [
        (HEAD, "train.neftune", "the method head", "--set adapter.method=lora"),
        (HEAD, "train.dropout", "the method head", "--set adapter.method=lora"),
        (HEAD | TAUGHT, "neftune_noise_alpha", "the method head", "--set adapter.method=lora"),
        ({}, "distill.alpha", "a recipe without a teacher", "--set distill.teacher=NAME"),
        ({}, "distill.temperature", "a recipe without a teacher", "--set distill.teacher=NAME"),
        ({}, "mixing.temperature", "a recipe of one task", "tasks: ..."),
    ],
)
def test_a_key_that_the_recipe_has_no_use_for_is_refused(values, key, who, hint):
    with pytest.raises(RecipeError, match=f"cannot be tuned: {who} has no use for it") as caught:
        read_space(recipe_like(values), [f"{key}=0.1:0.2"])
    assert caught.value.where == f"--range {key}"
    assert caught.value.hint == f"{hint}   uses it"


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({}, "train.neftune"),
        ({}, "train.dropout"),
        (TAGS, "train.neftune"),  # each word's state is wanted, so the body reads the text at each step
        (TAGS, "train.dropout"),
        (HEAD | TAUGHT, "train.dropout"),
        (TAUGHT, "distill.alpha"),
        (TASKS, "mixing.temperature"),
    ],
)
def test_a_key_that_the_recipe_has_a_use_for_may_vary(values, key):
    assert key in read_space(recipe_like(values), [f"{key}=0.1:0.2" if key[0] != "m" else f"{key}=1:2"])


def test_a_head_alone_may_be_that_of_several_tasks():
    tasks = {
        name: {**one, "objective": "classify", "task": {"kind": "classify"}} for name, one in TASKS["tasks"].items()
    }
    space = read_space(recipe_like({"tasks": tasks, "adapter": {"method": "head"}}), ["train.weight_decay=0:1"])
    assert space == {"train.weight_decay": Range(0, 1)}


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("train.layer_decay", "0.8:1", "the head alone is trained"),
        ("train.gradual_unfreezing", "0:0.5", "the head alone is trained"),
    ],
)
def test_what_a_head_alone_cannot_have_is_refused_before_the_study(key, value, told):
    values = {"data": {"train": "rows.jsonl"}, "adapter": {"method": "head"}, "objective": "classify"}
    recipe = make_recipe(values | {"task": {"kind": "classify"}})
    with pytest.raises(RecipeError, match=told) as caught:
        read_space(recipe, [f"{key}={value}"])
    assert caught.value.where == key


def test_a_head_alone_is_no_choice_for_a_model_that_writes():
    with pytest.raises(RecipeError, match="writes text"):
        read_space(RECIPE, [], ["adapter.method=lora,head"])


def test_a_key_that_one_of_the_methods_tried_uses_may_vary():
    recipe = make_recipe({"data": {"train": "rows.jsonl"}, "adapter": {"method": "full"}})
    space = read_space(recipe, ["adapter.rank=4:16"], ["adapter.method=lora,dora"])
    assert space["adapter.rank"] == Range(4, 16, whole=True)


@pytest.mark.parametrize(
    "text", ["train.epochs", "train.epochs=", "=1:2", "train.epochs=1", "train.epochs=1:2:3:4", "train.epochs=a:b"]
)
def test_a_malformed_range_of_the_command_line_is_refused(text):
    with pytest.raises(RecipeError, match="--range"):
        read_space(RECIPE, [text])


@pytest.mark.parametrize(
    "text", ["adapter.rank", "adapter.rank=", "adapter.rank=8", "adapter.rank=8,[", "adapter.rank=a,b"]
)
def test_malformed_choices_of_the_command_line_are_refused(text):
    with pytest.raises(RecipeError, match="--choices"):
        read_space(RECIPE, (), [text])


# Values --------------------------------------------------------------------------------------------------------------


def test_auto_begins_at_what_it_comes_to():
    found = starting_values(
        RECIPE, ["train.learning_rate", "train.max_steps", "adapter.rank"], START | {"train.max_steps": 40}
    )
    assert found == {"train.learning_rate": 1e-3, "train.max_steps": 40, "adapter.rank": 16}


def test_a_key_that_is_left_open_is_refused():
    with pytest.raises(RecipeError, match="left open"):
        starting_values(RECIPE, ["train.memory_limit"], {})


def test_the_recipes_own_value_is_one_of_the_choices():
    assert with_start({"adapter.rank": Choices((4, 8))}, {"adapter.rank": 16}) == {"adapter.rank": Choices((16, 4, 8))}
    assert with_start({"adapter.rank": Choices((4, 8))}, {"adapter.rank": 8}) == {"adapter.rank": Choices((4, 8))}


def test_a_recipe_with_other_values_keeps_the_rest():
    changed = recipe_with(RECIPE, {"train.epochs": 1.5, "adapter.targets": ["q_proj"]})
    assert (changed.train.epochs, changed.adapter.targets, changed.data) == (1.5, ["q_proj"], RECIPE.data)


def test_where_nothing_is_named_the_usual_keys_vary_around_the_recipes_values():
    space = usual_space(RECIPE, 100, START)
    assert space["train.learning_rate"] == Range(1e-3 / 8, 8e-3, log=True)
    assert space["train.batch_size"] == Choices((4, 8))
    assert {"train.epochs", "train.warmup", "train.weight_decay", "adapter.rank", "adapter.dropout"} < set(space)


def test_only_what_the_recipe_leaves_open_is_among_the_usual_keys():
    recipe = recipe_with(RECIPE, {"adapter.method": "full", "train.max_steps": 10})
    assert {"train.epochs", "adapter.rank", "adapter.dropout"}.isdisjoint(usual_space(recipe, 100, START))


def test_the_rank_of_an_adapter_to_go_on_from_is_not_tried_otherwise():
    recipe = recipe_with(RECIPE, {"adapter.start": "runs/first"})
    assert "adapter.rank" not in usual_space(recipe, 100, START)


# Budget --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        (20, Budget(trials=20)),
        ("3", Budget(trials=3)),
        ("90s", Budget(seconds=90)),
        ("20m", Budget(seconds=1200)),
        ("1.5h", Budget(seconds=5400)),
    ],
)
def test_a_budget_is_a_number_of_trials_or_a_time(text, budget):
    assert read_budget(text) == budget


@pytest.mark.parametrize("text", ["", "0", "-3", "1.5", "m", "20 minutes", "0m", "many", "1e3"])
def test_any_other_budget_is_refused(text):
    with pytest.raises(RecipeError, match="budget"):
        read_budget(text)
