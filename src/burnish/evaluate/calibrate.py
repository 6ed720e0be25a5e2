"""Probabilities that mean what they say: a temperature, thresholds, and how far off they are; and which labels are mistaken for which."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from burnish.model.load import Head
from burnish.model.scores import probabilities

BINS = 15  # as in Guo et al. 2017
COLDEST, HOTTEST = 0.05, 20.0
ENOUGH = (
    10  # items that have a label, and that have it not, from which on a threshold other than one half is chosen by them
)


def calibrated(head: Head, scores: np.ndarray, wanted: np.ndarray) -> Head:
    """The head with the temperature and thresholds that fit validation items best; one half for a label that too few of them tell of.

    scores: (N,C). wanted: (N,) classes, or (N,C) of 1 and 0 for several labels. One temperature for all classes leaves every ranking
    as it is (Guo et al. 2017, arXiv 1706.04599, section 4.2).
    """
    head = replace(head, temperature=fit_temperature(head, scores, wanted))
    if head.kind == "multilabel":
        found = probabilities(head, scores)
        told = np.minimum(wanted.sum(0), (1 - wanted).sum(0)) >= ENOUGH  # (C,)
        chosen = [best_threshold(found[:, n], wanted[:, n]) if told[n] else 0.5 for n in range(found.shape[1])]
        return replace(head, thresholds=tuple(chosen))
    return head


def fit_temperature(head: Head, scores: np.ndarray, wanted: np.ndarray) -> float:
    """The temperature at which the negative log-likelihood is least; 1 where no item is wrong, since then none would be cold enough.

    The likelihood is log-concave in 1 / temperature, so halving the range finds its top.
    """
    if not _mistaken(scores, wanted):
        return 1.0

    def loss(inverse: float) -> float:
        return _nll(replace(head, temperature=1 / inverse), scores, wanted)

    return 1 / _lowest(loss, 1 / HOTTEST, 1 / COLDEST)


def _lowest(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a convex function is least, by thirds (in 80 steps to about 1e-13 of the range)."""
    for _ in range(80):
        third = (high - low) / 3
        if function(low + third) < function(high - third):
            high -= third
        else:
            low += third
    return (low + high) / 2


def _mistaken(scores: np.ndarray, wanted: np.ndarray) -> bool:
    found = scores.argmax(-1) if wanted.ndim == 1 else scores > 0
    return bool((found != wanted).any())


def _nll(head: Head, scores: np.ndarray, wanted: np.ndarray) -> float:
    found = probabilities(head, scores)
    right = found[np.arange(len(wanted)), wanted] if wanted.ndim == 1 else np.where(wanted > 0, found, 1 - found)
    return float(-np.log(np.maximum(right, 1e-300)).mean())


def best_threshold(found: np.ndarray, wanted: np.ndarray) -> float:
    """The probability from which on a label should count, so that its F1 is highest; of equals, the one nearest to 0.5.

    found: (N,) probabilities. wanted: (N,) 1 or 0. Thresholds lie half way between neighbouring probabilities; 0.5 where the label
    never fits, since nothing can be chosen by that. Source: Lipton et al. 2014 (arXiv 1402.1892).
    """
    if not wanted.any():
        return 0.5
    values = np.unique(found)
    candidates = np.unique([0.5, *((values[1:] + values[:-1]) / 2)])
    given = found[None] >= candidates[:, None]  # (K,N)
    f1 = 2 * (given & (wanted > 0)).sum(1) / (given.sum(1) + wanted.sum())
    best = candidates[f1 == f1.max()]
    return float(best[np.abs(best - 0.5).argmin()])


def calibration_error(found: np.ndarray, wanted: np.ndarray) -> float:
    """The expected calibration error: by how much confidence and accuracy differ, over 15 equal bins of confidence.

    found: (N,C) probabilities. wanted: (N,) classes, where the confidence is that of the likeliest; or (N,C) of 1 and 0, where each
    label's own probability is held against how often it fits. Source: Naeini et al. 2015, in the form of Guo et al. 2017, eq. 3.
    """
    if wanted.ndim == 1:
        confidence, right = found.max(-1), found.argmax(-1) == wanted
    else:
        confidence, right = found.flatten(), wanted.flatten() > 0
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, right.astype(float) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def reliability(head: Head, scores: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """The report's `calibration`, of test items with the temperature that validation chose."""
    before = replace(head, temperature=1.0)
    return {
        "temperature": head.temperature,
        **({"thresholds": dict(zip(head.labels, head.thresholds, strict=True))} if head.thresholds else {}),
        "ece_before": calibration_error(probabilities(before, scores), wanted),
        "ece_after": calibration_error(probabilities(head, scores), wanted),
        "nll_before": _nll(before, scores, wanted),
        "nll_after": _nll(head, scores, wanted),
    }


def by_class(labels: tuple[str, ...], found: np.ndarray, wanted: np.ndarray) -> dict[str, Any]:
    """The report's `classes`: rows, precision, recall and F1 of each label and, of classes, who was taken for whom.

    found, wanted: (N,) numbers of classes, or (N,C) of 1 and 0. confusion: [wanted][found] counts.
    """
    single = wanted.ndim == 1
    known = np.eye(len(labels), dtype=int)
    given, asked = (known[found], known[wanted]) if single else (found.astype(int), wanted.astype(int))
    right, given_n, asked_n = (given * asked).sum(0), given.sum(0), asked.sum(0)
    table = [
        {
            "label": label,
            "rows": int(asked_n[n]),
            "precision": float(right[n] / given_n[n]) if given_n[n] else None,
            "recall": float(right[n] / asked_n[n]) if asked_n[n] else None,
            "f1": float(2 * right[n] / (given_n[n] + asked_n[n])) if given_n[n] + asked_n[n] else None,
        }
        for n, label in enumerate(labels)
    ]
    if not single:
        return {"table": table}
    confusion = np.zeros((len(labels), len(labels)), dtype=int)
    np.add.at(confusion, (wanted, found), 1)
    return {"table": table, "labels": list(labels), "confusion": confusion.tolist()}


def errors_of(head: Head, scores: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """The report's `errors` of a regression in the labels' own unit: the mean absolute error and the root of the mean squared one.

    scores: (N,1). wanted: (N,) in spreads. mae_of_mean: that of always naming the training mean.
    """
    missed = (scores[:, 0] - wanted) * head.spread
    return {
        "mae": float(np.abs(missed).mean()),
        "rmse": float(np.sqrt((missed**2).mean())),
        "mae_of_mean": float(np.abs(wanted * head.spread).mean()),
    }
