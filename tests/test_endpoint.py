"""The client of an endpoint, against a small server on this machine."""

from __future__ import annotations

import contextlib
import time

import pytest

from burnish.endpoint import Answers, Endpoint, Reply
from burnish.errors import EndpointError
from endpoints import reply, said, serving

HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def serve():
    """A function from replies to a server that gives them, as `Server` has it."""
    with contextlib.ExitStack() as servers:
        yield lambda *replies: servers.enter_context(serving(*replies))


def endpoint(server, **values):
    waits = []
    made = Endpoint(**{"url": server.url, "model": "small", "wait": waits.append, **values})
    return made, waits


def test_an_answer_is_the_content_of_the_first_choice(serve):
    server = serve(said("  Good day. \n"))
    one, _ = endpoint(server)
    assert one.complete(HELLO, temperature=0.5, max_tokens=9).text == "  Good day. \n"
    assert server.seen == [
        ("/v1/chat/completions", {"model": "small", "messages": HELLO, "temperature": 0.5, "max_tokens": 9})
    ]


def test_the_key_comes_from_the_environment(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "top-secret")
    server = serve(said("yes"))
    endpoint(server, key_env="SOME_KEY")[0].complete(HELLO)
    assert server.headers[0]["Authorization"] == "Bearer top-secret"


@pytest.mark.parametrize("key", ["top-secret\r", " top-secret\n"])
def test_white_space_around_a_key_is_no_part_of_it(serve, monkeypatch, key):
    monkeypatch.setenv("SOME_KEY", key)
    server = serve(said("yes"))
    endpoint(server, key_env="SOME_KEY")[0].complete(HELLO)
    assert server.headers[0]["Authorization"] == "Bearer top-secret"


def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "top-secret’s")
    with pytest.raises(EndpointError, match="SOME_KEY cannot be sent") as caught:
        Endpoint("http://localhost/v1", "small", key_env="SOME_KEY")
    assert "secret" not in str(caught.value)


def test_a_key_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with pytest.raises(EndpointError, match="SOME_KEY is not set"):
        Endpoint("http://localhost/v1", "small", key_env="SOME_KEY")


def test_an_address_that_is_none_is_refused():
    with pytest.raises(EndpointError, match="found 'localhost:8000'"):
        Endpoint("localhost:8000", "small")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_endpoint_is_asked_again_after_ever_longer_pauses(serve, status):
    server = serve((status, {}), (status, {}), said("at last"))
    one, waits = endpoint(server)
    assert one.complete(HELLO).text == "at last"
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1 <= waits[1] <= 2


def test_a_pause_that_the_endpoint_names_is_kept(serve):
    one, waits = endpoint(serve((429, {}, {"Retry-After": "7"}), said("at last")))
    assert one.complete(HELLO).text == "at last"
    assert waits == [7.0]


def test_after_the_last_attempt_the_error_says_what_came(serve):
    server = serve((503, {"error": "overloaded"}))
    one, waits = endpoint(server, retries=2)
    with pytest.raises(EndpointError, match=r"HTTP 503.*overloaded"):
        one.complete(HELLO)
    assert (len(server.seen), len(waits)) == (3, 2)


def test_a_wrong_question_is_not_asked_again(serve):
    server = serve((400, {"error": "too long"}))
    with pytest.raises(EndpointError, match=r"HTTP 400.*too long"):
        endpoint(server)[0].complete(HELLO)
    assert len(server.seen) == 1


def test_an_error_never_shows_the_key(serve, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "top-secret")
    server = serve((401, {"error": "invalid key top-secret"}))
    with pytest.raises(EndpointError, match="HTTP 401") as caught:
        endpoint(server, key_env="SOME_KEY")[0].complete(HELLO)
    assert "top-secret" not in str(caught.value)
    assert "SOME_KEY" in caught.value.hint


def test_silence_is_a_time_out(serve):
    one, _ = endpoint(serve(0.5), timeout=0.05, retries=1)
    with pytest.raises(EndpointError, match=r"no answer within 0\.05 s"):
        one.complete(HELLO)


def test_a_connection_that_breaks_off_is_tried_again(serve):
    server = serve(0.0, said("at last"))
    one, waits = endpoint(server)
    assert one.complete(HELLO).text == "at last"
    assert len(waits) == 1


def test_an_address_that_cannot_be_read_is_told():
    with pytest.raises(EndpointError, match="this is no address"):
        Endpoint("http://localhost:port/v1", "small").complete(HELLO)


@pytest.mark.parametrize("nonsense", [b"<html>", {"choices": []}, {"choices": [{"message": {"content": 7}}]}, [1]])
def test_nonsense_is_an_error(serve, nonsense):
    server = serve((200, nonsense))
    with pytest.raises(EndpointError, match=r"this is no answer.*3 tries"):
        endpoint(server, retries=2)[0].complete(HELLO)
    assert len(server.seen) == 3


def test_nobody_there_is_told_at_once_and_for_all():
    one = Endpoint("http://127.0.0.1:1/v1", "small", wait=lambda pause: pytest.fail("it waited"))
    with pytest.raises(EndpointError, match="it cannot be reached"):
        one.complete_all([HELLO] * 5)


