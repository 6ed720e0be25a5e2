"""burnish and its peers on one GPU, by one protocol, in one command.

    python bench/gpu/run.py --works 8b-dense --tokenizer tokenizer.json           # every arm of one work, three times
    python bench/gpu/run.py --works 1b-dense --arms burnish-fp8 unsloth-best --repeats 1 --steps 10 --warmup 5
    python bench/gpu/run.py --merge FOLDER     # add the results of another machine, and render
    python bench/gpu/run.py --render           # only write docs/performance.md anew
    python bench/gpu/run.py --list

Each arm is a process of its own and the arms take turns over the repeats. A result is on disk as soon as it exists; an arm that fails or
takes too long is one, with its error, and is not tried again. All arms get the same weights and, step for step, the same documents.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

import report
from arms import ARMS, Arm, arms_of
from measure import MARK, now, plain
from options import add_shared, changes_of, passed_on
from work import WORKS, Work, is_written

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "bench/results"
WRITING = threading.Lock()  # one model at a time is written for the peers


def run_process(script: str, words: list[str], options: argparse.Namespace, turn: str = "") -> dict[str, Any]:
    """Run one of our scripts and return the JSON that it printed, or its error. It has `seconds_per_arm`; then its whole group ends."""
    options.scratch.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        [sys.executable, str(HERE / script), *words, *passed_on(options)],
        cwd=options.scratch,  # some peers write their caches beside them
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "BURNISH_BENCH_TURN": turn},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: deque[str] = deque(maxlen=400)
    reader = threading.Thread(target=_drain, args=(process, lines), daemon=True)
    reader.start()
    try:
        process.wait(timeout=options.seconds_per_arm)
    except subprocess.TimeoutExpired:
        end_group(process)
        if (found := read_result(list(lines))) is not None:  # it had only not ended yet
            return found
        said = [line for line in lines if line.strip()]
        return {
            "error": plain(
                f"stopped after {options.seconds_per_arm:g} s; it last said: {said[-1] if said else 'nothing'}"
            )
        }
    finally:
        end_group(process)
        reader.join(timeout=5)
    found = read_result(list(lines))
    if found is None:
        said = [line for line in lines if line.strip()]
        return {"error": plain(f"exit code {process.returncode}; it last said: {' / '.join(said[-3:]) or 'nothing'}")}
    if "error" in found or options.verbose:
        print("".join(f"    {line}" for line in list(lines)[-40:] if not line.startswith(MARK)), file=sys.stderr)
    return found


def _drain(process: subprocess.Popen[str], lines: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)


def end_group(process: subprocess.Popen[str]) -> None:
    """End an arm with all that it started: compilers leave workers behind."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def read_result(lines: list[str]) -> dict[str, Any] | None:
    for line in reversed(lines):
        if line.startswith(MARK):
            return dict(json.loads(line.removeprefix(MARK)))
    return None


def run_arm(work: Work, arm: Arm, repeat: int, options: argparse.Namespace, turn: str = "") -> dict[str, Any]:
    changed = arm.changed(changes_of(options.change))
    about = {
        "work": work.name,
        "arm": changed.name,
        "title": changed.title,
        "side": changed.side,
        "settings": changed.settings,
        "repeat": repeat,
        "started": now(),
        "steps": options.steps,
        "warmup": options.warmup,
        "tiny": options.tiny,
        "real_rows": bool(work.kind == "rows" and options.rows),
    }
    shape = work.tiny().shape if options.tiny else work.shape
    with WRITING:
        written: dict[str, Any] = {}
        if arm.side == "peer" and not is_written(options.scratch / "models" / shape):
            written = run_process("peer.py", ["--write", work.name, arm.name], options)
    if "error" in written:
        return about | {"error": f"its model was not written: {written['error']}"}
    script = "ours.py" if arm.side == "burnish" else "peer.py"
    return about | run_process(script, [work.name, arm.name], options, turn)


def one_line(run: dict[str, Any]) -> str:
    start = f"{run['work']} {run['arm']} #{run['repeat']}"
    if "error" in run:
        return f"{start}: FAILED: {run['error']}"
    peak = f"{run['peak_gib']:.1f} GiB" if run["peak_gib"] is not None else "no card"
    if run.get("predicted_gib"):
        peak += f" ({run['predicted_gib']:.1f} predicted)"
    low, middle, high = run["step_ms"]
    return (
        f"{start}: {run['tokens_per_second']:,.0f} tok/s, {100 * run['of_rate']:.1f}% of 798, step {low:.0f}/{middle:.0f}/{high:.0f} ms, "
        f"{peak}, losses {[round(loss, 4) for loss in run['losses']]}, norms {[round(norm, 4) for norm in run['gradient_norms']]}, "
        f"first step {run['first_step_seconds']:.1f} s, {run['total_seconds']:.0f} s in all"
    )


