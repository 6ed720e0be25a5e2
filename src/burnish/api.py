"""The Python interface: one function for each verb of the command line, which only parses, calls these and prints.

Whatever needs torch is imported where it is used, so that `import burnish` is instant.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.data.check import Check
    from burnish.recipe import Recipe
    from burnish.serve.chat import Classifier, Conversation
    from burnish.train.plan import Plan

Overrides = Iterable[str] | Mapping[str, Any]
RUNS = Path("runs")


def run(
    recipe: str | Path | Mapping[str, Any],
    *,
    out: str | Path | None = None,
    overrides: Overrides = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Take a recipe through the nine steps and return its report, as `report.json` holds it.

    out: the run's folder; by default `runs/` and the recipe's name, with the size of a sample. The same recipe run again goes on where it
    stopped. Raises a `BurnishError` for whatever the user can put right.
    """
    loaded, name = _load(recipe, overrides)  # before torch is imported: a misspelt key is told at once

    from burnish.pipeline import run_recipe
    from burnish.progress import Progress

    return run_recipe(loaded, Path(out) if out else RUNS / name, Progress(quiet=quiet))


def distill(
    recipe: str | Path | Mapping[str, Any],
    *,
    teacher: str = "",
    on: str | None = None,
    layers: int | None = None,
    keep: str = "",
    out: str | Path | None = None,
    overrides: Overrides = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """`run` with a teacher, whose name, run or address stands here or in the recipe; the report then holds `distillation` too.

    on: answers, probabilities or samples. layers, keep: how many, or which, of the teacher's layers make up the student.
    """
    from burnish.errors import RecipeError

    wanted = {"teacher": teacher, "on": on, "student.layers": layers, "student.keep": keep}
    given = {f"distill.{key}": value for key, value in wanted.items() if value not in (None, "")}
    pairs = dict(overrides) if isinstance(overrides, Mapping) else overrides
    both = {**pairs, **given} if isinstance(pairs, dict) else [*pairs, *(f"{k}={v}" for k, v in given.items())]
    loaded, _ = _load(recipe, both)
    if not loaded.distill.teacher:
        hint = "burnish distill RECIPE --teacher NAME_OR_URL"
        raise RecipeError("there is nobody to learn from", where="distill.teacher", hint=hint)
    return run(recipe, out=out, overrides=both, quiet=quiet)


def plan(recipe: str | Path | Mapping[str, Any], *, overrides: Overrides = ()) -> Plan:
    """What a run would need (memory by part, tokens, steps, time), without loading any weights."""
    loaded, _ = _load(recipe, overrides)

    from burnish.pipeline import plan_recipe

    return plan_recipe(loaded)


def check(files: str | Path | list[str], *, columns: Mapping[str, str] | None = None) -> Check:
    """What is in a file of examples and what is wrong with it."""
    from burnish.data.check import check as check_files

    return check_files(files, columns=columns)


def init(data: str | Path, *, goal: str = "", model: str = "smollm2-135m") -> str:
    """A recipe for a file of examples, as YAML text, made by looking at the file."""
    from burnish.starter import recipe_for

    return recipe_for(str(data), goal=goal, model=model)


def load(folder: str | Path, *, force: bool = False) -> Conversation | Classifier:
    """The tuned model of a run, to talk to or to have texts classified.

    Raises CheckpointError where its verdict is "stop" and `force` is not given.
    """
    from burnish.folder import read_report
    from burnish.serve.chat import open_run
    from burnish.serve.export import refuse_unless_fit

    report = read_report(folder)
    refuse_unless_fit(report, force=force)
    return open_run(folder, report)


def export(
    folder: str | Path, to: str | Path, *, kinds: Iterable[str] = ("adapter", "merged"), force: bool = False
) -> dict[str, Any]:
    """Write a run's model again, into another folder, and hold it against the run's own. Returns what parity found."""
    from burnish.serve.export import export_run

    return export_run(Path(folder), Path(to), list(kinds), force=force)


def runs(folder: str | Path = RUNS) -> list[dict[str, Any]]:
    """The reports of the runs in a folder, the newest first."""
    from burnish.folder import list_runs

    return list_runs(Path(folder))


def doctor() -> list[dict[str, str]]:
    """One record for each thing that a run needs: name, status (ok, warn, fail), found, fix."""
    from burnish.machine import examine

    return examine()


def _load(recipe: str | Path | Mapping[str, Any], overrides: Overrides) -> tuple[Recipe, str]:
    """The recipe and the name of its run; a try on a sample has another name than the real run."""
    from burnish.recipe import load_recipe, make_recipe, with_overrides

    if isinstance(recipe, Mapping):
        loaded = make_recipe(with_overrides(dict(recipe), overrides))
        name = loaded.name or "run"
    else:
        path = Path(recipe)
        loaded = load_recipe(path, overrides)
        name = loaded.name or (path.stem if path.stem != "recipe" else path.resolve().parent.name)
    return loaded, f"{name}-sample{loaded.data.sample}" if loaded.data.sample else name
