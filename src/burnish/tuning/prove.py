"""What a study ends with: the winner trained with further seeds, then, once, the winner against the default recipe on the test rows."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from burnish.evaluate.runner import Exam, Sitting
from burnish.evaluate.tasks import compare_all, without_scores
from burnish.folder import Run, key_of
from burnish.pipeline import define_metric, sampler_of, sit, tokenize
from burnish.recipe import Recipe, TunedBy, make_recipe
from burnish.train.hooks import Validation
from burnish.train.ladder import release
from burnish.tuning.study import Search, look_of
from burnish.tuning.trial import run_trial

BASE_IS = "the model tuned with the default recipe"


def best_recipe(search: Search) -> Recipe | None:
    """The recipe of the best trial, with a record of where its values come from; None before any trial is complete."""
    best, default = search.best, search.default
    if best is None:
        return None
    by = TunedBy(
        study=str(search.folder),
        trials=len([trial for trial in search.trials() if trial.state.is_finished()]),
        rows=len(search.material.guarded.train),
        metric=search.material.metric,
        default=look_of(default).metric if default else None,
        best=look_of(best).metric,
        values=search.values_of(best),
    )
    values = search.recipe_of(best).values() | {"tuned_by": by.model_dump(mode="json")}
    return make_recipe(values)


def prove(run: Run, search: Search, seeds: int) -> dict[str, Any]:
    """The winner with `seeds` seeds, and its comparison on the test rows; kept in the study's folder, so that it is done once.

    Returns {"seeds": [{seed, metric, loss, step, test}], "spread": mean and standard deviation by figure, "test": as `evaluation` of a
    report, or None where the default recipe won or no test row is there, "test_looks": how often this study has now looked at the test
    rows}. The first seed is the study's own: the pair that is compared. A study that goes on and finds another winner looks again.
    """
    best, default = search.best, search.default
    assert best is not None
    values = search.values_of(best)
    is_default = default is not None and best.number == default.number
    key = key_of(search.key, values, seeds, is_default, default is None)
    kept = run.kept("prove", key)
    if kept is not None:
        return kept
    compared = bool(search.material.guarded.test) and not is_default and default is not None
    exam, tokenized = None, search.material.tokenized
    if compared:
        tokenized = tokenize(run, search.recipe, search.material.chosen, search.material.guarded)
        exam = define_metric(run, search.recipe, search.material.chosen, tokenized, search.material.guarded)["test"]
    before = (
        _trained(run, search, search.recipe, {}, search.folder_of(default), exam)[1] if compared and default else None
    )
    found: list[dict[str, Any]] = []
    sittings: list[Sitting | None] = []
    for number in range(seeds):
        seed = search.recipe.train.seed + number
        recipe, folder = search.recipe_of(best), search.folder_of(best)
        if number:
            recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})
            folder = search.folder / "seeds" / str(seed)
        look, sitting = _trained(run, search, recipe, {} if is_default else values, folder, exam)
        figures = exam.figures(sitting) if exam and sitting else {}
        record: dict[str, Any] = {"seed": seed, "metric": look.metric, "loss": look.loss, "step": look.step}
        found.append(record | {"test": figures[exam.metric] if exam and sitting else None})
        sittings.append(sitting)
        told = f", {found[-1]['test']:.3f} on test" if compared else ""
        search.progress.say(f"  seed {seed}  metric {look.metric:.3f}, loss {look.loss:.3f} on validation{told}")
    test = None
    if exam and before and sittings[0]:
        both = compare_all(exam, before, sittings[0], seed=search.recipe.train.seed)
        test = without_scores(both) | {"base_is": BASE_IS}
    looks = search.study.user_attrs.get("test_looks", 0) + compared
    search.study.set_user_attr("test_looks", looks)
    return run.keep("prove", key, {"seeds": found, "spread": spread(found), "test": test, "test_looks": looks})


def _trained(
    run: Run, search: Search, recipe: Recipe, changed: Mapping[str, Any], folder: Path, exam: Exam | None
) -> tuple[Validation, Sitting | None]:
    """The best look of a recipe that is trained, or was, and what its model makes of the test rows."""
    search.progress.begin(recipe.train.seed, "seed")
    outcome = run_trial(folder, recipe, search.material, changed=changed, stop=search.stop, first=not changed)
    net = outcome.trained.net
    sampler = sampler_of(search.material.chosen, net, search.material.tokenized)
    sitting = sit(run, exam, net, sampler, "tuned") if exam else None
    look = outcome.best
    del outcome, net, sampler
    release()
    return look, sitting


def spread(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over the seeds of the figures on validation and test; one seed has no deviation."""
    found: dict[str, Any] = {}
    for name in ("metric", "test"):
        values = [record[name] for record in records if record[name] is not None]
        if values:
            deviation = statistics.stdev(values) if len(values) > 1 else None
            found[name] = {"mean": statistics.fmean(values), "deviation": deviation, "n": len(values)}
    return found
