"""Ways to tune all weights on few rows, side by side: plain, with rates that fall with depth, unfrozen by and by, with a frozen lower half.

    python bench/transfer.py                       # SmolLM2-135M, 8 intents of BANKING77, 8 rows of each, three seeds
    python bench/transfer.py --ways full head --seeds 1 --only 4

Every way gets the same rows, order, steps and peak rate at each seed, and answers the same held-out rows. No way is tuned further, and
nothing is chosen by what is measured: the last weights answer. Prints accuracy and loss for each, and their means over the seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared/data/banking77"
PER_CLASS, HELD_OUT = 8, 120
FULL: dict[str, Any] = {"adapter": {"method": "full"}}
WAYS: dict[str, dict[str, Any]] = {
    "full": FULL,
    "layer_decay 0.9": {**FULL, "train": {"layer_decay": 0.9}},
    "gradual_unfreezing 0.5": {**FULL, "train": {"gradual_unfreezing": 0.5}},
    "lower half frozen": {**FULL, "freeze": {"layers": "0-14", "modules": ["embed_tokens"]}},
    "head": {"adapter": {"method": "head"}, "train": {"learning_rate": 3e-3, "epochs": 60}},
}


def measure(way: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train one way on the rows of one seed: accuracy and nats on the held-out rows, seconds of training."""
    from burnish import pipeline
    from burnish.folder import Run
    from burnish.guards import Evidence
    from burnish.joint import tasks_of
    from burnish.model.sample import Sampler
    from burnish.parts import make_feed, make_optimizer, remember_features, settle
    from burnish.progress import Progress
    from burnish.recipe import make_recipe
    from burnish.train.loop import fit

    labels = json.loads((args.data / "categories.json").read_text())[: args.only]
    own = WAYS[way]
    recipe = make_recipe(
        {
            "model": args.model,
            "task": {"kind": "classify", "goal": "Say which intent a bank customer's question has."},
            "objective": "classify",
            "data": {
                "train": str(args.data / "train.csv"),
                "only": {"label": labels},
                "per_class": PER_CLASS,
                "validation": 8,
                "test": HELD_OUT,
            },
            **own,
            "train": {
                "epochs": args.epochs,
                "batch_size": 8,
                "learning_rate": args.rate,
                "max_length": 128,
                "seed": seed,
                **own.get("train", {}),
            },
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), Progress(quiet=True), Evidence(recipe), "transfer")
        chosen = pipeline.choose(run, recipe)
        guarded = pipeline.clean(run, recipe, chosen)
        tokenized = pipeline.tokenize(run, recipe, chosen, guarded)
        settings = settle(recipe, chosen, tokenized)
        net = pipeline.net_to_train(recipe, chosen, tokenized, settings)
        exams = pipeline.define_metric(run, recipe, chosen, tokenized, guarded)
        feed, optim = make_feed(recipe, tokenized, settings), make_optimizer(recipe, net, settings)
        began = time.process_time()
        remember_features(run, net, chosen, tokenized, exams["validation"], recipe.train.max_length)
        fit(net, tasks_of(recipe, chosen, tokenized), feed, optim, [])
        seconds = time.process_time() - began
        sitting = exams["test"].sit(net, Sampler(net.model, chosen.tokenizer, tokenized.chat.end_ids))
    figures = exams["test"].figures(sitting)
    found = {
        "accuracy": round(figures["accuracy"], 4),
        "nats": round(float(sitting.loss), 4),
        "cpu_seconds": round(seconds, 1),
    }
    return {"way": way, "seed": seed, "rows": len(tokenized.train.rows), "of": len(exams["test"].items), **found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", type=int, default=8, help="so many intents, from the first of the list")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--rate", type=float, default=1.3e-4)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--data", type=Path, default=DATA)
    args = parser.parse_args()
    found: dict[str, list[dict[str, Any]]] = {way: [] for way in args.ways}
    for seed in range(args.seeds):
        for way in args.ways:
            found[way].append(measure(way, seed, args))
            print(json.dumps(found[way][-1]), flush=True)
    for way, each in found.items():
        means = {
            name: round(statistics.mean(one[name] for one in each), 4) for name in ("accuracy", "nats", "cpu_seconds")
        }
        print(
            f"{way:<24} {means['accuracy']:.3f} right, {means['nats']:.3f} nats, {means['cpu_seconds']:.0f} CPU seconds"
        )


if __name__ == "__main__":
    main()
