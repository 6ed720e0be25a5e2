"""Supervised fine-tuning on the CPU: burnish and TRL's SFTTrainer on the same rows, in one run.

    python bench/cpu_sft.py                  # every arm, three times: about half an hour on two cores
    python bench/cpu_sft.py --repeats 1 --steps 3 --arms burnish "trl bf16"

SmolLM2-135M with LoRA r=16 on all linear layers learns the answers of alpaca_demo, eight rows a step. Both sides get the very same token
ids, the same mask of trained tokens, the same order, batch, learning rate and threads. Each arm is a process of its own; the arms take
turns. Tokens are real ones: padding is work, not progress. The gradients of the first step are compared in float32, with B away from zero.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DATA = Path(__file__).resolve().parents[2] / "shared/data/alpaca_demo/alpaca_en_demo.json.gz"
RATE, BATCH, RANK, ALPHA = 2e-4, 8, 16, 32
GOAL = 2.5  # times as fast as TRL's best
BUSY = (
    0.7  # an arm that got a smaller share of its processors was kept waiting by other work: its wall time says nothing
)
QUIET = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}
TOLERANCE = 1e-4  # of a tensor's gradients, over the largest of them

# What each TRL arm changes of SFTConfig's defaults. "weights" is the type that the model is loaded in.
TRL_ARMS: dict[str, dict[str, Any]] = {
    "trl defaults": {},
    "trl fp32": {"bf16": False, "gradient_checkpointing": False},
    "trl bf16": {"bf16": True, "gradient_checkpointing": False},
    "trl bf16 weights": {"bf16": True, "gradient_checkpointing": False, "weights": "bfloat16"},
    "trl bf16 weights, padding-free": {
        "bf16": True,
        "gradient_checkpointing": False,
        "weights": "bfloat16",
        "padding_free": True,
        "max_length": None,
    },
}
BURNISH_ARMS: dict[str, str] = {"burnish": "auto", "burnish fp32": "fp32"}
ARMS = ["gradients", *TRL_ARMS, *BURNISH_ARMS]


# One arm, in its own process --------------------------------------------------------------------------------------------------------


def burnish_groups(count: int) -> list[Any]:
    """The first rows of the data as burnish renders them: one sequence of ids and weights for each."""
    from burnish.data.ledger import Ledger
    from burnish.data.render import Chat
    from burnish.data.sources import read_rows
    from burnish.model.load import find_model, load_tokenizer

    chat = Chat(load_tokenizer(find_model("smollm2-135m")))
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "ledger.jsonl") as ledger:
        rows = [row for row, _ in zip(read_rows(DATA, ledger), range(count), strict=False)]
    return [chat.render(row) for row in rows]


def make_feed(groups: list[Any], precision: str) -> tuple[Any, Any]:
    """The feed of a run, and the settings that `burnish run` would settle on."""
    from burnish.data.feed import Feed
    from burnish.train import memory

    device = memory.device_of_choice()
    settings = memory.Settings(
        batch_size=BATCH,
        micro_tokens=memory.micro_tokens_of_choice("auto", device, 1024),
        epochs=1,
        steps=len(groups) // BATCH,
        learning_rate=RATE,
        precision=memory.precision_of_choice(precision, device),
        device=str(device),
    )
    feed = Feed(
        groups, task="sft", batch_size=BATCH, epochs=1, row_tokens=1024, micro_tokens=settings.micro_tokens, seed=0
    )
    return feed, settings


def make_net(settings: Any) -> Any:
    import torch

    from burnish.model.load import find_model
    from burnish.objectives.sft import Sft
    from burnish.pipeline import Chosen, load_net
    from burnish.recipe import make_recipe

    torch.manual_seed(0)
    recipe = make_recipe({"data": {"train": str(DATA)}, "adapter": {"rank": RANK, "alpha": ALPHA}})
    return load_net(recipe, Chosen(find_model("smollm2-135m"), None, None, Sft(), ""), settings)


def run_burnish(precision: str, groups: list[Any]) -> list[dict[str, float]]:
    from burnish.model.adapt import trained_parameters
    from burnish.objectives.sft import Sft
    from burnish.train.loop import fit
    from burnish.train.optim import Optim

    feed, settings = make_feed(groups, precision)
    net = make_net(settings)
    steps: list[dict[str, float]] = []

    class Watch:
        used = time.process_time()

        def after(self, step: Any) -> None:
            used, self.used = self.used, time.process_time()
            spent = {"seconds": step.seconds, "cpu": self.used - used}
            steps.append({"tokens": step.tokens, "loss": step.loss, **spent})
            print(
                f"  step {step.number}: {step.tokens / step.seconds:.0f} tokens/s, loss {step.loss:.4f}",
                file=sys.stderr,
            )

    optim = Optim(trained_parameters(net.model), learning_rate=RATE, total=feed.total_steps)
    fit(net, {"sft": (Sft(), 1.0)}, feed, optim, [Watch()])
    return steps


def rows_in_order(groups: list[Any]) -> Iterator[Any]:
    """The sequences as burnish's feed deals them out, so that step k holds the same rows on both sides."""
    by_place = {group[0].where: group[0] for group in groups}
    for micro in make_feed(groups, "fp32")[0]:
        for batch in micro:
            yield from (by_place[where] for where in batch.where)


