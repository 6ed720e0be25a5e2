"""What the steps report beyond their results: sizes, lengths, counts of the cleaning, versions."""

from __future__ import annotations

import contextlib
import importlib.metadata
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from burnish.data.ledger import Ledger
from burnish.train.memory import Settings


def sizes_of(settings: Settings) -> dict[str, Any]:
    names = ("epochs", "micro_tokens", "recompute", "optimizer", "in_backward", "compile")
    return {"batch": settings.batch_size, **{name: getattr(settings, name) for name in names}}


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
