"""How long an answer takes: one prompt at a time, warm, against the clock; and whether a smaller model is worth its smaller time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

WARM = 2  # answers before the clock starts
HALF = 0.5  # of the teacher's time: the promise
RESAMPLES = 2000
MARGIN = 0.03  # of the teacher's metric: what counts as no lower


def time_answers(answer: Callable[[Any], Any], prompts: Sequence[Any]) -> list[float]:
    """Seconds for each prompt, in order, after some that are not counted."""
    for prompt in prompts[:WARM]:
        answer(prompt)
    return [_seconds(answer, prompt) for prompt in prompts]


def time_in_turn(
    one: Callable[[Any], Any], other: Callable[[Any], Any], prompts: Sequence[tuple[Any, Any]]
) -> tuple[list[float], list[float]]:
    """Seconds that each takes for its own form of each prompt. They answer in turn, so what slows the machine down slows both."""
    for ours, theirs in prompts[:WARM]:
        one(ours)
        other(theirs)
    pairs = [(_seconds(one, ours), _seconds(other, theirs)) for ours, theirs in prompts]
    return [first for first, _ in pairs], [second for _, second in pairs]


def _seconds(answer: Callable[[Any], Any], prompt: Any) -> float:
    _settled()
    began = time.perf_counter()
    answer(prompt)
    _settled()
    return time.perf_counter() - began


def _settled() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary_of(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile, in seconds."""
    return {"median": float(np.median(seconds)), "p90": float(np.quantile(seconds, 0.9))}


def ratio_of(teacher: Sequence[float], student: Sequence[float], seed: int = 0) -> tuple[float, tuple[float, float]]:
    """The student's median time by the teacher's, and its 95% interval: a bootstrap over the prompts, which both answered."""
    ours, theirs = np.asarray(student), np.asarray(teacher)
    drawn = np.random.default_rng(seed).integers(0, len(ours), (RESAMPLES, len(ours)))
    ratios = np.median(ours[drawn], 1) / np.median(theirs[drawn], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.median(ours) / np.median(theirs)), (float(low), float(high))


def promise(compared: Mapping[str, Any], teacher: Sequence[float], student: Sequence[float]) -> dict[str, Any]:
    """Whether half the response time came at no lower quality: yes, no, or unclear.

    compared: the evaluation of teacher (`base`) and student (`tuned`) on the same items. teacher, student: seconds by prompt. No lower is
    an interval of the difference that ends above minus 3% of the teacher's figure; lower is one that ends below zero, or whose middle is
    below that margin.
    """
    ratio, interval = ratio_of(teacher, student)
    low, high = compared["ci95"]
    margin = MARGIN * compared["base"]
    quality = "not lower" if low >= -margin else "lower" if high < 0 or compared["delta"] < -margin else "unclear"
    held = (
        "yes"
        if ratio <= HALF and quality == "not lower"
        else "unclear"
        if ratio <= HALF and quality == "unclear"
        else "no"
    )
    retained = compared["tuned"] / compared["base"] if compared["base"] else None
    return {
        "time_ratio": ratio,
        "time_ratio_ci95": list(interval),
        "retained": retained,
        "judged": quality,
        "margin": margin,
        "half_the_time_no_lower": held,
    }