def make_trl(changes: dict[str, Any], groups: list[Any], folder: str, steps: int, callback: Any, **more: Any) -> Any:
    """An SFTTrainer at its defaults, but for the task, for what `changes` names, and for files and messages."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    from burnish.model.load import find_model, load_tokenizer

    changes = dict(changes)
    source = find_model("smollm2-135m")
    weights = changes.pop("weights", "float32")
    sequences = list(rows_in_order(groups))
    masks = [[int(weight != 0) for weight in seq.weight] for seq in sequences]
    return SFTTrainer(
        model=source,
        processing_class=load_tokenizer(source),
        args=SFTConfig(
            output_dir=folder,
            use_cpu=True,
            completion_only_loss=True,
            per_device_train_batch_size=BATCH,
            max_steps=steps,
            learning_rate=RATE,
            train_sampling_strategy="sequential",
            model_init_kwargs={"dtype": weights},
            logging_steps=1,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            **changes,
            **more,
        ),
        train_dataset=Dataset.from_dict({"input_ids": [seq.ids for seq in sequences], "completion_mask": masks}),
        peft_config=LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[callback],
    )


def run_trl(changes: dict[str, Any], groups: list[Any]) -> list[dict[str, float]]:
    from transformers import TrainerCallback

    count = len(groups) // BATCH
    lengths = [len(seq) for seq in rows_in_order(groups)]
    tokens = [sum(lengths[step * BATCH : (step + 1) * BATCH]) for step in range(count)]
    seconds: list[float] = []
    used: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            self.began, self.used = time.perf_counter(), time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            seconds.append(time.perf_counter() - self.began)
            used.append(time.process_time() - self.used)
            print(f"  step {len(seconds)}: {tokens[len(seconds) - 1] / seconds[-1]:.0f} tokens/s", file=sys.stderr)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

    with tempfile.TemporaryDirectory() as folder:
        make_trl(changes, groups, folder, count, Watch()).train()
    rows = zip(tokens, seconds, used, losses, strict=True)
    return [dict(zip(("tokens", "seconds", "cpu", "loss"), row, strict=True)) for row in rows]


def compare_gradients() -> dict[str, Any]:
    """The first step's gradients on both sides in float32, from the same adapter, and how far each is from those of a float64 decoder.

    "worst" is the largest difference within a tensor over its largest gradient; the others are norms of all gradients together.
    """
    import torch
    from transformers import TrainerCallback

    from burnish.model.adapt import trained_parameters
    from burnish.objectives.sft import Sft
    from burnish.train.loop import backward
    from burnish.train.optim import Optim

    groups = burnish_groups(BATCH)
    feed, settings = make_feed(groups, "fp32")
    net = make_net(settings)
    ours = trained_parameters(net.model)
    with torch.no_grad():
        for parameter in ours.values():
            parameter.normal_(std=0.02)
    theirs: dict[str, torch.Tensor] = {}

    class Watch(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            with torch.no_grad():
                for name, parameter in trained_parameters(model).items():
                    parameter.copy_(ours[name])

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
            theirs.update({name: p.grad.clone() for name, p in trained_parameters(model).items()})

    with tempfile.TemporaryDirectory() as folder:
        make_trl(TRL_ARMS["trl fp32"], groups, folder, 1, Watch(), max_grad_norm=0.0).train()
    net.train()
    backward(net, {"sft": (Sft(), 1.0)}, next(iter(feed)), Optim(ours, learning_rate=RATE, total=1, clip=float("inf")))
    assert theirs.keys() == ours.keys()

    def flat(gradients: dict[str, Any]) -> torch.Tensor:
        return torch.cat([gradients[name].flatten() for name in sorted(gradients)]).double()

    def apart(one: torch.Tensor, other: torch.Tensor) -> float:
        return float((one - other).norm() / other.norm())

    # The worst tensor decides: the norm of all gradients hides what is wrong with small ones.
    worst = max(float((ours[name].grad - grad).abs().max() / grad.abs().max()) for name, grad in theirs.items())
    single, other = flat({name: p.grad for name, p in ours.items()}), flat(theirs)
    net.zero_grad()
    net.model.double()
    feed.load_state_dict({"step": 0})
    backward(net, {"sft": (Sft(), 1.0)}, next(iter(feed)), Optim(ours, learning_rate=RATE, total=1, clip=float("inf")))
    exact = flat({name: p.grad for name, p in ours.items()})
    distances = {"difference": apart(single, other), "ours": apart(single, exact), "theirs": apart(other, exact)}
    return distances | {"tensors": len(theirs), "worst": worst}


def run_arm(arm: str, count: int, threads: int) -> dict[str, Any]:
    import torch
    from transformers.utils import logging

    warnings.simplefilter("ignore")
    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    if arm == "convert":
        from burnish.model.load import find_model

        return {"model": find_model("smollm2-135m")}
    if arm == "gradients":
        return compare_gradients()
    groups = burnish_groups(count)
    steps = run_trl(TRL_ARMS[arm], groups) if arm in TRL_ARMS else run_burnish(BURNISH_ARMS[arm], groups)
    return {"steps": steps, "threads": threads, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


# All arms -----------------------------------------------------------------------------------------------------------------------------


def in_own_process(arm: str, options: argparse.Namespace) -> dict[str, Any]:
    print(f"{arm} ...", file=sys.stderr, flush=True)
    rows = str((options.warmup + options.steps) * BATCH)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "--arm", arm, "--rows", rows, "--result", str(result)]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)} | QUIET
        subprocess.run([*command, "--threads", str(options.threads)], check=True, env=environment, stdout=sys.stderr)
        return json.loads(result.read_text())


def table(results: dict[str, list[dict[str, Any]]], warmup: int) -> str:
    lines = [
        "| arm | tokens/s, median (least to most) | peak memory | loss, first to last step |",
        "| --- | --- | --- | --- |",
    ]
    for arm, runs in results.items():
        speeds = [speed(run, warmup) for run in runs]
        peak = statistics.median(run["peak"] for run in runs) / 2**30
        losses = [step["loss"] for step in runs[0]["steps"]]
        spread = f"{statistics.median(speeds):.0f} ({min(speeds):.0f} to {max(speeds):.0f})"
        own = statistics.median(speed(run, warmup, "cpu") for run in runs)
        least = min(share(run, warmup) for run in runs)
        lines.append(
            f"| {arm} | {spread} | {own:.0f} | {least:.0%} | {peak:.2f} GiB | {losses[0]:.3f} to {losses[-1]:.3f} |"
        )
    return "\n".join(lines)


def speed(run: dict[str, Any], warmup: int, clock: str = "seconds") -> float:
    """Tokens a second over the timed steps together, never a mean of the steps' rates.

    clock: "seconds" of the wall, or "cpu", the time that the process itself ran, which other work on the machine moves less.
    """
    timed = run["steps"][warmup:]
    return sum(step["tokens"] for step in timed) / sum(step[clock] for step in timed)


def share(run: dict[str, Any], warmup: int) -> float:
    """The part of its processors' time that an arm was given while it was timed."""
    timed = run["steps"][warmup:]
    return sum(step["cpu"] for step in timed) / sum(step["seconds"] for step in timed) / run["threads"]


