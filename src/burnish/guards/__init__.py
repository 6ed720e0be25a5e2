"""The ten mistakes of fine-tuning, a file each, and what each is judged by.

A file defines `GUARD`; a guard reads the evidence that a run gathered and gives a verdict. Guards measure nothing themselves.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from burnish.data.dedup import Match
from burnish.recipe import Recipe

Status = Literal["pass", "warn", "fail", "not_run"]


@dataclass(frozen=True)
class Verdict:
    """found: one sentence. evidence: the numbers behind it. fix: what to type or to do; empty where all is well."""

    status: Status
    found: str
    evidence: dict[str, Any] = field(default_factory=dict)
    fix: str = ""


def not_reached(found: str) -> Verdict:
    """The verdict of a guard whose step of the run was never done."""
    return Verdict("not_run", found, fix="burnish run RECIPE   goes on from where the run ended")


@dataclass(frozen=True)
class Evidence:
    """What a run knows when its guards are asked. Each part is None (or empty) until its step was done.

    rows: split -> number. labels: label -> training rows. dropped, changed, noted: reason -> rows. left_out: key of the recipe -> rows.
    matches: what stands in two splits. tokens: what `tokenize` counted. training, evaluation: as in the report.
    usual_rate: the peak learning rate that the size of the model suggests.
    """

    recipe: Recipe
    rows: Mapping[str, int] = field(default_factory=dict)
    read: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)
    changed: Mapping[str, int] = field(default_factory=dict)
    noted: Mapping[str, int] = field(default_factory=dict)
    matches: Sequence[Match] = ()
    test_hash: str = ""
    tokens: Mapping[str, Any] | None = None
    plan: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    usual_rate: float | None = None
    evaluation: Mapping[str, Any] | None = None


class Guard(Protocol):
    """One mistake. number: its place among the ten."""

    number: int
    mistake: str

    def check(self, evidence: Evidence) -> Verdict: ...


def every_guard() -> list[Guard]:
    """The guards of this folder, by number."""
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return sorted((module.GUARD for module in modules), key=lambda guard: guard.number)


def check_all(evidence: Evidence) -> list[dict[str, Any]]:
    """One record for each guard, as the report keeps it."""
    return [{"n": guard.number, "mistake": guard.mistake, **vars(guard.check(evidence))} for guard in every_guard()]
