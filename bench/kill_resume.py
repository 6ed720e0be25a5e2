"""Kill a short run at random moments with SIGKILL, run it again to its end, and compare it bit for bit with one that nobody disturbed.

    python bench/kill_resume.py [--kills 20] [--jobs 2] [--seed 0]

Each round is a `burnish run` of its own in a fresh folder, on a tiny random Llama that saves after every step. A third of the kills fall
while a checkpoint is being written (its temporary folder is watched for); the others a random moment after a random step, the last one
included. Compared are the bytes of adapter/, merged/ and every checkpoint's weights and optimiser, the loss of every step, and what
validation and test found. Prints a line for each round and the sum; exit code 0 where all are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

SYLLABLES = ("ba", "ko", "ri", "tu", "ne", "sa", "lo", "mi", "fe", "du", "gra", "pel", "zin", "vor")
LONGEST = 300.0  # seconds that one run may take
LONGEST_DELAY = 0.3  # seconds after a step until the kill: several steps


@dataclass(frozen=True)
class Plan:
    """When a round is killed: as soon as the checkpoint of a later step is being written, or `delay` seconds after this step."""

    during_save: bool
    step: int
    delay: float


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2, help="rounds at a time")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kill-resume-") as name:
        work = Path(name)
        recipe = make_project(work)
        began = time.perf_counter()
        steps = undisturbed(recipe, work / "undisturbed")
        wanted = fingerprint(work / "undisturbed")
        print(f"undisturbed: {steps} steps, {len(wanted)} things to compare", flush=True)
        source = random.Random(chosen.seed)
        plans = []
        for number in range(chosen.kills):
            during_save = number % 3 == 0  # of a later step, so there must be one
            step = source.randrange(steps if during_save else steps + 1)
            plans.append(Plan(during_save, step, source.uniform(0, LONGEST_DELAY)))
        with ThreadPoolExecutor(chosen.jobs) as pool:
            rounds = pool.map(
                lambda plan: kill_and_resume(recipe, work / f"run-{plan[0]}", plan[1], wanted), enumerate(plans, 1)
            )
            equal = 0
            for number, (told, same) in enumerate(rounds, 1):
                equal += same
                print(f"{number:>3}: {told}: {'bit-equal' if same else 'DIFFERENT'}", flush=True)
        print(f"{equal} of {chosen.kills} bit-equal, in {time.perf_counter() - began:.0f} s")
        return 0 if equal == chosen.kills else 1


def kill_and_resume(recipe: Path, folder: Path, plan: Plan, wanted: dict[str, object]) -> tuple[str, bool]:
    """One round: (what happened, whether the run was killed and ended as the undisturbed one)."""
    process = start(recipe, folder)
    kill(process, folder, plan)
    if process.wait() != -signal.SIGKILL:
        return f"it had ended before it could be killed, with {process.returncode}", False
    left = sorted(path.name for path in checkpoints(folder))
    told = f"killed {'while saving' if plan.during_save else 'anywhere'}, leaving {', '.join(left)}"
    again = start(recipe, folder)
    errors = again.communicate(timeout=LONGEST)[1].decode()
    if again.returncode not in (0, 1):
        return f"{told}; the second run failed: {errors.strip().splitlines()[-1]}", False
    told += next(
        (f"; {line.strip()}" for line in errors.splitlines() if "going on from" in line), "; training was done"
    )
    found = fingerprint(folder)
    different = [name for name in wanted if found.get(name) != wanted[name]]
    return told + (f"; differs in {', '.join(different)}" if different else ""), not different


def start(recipe: Path, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "burnish", "run", str(recipe), "--out", str(folder), "--json"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def undisturbed(recipe: Path, folder: Path) -> int:
    """Take a whole run to its end; returns its steps."""
    process = start(recipe, folder)
    errors = process.communicate(timeout=LONGEST)[1].decode()
    if process.returncode not in (0, 1):
        raise SystemExit(errors)
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return int(report["training"]["steps"])


def kill(process: subprocess.Popen[bytes], folder: Path, plan: Plan) -> None:
    """Kill the process when the plan says so."""
    if plan.during_save:
        wait_for(
            process, lambda: any(path.suffix == ".tmp" and step_of(path) > plan.step for path in checkpoints(folder))
        )
    else:
        wait_for(
            process, lambda: any(path.suffix != ".tmp" and step_of(path) >= plan.step for path in checkpoints(folder))
        )
        time.sleep(plan.delay)
    process.kill()


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("step-"))


def checkpoints(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder / "checkpoints")]
    except FileNotFoundError:
        return []


def wait_for(process: subprocess.Popen[bytes], happens: Callable[[], bool]) -> None:
    """Look every fraction of a millisecond until it happens, or the process has ended."""
    began = time.perf_counter()
    while process.poll() is None and not happens():
        if time.perf_counter() - began > LONGEST:
            process.kill()
            raise SystemExit(f"nothing happened within {LONGEST:.0f} s")
        time.sleep(0.0002)


def fingerprint(folder: Path) -> dict[str, object]:
    """All that must be equal: the tensors' bytes in every file of weights, and the losses."""
    files = sorted(
        path for place in ("adapter", "merged", "checkpoints") for path in (folder / place).rglob("*.safetensors")
    )
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [(line["step"], line["loss"], line["gradient_norm"]) for line in lines if "loss" in line]
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return {
        **{str(path.relative_to(folder)): path.read_bytes() for path in files},
        "losses": losses,
        "evaluation": report["evaluation"],
        "validations": report["training"]["validations"],
    }


# What is trained -------------------------------------------------------------------------------------------------------


def make_project(folder: Path) -> Path:
    """A tiny model, 40 rows and the recipe; returns the recipe's path."""
    make_model(folder / "model")
    source = random.Random(0)
    questions = [" ".join("".join(source.choices(SYLLABLES, k=3)) for _ in range(2)) for _ in range(40)]
    rows = [{"prompt": question, "completion": "ok"} for question in questions]
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": str(folder / "model"),
        "task": {"kind": "generate", "goal": "Say ok.", "max_new_tokens": 4},
        "data": {"train": "rows.jsonl", "validation": 4, "test": 8},
        "adapter": {"rank": 8, "alpha": 32, "dropout": 0.1},
        "train": {
            "epochs": 3,
            "batch_size": 4,
            "learning_rate": 0.01,
            "max_length": 128,
            "validations": 3,
            "save_every": 1,
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")  # JSON is YAML
    return path


def make_model(folder: Path) -> None:
    """A Llama of three layers with random weights and a tokenizer of single bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from burnish.model.load import quiet

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,  # the head is not trained: it must be able to tell the letters apart
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    with quiet():
        LlamaForCausalLM(config).save_pretrained(folder)
        fast.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