def report_speed(results: dict[str, list[dict[str, Any]]], warmup: int) -> bool:
    """Print burnish against each TRL arm. Returns whether it keeps the goal against the fastest."""

    def median(arm: str, clock: str = "seconds") -> float:
        return statistics.median(speed(run, warmup, clock) for run in results[arm])

    peak = {arm: statistics.median(run["peak"] for run in runs) / 2**30 for arm, runs in results.items()}
    theirs = [arm for arm in results if arm in TRL_ARMS]
    print()
    for arm in theirs:
        by_clock = f"{median('burnish') / median(arm):.2f} times as fast ({median('burnish', 'cpu') / median(arm, 'cpu'):.2f} by CPU time)"
        print(f"burnish against {arm}: {by_clock}, memory {peak['burnish']:.2f} against {peak[arm]:.2f} GiB")
    best = max(theirs, key=median)
    starved = [arm for arm in ("burnish", *theirs) if min(share(run, warmup) for run in results[arm]) < BUSY]
    if starved:
        print(f"UNDECIDED: other work on this machine kept {', '.join(starved)} waiting; run it again when it is idle")
        return False
    passed = median("burnish") >= GOAL * median(best) and peak["burnish"] <= peak[best]
    print(f"{'PASS' if passed else 'FAIL'}: the goal is {GOAL} times TRL's best here ({best}), at no more memory")
    return passed


