"""Recipes: what is read, what is refused, and what the refusal says."""

from __future__ import annotations

import json

import pytest
import yaml

from burnish.errors import RecipeError
from burnish.recipe import load_recipe, make_recipe, parse_yaml, with_overrides


@pytest.fixture
def read(tmp_path):
    """A function that reads a recipe from its text."""

    def read_text(text, overrides=()):
        path = tmp_path / "recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return read_text


@pytest.fixture
def refused(read):
    """A function from the text of a bad recipe to the error that it raises."""

    def refuse(text, overrides=()):
        with pytest.raises(RecipeError) as caught:
            read(text, overrides)
        return caught.value

    return refuse


# What is read --------------------------------------------------------------------------------------------------------


def test_every_key_but_the_training_rows_has_a_default(read):
    recipe = read("data: {train: rows.jsonl}")
    assert (recipe.model, recipe.objective, recipe.adapter.method) == ("smollm2-135m", "sft", "lora")


def test_one_file_is_a_list_of_one(read):
    assert read("data: {train: rows.jsonl, validation: v.jsonl}").data.validation == ["v.jsonl"]


@pytest.mark.parametrize(("text", "value"), [("1e-4", 1e-4), ("1E4", 1e4), ("2.5e-5", 2.5e-5), ("-.5e+1", -5.0)])
def test_a_number_in_scientific_notation_is_a_number(text, value):
    assert parse_yaml(text, "here") == value


@pytest.mark.parametrize("text", ["e4", "1e", "v1e4", "1e-4x"])
def test_a_word_that_looks_a_little_like_a_number_is_a_word(text):
    assert parse_yaml(text, "here") == text


@pytest.mark.parametrize(
    ("foreign", "section", "own"),
    [
        ("num_train_epochs: 2", "train", {"epochs": 2}),
        ("learning_rate: 1e-4", "train", {"learning_rate": 1e-4}),
        ("warmup_ratio: 0.2", "train", {"warmup": 0.2}),
        ("max_grad_norm: 3", "train", {"clip": 3}),
        ("train: {num_train_epochs: 2}", "train", {"epochs": 2}),
        ("r: 4", "adapter", {"rank": 4}),
        ("lora_alpha: 5", "adapter", {"alpha": 5}),
        ("adapter: {r: 4, lora_dropout: 0.1}", "adapter", {"rank": 4, "dropout": 0.1}),
        ("target_modules: [q_proj]", "adapter", {"targets": ["q_proj"]}),
        ("task: {schema: s.json}", "task", {"json_schema": "s.json"}),
        ("optim: adamw_bnb_8bit", "train", {"optimizer": "adamw8bit"}),
        ("optim: adamw_torch_fused", "train", {"optimizer": "adamw"}),
        ("train: {optimizer: adamw8bit}", "train", {"optimizer": "adamw8bit"}),
        ("torch_compile: true", "train", {"compile": True}),
    ],
)
def test_the_names_of_other_trainers_mean_the_same(read, foreign, section, own):
    found = getattr(read(f"data: {{train: rows.jsonl}}\n{foreign}"), section)
    assert {name: getattr(found, name) for name in own} == own


@pytest.mark.parametrize("mapping", ["{train: {epochs: 1}, num_train_epochs: 2}", "{adapter: {r: 4, rank: 8}}"])
def test_one_key_by_two_names_is_refused(mapping):
    with pytest.raises(RecipeError, match="twice"):
        make_recipe({**yaml.safe_load(mapping), "data": {"train": "rows.jsonl"}})


def test_a_flat_name_joins_the_section_that_is_there(read):
    train = read("data: {train: rows.jsonl}\ntrain: {seed: 7}\nnum_train_epochs: 2").train
    assert (train.seed, train.epochs) == (7, 2)


@pytest.mark.parametrize(
    "train", ["precision: fp7", "recompute: some", "optimizer: lion", "compile: maybe", "memory_limit: 0"]
)
def test_a_setting_that_there_is_not_is_refused_with_its_key(refused, train):
    key = train.split(":")[0]
    error = refused(f"data: {{train: rows.jsonl}}\ntrain: {{{train}}}")
    assert f"`train.{key}" in error.found


