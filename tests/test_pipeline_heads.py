"""Whole runs with the heads of other tasks on a tiny random model: several labels, numbers, tags; and what is refused."""

from __future__ import annotations

import json
import random

import pytest
import torch

import burnish
from burnish.errors import BurnishError, RecipeError
from tiny_runs import questions, recipe_of, write_rows

COLOURS = ("green", "red", "yellow")


def several(count=90):
    """Texts of the words of their labels."""
    draw, rows = random.Random(0), []
    for question in questions(count):
        labels = [colour for colour in COLOURS if draw.random() < 0.5] or ["red"]
        rows.append({"text": f"{question} {' '.join(labels)}", "label": labels})
    return rows


def graded(count=90):
    """Texts that begin and end with a sign of their number."""
    return [
        {"text": f"{colour} {question} {colour}", "label": 10.0 + 5 * (n % 3)}
        for n, question in enumerate(questions(count))
        for colour in [COLOURS[n % 3]]
    ]


def tagged(count=90):
    """Words of which one is a colour, which is a span of the kind COL."""
    rows = []
    for n, question in enumerate(questions(count)):
        words = [*question.split(), COLOURS[n % 3], "so"]
        rows.append({"tokens": words, "tags": ["O", "O", "B-COL", "O"]})
    return rows


RATES = {"multilabel": 0.01, "regress": 0.01, "tag": 0.01, "classify": 0.01}
ROWS = {"multilabel": several, "regress": graded, "tag": tagged}


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    """A function from a kind of task to the plain values of a recipe."""

    def make(kind, rows=None, **changes):
        file = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", rows or ROWS[kind]())
        return recipe_of(
            model_folder(),
            file,
            task={"kind": kind, "goal": "Say what it is."},
            **{
                "objective": kind,
                "train": {"epochs": 8 if kind == "regress" else 6, "learning_rate": RATES[kind]},
                **changes,
            },
        )

    return make


