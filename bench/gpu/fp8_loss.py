"""What a base in FP8 costs in loss: the same rows learnt in bf16 and in FP8, side by side, over some steps.

    python bench/gpu/fp8_loss.py --data ../shared/data/alpaca_demo/alpaca_en_demo.json.gz          # the built-in SmolLM2-135M
    python bench/gpu/fp8_loss.py --shape llama-3.1-8b --data FILE FILE                             # random weights of another shape
    python bench/gpu/fp8_loss.py --shape tiny --data FILE --steps 4                                # a quick try, on a CPU too

LoRA of rank 16 on all linear layers. Both sides have the same weights, adapters, rows in the same order and learning rates. The rows are
real, in the tokens of SmolLM2. Random weights of a shape say how the rounding adds up over its layers, and little of a language model.
Layers are not compiled: that would change the time alone.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from measure import on_card
from work import LORA_ALPHA, LORA_RANK, SHAPES, random_model

from burnish.core import Group
from burnish.data.feed import Feed
from burnish.data.ledger import Ledger
from burnish.data.render import Chat, render_rows
from burnish.data.sources import read_rows
from burnish.model.adapt import adapt, trained_parameters
from burnish.model.load import find_model, load_model, load_tokenizer
from burnish.model.net import Net
from burnish.model.quantize import quantize
from burnish.objectives.sft import Sft
from burnish.recipe import Adapter, Freeze
from burnish.train.loop import fit
from burnish.train.optim import Optim

SIDES = ("bf16", "fp8")
SHOWN = 20  # steps of a line


def groups_of(options: argparse.Namespace) -> list[Group]:
    """The rows as the run would render them."""
    chat = Chat(load_tokenizer(find_model(options.model)), max_length=options.max_length)
    return render_rows(read_rows(options.data, Ledger()), chat, Ledger()).groups


def model_of(options: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    device = "cuda" if on_card() else "cpu"
    if options.shape:
        return random_model(SHAPES[options.shape], device, torch.bfloat16)
    return load_model(find_model(options.model), dtype=torch.bfloat16).to(device)


def losses_of(side: str, groups: list[Group], options: argparse.Namespace) -> list[float]:
    """The loss of each step, in nats a token."""
    torch.manual_seed(0)
    adapted = adapt(model_of(options), Adapter(rank=LORA_RANK, alpha=LORA_ALPHA), Freeze())
    if side == "fp8":
        quantize(adapted, "fp8")
    net = Net(adapted, precision=side)
    feed = Feed(
        groups,
        task="sft",
        batch_size=options.batch_size,
        epochs=1000,
        max_steps=options.steps,
        row_tokens=None if on_card() else options.max_length,
        micro_tokens=16384,
        seed=0,
    )
    optim = Optim(trained_parameters(net.model), learning_rate=options.learning_rate, total=feed.total_steps)
    losses: list[float] = []

    class Watch:
        def after(self, step: Any) -> None:
            losses.append(step.loss)

    fit(net, {"sft": (Sft(), 1.0)}, feed, optim, [Watch()])
    return losses


def show(found: dict[str, list[float]]) -> float:
    """A line for every few steps; returns how far FP8 lies above bf16 over all of them, as a share."""
    print(f"{'steps':>12}{'bf16':>10}{'FP8 base':>10}{'off':>10}")
    count = len(found["bf16"])
    parts = [(start, min(start + SHOWN, count)) for start in range(0, count, SHOWN)]
    for start, end in [*parts, (0, count)]:
        plain, rounded = (statistics.fmean(found[side][start:end]) for side in SIDES)
        print(f"{start + 1:>5} to {end:>3}{plain:>10.4f}{rounded:>10.4f}{rounded / plain - 1:>+10.2%}")
    return rounded / plain - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, help="files of rows that answer a prompt")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokens, and without --shape whose weights")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32, help="rows of a step")
    parser.add_argument("--max-length", type=int, default=1024)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--most", type=float, default=0.005, help="by what share FP8 may lie above bf16")
    parser.add_argument("--out", type=Path, help="where the losses go as JSON")
    options = parser.parse_args()
    groups, found = groups_of(options), {}
    for side in SIDES:
        print(f"{side} ...", file=sys.stderr, flush=True)
        found[side] = losses_of(side, groups, options)
        gc.collect()
        if on_card():
            torch.cuda.empty_cache()
    off = show(found)
    if options.out:
        options.out.write_text(json.dumps({"shape": options.shape, "model": options.model, "losses": found}))
    print(
        f"{'PASS' if abs(off) <= options.most else 'FAIL'}: {off:+.2%} over all steps, to stay within {options.most:.1%}"
    )
    return 0 if abs(off) <= options.most else 1


if __name__ == "__main__":
    sys.exit(main())
