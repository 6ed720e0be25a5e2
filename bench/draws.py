"""The rows that `burnish run RECIPE --set data.per_class=K --set train.seed=SEED` learns from, written where `setfit.py` looks for them.

    python bench/draws.py bench/recipes/banking77-ten-shot.yaml --k 10 --seeds 0 1 2 -o STUDY
    python bench/setfit.py STUDY --k 10 --seed 0 1 2

Nothing is trained. The SHA-256 of each draw is printed, so that two machines can see that they learnt from the same rows.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

from burnish import pipeline
from burnish.few_shot.prepare import write_rows
from burnish.folder import Run
from burnish.guards import Evidence
from burnish.progress import Progress
from burnish.recipe import load_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--k", type=int, default=10, help="examples of each class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", "-o", type=Path, required=True, help="the folder of the study")
    asked = parser.parse_args()
    for seed in asked.seeds:
        recipe = load_recipe(asked.recipe, {"data.per_class": asked.k, "train.seed": seed})
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder), Progress(quiet=True), Evidence(recipe), "draw")
            rows = pipeline.clean(run, recipe, pipeline.choose(run, recipe))
        for name, drawn in ((f"k{asked.k}-s{seed}", rows.train), ("test", rows.test)):
            path = Path(write_rows(asked.out / "data" / f"{name}.jsonl", drawn))
            print(f"{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}  {len(drawn)} rows  {path}", flush=True)


if __name__ == "__main__":
    main()