def report_gradients(found: dict[str, Any]) -> bool:
    passed = bool(found["difference"] < TOLERANCE)
    word, tensors = "PASS" if passed else "FAIL", found["tensors"]
    print(
        f"{word}: in fp32 the first step's gradients of {tensors} tensors differ by {found['worst']:.1e} of a tensor's largest"
    )
    print(
        f"at most; the limit is {TOLERANCE:.0e}. By the norm of all together they differ by {found['difference']:.1e}; from those of a"
    )
    print(f"float64 decoder, burnish by {found['ours']:.1e} and TRL by {found['theirs']:.1e}", flush=True)
    return passed


def machine() -> str:
    import importlib.metadata

    packages = " ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "transformers", "peft", "trl")
    )
    try:
        facts = Path("/proc/cpuinfo").read_text()
        cpu = next(line.split(":")[1].strip() for line in facts.splitlines() if line.startswith("model name"))
        flags = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in facts]
    except (OSError, StopIteration):
        cpu, flags = platform.processor(), []
    return f"{cpu} ({' '.join(flags)}), {os.cpu_count()} cores; {packages}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of each arm")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--arms", nargs="*", default=ARMS, choices=ARMS, metavar="ARM", help=", ".join(ARMS))
    for hidden in ("--arm", "--result", "--rows"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        Path(options.result).write_text(json.dumps(run_arm(options.arm, int(options.rows), options.threads)))
        return 0
    in_own_process("convert", options)  # the model, once: no arm should pay for it
    passed = True
    if "gradients" in options.arms:
        passed = report_gradients(in_own_process("gradients", options))
    results: dict[str, list[dict[str, Any]]] = {arm: [] for arm in options.arms if arm != "gradients"}
    for _ in range(options.repeats):
        for arm in results:
            results[arm].append(in_own_process(arm, options))
    print(f"\n{machine()}, {options.threads} threads; {options.repeats} x {options.steps} steps of {BATCH} rows\n")
    print(table(results, options.warmup))
    if "burnish" in results and TRL_ARMS.keys() & results.keys():
        passed &= report_speed(results, options.warmup)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
