"""The learning-rate range test (Smith 2015, arXiv 1506.01186): the rate grows until the loss runs away, in one short training."""

from __future__ import annotations

import importlib.metadata
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.distillation import cut_student
from burnish.errors import Interrupted, RecipeError, TrainingError
from burnish.evaluate import charts
from burnish.evaluate.report import printable, render_page
from burnish.folder import Run, locked, now, write_text
from burnish.guards import Evidence
from burnish.joint import tasks_of
from burnish.parts import make_feed, make_optimizer
from burnish.pipeline import choose, clean, decide, make_ladder, tokenize, try_out
from burnish.progress import Progress
from burnish.recipe import Recipe
from burnish.train.hooks import StopSignal
from burnish.train.loop import Step, fit
from burnish.train.optim import auto_learning_rate

BELOW, ABOVE = 1e-3, 1e2  # of the usual rate: where the test begins and ends
MEMORY = 0.9  # of the running mean of the loss, by step
AWAY = 1.5  # times the lowest mean: the loss has run away
MARGIN = 10  # the suggestion lies so far below the rate at which the loss was lowest
FEWEST = 20


@dataclass
class Watch:
    """Notes (rate, loss) at each step, and ends the test where the running mean of the loss has left its lowest point for good."""

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    means: list[float] = field(default_factory=list)
    _sum: float = 0.0

    def after(self, step: Step) -> str | None:
        self._sum = MEMORY * self._sum + (1 - MEMORY) * step.loss
        self.rates.append(step.learning_rate)
        self.losses.append(step.loss)
        self.means.append(self._sum / (1 - MEMORY ** len(self.rates)))
        away = len(self.means) > FEWEST // 2 and self.means[-1] > AWAY * min(self.means)
        return "the loss ran away" if away else None


def range_test(recipe: Recipe, folder: Path, name: str, progress: Progress, *, steps: int = 100) -> dict[str, Any]:
    """Train for at most so many steps while the rate grows by the same factor each; returns lr-range.json, which a page shows.

    The rates go from a thousandth to a hundred times what the model's size suggests. No validation or test row is used.
    """
    if steps < FEWEST:
        raise RecipeError(f"{steps} steps are too few to see a curve", where="--steps", expected=f"{FEWEST} or more")
    run, stop = Run(folder, progress, Evidence(recipe), name), StopSignal()
    with stop.watching():
        with locked(folder / "data.lock"):
            chosen = choose(run, recipe)
            tokenized = tokenize(run, recipe, chosen, clean(run, recipe, chosen))
            chosen = cut_student(run, recipe, chosen, tokenized)
        tried = try_out(run, recipe, chosen, tokenized, decide(run, recipe, chosen, tokenized))
        usual = auto_learning_rate(chosen.config.get_text_config().hidden_size, recipe.adapter.method, steps)
        growth = math.log(ABOVE / BELOW) / (steps - 1)
        rows = len(tokenized.train.groups)
        epochs = steps * tried.settings.batch_size / rows + 1
        settings = replace(tried.settings, learning_rate=usual, epochs=epochs, steps=steps)
        longer = recipe.model_copy(update={"train": recipe.train.model_copy(update={"max_steps": steps})})
        feed = make_feed(longer, tokenized, settings)
        optim = make_optimizer(longer, tried.net, settings, lambda step: BELOW * math.exp(growth * step))
        watch = Watch()
        tasks = tasks_of(recipe, chosen, tokenized)
        ladder = make_ladder(run, longer, tried.net, settings, feed, optim)
        try:
            ended = fit(tried.net, tasks, feed, optim, [watch, stop], ladder)
        except TrainingError as error:
            if len(watch.rates) < FEWEST // 2:
                raise
            ended = error.found.split(";")[0]
        if stop.received:
            raise Interrupted(f"stopped by {stop.received}", hint="type the same command again: it begins anew")
    found = {
        "schema": 1,
        "burnish": importlib.metadata.version("burnish"),
        "name": name,
        "folder": str(folder),
        "created": now(),
        "usual": usual,
        "batch_size": settings.batch_size,
        "steps": len(watch.rates),
        "ended": "the highest rate was reached" if ended == "end" else ended,
        **suggestion(watch.rates, watch.means),
        "curve": [
            {"rate": rate, "loss": loss, "mean": mean}
            for rate, loss, mean in zip(watch.rates, watch.losses, watch.means, strict=True)
        ],
    }
    write_text(folder / "lr-range.json", json.dumps(found, indent=1))
    write_text(folder / "lr-range.html", render(found))
    return found


def suggestion(rates: list[float], means: list[float]) -> dict[str, Any]:
    """{"lowest": the rate of the lowest mean loss, "steepest": where it falls fastest, "suggested": a tenth of the former}.

    The suggestion is None, with "why", where the loss never fell: more than a hundredth of what it began with.
    """
    lowest = min(range(len(means)), key=means.__getitem__)
    begun = sum(means[: max(1, len(means) // 10)]) / max(1, len(means) // 10)
    if means[lowest] > 0.99 * begun:
        why = "the loss never fell: more steps, a larger batch, or a look at the data"
        return {"lowest": rates[lowest], "steepest": None, "suggested": None, "why": why}
    falls = [means[place - 1] - means[place] for place in range(1, lowest + 1)]
    steepest = max(range(len(falls)), key=falls.__getitem__) + 1
    why = "" if lowest < len(means) - 1 else "the loss still fell at the highest rate"
    return {"lowest": rates[lowest], "steepest": rates[steepest], "suggested": rates[lowest] / MARGIN, "why": why}


def render(found: Mapping[str, Any]) -> str:
    """The page of a range test."""
    curve = found["curve"]
    lines = [
        charts.Line("raw", [(math.log10(point["rate"]), point["loss"]) for point in curve]),
        charts.Line("smooth", [(math.log10(point["rate"]), point["mean"]) for point in curve]),
    ]
    mark = math.log10(found["suggested"]) if found["suggested"] else None
    chart = charts.line_chart(
        lines, "loss by learning rate", best=mark, mark="suggested: {}", said=lambda power: charts.short(10**power)
    )
    return render_page("lr_range.html.j2", {**printable(found), "chart": chart})


def summary(found: Mapping[str, Any]) -> str:
    usual = f"the size of the model suggests {found['usual']:.1e}"
    if found["suggested"] is None:
        return f"no rate can be suggested: {found['why']}; {usual}\n  plot: {found['folder']}/lr-range.html"
    lines = [
        f"suggested learning rate: {found['suggested']:.1e}   ({usual})",
        f"  the loss fell fastest at {found['steepest']:.1e} and was lowest at {found['lowest']:.1e}; {found['ended']}",
        *([f"  {found['why']}"] if found["why"] else []),
        f"  --set train.learning_rate={found['suggested']:.1e}",
        f"  plot: {found['folder']}/lr-range.html",
    ]
    return "\n".join(lines)
