"""Every error that Burnish raises on purpose.

    BurnishError
    ├── RecipeError      the recipe, or an override of it
    ├── RowError         a row of the user's data, or a whole file of it
    ├── ModelError       the model cannot be found, read or trained
    ├── DataGuardError   a guard blocks the run before it starts
    ├── SmokeError       the try-out before the run failed
    ├── TrainingError    the training left the rails (not a number, no memory)
    ├── CheckpointError  a checkpoint or an artefact is damaged or does not fit
    ├── EndpointError    a model behind an endpoint does not answer
    └── Interrupted      the run was told to stop, and saved first

An error tells the user four things: what was found, where, what was expected and what to type. The command line prints
exactly that, without a traceback; anything else that escapes is a defect of ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BurnishError(Exception):
    """Something that the user can put right.

    found: what stands there. where: "file:line", a recipe key or a path. expected: what should stand there.
    hint: a command or a line of the recipe to type.
    """

    exit_code = 2

    def __init__(self, found: str, *, where: str = "", expected: str = "", hint: str = "") -> None:
        self.found, self.where, self.expected, self.hint = found, where, expected, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{self.where}: {self.found}" if self.where else self.found]
        if self.expected:
            lines.append(f"  expected {self.expected}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)


class RecipeError(BurnishError, ValueError):
    """A key or a value of the recipe cannot be used. where: the recipe's file and the dotted key."""


class RowError(BurnishError, ValueError):
    """A row of the user's data, or a whole file of it, cannot be used. where: "file:line"."""


class ModelError(BurnishError, ValueError):
    """The model cannot be found, read or trained as asked. where: the name or path that was given."""


class DataGuardError(BurnishError, ValueError):
    """The data would make every figure of the run worthless. where: the guard that blocks it.

    rows: split -> how many rows. matches: the `data.dedup.Match` of what stands in two splits.
    """

    exit_code = 1

    def __init__(self, found: str, *, rows: Mapping[str, int], matches: Sequence[Any], **said: str) -> None:
        super().__init__(found, **said)
        self.rows, self.matches = rows, matches


class SmokeError(BurnishError, RuntimeError):
    """The try-out before the real run failed, so the run would have failed too. where: the part that was tried."""

    exit_code = 3


class TrainingError(BurnishError, RuntimeError):
    """Training left the rails. where: the step, and the rows that were in it."""

    exit_code = 3


class CheckpointError(BurnishError, RuntimeError):
    """A checkpoint or an artefact is damaged, or belongs to another run. where: its path."""

    exit_code = 3


class EndpointError(BurnishError, RuntimeError):
    """A model behind an endpoint does not answer, or answers nonsense. where: its address.

    status: of HTTP, 0 where there was none. again: whether to ask once more may help, after `pause` seconds at the least. for_all: whether
    any other question would fail too. lacks: the option that was asked for and that its answers do not have.
    """

    exit_code = 3

    def __init__(
        self,
        found: str,
        *,
        status: int = 0,
        again: bool = False,
        for_all: bool = False,
        pause: float = 0.0,
        lacks: str = "",
        **said: str,
    ) -> None:
        super().__init__(found, **said)
        self.status, self.again, self.for_all, self.pause, self.lacks = status, again, for_all, pause, lacks


class Interrupted(BurnishError, RuntimeError):
    """The run was told to stop; it saved first. hint: how to go on."""

    exit_code = 3