def run_all(options: argparse.Namespace) -> None:
    """Every chosen arm once for each repeat, in turns. What would begin after `total_seconds` is left out, and named."""
    began = time.monotonic()
    failed: set[tuple[str, str]] = set()
    chosen = [(WORKS[name], arm) for name in options.works for arm in arms_of(WORKS[name], options.arms)]
    for repeat in range(1, options.repeats + 1):
        for work, arm in chosen:
            if (work.name, arm.name) in failed:
                continue
            if options.total_seconds and time.monotonic() - began > options.total_seconds:
                print(f"{work.name} {arm.name} #{repeat}: not begun, the time is over", file=sys.stderr, flush=True)
                continue
            run = run_arm(work, arm, repeat, options)
            report.add_runs(options.out, [run])
            print(one_line(run), flush=True)
            if "error" in run:
                failed.add((work.name, arm.name))


def run_together(options: argparse.Namespace) -> None:
    """Every chosen arm once, all started at once: they import and compile side by side, and then have the card one after the other.

    For a card whose time is dear. No arm is timed before all are ready, or the time to get ready is over.
    """
    chosen = [(WORKS[name], arm) for name in options.works for arm in arms_of(WORKS[name], options.arms)]
    chosen.sort(key=lambda one: one[1].side != "burnish")  # a peer compiles in its turn, so the quick ones go first
    folder = Path(tempfile.mkdtemp(prefix="burnish-turn-"))
    (folder / "all").write_text(json.dumps([len(chosen), time.time() + options.seconds_to_get_ready]))

    def run(number: int, work: Work, arm: Arm) -> None:
        found = run_arm(work, arm, 1, options, turn=f"{folder}#{number}")
        for word in ("ready", "ended"):  # one that failed is not waited for
            (folder / f"{word}-{number}").touch()
        with saving:
            report.add_runs(options.out, [found])
            print(one_line(found), flush=True)

    saving = threading.Lock()
    with concurrent.futures.ThreadPoolExecutor(len(chosen)) as pool:
        for done in [pool.submit(run, number, *one) for number, one in enumerate(chosen)]:
            done.result()
    shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--works", nargs="*", default=list(WORKS), choices=WORKS, metavar="WORK", help=", ".join(WORKS))
    parser.add_argument(
        "--arms", nargs="*", metavar="ARM", help="names as --list gives them, or WORK/ARM; all without it"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="start all arms at once; they have the card in turn")
    parser.add_argument(
        "--seconds-to-get-ready", type=float, default=150, help="with --together: before the first turn"
    )
    parser.add_argument("--seconds-per-arm", type=float, default=300)
    parser.add_argument("--total-seconds", type=float, help="begin no arm after this time")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="FOLDER", help="add the results in these folders to --out, and render"
    )
    parser.add_argument("--replace", action="store_true", help="with --merge: earlier runs of the merged arms go")
    parser.add_argument("--render", action="store_true", help="write --page anew from --out, and run nothing")
    parser.add_argument(
        "--page", type=Path, default=ROOT / "docs/performance.md", help="page whose marked section is written"
    )
    parser.add_argument("--list", action="store_true", help="print the works and their arms")
    parser.add_argument("--verbose", action="store_true", help="show the last lines of every arm")
    add_shared(parser)
    options = parser.parse_args()
    if options.list:
        for name, arms in ARMS.items():
            print(f"{name}: {WORKS[name].title}\n" + "\n".join(f"    {arm.name:28s} {arm.title}" for arm in arms))
        return 0
    named = {name for work, arms in ARMS.items() for arm in arms for name in (arm.name, f"{work}/{arm.name}")}
    if options.arms and (unknown := set(options.arms) - named):
        parser.error(f"there is no arm {', '.join(sorted(unknown))}; --list names them")
    for folder in options.merge or []:
        report.add_runs(options.out, report.read_runs(folder), replace=options.replace)
    if options.merge or options.render:
        report.render(options.out, options.page)
        return 0
    (run_together if options.together else run_all)(options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