def test_a_dumped_recipe_reads_as_the_same_recipe(read):
    recipe = read("data: {train: rows.jsonl}\ntask: {kind: extract, schema: {type: object}}\nr: 4\nlearning_rate: 1e-5")
    assert read(recipe.dump()) == recipe


def test_files_are_looked_for_beside_the_recipe_first(read, tmp_path):
    for name in ("rows.jsonl", "held.jsonl", "schema.json"):
        (tmp_path / name).write_text(json.dumps({}), encoding="utf-8")
    recipe = read("data: {train: 'rows.jsonl#500', test: held.jsonl}\ntask: {schema: schema.json}")
    assert recipe.data.train == [f"{tmp_path}/rows.jsonl#500"]
    assert recipe.data.test == [f"{tmp_path}/held.jsonl"]
    assert recipe.task.json_schema == f"{tmp_path}/schema.json"


def test_a_file_that_is_not_beside_the_recipe_keeps_its_name(read):
    assert read("data: {train: org/dataset}").data.train == ["org/dataset"]


def test_a_byte_order_mark_does_not_matter(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xef\xbb\xbfdata: {train: rows.jsonl}")
    assert load_recipe(tmp_path / "recipe.yaml").data.train == ["rows.jsonl"]


# Overrides -----------------------------------------------------------------------------------------------------------


def test_an_override_reaches_into_a_section_and_is_read_as_yaml(read):
    recipe = read("data: {train: rows.jsonl}", ["train.learning_rate=1e-4", "freeze.modules=[mlp, lm_head]"])
    assert recipe.train.learning_rate == 1e-4
    assert recipe.freeze.modules == ["mlp", "lm_head"]


def test_the_value_of_an_override_may_hold_an_equals_sign(read):
    assert read("data: {train: rows.jsonl}", ["task.goal=a=b"]).task.goal == "a=b"


def test_the_last_of_two_overrides_holds(read):
    assert read("data: {train: rows.jsonl}", ["train.seed=1", "train.seed=2"]).train.seed == 2


def test_an_override_by_another_name_wins_over_the_recipe(read):
    assert read("data: {train: rows.jsonl}\ntrain: {epochs: 1}", ["num_train_epochs=2"]).train.epochs == 2


def test_an_override_fills_a_section_that_stands_empty(read):
    assert read("train:\ndata: {train: rows.jsonl}", ["train.seed=3"]).train.seed == 3


def test_overrides_leave_the_given_values_alone():
    values = {"data": {"train": "rows.jsonl"}}
    with_overrides(values, {"data.train": "others.jsonl"})
    assert values == {"data": {"train": "rows.jsonl"}}


@pytest.mark.parametrize("override", ["train.seed", "=3", ""])
def test_an_override_without_key_or_value_is_refused(refused, override):
    error = refused("data: {train: rows.jsonl}", [override])
    assert (error.where, error.expected) == ("--set", "a.b=value")


def test_an_override_through_a_value_is_refused(refused):
    assert "'model' holds" in refused("model: here\ndata: {train: rows.jsonl}", ["model.name=x"]).found


def test_an_override_that_is_no_yaml_names_its_key(refused):
    assert refused("data: {train: rows.jsonl}", ["train.seed=[1"]).where.startswith("--set train.seed")


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("modell: x", "model"),
        ("train: {learning_rat: 1}", "learning_rate"),
        ("train: {epoch: 1}", "epochs"),
        ("adapter: {ranks: 4}", "rank"),
        ("guards: {leakage: {actoin: drop}}", "action"),
        ("guard: {}", "guards"),
    ],
)
def test_an_unknown_key_names_the_nearest(refused, text, near):
    error = refused(f"data: {{train: rows.jsonl}}\n{text}")
    assert error.found.startswith("unknown key")
    assert error.hint == f"did you mean `{near}`?"


