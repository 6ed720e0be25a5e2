"""Whether a student of half the layers keeps 97% of its teacher's accuracy at 55% of its response time: BANKING77, three seeds.

    python bench/distillation.py                                             # teachers, students, then the clock
    python bench/distillation.py --at-once 3 --set model=FOLDER
    python bench/distillation.py --student fifteen=distill.student.keep=0-14  # another student beside the recipe's
    python bench/distillation.py --teachers runs --seeds 0                   # runs/teacher-0 is there already

`burnish run` makes a teacher of each seed and `burnish distill` its student, by the recipes of `bench/recipes`, each in a process of its
own. Afterwards, with nothing beside it, both answer the same test questions in turn: from the text to the name of the intent on the host,
one question at a time and in batches, both as they were exported. It exits 0 where every seed of some student keeps both marks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from command import report_of

RECIPES = Path(__file__).resolve().parent / "recipes"
KEPT, TIME = 0.97, 0.55  # of the teacher's accuracy and response time
BATCH = 32  # questions


def answering(run: Path) -> Callable[[list[str]], list[str]]:
    """What names the intents of some questions with the exported model of a run."""
    import torch
    from transformers import AutoTokenizer

    from burnish.model.teacher import find_teacher, head_of_teacher, load_teacher
    from burnish.train.memory import device_of_choice

    place = find_teacher(str(run))
    head = head_of_teacher(place)
    assert head is not None
    net, tokenizer = (
        load_teacher(place, device=device_of_choice(), head=head),
        AutoTokenizer.from_pretrained(place.source),
    )
    tokenizer.pad_token_id, tokenizer.padding_side = head.pad, "right"
    model = net.model

    @torch.inference_mode()
    def answer(questions: list[str]) -> list[str]:
        told = tokenizer(questions, return_tensors="pt", padding=len(questions) > 1)
        last = (told["attention_mask"].sum(-1) - 1).to(net.device)
        if len(questions) == 1:
            del told["attention_mask"]  # nothing is padding
        hidden = model.get_decoder()(**told.to(net.device), use_cache=False).last_hidden_state
        states = hidden[torch.arange(len(questions), device=net.device), last]
        chosen = model.score(states.to(model.score.weight.dtype)).argmax(-1)
        return [head.labels[number] for number in chosen.tolist()]

    return answer


def clock(teacher: Path, student: Path, count: int) -> dict[str, Any]:
    """The times of both, in seconds, and the student's share with its 95% interval, one question at a time and in batches."""
    from burnish.evaluate.timing import ratio_of, summary_of, time_in_turn

    lines = (student / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["row"] for line in lines]
    questions = [row["messages"][0]["content"] for row in rows]
    both = answering(teacher), answering(student)
    found: dict[str, Any] = {"as_exported": [right(answer, rows) for answer in both]}
    for name, size in (("one", 1), ("batch", BATCH)):
        parts = [questions[start : start + size] for start in range(0, len(questions) - size + 1, size)]
        parts = (parts * count)[:count]  # small test files come round again
        theirs, ours = time_in_turn(*both, [(part, part) for part in parts])
        ratio, interval = ratio_of(theirs, ours)
        times = {"teacher": summary_of(theirs), "student": summary_of(ours), "answers": len(parts)}
        found[name] = times | {"ratio": ratio, "ci95": interval}
    return found


def right(answer: Callable[[list[str]], list[str]], rows: Sequence[dict[str, Any]]) -> float:
    """The share of the rows that is named right, in batches."""
    hits = 0
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        said = answer([row["messages"][0]["content"] for row in part])
        hits += sum(one == row["label"] for one, row in zip(said, part, strict=True))
    return hits / len(rows)


