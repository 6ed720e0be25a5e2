"""Whole runs with a teacher on tiny random models: what they learn from, what the report says of both, and what is refused."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import burnish
from burnish.distillation import beside
from burnish.errors import ModelError, RecipeError
from burnish.serve.export import write_merged
from tiny_runs import asked_and_answered, questions, recipe_of, write_rows

FULL = {"method": "full"}
RATE = {"epochs": 4, "learning_rate": 0.003}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", asked_and_answered())


@pytest.fixture(scope="module")
def teacher(model_folder, file, tmp_path_factory):
    """The folder of a run whose model says "ok"."""
    folder = tmp_path_factory.mktemp("runs") / "teacher"
    burnish.run(recipe_of(model_folder(), file), out=folder, quiet=True)
    return folder


@pytest.fixture
def go(model_folder, file, teacher, tmp_path):
    """A function from the keys of `distill` to (folder, report) of a run with the teacher."""

    def run(distill, rows=None, name="student", **changes):
        data = write_rows(tmp_path / "rows.jsonl", rows) if rows else file
        train = {**RATE, **changes.pop("train", {})}
        changes = {"adapter": FULL, "train": train, "distill": {"teacher": str(teacher), **distill}, **changes}
        folder = tmp_path / name
        recipe = recipe_of(model_folder(), data) | {"adapter": FULL}
        for key, value in changes.items():
            recipe[key] = {**recipe[key], **value} if key in ("train", "data", "task") else value
        return folder, burnish.run(recipe, out=folder, quiet=True)

    return run


def test_a_student_of_fewer_layers_learns_what_its_live_teacher_thinks(go):
    folder, report = go({"student": {"layers": 2}})
    assert [step["status"] for step in report["steps"]] == ["done"] * 9
    found = report["distillation"]
    assert found["cut"]["layers"] == [0, 2]
    assert found["quality"]["teacher"] > 0.9
    assert found["quality"]["student"] > 0.9
    assert found["half_the_time_no_lower"] in ("yes", "no", "unclear")
    assert 0 < found["seconds"]["student"]["median"] <= found["seconds"]["student"]["p90"]
    assert AutoModelForCausalLM.from_pretrained(folder / "merged").config.num_hidden_layers == 2
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Teacher and student" in page


def test_a_finished_run_goes_on_without_asking_the_teacher_again(go, teacher):
    _, first = go({"student": {"layers": 2}})
    _, again = go({"student": {"layers": 2}})
    assert {step["status"] for step in again["steps"]} == {"done", "reused"}
    assert again["steps"][6]["status"] == "reused"
    assert again["distillation"] == first["distillation"]


@pytest.mark.parametrize(
    "distill",
    [
        {"divergence": "reverse_kl", "alpha": 0.3},
        {"divergence": "jsd", "beta": 0.3, "temperature": 2.0},
        {"top_k": 5},
        {"on": "samples", "every": 4, "alpha": 0.5, "divergence": "jsd"},
    ],
    ids=["reverse", "jsd", "top", "samples"],
)
def test_every_way_of_learning_comes_nearer_to_the_teacher(go, distill):
    folder, report = go(distill)
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    parted = [line["divergence"] for line in lines if "divergence" in line]
    quarter = len(parted) // 4
    assert sum(parted[-quarter:]) < 0.9 * sum(parted[:quarter])
    assert report["distillation"]["quality"]["n"] == report["evaluation"]["n"]


def test_a_student_learns_what_its_teacher_wrote(go):
    _, report = go({"on": "answers"})
    assert report["distillation"]["quality"]["student"] > 0.9


def test_what_the_teacher_says_is_learnt_in_place_of_what_was_written(go):
    rows = [{"prompt": question, "completion": "no"} for question in questions(60)]
    folder, report = go({"on": "answers", "min_score": 0.0}, rows=rows)
    assert report["teacher"]["learnt"] == report["teacher"]["asked"]
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    changed = [(one["before"], one["after"]) for one in entries if one["reason"] == "answered by the teacher"]
    assert changed == [("no", "ok")] * report["data"]["train"]


def test_samples_are_kept_and_read_again(go):
    folder, _ = go({"on": "samples", "every": 4})
    blocks = sorted((folder / "samples").glob("*/block-*.json"))
    assert len(blocks) > 1
    group = next(iter(json.loads(blocks[0].read_text()).values()))
    assert group[0]["ids"]


@pytest.mark.parametrize("frame", ["plain", "chat"])
def test_a_student_of_a_classifier_learns_its_scores(model_folder, tmp_path, frame):
    rows = [
        {"text": f"{label} {question} {label}", "label": label}
        for number, question in enumerate(questions(90))
        for label in [("green", "red", "yellow")[number % 3]]
    ]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    task = {"kind": "classify", "goal": "Say the colour.", "frame": frame}
    changes = {"task": task, "objective": "classify"}
    train = {"epochs": 6, "learning_rate": 0.003}
    values = recipe_of(model_folder(), data, **changes, train=train) | {"adapter": FULL}
    burnish.run(values, out=tmp_path / "teacher", quiet=True)
    distill = {"teacher": str(tmp_path / "teacher"), "student": {"layers": 2, "by": "similarity"}, "temperature": 2.0}
    report = burnish.run(values | {"distill": distill}, out=tmp_path / "student", quiet=True)
    assert report["distillation"]["quality"]["metric"] == "accuracy"
    assert report["distillation"]["quality"]["student"] > 0.5
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student" / "merged")
    assert (model.config.num_hidden_layers, model.config.num_labels) == (2, 3)
    other = {"plain": "chat", "chat": "plain"}[frame]
    with pytest.raises(RecipeError, match=f"frame {frame}, and the student in {other}") as caught:
        burnish.run(values | {"task": task | {"frame": other}, "distill": distill}, out=tmp_path / "other", quiet=True)
    assert caught.value.hint == f"--set task.frame={frame}"
    if frame == "chat":
        with pytest.raises(RecipeError, match="'Name it") as caught:
            burnish.run(
                values | {"task": task | {"goal": "Name it."}, "distill": distill}, out=tmp_path / "goal", quiet=True
            )
        assert caught.value.where == "task.goal"


def test_another_vocabulary_is_taught_by_aligned_spans(go, make_tokenizer, model_folder, tmp_path):
    other = shutil.copytree(model_folder(), tmp_path / "other")
    tokenizer = make_tokenizer(ordinary=("ok",))
    tokenizer.save_pretrained(other)
    model = AutoModelForCausalLM.from_pretrained(other)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(other)
    _, report = go({"teacher": str(other), "alpha": 0.5})
    assert report["steps"][6]["status"] == "done"
    with pytest.raises(ModelError, match="another vocabulary"):
        go({"teacher": str(other), "top_k": 4}, name="refused")
    with pytest.raises(ModelError, match="another vocabulary"):
        go({"teacher": str(other), "on": "samples"}, name="refused")


def test_a_teacher_that_answers_nonsense_is_an_error_and_its_answers_are_kept(go, model_folder, tmp_path):
    with pytest.raises(ModelError, match="nonsense"):
        go({"teacher": model_folder("qwen3"), "on": "answers"})
    assert (tmp_path / "student" / "teacher" / "answers.jsonl").is_file()
    assert json.loads((tmp_path / "student" / "report.json").read_text())["verdict"] == "stop"


def test_a_run_that_is_not_there_is_not_looked_for_elsewhere(go, tmp_path):
    for name in ("runs/nowhere", str(tmp_path / "nowhere")):
        with pytest.raises(ModelError, match="no such run"):
            go({"teacher": name})


def test_the_verb_takes_the_teacher_and_the_layers(model_folder, file, teacher, tmp_path):
    values = recipe_of(model_folder(), file) | {"adapter": FULL}
    options = {"teacher": str(teacher), "on": "probabilities", "keep": "0,2", "out": tmp_path / "run", "quiet": True}
    report = burnish.distill(values, **options, overrides={"train.max_steps": 2})
    assert report["distillation"]["cut"]["layers"] == [0, 2]
    with pytest.raises(RecipeError, match="nobody to learn from"):
        burnish.distill(values, out=tmp_path / "run")


def test_the_objective_alone_has_nobody_to_learn_from(model_folder, file, tmp_path):
    with pytest.raises(RecipeError, match="nobody to learn from"):
        burnish.run(recipe_of(model_folder(), file) | {"objective": "distill"}, out=tmp_path / "run", quiet=True)


def test_a_teacher_that_writes_cannot_teach_scores(go):
    with pytest.raises(ModelError, match="the teacher writes"):
        go({}, objective="classify", task={"kind": "classify"})


@pytest.mark.parametrize("objective", ["sft", "classify"])
def test_a_teacher_that_tags_words_teaches_nobody(go, make_classifier, tokenizer, tmp_path, objective):
    folder = write_merged(make_classifier(kind="tag"), tokenizer, tmp_path / "tags", end_ids=[1], dtype=torch.float32)
    kind = {"sft": "generate", "classify": "classify"}[objective]
    with pytest.raises(ModelError, match="the teacher tags words"):
        go({"teacher": str(folder)}, objective=objective, task={"kind": kind})


def test_a_plan_counts_the_student_that_would_be_cut(model_folder, file, teacher):
    values = recipe_of(model_folder(), file) | {"adapter": FULL}
    whole = burnish.plan(values)
    cut = burnish.plan(values | {"distill": {"teacher": str(teacher), "student": {"layers": 1, "mlp": 0.5}}})
    assert cut.parameters < whole.parameters
    assert "teacher" not in whole.memory
    assert cut.memory["teacher"] == 4 * whole.parameters
    assert cut.memory["total"] == sum(cut.memory.values()) - cut.memory["total"]


def test_options_of_a_loss_that_the_divergence_replaces_are_refused(go):
    with pytest.raises(RecipeError, match="label_smoothing would change nothing"):
        go({}, loss={"label_smoothing": 0.1})
    _, report = go({"on": "answers"}, loss={"label_smoothing": 0.0}, train={"max_steps": 2})
    assert report["training"]["steps"] == 2


def test_the_clock_runs_for_the_student_as_it_is_exported(model_folder, file, teacher, tmp_path, monkeypatch):
    seen = []
    make = beside.as_deployed
    monkeypatch.setattr(beside, "as_deployed", lambda *given: seen.append(make(*given)) or seen[-1])
    values = recipe_of(model_folder(), file, distill={"teacher": str(teacher)}, train={"max_steps": 3})
    report = burnish.run(values, out=tmp_path / "run", quiet=True)
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "merged").state_dict()
    assert {name: value.dtype for name, value in seen[0].model.state_dict().items()} == dict.fromkeys(
        exported, torch.float32
    )
    assert all(torch.allclose(value, exported[name], atol=1e-5) for name, value in seen[0].model.state_dict().items())
    assert report["distillation"]["seconds"]["precision"] == "fp32"
