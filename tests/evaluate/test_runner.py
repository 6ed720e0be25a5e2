"""The exam: the same questions for both models, sums over tokens, and gains paired item by item."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from burnish.data.render import Chat
from burnish.data.rows import Conversation, Text, Turn
from burnish.errors import RecipeError
from burnish.evaluate.runner import Exam, Item, Sitting, check_answerable, compare, likelihood, make_items
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.scoring import scorer_for


def row(line, answer="ok", **extra):
    turns = (Turn("user", f"What is {line}?"), Turn("assistant", answer))
    return Conversation(file="rows.jsonl", line=line, turns=turns, extra=extra)


def text(line):
    return Text(file="rows.txt", line=line, text=f"This is text {line}.")


@pytest.fixture
def chat(tokenizer):
    return Chat(tokenizer)


@pytest.fixture
def net(make_model):
    return Net(make_model())


def item(number, reference="a", cluster=""):
    return Item(f"rows.jsonl:{number}", f"question {number}", reference, [], [], cluster or str(number))


def sitting(exam, answers, nll=1.0):
    scores = [exam.scorer.score(answer, one.reference) for answer, one in zip(answers, exam.items, strict=True)]
    return Sitting(answers, scores, np.full(len(answers), nll), np.ones(len(answers)))


def exam_of(references, kind="generate", clusters=None, **options):
    clusters = clusters or [str(number) for number in range(len(references))]
    items = [item(number, reference, clusters[number]) for number, reference in enumerate(references)]
    return Exam(items, scorer_for(kind, **options), 8, 128)


# The questions -------------------------------------------------------------------------------------------------------


def test_a_row_becomes_a_question_its_answer_and_its_place(chat):
    [one] = make_items([row(3, "nine")], chat, None)
    assert (one.where, one.question, one.reference) == ("rows.jsonl:3", "What is 3?", "nine")


def test_the_prompt_holds_the_question_and_not_the_answer(chat, tokenizer):
    [one] = make_items([row(3, "nine")], chat, None)
    prompt = tokenizer.decode(one.prompt)
    assert "What is 3?" in prompt
    assert "nine" not in prompt


def test_text_is_read_and_not_asked(chat):
    [one] = make_items([text(1)], chat, None)
    assert (one.prompt, one.reference) == ([], "")
    assert one.group[0].trained


@pytest.mark.parametrize(
    ("group_by", "extras", "clusters"),
    [
        (None, [{"customer": 1}, {"customer": 1}], 2),
        ("customer", [{"customer": 1}, {"customer": 1}, {"customer": 2}], 2),
        ("customer", [{"customer": None}, {"customer": ""}, {}], 3),
    ],
)
def test_rows_of_one_group_are_one_cluster_and_rows_without_one_stand_alone(chat, group_by, extras, clusters):
    rows = [row(number, **extra) for number, extra in enumerate(extras, 1)]
    assert len({one.cluster for one in make_items(rows, chat, group_by)}) == clusters


def test_rows_with_answers_can_be_scored_and_plain_text_cannot():
    assert check_answerable([row(1), row(2)])
    assert not check_answerable([text(1)])
    assert check_answerable([])


def test_rows_of_both_kinds_are_refused_with_the_place_of_one():
    with pytest.raises(RecipeError) as caught:
        check_answerable([row(1), text(2)])
    assert caught.value.where == "rows.txt:2"


# The likelihood ------------------------------------------------------------------------------------------------------


def test_the_likelihood_is_that_of_the_models_own_logits(net, chat):
    [group] = [one.group for one in make_items([row(1, "nine")], chat, None)]
    ids, weight = torch.tensor([group[0].ids]), torch.tensor(group[0].weight)
    with torch.no_grad():
        logp = net.model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    nll, trained = likelihood(net, [group], 128)
    assert nll[0] == pytest.approx(-float((logp * (weight[1:] != 0)).sum()), rel=1e-4)
    assert trained[0] == sum(value != 0 for value in group[0].weight)


def test_the_likelihood_of_a_row_does_not_depend_on_its_neighbours(net, chat):
    groups = [one.group for one in make_items([row(number, "nine " * number) for number in range(1, 7)], chat, None)]
    together, counts = likelihood(net, groups, 256)
    alone = [likelihood(net, [group], 256) for group in groups]
    assert together == pytest.approx([float(nll[0]) for nll, _ in alone], rel=1e-4)
    assert counts.tolist() == [float(count[0]) for _, count in alone]


@pytest.mark.parametrize("training", [True, False])
def test_a_look_leaves_the_net_as_it_was(net, chat, training):
    net.train(training)
    likelihood(net, [one.group for one in make_items([row(1)], chat, None)], 128)
    assert net.training is training


def test_the_loss_is_a_mean_over_tokens_not_over_rows():
    assert Sitting([], [], np.array([2.0, 8.0]), np.array([1.0, 9.0])).loss == 1.0


def test_perplexity_is_the_exponential_of_the_loss_and_never_overflows():
    assert Sitting([], [], np.array([2.0]), np.array([1.0])).perplexity == pytest.approx(math.e**2)
    assert Sitting([], [], np.array([1e9]), np.array([1.0])).perplexity < math.inf


# Sitting the exam ----------------------------------------------------------------------------------------------------


def test_a_model_sits_every_item_in_its_order(net, chat, tokenizer):
    exam = Exam(make_items([row(1), row(2), row(3)], chat, None), scorer_for("generate"), 4, 128)
    told = []
    sat = exam.sit(net, Sampler(net.model, tokenizer, chat.end_ids), told.append)
    assert [len(part) for part in (sat.answers, sat.scores, sat.nll, sat.trained)] == [3, 3, 3, 3]
    assert told[-1] == 3


def test_plain_text_is_scored_by_one_over_its_perplexity(net, chat, tokenizer):
    exam = Exam(make_items([text(1), text(2)], chat, None), None, 4, 128)
    sat = exam.sit(net, Sampler(net.model, tokenizer, chat.end_ids))
    wanted = [math.exp(-nll / count) for nll, count in zip(sat.nll, sat.trained, strict=True)]
    assert [score["inverse_perplexity"] for score in sat.scores] == pytest.approx(wanted)
    assert exam.figures(sat) == {"inverse_perplexity": pytest.approx(np.mean(wanted))}


def test_a_short_exam_is_the_beginning_of_the_long_one():
    exam = exam_of(["a", "b", "c"])
    assert exam.first(2).items == exam.items[:2]
    assert exam.first(9).items == exam.items


# Comparing -----------------------------------------------------------------------------------------------------------


def test_a_gain_is_the_difference_of_the_two_figures():
    exam = exam_of(["a"] * 10)
    found = compare(exam, sitting(exam, ["a"] * 2 + ["b"] * 8), sitting(exam, ["a"] * 9 + ["b"]), seed=0)
    assert (found["n"], found["base"], found["tuned"]) == (10, 0.2, 0.9)
    assert found["delta"] == pytest.approx(0.7)
    assert found["ci95"][0] < 0.7 < found["ci95"][1]


def test_a_model_held_against_itself_gains_nothing():
    exam = exam_of(["a"] * 10)
    answers = ["a", "b"] * 5
    found = compare(exam, sitting(exam, answers), sitting(exam, answers), seed=0)
    assert found["delta"] == 0
    assert found["ci95"][0] <= 0 <= found["ci95"][1]


def test_swapping_the_models_turns_the_gain_around():
    exam = exam_of(["a"] * 12)
    one, other = sitting(exam, ["a"] * 9 + ["b"] * 3), sitting(exam, ["b"] * 9 + ["a"] * 3)
    assert compare(exam, one, other, seed=0)["delta"] == pytest.approx(-compare(exam, other, one, seed=0)["delta"])


def test_items_of_one_cluster_count_as_one():
    answers = (["b"] * 12, ["a"] * 6 + ["b"] * 6)
    alone, clustered = (
        compare(exam, *(sitting(exam, answer) for answer in answers), seed=0)
        for exam in (exam_of(["a"] * 12), exam_of(["a"] * 12, clusters=["one"] * 6 + ["two"] * 6))
    )
    assert (alone["clusters"], clustered["clusters"]) == (12, 2)
    assert clustered["ci95"][1] - clustered["ci95"][0] > alone["ci95"][1] - alone["ci95"][0]


def test_the_same_seed_gives_the_same_interval():
    exam = exam_of(["a"] * 20, kind="classify", labels=["a", "b"])
    base, tuned = sitting(exam, ["a", "b"] * 10), sitting(exam, ["a"] * 15 + ["b"] * 5)
    assert compare(exam, base, tuned, seed=3) == compare(exam, base, tuned, seed=3)


@pytest.mark.parametrize("metric", ["accuracy", "macro_f1"])
def test_the_chosen_metric_is_the_main_one_and_the_others_stand_beside_it(metric):
    exam = exam_of(["a", "b"] * 10, kind="classify", metric=metric, labels=["a", "b"])
    found = compare(exam, sitting(exam, ["a"] * 20), sitting(exam, ["a", "b"] * 10), seed=0)
    assert (found["metric"], found["tuned"]) == (metric, 1.0)
    assert found["ci95"][0] > 0
    assert {"accuracy", "macro_f1"} - {metric} <= {figure["name"] for figure in found["figures"]}
    assert metric not in {figure["name"] for figure in found["figures"]}


def test_examples_show_losses_as_well_as_gains():
    exam = exam_of(["a"] * 60)
    base = sitting(exam, ["b"] * 50 + ["a"] * 10)
    tuned = sitting(exam, ["a"] * 50 + ["b"] * 10)
    examples = compare(exam, base, tuned, seed=0)["examples"]
    changes = [example["tuned_score"] - example["base_score"] for example in examples]
    assert changes.count(-1) == 8
    assert changes.count(1) == 16


def test_a_small_exam_shows_each_item_once():
    exam = exam_of(["a"] * 5)
    examples = compare(exam, sitting(exam, ["b"] * 5), sitting(exam, ["a"] * 5), seed=0)["examples"]
    assert sorted(example["where"] for example in examples) == [f"rows.jsonl:{number}" for number in range(5)]


def test_a_comparison_can_be_written_as_json():
    import json

    exam = exam_of(["a"])
    found = compare(exam, sitting(exam, ["a"]), sitting(exam, ["b"]), seed=0)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
