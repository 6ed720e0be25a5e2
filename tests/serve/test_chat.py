"""The conversation with a tuned model."""

from __future__ import annotations

import pytest

from burnish.data.rows import Turn
from burnish.serve.chat import Classifier, Conversation, open_run
from tiny_runs import LABELS


class Echo(Conversation):
    """A conversation whose model repeats what it is asked, and counts the turns that it sees."""

    def __init__(self):
        self.turns = ()

    def say(self, text, *, max_new_tokens=256):
        self.turns = (*self.turns, Turn("user", text), Turn("assistant", text))
        return f"{len(self.turns)}: {text}"


@pytest.fixture
def folder(model_folder, make_model, tokenizer, tmp_path):
    """A run's folder that has only `merged/`."""
    make_model().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    return tmp_path


def test_each_line_gets_an_answer_and_blank_ones_none():
    assert list(Echo().answers(iter(["one\n", "\n", "  \n", " two "]))) == ["2: one", "4: two"]


def test_new_forgets_what_was_said():
    assert list(Echo().answers(iter(["one", "/new\n", "two"]))) == ["2: one", "2: two"]


def test_a_conversation_remembers_both_sides(folder):
    model = Conversation(folder, {"task": {"system": "Say ok."}, "artifacts": {"merged": "merged"}})
    answer = model.say("bako", max_new_tokens=3)
    assert model.turns == (Turn("user", "bako"), Turn("assistant", answer))


def test_the_model_is_asked_with_the_system_prompt_of_its_training(folder):
    model = Conversation(folder, {"task": {"system": "Say ok."}, "artifacts": {"merged": "merged"}})
    prompt = model.tokenizer.decode(model.chat.prompt((Turn("user", "bako"),)))
    assert "Say ok." in prompt


def test_the_same_question_gets_the_same_answer(folder):
    report = {"task": {"system": ""}, "artifacts": {"merged": "merged"}}
    first, second = (Conversation(folder, report).say("bako", max_new_tokens=6) for _ in range(2))
    assert first == second


# A score head --------------------------------------------------------------------------------------------------------

CLASSIFIES = {
    "task": {"system": "Sort.", "max_length": 64},
    "artifacts": {"merged": "merged"},
    "model": {"head": {"labels": list(LABELS), "pad": 256, "seed": 0}},
}


@pytest.fixture
def classifier(make_classifier, tokenizer, tmp_path):
    make_classifier().save_pretrained(tmp_path / "merged")
    tokenizer.save_pretrained(tmp_path / "merged")
    return open_run(tmp_path, CLASSIFIES)


def test_a_run_opens_as_what_it_was_trained_for(classifier, folder):
    assert isinstance(classifier, Classifier)
    writes = open_run(folder, {"task": {"system": ""}, "artifacts": {"merged": "merged"}, "model": {}})
    assert isinstance(writes, Conversation)


def test_every_label_has_a_probability_the_likeliest_first(classifier):
    found = classifier.classify("bako ritu")
    assert {label for label, _ in found} == set(LABELS)
    assert sum(probability for _, probability in found) == pytest.approx(1)
    assert found == sorted(found, key=lambda pair: -pair[1])


def test_the_probabilities_are_those_of_the_pipeline_of_plain_transformers(classifier, tmp_path):
    from transformers import pipeline

    [plain] = pipeline("text-classification", str(tmp_path / "merged"))("bako ritu")
    label, probability = classifier.classify("bako ritu")[0]
    assert plain["label"] == label
    assert plain["score"] == pytest.approx(probability, abs=1e-4)


def test_each_line_gets_its_label_and_probability_and_blank_ones_none(classifier):
    answers = list(classifier.answers(iter(["bako\n", "\n", "ritu"])))
    assert len(answers) == 2
    assert answers[0].split("  ")[0] in LABELS
    assert 1 / 3 <= float(answers[0].split("  ")[1]) <= 1
