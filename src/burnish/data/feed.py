"""The order in which groups meet the net: shuffled by epoch, cut into steps, packed into micro-batches."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from burnish.core import Batch, Group, pack


class Feed:
    """Yields one list of micro-batches for each optimiser step, the same ones for the same seed.

    The place in the data is a single number, so a run that was stopped goes on with the very batch it would have had.
    batch_size: groups in a step, the effective batch. row_tokens: length of a packed row. micro_tokens: tokens in a micro-batch; it
    bounds memory and changes no result, since losses are sums. Steps of an epoch differ by at most one group in size.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        task: str,
        batch_size: int,
        epochs: float,
        row_tokens: int,
        micro_tokens: int,
        seed: int,
        max_steps: int | None = None,
    ) -> None:
        self.groups, self.task, self.seed = list(groups), task, seed
        self.row_tokens, self.micro_tokens = row_tokens, micro_tokens
        self.steps_per_epoch = steps_per_epoch(len(self.groups), batch_size)
        self.total_steps = total_steps(len(self.groups), batch_size, epochs, max_steps)
        self.step = 0

    def __iter__(self) -> Iterator[list[Batch]]:
        while self.step < self.total_steps:
            groups = self._groups_of(self.step)
            self.step += 1
            yield list(micro_batches(groups, self.task, row_tokens=self.row_tokens, micro_tokens=self.micro_tokens))

    def _groups_of(self, step: int) -> list[Group]:
        epoch, place = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.groups)))
        random.Random(f"{self.seed}/{epoch}").shuffle(order)
        start, end = (len(order) * edge // self.steps_per_epoch for edge in (place, place + 1))
        return [self.groups[index] for index in order[start:end]]

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = int(state["step"])


def steps_per_epoch(groups: int, batch_size: int) -> int:
    return max(1, round(groups / batch_size))


def total_steps(groups: int, batch_size: int, epochs: float, max_steps: int | None = None) -> int:
    steps = max(1, math.ceil(steps_per_epoch(groups, batch_size) * epochs))
    return min(steps, max_steps) if max_steps else steps


def micro_batches(groups: Sequence[Group], task: str, *, row_tokens: int, micro_tokens: int) -> Iterator[Batch]:
    """Whole groups, in order, as many to a micro-batch as `micro_tokens` holds; one group at the least."""
    waiting: list[Group] = []
    held = 0
    for group in groups:
        size = sum(len(seq) for seq in group)
        if waiting and held + size > micro_tokens:
            yield pack(waiting, row_tokens=row_tokens, task=task)
            waiting, held = [], 0
        waiting.append(group)
        held += size
    if waiting:
        yield pack(waiting, row_tokens=row_tokens, task=task)
