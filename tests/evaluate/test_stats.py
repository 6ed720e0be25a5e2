from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from burnish.evaluate import stats
from burnish.evaluate.stats import (
    Interval,
    detectable_difference,
    holm,
    mcnemar_exact,
    paired_difference,
    wilson,
)

figures = st.floats(0, 1)


# Shares


def test_wilson_gives_the_known_interval_of_0_in_10():
    # By hand: z^2 / (n + z^2) with z^2 = 3.8415.
    assert wilson(0, 10) == Interval(0.0, pytest.approx(3.8415 / 13.8415, abs=1e-4))


@settings(deadline=None)
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_that_of_scipy(counts):
    expected = pytest.importorskip("scipy.stats").binomtest(*counts).proportion_ci(method="wilson")
    found = wilson(*counts)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_wilson_of_nothing_is_the_whole_range():
    assert wilson(0, 0) == Interval(0.0, 1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_what_is_no_count(successes, n):
    with pytest.raises(ValueError, match="out of"):
        wilson(successes, n)


# Tests


@pytest.mark.parametrize(
    ("only_base", "only_tuned", "p_value"),
    [
        (0, 0, 1.0),
        (0, 1, 1.0),
        (0, 8, 2 / 2**8),
        (1, 5, 2 * (1 + 6) / 2**6),
        (5, 5, 1.0),
    ],
)
def test_mcnemar_exact_gives_the_binomial_by_hand(only_base, only_tuned, p_value):
    assert mcnemar_exact(only_base, only_tuned) == pytest.approx(p_value)
    assert mcnemar_exact(only_tuned, only_base) == pytest.approx(p_value)


@pytest.mark.parametrize(("only_base", "only_tuned"), [(3, 17), (900, 1100), (49_500, 50_500)])
def test_mcnemar_exact_equals_the_binomial_test_of_scipy(only_base, only_tuned):
    expected = pytest.importorskip("scipy.stats").binomtest(only_base, only_base + only_tuned).pvalue
    assert mcnemar_exact(only_base, only_tuned) == pytest.approx(expected, rel=1e-6)


def test_mcnemar_exact_refuses_negative_counts():
    with pytest.raises(ValueError, match="no counts"):
        mcnemar_exact(-1, 3)


def test_holm_gives_the_adjusted_values_by_hand():
    # Sorted .005, .01, .03, .04: times 4, 3, 2, 1 is .02, .03, .06, .04, and none may lie below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_one_and_takes_nothing():
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


# What could have been seen


def test_three_points_at_ten_percent_discordant_need_about_860_items():
    # (1.960 + 0.842)^2 * (0.1 - 0.03^2) / 0.03^2 = 864
    assert detectable_difference(864, discordant=0.1) == pytest.approx(0.03, abs=1e-5)
    assert detectable_difference(860, discordant=0.1) == pytest.approx(0.03, rel=0.01)


def test_a_gain_is_detected_as_often_as_promised():
    n, discordant = 864, 0.1
    gain = detectable_difference(n, discordant)
    chances = [(discordant + gain) / 2, (discordant - gain) / 2, 1 - discordant]
    samples = np.random.default_rng(0).multinomial(n, chances, size=2_000)
    seen = np.mean([mcnemar_exact(int(worse), int(better)) < 0.05 for better, worse, _ in samples])
    assert seen == pytest.approx(0.8, abs=0.05)  # the exact test sees a little less than its normal approximation


def test_more_power_and_fewer_items_need_a_larger_gain():
    assert detectable_difference(100, 0.2, power=0.9) > detectable_difference(100, 0.2, power=0.8)
    assert detectable_difference(50, 0.2) > detectable_difference(100, 0.2)


@pytest.mark.parametrize("discordant", [0.0, 0.02, 0.1])
def test_few_items_never_promise_a_gain_larger_than_the_pairs_that_differ(discordant):
    # With 20 items even a model that never loses a pair needs k^2 / (n + k^2) = 7.849 / 27.849.
    assert detectable_difference(20, discordant) == pytest.approx(0.2818, abs=1e-4)


def test_without_items_nothing_is_detectable():
    assert detectable_difference(0, 0.1) == 1.0


# Paired differences


def test_a_comparison_tells_means_gain_and_what_it_did():
    found = paired_difference([0, 0, 1, 1] * 5, [1, 0, 1, 1] * 5)
    assert (found.n, found.clusters) == (20, 20)
    assert (found.base, found.tuned, found.delta) == (0.5, 0.75, 0.25)
    assert found.p_value == pytest.approx(2 / 2**5)
    assert found.method == "bootstrap over 20 items, 10,000 draws; exact McNemar test"


def test_eight_of_eight_improved_is_no_certainty():
    found = paired_difference([0] * 8, [1] * 8)
    assert found.delta == found.ci95.high == 1
    # With a gain and a loss added, 1 of 10 loses; Student's t moves the percentile to 0.9%, where 4 of 10 drawn lose (by the binomial).
    assert found.ci95.low == pytest.approx(0.2)
    assert found.p_value == pytest.approx(2 / 2**8)


def test_three_of_three_improved_proves_nothing():
    found = paired_difference([0] * 3, [1] * 3)
    assert found.ci95.low < 0
    assert found.p_value == pytest.approx(0.25)


@pytest.mark.parametrize(("n", "least"), [(8, 0.2), (30, 0.08), (300, 0.008)])
def test_no_difference_at_all_still_leaves_room_for_rare_ones(n, least):
    found = paired_difference([1] * n, [1] * n)
    # The rule of three: what never happened in n items may happen in 3 / n of them.
    assert found.ci95.low == pytest.approx(-found.ci95.high, abs=0.05)
    assert least < found.ci95.high < 6 / n
    assert found.p_value == 1
    assert found.detectable > 0


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_items_tell_nothing(n):
    found = paired_difference([0.0] * n, [1.0] * n)
    assert found.ci95 == Interval(-1.0, 1.0)
    assert (found.p_value, found.detectable) == (1.0, 1.0)


def test_many_items_of_one_cluster_tell_nothing():
    found = paired_difference([0] * 50, [1] * 50, ["one person"] * 50)
    assert (found.ci95, found.p_value, found.clusters) == (Interval(-1.0, 1.0), 1.0, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(figures, figures, st.integers(0, 4)), max_size=25))
