from __future__ import annotations

import numpy as np
import pytest

from burnish.evaluate.runner import Exam, Item, Sitting
from burnish.evaluate.stats import paired_difference, stratified_difference
from burnish.evaluate.tasks import MEAN, compare_all, held_against, some, together
from burnish.scoring import scorer_for

SIZES = {"large": 40, "small": 10}
SHARES = {"large": 0.75, "small": 0.25}


class Asked(Exam):
    """An exam that gives its references back for the first `right` items."""

    def sit(self, net, sampler, progress=lambda done: None):
        answers = [item.reference if n < net else "?" for n, item in enumerate(self.items)]
        scores = [self.scorer.score(answer, item.reference) for answer, item in zip(answers, self.items, strict=True)]
        progress(len(answers))
        count = len(answers)
        return Sitting(answers, scores, np.full(count, float(count)), np.ones(count))


def exam_of(name, count):
    items = [Item(f"{name}:{n}", f"q{n}", f"a{n}", [], [], f"{name}:{n}") for n in range(count)]
    return Asked(items, scorer_for("generate", "exact_match"), 8, 64)


@pytest.fixture
def exam():
    return together({name: exam_of(name, count) for name, count in SIZES.items()}, SHARES)


def test_the_metric_is_the_mean_of_the_tasks_whatever_their_sizes(exam):
    sitting = exam.sit(10, None)
    figures = exam.figures(sitting)
    assert figures[MEAN] == pytest.approx((10 / 40 + 1) / 2)
    assert figures["large/exact_match"] == pytest.approx(10 / 40)
    assert np.mean([score[MEAN] for score in sitting.scores]) == pytest.approx(figures[MEAN])


def test_the_loss_is_that_of_the_tasks_by_their_shares_as_in_training(exam):
    assert exam.sit(0, None).loss == pytest.approx(0.75 * 40 + 0.25 * 10)


def test_one_exam_alone_is_itself():
    own = exam_of("only", 3)
    assert together({"main": own}, {"main": 1.0}) is own


def test_a_task_without_items_is_left_out_of_the_mean():
    exam = together({"asked": exam_of("asked", 4), "empty": exam_of("empty", 0)}, {"asked": 0.5, "empty": 0.5})
    assert exam.figures(exam.sit(2, None)) == {MEAN: 0.5, "asked/exact_match": 0.5} | {
        name: value
        for name, value in exam.figures(exam.sit(2, None)).items()
        if name not in (MEAN, "asked/exact_match")
    }


def test_the_first_items_are_the_first_of_each_task(exam):
    assert [item.where for item in exam.first(2).items] == ["large:0", "large:1", "small:0", "small:1"]


def test_progress_counts_the_items_of_all_tasks(exam):
    seen = []
    exam.sit(0, None, seen.append)
    assert seen == [40, 50]


def test_every_task_is_compared_and_so_is_the_mean(exam):
    found = compare_all(exam, exam.sit(0, None), exam.sit(10, None), seed=0)
    assert {name: one["delta"] for name, one in found["tasks"].items()} == pytest.approx({"large": 0.25, "small": 1.0})
    assert found["delta"] == pytest.approx(0.625)
    low, high = found["ci95"]
    assert 0 < low < 0.625 < high
    assert {example["task"] for example in found["examples"]} == {"large", "small"}


def test_the_mean_of_one_stratum_is_its_paired_difference():
    base, tuned = [0, 0, 1, 0, 1, 0], [1, 0, 1, 1, 1, 0]
    own, mean = paired_difference(base, tuned), stratified_difference([(base, tuned, range(6))])
    assert (mean.delta, mean.ci95.low, mean.ci95.high) == pytest.approx((own.delta, own.ci95.low, own.ci95.high))


def test_the_interval_of_the_mean_holds_the_truth_as_often_as_it_says():
    rng, held, trials = np.random.default_rng(0), 0, 200
    for trial in range(trials):
        strata = []
        for size, gain in ((30, 0.3), (120, 0.0)):
            base = (rng.random(size) < 0.4).astype(float)
            tuned = np.where(rng.random(size) < gain, 1.0, base)
            strata.append((base, tuned, range(size)))
        interval = stratified_difference(strata, draws=500, seed=trial).ci95
        held += interval.low <= 0.3 * 0.6 / 2 <= interval.high
    assert held / trials >= 0.93


def test_no_strata_are_refused():
    with pytest.raises(ValueError, match="no strata"):
        stratified_difference([])


@pytest.mark.parametrize(
    ("mixed", "alone", "said"),
    [
        ([1.0] * 40, [0.0] * 40, "helps"),
        ([0.0] * 40, [1.0] * 40, "hurts"),
        ([1.0, 0.0] * 20, [1.0, 1.0] + [0.0, 1.0] * 19, "may hurt"),
        ([1.0, 0.0] * 20, [0.0, 1.0] * 20, "no difference seen"),
    ],
)
def test_a_task_is_said_to_be_helped_or_hurt_only_where_the_interval_is_clear_of_zero(mixed, alone, said):
    assert held_against(mixed, alone, list(map(str, range(40))), 0)["said"] == said


def test_some_examples_are_the_best_and_the_worst():
    examples = [{"n": n} for n in range(10)]
    assert [one["n"] for one in some(examples, 3)] == [0, 1, 9]
    assert some(examples[:2], 3) == examples[:2]
