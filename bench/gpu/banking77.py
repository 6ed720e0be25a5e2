"""Classification with a head: burnish and a plain loop of transformers on all of BANKING77, each in a process of its own, in one run.

    python bench/gpu/banking77.py                                # six epochs on whatever device there is
    python bench/gpu/banking77.py --epochs 1 --rows 320          # a quick try, on a CPU too
    python bench/gpu/banking77.py --sides burnish --model FOLDER --data FOLDER --out result.json

All weights of SmolLM2-135M and a head for 77 intents (Casanueva et al. 2020, arXiv 2003.04807) learn in steps of 64 rows: the same rows,
epochs, steps, AdamW and learning rates on both sides, float32 weights with products in bfloat16. The plain side pads a batch to its
longest text, as a data collator would; burnish packs. What is timed is the whole process, from its start to its last prediction, with
loading, compiling and the test in it. The files come as they are: some test texts stand in train too, the same ones for both sides.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[3] / "shared/data/banking77"
SIDES = ("plain", "burnish")
RATE, BATCH, WARMUP, DECAY, CLIP, BETAS = 1e-4, 64, 0.05, 0.01, 1.0, (0.9, 0.95)
LONGEST = 128  # tokens of a text
WARM = 10  # steps before the steady rate is measured
MARK = "RESULT "


def rows_of(file: Path, count: int | None) -> tuple[list[str], list[str]]:
    """Texts and labels of a file, or of `count` of its rows, the same ones each time."""
    with file.open(encoding="utf-8", newline="") as opened:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(opened)]
    if count:
        rows = random.Random(0).sample(rows, min(count, len(rows)))
    return [text for text, _ in rows], [label for _, label in rows]


class Clock:
    """When the steps ended, in seconds since the process began, with the device idle at the first and last of them."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.marks: dict[str, float] = {}
        self.steps = 0

    def mark(self, name: str) -> None:
        synchronize()
        self.marks[name] = time.perf_counter() - self.began

    def after(self, step: Any = None) -> None:
        """One more step is done; burnish's loop calls this as a hook."""
        self.steps += 1
        if self.steps == WARM:
            self.mark("warm")

    @property
    def rate(self) -> float:
        """Steps a second, without the first few."""
        if "warm" not in self.marks or self.steps == WARM:
            return self.steps / (self.marks["trained"] - self.marks["ready"])
        return (self.steps - WARM) / (self.marks["trained"] - self.marks["warm"])


# The plain side -------------------------------------------------------------------------------------------------------------------------


def deal(count: int, epochs: int) -> Iterator[list[int]]:
    """The rows of each step: shuffled each epoch, in as many steps as burnish's feed takes."""
    steps = max(1, round(count / BATCH))
    for epoch in range(epochs):
        order = list(range(count))
        random.Random(epoch).shuffle(order)
        for step in range(steps):
            yield order[count * step // steps : count * (step + 1) // steps]


def run_plain(options: argparse.Namespace, clock: Clock) -> list[str]:
    """The loop that one would write: a padded batch, autocast, AdamW, a warm-up and a cosine. Returns the predicted labels."""
    import math

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts, labels = rows_of(options.data / "train.csv", options.rows)
    names = sorted(set(labels))
    clock.mark("imported")
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForSequenceClassification.from_pretrained(
        options.model, num_labels=len(names), pad_token_id=tokenizer.pad_token_id, dtype=torch.float32
    ).to(device)
    encoded = tokenizer(texts, truncation=True, max_length=LONGEST)["input_ids"]
    classes = torch.tensor([names.index(label) for label in labels])
    total = len(list(deal(len(texts), options.epochs)))

    def batch_of(ids: Sequence[list[int]]) -> dict[str, torch.Tensor]:
        padded = tokenizer.pad({"input_ids": list(ids)}, return_tensors="pt")
        return {name: value.to(device, non_blocking=True) for name, value in padded.items()}

    def share_at(step: int) -> float:
        rise = max(1, round(total * WARMUP))
        return (
            (step + 1) / rise if step < rise else 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))
        )

    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    decays = [{"params": matrices, "weight_decay": DECAY}, {"params": vectors, "weight_decay": 0.0}]
    optim = torch.optim.AdamW(decays, lr=RATE, betas=BETAS, fused=device.type == "cuda")
    schedule = torch.optim.lr_scheduler.LambdaLR(optim, share_at)
    half = torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16")
    model.train()
    clock.mark("ready")
    for rows in deal(len(texts), options.epochs):
        with half:
            out = model(**batch_of([encoded[row] for row in rows]), labels=classes[rows].to(device, non_blocking=True))
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optim.step()
        schedule.step()
        optim.zero_grad()
        clock.after()
    clock.mark("trained")
    model.eval()
    asked = tokenizer(rows_of(options.data / "test.csv", options.rows)[0], truncation=True, max_length=LONGEST)[
        "input_ids"
    ]
    order = sorted(range(len(asked)), key=lambda row: len(asked[row]))
    found = [""] * len(asked)
    with torch.inference_mode(), half:
        for start in range(0, len(order), 4 * BATCH):
            part = order[start : start + 4 * BATCH]
            best = model(**batch_of([asked[row] for row in part])).logits.argmax(-1).tolist()
            for row, number in zip(part, best, strict=True):
                found[row] = names[number]
    return found


