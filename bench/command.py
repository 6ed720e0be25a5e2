"""One `burnish` command in a process of its own, for the programs beside this one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def report_of(verb: str, recipe: Path, out: Path, keys: Sequence[str], *more: str) -> dict[str, Any]:
    """The report of `burnish VERB RECIPE -o OUT`, or {"error": what it said} where it failed or nothing was evaluated.

    keys: "a.b=value", as `--set` takes them. more: further words of the command.
    """
    words = [sys.executable, "-m", "burnish", verb, str(recipe), "-o", str(out), *more]
    words += [word for key in keys for word in ("--set", key)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    report = out / "report.json"
    if done.returncode not in (0, 1) or not report.is_file():
        return {"error": " / ".join(done.stderr.strip().splitlines()[-6:])}
    found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found if "evaluation" in found else {"error": " ".join(found["reasons"])}
