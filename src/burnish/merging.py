"""Merge adapters into one, and see on the locked test rows of the run that each came from what that cost it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish import pipeline
from burnish.data.dedup import find_matches
from burnish.data.render import Chat
from burnish.data.rows import Row
from burnish.errors import CheckpointError
from burnish.evaluate.runner import Exam, Sitting, compare
from burnish.evaluate.scored import ScoredExam
from burnish.evaluate.tasks import JointExam
from burnish.folder import Run, read_report, write_text
from burnish.guards import Evidence
from burnish.joint import place_of
from burnish.model.load import find_model, load_tokenizer
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.parts import TASK, Chosen, Tokenized
from burnish.progress import Progress
from burnish.recipe import Augment, Distill, Recipe, load_recipe
from burnish.serve.combine import MERGED, Part, check_parts, find_part, keep_merged, load_parts, merge_parts, switch
from burnish.serve.export import export, refuse_unless_fit
from burnish.train import memory

SAID = {1: "better", 0: "as good, as far as the rows can tell", -1: "worse"}  # by the interval of the change


def merge(
    adapters: Sequence[str | Path],
    out: Path,
    progress: Progress,
    *,
    weights: Sequence[float] | None = None,
    method: str = "cat",
    density: float | None = None,
    full: bool = False,
    proof: bool = True,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """Write `adapter/` (and `merged/`, with `full`) into a folder, and `merge.json`, which this returns.

    weights: of the adapters, in their order; equal ones that add up to 1 by default. proof: let base, each run's own adapter and the
    combination answer that run's locked test rows; bare adapters have none. Raises CheckpointError for what cannot be combined, and for a
    run whose verdict is "stop" without `force`.
    """
    parts = [find_part(one) for one in adapters]
    for part in parts:
        if part.run:
            refuse_unless_fit(read_report(part.run), force=force)
    shares = list(weights) if weights else [1 / len(parts)] * len(parts)
    check_parts(parts, shares, method, density)
    if out.exists() and any(out.iterdir()):
        raise CheckpointError("the folder is not empty", where=str(out), expected="a new one")
    names = [f"part-{number}" for number in range(len(parts))]
    model = load_parts(parts, names)
    merge_parts(model, names, shares, method, density, seed)
    found: dict[str, Any] = {
        "base": parts[0].source,
        "method": method,
        "density": density,
        "rank": int(model.peft_config[MERGED].r),
        "parts": [
            {"folder": str(part.run or part.folder), "weight": weight, "rank": part.rank}
            for part, weight in zip(parts, shares, strict=True)
        ],
    }
    if proof:
        device = memory.device_of_choice()
        net = Net(model.to(device), precision="fp32")
        for name, part, record in zip(names, parts, found["parts"], strict=True):
            if part.run is not None:
                progress.say(f"  {part.run.name}: base, its own adapter and the combination answer its test rows")
                place = out / "proof" / f"{name}-{part.run.name}"  # two runs may have one name
                others = [row for other in parts if other is not part for row in _trained(other, progress)]
                record["proof"] = _prove(net, name, part, others, place, progress, seed)
        switch(model, [MERGED])
    keep_merged(model, names)
    chat = Chat(load_tokenizer(str(parts[0].folder)))
    asked = [chat.tokenizer(text)["input_ids"] for text in ("Hello, who are you?", "What is a merged adapter?")]
    kinds = ["adapter", "merged"] if full else ["adapter"]
    found["parity"] = export(model, chat, find_model(parts[0].source), out, kinds, asked)
    write_text(out / "merge.json", json.dumps(found, indent=1))
    return found


def _trained(part: Part, progress: Progress) -> list[Row]:
    """The rows that the adapter of a run was trained on, as its folder keeps them; none of a bare adapter."""
    if part.run is None:
        return []
    recipe = load_recipe(part.run / "recipe.yaml")
    run = Run(part.run, progress, Evidence(recipe), part.run.name)
    places = [place_of(name, "train") for name in recipe.each]
    return [row for place in places if (part.run / "data" / f"{place}.jsonl").is_file() for row in run.read_rows(place)]


def unseen(exam: Exam, rows: Sequence[Row], trained: Sequence[Row]) -> Exam:
    """The exam without what another adapter was trained on, or on nearly the same: the combination knows those answers by heart.

    rows: those that the items were made of.
    """
    known = {match.held_out.where for match in find_matches(trained, rows) if match.kind != "near"}
    return replace(exam, items=[item for item in exam.items if item.where not in known])


def _prove(
    net: Net, name: str, part: Part, others: Sequence[Row], folder: Path, progress: Progress, seed: int
) -> dict[str, Any]:
    """Task -> the figures of base, own adapter and combination on its test rows, paired; a run of one task has that alone, as TASK.

    others: what the other adapters were trained on, of which no row proves anything.
    """
    assert part.run is not None
    chosen, tokenized, whole = _exam_of(part.run, folder, progress)
    exams = whole.parts if isinstance(whole, JointExam) else {TASK: whole}
    sampler = pipeline.sampler_of(chosen, net, tokenized)
    found = {}
    for task, exam in exams.items():
        left = unseen(exam, tokenized.tasks[task].test.rows, others)
        if left.items:
            known = {"known": len(exam.items) - len(left.items)}
            found[task] = known | _figures(net, name, part, left, sampler, seed)
        elif exam.items:
            progress.say(
                f"  all {len(exam.items)} test rows are among what another adapter was trained on: nothing is proven"
            )
    return found


def _figures(net: Net, name: str, part: Part, exam: Exam, sampler: Sampler, seed: int) -> dict[str, Any]:
    def sit(active: list[str], exam: Exam = exam) -> Sitting:
        switch(net.model, active)
        return exam.sit(net, sampler)

    # An adapter's own head has its temperature and thresholds; the combination has none, and the base no head that knows the labels.
    calibrated = replace(exam, head=part.head) if part.head and isinstance(exam, ScoredExam) else exam
    own, merged = sit([name], calibrated), sit([MERGED])
    base = exam.figures(sit([])) if part.head is None else {}
    change = compare(exam, own, merged, seed=seed)
    low, high = change["ci95"]
    return {
        "metric": change["metric"],
        "n": change["n"],
        "base": base.get(change["metric"]),
        "own": change["base"],
        "merged": change["tuned"],
        "delta": change["delta"],
        "ci95": change["ci95"],
        "said": SAID[1 if low > 0 else -1 if high < 0 else 0],
    }


def _exam_of(run: Path, folder: Path, progress: Progress) -> tuple[Chosen, Tokenized, Exam]:
    """The exam of a run's test rows, made again from its recipe as its own steps made it: the same split of the same files."""
    recipe = _as_it_was(load_recipe(run / "recipe.yaml"), read_report(run)["model"]["source"])
    steps = Run(folder, Progress(quiet=True), Evidence(recipe), run.name)
    chosen = pipeline.choose(steps, recipe)
    guarded = pipeline.clean(steps, recipe, chosen)
    tokenized = pipeline.tokenize(steps, recipe, chosen, guarded)
    return chosen, tokenized, pipeline.define_metric(steps, recipe, chosen, tokenized, guarded)["test"]


