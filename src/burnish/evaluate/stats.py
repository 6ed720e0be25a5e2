"""Intervals and tests for figures of single items, paired: the same items answered by two models.

Sources: Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640), for paired differences, clusters and sample sizes; Wilson 1927;
McNemar 1947 in its exact form; Bonett and Price 2012 and Hesterberg 2015 (arXiv 1411.5279) for the interval of a difference; Holm 1979.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

TAIL = 0.025  # on either side of a 95% interval
Z = NormalDist().inv_cdf(1 - TAIL)
AT_ONCE = 1_000_000  # numbers drawn at once: 24 MB with what is looked up for them


@dataclass(frozen=True)
class Interval:
    """Bounds that hold the true figure in the share `level` of such samples."""

    low: float
    high: float
    level: float = 0.95


@dataclass(frozen=True)
class Comparison:
    """Two models on the same n items.

    base, tuned: mean figures. delta: tuned - base. ci95: of delta. p_value: of "no difference", two-sided. method: how both were found.
    clusters: how many independent groups the items form. detectable: the gain that 80% of such tests would tell from none.
    """

    n: int
    base: float
    tuned: float
    delta: float
    ci95: Interval
    p_value: float
    method: str
    clusters: int
    detectable: float


def wilson(successes: int, n: int) -> Interval:
    """The 95% interval of a share, which stays within 0..1 and is honest near its ends (Wilson 1927).

    Without items it is the whole range. Raises ValueError where successes are no count out of n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    share, weight = successes / n, 1 / (1 + Z * Z / n)
    middle = weight * (share + Z * Z / (2 * n))
    half = weight * Z * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    # At the ends the bound is 0 or 1 exactly; rounding would leave it a hair inside.
    return Interval(middle - half if successes else 0.0, middle + half if successes < n else 1.0)


def mcnemar_exact(only_base: int, only_tuned: int) -> float:
    """The two-sided p-value of "either model wins a pair on which they differ equally often" (McNemar 1947, exact binomial).

    only_base, only_tuned: the items that only this model has right. Raises ValueError for negative counts.
    """
    n, fewer = only_base + only_tuned, min(only_base, only_tuned)
    if fewer < 0:
        raise ValueError(f"{only_base} and {only_tuned} are no counts")
    # Logarithms, since the binomial coefficients of a large n overflow.
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = math.fsum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(fewer + 1))
    return min(1.0, 2 * tail)


def paired_difference(
    base: ArrayLike,
    tuned: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    draws: int = 10_000,
    seed: int = 0,
) -> Comparison:
    """The gain of tuned over base on the same items, with its 95% interval and p-value.

    base, tuned: (N,) figures of the items, in 0..1. clusters: (N,) keys; items of one key (a person, a document) are not independent, so
    they are drawn and flipped together. The interval is `bootstrap_interval`. The p-value is exact McNemar where the figures are 0 or 1
    and every item is its own cluster, else a sign-flip permutation test. Fewer than two clusters tell nothing: the interval is -1..1.
    Interval and p-value come by different ways, so close to the limit one may see a difference that the other does not.
    Raises ValueError for unequal lengths and for figures outside 0..1 or not a number.
    """
    before, after = np.asarray(base, dtype=np.float64), np.asarray(tuned, dtype=np.float64)
    keys = range(before.size) if clusters is None else clusters
    _check(before, after, len(keys))
    n, difference = before.size, after - before
    places: dict[Hashable, int] = {}
    member = [places.setdefault(key, len(places)) for key in keys]
    groups = len(places)
    means = (float(before.mean()), float(after.mean()), float(difference.mean())) if n else (0.0, 0.0, 0.0)
    if groups < 2:
        return Comparison(n, *means, Interval(-1.0, 1.0), 1.0, "none: fewer than two independent items", groups, 1.0)
    sums = np.bincount(member, difference).astype(np.float64)  # (G,)
    sizes = np.bincount(member).astype(np.float64)  # (G,)
    rng = np.random.default_rng(seed)
    if groups == n and np.isin([before, after], (0, 1)).all():
        p_value = mcnemar_exact(int((difference < 0).sum()), int((difference > 0).sum()))
        test = "exact McNemar test"
    else:
        p_value = _sign_flip(sums, draws, rng)
        test = "sign-flip permutation test"
    unit = "items" if groups == n else "clusters"
    return Comparison(
        n,
        *means,
        bootstrap_interval(sums, sizes, draws, rng),
        p_value,
        f"bootstrap over {groups:,} {unit}, {draws:,} draws; {test}",
        groups,
        min(1.0, (Z + NormalDist().inv_cdf(0.8)) * _standard_error(*_with_doubt(sums, sizes))),
    )