@pytest.fixture(scope="module", params=ROWS)
def finished(request, recipe, tmp_path_factory):
    """(kind, folder) of a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    burnish.run(recipe(request.param), out=folder, quiet=True)
    return request.param, folder


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_head_of_each_kind_learns_its_task(finished):
    kind, folder = finished
    report = report_of(folder)
    assert [step["status"] for step in report["steps"]] == ["done"] * 9
    evaluation = report["evaluation"]
    assert evaluation["metric"] == {"multilabel": "micro_f1", "regress": "closeness", "tag": "span_f1"}[kind]
    assert evaluation["tuned"] > evaluation["base"]
    assert evaluation["tuned"] > 0.6


def test_the_report_tells_each_class_or_the_error(finished):
    kind, folder = finished
    evaluation = report_of(folder)["evaluation"]
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Class by class" in page
    if kind == "regress":
        assert evaluation["errors"]["mae"] < evaluation["errors"]["mae_of_mean"]
    else:
        labels = [row["label"] for row in evaluation["classes"]["table"]]
        assert labels == (["B-COL", "O"] if kind == "tag" else list(COLOURS))
    if kind == "multilabel":
        assert evaluation["calibration"]["thresholds"].keys() == set(COLOURS)


def test_plain_transformers_answers_the_same_from_merged(finished):
    from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification, AutoTokenizer

    kind, folder = finished
    loader = AutoModelForTokenClassification if kind == "tag" else AutoModelForSequenceClassification
    model = loader.from_pretrained(folder / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    said = burnish.load(folder)
    for text in [example["prompt"] for example in report_of(folder)["evaluation"]["examples"]][:4]:
        with torch.no_grad():
            logits = model(**tokenizer(text, return_tensors="pt")).logits[0]
        if kind == "regress":
            told = model.config.burnish
            assert said.value(text) == pytest.approx(told["mean"] + told["spread"] * float(logits[0]), abs=1e-2)
        elif kind == "multilabel":
            found = (logits / model.config.burnish["temperature"]).sigmoid().tolist()
            assert dict(said.classify(text)) == pytest.approx(dict(zip(said.chat.labels, found, strict=True)), abs=1e-3)
        else:
            tags = {model.config.id2label[number] for number in logits.argmax(-1).tolist()}
            assert {tag for _, tag in said.tags(text)} <= tags


def test_the_run_can_be_asked(finished):
    kind, folder = finished
    [answer] = burnish.load(folder).answers(iter(["bako ritu green so"]))
    if kind == "tag":
        assert [word.split("/")[0] for word in answer.split()] == ["bako", "ritu", "green", "so"]
    elif kind == "regress":
        assert float(answer) == pytest.approx(17, abs=20)
    else:
        assert answer


def test_the_same_recipe_again_repeats_nothing(finished, recipe):
    _, folder = finished
    values = report_of(folder)["recipe"]
    burnish.run(burnish_recipe(values), out=folder, quiet=True)
    reused = {step["name"] for step in report_of(folder)["steps"] if step["status"] == "reused"}
    assert reused == {"clean", "smoke", "train", "evaluate", "deploy"}


def burnish_recipe(text):
    import yaml

    return yaml.safe_load(text)


# What is refused -----------------------------------------------------------------------------------------------------


def refused(values, tmp_path):
    with pytest.raises(BurnishError) as caught:
        burnish.run(values, out=tmp_path / "run", quiet=True)
    return caught.value


def test_an_objective_for_another_task_is_refused(recipe, tmp_path):
    error = refused(recipe("regress") | {"objective": "multilabel"}, tmp_path)
    assert "task.kind=multilabel" in error.hint


def test_labels_that_are_no_numbers_name_their_row(recipe, tmp_path):
    error = refused(recipe("regress", [{**row, "label": "much"} for row in graded()]), tmp_path)
    assert "'much', which is no number" in str(error)
    assert ".jsonl:" in error.where


def test_numbers_that_are_all_the_same_teach_nothing(recipe, tmp_path):
    rows = [{**row, "label": 3.5} for row in graded()]
    assert "have the label 3.5" in str(refused(recipe("regress", rows), tmp_path))


def test_one_class_alone_teaches_nothing(recipe, tmp_path):
    rows = [{"text": question, "label": "red"} for question in questions(90)]
    assert "only the label 'red'" in str(refused(recipe("classify", rows), tmp_path))


def test_a_label_unseen_in_training_names_its_row(recipe, tmp_path):
    values = recipe("multilabel")
    rows = [{"text": question, "label": ["red", "blue"]} for question in questions(110)[90:]]
    values["data"] |= {"test": [write_rows(tmp_path / "test.jsonl", rows)]}
    error = refused(values, tmp_path)
    assert "'blue'" in str(error)
    assert error.where.endswith("test.jsonl:1")


def test_a_label_with_a_comma_is_refused(recipe, tmp_path):
    rows = [{**row, "label": ["red, or green"]} for row in several()]
    assert "without commas" in str(refused(recipe("multilabel", rows), tmp_path))


def test_tokens_and_tags_of_unequal_length_name_their_row(recipe, tmp_path):
    rows = [{**row, "tags": ["O"]} if n == 2 else row for n, row in enumerate(tagged())]
    report = burnish.run(recipe("tag", rows, train={"epochs": 1, "max_steps": 1}), out=tmp_path / "run", quiet=True)
    assert report["data"]["dropped"] == {"tokens and tags are not equally many": 1}
    ledger = (tmp_path / "run" / "ledger.jsonl").read_text(encoding="utf-8")
    assert '"line": 3' in ledger


def test_an_option_that_the_objective_has_not_lists_those_it_has(recipe, tmp_path):
    error = refused(recipe("multilabel") | {"loss": {"gamma": 2}}, tmp_path)
    assert isinstance(error, RecipeError)
    assert "class_weights, focal_gamma, label_smoothing" in error.expected


def test_weights_of_some_labels_only_are_refused(recipe, tmp_path):
    values = recipe("multilabel") | {"loss": {"class_weights": {"red": 2.0}}}
    assert "green, yellow" in str(refused(values, tmp_path))


# Extraction held to a schema -----------------------------------------------------------------------------------------


def test_a_run_tells_the_share_of_json_with_and_without_the_schema(recipe, tmp_path):
    pytest.importorskip("llguidance")
    rows = [{"prompt": q, "completion": {"team": COLOURS[n % 3]}} for n, q in enumerate(questions(60))]
    values = recipe("multilabel", rows, objective="sft", train={"epochs": 1, "max_steps": 2, "validations": 1})
    schema = {"type": "object", "properties": {"team": {"enum": list(COLOURS)}}, "required": ["team"]}
    values["task"] = {
        "kind": "extract",
        "schema": {**schema, "additionalProperties": False},
        "constrained": True,
        "max_new_tokens": 120,
    }
    report = burnish.run(values, out=tmp_path / "run", quiet=True)
    found = report["evaluation"]["constrained"]
    assert found["with"]["schema_valid"] == 1.0
    assert found["without"]["schema_valid"] < 1.0
    assert report["evaluation"]["figures"][0]["tuned"] == found["with"][report["evaluation"]["figures"][0]["name"]]
    answer = json.loads(burnish.load(tmp_path / "run").say("bako"))
    assert answer["team"] in COLOURS
