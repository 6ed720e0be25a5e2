"""Whole studies on a tiny random model: the same rows for all, nothing twice, and what is refused."""

from __future__ import annotations

import json
import os
import signal

import pytest

import burnish
from burnish.errors import Interrupted, RecipeError
from burnish.few_shot import prepare, study
from tiny_runs import questions, recipe_of, write_rows

COLOURS = ("green", "red", "yellow")


def coloured(count=90, labels=COLOURS):
    return [
        {"text": f"{label} {q} {label}", "label": label}
        for n, q in enumerate(questions(count))
        for label in [labels[n % len(labels)]]
    ]


@pytest.fixture(autouse=True, scope="module")
def _few_steps():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "TUNED", prepare.Schedule(8, 1, 4, 0.01))
        patch.setattr(prepare, "SCHEDULES", {"head": prepare.Schedule(30, 1, 10, 0.05)})
        yield


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    file = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", coloured())

    def make(file=file, **changes):
        values = recipe_of(model_folder(), file, task={"kind": "classify", "goal": "Say the colour."}, **changes)
        return {"objective": "classify", **values}

    return make


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    methods = ("in_context", "lora", "head")
    return folder, burnish.fewshot(recipe(), k=(4, 2), seeds=2, methods=methods, out=folder, quiet=True)


def test_every_method_has_a_point_at_every_k(finished):
    _, summary = finished
    points = [(point["k"], point["method"], point["seeds"]) for point in summary["curve"]]
    assert points == [(k, method, 2) for k in (2, 4) for method in ("in_context", "lora", "head")]
    assert summary["items"] == {"validation": 6, "test": 12}


def test_a_head_beside_a_recipe_whose_layers_have_rates_takes_none_of_them(recipe, tmp_path):
    paced = recipe(train={"layer_decay": 0.5, "gradual_unfreezing": 0.5})
    summary = burnish.fewshot(paced, k=(2,), seeds=1, methods=("head",), out=tmp_path, quiet=True)
    assert [point["method"] for point in summary["curve"]] == ["head"]


def test_a_head_that_learnt_a_few_rows_beats_the_prompt(finished):
    _, summary = finished
    by_method = {point["method"]: point for point in summary["curve"] if point["k"] == 4}
    assert by_method["head"]["test"] > by_method["in_context"]["test"]
    assert by_method["head"]["trained_parameters"] == 96
    assert by_method["in_context"]["train_seconds"] == 0


def test_all_methods_learn_the_same_rows_and_a_small_draw_is_part_of_a_large_one(finished):
    folder, summary = finished
    few, many = ((folder / "data" / f"k{k}-s0.jsonl").read_text(encoding="utf-8").splitlines() for k in (2, 4))
    assert len(few) == 6
    assert set(few) < set(many)
    for method in ("lora", "head"):
        learnt = (folder / "runs" / f"{method}-k2-s0" / "data" / "train.jsonl").read_text(encoding="utf-8")
        assert [json.loads(line)["row"] for line in learnt.splitlines()] == [json.loads(line) for line in few]
    assert {run["rows"] for run in summary["runs"] if run["k"] == 2} == {6}


def test_validation_and_test_rows_are_never_drawn(finished):
    folder, _ = finished
    rows = {path.stem: path.read_text(encoding="utf-8").splitlines() for path in (folder / "data").glob("*.jsonl")}
    held_out = {*rows.pop("validation"), *rows.pop("test")}
    assert len(rows) == 4
    assert all(held_out.isdisjoint(drawn) for drawn in rows.values())


def test_the_study_is_written_as_json_and_as_a_page(finished):
    folder, summary = finished
    assert json.loads((folder / "fewshot.json").read_text(encoding="utf-8")) == summary
    page = (folder / "fewshot.html").read_text(encoding="utf-8")
    assert "Which to use" in page
    assert "<svg" in page


def test_the_same_study_again_does_nothing_and_more_methods_do_only_those(recipe, finished, monkeypatch):
    folder, summary = finished
    monkeypatch.setattr(study.pipeline, "train", lambda *given: pytest.fail("trained again"))
    monkeypatch.setattr(study, "answers", lambda *given: pytest.fail("asked again"))
    again = burnish.fewshot(recipe(), k=(2, 4), seeds=2, methods=("in_context", "lora", "head"), out=folder, quiet=True)
    assert again == summary
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        burnish.fewshot(recipe(), k=(2,), seeds=1, methods=("lora", "full"), out=folder, quiet=True)