def test_an_unknown_key_says_where_it_stands(refused):
    error = refused("data: {train: rows.jsonl}\ntrain: {learning_rat: 1}")
    assert "`train.learning_rat`" in error.found
    assert error.where.endswith("recipe.yaml")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("train: {epochs: many}", "train.epochs"),
        ("train: {epochs: 0}", "train.epochs"),
        ("train: {learning_rate: fast}", "train.learning_rate"),
        ("train: {batch_size: 0}", "train.batch_size"),
        ("train: {seed: 1.5}", "train.seed"),
        ("adapter: {method: qlora}", "adapter.method"),
        ("task: {kind: poem}", "task.kind"),
        ("task: {labels: x}", "task.labels"),
        ("log: wandb", "log"),
        ("train: 3", "train"),
        ("train: [1]", "train"),
        ("deploy: {export: [onnx]}", "deploy.export.0"),
        ("guards: {leakage: ignore}", "guards.leakage"),
    ],
)
def test_a_value_of_the_wrong_kind_names_its_key_and_what_was_expected(refused, text, key):
    error = refused(f"data: {{train: rows.jsonl}}\n{text}")
    assert f"`{key}`" in error.found
    assert error.expected


@pytest.mark.parametrize("value", [".nan", ".inf"])
def test_a_rate_that_is_no_finite_number_is_refused(refused, value):
    assert "train.learning_rate" in refused(f"data: {{train: rows.jsonl}}\ntrain: {{learning_rate: {value}}}").found


@pytest.mark.parametrize("data", ["null", "{}", "", "{train: null}", "{train: []}", "{train: ''}", "rows.jsonl", "3"])
def test_a_recipe_without_training_rows_says_what_to_type(refused, data):
    error = refused(f"data: {data}")
    assert "data" in error.found
    assert "data: {train: examples.jsonl}" in error.hint


@pytest.mark.parametrize("text", ["", "# only a remark", "{}"])
def test_an_empty_recipe_misses_its_data(refused, text):
    assert refused(text).found == "the key `data` is missing"


def test_a_key_that_stands_twice_names_its_line(refused):
    error = refused("model: a\ndata: {train: rows.jsonl}\nmodel: b\n")
    assert "`model`" in error.found or "'model'" in error.found
    assert "twice" in error.found


@pytest.mark.parametrize("text", ["- a\n- b", "just a text", "3"])
def test_a_recipe_that_is_no_mapping_is_refused(refused, text):
    assert "keys and values" in refused(text).expected


@pytest.mark.parametrize(
    "text",
    ["data: {train: [rows.jsonl}", "a: b: c", "\tmodel: x", "!!python/object:os.system x: 1", "[1]: 2", "&a [*a]: 1"],
)
def test_what_is_no_yaml_of_ours_is_refused(refused, text):
    assert "recipe.yaml" in refused(text).where


def test_yaml_that_names_itself_is_refused(refused):
    refused("data: &a {train: *a}")


def test_yaml_nested_without_end_is_refused(refused):
    refused("data: " + "[" * 5000)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00m", b"model: \xe4\xf6"])
def test_a_recipe_in_another_encoding_is_refused(tmp_path, content):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(RecipeError, match="UTF-8"):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_missing_recipe_says_how_to_make_one(tmp_path):
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "none.yaml")
    assert "burnish init" in caught.value.hint


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)


TASKS = {
    "one": {"data": {"train": "a.jsonl"}, "task": {"kind": "extract", "schema": "s.json"}},
    "other": {"data": {"train": "b.csv"}, "task": {"kind": "classify"}, "objective": "classify", "weight": 2},
}


def test_each_of_several_tasks_is_a_recipe_of_its_own():
    recipe = make_recipe({"tasks": TASKS, "train": {"epochs": 2}})
    each = recipe.each
    assert {name: (one.task.kind, one.objective, one.data.train) for name, one in each.items()} == {
        "one": ("extract", "sft", ["a.jsonl"]),
        "other": ("classify", "classify", ["b.csv"]),
    }
    assert all(one.train.epochs == 2 and not one.tasks for one in each.values())


