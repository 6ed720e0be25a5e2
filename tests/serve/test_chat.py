"""The conversation with a tuned model."""

from __future__ import annotations

import pytest

from burnish.data.rows import Turn
from burnish.serve.chat import Conversation


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
