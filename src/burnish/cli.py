"""The command line: parse, call, print. Results go to stdout, progress to stderr; the thinking is elsewhere.

Exit codes: 0 done; 1 done, but a guard or the verdict says no; 2 the input is wrong; 3 something failed.
"""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from burnish import api
from burnish.errors import BurnishError

INTERRUPTED = 130  # what typer returns after Ctrl-C

app = typer.Typer(
    help="Fine-tune a language model on your own examples, and prove whether it got better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(help="Look at, clean and split a file of examples.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")

RecipePath = Annotated[Path, typer.Argument(help="a recipe in YAML")]
RunPath = Annotated[Path, typer.Argument(help="the folder of a run")]
Files = Annotated[list[str], typer.Argument(help="files of examples; file#500 takes 500 rows")]
Overrides = Annotated[list[str], typer.Option("--set", help="a.b=value overrides a key of the recipe")]
Columns = Annotated[
    list[str], typer.Option("--column", help="label=category: what a format calls it = what your file calls it")
]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]
Force = Annotated[bool, typer.Option("--force", help="do it although the verdict, or a file that is there, says no")]


class Several(typer.core.TyperCommand):
    """A command whose list options take several values at once: `--k 4 8 16` is `--k 4 --k 8 --k 16`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        lists = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        current, taken = "", 0
        for arg in args:
            if arg.startswith("-"):
                current, taken = (arg if arg in lists else ""), 0
            elif current:
                spread += [current] if taken else []
                taken += 1
            spread.append(arg)
        return super().parse_args(ctx, spread)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="a file of examples")],
    goal: Annotated[str, typer.Option(help="one sentence: what is the model for?")] = "",
    model: Annotated[
        str, typer.Option(help="a built-in name, a Hugging Face id, a folder or a .gguf file")
    ] = "smollm2-135m",
    out: Annotated[Path, typer.Option("-o", "--out", help="where to write it")] = Path("recipe.yaml"),
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a recipe from a file of examples by looking at it."""
    from burnish.starter import write_recipe

    if not goal and sys.stdin.isatty():
        goal = typer.prompt("One sentence: what is the model for?", default="", show_default=False)
    written = write_recipe(data, out, goal=goal, model=model, force=force)
    show(written, as_json, f"{written['recipe']}\n# written to {out}; next: burnish run {out}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check the installation, the accelerator, the disk and the packages."""
    found = api.doctor()
    show(
        found,
        as_json,
        "\n".join(f"{item['status']:<5} {item['name']:<14} {item['found']}{hint(item['fix'])}" for item in found),
    )
    if any(item["status"] == "fail" for item in found):
        raise typer.Exit(3)


@data_app.command("check")
def data_check(
    files: Files,
    column: Columns = [],  # noqa: B006 - typer reads the default, nobody changes it
    model: Annotated[
        str, typer.Option(help="also show rows as this model's tokenizer sees them; empty for none")
    ] = "smollm2-135m",
    as_json: AsJson = False,
) -> None:
    """Show what is in a file of examples and what is wrong with it."""
    from burnish.inspect import inspect

    found = inspect(files, columns=as_columns(column), model=model)
    show(found.as_json(), as_json, found.as_text())


@data_app.command("clean")
def data_clean(
    files: Files,
    out: Annotated[Path, typer.Option("-o", "--out", help="the JSON Lines file to write")],
    column: Columns = [],  # noqa: B006
    redact: Annotated[bool, typer.Option(help="replace personal data and secrets by their kind")] = False,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a clean copy of a file of examples, and beside it what was dropped or changed."""
    from burnish.data.check import write_clean

    written = write_clean(files, out, columns=as_columns(column), redact=redact, overwrite=force)
    show(
        written,
        as_json,
        f"{written['written']} of {written['read']} rows written to {out}; the ledger is {written['ledger']}",
    )


@data_app.command("augment")
def data_augment(
    files: Files,
    out: Annotated[Path, typer.Option("-o", "--out", help="the JSON Lines file to write")],
    noise: Annotated[float, typer.Option(help="rows with typing errors for each row, such as 0.5")] = 0.0,
    rate: Annotated[float, typer.Option(help="share of a prompt's words that noise changes")] = 0.1,
    kind: Annotated[list[str], typer.Option(help="of noise: typo, swap, letter, case, word; all by default")] = [],  # noqa: B006
    oversample: Annotated[float, typer.Option(help="bring each label to this ratio of the most frequent one")] = 0.0,
    rewrite: Annotated[float, typer.Option(help="rewritten rows for each row; needs --endpoint")] = 0.0,
    via: Annotated[str, typer.Option(help="the language or manner that a prompt is rewritten in")] = "French",
    back: Annotated[str, typer.Option(help="and the one it is written back in")] = "English",
    endpoint: Annotated[str, typer.Option(help="an OpenAI-compatible address, such as http://localhost:8000/v1")] = "",
    model: Annotated[str, typer.Option(help="what the endpoint calls the model")] = "",
    key_env: Annotated[str, typer.Option(help="the environment variable that holds the API key")] = "",
    held_out: Annotated[list[str], typer.Option(help="files that no generated row may come near")] = [],  # noqa: B006
    seed: int = 0,
    column: Columns = [],  # noqa: B006
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a copy of a file of training examples with rows generated from them, and beside it a ledger."""
    service = {"url": endpoint, "model": model, "key_env": key_env}
    rewriting = {"share": rewrite, "via": via, "back": back, "endpoint": service}
    slips = {"share": noise, "rate": rate, **({"kinds": kind} if kind else {})}
    settings = {"noise": slips, "rewrite": rewriting, "oversample": oversample}
    written = api.augment(
        files, out, settings, held_out=held_out, columns=as_columns(column), seed=seed, overwrite=force
    )
    made = written["generated"]
    kinds = ", ".join(f"{count} by {how}" for how, count in made["by"].items()) or "none"
    text = f"{written['written']} rows written to {out}, {made['rows']} of them generated ({kinds}); the ledger is {written['ledger']}"
    show(written, as_json, text)


@data_app.command("split")
def data_split(
    files: Files,
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write train, validation and test into")],
    validation: Annotated[float, typer.Option(help="share of the rows")] = 0.1,
    test: Annotated[float, typer.Option(help="share of the rows")] = 0.1,
    group_by: Annotated[str, typer.Option(help="rows with one value of this column stay together")] = "",
    seed: int = 0,
    column: Columns = [],  # noqa: B006
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Split a file of examples so that no group and no near-duplicate straddles a split."""
    from burnish.data.check import write_split

    written = write_split(
        files,
        out,
        columns=as_columns(column),
        validation=validation,
        test=test,
        group_by=group_by or None,
        seed=seed,
        overwrite=force,
    )
    show(
        written, as_json, "\n".join(f"{count:>8} rows in {out / name}.jsonl" for name, count in written["rows"].items())
    )


@app.command()
def plan(recipe: RecipePath, overrides: Overrides = [], as_json: AsJson = False) -> None:  # noqa: B006
    """Say what a run would need (memory, tokens, time) without loading a weight."""
    found = api.plan(recipe, overrides=overrides)
    show(found.as_json(), as_json, found.as_text())
    if not found.fits:
        raise typer.Exit(1)


@app.command()
def run(
    recipe: RecipePath,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the run's folder; runs/NAME by default")] = None,
    sample: Annotated[
        int | None, typer.Option(min=8, help="take the whole way on so many rows, for a first try")
    ] = None,
    against_alone: Annotated[
        bool,
        typer.Option(
            "--against-alone", help="of several tasks, also tune each alone, and say which one the others hurt"
        ),
    ] = False,
    overrides: Overrides = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress")] = False,
    as_json: AsJson = False,
) -> None:
    """Take a recipe through the nine steps to a proven model; run again, it goes on where it stopped."""
    overrides = [*overrides, f"data.sample={sample}"] if sample else overrides
    overrides = [*overrides, "mixing.compare_alone=true"] if against_alone else overrides
    report = api.run(recipe, out=out, overrides=overrides, quiet=quiet)
    show(report, as_json, summary(report))
    if report["verdict"] != "ship":
        raise typer.Exit(1)


@app.command(cls=Several)
def fewshot(
    recipe: RecipePath,
    k: Annotated[list[int], typer.Option(help="examples of each class, or in all where there are none")] = [  # noqa: B006
        4,
        8,
        16,
        32,
        64,
    ],
    seeds: Annotated[int, typer.Option(help="draws of each k")] = 3,
    methods: Annotated[list[str], typer.Option(help="in_context, or any adapter.method")] = [  # noqa: B006
        "in_context",
        "lora",
        "ia3",
        "head",
    ],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="the study's folder; runs/NAME-fewshot by default")
    ] = None,
    overrides: Overrides = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress")] = False,
    as_json: AsJson = False,
) -> None:
    """Learn from a few examples by several methods, and say which to use at each number of them."""
    from burnish.few_shot.results import as_table

    found = api.fewshot(recipe, k=k, seeds=seeds, methods=methods, out=out, overrides=overrides, quiet=quiet)
    show(found, as_json, f"{as_table(found)}\n  page: {found['folder']}/fewshot.html")


@app.command()
def tune(
    recipe: RecipePath,
    budget: Annotated[
        str, typer.Option(help="trials, or a time such as 20m or 2h, over the whole study; the recipe's by default")
    ] = "",
    ranges: Annotated[list[str], typer.Option("--range", help="key=low:high or key=low:high:log")] = [],  # noqa: B006
    choices: Annotated[list[str], typer.Option("--choices", help="key=a,b,c")] = [],  # noqa: B006
    storage: Annotated[
        str, typer.Option(help="a file, or a database such as sqlite:///studies.db; a journal in the folder by default")
    ] = "",
    seeds: Annotated[int | None, typer.Option(min=1, help="how many the winner is trained with")] = None,
    lr_range: Annotated[bool, typer.Option("--lr-range", help="only test which learning rates do anything")] = False,
    steps: Annotated[int, typer.Option(min=1, help="of the test of learning rates")] = 100,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the folder; runs/NAME-tune by default")] = None,
    overrides: Overrides = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress")] = False,
    as_json: AsJson = False,
) -> None:
    """Search for better hyperparameters on the validation rows; typed again, or in a second shell, it goes on together."""
    if lr_range:
        found = api.lr_range(recipe, steps=steps, out=out, overrides=overrides, quiet=quiet)
        from burnish.tuning.range_test import summary as told_of_rates

        told = told_of_rates(found)
    else:
        options: dict[str, Any] = {"budget": budget or None, "storage": storage or None, "seeds": seeds, "out": out}
        found = api.tune(recipe, ranges=ranges, choices=choices, overrides=overrides, quiet=quiet, **options)
        from burnish.tuning.report import summary as told_of_study

        told = told_of_study(found)
    show(found, as_json, told)
    if (found.get("test") or {"ci95": [0, 0]})["ci95"][1] < 0:  # surely worse than the default on the test rows
        raise typer.Exit(1)


@app.command()
def distill(
    recipe: RecipePath,
    teacher: Annotated[
        str, typer.Option(help="a model's name or folder, the folder of a run, or the address of an endpoint")
    ] = "",
    on: Annotated[str | None, typer.Option(help="answers, probabilities or samples")] = None,
    layers: Annotated[int | None, typer.Option(help="cut the student from the teacher: so many of its layers")] = None,
    keep: Annotated[str, typer.Option(help="or these of its layers, such as 0-3,8")] = "",
    out: Annotated[Path | None, typer.Option("-o", "--out", help="the run's folder; runs/NAME by default")] = None,
    overrides: Overrides = [],  # noqa: B006
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress")] = False,
    as_json: AsJson = False,
) -> None:
    """Run a recipe with a teacher, and hold the student against it: quality and time of an answer."""
    report = api.distill(
        recipe, teacher=teacher, on=on, layers=layers, keep=keep, out=out, overrides=overrides, quiet=quiet
    )
    show(report, as_json, f"{summary(report)}\n{side_by_side(report)}")
    if report["verdict"] != "ship":
        raise typer.Exit(1)


@app.command()
def chat(
    run: RunPath,
    prompt: Annotated[str, typer.Option("-p", "--prompt", help="ask this one thing and end")] = "",
    adapter: Annotated[
        list[str],
        typer.Option(help="NAME=FOLDER: load another adapter beside it; /use NAME or /use NAME+NAME switches"),
    ] = [],  # noqa: B006
    use: Annotated[str, typer.Option(help="the adapters to begin with, such as NAME or own+NAME")] = "",
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Talk to the tuned model of a run; each line on stdin is something said, /new begins again."""
    model = api.load(run, adapters=as_pairs(adapter, "--adapter", "NAME=FOLDER"), force=force)
    if use:
        model.use(*use.split("+"))
    if sys.stdin.isatty() and not prompt:
        print("Say something; /new begins again, Ctrl-D ends.", file=sys.stderr)
    for answer in model.answers(iter([prompt] if prompt else sys.stdin)):
        show({"answer": answer}, as_json, answer)


@app.command()
def export(
    run: RunPath,
    to: Annotated[Path, typer.Option("-o", "--to", help="the folder to write into")],
    kind: Annotated[list[str], typer.Option(help="adapter, merged")] = ["adapter", "merged"],  # noqa: B006
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Write a run's model again, and prove that what was written says the same."""
    parity = api.export(run, to, kinds=kind, force=force)
    show(parity, as_json, f"written to {to}; log-probabilities within {parity['largest_difference']:.1e}")


@app.command(cls=Several)
def merge(
    adapters: Annotated[list[str], typer.Argument(help="folders of runs or of adapters")],
    out: Annotated[Path, typer.Option("-o", "--out", help="the folder to write into")],
    weights: Annotated[list[float], typer.Option(help="one for each; equal ones by default")] = [],  # noqa: B006
    method: Annotated[
        str, typer.Option(help="cat (the exact sum), svd, linear, ties, dare_ties, dare_linear, ...")
    ] = "cat",
    density: Annotated[float | None, typer.Option(help="the share of numbers that ties and dare keep")] = None,
    full: Annotated[bool, typer.Option("--full", help="write the model with it merged in, too")] = False,
    proof: Annotated[bool, typer.Option(help="hold it against each run's own adapter on its test rows")] = True,
    seed: Annotated[int, typer.Option(help="of what dare drops")] = 0,
    force: Force = False,
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="no progress")] = False,
    as_json: AsJson = False,
) -> None:
    """Merge adapters on one base into a new one, and say what that cost each."""
    from burnish.merging import as_text

    options: dict[str, Any] = {"method": method, "density": density, "full": full, "proof": proof, "seed": seed}
    found = api.merge(adapters, out, weights=weights or None, force=force, quiet=quiet, **options)
    show(found, as_json, f"{as_text(found)}\n  written to {out}")


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="where the runs are")] = api.RUNS,
    as_json: AsJson = False,
) -> None:
    """List the runs of a folder and compare them, the newest first."""
    from burnish.folder import runs_table

    found = api.runs(folder)
    show(found, as_json, runs_table(found))


