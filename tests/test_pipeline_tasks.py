"""Whole runs of several tasks on a tiny random model: one model that writes and names labels, what is proven of each, and what goes on."""

from __future__ import annotations

import json
import warnings

import pytest
import torch

import burnish
from burnish.errors import DataGuardError, Interrupted
from tiny_runs import asked_and_answered, questions, write_rows

COLOURS = ("green", "red", "yellow")


def coloured(start, count=60, words=COLOURS):
    """Texts that begin and end with their label."""
    texts = enumerate(questions(200)[start : start + count])
    return [{"text": f"{words[n % 3]} {text} {words[n % 3]}", "label": words[n % 3]} for n, text in texts]


def values_of(folder, tasks, **changes):
    return {
        "model": folder,
        "adapter": {"rank": 8, "alpha": 32},
        "train": {
            "epochs": 7,
            "batch_size": 8,
            "learning_rate": 0.01,
            "max_length": 128,
            "validations": 2,
            "validation_items": 4,
            "save_every": 4,
        },
        "tasks": tasks,
        **changes,
    }


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """Two tasks of different objectives: one answers, one names a colour."""
    folder = tmp_path_factory.mktemp("data")
    held_out = {"validation": 6, "test": 12}
    answered = write_rows(folder / "answers.jsonl", asked_and_answered(60))
    labelled = write_rows(folder / "colours.jsonl", coloured(100))
    return {
        "answers": {"data": {"train": answered, **held_out}, "task": {"kind": "generate", "goal": "Say ok."}},
        "colours": {
            "data": {"train": labelled, **held_out},
            "task": {"kind": "classify", "goal": "Say the colour."},
            "objective": "classify",
        },
    }


@pytest.fixture(scope="module")
def finished(model_folder, tasks, tmp_path_factory):
    """The folder of a finished run, which no test may change."""
    folder = tmp_path_factory.mktemp("runs") / "both"
    burnish.run(compared(model_folder(), tasks), out=folder, quiet=True)
    return folder


def compared(folder, tasks):
    return values_of(folder, tasks, mixing={"compare_alone": True}, freeze={"layers": "0"})


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_two_objectives_are_learnt_in_one_run(finished):
    report = report_of(finished)
    assert [step["status"] for step in report["steps"]] == ["done"] * 9
    evaluation = report["evaluation"]
    assert set(evaluation["tasks"]) == {"answers", "colours"}
    assert evaluation["tasks"]["answers"]["tuned"] > 0.9
    assert evaluation["tasks"]["colours"]["tuned"] > 0.5 > evaluation["tasks"]["colours"]["base"]
    assert report["verdict"] == "ship"


def test_the_figure_of_all_is_the_mean_of_the_tasks_with_an_interval(finished):
    evaluation = report_of(finished)["evaluation"]
    for who in ("base", "tuned", "delta"):
        assert evaluation[who] == pytest.approx(sum(one[who] for one in evaluation["tasks"].values()) / 2)
    low, high = evaluation["ci95"]
    assert low <= evaluation["delta"] <= high
    assert evaluation["n"] == sum(one["n"] for one in evaluation["tasks"].values())


def test_the_report_says_what_each_task_was_and_got(finished):
    report = report_of(finished)
    assert report["goal"] == "Say ok. Say the colour."
    told = report["tasks"]
    assert told["colours"]["labels"] == list(COLOURS)
    assert sum(one["share"] for one in told.values()) == pytest.approx(1)
    assert {name: one["train"] for name, one in told.items()} == {"answers": 42, "colours": 42}
    assert set(report["training"]["tasks"]) == {"answers", "colours"}
    assert any(reason.startswith("Task colours: accuracy went from") for reason in report["reasons"])
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Each task" in page
    assert "in colours the model before tuning, prompted to write the label, since it has no head" in page
    assert "with the same decoding" not in page
    card = (finished / "card.md").read_text(encoding="utf-8")
    assert "- colours: accuracy on 12 rows" in card
    assert "head.safetensors" in card


def test_each_task_is_held_against_being_tuned_alone(finished):
    for one in report_of(finished)["evaluation"]["tasks"].values():
        alone = one["against_alone"]
        assert alone["said"] in {"helps", "hurts", "may hurt", "no difference seen"}
        assert alone["mixed"] == pytest.approx(one["tuned"])
        assert alone["ci95"][0] <= alone["delta"] <= alone["ci95"][1]
        assert alone["rows"] > 0


def test_the_same_recipe_again_repeats_nothing(model_folder, tasks, finished):
    report = burnish.run(compared(model_folder(), tasks), out=finished, quiet=True)
    reused = {step["name"] for step in report["steps"] if step["status"] == "reused"}
    assert reused == {"clean", "smoke", "train", "evaluate", "deploy"}
    assert report["evaluation"]["tasks"]["colours"]["against_alone"]


def test_the_adapter_loads_in_plain_peft_and_the_head_scores_beside_it(finished):
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    report = report_of(finished)
    base = AutoModelForCausalLM.from_pretrained(report["model"]["source"])
    tokenizer = AutoTokenizer.from_pretrained(finished / "merged")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # a key that is missing or has no place
        tuned = PeftModel.from_pretrained(base, finished / "adapter").eval()
    models = {
        "adapter": tuned,
        "merged": AutoModelForCausalLM.from_pretrained(finished / "merged").eval(),
    }
    asked = [one for one in report["evaluation"]["examples"] if one["task"] == "colours"]
    assert asked
    for name, model in models.items():
        weight = load_file(finished / name / "head.safetensors")["score.weight"]
        labels = json.loads((finished / name / "head.json").read_text(encoding="utf-8"))["id2label"]
        for one in asked:
            with torch.no_grad():
                out = model(**tokenizer(one["prompt"], return_tensors="pt"), output_hidden_states=True)
            assert labels[str(int((out.hidden_states[-1][0, -1] @ weight.T).argmax()))] == one["tuned"]


