"""What a study found, as tune.json and as a page."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from markupsafe import Markup
from optuna.trial import FrozenTrial, TrialState

from burnish.evaluate import charts
from burnish.evaluate.report import outcome_of, printable, render_page
from burnish.folder import now, write_text
from burnish.recipe import Recipe
from burnish.reported import versions
from burnish.tuning.study import STATES, Search, look_of, reason_of, result_of

FEWEST = 4  # complete trials from which on they say what matters


def make_report(search: Search, recipe: Recipe | None, proof: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The study as plain values. recipe: the best one so far. proof: what `prove` returned, or None while trials still run."""
    best, default = search.best, search.default
    trials = [_record(search, trial) for trial in search.trials()]
    states = [trial["state"] for trial in trials]
    return {
        "schema": 1,
        "burnish": importlib.metadata.version("burnish"),
        "name": search.name,
        "folder": str(search.folder),
        "created": now(),
        "goal": search.recipe.task.goal,
        "metric": search.material.metric,
        "budget": str(search.budget),
        "space": {key: one.as_json() for key, one in search.space.items()},
        "counts": {state: states.count(state) for state in STATES.values() if state in states},
        "seconds": round(search.seconds, 1),
        "trials": trials,
        "default": _record(search, default) if default else None,
        "best": _record(search, best) if best else None,
        **what_matters(search),
        "seeds": proof["seeds"] if proof else [],
        "spread": proof["spread"] if proof else {},
        "test": proof["test"] if proof else None,
        "test_looks": proof["test_looks"] if proof else 0,
        "recipe": recipe.dump() if recipe else "",
        "versions": versions() | {"optuna": optuna.__version__},
    }


def what_matters(search: Search) -> dict[str, Any]:
    """{"importance": as below, "unvaried": the metric and the keys that were the same in every complete trial, with their value}.

    Both are empty for too few trials. Where the metric never varied there is no importance: no key can be told to matter.
    """
    ended, metric = search.ended(), search.material.metric
    if len(ended) < FEWEST:
        return {"importance": {}, "unvaried": {}}
    first, *others = [{metric: look_of(trial).metric, **search.values_of(trial)} for trial in ended]
    same = {name: value for name, value in first.items() if all(one[name] == value for one in others)}
    keys = [] if metric in same else [key for key in search.space if key not in same]
    return {"importance": importance(search, keys) if keys else {}, "unvaried": same}


def importance(search: Search, keys: Sequence[str]) -> dict[str, float]:
    """The share of each of the keys in how well the trials did (PED-ANOVA; Watanabe et al. 2023, arXiv 2304.10255)."""
    with warnings.catch_warnings(), contextlib.suppress(ValueError, RuntimeError):
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(search.study, evaluator=evaluator, params=list(keys))
        return {key: float(share) for key, share in found.items() if math.isfinite(share)}
    return {}


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    write_text(folder / "tune.json", json.dumps(report, indent=1))
    write_text(folder / "tune.html", render(report))


def render(report: Mapping[str, Any]) -> str:
    """The page of a study."""
    shown = printable(report)
    view = {"charts": charts_of(shown), "outcome": outcome_of(shown["test"]), "untold": untold(shown)}
    return render_page("tune.html.j2", {**shown, **view})


def charts_of(report: Mapping[str, Any]) -> dict[str, Markup]:
    """The metric by trial, and the best so far."""
    done = [trial for trial in report["trials"] if trial["state"] == "complete"]
    points = [(float(trial["number"]), trial["metric"]) for trial in done]
    best = [(number, max(metric for _, metric in points[: place + 1])) for place, (number, _) in enumerate(points)]
    pruned = [(float(one["number"]), one["metric"]) for one in report["trials"] if one["state"] == "pruned"]
    lines = [
        charts.Line("smooth", best),
        charts.Line("validation", points, dots=True, joined=False),
        charts.Line("raw", pruned, dots=True, joined=False),
    ]
    found = {"history": charts.line_chart(lines, "the metric on the validation rows, by trial")}
    gain = report["test"]
    if gain:
        found["gain"] = charts.gain_chart(gain["base"], gain["tuned"], gain["ci95"])
    return found


def untold(report: Mapping[str, Any]) -> str:
    """What the trials cannot say, since nothing varied; "" where everything did."""
    metric, same = report["metric"], report["unvaried"]
    if metric in same:
        return f"in every complete trial {metric} was {same[metric]:.3f}, so which key matters cannot be told"
    shown = ", ".join(f"{key} was {_short(value)}" for key, value in same.items())
    return f"in every complete trial {shown}, so whether that matters cannot be told" if shown else ""


def summary(report: Mapping[str, Any]) -> str:
    """What a person wants to know when a study has ended."""
    counts = ", ".join(f"{number} {state}" for state, number in report["counts"].items())
    lines = [f"{sum(report['counts'].values())} trials ({counts}) in {report['seconds'] / 60:.1f} minutes"]
    for who in ("default", "best"):
        if one := report[who]:
            values = ", ".join(f"{key}={_short(value)}" for key, value in one["values"].items())
            lines.append(
                f"  {who:<8} {report['metric']} {one['metric']:.3f}, loss {one['loss']:.3f} on validation: {values}"
            )
    if report["best"] and report["default"] and report["best"]["number"] == report["default"]["number"]:
        lines.append("  nothing that was tried is better than the recipe as it stands")
    for name, where in (("metric", "validation"), ("test", "test")):
        if spread := report["spread"].get(name):
            about = f" ± {spread['deviation']:.3f}" if spread["deviation"] is not None else ""
            lines.append(
                f"  {spread['n']} seed{'s' if spread['n'] > 1 else ' '}  {report['metric']} {spread['mean']:.3f}{about} on {where}"
            )
    if test := report["test"]:
        low, high = test["ci95"]
        lines.append(
            f"  test     {test['metric']} {test['base']:.3f} with the default recipe, {test['tuned']:.3f} with the tuned one "
            f"on {test['n']} rows: {test['delta']:+.3f} (95% {low:+.3f} to {high:+.3f})"
        )
    if report["importance"]:
        lines.append("  matters  " + ", ".join(f"{key} {share:.0%}" for key, share in report["importance"].items()))
    if said := untold(report):
        lines.append(f"  same     {said}")
    if report["best"]:
        lines.append(f"  recipe: {report['folder']}/best.yaml")
    return "\n".join([*lines, f"  report: {report['folder']}/tune.html"])


def _record(search: Search, trial: FrozenTrial) -> dict[str, Any]:
    record: dict[str, Any] = {
        "number": trial.number,
        "state": STATES[trial.state.name],
        "default": bool(trial.user_attrs.get("default")),
        "values": search.values_of(trial),
        "seconds": result_of(trial).get("seconds"),
        "reason": reason_of(trial) if trial.state in (TrialState.PRUNED, TrialState.FAIL) else "",
    }
    if trial.state in (TrialState.COMPLETE, TrialState.PRUNED):
        look = look_of(trial)
        record |= {"metric": look.metric, "loss": look.loss, "step": look.step}
        record |= {name: result_of(trial)[name] for name in ("steps", "looks")}
    return record


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