def stratified_difference(
    strata: Sequence[tuple[ArrayLike, ArrayLike, Sequence[Hashable]]], draws: int = 10_000, seed: int = 0
) -> Comparison:
    """The mean over K strata of the gain of tuned over base, each stratum weighing the same whatever its size.

    strata: (base, tuned, clusters) of each, as in `paired_difference`, whose bootstrap draws clusters within one stratum. How far the
    bounds of the K independent intervals lie from their gains adds up by squares, each side for itself (Zou, Huang and Zhang
    2009, "A note on confidence interval estimation for a linear function of binomial proportions"). The p-value is that of a normal
    distribution with the standard error of the mean. Raises ValueError as `paired_difference` does, and without any stratum.
    """
    if not strata:
        raise ValueError("no strata")
    found = [
        paired_difference(base, tuned, clusters, draws, seed + number)
        for number, (base, tuned, clusters) in enumerate(strata)
    ]
    count = len(found)
    base, tuned, delta = (sum(getattr(one, name) for one in found) / count for name in ("base", "tuned", "delta"))
    below = math.hypot(*(one.delta - one.ci95.low for one in found)) / count
    above = math.hypot(*(one.ci95.high - one.delta for one in found)) / count
    detectable = math.hypot(*(one.detectable for one in found)) / count
    error = detectable / (Z + NormalDist().inv_cdf(0.8))
    p_value = 2 * NormalDist().cdf(-abs(delta) / error) if error else 1.0
    return Comparison(
        sum(one.n for one in found),
        base,
        tuned,
        delta,
        Interval(max(-1.0, delta - below), min(1.0, delta + above)),
        p_value,
        f"mean over {count} tasks of paired differences, each from a bootstrap within its task of {draws:,} draws",
        sum(one.clusters for one in found),
        min(1.0, detectable),
    )


def _check(before: Floats, after: Floats, keys: int) -> None:
    if before.ndim != 1 or before.shape != after.shape or before.size != keys:
        shapes = f"{before.shape}, {after.shape} and {keys} clusters"
        raise ValueError(f"figures of shapes {shapes}; expected one of each per item")
    for figures in (before, after):
        # A hair outside is rounding. Written so that NaN fails too.
        if not ((figures > -1e-6) & (figures < 1 + 1e-6)).all():
            raise ValueError("a figure is not a number in 0..1")


