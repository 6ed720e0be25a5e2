"""Whole runs with a score head on a tiny random model: what they prove, write and refuse."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch

import burnish
from burnish.errors import Interrupted, RecipeError
from tiny_runs import questions, recipe_of, write_rows

COLOURS = ("green", "red", "yellow")
METHODS = {"lora": {"rank": 8, "alpha": 32}, "full": {"method": "full"}, "head": {"method": "head"}}
RATES = {"lora": 0.01, "full": 0.003, "head": 0.05}


def coloured(count=90):
    """Texts that begin and end with their label."""
    return [
        {"text": f"{label} {q} {label}", "label": label}
        for n, q in enumerate(questions(count))
        for label in [COLOURS[n % 3]]
    ]


@pytest.fixture(scope="module")
def recipe(model_folder, tmp_path_factory):
    """A function from a method to the plain values of a recipe."""
    file = write_rows(tmp_path_factory.mktemp("data") / "rows.jsonl", coloured())

    def make(method, **changes):
        values = recipe_of(
            model_folder(),
            file,
            task={"kind": "classify", "goal": "Say the colour."},
            objective="classify",
            train={"epochs": 6, "learning_rate": RATES[method]},
            **changes,
        )
        return values | {"adapter": METHODS[method]}

    return make


@pytest.fixture(scope="module", params=METHODS)
def finished(request, recipe, tmp_path_factory):
    """The folder of a finished run for each way of training, which no test may change."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    burnish.run(recipe(request.param), out=folder, quiet=True)
    return folder


