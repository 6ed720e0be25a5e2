"""Whole runs with generated rows and noise: what they report, never test on, and do again alike."""

from __future__ import annotations

import json
import os
import signal

import pytest

import burnish
from burnish.errors import EndpointError, Interrupted, RecipeError, RowError
from burnish.folder import Run
from burnish.guards import Evidence
from burnish.progress import Progress
from burnish.recipe import load_recipe, make_recipe
from burnish.train.checkpoint import FILES
from tiny_runs import asked_and_answered, questions, recipe_of, write_rows

NOISE = {"noise": {"share": 0.5, "rate": 0.3}}


def rows_of(folder, split):
    return [json.loads(line)["row"] for line in (folder / "data" / f"{split}.jsonl").read_text().splitlines()]


def newest_weights(folder):
    newest = max((folder / "checkpoints").glob("step-*"))
    return (newest / FILES[0]).read_bytes()


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    data = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = asked_and_answered(60)
    return recipe_of(
        model_folder(),
        write_rows(data, rows),
        data={"augment": NOISE},
        train={"epochs": 2, "neftune": 5, "dropout": 0.1},
        deploy={"export": ["adapter", "merged"]},
    )


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "finished"
    return folder, burnish.run(recipe, out=folder, quiet=True)


def test_the_share_of_generated_rows_is_told_everywhere(finished):
    folder, report = finished
    assert report["data"]["generated"] == {"rows": 21, "share": round(21 / 63, 4), "by": {"noise": 21}}
    assert (report["data"]["read"], report["data"]["train"], report["data"]["test"]) == (60, 63, 12)
    summary = report["steps"][1]["summary"]
    assert "21 of those to train (33%) are generated: 21 by noise" in summary
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "21 of the training rows (33%) are generated" in page
    assert "Training rows that were generated" in page


def test_no_row_of_validation_or_test_is_generated(finished):
    folder, _ = finished
    assert sum("augmented" in row for row in rows_of(folder, "train")) == 21
    assert not any("augmented" in row for split in ("validation", "test") for row in rows_of(folder, split))


def test_what_is_generated_makes_small_data_no_larger(finished):
    guards = {guard["n"]: guard for guard in finished[1]["guards"]}
    assert guards[1]["evidence"]["training_rows"] == 42
    assert "42 training rows are few" in guards[1]["found"]


def test_a_run_with_noise_ends_whole_and_its_export_says_the_same(finished):
    _, report = finished
    assert [step["status"] for step in report["steps"]] == ["done"] * 9
    assert report["deploy"]["parity"]["status"] == "pass"


def test_the_same_recipe_gives_the_same_rows_and_weights(recipe, finished, tmp_path):
    folder, _ = finished
    burnish.run(recipe, out=tmp_path, quiet=True)
    assert rows_of(tmp_path, "train") == rows_of(folder, "train")
    assert newest_weights(tmp_path) == newest_weights(folder)


class Terminator:
    """A tracker that tells the process to end at one step."""

    def log(self, values, step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


def test_noise_is_the_same_in_a_run_that_was_stopped_and_went_on(recipe, finished, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator()])
        with pytest.raises(Interrupted):
            burnish.run(recipe, out=tmp_path, quiet=True)
    report = burnish.run(recipe, out=tmp_path, quiet=True)
    assert "went on from step 9" in report["training"]["notes"]
    assert newest_weights(tmp_path) == newest_weights(finished[0])


def test_a_run_that_goes_on_knows_its_generated_rows(recipe, finished):
    folder, first = finished
    again = burnish.run(recipe, out=folder, quiet=True)
    assert again["steps"][1]["status"] == "reused"
    assert again["data"]["generated"] == first["data"]["generated"]
    assert "are generated" in again["steps"][1]["summary"]


def test_labels_are_balanced_in_training_alone(model_folder, tmp_path):
    texts = questions(60)
    rows = [{"text": text, "label": "green" if n < 45 else "red"} for n, text in enumerate(texts)]
    values = recipe_of(
        model_folder(),
        write_rows(tmp_path / "rows.jsonl", rows),
        task={"kind": "classify", "goal": "Say the colour."},
        objective="classify",
        data={"augment": {"oversample": 1}},
        train={"epochs": 1},
    )
    report = burnish.run(values, out=tmp_path / "run", quiet=True)
    labels = report["data"]["labels"]
    assert labels["green"] == labels["red"]
    assert report["data"]["generated"]["by"] == {"repeated": report["data"]["generated"]["rows"]}
    tested = [row["label"] for row in rows_of(tmp_path / "run", "test")]
    assert tested.count("green") > tested.count("red")


