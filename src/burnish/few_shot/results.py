"""What a study found: the learning curve of each method, and which method to use at each k."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from burnish.evaluate.stats import Comparison, paired_difference

Result = dict[str, Any]
ANSWERS = 1000  # how many answers a method's cost counts beside its training


def summarize(results: Sequence[Result], goal: str = "") -> dict[str, Any]:
    """The study as plain values, as `fewshot.json` holds it.

    curve: a record for each k and method, means over the seeds with their standard deviation. advice: for each k the recommended method.
    """
    ks = sorted({result["k"] for result in results})
    curve = [
        point_of([result for result in results if (result["k"], result["method"]) == (k, method)])
        for k in ks
        for method in dict.fromkeys(result["method"] for result in results)
    ]
    return {
        "schema": 1,
        "goal": goal,
        "metric": results[0]["metric"],
        "items": {split: len(results[0][split]) for split in ("validation", "test")},
        "seeds": sorted({result["seed"] for result in results}),
        "curve": curve,
        "advice": [advise([result for result in results if result["k"] == k]) for k in ks],
        "runs": [{name: value for name, value in result.items() if name != "clusters"} for result in results],
    }


def point_of(results: Sequence[Result]) -> dict[str, Any]:
    """One method at one k: mean and spread over the seeds, and what it costs. cost: seconds of training and of ANSWERS answers."""
    figures = {split: [float(np.mean(result[split])) for result in results] for split in ("validation", "test")}
    train, answer = (
        float(np.mean([result[name] for result in results])) for name in ("train_seconds", "answer_seconds")
    )
    return {
        "k": results[0]["k"],
        "method": results[0]["method"],
        "seeds": len(results),
        **{split: float(np.mean(values)) for split, values in figures.items()},
        **{
            f"{split}_sd": float(np.std(values, ddof=1)) if len(values) > 1 else None
            for split, values in figures.items()
        },
        "rows": results[0]["rows"],
        "trained_parameters": results[0]["trained_parameters"],
        "train_seconds": train,
        "answer_seconds": answer,
        "cost": train + ANSWERS * answer,
        "note": next((result["note"] for result in results if result["note"]), ""),
    }


def advise(results: Sequence[Result]) -> dict[str, Any]:
    """The cheapest method that validation does not show to be worse than the best one there; then what both have on test.

    Compared on the same validation items, each with its mean over the seeds: a method stays in the choice where the 95% interval of
    its difference to the best reaches 0. The test figures take no part in the choice.
    """
    points = {method: point_of(runs) for method, runs in _by_method(results).items()}
    best = max(points, key=lambda method: (points[method]["validation"], -points[method]["cost"]))
    against = {method: compared(results, best, method, "validation") for method in points if method != best}
    as_good = [best, *(method for method, found in against.items() if found.ci95.high >= 0)]
    method = min(as_good, key=lambda name: points[name]["cost"])
    proof = compared(results, best, method, "test") if method != best else None
    return {
        "k": results[0]["k"],
        "method": method,
        "best_on_validation": best,
        "not_worse": as_good,
        "validation": points[method]["validation"],
        "test": points[method]["test"],
        "cost": points[method]["cost"],
        "differences": {name: {"delta": found.delta, "ci95": _bounds(found)} for name, found in against.items()},
        "test_difference_to_best": {"delta": proof.delta, "ci95": _bounds(proof)} if proof else None,
    }


def compared(results: Sequence[Result], base: str, other: str, split: str) -> Comparison:
    """other against base on the same items, each item's mean over the seeds."""
    by_method = _by_method(results)
    clusters = by_method[base][0]["clusters"][split]
    one, two = (np.mean([run[split] for run in by_method[name]], axis=0) for name in (base, other))
    return paired_difference(one, two, clusters=clusters)


def _by_method(results: Sequence[Result]) -> dict[str, list[Result]]:
    return {
        method: [result for result in results if result["method"] == method]
        for method in dict.fromkeys(result["method"] for result in results)
    }


def _bounds(found: Comparison) -> list[float]:
    return [found.ci95.low, found.ci95.high]


def as_table(summary: dict[str, Any]) -> str:
    """For the terminal: a line for each k and method, then a line of advice for each k."""
    lines = [("k", "method", "validation", "test", "sd", "trained", "training", "an answer", "")]
    for point in summary["curve"]:
        spread = "" if point["test_sd"] is None else f"{point['test_sd']:.3f}"
        lines.append(
            (
                str(point["k"]),
                point["method"],
                f"{point['validation']:.3f}",
                f"{point['test']:.3f}",
                spread,
                f"{point['trained_parameters']:,}",
                f"{point['train_seconds']:.1f} s",
                f"{1000 * point['answer_seconds']:.1f} ms",
                point["note"],
            )
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    items, seeds = summary["items"], len(summary["seeds"])
    head = (
        f"{summary['metric']} on {items['validation']} validation and {items['test']} test rows, mean of {seeds} "
        f"seed{'s' if seeds > 1 else ''} (sd: of test, over the seeds)"
    )
    return "\n".join([head, *table, *(advice_line(advice) for advice in summary["advice"])])


def advice_line(advice: dict[str, Any]) -> str:
    best, method = advice["best_on_validation"], advice["method"]
    why = "the best on validation"
    if method != best:
        why = f"validation cannot tell it from {best}, which costs more"
    return f"k {advice['k']}: use {method} ({why}); {advice['test']:.3f} on test"
