"""What a study begins with: its methods checked, its rows guarded once, its draws, and the recipe of each run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from burnish import pipeline
from burnish.core import Objective
from burnish.data.draw import draw
from burnish.data.rows import Row
from burnish.data.split import Guarded
from burnish.errors import RecipeError
from burnish.evaluate.runner import check_answerable
from burnish.folder import Run, write_text
from burnish.guards import Evidence
from burnish.heads import labels_of
from burnish.methods import METHODS
from burnish.objectives import make_objective
from burnish.parts import Chosen
from burnish.progress import Progress
from burnish.recipe import Adapter, Freeze, Recipe, make_recipe
from burnish.train.hooks import StopSignal

IN_CONTEXT = "in_context"


@dataclass(frozen=True)
class Schedule:
    """How a method is tuned on a handful of rows: about `steps` steps, but no row is seen less often than `least` or more than `most`."""

    steps: int
    least: int
    most: int
    rate: float | Literal["auto"] = "auto"

    def epochs(self, rows: int, batch: int) -> float:
        return min(max(self.steps * batch / rows, self.least), self.most)


# A head on features that are kept costs next to nothing a step. IA3 has few weights to learn with; its rate is T-Few's (arXiv 2205.05638).
SCHEDULES = {"ia3": Schedule(200, 8, 40, 3e-3), "head": Schedule(2000, 30, 100)}
TUNED = Schedule(120, 6, 20)  # any other method
BATCH = 8


@dataclass(frozen=True)
class Study:
    """What all runs share. rows: the guarded splits, of which only train is drawn from. files: of validation and test."""

    recipe: Recipe
    folder: Path
    chosen: Chosen
    rows: Guarded
    files: dict[str, str]
    by_label: bool
    progress: Progress
    stop: StopSignal

    @property
    def labels(self) -> list[str]:
        return labels_of(self.recipe, self.rows.train)


def check_numbers(ks: Sequence[int], seeds: Sequence[int]) -> None:
    if not ks or min(ks) < 1:
        found = f"{min(ks)} examples" if ks else "no number of examples"
        raise RecipeError(found, where="--k", expected="whole numbers from 1 on", hint="--k 4 8 16")
    if not seeds:
        raise RecipeError("no seed", where="--seeds", expected="one or more", hint="--seeds 3")


def adapter_of(recipe: Recipe, method: str) -> Adapter:
    """The recipe's own adapter where it is of this method, else the method with its defaults. Raises RecipeError for an unknown one."""
    if method == recipe.adapter.method:
        return recipe.adapter
    try:
        return make_recipe({"data": {"train": "-"}, "adapter": {"method": method}}).adapter
    except RecipeError as error:
        raise RecipeError(
            f"the recipe has no method {method!r}",
            where="--methods",
            expected=f"{IN_CONTEXT}, or as adapter.method {error.expected}",
        ) from error


def prepare_study(recipe: Recipe, folder: Path, progress: Progress, stop: StopSignal) -> Study:
    """Read, clean, split and guard the rows once, for all runs."""
    data = recipe.data.model_copy(update={"per_class": None})
    recipe = recipe.model_copy(update={"data": data})
    run = Run(folder / "pool", Progress(quiet=True), Evidence(recipe), "pool")
    chosen = pipeline.choose(run, recipe)
    rows = pipeline.clean(run, recipe, chosen)
    files = {
        split: write_rows(folder / "data" / f"{split}.jsonl", getattr(rows, split)) for split in ("validation", "test")
    }
    for split in files:
        if not getattr(rows, split):
            raise RecipeError(
                f"there are no {split} rows",
                where=f"data.{split}",
                expected="rows to choose a method by, and others to prove it on",
                hint=f"--set data.{split}=0.2",
            )
    if not check_answerable([*rows.validation, *rows.test]):
        raise RecipeError(
            "the rows are plain text, which has no answers to learn from a few examples",
            where="data.train",
            expected="rows with an answer or a label",
        )
    by_label = recipe.task.kind == "classify"
    return Study(recipe, folder, chosen, rows, files, by_label, progress, stop)


def write_rows(path: Path, rows: Sequence[Row]) -> str:
    write_text(path, "".join(f"{json.dumps(row.as_json(), ensure_ascii=False)}\n" for row in rows))
    return str(path)


def write_draw(study: Study, k: int, seed: int) -> tuple[str, int]:
    """The file of the rows that every method learns from at this k and seed, and how many they are."""
    fewer = study.recipe.data.take_fewer
    rows = draw(study.rows.train, k, seed, by_label=study.by_label, fewer=fewer, where="--k")
    return write_rows(study.folder / "data" / f"k{k}-s{seed}.jsonl", rows), len(rows)


def recipe_of(study: Study, method: str, adapter: Adapter, seed: int, file: str, rows: int = 1) -> Recipe:
    """The recipe of one tuned run: its own rows, few-shot rates, and a score head where the head alone is tuned.

    A learning rate that the study's recipe gives is for the recipe's own method alone.
    """
    recipe, plan = study.recipe, SCHEDULES.get(method, TUNED)
    batch = BATCH if recipe.train.batch_size == "auto" else recipe.train.batch_size
    own = recipe.train.learning_rate != "auto" and method == recipe.adapter.method
    train = recipe.train.model_copy(
        update={
            "epochs": plan.epochs(rows, batch),
            "learning_rate": recipe.train.learning_rate if own else plan.rate,
            "batch_size": batch,
            "seed": seed,
        }
    )
    head = adapter.method == "head"
    if head:
        train = train.model_copy(update={"layer_decay": 1.0, "gradual_unfreezing": 0.0})
    data = recipe.data.model_copy(
        update={
            "train": [file],
            "validation": [study.files["validation"]],
            "test": [study.files["test"]],
            "columns": {},  # the rows are written under our own names
            "only": {},
            "sample": None,
        }
    )
    return recipe.model_copy(
        update={
            "data": data,
            "train": train,
            "adapter": adapter,
            "freeze": Freeze() if head or METHODS[adapter.method].prompts else recipe.freeze,
            "objective": "classify" if head and study.by_label else recipe.objective,
            "task": recipe.task.model_copy(update={"labels": study.labels}),
        }
    )


def objective_of(study: Study, adapter: Adapter) -> Objective:
    return make_objective(recipe_of(study, adapter.method, adapter, 0, "").objective)
