"""What LoRA costs against all weights: memory, time and what is written, side by side in one run on whatever device there is.

    python bench/lora_cost.py                       # SmolLM2-135M on alpaca_demo: a few minutes on two cores
    python bench/lora_cost.py --steps 3 --model FOLDER

Both sides train the very same packed rows, eight a step, through the parts of `burnish run`, each in a process of its own. Memory is the
accelerator's peak, or that of the whole process on a CPU. The claim under test is that LoRA cuts the cost by up to 70%.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared/data/alpaca_demo/alpaca_en_demo.json.gz"
BATCH = 8


def measure(method: str, model: str, steps: int) -> dict[str, Any]:
    """One side, in this process."""
    import torch

    from burnish.data.ledger import Ledger
    from burnish.data.render import Chat, render_rows
    from burnish.data.sources import read_rows
    from burnish.model.adapt import trained_parameters
    from burnish.model.load import find_model, load_config, load_tokenizer
    from burnish.objectives.sft import Sft
    from burnish.parts import TASK, Chosen, Tokenized, load_net, make_feed, make_optimizer, settle
    from burnish.recipe import make_recipe
    from burnish.train.loop import Step, fit
    from burnish.train.session import peak_memory

    recipe = make_recipe(
        {
            "model": model,
            "data": {"train": str(DATA)},
            "adapter": {"method": method},
            "train": {"batch_size": BATCH, "max_steps": steps + 1},
        }
    )
    source = find_model(model)
    chosen = Chosen(source, load_config(source), load_tokenizer(source), Sft(), "")
    chat = Chat(chosen.tokenizer)
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.jsonl") as ledger:
        rows = [row for row, _ in zip(read_rows(DATA, ledger), range(BATCH * (steps + 1)), strict=False)]
        train, none = render_rows(rows, chat, ledger), render_rows([], chat, ledger)
    tokenized = Tokenized(chat, train, none, none)
    settings = settle(recipe, chosen, tokenized)
    torch.manual_seed(0)
    net = load_net(recipe, chosen, settings)
    seen: list[Step] = []

    class Watch:
        def after(self, step: Step) -> None:
            seen.append(step)

    feed = make_feed(recipe, tokenized, settings)
    fit(net, {TASK: (Sft(), 1.0)}, feed, make_optimizer(recipe, net, settings), [Watch()])
    trained = trained_parameters(net.model).values()
    timed = seen[1:]  # the first builds kernels
    return {
        "trained": sum(parameter.numel() for parameter in trained),
        "written_mb": sum(parameter.nbytes for parameter in trained) / 1e6,
        "peak_gib": peak_memory() / 2**30,
        "seconds": statistics.median(step.seconds for step in timed),
        "tokens_per_second": sum(step.tokens for step in timed) / sum(step.seconds for step in timed),
        "device": settings.device,
        "precision": settings.precision,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each side")
    parser.add_argument("--side", choices=("lora", "full"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.model, options.steps)))
        return 0
    found = {}
    for side in ("full", "lora"):
        command = [sys.executable, __file__, "--side", side, "--model", options.model, "--steps", str(options.steps)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[side] = json.loads(done.stdout.splitlines()[-1])
    print(f"{options.model} on {found['full']['device']}, products in {found['full']['precision']}")
    print(f"{'':24s}{'all weights':>16s}{'LoRA r=16':>16s}{'less':>8s}")
    for name, title in (
        ("trained", "trained parameters"),
        ("peak_gib", "peak memory, GiB"),
        ("seconds", "seconds a step"),
        ("written_mb", "a checkpoint, MB"),
    ):
        full, lora = found["full"][name], found["lora"][name]
        print(f"{title:24s}{full:16,.2f}{lora:16,.2f}{1 - lora / full:8.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