def test_the_interval_holds_the_gain_and_stays_in_its_range(items):
    base, tuned, clusters = zip(*items, strict=True) if items else ((), (), ())
    found = paired_difference(base, tuned, clusters, draws=200)
    assert -1 <= found.ci95.low <= found.delta <= found.ci95.high <= 1
    assert 0 < found.p_value <= 1


@pytest.mark.parametrize("gain", [0.1, -0.1, 0.7, -0.7])
def test_rounding_never_puts_an_equal_gain_outside_its_interval(gain):
    for n in range(2, 40):
        found = paired_difference([max(0, -gain)] * n, [max(0, gain)] * n, draws=100)
        assert found.ci95.low <= found.delta <= found.ci95.high


def test_the_same_seed_gives_the_same_comparison():
    base, tuned = np.random.default_rng(0).random((2, 40))
    assert paired_difference(base, tuned, seed=3) == paired_difference(base, tuned, seed=3)
    assert paired_difference(base, tuned, seed=3).ci95 != paired_difference(base, tuned, seed=4).ci95


def test_swapping_the_models_mirrors_the_comparison():
    base, tuned = np.random.default_rng(0).random((2, 60))
    there, back = paired_difference(base, tuned), paired_difference(tuned, base)
    assert back.ci95.low == pytest.approx(-there.ci95.high, abs=0.01)
    assert back.p_value == there.p_value


