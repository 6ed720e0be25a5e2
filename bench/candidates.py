"""Recipes compared on validation rows alone: which settings to give a data set, before its test rows are looked at once.

    python bench/candidates.py bench/recipes/banking77-head.yaml bench/recipes/banking77-candidates.yaml --seeds 0 1 --at-once 16
    python bench/candidates.py RECIPE CANDIDATES --only plain smooth --set data.sample=200 --set train.max_steps=4

CANDIDATES is a YAML file of names, each with the keys that it changes. A seed also draws its own validation rows. Each training is a
process of its own, goes through the steps of a study's trial, and never gets the test rows. Printed for each candidate: the metric at the
look that would be kept, at the last look, and the difference to the first candidate on the same rows, with its standard error.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from burnish.folder import Run
from burnish.guards import Evidence
from burnish.progress import Progress
from burnish.recipe import Recipe, load_recipe, parse_yaml
from burnish.train.hooks import StopSignal
from burnish.tuning.trial import Material, gather, run_trial


def read(options: argparse.Namespace, changes: dict[str, Any], seed: int) -> Recipe:
    given = dict(one.partition("=")[::2] for one in options.set)
    own = {key: parse_yaml(value, key) for key, value in given.items()}
    return load_recipe(options.recipe, {**changes, **own, "train.seed": seed})


def material_of(options: argparse.Namespace, seed: int, folder: Path) -> Material:
    """The rows of a seed: cleaned once, then read from the folder."""
    recipe = read(options, {}, seed)
    return gather(Run(folder / f"rows-{seed}", Progress(quiet=True), Evidence(recipe), "rows"), recipe)


def train(name: str, changes: dict[str, Any], seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One candidate with one seed: every look at the validation rows, and the one that is kept."""
    began = time.perf_counter()
    try:
        recipe, material = read(options, changes, seed), material_of(options, seed, folder)
        outcome = run_trial(folder / f"{name}-{seed}", recipe, material, changed=changes, stop=StopSignal())
    except Exception as error:
        return {"candidate": name, "seed": seed, "error": f"{type(error).__name__}: {error}"[:600]}
    looks = [dataclasses.asdict(look) | {"answers": [], "tasks": {}} for look in outcome.looks]
    report = outcome.trained.report
    found = {"looks": looks, "best": outcome.best.step, "steps": report["steps"], "device": report["device"]}
    seconds = {"seconds": round(time.perf_counter() - began, 1), "training_seconds": report["seconds"]}
    return {"candidate": name, "seed": seed, "changes": changes, **found, **seconds}


def show(results: list[dict[str, Any]], names: list[str]) -> None:
    """A line for each candidate."""
    for result in results:
        if "error" in result:
            print(f"{result['candidate']} seed {result['seed']}: FAILED: {result['error']}")
    done = [result for result in results if "error" not in result]
    first = {result["seed"]: kept(result) for result in done if result["candidate"] == names[0]}
    print(f"{'candidate':<18} kept   last   loss   brier  against {names[0]} on the same rows   seconds")
    for name in names:
        own = [result for result in done if result["candidate"] == name]
        if not own:
            continue
        best, last = [kept(result) for result in own], [result["looks"][-1] for result in own]
        gains = [
            mine - theirs
            for result, look in zip(own, best, strict=True)
            if result["seed"] in first
            for mine, theirs in zip(look["scores"], first[result["seed"]]["scores"], strict=True)
        ]
        error = statistics.pstdev(gains) / math.sqrt(len(gains)) if gains else math.nan
        gain = statistics.fmean(gains) if gains else math.nan
        figures = [mean(best, "metric"), mean(last, "metric"), mean(best, "loss"), mean(best, "brier")]
        steps = "/".join(f"{look['step']}" for look in best)
        print(
            f"{name:<18} {' '.join(f'{one:.4f}' for one in figures)}  {gain:+.4f} (SE {error:.4f}, {len(gains)} rows)"
            f"  {max(result['seconds'] for result in own):.0f}  kept step {steps} of {own[0]['steps']}"
        )


def end_all(number: int, frame: object) -> None:
    """The trainings end with their program; else they would go on with the card or the cores to themselves."""
    for child in multiprocessing.active_children():
        child.kill()
    sys.exit(128 + number)


def kept(result: dict[str, Any]) -> dict[str, Any]:
    return next(look for look in result["looks"] if look["step"] == result["best"])


def mean(looks: list[dict[str, Any]], figure: str) -> float:
    return statistics.fmean(math.nan if look[figure] is None else look[figure] for look in looks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("candidates", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--only", nargs="+", help="some of the candidates")
    parser.add_argument(
        "--at-once", type=int, default=1, help="trainings side by side; a large GPU has room for several"
    )
    parser.add_argument("--set", action="append", default=[], help="a key of every candidate")
    parser.add_argument("--out", type=Path, help="where the results go as JSON, as they come")
    options = parser.parse_args()
    candidates = parse_yaml(options.candidates.read_text(encoding="utf-8"), str(options.candidates))
    names = [name for name in candidates if not options.only or name in options.only]
    asked = [(name, candidates[name] or {}, seed) for name in names for seed in options.seeds]
    results: list[dict[str, Any]] = []
    signal.signal(signal.SIGTERM, end_all)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for seed in options.seeds:
            material_of(options, seed, folder)
        with ProcessPoolExecutor(options.at_once, multiprocessing.get_context("spawn")) as pool:
            for future in [pool.submit(train, *one, folder, options) for one in asked]:
                results.append(future.result())
                if options.out:
                    options.out.write_text(json.dumps(results), encoding="utf-8")
    show(results, names)
    return int(any("error" in result for result in results))


if __name__ == "__main__":
    sys.exit(main())