def show(results: list[dict[str, Any]]) -> bool:
    """Print a line for each student and one for all seeds of it; whether some student keeps both marks at every seed."""
    passed = []
    for name in dict.fromkeys(one["student"] for one in results):
        runs = [one for one in results if one["student"] == name]
        for one in runs:
            if "error" in one:
                print(f"{name} seed {one['seed']}: FAILED: {one['error']}")
                continue
            quality, times = one["quality"], one["seconds"]
            low, high = times["one"]["ci95"]
            print(
                f"{name} seed {one['seed']}: accuracy {quality['teacher']:.4f} -> {quality['student']:.4f} "
                f"({quality['student'] / quality['teacher']:.1%}) on {quality['n']} rows; "
                f"{1e3 * times['one']['teacher']['median']:.2f} -> {1e3 * times['one']['student']['median']:.2f} ms "
                f"({times['one']['ratio']:.1%}, 95% {low:.1%} to {high:.1%}); in batches of {BATCH} "
                f"{1e3 * times['batch']['teacher']['median']:.2f} -> {1e3 * times['batch']['student']['median']:.2f} ms "
                f"({times['batch']['ratio']:.1%}); of the exported files {' -> '.join(f'{one:.4f}' for one in times['as_exported'])}"
            )
        whole = [one for one in runs if "error" not in one]
        if not whole:
            passed.append(False)
            continue
        kept = [one["quality"]["student"] / one["quality"]["teacher"] for one in whole]
        time = [one["seconds"]["one"]["ratio"] for one in whole]
        passed.append(len(whole) == len(runs) and min(kept) >= KEPT and max(time) <= TIME)
        print(
            f"{'PASS' if passed[-1] else 'FAIL'} {name}: keeps {statistics.mean(kept):.1%} (least {min(kept):.1%}, to reach {KEPT:.0%}) "
            f"at {statistics.mean(time):.1%} of the time (most {max(time):.1%}, allowed {TIME:.0%})"
        )
    return any(passed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--student", action="append", default=[], help="NAME=KEY=VALUE,KEY=VALUE: one more student")
    parser.add_argument("--at-once", type=int, default=1, help="runs side by side; the clock runs alone all the same")
    parser.add_argument("--set", action="append", default=[], help="a key of every recipe, as `burnish run --set`")
    parser.add_argument("--teachers", type=Path, help="a folder with teacher-SEED of an earlier call")
    parser.add_argument("--prompts", type=int, default=300, help="answers against the clock")
    parser.add_argument("--folder", type=Path, help="where the runs are kept; a temporary folder without it")
    parser.add_argument("--out", type=Path, help="where the results go as JSON")
    options = parser.parse_args()
    students = {"half": []} | {name: keys.split(";") for name, keys in (one.split("=", 1) for one in options.student)}
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(options.at_once) as pool:
        folder = options.folder or Path(temporary)
        teachers = {seed: (options.teachers or folder) / f"teacher-{seed}" for seed in options.seeds}

        def teach(seed: int) -> dict[str, Any]:
            keys = [*options.set, f"train.seed={seed}"]
            return {} if options.teachers else report_of("run", RECIPES / "banking77-head.yaml", teachers[seed], keys)

        def learn(name: str, seed: int) -> dict[str, Any]:
            keys = [*options.set, f"train.seed={seed}", *students[name]]
            out = folder / f"{name}-{seed}"
            report = report_of(
                "distill", RECIPES / "banking77-distill.yaml", out, keys, "--teacher", str(teachers[seed])
            )
            found = {"student": name, "seed": seed, "keys": students[name]}
            if "error" in report:
                return found | report
            told = report["distillation"]
            return found | {"quality": told["quality"], "cut": told["cut"], "beside_others": told["seconds"]}

        for seed, report in zip(options.seeds, pool.map(teach, options.seeds), strict=True):
            if "error" in report:
                print(f"teacher, seed {seed}: FAILED: {report['error']}")
                return 1
        asked = [(name, seed) for seed in options.seeds for name in students]
        results = list(pool.map(lambda one: learn(*one), asked))
        for one in results:
            if "error" not in one:
                student = folder / f"{one['student']}-{one['seed']}"
                one["seconds"] = clock(teachers[one["seed"]], student, options.prompts)
    reached = show(results)
    if options.out:
        options.out.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    return 0 if reached else 1


def machine() -> dict[str, str]:
    import torch
    import transformers

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"device": card, "torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    sys.exit(main())