def report_of(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def test_a_head_that_learnt_its_labels_is_to_be_shipped(finished):
    report = report_of(finished)
    assert [step["status"] for step in report["steps"]] == ["done"] * 9
    assert report["verdict"] == "ship"
    evaluation = report["evaluation"]
    assert evaluation["metric"] == "accuracy"
    assert evaluation["tuned"] > 0.5 > evaluation["base"]
    assert "prompted to write the label" in evaluation["base_is"]
    assert evaluation["perplexity"] is None


def test_the_report_says_what_the_head_is_and_what_was_learnt(finished):
    report = report_of(finished)
    assert report["model"]["head"]["labels"] == list(COLOURS)
    assert report["data"]["trained_tokens"] == 0
    guard = next(guard for guard in report["guards"] if guard["mistake"] == "no preprocessing")
    assert guard["status"] == "pass"
    assert "have a label to learn" in guard["found"]
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "A label is learnt for each text" in page
    assert "Base is the model before tuning, prompted to write the label, since it has no head" in page
    assert "AutoModelForSequenceClassification" in page


def test_plain_transformers_makes_the_same_predictions_from_merged(finished):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(finished / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(finished / "merged")
    examples = report_of(finished)["evaluation"]["examples"]
    with torch.no_grad():
        scores = model(**tokenizer([one["prompt"] for one in examples], padding=True, return_tensors="pt")).logits
    found = [model.config.id2label[number] for number in scores.argmax(-1).tolist()]
    assert found == [one["tuned"] for one in examples]


def test_a_head_that_reads_in_a_chat_says_the_same_where_the_card_is_followed(recipe, tmp_path):
    task = {"kind": "classify", "goal": "Say the colour.", "frame": "chat"}
    report = burnish.run(recipe("full") | {"task": task}, out=tmp_path / "run", quiet=True)
    assert report["evaluation"]["tuned"] > 0.5
    card = (tmp_path / "run" / "card.md").read_text(encoding="utf-8")
    code = next(part for part in card.split("```python\n") if "apply_chat_template" in part).split("```")[0]
    assert "some text" in code
    model = burnish.load(tmp_path / "run")
    for text in ("red bako red", "green ritu green"):
        told = {}
        exec(code.replace("some text", text).replace('"merged"', repr(str(tmp_path / "run" / "merged"))), told)
        found = told["scores"][0].argmax().item()
        assert told["model"].config.id2label[found] == model.classify(text)[0][0]
    assert told["model"].config.burnish["frame"] == "chat"


@pytest.mark.parametrize("changes", [{"objective": "sft"}, {"tasks": {"one": {}, "two": {}}}], ids=["written", "tasks"])
def test_a_frame_is_refused_where_it_would_change_nothing_or_differ_by_task(recipe, tmp_path, changes):
    values = recipe("lora")
    task = {"kind": "classify", "frame": "chat"}
    if "tasks" in changes:
        each = {"data": values.pop("data"), "task": task, "objective": values.pop("objective")}
        values = {key: value for key, value in values.items() if key != "task"} | {"tasks": {"one": each, "two": each}}
    else:
        values |= {"task": task, **changes}
    with pytest.raises(RecipeError, match="frame") as caught:
        burnish.run(values, out=tmp_path / "run", quiet=True)
    assert "frame" in caught.value.where
    assert "plain" in caught.value.hint
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_the_run_can_be_asked_for_labels(finished):
    model = burnish.load(finished)
    [answer] = model.answers(iter(["red bako red"]))
    assert answer.split("  ")[0] == model.classify("red bako red")[0][0]


def test_a_run_is_exported_again_with_its_head(finished, tmp_path):
    parity = burnish.export(finished, tmp_path / "out", kinds=["merged"])
    assert parity["largest_difference"] < 1e-4


def test_the_same_recipe_again_repeats_nothing(recipe, finished):
    report = burnish.run(recipe(finished.name), out=finished, quiet=True)
    reused = {step["name"] for step in report["steps"] if step["status"] == "reused"}
    assert reused == {"clean", "smoke", "train", "evaluate", "deploy"}


def test_a_plan_counts_the_head_of_labels_and_not_that_of_the_vocabulary(recipe):
    scored, written = (burnish.plan(recipe("full") | {"objective": name}) for name in ("classify", "sft"))
    assert scored.trained_tokens_per_epoch == 0
    assert scored.parameters == written.parameters + 3 * 32  # the vocabulary's is tied to the embeddings
    assert scored.tokens_per_epoch < written.tokens_per_epoch


def test_another_task_than_classify_is_refused_with_what_to_type(recipe, tmp_path):
    with pytest.raises(RecipeError, match="learns labels") as caught:
        burnish.run(recipe("lora") | {"task": {"kind": "chat"}}, out=tmp_path / "run", quiet=True)
    assert "task.kind=classify" in caught.value.hint


def test_a_label_of_the_test_rows_that_training_never_saw_names_the_row(recipe, tmp_path):
    rows = [{"text": question, "label": "blue"} for question in questions(110)[90:]]
    values = recipe("lora")
    values["data"] |= {"test": [write_rows(tmp_path / "test.jsonl", rows)]}
    with pytest.raises(RecipeError, match=r"'blue'.*among the 3") as caught:
        burnish.run(values, out=tmp_path / "run", quiet=True)
    assert caught.value.where.endswith("test.jsonl:1")


def test_a_head_alone_is_refused_where_the_model_writes(recipe, tmp_path):
    with pytest.raises(RecipeError, match="writes text") as caught:
        burnish.run(recipe("head") | {"objective": "sft"}, out=tmp_path / "run", quiet=True)
    assert "objective=classify" in caught.value.hint


def test_a_head_alone_is_refused_beside_frozen_layers(recipe, tmp_path):
    with pytest.raises(RecipeError, match="frozen already"):
        burnish.run(recipe("head") | {"freeze": {"layers": "0-1"}}, out=tmp_path / "run", quiet=True)


def test_the_body_is_not_asked_again_during_training(recipe, tmp_path, monkeypatch):
    from burnish.model.features import FEATURE, CachedBody

    marked, passes = [], []
    body, forward = CachedBody._hidden, CachedBody.forward
    monkeypatch.setattr(CachedBody, "_hidden", lambda net, batch: passes.append(batch) or body(net, batch))
    monkeypatch.setattr(
        CachedBody,
        "forward",
        lambda net, batch, needs: marked.append(FEATURE in batch.values) or forward(net, batch, needs),
    )
    report = burnish.run(recipe("head"), out=tmp_path / "run", quiet=True)
    assert sum(marked) > report["training"]["steps"]  # each step and each look
    assert len(passes) == len(marked) - sum(marked) + 18  # what was not marked, and the one pass over all texts
    assert report["model"]["trained"] == [{"group": "score", "parameters": 96}]


def test_a_run_keeps_no_features_of_rows_that_it_no_longer_has(recipe, tmp_path):
    def kept():
        return [path.name for path in (tmp_path / "run" / "steps").glob("features-*")]

    burnish.run(recipe("head"), out=tmp_path / "run", quiet=True)
    [first] = kept()
    values = recipe("head")
    values["data"] = values["data"] | {"sample": 60}
    burnish.run(values, out=tmp_path / "run", quiet=True)
    [second] = kept()
    assert first != second


def test_a_few_rows_of_each_class_are_drawn_from_the_training_split_alone(recipe, tmp_path):
    whole = burnish.plan(recipe("head"))
    values = recipe("head")
    values["data"] = values["data"] | {"per_class": 4}
    report = burnish.run(values, out=tmp_path / "run", quiet=True)
    assert report["data"]["labels"] == {"green": 4, "red": 4, "yellow": 4}
    assert (report["data"]["validation"], report["data"]["test"]) == (6, 12)
    assert report["data"]["left_out"]["data.per_class"] == whole.rows - 12


class Terminator:
    """A tracker that tells the process to end at one step."""

    def log(self, values, step):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    def close(self):
        pass


def test_a_head_alone_that_was_told_to_stop_goes_on_from_its_checkpoint_to_the_same_weights(
    recipe, tmp_path, monkeypatch
):
    from safetensors.torch import load_file

    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    burnish.run(recipe("head"), out=whole, quiet=True)
    with monkeypatch.context() as patch:
        patch.setattr("burnish.pipeline.open_trackers", lambda *_: [Terminator()])
        with pytest.raises(Interrupted, match="SIGTERM after step 9"):
            burnish.run(recipe("head"), out=stopped, quiet=True)
    report = burnish.run(recipe("head"), out=stopped, quiet=True)
    assert "went on from step 9" in report["training"]["notes"]
    one, other = (load_file(folder / "merged" / "model.safetensors")["score.weight"] for folder in (whole, stopped))
    assert torch.equal(one, other)


# Options of the loss --------------------------------------------------------------------------------------------------


def test_a_loss_with_balanced_classes_learns_the_labels_too(recipe, tmp_path):
    options = {"class_weights": "balanced", "focal_gamma": 1.0, "label_smoothing": 0.05}
    report = burnish.run(recipe("lora") | {"loss": options}, out=tmp_path, quiet=True)
    assert report["evaluation"]["tuned"] > 0.5


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"focal": 2}, "has no option 'focal'"),
        ({"label_smoothing": 1.5}, "label_smoothing"),
        ({"class_weights": {"green": 1.0, "blue": 2.0}}, "blue"),
    ],
)
def test_options_that_the_loss_has_not_are_refused(recipe, tmp_path, options, told):
    with pytest.raises(RecipeError, match=told):
        burnish.run(recipe("lora") | {"loss": options}, out=tmp_path, quiet=True)