# Burnish's side -------------------------------------------------------------------------------------------------------------------------


def speed_up(net: Any, options: argparse.Namespace) -> dict[str, Any]:
    """THE place for what makes burnish's side quick on an accelerator: compiled layers, and passes that are recorded and replayed.

    Returns what `fit` must be told of it.
    """
    from burnish.model.adapt import trained_parameters
    from burnish.model.fast import accelerate
    from burnish.train.replay import Replayed

    accelerate(net, compile=options.compile, recompute="none")
    return {"passes": Replayed(net, trained_parameters(net.model).values())} if options.graph else {}


def run_burnish(options: argparse.Namespace, clock: Clock) -> list[str]:
    """The rendering, net, feed, optimiser and loop of `burnish run`. Returns the predicted labels."""
    import torch

    from burnish.data.classes import Classes
    from burnish.data.feed import Feed, micro_batches
    from burnish.data.rows import Labelled, Turn
    from burnish.model.adapt import adapt, trained_parameters
    from burnish.model.fast import expect_compiling
    from burnish.model.load import Head, load_model, load_tokenizer
    from burnish.model.net import Net
    from burnish.objectives.classify import Classify
    from burnish.recipe import Adapter, Freeze
    from burnish.train.loop import fit
    from burnish.train.optim import Optim

    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    texts, labels = rows_of(options.data / "train.csv", options.rows)
    names = sorted(set(labels))
    clock.mark("imported")
    if options.compile and device.type == "cuda":
        expect_compiling(device)
    chat = Classes(load_tokenizer(options.model), names, max_length=LONGEST)

    def groups_of(texts: list[str], labels: list[str]) -> list[Any]:
        return [
            chat.render(Labelled(file="rows", line=line, turns=(Turn("user", text),), label=label))
            for line, (text, label) in enumerate(zip(texts, labels, strict=True), 1)
        ]

    groups = groups_of(texts, labels)
    clock.mark("rendered")
    head = Head(chat.labels, chat.tokenizer.pad_token_id)
    model = load_model(options.model, dtype=torch.float32, head=head).to(device)
    net = Net(adapt(model, Adapter(method="full"), Freeze()), precision=options.precision)
    told = speed_up(net, options) if device.type == "cuda" else {}
    sizes = {"row_tokens": options.row_tokens, "micro_tokens": options.micro_tokens}
    feed = Feed(groups, task="main", batch_size=BATCH, epochs=options.epochs, seed=0, **sizes)
    optim = Optim(
        trained_parameters(net.model),
        learning_rate=RATE,
        total=feed.total_steps,
        warmup=WARMUP,
        weight_decay=DECAY,
        clip=CLIP,
        recorded="passes" in told,
    )
    clock.mark("ready")
    fit(net, {"main": (Classify(), 1.0)}, feed, optim, [clock], **told)
    clock.mark("trained")
    net.eval()
    asked, _ = rows_of(options.data / "test.csv", options.rows)
    found: list[str] = []
    with torch.no_grad():
        for batch in micro_batches(groups_of(asked, [names[0]] * len(asked)), "main", **sizes):
            best = net(batch.to(device), Classify.needs).score.argmax(-1).tolist()
            found += [names[number] for number in best]
    return found