def test_copies_of_items_in_their_clusters_add_no_evidence():
    base, tuned = np.random.default_rng(0).random((2, 30))
    once = paired_difference(base, tuned)
    copied = paired_difference(np.repeat(base, 5), np.repeat(tuned, 5), np.repeat(np.arange(30), 5).tolist())
    assert (copied.n, copied.clusters) == (150, 30)
    assert (copied.ci95.low, copied.ci95.high) == pytest.approx((once.ci95.low, once.ci95.high))
    assert copied.p_value == pytest.approx(once.p_value, abs=0.02)
    assert copied.detectable == pytest.approx(once.detectable)


def test_each_item_weighs_the_same_whatever_the_size_of_its_cluster():
    base, tuned, clusters = [0.0] * 10, [1.0] * 8 + [0.0, 0.0], ["large"] * 8 + ["small", "tiny"]
    assert paired_difference(base, tuned, clusters).delta == pytest.approx(0.8)


def test_clusters_of_0_1_figures_are_tested_by_sign_flips():
    found = paired_difference([0] * 40, [1] * 40, [item // 4 for item in range(40)])
    assert found.method == "bootstrap over 10 clusters, 10,000 draws; sign-flip permutation test"
    assert found.p_value == pytest.approx(2 / 2**10, abs=0.0015)  # McNemar on 40 items would say 2e-12


def test_sign_flips_equal_all_arrangements_counted_by_hand():
    # Differences .1, .2, .3, .4: of 16 arrangements 2 reach 1.0, so p = 1/8.
    found = paired_difference([0] * 4, [0.1, 0.2, 0.3, 0.4], draws=20_000)
    assert found.p_value == pytest.approx(1 / 8, abs=0.01)


def test_a_p_value_is_never_zero():
    found = paired_difference([0.1] * 60, [0.9] * 60, draws=500)
    assert found.p_value == pytest.approx(1 / 501)


@pytest.mark.parametrize(
    ("chances", "n"), [((0.25, 0.15), 15), ((0.6, 0.05), 15), ((0.9, 0.0), 30), ((0.1, 0.05), 30), ((0.4, 0.1), 100)]
)
def test_the_interval_holds_the_truth_in_nearly_95_percent_of_samples(chances, n):
    better, worse = chances
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        difference = rng.choice([1.0, -1.0, 0.0], n, p=[better, worse, 1 - better - worse])
        interval = stats.bootstrap_interval(difference, np.ones(n), 600, rng)
        held += interval.low - 1e-9 <= better - worse <= interval.high + 1e-9
    assert held / 200 >= 0.92


def test_students_t_equals_that_of_scipy():
    expected = pytest.importorskip("scipy.stats").t.ppf(0.975, [3, 4, 10, 1000])
    assert [stats._student_t(freedom) for freedom in (3, 4, 10, 1000)] == pytest.approx(expected, rel=0.0015)


def test_a_hundred_thousand_items_need_less_than_50_mb():
    base, tuned = np.random.default_rng(0).random((2, 100_000))
    clusters = [f"tickets.jsonl:{item // 2}" for item in range(100_000)]
    tracemalloc.start()
    paired_difference(base, tuned, clusters, draws=300)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50 * 2**20


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -0.1, 1.1, 100.0])
def test_figures_outside_0_to_1_are_refused(bad):
    with pytest.raises(ValueError, match=r"0\.\.1"):
        paired_difference([0.5, bad], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"0\.\.1"):
        paired_difference([0.5, 0.5], [0.5, bad])


@pytest.mark.parametrize(
    ("base", "tuned", "clusters"), [([1], [1, 0], None), ([1, 0], [1, 0], ["a"]), ([[1, 0]], [[1, 0]], None)]
)
def test_unequal_lengths_are_refused(base, tuned, clusters):
    with pytest.raises(ValueError, match="one of each per item"):
        paired_difference(base, tuned, clusters)
