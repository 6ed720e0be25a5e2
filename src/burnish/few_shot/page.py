"""A study as one self-contained page: the learning curve, the table and the advice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from burnish.evaluate import charts
from burnish.evaluate.report import printable, render_page
from burnish.few_shot.results import ANSWERS, advice_line
from burnish.folder import write_text


def write_page(summary: dict[str, Any], path: Path) -> None:
    """Write the page of what `results.summarize` made."""
    shown = printable(summary)
    view = {
        "chart": learning_curve(summary),
        "methods": list(dict.fromkeys(point["method"] for point in shown["curve"])),
        "lines": [advice_line(advice) for advice in shown["advice"]],
        "answers": ANSWERS,
    }
    write_text(path, render_page("fewshot.html.j2", {**shown, **view}))


def learning_curve(summary: dict[str, Any]) -> Any:
    """The test figure over k, a line for each method, and thin lines one standard deviation above and below it."""
    lines = []
    for number, method in enumerate(dict.fromkeys(point["method"] for point in summary["curve"])):
        points = [point for point in summary["curve"] if point["method"] == method]
        look = f"method-{number % 6}"
        for sign in (-1, 1):
            if all(point["test_sd"] is not None for point in points):
                edge = [(point["k"], point["test"] + sign * point["test_sd"]) for point in points]
                lines.append(charts.Line(f"{look} spread", edge))
        lines.append(charts.Line(look, [(point["k"], point["test"]) for point in points], dots=True))
    return charts.line_chart(lines, f"{summary['metric']} on test over the examples of each class", height=300)