def test_a_recipe_without_tasks_is_that_of_its_one_task():
    recipe = make_recipe({"data": {"train": "a.jsonl"}})
    assert recipe.each == {"main": recipe}
    assert "tasks" not in recipe.dump()


def test_several_tasks_survive_being_written_out():
    recipe = make_recipe({"tasks": TASKS, "mixing": {"by": "size", "cap": 100}})
    assert make_recipe(yaml.safe_load(recipe.dump())) == recipe


@pytest.mark.parametrize(
    ("changes", "found", "hint"),
    [
        ({"tasks": {}}, "`tasks` is {}", "for one task"),
        ({"tasks": {"one": TASKS["one"]}}, "`tasks` is {'one'", "for one task"),
        ({"tasks": ["one"]}, "`tasks` is ['one']", "for one task"),
        ({"data": {"train": "x.jsonl"}}, "the key `data` stands beside `tasks`", "tasks: {one: {data"),
        ({"task": {"kind": "chat"}}, "the key `task` stands beside `tasks`", "tasks: {one: {task"),
        ({"objective": "sft"}, "the key `objective` stands beside `tasks`", "tasks: {one: {objective"),
        ({"tasks": TASKS | {"x": TASKS["one"] | {"weight": 0}}}, "`tasks.x.weight` is 0", ""),
        ({"tasks": TASKS | {"x": TASKS["one"] | {"wieght": 1}}}, "unknown key `tasks.x.wieght`", "`weight`"),
        ({"tasks": TASKS | {"x": {"data": {"train": "x", "tset": 1}}}}, "unknown key `tasks.x.data.tset`", "`test`"),
        ({"tasks": TASKS | {"x": {"task": {}}}}, "the key `tasks.x.data` is missing", ""),
        ({"tasks": TASKS | {"a b": TASKS["one"]}}, "`tasks.a b` is 'a b'", ""),
        ({"tasks": TASKS | {"x": None}}, "`tasks.x` is None", ""),
        ({"mixing": {"by": "luck"}}, "`mixing.by` is 'luck'", ""),
        ({"mixing": {"temprature": 2}}, "unknown key `mixing.temprature`", "`temperature`"),
        ({"mixing": {"temperature": 0.5}}, "`mixing.temperature` is 0.5", ""),
    ],
)
def test_what_several_tasks_cannot_be_is_told(changes, found, hint):
    with pytest.raises(RecipeError) as caught:
        make_recipe({"tasks": TASKS} | changes)
    assert caught.value.found.startswith(found)
    assert hint in caught.value.hint


def test_a_task_that_stands_twice_names_its_line(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text("tasks:\n  one: {data: {train: a}}\n  one: {data: {train: b}}\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="'one' stands twice"):
        load_recipe(file)


def test_files_of_each_task_are_looked_for_beside_the_recipe(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "s.json").write_text("{}")
    recipe = make_recipe({"tasks": TASKS}, folder=tmp_path)
    assert recipe.tasks["one"].data.train == [str(tmp_path / "a.jsonl")]
    assert recipe.tasks["one"].task.json_schema == str(tmp_path / "s.json")


def test_a_sample_is_said_once_for_all_tasks():
    recipe = make_recipe(with_overrides({"tasks": TASKS}, ["data.sample=20"]))
    assert [one.data.sample for one in recipe.each.values()] == [20, 20]
    assert recipe.data.sample == 20


def test_an_override_of_nothing_is_the_empty_text():
    values = with_overrides({"data": {"train": "a.jsonl"}, "freeze": {"layers": "0-3"}}, ["freeze.layers="])
    assert make_recipe(values).freeze.layers == ""


def test_a_start_is_looked_for_beside_the_recipe_first(tmp_path):
    (tmp_path / "first").mkdir()
    (tmp_path / "recipe.yaml").write_text("data: {train: a.jsonl}\nadapter: {start: first}\n")
    assert load_recipe(tmp_path / "recipe.yaml").adapter.start == str(tmp_path / "first")
    assert load_recipe(tmp_path / "recipe.yaml", ["adapter.start=runs/second"]).adapter.start == "runs/second"