def test_balancing_free_answers_is_refused(model_folder, tmp_path):
    rows = [row | {"completion": f"it is {n}"} for n, row in enumerate(asked_and_answered(40))]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    values = recipe_of(model_folder(), file, data={"augment": {"oversample": 1}})
    with pytest.raises(RecipeError, match="no labels to balance"):
        burnish.run(values, out=tmp_path / "run", quiet=True)
    assert "no labels" in json.loads((tmp_path / "run" / "report.json").read_text())["steps"][1]["summary"]


# Rewriting ------------------------------------------------------------------------------------------------------------


def rewriting(recipe, **values):
    return recipe | {"data": {**recipe["data"], "augment": {"rewrite": {"share": 0.5, **values}}}}


def test_an_endpoint_that_is_not_there_ends_the_run_with_its_address(recipe, tmp_path):
    values = rewriting(recipe, endpoint={"url": "http://127.0.0.1:1/v1", "model": "small"})
    with pytest.raises(EndpointError, match=r"http://127\.0\.0\.1:1/v1: it cannot be reached"):
        burnish.run(values, out=tmp_path, quiet=True)
    assert json.loads((tmp_path / "report.json").read_text())["verdict"] == "stop"


def test_a_plan_asks_nobody_and_counts_the_rows(recipe):
    plain = burnish.plan(recipe | {"data": {**recipe["data"], "augment": {}}})
    found = burnish.plan(rewriting(recipe, endpoint={"url": "http://127.0.0.1:1/v1", "model": "small"}))
    assert found.steps > plain.steps


def test_a_model_that_writes_nonsense_is_told_and_its_answers_are_kept(recipe, tmp_path, monkeypatch):
    values = rewriting(recipe)  # the tiny random model
    with pytest.raises(EndpointError, match=r"\d+ of \d+ prompts could not be rewritten") as first:
        burnish.run(values, out=tmp_path, quiet=True)
    monkeypatch.setattr("burnish.rewriter._load", lambda *_: pytest.fail("it was asked again"))
    with pytest.raises(EndpointError) as again:
        burnish.run(values, out=tmp_path, quiet=True)
    assert str(again.value) == str(first.value)


def test_the_recipes_own_model_rewrites(recipe, tmp_path, monkeypatch):
    asked = []

    def generate(loaded, conversations, settings, seed):
        asked.append(seed)
        return [
            f"{said[-1]['content']} {'yonder' if 'French' in said[0]['content'] else 'anew'}" for said in conversations
        ]

    monkeypatch.setenv("BURNISH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("burnish.rewriter._generate", generate)
    checked = make_recipe(rewriting(recipe))
    from burnish.pipeline import choose, clean

    folders = []
    for name in ("first", "again"):
        run = Run(tmp_path / name, Progress(quiet=True), Evidence(checked), name)
        clean(run, checked, choose(run, checked))
        assert run.parts["data"]["generated"]["by"] == {"rewriting": 21}
        folders.append(run.folder)
    assert rows_of(folders[0], "train") == rows_of(folders[1], "train")
    made = [row for row in rows_of(folders[0], "train") if "augmented" in row]
    assert all(row["messages"][0]["content"].endswith("yonder anew") for row in made)
    assert len(asked) == 4  # two parts of the rows, there and back; the second run asks nothing


# Words of a recipe and of the command line ----------------------------------------------------------------------------


def test_dropout_alone_is_still_the_adapters(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("data: {train: a.jsonl}\ndropout: 0.2\nneftune_noise_alpha: 5\n")
    recipe = load_recipe(path)
    assert (recipe.adapter.dropout, recipe.train.dropout, recipe.train.neftune) == (0.2, None, 5.0)


@pytest.mark.parametrize("section", [{"neftune": -1}, {"dropout": 1.0}, {"dropout": -0.1}, {"weight_decay": -1}])
def test_noise_that_cannot_be_is_refused(section):
    with pytest.raises(RecipeError, match=f"train.{next(iter(section))}"):
        make_recipe({"data": {"train": ["a.jsonl"]}, "train": section})


def test_an_augmented_copy_by_python(tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", asked_and_answered(20))
    told = burnish.augment(file, tmp_path / "out.jsonl", NOISE)
    assert told["generated"]["by"] == {"noise": 10}
    with pytest.raises(RowError):
        burnish.augment(file, file, NOISE, overwrite=True)
    with pytest.raises(RecipeError, match="nothing is to be generated"):
        burnish.augment(file, tmp_path / "other.jsonl", {})
    with pytest.raises(RecipeError, match="it is not said who rewrites"):
        burnish.augment(file, tmp_path / "other.jsonl", {"rewrite": {"share": 1}})