# Both -----------------------------------------------------------------------------------------------------------------------------------


def synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def run_side(options: argparse.Namespace) -> None:
    """One side, in this process; its result is the last line."""
    clock = Clock()
    predicted = {"plain": run_plain, "burnish": run_burnish}[options.side](options, clock)
    clock.mark("tested")

    import torch

    wanted = rows_of(options.data / "test.csv", options.rows)[1]
    on_card = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_card else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    result = {
        "steps": clock.steps,
        "steps_per_second": clock.rate,
        "accuracy": sum(one == other for one, other in zip(predicted, wanted, strict=True)) / len(wanted),
        "peak_bytes": peak,
        "marks": clock.marks,
        "device": torch.cuda.get_device_name() if on_card else "CPU",
        "torch": torch.__version__,
    }
    print(f"\n{MARK}{json.dumps(result)}", flush=True)


def run_child(side: str, options: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own, and how long that process lived."""
    words = [sys.executable, __file__, "--side", side, "--model", options.model, "--data", str(options.data)]
    for name in ("epochs", "rows", "precision", "row_tokens", "micro_tokens"):
        if (value := getattr(options, name)) is not None:
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--compile" if options.compile else "--no-compile", "--graph" if options.graph else "--no-graph"]
    began = time.perf_counter()
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - began
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not lines:
        return {"error": f"ended with {done.returncode}", "seconds": seconds}
    return json.loads(lines[-1].removeprefix(MARK)) | {"seconds": seconds}


def show(results: dict[str, dict[str, Any]]) -> None:
    print(f"{'':10}{'seconds':>10}{'steps/s':>10}{'accuracy':>10}{'peak GiB':>10}   seconds from the start")
    for side, found in results.items():
        if "error" in found:
            print(f"{side:10}{found['error']}")
            continue
        marks = ", ".join(f"{name} {seconds:.1f}" for name, seconds in found["marks"].items())
        figures = f"{found['seconds']:10.1f}{found['steps_per_second']:10.2f}{found['accuracy']:10.4f}"
        print(f"{side:10}{figures}{found['peak_bytes'] / 2**30:10.2f}   {marks}, on {found['device']}")
    if all("seconds" in found and "error" not in found for found in results.values()) and len(results) == len(SIDES):
        plain, ours = results["plain"], results["burnish"]
        steps = ours["steps_per_second"] / plain["steps_per_second"]
        print(
            f"burnish is {plain['seconds'] / ours['seconds']:.2f} times as fast from start to end, {steps:.2f} times by step"
        )


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rows", type=int, help="so many rows of train and of test, for a quick try")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--model", default="", help="a folder in place of the built-in SmolLM2-135M")
    parser.add_argument("--data", type=Path, default=DATA, help="the folder of train.csv and test.csv")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--row-tokens", type=int, default=1024, help="length of burnish's packed rows")
    parser.add_argument("--micro-tokens", type=int, default=16384, help="tokens that go through burnish's net at once")
    parser.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, default=False, help="compile burnish's layers"
    )
    parser.add_argument("--graph", action=argparse.BooleanOptionalAction, default=True, help="record burnish's passes")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    return parser.parse_args()


def main() -> None:
    options = asked()
    if options.side:
        run_side(options)
        return
    if not options.model:
        from burnish.model.load import find_model

        options.model = find_model("smollm2-135m")  # converted before anything is timed
    results = {}
    for side in options.sides:
        print(f"{side} ...", file=sys.stderr, flush=True)
        results[side] = run_child(side, options)
    show(results)
    if options.out:
        options.out.write_text(json.dumps({"epochs": options.epochs, "rows": options.rows, "sides": results}, indent=1))


if __name__ == "__main__":
    main()