def bootstrap_interval(sums: Floats, sizes: Floats, draws: int, rng: np.random.Generator) -> Interval:
    """The 95% interval of sums.sum() / sizes.sum(), from drawing whole clusters with replacement.

    sums, sizes: (G,) summed differences and items of each cluster; G of 2 or more.

    Plain percentiles are too narrow for the few items that people have, and claim certainty where all items agree. Two corrections:
    one more cluster that gains as much as any did and one that loses as much, which for 0/1 figures are the pseudo-pairs of Bonett and
    Price 2012; and percentiles moved outwards to where Student's t would put them (Hesterberg 2015, "expanded percentile").
    So 8 of 8 items that went from 0 to 1 give 0.2..1, not 1..1, and no difference in 30 of 30 items still leaves about 0.1 either way.

    Measured over eleven kinds of differences (0/1, skewed, mostly zero, clustered): a nominal 95% interval held the truth in 91 to 100% of
    samples of 15, 95 to 100% of 30 and 93 to 98% of 100; plain percentiles in 82 to 99%, 92 to 98% and 94 to 97%, BCa no better. The
    truth lay below the interval, which would be a gain overstated, in at most 2.3%. Lowest are rare gains without losses.
    """
    delta = float(sums.sum() / sizes.sum())
    sums, sizes = _with_doubt(sums, sizes)
    groups = len(sums)
    tail = NormalDist().cdf(-math.sqrt(groups / (groups - 1)) * _student_t(groups - 1))
    means = np.empty(draws)
    at_once = max(1, AT_ONCE // groups)
    for start in range(0, draws, at_once):
        drawn = rng.integers(0, groups, (min(at_once, draws - start), groups), dtype=np.int32)
        means[start : start + at_once] = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.quantile(means, (tail, 1 - tail))
    return Interval(max(-1.0, min(float(low), delta)), min(1.0, max(float(high), delta)))


def _with_doubt(sums: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """The clusters and two more of average size: one gains as much an item as any of them did, one loses it."""
    farthest = float(np.abs(sums / sizes).max()) or 1.0  # nothing moved: a gain of unknown size may still be rare
    size = sizes.mean()
    return np.append(sums, (farthest * size, -farthest * size)), np.append(sizes, (size, size))


def _standard_error(sums: Floats, sizes: Floats) -> float:
    """Of the mean difference an item, with clusters as the independent units (Miller 2024)."""
    groups, n = len(sums), sizes.sum()
    residual = sums - sizes * (sums.sum() / n)
    return float(np.sqrt((residual**2).sum() * groups / (groups - 1)) / n)


def _student_t(freedom: int) -> float:
    """Student's t beyond which lies 2.5%, to 0.1% from 3 degrees of freedom on (Abramowitz and Stegun 26.7.5)."""
    terms = (
        Z,
        (Z**3 + Z) / 4,
        (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96,
        (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384,
        (79 * Z**9 + 776 * Z**7 + 1482 * Z**5 - 1920 * Z**3 - 945 * Z) / 92160,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def _sign_flip(sums: Floats, draws: int, rng: np.random.Generator) -> float:
    """The share of random swaps of base and tuned, by whole clusters, whose gain is at least as far from 0 as the one seen.

    The arrangement seen counts as one of the draws, so the value is never 0.
    """
    total = sums.sum()
    seen = abs(total) - 1e-9 * np.abs(sums).sum()  # an equal gain must not fail by rounding
    at_once = max(1, AT_ONCE // len(sums))
    hits = 0
    for start in range(0, draws, at_once):
        swapped = rng.integers(0, 2, (min(at_once, draws - start), len(sums)), dtype=np.int8)
        hits += int((np.abs(total - 2 * (swapped @ sums)) >= seen).sum())
    return (hits + 1) / (draws + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values of several tests, in their order, adjusted so that the chance of any false alarm stays what one has (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda place: p_values[place])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def detectable_difference(n: int, discordant: float, power: float = 0.8) -> float:
    """The smallest gain that a paired 0/1 test of n items tells from none at the 5% level, in the share `power` of such tests.

    discordant: the share of items on which the models differ, in 0..1. McNemar's test in its normal approximation, where the differences
    vary by discordant - gain^2 (Miller 2024): 864 items for a gain of 3 points at 10% discordant pairs and 80% power.
    A gain larger than `discordant` needs more pairs to differ, so then the answer is the gain of a model that never loses a pair.
    Raises ValueError for shares outside 0..1.
    """
    if not (n >= 0 and 0 <= discordant <= 1 and 0 < power < 1):
        raise ValueError(f"n {n}, discordant {discordant} and power {power}; expected a count and two shares")
    squared = (Z + NormalDist().inv_cdf(power)) ** 2
    without_loss = squared / (n + squared)
    return math.sqrt(discordant * without_loss) if discordant >= without_loss else without_loss
