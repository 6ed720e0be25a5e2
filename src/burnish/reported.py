"""The report of a run, and what the steps tell in it beyond their results: sizes, lengths, counts of the cleaning, versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from burnish.data.ledger import Ledger
from burnish.evaluate.report import write_html
from burnish.evaluate.verdict import judge
from burnish.folder import Run, now, write_text
from burnish.guards import check_all
from burnish.model.adapt import trained_parameters
from burnish.model.depth import by_depth
from burnish.model.load import Head
from burnish.model.net import Net
from burnish.model.warm_start import find_start, start_as_json
from burnish.parts import paces_of
from burnish.recipe import Recipe
from burnish.serve.card import write_card
from burnish.train.memory import Settings


def finish(run: Run, recipe: Recipe) -> dict[str, Any]:
    """The report from whatever the steps found, with every guard asked; written as JSON and as a page, and the card beside it."""
    guards = check_all(run.evidence)
    evaluation = run.parts.get("evaluation")
    verdict, reasons = judge(evaluation, guards)
    if undone := next((step for step in run.steps if step["status"] in ("failed", "not_run")), None):
        why = undone["summary"] or "the run ended before it"
        verdict, reasons = "stop", [f"Step {undone['n']}, {undone['name']}: {why}.", *reasons]
    report = {
        "schema": 1,
        "burnish": importlib.metadata.version("burnish"),
        "name": run.name,
        "folder": str(run.folder),
        "created": now(),
        "goal": recipe.goal,
        "verdict": verdict,
        "reasons": reasons,
        "recipe": recipe.dump(),
        "steps": run.steps,
        "guards": guards,
        **run.parts,
        "versions": versions(),
    }
    if "artifacts" in run.parts:
        write_card(report, run.folder)
    write_text(run.folder / "report.json", json.dumps(report, indent=1))
    write_html(report, run.folder / "report.html")
    return report


def sizes_of(settings: Settings) -> dict[str, Any]:
    names = ("epochs", "micro_tokens", "recompute", "optimizer", "in_backward", "compile")
    return {"batch": settings.batch_size, **{name: getattr(settings, name) for name in names}}


def how_trained(recipe: Recipe, net: Net, settings: Settings, head: Head | None) -> dict[str, Any]:
    """What the report says of it beyond the groups: where it began, and the rate and the first step of each depth where these differ."""
    pace_of = paces_of(recipe, trained_parameters(net.model), settings)
    found: dict[str, Any] = {}
    if start := find_start(recipe.adapter):
        found["start"] = start_as_json(start, head)
    if len(set(pace_of.values())) > 1:
        found["depths"] = by_depth(net.model, pace_of, settings.learning_rate)
    return found


def counted(read: int, ledger: Ledger) -> dict[str, Any]:
    """What the report and the guards know of cleaning."""
    reasons = {action: ledger.by_reason(action) for action in ("dropped", "changed", "noted")}
    reasons["left_out"] = ledger.by_reason("left out")
    examples = [{**asdict(entry), "where": entry.where} for entry in ledger.examples]
    data = {
        "read": read,
        "dropped": reasons["dropped"],
        "left_out": reasons["left_out"],
        "changed": reasons["changed"],
        "findings": ledger.findings(),
        "ledger": examples,
    }
    return {"data": data, "reasons": reasons}


def histogram(lengths: Sequence[int], bins: int = 16) -> dict[str, Any]:
    """Sequence lengths in tokens, in bins of equal width."""
    width = max(1, -(-max(lengths) // bins))
    counts = Counter(length // width for length in lengths)
    used = range(max(counts) + 1)
    return {
        "bins": [[number * width, (number + 1) * width] for number in used],
        "counts": [counts[number] for number in used],
    }


def versions() -> dict[str, str]:
    """Of Python, what every run uses, and what a GPU's run may use where it is installed."""
    found = {"python": platform.python_version()}
    for name in (
        "torch",
        "transformers",
        "peft",
        "tokenizers",
        "safetensors",
        "triton",
        "bitsandbytes",
        "flash-attn-4",
    ):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def indented(text: str) -> str:
    return "\n".join(f"    {line}" for line in text.splitlines())
