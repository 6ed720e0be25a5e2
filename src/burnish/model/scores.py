"""What the scores of a head mean: probabilities, and an answer in text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from burnish.model.load import Head


def probabilities(head: Head, scores: np.ndarray) -> np.ndarray:
    """(...,C) -> (...,C): of each class, or of each label by itself. The scores are divided by the head's temperature first."""
    scaled = np.asarray(scores, dtype=np.float64) / head.temperature
    if head.kind == "multilabel":
        return np.exp(-np.logaddexp(0.0, -scaled))  # type: ignore[no-any-return]
    shifted = np.exp(scaled - scaled.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)  # type: ignore[no-any-return]


def fitting(head: Head, scores: np.ndarray) -> list[str]:
    """The labels whose probability reaches their threshold; 0.5 where none was chosen."""
    thresholds = head.thresholds or (0.5,) * len(head.labels)
    found = probabilities(head, scores)
    return [label for label, p, least in zip(head.labels, found, thresholds, strict=True) if p >= least]


def number(head: Head, scores: np.ndarray) -> float:
    """The number that a regression's score stands for."""
    return head.mean + head.spread * float(scores[0])


def answer(head: Head, scores: np.ndarray) -> str:
    """What a head says in text. scores: (C,) of a text, (W,C) of its words for tags."""
    if head.kind == "multilabel":
        return ", ".join(fitting(head, scores))
    if head.kind == "regress":
        return f"{number(head, scores):.6g}"
    if head.kind == "tag":
        return " ".join(head.labels[place] for place in scores.argmax(-1).tolist())
    return head.labels[int(scores.argmax())]


def negative_log_likelihood(head: Head, scores: np.ndarray, wanted: Sequence[float]) -> float:
    """Nats of what is right, a mean over labels or words; of a number, half its squared error in spreads, as of a Gaussian."""
    if head.kind == "regress":
        return float((scores[0] - wanted[0]) ** 2 / 2)
    found, right = probabilities(head, scores), np.asarray(wanted)
    if head.kind == "multilabel":
        found = np.where(right > 0, found, 1 - found)
    elif head.kind == "tag":
        found = found[np.arange(len(right)), right.astype(int)]
    else:
        found = found[right.astype(int)]
    return float(-np.log(np.maximum(found, 1e-300)).mean()) if found.size else 0.0


def brier_score(head: Head, scores: np.ndarray, wanted: Sequence[float]) -> float:
    """The squared distance between the probabilities and what is right, 0 to 2 (Brier 1950); a mean over labels or words."""
    found, right = probabilities(head, scores), np.asarray(wanted)
    if head.kind == "multilabel":
        return float(2 * ((found - right) ** 2).mean())
    known = np.eye(len(head.labels))[right.astype(int)]
    squares = ((found - known) ** 2).sum(-1)
    return float(squares.mean()) if squares.size else 0.0