def test_an_endpoint_that_answered_before_may_be_starting_anew(serve):
    server = serve(said("yes"))
    one, waits = endpoint(server, retries=2)
    one.complete(HELLO)
    server.stop()
    with pytest.raises(EndpointError, match=r"it cannot be reached.*3 tries"):
        one.complete([{"role": "user", "content": "Still there?"}])
    assert len(waits) == 2


def conversations(count):
    return [[{"role": "user", "content": f"Number {n}"}] for n in range(count)]


def echo(body):
    return said(body["messages"][0]["content"].upper())


def test_answers_come_in_the_order_of_the_questions_several_at_once(serve):
    def slowly(body):
        time.sleep(0.05)
        return echo(body)

    server = serve(slowly)
    answers = endpoint(server, at_once=4)[0].complete_all(conversations(12))
    assert answers == [Reply(f"NUMBER {n}") for n in range(12)]
    assert 1 < server.most <= 4


def test_equal_questions_are_one(serve):
    server = serve(echo)
    found = endpoint(server)[0].complete_all([*conversations(2), *conversations(3)])
    assert [one.text for one in found] == [f"NUMBER {n}" for n in (0, 1, 0, 1, 2)]
    assert len(server.seen) == 3


def test_an_error_stands_in_the_place_of_the_answer(serve):
    server = serve(lambda body: (400, {}) if "3" in body["messages"][0]["content"] else echo(body))
    answers = endpoint(server)[0].complete_all(conversations(5))
    assert [isinstance(one, EndpointError) for one in answers] == [False, False, False, True, False]


def test_a_refused_key_ends_it_for_all_questions(serve):
    server = serve((403, {}))
    with pytest.raises(EndpointError, match="HTTP 403"):
        endpoint(server, at_once=1)[0].complete_all(conversations(20))
    assert len(server.seen) == 1


def test_nothing_is_asked_twice(serve, tmp_path):
    server = serve(echo)
    one, _ = endpoint(server, answers=Answers(tmp_path / "answers.jsonl"))
    first = one.complete_all(conversations(4), temperature=0.1)
    again = endpoint(server, answers=Answers(tmp_path / "answers.jsonl"))[0].complete_all(
        conversations(4), temperature=0.1
    )
    assert first == again
    assert len(server.seen) == 4
    one.complete(conversations(1)[0], temperature=0.2)
    assert len(server.seen) == 5


def test_a_line_that_a_kill_cut_short_is_asked_again(serve, tmp_path):
    server, file = serve(echo), tmp_path / "answers.jsonl"
    endpoint(server, answers=Answers(file))[0].complete_all(conversations(4))
    file.write_text(file.read_text()[:-20])
    for _ in range(2):
        found = endpoint(server, answers=Answers(file))[0].complete_all(conversations(4))
        assert [one.text for one in found] == [f"NUMBER {n}" for n in range(4)]
    assert len(server.seen) == 5


def test_a_failure_is_not_kept(serve, tmp_path):
    server = serve((400, {}), said("yes"))
    one, _ = endpoint(server, answers=Answers(tmp_path / "answers.jsonl"))
    with pytest.raises(EndpointError):
        one.complete(HELLO)
    assert one.complete(HELLO).text == "yes"


def test_where_every_answer_is_needed_the_first_error_ends_it_and_what_came_is_kept(serve, tmp_path):
    server = serve(lambda body: (400, {}) if "3" in body["messages"][0]["content"] else echo(body))
    answers, seen = Answers(tmp_path / "answers.jsonl"), []
    with pytest.raises(EndpointError, match="HTTP 400"):
        endpoint(server, at_once=1, answers=answers)[0].complete_all(conversations(9), every=True, progress=seen.append)
    assert len(answers.kept) == 3
    assert (seen, len(server.seen)) == ([1, 2, 3], 4)


def test_log_probabilities_come_with_the_tokens_or_not_at_all(serve):
    tokens = [("o", -0.1, [("o", -0.1), ("a", -3.0)]), ("k", -0.2, [])]
    wanted = {"logprobs": True, "top_logprobs": 2}
    found = endpoint(serve((200, reply("ok", tokens=tokens))))[0].complete(HELLO, **wanted)
    assert found.tokens == [["o", -0.1, [["o", -0.1], ["a", -3.0]]], ["k", -0.2, []]]
    one, waits = endpoint(serve(said("ok")))
    with pytest.raises(EndpointError, match="no log-probabilities") as caught:
        one.complete(HELLO, **wanted)
    assert (caught.value.lacks, caught.value.hint) == ("logprobs", "")  # what to do about it, whoever asked knows
    assert waits == []  # it will have none later either


def test_an_answer_of_nothing_is_empty_and_is_asked_for_again(serve):
    one, _ = endpoint(serve(said(None), said("yes")), answers=Answers())
    assert [one.complete(HELLO).text for _ in range(3)] == ["", "yes", "yes"]


def test_an_answer_that_was_cut_off_is_known_for_one(serve):
    server = serve((200, reply("and then", finish="length")))
    assert endpoint(server)[0].complete(HELLO) == Reply("and then", ended=False)
