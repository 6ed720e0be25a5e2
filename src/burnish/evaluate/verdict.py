"""The verdict of a run: ship, improve or stop, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def judge(evaluation: Mapping[str, Any] | None, guards: Sequence[Mapping[str, Any]]) -> tuple[str, list[str]]:
    """(verdict, reasons).

    stop: a guard fails, nothing was evaluated, or the model got worse. ship: the whole 95% interval of the gain is above zero, and of
    several tasks none got worse. improve: neither, so the data cannot tell yet.
    """
    failed = [
        f"Guard {guard['n']}, {guard['mistake']}: {guard['found']}." for guard in guards if guard["status"] == "fail"
    ]
    warned = [
        f"Warning {guard['n']}, {guard['mistake']}: {guard['found']}." for guard in guards if guard["status"] == "warn"
    ]
    if evaluation is None:
        return "stop", failed or ["The run ended before base and tuned were compared."]
    tasks = evaluation.get("tasks", {})
    warned = [*(_of_task(name, one) for name, one in tasks.items()), *warned]
    low, high = evaluation["ci95"]
    gain = f"{evaluation['metric']} went from {evaluation['base']:.3f} to {evaluation['tuned']:.3f} on {evaluation['n']} locked test rows"
    interval = f"the gain is {evaluation['delta']:+.3f} (95% interval {low:+.3f} to {high:+.3f})"
    if failed:
        return "stop", [*failed, f"{gain}; {interval}."]
    if high < 0:
        return "stop", [f"The model got worse: {gain}; {interval}.", *warned]
    if worse := [name for name, one in tasks.items() if one["ci95"][1] < 0]:
        return "improve", [f"{gain}; {interval}, but {', '.join(worse)} got worse.", *warned]
    if low > 0:
        return "ship", [f"{gain}; {interval}.", *warned]
    return "improve", [f"{gain}, but {interval}, which holds zero: {evaluation['n']} rows cannot tell.", *warned]


def _of_task(name: str, one: Mapping[str, Any]) -> str:
    """How one of several tasks fared, and what the others do to it where that was measured."""
    low, high = one["ci95"]
    said = f"Task {name}: {one['metric']} went from {one['base']:.3f} to {one['tuned']:.3f} on {one['n']} rows, "
    said += f"{one['delta']:+.3f} (95% interval {low:+.3f} to {high:+.3f})"
    if alone := one.get("against_alone"):
        low, high = alone["ci95"]
        said += f"; against {alone['alone']:.3f} when tuned alone {alone['delta']:+.3f} ({low:+.3f} to {high:+.3f}): {alone['said']}"
    return f"{said}."