def show(value: Any, as_json: bool, text: str) -> None:
    """Print a result: as JSON for programs, else as text for people."""
    print(json.dumps(value, indent=1) if as_json else text)


def hint(fix: str) -> str:
    return f"\n{'':20} {fix}" if fix else ""


def as_columns(pairs: list[str]) -> dict[str, str] | None:
    return as_pairs(pairs, "--column", "label=category") or None


def as_pairs(pairs: list[str], where: str, expected: str) -> dict[str, str]:
    """ "a=b" -> {"a": "b"}."""
    from burnish.errors import RecipeError

    if wrong := [pair for pair in pairs if "=" not in pair]:
        raise RecipeError(f"found {wrong[0]!r}", where=where, expected=expected)
    return dict(pair.split("=", 1) for pair in pairs)


def summary(report: dict[str, Any]) -> str:
    """What a person wants to know when a run has ended."""
    lines = [f"verdict: {report['verdict']}", *(f"  {reason}" for reason in report["reasons"])]
    lines += [f"  guard {g['n']:>2} {g['mistake']:<28} {g['status']:<8} {g['found']}" for g in report["guards"]]
    lines += [f"  {name}: {report['folder']}/{path}" for name, path in report.get("artifacts", {}).items()]
    return "\n".join([*lines, f"  report: {report['folder']}/report.html"])