def test_the_run_can_be_talked_to_and_exported_again(finished, tmp_path):
    asked = next(one for one in report_of(finished)["evaluation"]["examples"] if one["task"] == "answers")
    assert next(iter(burnish.load(finished).answers(iter([asked["prompt"]])))) == asked["tuned"]
    parity = burnish.export(finished, tmp_path / "out")
    assert parity["largest_difference"] < 1e-3
    assert (tmp_path / "out" / "adapter" / "head.safetensors").is_file()


def test_a_run_that_was_stopped_goes_on_to_the_very_same_weights(model_folder, tasks, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from burnish.train.hooks import StopSignal

    values = values_of(model_folder(), tasks, deploy={"export": ["adapter"]})
    burnish.run(values, out=tmp_path / "whole", quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "after", lambda self, step: self._note(step.number))
        patch.setattr(
            StopSignal,
            "_note",
            lambda self, number: setattr(self, "received", "SIGTERM") or "stopped" if number == 7 else None,
            raising=False,
        )
        with pytest.raises(Interrupted):
            burnish.run(values, out=tmp_path / "cut", quiet=True)
    report = burnish.run(values, out=tmp_path / "cut", quiet=True)
    assert any("went on from step 7" in note for note in report["training"]["notes"])
    for file in ("adapter_model.safetensors", "head.safetensors"):
        first, second = (load_file(tmp_path / name / "adapter" / file) for name in ("whole", "cut"))
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_all_weights_are_trained_and_written_with_the_second_head_too(model_folder, tasks, tmp_path):
    values = values_of(model_folder(), tasks) | {"adapter": {"method": "full"}}
    values["train"]["learning_rate"] = 0.003
    report = burnish.run(values, out=tmp_path / "run", quiet=True)
    assert report["artifacts"].keys() == {"merged", "card"}
    assert (tmp_path / "run" / "merged" / "head.safetensors").is_file()
    assert report["deploy"]["parity"]["largest_difference"] < 1e-3
    assert report["evaluation"]["tasks"]["colours"]["tuned"] > 0.5


def test_two_tasks_that_score_share_one_head_and_each_reads_its_own_labels(model_folder, tasks, tmp_path):
    shapes = write_rows(tmp_path / "shapes.jsonl", coloured(0, words=("disc", "cube", "cone")))
    other = {**tasks["colours"], "data": {**tasks["colours"]["data"], "train": shapes}}
    values = values_of(model_folder(), {"colours": tasks["colours"], "shapes": other})
    values["train"]["epochs"] = 12
    report = burnish.run(values, out=tmp_path / "run", quiet=True)
    assert list(report["model"]["head"]["labels"]) == [f"colours: {c}" for c in COLOURS] + [
        f"shapes: {s}" for s in ("cone", "cube", "disc")
    ]
    for name, one in report["evaluation"]["tasks"].items():
        assert one["tuned"] > 0.5, name
    answers = {one["tuned"] for one in report["evaluation"]["examples"] if one["task"] == "shapes"}
    assert answers <= {"cone", "cube", "disc"}


def test_a_test_row_of_one_task_in_the_train_rows_of_another_stops_the_run(model_folder, tasks, tmp_path):
    same = write_rows(
        tmp_path / "same.jsonl", [{"text": row["prompt"], "label": "a"} for row in asked_and_answered(60)]
    )
    other = {**tasks["colours"], "data": {**tasks["colours"]["data"], "train": same}}
    with pytest.raises(DataGuardError):
        burnish.run(values_of(model_folder(), {**tasks, "colours": other}), out=tmp_path / "run", quiet=True)
    guard = next(g for g in report_of(tmp_path / "run")["guards"] if g["mistake"] == "data leakage")
    assert guard["status"] == "fail"


def test_a_plan_counts_the_rows_of_all_tasks(model_folder, tasks):
    plan = burnish.plan(values_of(model_folder(), tasks))
    assert plan.steps == 70


def test_a_sample_is_taken_of_every_task(model_folder, tasks, tmp_path):
    report = burnish.run(
        values_of(model_folder(), tasks), overrides=["data.sample=24"], out=tmp_path / "run", quiet=True
    )
    assert {name: one["train"] for name, one in report["tasks"].items()} == {"answers": 6, "colours": 6}


def test_a_study_varies_how_the_tasks_are_mixed_and_proves_its_winner(model_folder, tasks, tmp_path):
    space = {"mixing.temperature": [1, 5], "train.learning_rate": {"choices": [0.01, 0.02]}}
    values = values_of(model_folder(), tasks, tune={"seeds": 1, "space": space})
    values["train"] = values["train"] | {"epochs": 2, "learning_rate": 0.001}  # which is poor
    report = burnish.tune(values, budget=4, out=tmp_path / "study", quiet=True)
    assert set(report["test"]["tasks"]) == set(tasks)
    assert burnish.plan(tmp_path / "study" / "best.yaml").steps > 0
