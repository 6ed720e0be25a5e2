"""How long an answer takes: one prompt at a time, warm, against the clock; and whether a smaller model is worth its smaller time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

WARM = 2  # answers before the clock starts
HALF = 0.5  # of the teacher's time: the promise
MARGIN = 0.03  # of the teacher's metric: what counts as no lower


def time_answers(answer: Callable[[Any], Any], prompts: Sequence[Any]) -> list[float]:
    """Seconds for each prompt, in order, after some that are not counted."""
    for prompt in prompts[:WARM]:
        answer(prompt)
    seconds = []
    for prompt in prompts:
        _settled()
        began = time.perf_counter()
        answer(prompt)
        _settled()
        seconds.append(time.perf_counter() - began)
    return seconds


def _settled() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def summary_of(seconds: Sequence[float]) -> dict[str, float]:
    """Median and 90th percentile, in seconds."""
    return {"median": float(np.median(seconds)), "p90": float(np.quantile(seconds, 0.9))}


def promise(compared: Mapping[str, Any], teacher: Mapping[str, float], student: Mapping[str, float]) -> dict[str, Any]:
    """Whether half the response time came at no lower quality: yes, no, or unclear.

    compared: the evaluation of teacher (`base`) and student (`tuned`) on the same items. No lower is an interval of the difference that
    ends above minus 3% of the teacher's figure; lower is one that ends below zero, or whose middle is below that margin.
    """
    ratio = student["median"] / teacher["median"]
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
        "retained": retained,
        "judged": quality,
        "margin": margin,
        "half_the_time_no_lower": held,
    }