def side_by_side(report: dict[str, Any]) -> str:
    """Teacher and student in two lines."""
    found = report.get("distillation")
    if not found:
        return "  teacher and student were not compared"
    quality, seconds = found["quality"], found["seconds"]
    (low, high), (fast, slow) = quality["ci95"], found["time_ratio_ci95"]
    return (
        f"  {quality['metric']}: teacher {quality['teacher']:.3f}, student {quality['student']:.3f}, "
        f"{quality['delta']:+.3f} (95% {low:+.3f} to {high:+.3f}) on {quality['n']} rows\n"
        f"  an answer takes the teacher {seconds['teacher']['median']:.3f} s and the student {seconds['student']['median']:.3f} s "
        f"(medians; {found['time_ratio']:.0%}, 95% {fast:.0%} to {slow:.0%}); "
        f"half the time at no lower quality: {found['half_the_time_no_lower']}"
    )


def main() -> None:
    """Run the command; whatever the user can put right is printed without a traceback."""
    try:
        code = app(standalone_mode=False) or 0
        sys.exit(3 if code == INTERRUPTED else code)
    except BurnishError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(3)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:  # a place that cannot be read or written, such as a file where a folder should be
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(3 if error.errno == errno.ENOSPC else 2)
    except Exception as error:
        usage = getattr(error, "show", None)  # what click says of a wrong option
        if usage is None:
            raise
        usage()
        sys.exit(2)


if __name__ == "__main__":
    main()
