"""The verdict: which findings stop a model, which ship it, and what stands in between."""

from __future__ import annotations

import pytest

from burnish.evaluate.verdict import judge


def evaluation(low, high):
    delta = (low + high) / 2
    return {"metric": "accuracy", "n": 50, "base": 0.5, "tuned": 0.5 + delta, "delta": delta, "ci95": [low, high]}


def guard(status, number=1):
    return {"n": number, "mistake": "a mistake", "status": status, "found": "what was found"}


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.01, 0.2, "ship"),
        (0.0, 0.2, "improve"),
        (-0.1, 0.2, "improve"),
        (-0.2, 0.0, "improve"),
        (0.0, 0.0, "improve"),
        (-0.2, -0.01, "stop"),
    ],
)
def test_the_interval_of_the_gain_decides(low, high, verdict):
    assert judge(evaluation(low, high), [guard("pass")])[0] == verdict


@pytest.mark.parametrize("status", ["pass", "warn", "not_run"])
def test_only_a_failed_guard_keeps_a_better_model_back(status):
    assert judge(evaluation(0.1, 0.2), [guard(status)])[0] == "ship"


def test_a_failed_guard_stops_even_a_better_model():
    verdict, reasons = judge(evaluation(0.1, 0.2), [guard("pass"), guard("fail", number=7)])
    assert verdict == "stop"
    assert reasons[0] == "Guard 7, a mistake: what was found."


def test_what_was_not_compared_is_stopped():
    assert judge(None, [guard("pass")]) == ("stop", ["The run ended before base and tuned were compared."])


def test_a_failed_guard_is_the_reason_where_nothing_was_compared():
    assert judge(None, [guard("fail", number=7)])[1] == ["Guard 7, a mistake: what was found."]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.2), (-0.1, 0.2), (-0.2, -0.1)])
def test_the_reasons_give_the_gain_its_interval_and_the_warnings(low, high):
    reasons = judge(evaluation(low, high), [guard("warn", number=6)])[1]
    assert f"{low:+.3f} to {high:+.3f}" in reasons[0]
    assert "50" in reasons[0]
    assert reasons[1] == "Warning 6, a mistake: what was found."