def _as_it_was(recipe: Recipe, source: str) -> Recipe:
    """The recipe without what only its training had: a teacher, rows that were generated, an adapter to begin with.

    source: the model that it trained, which may have been cut from a teacher.
    """
    changes: dict[str, Any] = {
        "model": source,
        "data": recipe.data.model_copy(update={"augment": Augment()}),
        "distill": Distill(),
        "adapter": recipe.adapter.model_copy(update={"start": None}),
    }
    if recipe.objective == "distill":
        changes |= {"objective": "sft", "loss": {}}
    return recipe.model_copy(update=changes)


def _without(one: dict[str, Any]) -> str:
    return f" (without {one['known']} that another adapter was trained on)" if one.get("known") else ""


def as_text(found: dict[str, Any]) -> str:
    """What a person wants to know of a merge."""
    lines = [f"{found['method']} of {len(found['parts'])} adapters, rank {found['rank']}"]
    for part in found["parts"]:
        lines.append(f"  {part['weight']:g} x {part['folder']} (rank {part['rank']})")
        for task, one in (part.get("proof") or {}).items():
            low, high = one["ci95"]
            base = "" if one["base"] is None else f"base {one['base']:.3f}, "
            named = "" if task == TASK else f"{task}: "
            lines.append(
                f"    {named}{one['metric']} on its {one['n']} test rows{_without(one)}: {base}its own adapter {one['own']:.3f}, merged "
                f"{one['merged']:.3f}: {one['said']} ({one['delta']:+.3f}, 95% {low:+.3f} to {high:+.3f})"
            )
    return "\n".join([*lines, f"  log-probabilities of the files within {found['parity']['largest_difference']:.1e}"])
