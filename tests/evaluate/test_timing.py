"""Times of single answers, and when a student is worth them."""

from __future__ import annotations

import pytest

from burnish.evaluate.timing import WARM, promise, ratio_of, summary_of, time_answers, time_in_turn


def test_each_prompt_is_timed_once_after_some_that_are_not():
    asked = []
    found = time_answers(asked.append, [1, 2, 3])
    assert asked == [*[1, 2][:WARM], 1, 2, 3]
    assert len(found) == 3
    assert all(seconds >= 0 for seconds in found)


def test_two_that_are_compared_answer_in_turn():
    asked = []
    ours, theirs = time_in_turn(asked.append, lambda one: asked.append(-one), [(1, 1), (2, 2), (3, 3)])
    assert asked[2 * WARM :] == [1, -1, 2, -2, 3, -3]
    assert (len(ours), len(theirs)) == (3, 3)


def test_a_ratio_of_times_lies_within_its_interval():
    ratio, (low, high) = ratio_of([1.0, 1.1, 0.9, 1.2, 1.0, 1.3], [0.5, 0.6, 0.4, 0.7, 0.5, 0.6])
    assert ratio == pytest.approx(0.55 / 1.05)
    assert 0.3 < low < ratio < high < 0.8
    assert ratio_of([2.0] * 5, [1.0] * 5) == (0.5, (0.5, 0.5))


@pytest.mark.parametrize(
    ("student", "ci95", "delta", "held"),
    [
        (0.4, [-0.01, 0.02], 0.0, "yes"),
        (0.6, [-0.01, 0.02], 0.0, "no"),  # too slow
        (0.4, [-0.2, -0.1], -0.15, "no"),  # worse
        (0.4, [-0.1, 0.1], 0.0, "unclear"),  # too few rows to tell
        (0.4, [-0.1, 0.01], -0.05, "no"),  # most likely worse by more than the margin
    ],
)
def test_the_promise_is_half_the_time_at_no_lower_quality(student, ci95, delta, held):
    compared = {"base": 0.8, "tuned": 0.8 + delta, "ci95": ci95, "delta": delta}
    found = promise(compared, [1.0, 1.0], [student, student])
    assert found["half_the_time_no_lower"] == held
    assert found["time_ratio"] == student


def test_a_teacher_without_any_success_has_no_share_to_keep():
    compared = {"base": 0.0, "tuned": 0.1, "ci95": [0.0, 0.2], "delta": 0.1}
    assert promise(compared, [1.0], [0.3])["retained"] is None


def test_median_and_ninetieth_percentile():
    assert summary_of([1.0, 2.0, 3.0, 4.0, 5.0]) == {"median": 3.0, "p90": pytest.approx(4.6)}
