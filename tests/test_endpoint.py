"""An endpoint that answers, dawdles, refuses or raves: what is tried again, what is kept, and what is said of it."""

from __future__ import annotations

import json

import pytest

from burnish.endpoint import Answers, Endpoint
from burnish.errors import ModelError
from endpoints import reply, serving

ASKED = [[{"role": "user", "content": f"question {number}"}] for number in range(6)]


def good(number, body):
    return 200, reply(f"to {body['messages'][-1]['content']}"), {}


def endpoint(asked, **options):
    return Endpoint(asked.url, "large", **{"backoff": 0.01, "timeout": 5.0, "retries": 2, **options})


@pytest.fixture
def kept(tmp_path):
    return tmp_path / "answers.jsonl"


def test_every_question_gets_its_own_answer_in_order(kept, monkeypatch):
    monkeypatch.setenv("OWN_KEY", "secret")
    with serving(good) as asked:
        replies = endpoint(asked, key_variable="OWN_KEY").ask(ASKED, Answers(kept), max_tokens=7)
    assert [one.text for one in replies] == [f"to question {number}" for number in range(6)]
    headers, body = asked[0]
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("large", 7, 0)
    assert "secret" not in kept.read_text()


def test_nothing_is_asked_twice(kept):
    with serving(good) as asked:
        first = endpoint(asked).ask(ASKED, Answers(kept), max_tokens=7)
        again = endpoint(asked).ask(ASKED, Answers(kept), max_tokens=7)
        assert len(asked) == 6
        endpoint(asked).ask(ASKED, Answers(kept), max_tokens=8)
        assert len(asked) == 12
    assert again == first


def test_a_line_that_a_kill_cut_short_is_asked_again(kept):
    with serving(good) as asked:
        endpoint(asked).ask(ASKED, Answers(kept), max_tokens=7)
        kept.write_text(kept.read_text()[:-20])
        endpoint(asked).ask(ASKED, Answers(kept), max_tokens=7)
        endpoint(asked).ask(ASKED, Answers(kept), max_tokens=7)
    assert len(asked) == 7


@pytest.mark.parametrize("status", [429, 500, 503])
def test_what_may_pass_is_tried_again(kept, status):
    def answer(number, body):
        return good(number, body) if number > 2 else (status, {"error": "busy"}, {"Retry-After": "0.01"})

    with serving(answer) as asked:
        [found] = endpoint(asked).ask(ASKED[:1], Answers(kept), max_tokens=7)
    assert (found.text, len(asked)) == ("to question 0", 3)


def test_an_endpoint_that_stays_busy_is_an_error_and_what_came_is_kept(kept):
    def answer(number, body):
        return (
            good(number, body) if body["messages"][-1]["content"] != "question 5" else (429, {"error": "slow down"}, {})
        )

    with serving(answer) as asked, pytest.raises(ModelError, match=r"429.*slow down.*3 tries"):
        endpoint(asked, parallel=1).ask(ASKED, Answers(kept), max_tokens=7)
    assert len(Answers(kept).kept) == 5


def test_an_endpoint_that_says_nothing_is_an_error(kept):
    with serving(lambda number, body: 0.5) as asked, pytest.raises(ModelError, match="no answer within"):
        endpoint(asked, timeout=0.1, retries=1).ask(ASKED[:1], Answers(kept), max_tokens=7)


def test_a_refusal_is_not_tried_again_and_names_the_key(kept):
    with (
        serving(lambda number, body: (401, {"error": "no key"}, {})) as asked,
        pytest.raises(ModelError, match="export OPENAI_API_KEY"),
    ):
        endpoint(asked).ask(ASKED[:1], Answers(kept), max_tokens=7)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "raw", [b"<html>busy</html>", b"{}", json.dumps({"choices": []}).encode(), b'{"choices": [7]}']
)
def test_what_is_no_reply_is_an_error(kept, raw):
    with serving(lambda number, body: (200, raw, {})) as asked, pytest.raises(ModelError, match="no reply"):
        endpoint(asked, retries=1).ask(ASKED[:1], Answers(kept), max_tokens=7)
    assert len(asked) == 2


def test_nobody_there_is_an_error(kept):
    nowhere = Endpoint("http://127.0.0.1:9/v1", "large", retries=0)
    with pytest.raises(ModelError, match="cannot be reached"):
        nowhere.ask(ASKED[:1], Answers(kept), max_tokens=7)


def test_log_probabilities_come_with_the_tokens_or_not_at_all(kept):
    tokens = [("o", -0.1, [("o", -0.1), ("a", -3.0)]), ("k", -0.2, [])]
    with serving(lambda number, body: (200, reply("ok", tokens=tokens), {})) as asked:
        [found] = endpoint(asked).ask(ASKED[:1], Answers(kept), max_tokens=7, top_logprobs=2)
    assert found.tokens == [["o", -0.1, [["o", -0.1], ["a", -3.0]]], ["k", -0.2, []]]
    assert asked[0][1]["top_logprobs"] == 2
    with serving(good) as asked, pytest.raises(ModelError, match="no log-probabilities"):
        endpoint(asked).ask(ASKED[:1], Answers(None), max_tokens=7, top_logprobs=2)
