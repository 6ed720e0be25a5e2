from __future__ import annotations

import os
import signal
import threading

import pytest

from burnish.errors import Interrupted
from burnish.train.hooks import Record, StopSignal, Validate, Validation
from burnish.train.loop import Step


def step_at(number, **stats):
    return Step(number, 10, 2.5, stats, 0.5, 1e-4, 100, 40, 0.25, ("rows.jsonl:1",))


def look_at(step, metric=0.0, loss=1.0):
    return Validation(step, loss, metric, {}, [])


def test_a_look_is_taken_only_when_due_and_once():
    looked = []
    validate = Validate(lambda step: looked.append(step) or look_at(step), frozenset({2, 4}), patience=9)
    for number in (1, 2, 2, 3, 4):
        validate.after(step_at(number))
    assert looked == [2, 4]


@pytest.mark.parametrize(
    ("metrics", "patience", "stops"),
    [
        ([0.1, 0.2, 0.3], 1, False),
        ([0.3, 0.2], 1, True),
        ([0.3, 0.2], 2, False),
        ([0.1, 0.3, 0.2, 0.2], 2, True),
        ([], 1, False),
    ],
)
def test_patience_counts_looks_since_the_best(metrics, patience, stops):
    validate = Validate(look_at, frozenset(), patience, [look_at(step, metric) for step, metric in enumerate(metrics)])
    assert bool(validate.reason_to_stop) == stops


def test_the_first_of_equal_looks_is_best():
    validate = Validate(look_at, frozenset(), 3, [look_at(step, 0.5) for step in (2, 4, 6)])
    assert validate.best.step == 2


def test_a_metric_that_differs_within_its_noise_leaves_it_to_the_loss():
    first = Validation(0, 2.0, 0.50, {}, [], [1.0, 0.0, 1.0, 0.0])
    second = Validation(3, 1.0, 0.25, {}, [], [0.0, 0.0, 0.0, 1.0])
    assert Validate(look_at, frozenset(), 3, [first, second]).best is second


def test_level_looks_with_probabilities_are_told_apart_by_the_brier_score_and_not_by_a_loss_that_a_few_answers_make():
    scores = ([1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 1.0])
    first = Validation(3, 0.5, 0.5, {}, [], scores[0], brier=0.4)
    second = Validation(6, 0.9, 0.5, {}, [], scores[1], brier=0.3)
    assert Validate(look_at, frozenset(), 3, [first, second]).best is second
    assert second.value > first.value


def test_a_metric_that_is_clearly_better_wins_against_a_higher_loss():
    first = Validation(0, 1.0, 0.0, {}, [], [0.0] * 16)
    second = Validation(3, 2.0, 0.75, {}, [], [1.0] * 12 + [0.0] * 4)
    assert Validate(look_at, frozenset(), 3, [first, second]).best is second


def test_a_look_whose_weights_are_lost_is_not_the_best():
    validate = Validate(look_at, frozenset(), 3, [look_at(2, 0.9), look_at(4, 0.5)], lost={2})
    assert validate.best.step == 4


def test_each_step_is_a_line_of_the_metrics(tmp_path):
    record = Record(tmp_path / "metrics.jsonl")
    for number in (1, 2):
        record.after(step_at(number, accuracy=0.5))
    assert [line["step"] for line in record.lines()] == [1, 2]
    assert record.lines()[0]["accuracy"] == 0.5


def test_lines_of_steps_that_were_lost_are_dropped(tmp_path):
    record = Record(tmp_path / "metrics.jsonl")
    for number in (1, 2, 3):
        record.after(step_at(number))
    record.begin(2)
    assert [line["step"] for line in record.lines()] == [1, 2]


def test_a_line_cut_by_a_kill_is_passed_over(tmp_path):
    record = Record(tmp_path / "metrics.jsonl")
    record.after(step_at(1))
    with record.path.open("a") as file:
        file.write('{"step": 2, "lo')
    assert [line["step"] for line in record.lines()] == [1]
    record.begin(1)
    record.after(step_at(2))
    assert [line["step"] for line in record.lines()] == [1, 2]


def test_trackers_get_numbers_alone(tmp_path):
    class Tracker:
        seen = []

        def log(self, values, step):
            self.seen.append((step, values))

    Record(tmp_path / "metrics.jsonl", [Tracker()]).write(3, {"loss": 2, "answers": ["a"]})
    assert Tracker.seen == [(3, {"loss": 2.0})]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_acted_on_at_once_where_nothing_can_be_lost(number):
    stop = StopSignal()
    with stop.watching(), pytest.raises(Interrupted, match=number.name):
        os.kill(os.getpid(), number)


def test_a_signal_is_only_noted_where_weights_are_changed():
    stop = StopSignal()
    with stop.watching(), stop.held():
        assert stop.after(step_at(1)) is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.after(step_at(2)) == "stopped by SIGTERM"


def test_a_signal_that_was_noted_is_acted_on_where_nothing_can_be_lost_again():
    stop = StopSignal()
    with stop.watching(), stop.held():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted), stop.held(hold=False):
            pytest.fail("the block was entered")


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignal().watching():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_thread_signals_are_left_alone():
    failures = []

    def run():
        try:
            with StopSignal().watching():
                pass
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert failures == []


def looks_of(**metrics):
    """Looks at several tasks: task -> its metric at each look."""
    count = len(next(iter(metrics.values())))
    return [
        Validation(
            step,
            1.0,
            sum(values[step] for values in metrics.values()) / len(metrics),
            {},
            [],
            [],
            {name: {"loss": 1.0, "metric": values[step], "scores": []} for name, values in metrics.items()},
        )
        for step in range(count)
    ]


def validate_with(history, patience=2):
    return Validate(lambda step: history[step], frozenset(), patience, history=history)


def test_a_task_that_goes_on_getting_better_keeps_the_others_going():
    validate = validate_with(looks_of(risen=[0.1, 0.2, 0.3, 0.4], fallen=[0.9, 0.5, 0.2, 0.1]))
    assert validate.best.step == 0
    assert validate.reason_to_stop is None
    assert validate.standing()["fallen"]["said"] == "falls since step 0"
    assert validate.standing()["risen"]["said"] == ""


def test_training_stops_once_every_task_has_stopped_getting_better():
    validate = validate_with(looks_of(one=[0.1, 0.4, 0.4, 0.4], other=[0.9, 0.5, 0.2, 0.1]))
    assert validate.reason_to_stop == "no task better for 2 validations"
    assert validate.standing()["one"]["said"] == "no better since step 1"


# Whoever may end a training ------------------------------------------------------------------------------------------


def test_a_judge_ends_the_training_after_a_look_and_says_why():
    seen = []

    def judge(history):
        seen.append([look.step for look in history])
        return "behind" if len(history) == 2 else None

    validate = Validate(lambda step: Validation(step, 1.0, 0.5, {}, []), frozenset({0, 4, 8}), 9, judge=judge)
    reasons = []
    for step in (0, 2, 4):
        validate.look(step)
        reasons.append(validate.reason_to_stop)
    assert reasons == [None, None, "behind"]
    assert seen == [[0], [0, 4]]


def test_the_loss_ranks_what_the_metric_does_not():
    worse, better, other = (
        Validation(1, loss, metric, {}, []) for loss, metric in ((2.0, 0.5), (1.0, 0.5), (9.0, 0.51))
    )
    assert worse.value < better.value < other.value
    assert Validation(1, float("nan"), 0.5, {}, []).value == 0.5
