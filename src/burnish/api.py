"""The Python interface: one function for each verb of the command line, which only parses, calls these and prints.

Whatever needs torch is imported where it is used, so that `import burnish` is instant.
"""

from __future__ import annotations

import json
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


def fewshot(
    recipe: str | Path | Mapping[str, Any],
    *,
    k: Iterable[int] = (4, 8, 16, 32, 64),
    seeds: int = 3,
    methods: Iterable[str] = ("in_context", "lora", "ia3", "head"),
    out: str | Path | None = None,
    overrides: Overrides = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Learn from k examples (of each class) by several methods, and say which to use at each k.

    out: the study's folder, with `fewshot.json` and `fewshot.html`; by default `runs/` and the recipe's name. seeds: how many draws of
    each k. Returns what `fewshot.json` holds. The same study again does only what is not there.
    """
    loaded, name = _load(recipe, overrides)

    from burnish.few_shot.page import write_page
    from burnish.few_shot.results import summarize
    from burnish.few_shot.study import run_study
    from burnish.folder import write_text
    from burnish.progress import Progress

    folder = Path(out) if out else RUNS / f"{name}-fewshot"
    results = run_study(loaded, folder, list(k), list(range(seeds)), list(methods), Progress(quiet=quiet))
    summary = {**summarize(results, loaded.task.goal), "folder": str(folder)}
    write_text(folder / "fewshot.json", json.dumps(summary, indent=1))
    write_page(summary, folder / "fewshot.html")
    return summary


def tune(
    recipe: str | Path | Mapping[str, Any],
    *,
    budget: str | int | None = None,
    ranges: Iterable[str] = (),
    choices: Iterable[str] = (),
    storage: str | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    overrides: Overrides = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """Search for better hyperparameters and return the study's report, as `tune.json` holds it; `best.yaml` stands beside it.

    budget: a number of trials, or a time such as "20m" or "2h", over the whole study. ranges: "key=low:high" or "key=low:high:log".
    choices: "key=a,b". storage: a file or the URL of a database; by default a journal in the folder. seeds: how many the winner is trained
    with. out: the study's folder, `runs/NAME-tune` by default. The same call goes on where it stopped, or joins another process.
    """
    loaded, name = _load(recipe, overrides)
    _require_optuna()

    from burnish.progress import Progress
    from burnish.tuning.command import tune_recipe

    folder = Path(out) if out else RUNS / f"{name}-tune"
    options: dict[str, Any] = {
        "budget": budget,
        "ranges": ranges,
        "choices": choices,
        "storage": storage,
        "seeds": seeds,
    }
    return tune_recipe(loaded, folder, name, Progress(quiet=quiet), **options)


def lr_range(
    recipe: str | Path | Mapping[str, Any],
    *,
    steps: int = 100,
    out: str | Path | None = None,
    overrides: Overrides = (),
    quiet: bool = False,
) -> dict[str, Any]:
    """The learning-rate range test: returns what `lr-range.json` holds, the suggested rate among it; a page shows the curve."""
    loaded, name = _load(recipe, overrides)

    from burnish.progress import Progress
    from burnish.tuning.range_test import range_test

    return range_test(loaded, Path(out) if out else RUNS / f"{name}-tune", name, Progress(quiet=quiet), steps=steps)


def check(files: str | Path | list[str], *, columns: Mapping[str, str] | None = None) -> Check:
    """What is in a file of examples and what is wrong with it."""
    from burnish.data.check import check as check_files

    return check_files(files, columns=columns)


def augment(
    files: str | Path | list[str],
    out: str | Path,
    settings: Mapping[str, Any],
    *,
    held_out: list[str] | tuple[str, ...] = (),
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a copy of a file of examples with rows generated from them. settings: as `data.augment` of a recipe has them.

    held_out: files that no generated row may come near. Raises a `BurnishError` for whatever the user can put right.
    """
    from burnish.data.check import as_list, write_augmented
    from burnish.errors import RecipeError
    from burnish.recipe import make_recipe

    checked = make_recipe({"data": {"train": as_list(files), "augment": settings}}, where="data augment").data.augment
    if not (checked.noise.share or checked.rewrite.share or checked.oversample):
        raise RecipeError(
            "nothing is to be generated",
            where="data augment",
            hint="--noise 0.5   or --oversample 1   or --rewrite 0.5",
        )
    ask = None
    if checked.rewrite.share:
        if not checked.rewrite.endpoint.url:
            raise RecipeError(
                "it is not said who rewrites",
                where="--rewrite",
                expected="an endpoint",
                hint="--endpoint http://localhost:8000/v1",
            )
        from burnish.rewriter import ask_endpoint

        ask = ask_endpoint(checked.rewrite)
    return write_augmented(
        files, out, checked, held_out=held_out, columns=columns, seed=seed, ask=ask, overwrite=overwrite
    )


def init(data: str | Path, *, goal: str = "", model: str = "smollm2-135m") -> str:
    """A recipe for a file of examples, as YAML text, made by looking at the file."""
    from burnish.starter import recipe_for

    return recipe_for(str(data), goal=goal, model=model)


def load(
    folder: str | Path, *, adapters: Mapping[str, str | Path] | None = None, force: bool = False
) -> Conversation | Classifier:
    """The tuned model of a run, to talk to or to have texts classified.

    adapters: name -> folder of a run or an adapter on the same base, to be loaded beside the run's own (`use` switches and stacks them).
    Raises CheckpointError where its verdict is "stop" and `force` is not given.
    """
    from burnish.folder import read_report
    from burnish.serve.chat import open_run
    from burnish.serve.export import refuse_unless_fit

    report = read_report(folder)
    refuse_unless_fit(report, force=force)
    model = open_run(folder, report)
    for name, place in (adapters or {}).items():
        model.add(name, place)
    return model


def export(
    folder: str | Path, to: str | Path, *, kinds: Iterable[str] = ("adapter", "merged"), force: bool = False
) -> dict[str, Any]:
    """Write a run's model again, into another folder, and hold it against the run's own. Returns what parity found."""
    from burnish.serve.export import export_run

    return export_run(Path(folder), Path(to), list(kinds), force=force)


def merge(
    adapters: Iterable[str | Path],
    out: str | Path,
    *,
    weights: Iterable[float] | None = None,
    method: str = "cat",
    density: float | None = None,
    full: bool = False,
    proof: bool = True,
    seed: int = 0,
    force: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Merge adapters on one base into a new one, and hold it against each run's own on that run's test rows.

    adapters: folders of runs, or of adapters as PEFT saves them. weights: one for each; by default equal ones that add up to 1. method:
    PEFT's combination type; "cat" is the exact weighted sum. density: the share of numbers that TIES and DARE keep. full: write the model
    with it merged in, too. Returns what `merge.json` holds. Raises CheckpointError for what cannot be combined, and
    for a run whose verdict is "stop" where `force` is not given.
    """
    from burnish.merging import merge as merge_adapters
    from burnish.progress import Progress

    options: dict[str, Any] = {"method": method, "density": density, "full": full, "proof": proof, "seed": seed}
    options["force"] = force
    given = None if weights is None else list(weights)
    return merge_adapters(list(adapters), Path(out), Progress(quiet=quiet), weights=given, **options)


def runs(folder: str | Path = RUNS) -> list[dict[str, Any]]:
    """The reports of the runs in a folder, the newest first."""
    from burnish.folder import list_runs

    return list_runs(Path(folder))


def doctor() -> list[dict[str, str]]:
    """One record for each thing that a run needs: name, status (ok, warn, fail), found, fix."""
    from burnish.machine import examine

    return examine()


def _require_optuna() -> None:
    from importlib.util import find_spec

    from burnish.errors import RecipeError

    if find_spec("optuna") is None:
        raise RecipeError("optuna is not installed", where="burnish tune", hint="pip install 'burnish[tune]'")


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