def test_a_prompt_that_holds_no_more_is_not_asked_twice(recipe, tmp_path, monkeypatch):
    asked, answers = [], study.answers
    monkeypatch.setattr(study, "answers", lambda *given: asked.append(given) or answers(*given))
    values = recipe(train={"max_length": 200})
    summary = burnish.fewshot(values, k=(8, 16), seeds=1, methods=("in_context",), out=tmp_path, quiet=True)
    assert len(asked) == 1
    assert [point["rows"] for point in summary["curve"]] == [24, 48]
    assert "of 48 examples fit" in summary["curve"][1]["note"]


def test_a_task_without_classes_learns_from_k_rows_in_all(model_folder, tmp_path):
    rows = [{"prompt": question, "completion": "ok"} for question in questions(60)]
    values = recipe_of(model_folder(), write_rows(tmp_path / "rows.jsonl", rows))
    summary = burnish.fewshot(values, k=(5,), seeds=1, methods=("in_context", "lora"), out=tmp_path / "s", quiet=True)
    assert {run["rows"] for run in summary["runs"]} == {5}
    with pytest.raises(RecipeError, match="writes text"):
        burnish.fewshot(values, k=(5,), seeds=1, methods=("head",), out=tmp_path / "s", quiet=True)
    with pytest.raises(RecipeError, match="99 rows are wanted, and there are 42"):
        burnish.fewshot(values, k=(99,), seeds=1, methods=("lora",), out=tmp_path / "s", quiet=True)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"k": (0, 4)}, "0 examples"),
        ({"k": ()}, "no number of examples"),
        ({"k": (2, 40)}, r"40 rows of each class are wanted, and '\w+' has 2\d to train on"),
        ({"seeds": 0}, "no seed"),
        ({"methods": ("lora", "magic")}, "no method 'magic'"),
        ({"methods": ()}, "no method is named"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_trained(recipe, tmp_path, monkeypatch, asked, said):
    monkeypatch.setattr(study, "tune", lambda *given: pytest.fail("trained"))
    with pytest.raises(RecipeError, match=said):
        burnish.fewshot(
            recipe(), **{"k": (2,), "seeds": 1, "methods": ("lora",), "out": tmp_path, "quiet": True} | asked
        )


def test_an_unknown_method_is_answered_with_those_that_there_are(recipe, tmp_path):
    with pytest.raises(RecipeError) as caught:
        burnish.fewshot(recipe(), k=(2,), seeds=1, methods=("magic",), out=tmp_path, quiet=True)
    assert "in_context" in caught.value.expected
    assert "'lora'" in caught.value.expected


def test_one_class_alone_is_refused(recipe, tmp_path):
    file = write_rows(tmp_path / "rows.jsonl", coloured(40, labels=("red",)))
    with pytest.raises(RecipeError, match="have the label 'red'"):
        burnish.fewshot(recipe(file), k=(2,), seeds=1, methods=("lora",), out=tmp_path / "s", quiet=True)


def test_plain_text_has_nothing_to_answer(model_folder, tmp_path):
    rows = [{"text": " ".join(questions(30)[n : n + 3])} for n in range(0, 30, 3)]
    values = recipe_of(model_folder(), write_rows(tmp_path / "rows.jsonl", rows), data={"validation": 2, "test": 2})
    with pytest.raises(RecipeError, match="plain text"):
        burnish.fewshot(values, k=(2,), seeds=1, methods=("lora",), out=tmp_path / "s", quiet=True)


def test_without_validation_rows_there_is_nothing_to_choose_by(recipe, tmp_path):
    with pytest.raises(RecipeError, match="no validation rows"):
        burnish.fewshot(recipe(data={"validation": 0}), k=(2,), seeds=1, methods=("lora",), out=tmp_path, quiet=True)


def test_a_schedule_bounds_how_often_a_row_is_seen():
    schedule = prepare.Schedule(120, 6, 20)
    assert [schedule.epochs(rows, batch=8) for rows in (24, 96, 770)] == [20, 10, 6]


class Terminator:
    """A tracker that tells the process to end at one step."""

    def log(self, values, step):
        if step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


def test_a_study_that_was_told_to_stop_goes_on_in_the_middle_of_a_run(recipe, tmp_path, monkeypatch):
    def go():
        return burnish.fewshot(recipe(), k=(4,), seeds=1, methods=("in_context", "lora"), out=tmp_path, quiet=True)

    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator()])
        with pytest.raises(Interrupted, match="SIGTERM after step 5"):
            go()
    asked, answers = [], study.answers
    monkeypatch.setattr(study, "answers", lambda *given: asked.append(given) or answers(*given))
    summary = go()
    assert len(asked) == 1  # the prompt's answers were there
    assert [run["method"] for run in summary["runs"]] == ["in_context", "lora"]
    steps = [json.loads(line)["step"] for line in (tmp_path / "runs/lora-k4-s0/metrics.jsonl").read_text().splitlines()]
    assert sorted(set(steps)) == list(range(summary["runs"][1]["steps"] + 1))
