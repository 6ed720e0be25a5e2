"""How much of BANKING77 the built-in SmolLM2-135M learns: by a head, by writing, and from ten examples a class, over several seeds.

    python bench/banking77_accuracy.py                                     # every arm, three seeds
    python bench/banking77_accuracy.py --arms head --seeds 0 --at-once 1
    python bench/banking77_accuracy.py --arms head --set train.learning_rate=2e-3 --out results.json

Each run is `burnish run` on a recipe of `bench/recipes`, in a process of its own, scored on the test file. An arm passes where the mean
over its seeds reaches the mark. `python bench/setfit.py` has SetFit on the same draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from command import report_of

RECIPES = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True)
class Arm:
    """A recipe with some keys set, and the accuracy to reach."""

    recipe: str
    mark: float
    keys: tuple[str, ...] = ()


ARMS = {
    "head": Arm("banking77-head.yaml", 0.93),
    "write": Arm("banking77-write.yaml", 0.92),
    "ten-shot": Arm("banking77-ten-shot.yaml", 0.80),
}


def run(name: str, seed: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One `burnish run`: its accuracy on the test rows and its time, or what it said when it failed."""
    arm, out = ARMS[name], folder / f"{name}-{seed}"
    keys = [*arm.keys, f"train.seed={seed}", *options.set]
    report = report_of("run", RECIPES / arm.recipe, out, keys)
    if "error" in report:
        return {"arm": name, "seed": seed, "error": report["error"]}
    figures = {figure["name"]: figure["tuned"] for figure in report["evaluation"]["figures"]}
    figures[report["evaluation"]["metric"]] = report["evaluation"]["tuned"]
    seconds = {step["name"]: step["seconds"] for step in report["steps"]}
    found = {"accuracy": figures["accuracy"], "n": report["evaluation"]["n"], "train": report["data"]["train"]}
    return {"arm": name, "seed": seed, **found, "seconds": seconds, "device": report["training"]["device"]}


def show(results: list[dict[str, Any]]) -> bool:
    """Print a line for each arm; whether all reached their mark."""
    reached = []
    for name in dict.fromkeys(result["arm"] for result in results):
        runs = [result for result in results if result["arm"] == name]
        for result in runs:
            if "error" in result:
                print(f"{name} seed {result['seed']}: FAILED: {result['error']}")
        scores = [result["accuracy"] for result in runs if "error" not in result]
        if not scores:
            reached.append(False)
            continue
        mean, spread = statistics.mean(scores), statistics.stdev(scores) if len(scores) > 1 else 0.0
        reached.append(mean >= ARMS[name].mark and len(scores) == len(runs))
        each = ", ".join(f"{score:.4f}" for score in scores)
        verdict = "PASS" if reached[-1] else "FAIL"
        print(
            f"{verdict} {name}: {mean:.4f} (sd {spread:.4f}; {each}) on {runs[0].get('n')} rows, to reach {ARMS[name].mark}"
        )
    return all(reached)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; a large GPU has room for several")
    parser.add_argument("--set", action="append", default=[], help="a key of every recipe, as `burnish run --set`")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder without it")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.at_once) as pool:
        folder = options.folder or Path(temporary)
        asked = [(name, seed) for seed in options.seeds for name in options.arms]
        results = list(pool.map(lambda one: run(*one, folder, options), asked))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1))
    return 0 if show(results) else 1


if __name__ == "__main__":
    sys.exit(main())
