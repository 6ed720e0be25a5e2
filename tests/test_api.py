"""The Python interface: that it is all there, and does what the command line does."""

from __future__ import annotations

import inspect
import pkgutil

import pytest
import yaml

import burnish
from burnish import api
from burnish.errors import CheckpointError, RecipeError
from tiny_runs import asked_and_answered, recipe_of, write_rows


@pytest.fixture(scope="module")
def project(model_folder, tmp_path_factory):
    """A folder with rows.jsonl, recipe.yaml and the run of it."""
    folder = tmp_path_factory.mktemp("project")
    rows = write_rows(folder / "rows.jsonl", asked_and_answered(40))
    recipe = recipe_of(model_folder(), rows, train={"epochs": 1})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    burnish.run(folder / "recipe.yaml", out=folder / "runs" / "one", quiet=True)
    return folder


def test_no_module_takes_the_name_of_a_function():
    modules = {module.name for module in pkgutil.iter_modules(burnish.__path__)}
    assert modules.isdisjoint(burnish.__all__)


def test_every_function_is_public_and_says_what_it_does():
    functions = {
        name
        for name, value in vars(api).items()
        if inspect.isfunction(value) and value.__module__ == api.__name__ and not name.startswith("_")
    }
    assert functions == set(burnish.__all__)
    assert all(getattr(burnish, name).__doc__ for name in functions)


def test_a_recipe_may_be_a_file_or_plain_values(project):
    values = yaml.safe_load((project / "recipe.yaml").read_text(encoding="utf-8"))
    assert burnish.plan(values).as_json()["steps"] == burnish.plan(project / "recipe.yaml").as_json()["steps"]


def test_overrides_may_be_texts_or_a_mapping(project):
    by_text = burnish.plan(project / "recipe.yaml", overrides=["train.max_steps=3"])
    by_mapping = burnish.plan(project / "recipe.yaml", overrides={"train.max_steps": 3})
    assert by_text.steps == by_mapping.steps == 3


def test_plain_values_are_left_as_they_were(project):
    values = yaml.safe_load((project / "recipe.yaml").read_text(encoding="utf-8"))
    before = yaml.safe_dump(values)
    burnish.plan(values, overrides={"train.max_steps": 3})
    assert yaml.safe_dump(values) == before


@pytest.mark.parametrize(
    ("place", "name", "expected"),
    [("recipe.yaml", "", "project"), ("tickets.yaml", "", "tickets"), ("recipe.yaml", "mine", "mine")],
)
def test_a_run_is_named_by_the_recipe_its_file_or_its_folder(tmp_path, place, name, expected):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / place).write_text(yaml.safe_dump({"name": name, "data": {"train": "rows.jsonl"}}), encoding="utf-8")
    assert api._load(folder / place, ())[1] == expected


def test_a_check_tells_what_the_rows_are(project):
    assert burnish.check(project / "rows.jsonl").rows == 40


def test_a_recipe_made_from_rows_can_be_planned(project, model_folder, monkeypatch):
    monkeypatch.chdir(project)
    made = yaml.safe_load(burnish.init("rows.jsonl", goal="Say ok.", model=model_folder()))
    assert made["task"]["goal"] == "Say ok."
    assert burnish.plan(made).steps > 0


def test_runs_are_the_reports_of_a_folder(project):
    assert [report["folder"] for report in burnish.runs(project / "runs")] == [str(project / "runs" / "one")]


def test_a_loaded_model_remembers_what_was_said(project):
    model = burnish.load(project / "runs" / "one", force=True)
    first = model.say("bako", max_new_tokens=4)
    model.say("ritu", max_new_tokens=4)
    assert [turn.content for turn in model.turns][:3] == ["bako", first, "ritu"]


def test_a_bad_recipe_raises_what_can_be_caught_as_a_value_error():
    with pytest.raises(RecipeError) as caught:
        burnish.run({"data": None})
    assert isinstance(caught.value, ValueError)


def test_what_is_no_run_cannot_be_loaded(tmp_path):
    with pytest.raises(CheckpointError, match="no run"):
        burnish.load(tmp_path)
