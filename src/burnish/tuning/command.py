"""`burnish tune`, from the recipe to the report."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from burnish.errors import RecipeError, TrainingError
from burnish.folder import Run, files_key, key_of, locked, write_text
from burnish.guards import Evidence
from burnish.joint import files_of
from burnish.pipeline import learnt
from burnish.progress import Progress
from burnish.recipe import Recipe
from burnish.train.hooks import StopSignal
from burnish.tuning.prove import best_recipe, prove
from burnish.tuning.report import make_report, write_report
from burnish.tuning.space import read_budget, read_space, starting_values, usual_space, with_start
from burnish.tuning.storage import is_dead
from burnish.tuning.study import Search, reason_of
from burnish.tuning.trial import gather, resolved

ANOTHER = "--out ANOTHER   begins a new one"
OTHERS = "other processes still run trials of this study; the last one to end trains the winner"


def tune_recipe(
    recipe: Recipe,
    folder: Path,
    name: str,
    progress: Progress,
    *,
    budget: str | int | None = None,
    ranges: Iterable[str] = (),
    choices: Iterable[str] = (),
    storage: str | None = None,
    seeds: int | None = None,
) -> dict[str, Any]:
    """Search, then prove; returns the report, which also lies in the folder as tune.json and tune.html beside best.yaml.

    The same command goes on with the study that is there, or joins one that another process runs.
    """
    limit = read_budget(recipe.tune.budget if budget is None else budget)
    space = read_space(recipe, ranges, choices)
    stop = StopSignal()
    with stop.watching():
        run = Run(folder, progress, Evidence(recipe), name)
        claim(folder, recipe)
        with locked(folder / "data.lock"):  # the rows are cleaned by one process, and read by the others
            material = gather(run, recipe)
        known = resolved(recipe, material)
        space = space or usual_space(recipe, len(material.tokenized.train.groups), known)
        start = starting_values(recipe, space, known)
        space = with_start(space, start)
        shape = {key: one.as_json() for key, one in space.items()}
        key = key_of(material.chosen.key, learnt(recipe), shape, material.guarded.test_hash)
        search = Search(name, folder, recipe, material, space, start, limit, key, stop, progress, storage)
        progress.say(f"  {len(space)} keys, {limit}; trials are judged by {material.metric} on validation")
        proof = None

        def write() -> dict[str, Any]:
            best = best_recipe(search)
            if best:
                write_text(folder / "best.yaml", best.dump())
            report = make_report(search, best, proof)
            write_report(report, folder)
            return report

        try:
            search.run(write)
            if any(not is_dead(trial) for trial in search.running()):
                progress.say(f"  {OTHERS}")
            else:
                _require_one(search)
                with locked(folder / "prove.lock"):
                    proof = prove(run, search, seeds or recipe.tune.seeds)
        finally:
            report = write()
    return report


def claim(folder: Path, recipe: Recipe) -> None:
    """Make the folder that of this study, before anything in it is written anew.

    Raises RecipeError where it is a run's, or that of a study of another recipe or other data.
    """
    if (folder / "report.json").exists():
        raise RecipeError("there is a run here", where=str(folder), expected="a folder of its own", hint=ANOTHER)
    files = [file for one in recipe.each.values() for file in files_of(one)]
    own = {"keys": key_of(learnt(recipe)), "data": files_key(files)}
    with locked(folder / "data.lock"):
        path = folder / "study.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else own
        if known["keys"] != own["keys"]:
            found = "the study here is of another recipe, or of this one with other keys"
        elif known["data"] != own["data"]:
            found = "the study here is of other data: a file has changed since"
        else:
            return write_text(path, json.dumps(own))
    raise RecipeError(found, where=str(folder), hint=ANOTHER)


def _require_one(search: Search) -> None:
    if search.best is None:
        why = reason_of(search.trials()[-1]) if search.trials() else ""
        raise TrainingError(
            f"no trial ran to its end{f'; the last one: {why}' if why else ''}", where="tune", hint="--budget with more"
        )
