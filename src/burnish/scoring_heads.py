"""How answers of several labels, a number, or a tag for each word are scored; all are texts, so that a model may write them too."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Figures = dict[str, float]
Answered = Sequence[tuple[str, str]]  # (answer, reference) of each item
NONE = ""  # the answer where no label fits


def f1(right: float, found: float, wanted: float) -> float:
    """The harmonic mean of precision and recall; 1 where there was nothing to find and nothing was found."""
    return 2 * right / (found + wanted) if found + wanted else 1.0


def split_labels(text: str) -> frozenset[str]:
    """The labels of an answer, which commas part, without case and outer space."""
    return frozenset(filter(None, (part.strip(" .\n").casefold() for part in text.split(","))))


@dataclass(frozen=True)
class MultiLabel:
    """Scores a set of labels."""

    labels: tuple[str, ...]
    span: tuple[float, float]
    primary: str = "micro_f1"
    name = "multilabel"

    def score(self, answer: str, reference: str) -> Figures:
        """sample_f1: F1 over the labels of this item. exact: 1 where they are all right and no other is given."""
        found, wanted = split_labels(answer), split_labels(reference)
        return {"sample_f1": f1(len(found & wanted), len(found), len(wanted)), "exact": float(found == wanted)}

    def summarize(self, answered: Answered) -> Figures:
        """The means, micro_f1 over all pairs of item and label, and macro_f1: the mean over the labels that occur."""
        if not answered:
            return {}
        pairs = [(split_labels(answer), split_labels(reference)) for answer, reference in answered]
        right, found, wanted = (Counter[str]() for _ in range(3))
        for given, asked in pairs:
            right.update(given & asked)
            found.update(given)
            wanted.update(asked)
        # What is no label at all is wrong, and opens no class of its own.
        used = (wanted.keys() | found.keys()) & (
            {one.casefold() for one in self.labels} or (wanted.keys() | found.keys())
        )
        each = [f1(right[label], found[label], wanted[label]) for label in used]
        micro = f1(right.total(), found.total(), wanted.total())
        means = _means([self.score(*pair) for pair in answered])
        return means | {"micro_f1": micro, "macro_f1": sum(each) / len(each) if each else 1.0}


@dataclass(frozen=True)
class Regress:
    """Scores a number. Every figure is 1 for the right one and 0 for one that is of no use.

    span: the lowest and highest label of the training rows, the unit in which `closeness` measures. An answer that is no number
    counts as the end of the span that is farther from the right one.
    """

    labels: tuple[str, ...]
    span: tuple[float, float]
    primary: str = "closeness"
    name = "regress"

    def score(self, answer: str, reference: str) -> Figures:
        """closeness: 1 minus the error in spans, at least 0. unparsed: 1 for an answer that holds no number."""
        found, wanted = self._pair(answer, reference)
        low, high = self.span
        error = abs(found - wanted) / (high - low) if high > low else float(found != wanted)
        return {"closeness": max(0.0, 1 - error), "unparsed": float(_number(answer) is None)}

    def summarize(self, answered: Answered) -> Figures:
        """The means, the rank correlation of Spearman and the coefficient of determination R2, each 0 where it is negative."""
        if not answered:
            return {}
        found, wanted = np.array([self._pair(*pair) for pair in answered]).T
        squares = float(((wanted - wanted.mean()) ** 2).sum())
        r2 = 1 - float(((found - wanted) ** 2).sum()) / squares if squares else 0.0
        return _means([self.score(*pair) for pair in answered]) | {
            "spearman": max(0.0, _correlation(_ranks(found), _ranks(wanted))),
            "r2": max(0.0, r2),
        }

    def _pair(self, answer: str, reference: str) -> tuple[float, float]:
        wanted, found = _number(reference), _number(answer)
        assert wanted is not None or reference == "", "a reference is a number"
        wanted = wanted or 0.0
        return (max(self.span, key=lambda end: abs(end - wanted)) if found is None else found), wanted


def _number(text: str) -> float | None:
    """The first number in a text; of one that is a number all of it, as the labels to learn from are read."""
    try:
        number = float(text)
    except ValueError:
        found = re.search(r"-?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?", text)
        number = float(found[0]) if found else math.nan
    return number if math.isfinite(number) else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: np.ndarray = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's; 0 where one of them never changes."""
    one, other = one - one.mean(), other - other.mean()
    scale = math.sqrt(float((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / scale if scale else 0.0


Span = tuple[int, int, str]  # first word, word after the last, kind


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans that BIO tags mark, as CoNLL's own evaluation reads them: an I- that follows nothing of its kind begins a span.

    Tags of no scheme (parts of speech) are spans of one word each; O is none. Source: Tjong Kim Sang and De Meulder 2003,
    arXiv cs/0306050.
    """
    found: set[Span] = set()
    begin, kind = 0, ""
    for place, tag in enumerate([*tags, "O"]):
        mark, dash, name = tag.partition("-")
        if dash and mark in ("B", "I"):
            goes_on = mark == "I" and name == kind
        else:
            mark, name, goes_on = "B", "" if tag == "O" else tag, False
        if not goes_on:
            if kind:
                found.add((begin, place, kind))
            begin, kind = place, name
    return found


@dataclass(frozen=True)
class Tag:
    """Scores a tag for each word: the words' tags, parted by spaces."""

    labels: tuple[str, ...]
    span: tuple[float, float]
    primary: str = "span_f1"
    name = "tag"

    def score(self, answer: str, reference: str) -> Figures:
        """tag_accuracy: the share of words with the right tag. exact: 1 where every word has it."""
        found, wanted = answer.split(), reference.split()
        right = sum(one == other for one, other in zip(found, wanted, strict=False))
        return {"tag_accuracy": right / max(len(wanted), 1), "exact": float(found == wanted)}

    def summarize(self, answered: Answered) -> Figures:
        """The means, and span_f1: F1 over the spans of all items, of which one is right where its words and kind both are."""
        if not answered:
            return {}
        right = found = wanted = 0
        for answer, reference in answered:
            given, asked = spans(answer.split()), spans(reference.split())
            right, found, wanted = right + len(given & asked), found + len(given), wanted + len(asked)
        return _means([self.score(*pair) for pair in answered]) | {"span_f1": f1(right, found, wanted)}


def _means(figures: Sequence[Figures]) -> Figures:
    return {name: sum(one[name] for one in figures) / len(figures) for name in figures[0]}


HEADS: dict[str, Callable[..., Any]] = {"multilabel": MultiLabel, "regress": Regress, "tag": Tag}
