"""`burnish init`: the recipe that it writes loads, and says what kind of task the file holds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.errors import RecipeError
from burnish.recipe import Recipe, load_recipe
from burnish.starter import recipe_for, write_recipe

EXAMPLES = Path(__file__).parents[1] / "examples"


def started(data: Path, out: Path, **options: str) -> Recipe:
    write_recipe(str(data), out, **options)
    return load_recipe(out)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(prompt: str, completion: str, count: int = 30, **extra: str) -> list[dict]:
    """Rows of which no two are alike: {n} is a word of their own, {m} one of three."""
    words = [
        {"n": f"{n * 7919:x}".translate(str.maketrans("0123456789", "ghijklmnop")) * 3, "m": "abc"[n % 3]}
        for n in range(count)
    ]
    whole = {"prompt": prompt, "completion": completion, **extra}
    return [{name: text.replace("{n}", w["n"]).replace("{m}", w["m"]) for name, text in whole.items()} for w in words]


@pytest.mark.parametrize(
    ("file", "kind"),
    [("support/tickets.jsonl", "extract"), ("intents/messages.csv", "classify"), ("chat/dialogues.jsonl", "chat")],
)
def test_each_example_gets_a_recipe_of_its_kind_that_loads(tmp_path: Path, file: str, kind: str):
    recipe = started(EXAMPLES / file, tmp_path / "recipe.yaml", goal="Answer: what else?")
    assert recipe.task.kind == kind
    assert recipe.task.goal == "Answer: what else?"
    assert Path(recipe.data.train[0]).samefile(EXAMPLES / file)


@pytest.mark.parametrize(
    ("completion", "kind"),
    [
        ("{m}", "classify"),
        ("The {n}.", "generate"),
        ("It is {n}, and that is why we would rather not say anything more about it now.", "chat"),
        ('{"word": "{n}"}', "extract"),
    ],
)
def test_the_answers_tell_the_kind_of_task(tmp_path: Path, completion: str, kind: str):
    file = write(tmp_path / "rows.jsonl", rows("What is {n}?", completion))
    assert started(file, tmp_path / "recipe.yaml").task.kind == kind


def test_a_column_that_names_a_customer_keeps_rows_together(tmp_path: Path):
    file = write(
        tmp_path / "rows.jsonl", [{**row, "customer_id": n // 3} for n, row in enumerate(rows("{n}?", "{n}."))]
    )
    assert started(file, tmp_path / "recipe.yaml").data.group_by == "customer_id"


def test_a_column_that_is_different_in_each_row_groups_nothing(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", [{**row, "user": n} for n, row in enumerate(rows("{n}?", "{n}."))])
    assert started(file, tmp_path / "recipe.yaml").data.group_by is None


@pytest.mark.parametrize(("completion", "redact"), [("It is {n}.", True), ('{"who": "{n}"}', False)])
def test_personal_data_are_redacted_unless_they_may_be_what_is_extracted(tmp_path: Path, completion: str, redact: bool):
    file = write(tmp_path / "rows.jsonl", rows("Write to {n}@example.com", completion))
    write_recipe(str(file), tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml").data.redact is redact
    assert "30 findings of personal data" in (tmp_path / "recipe.yaml").read_text()


def test_the_data_are_found_from_where_the_recipe_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = write(tmp_path / "rows.jsonl", rows("{n}?", "{n}."))
    monkeypatch.chdir(tmp_path)
    recipe = started(Path("rows.jsonl"), Path("recipes/deep.yaml"))
    assert Path(recipe.data.train[0]).samefile(file)


def test_a_sample_of_a_file_stays_one(tmp_path: Path):
    write(tmp_path / "rows.jsonl", rows("{n}?", "{n}."))
    assert "train: rows.jsonl#20" in recipe_for(str(tmp_path / "rows.jsonl#20"), beside=tmp_path)


@pytest.mark.parametrize("goal", ["", "Sort: mail #1", 'it\'s "quoted"\nand goes on', "yes", "- {a: b}"])
def test_any_goal_is_written_as_it_was_said(tmp_path: Path, goal: str):
    file = write(tmp_path / "rows.jsonl", rows("{n}?", "{n}."))
    assert started(file, tmp_path / "recipe.yaml", goal=goal).task.goal == goal


def test_a_recipe_that_is_there_is_not_written_over_unless_forced(tmp_path: Path):
    file = write(tmp_path / "rows.jsonl", rows("{n}?", "{n}."))
    out = tmp_path / "recipe.yaml"
    out.write_text("precious")
    with pytest.raises(RecipeError, match="already") as caught:
        write_recipe(str(file), out)
    assert "--force" in caught.value.hint
    assert out.read_text() == "precious"
    write_recipe(str(file), out, force=True)
    assert load_recipe(out)


def test_rows_that_nothing_learns_from_yet_are_refused(tmp_path: Path):
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    with pytest.raises(RecipeError, match="these are pair rows"):
        recipe_for(str(write(tmp_path / "rows.jsonl", pairs)))
