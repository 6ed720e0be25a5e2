"""Several tasks in one model, each beside a model tuned on it alone, over several seeds.

    python bench/multi_task.py bench/recipes/three_tasks.yaml --seeds 0 1 2 --at-once 3

Each run is `burnish run RECIPE --against-alone`, in a process of its own. A task passes where its mean over the seeds is at most one point
below that of the models tuned alone, or where a report says that the others hurt it or may hurt it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from command import report_of

POINT = 0.01


def run(seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One run: each task's figures, together and alone, or what it said when it failed."""
    keys = [f"train.seed={seed}", *options.set]
    report = report_of("run", options.recipe, folder / f"seed-{seed}", keys, "--against-alone")
    if "error" in report:
        return {"seed": seed, "error": report["error"]}
    if "tasks" not in report["evaluation"]:
        return {"seed": seed, "error": " ".join(report["reasons"])}
    tasks = {
        name: {key: one[key] for key in ("metric", "n", "base", "tuned")} | {"against_alone": one["against_alone"]}
        for name, one in report["evaluation"]["tasks"].items()
    }
    seconds = {step["name"]: step["seconds"] for step in report["steps"]}
    mix = {
        name: {key: one[key] for key in ("share", "dealt", "passes", "train")} for name, one in report["tasks"].items()
    }
    return {"seed": seed, "tasks": tasks, "mix": mix, "seconds": seconds, "device": report["training"]["device"]}


def show(results: list[dict[str, Any]]) -> bool:
    """Print a line for each task; whether all pass."""
    done = [result for result in results if "error" not in result]
    for result in results:
        if "error" in result:
            print(f"seed {result['seed']}: FAILED: {result['error']}")
    passed = []
    for name in done[0]["tasks"] if done else ():
        runs = [result["tasks"][name] for result in done]
        together, alone = (
            [one[key] for one in part] for key, part in (("tuned", runs), ("alone", [r["against_alone"] for r in runs]))
        )
        gain = statistics.mean(together) - statistics.mean(alone)
        said = [one["against_alone"]["said"] for one in runs]
        passed.append(gain >= -POINT or "hurt" in " ".join(said))
        each = ", ".join(f"{one:.4f}/{other:.4f}" for one, other in zip(together, alone, strict=True))
        print(
            f"{'PASS' if passed[-1] else 'FAIL'} {name}: {runs[0]['metric']} {statistics.mean(together):.4f} together, "
            f"{statistics.mean(alone):.4f} alone, {gain:+.4f} on {runs[0]['n']} rows ({each}); said: {', '.join(said)}"
        )
    return bool(passed) and all(passed) and len(done) == len(results)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="a key of the recipe")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.at_once) as pool:
        results = list(pool.map(lambda seed: run(seed, Path(folder), options), options.seeds))
    if options.out:
        options.out.write_text(json.dumps(results), encoding="utf-8")
    return 0 if show(results) else 1


if __name__ == "__main__":
    sys.exit(main())
