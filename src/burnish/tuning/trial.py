"""One training of a study, by the steps of `pipeline`; and what all trainings of a study share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from burnish.data.split import Guarded
from burnish.distillation import cut_student
from burnish.errors import RecipeError
from burnish.folder import Run
from burnish.guards import Evidence
from burnish.parts import Chosen, Tokenized, Trained, Tried, settle
from burnish.pipeline import choose, clean, decide, define_metric, net_to_train, tokenize, train, try_out
from burnish.progress import Progress
from burnish.recipe import Recipe
from burnish.train.hooks import Judge, StopSignal, Validation

PRUNED = "pruned: "  # how the reason of an early end begins that a study asked for
# Sections of a recipe whose keys leave the tokens alone, and keys of them that do not.
LATE, EARLY = ("train", "adapter", "freeze"), ("train.max_length",)


@dataclass(frozen=True)
class Material:
    """What the trials share.

    guarded: every row. open: the same without the test rows, which no trial sees. tokenized: the open ones. folder: where they keep what
    each of them would compute alike.
    """

    chosen: Chosen
    guarded: Guarded
    open: Guarded
    tokenized: Tokenized
    metric: str
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """What a trial came to. best: its best look at the validation rows. pruned: why it was ended early, if it was."""

    best: Validation
    looks: list[Validation]
    pruned: str
    trained: Trained


def gather(run: Run, recipe: Recipe) -> Material:
    """Choose, clean and tokenize, once for the whole study. Raises RecipeError where no row is there to judge a trial by."""
    chosen = choose(run, recipe)
    guarded = clean(run, recipe, chosen)
    if not guarded.validation:
        raise RecipeError(
            "there are no validation rows to judge a trial by",
            where="data.validation",
            hint="--set data.validation=0.1",
        )
    locked = replace(guarded, test=[])
    tokenized = tokenize(run, recipe, chosen, locked)
    chosen = cut_student(run, recipe, chosen, tokenized)
    metric = define_metric(run, recipe, chosen, tokenized, locked)["validation"].metric
    return Material(chosen, guarded, locked, tokenized, metric, run.folder)


def resolved(recipe: Recipe, material: Material) -> dict[str, Any]:
    """What the recipe's "auto" comes to, by dotted key."""
    settings = asdict(settle(recipe, material.chosen, material.tokenized))
    return {f"train.{name}": value for name, value in settings.items()} | {"train.max_steps": settings["steps"]}


def run_trial(
    folder: Path,
    recipe: Recipe,
    material: Material,
    *,
    changed: Mapping[str, Any],
    stop: StopSignal,
    judge: Judge | None = None,
    first: bool = False,
) -> Outcome:
    """Train a recipe in a folder of its own; a folder in which this was begun goes on from its newest checkpoint.

    changed: what the recipe has else than the study's. first: try it out before, as every run does. The others are not tried out: at the
    rates that a study draws a model need not learn two rows by heart.
    """
    run = Run(folder, Progress(quiet=True), Evidence(recipe), folder.name, shared=material.folder)
    run.parts = {"data": {"dropped": {}}, "task": {}}
    chosen, tokenized = material.chosen, material.tokenized
    if any(
        key.split(".")[0] not in LATE for key in changed
    ):  # such as an option of the loss, which the objective holds
        own = choose(run, recipe)
        chosen = replace(chosen, objective=own.objective, mixed=own.mixed)
    if any(key in EARLY or key.split(".")[0] not in LATE for key in changed):
        tokenized = tokenize(run, recipe, chosen, material.open)
    settings = decide(run, recipe, chosen, tokenized)
    if first:
        tried = try_out(run, recipe, chosen, tokenized, settings)
    else:
        tried = Tried(net_to_train(recipe, chosen, tokenized, settings), settings, [])
    exams = define_metric(run, recipe, chosen, tokenized, material.open)
    trained = train(run, recipe, chosen, tokenized, tried, exams, stop, judge)
    looks = [Validation(**look) for look in trained.report["validations"]]
    best = next(look for look in looks if look.step == trained.report["best_step"])
    _, _, pruned = trained.report["stopped"].partition(PRUNED)
    return Outcome(best, looks, pruned, trained)
