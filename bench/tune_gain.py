"""`burnish tune` by several processes at once over one study, one of which is killed and started again: what it gains on real data.

    python bench/tune_gain.py bench/recipes/banking77-tune.yaml -o runs/banking77-tune --processes 3 --kill-after 60
    python bench/tune_gain.py bench/recipes/mmlu-tune.yaml -o runs/mmlu-tune --processes 3

It passes where the winner is better than the default recipe on the validation rows, where it was chosen, and on the test rows, which the
study looks at once at its end; where every process left trials of its own; and where the killed one left no trial unfinished.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any


def start(number: int, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """One process of the study, its progress in a log of its own."""
    words = [sys.executable, "-m", "burnish", "tune", str(options.recipe), "-o", str(options.out)]
    words += [word for key in options.set for word in ("--set", key)]
    words += ["--budget", options.budget] if options.budget else []
    with (options.out / f"process-{number}.log").open("ab") as log:
        return subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT)


def running(options: argparse.Namespace, pid: int) -> bool:
    """Whether a process is in the middle of a trial, by the newest line of its log."""
    trials = options.out / "trials"
    return trials.is_dir() and any(trials.glob("*/checkpoints/step-*")) and Path(f"/proc/{pid}").exists()


def kill_in_a_trial(process: subprocess.Popen[bytes], options: argparse.Namespace) -> dict[str, Any]:
    """SIGKILL, some seconds after the first trial has saved a checkpoint."""
    while process.poll() is None and not running(options, process.pid):
        time.sleep(0.2)
    time.sleep(options.kill_after)
    if process.poll() is not None:
        return {"killed": False, "said": f"it had ended with {process.returncode}"}
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return {"killed": True, "pid": process.pid, "after_seconds": options.kill_after}


def owners(options: argparse.Namespace) -> dict[str, int]:
    """How many trials each process began, by the study's journal."""
    found: Counter[str] = Counter()
    for line in (options.out / "journal.log").read_text(encoding="utf-8").splitlines():
        process = (json.loads(line).get("user_attr") or {}).get("process")
        if process:
            found[json.dumps(process)] += 1
    return dict(found)


def taken_up(options: argparse.Namespace) -> int:
    """How many trials were begun again after their process had died."""
    lines = (options.out / "journal.log").read_text(encoding="utf-8").splitlines()
    return sum('"again"' in line for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--out", "-o", type=Path, required=True, help="the study's folder")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--budget", help="as `burnish tune --budget`")
    parser.add_argument(
        "--kill-after", type=float, help="seconds after the first checkpoint; without it none is killed"
    )
    parser.add_argument("--set", action="append", default=[], help="a key of the recipe")
    parser.add_argument("--json", type=Path, help="where the results go")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    processes = [start(number, options) for number in range(options.processes)]
    death: dict[str, Any] = {}
    if options.kill_after is not None:
        death = kill_in_a_trial(processes[0], options)
        processes[0] = start(0, options)
    codes = [process.wait() for process in processes]
    report = json.loads((options.out / "tune.json").read_text(encoding="utf-8"))
    found = {
        "seconds": round(time.perf_counter() - began, 1),
        "codes": codes,
        "death": death,
        "trials_begun_by": owners(options),
        "taken_up_again": taken_up(options),
        **{
            key: report[key]
            for key in ("metric", "counts", "default", "best", "seeds", "spread", "test", "test_looks", "importance")
        },
        "trials": report["trials"],
    }
    if found["test"]:
        found["test"] = {key: value for key, value in found["test"].items() if key != "examples"}
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
    return show(found)


def show(found: dict[str, Any]) -> int:
    default, best, test = found["default"], found["best"], found["test"]
    if not (default and best):
        print(f"FAIL {found['counts']} in {found['seconds']:.0f} s: no default or no best trial; {found['trials']}")
        return 1
    unfinished = {
        state: found["counts"].get(state, 0) for state in ("running", "waiting") if found["counts"].get(state)
    }
    print(f"{found['counts']} in {found['seconds']:.0f} s; begun by {found['trials_begun_by']}; {found['death']}")
    print(f"  best trial: {best['values']}")
    checks = {
        "validation": (default["metric"] < best["metric"], f"{default['metric']:.4f} -> {best['metric']:.4f}"),
        "test": (
            bool(test) and test["delta"] > 0,
            f"{test['base']:.4f} -> {test['tuned']:.4f} on {test['n']} rows, 95% {test['ci95']}"
            if test
            else "not looked at",
        ),
        "seeds": (len(found["seeds"]) > 1, json.dumps(found["spread"])),
        "nothing lost": (
            not unfinished and not any(found["codes"]),
            f"{unfinished or 'no trial'} unfinished, {found['codes']}",
        ),
        "gone on": (
            not found["death"].get("killed") or found["taken_up_again"] > 0,
            f"{found['taken_up_again']} taken up again",
        ),
        "shared": (len(found["trials_begun_by"]) > 1, f"{len(found['trials_begun_by'])} processes"),
    }
    for name, (passed, said) in checks.items():
        print(f"  {'PASS' if passed else 'FAIL'} {name}: {said}")
    return 0 if all(passed for passed, _ in checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
