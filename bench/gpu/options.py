"""What run.py tells an arm's process on its command line."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arms import Arm, find_arm
from work import WORKS, Document, Work, documents_of


@dataclass(frozen=True)
class Asked:
    """One arm to run. changes: settings other than the arm's own."""

    work: Work
    arm: Arm
    steps: int
    warmup: int
    scratch: Path
    rows: Path | None
    tokenizer: Path | None

    def documents(self) -> list[list[Document]]:
        return documents_of(self.work, self.warmup + self.steps, rows=self.rows, tokenizer=self.tokenizer)

    @property
    def model_folder(self) -> Path:
        """Where programs that only read folders find the model."""
        return self.scratch / "models" / self.work.shape


def add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=30, help="timed steps of a run")
    parser.add_argument("--warmup", type=int, default=10, help="steps before them")
    parser.add_argument("--tiny", action="store_true", help="a model of two layers, to try the programs on a CPU")
    parser.add_argument(
        "--scratch", type=Path, default=Path("/tmp/burnish-bench"), help="where models for the peers are written"
    )
    parser.add_argument("--rows", type=Path, help="train.csv of BANKING77, for 135m-rows; random short rows without it")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json, which the peers and --rows need")
    parser.add_argument(
        "--change", nargs="*", default=[], metavar="KEY=VALUE", help="settings other than the arms' own"
    )


def passed_on(options: argparse.Namespace) -> list[str]:
    """The shared options as a child's command line."""
    words = [
        "--steps",
        str(options.steps),
        "--warmup",
        str(options.warmup),
        "--scratch",
        str(options.scratch.resolve()),
    ]
    for name in ("rows", "tokenizer"):
        if path := getattr(options, name):
            words += [f"--{name}", str(path.resolve())]
    words += ["--tiny"] if options.tiny else []
    return words + (["--change", *options.change] if options.change else [])


def changes_of(texts: list[str]) -> dict[str, Any]:
    """["graph=true", "recompute=mlp"] -> {"graph": True, "recompute": "mlp"}"""
    changes = {}
    for text in texts:
        key, _, value = text.partition("=")
        try:
            changes[key] = json.loads(value)
        except ValueError:
            changes[key] = value
    return changes


def asked() -> Asked:
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=WORKS)
    parser.add_argument("arm")
    add_shared(parser)
    options = parser.parse_args()
    work = WORKS[options.work]
    return Asked(
        work=work.tiny() if options.tiny else work,
        arm=find_arm(options.work, options.arm).changed(changes_of(options.change)),
        steps=options.steps,
        warmup=options.warmup,
        scratch=options.scratch,
        rows=options.rows,
        tokenizer=options.tokenizer,
    )
