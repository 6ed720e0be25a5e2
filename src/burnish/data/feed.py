"""The order in which groups meet the net: shuffled by epoch, cut into steps, packed into micro-batches."""

from __future__ import annotations

import functools
import heapq
import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

from burnish.core import Batch, Group, pack


class Feed:
    """Yields one list of micro-batches for each optimiser step, the same ones for the same seed.

    The place in the data is a single number, so a run that was stopped goes on with the very batch it would have had.
    batch_size: groups in a step, the effective batch. row_tokens: length of a packed row; None is one row for all. micro_tokens: tokens in
    a micro-batch; it bounds memory and changes no result, since losses are sums. Steps of an epoch differ by at most one group in size.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        task: str,
        batch_size: int,
        epochs: float,
        row_tokens: int | None,
        micro_tokens: int,
        seed: int,
        max_steps: int | None = None,
    ) -> None:
        self.groups, self.task, self.seed = list(groups), task, seed
        self.row_tokens, self.micro_tokens = row_tokens, micro_tokens
        self.steps_per_epoch = steps_per_epoch(len(self.groups), batch_size)
        self.total_steps = total_steps(len(self.groups), batch_size, epochs, max_steps)
        self.step = 0
        self._ahead: dict[
            tuple[int, int], list[Batch]
        ] = {}  # the next step, by its number and the micro_tokens it was packed for
        self._sizes = [sum(len(seq) for seq in group) for group in self.groups]

    def __iter__(self) -> Iterator[list[Batch]]:
        while self.step < self.total_steps:
            packed = self._ahead.pop((self.step, self.micro_tokens), None)
            self.step += 1
            yield packed or self.again()

    def pack_ahead(self) -> None:
        """Pack the next step now, because a device is busy with this one and nobody waits for the host.

        In the thread that asks the device for work: another would hold the interpreter for milliseconds when this one wants to go on.
        """
        if self.step < self.total_steps:
            self._ahead = {(self.step, self.micro_tokens): self._micro(self.step)}

    def seen(self) -> dict[str, int]:
        """How many groups of each task the whole run deals; a group that comes again counts again."""
        return {self.task: sum(len(self._order(step)) for step in range(self.total_steps))}

    def again(self) -> list[Batch]:
        """The micro-batches of the step that was yielded last, cut to the `micro_tokens` of now: the same rows, in the same order."""
        return self._micro(self.step - 1)

    def _micro(self, step: int) -> list[Batch]:
        return [self._packed(part) for part in self._parts(self._order(step))]

    @property
    def longest(self) -> int:
        """Tokens of the longest group."""
        return max(self._sizes)

    def largest_step(self) -> int:
        """Tokens of the step that has the most, of all that are to come in the run."""
        return max(sum(self._sizes[index] for index in self._order(step)) for step in range(self.total_steps))

    def hardest(self) -> list[Batch]:
        """The micro-batch with the most tokens, padding with them, of all in the run: the one that needs the most memory.

        Twice where a step has several micro-batches: gradients of the first are then there beside the activations of the second.
        """
        sized = (
            (sum(self._sizes[index] for index in part), part)
            for step in range(self.total_steps)
            for part in self._parts(self._order(step))
        )
        few = heapq.nlargest(4, sized)  # padding may turn the order of nearly equal ones
        packed = [self._packed(part) for _, part in few]
        largest = max(packed, key=lambda batch: batch.ids.numel())
        return [largest, largest] if self.largest_step() > self.micro_tokens else [largest]

    def _parts(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        """A step's groups by number, cut into its micro-batches."""
        return (order[part] for part in parts_of([self._sizes[index] for index in order], self.micro_tokens))

    def _packed(self, part: Sequence[int]) -> Batch:
        row = self.row_tokens or max(self.micro_tokens, self.longest)
        return pack([self.groups[index] for index in part], row_tokens=row, task=self._task_of(part[0]))

    def _task_of(self, index: int) -> str:
        """Whose group this is."""
        return self.task

    def _order(self, step: int) -> list[int]:
        """The numbers of a step's groups."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = shuffled(len(self.groups), f"{self.seed}/{epoch}")
        start, end = (len(order) * edge // self.steps_per_epoch for edge in (place, place + 1))
        return order[start:end]

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
    for part in parts_of([sum(len(seq) for seq in group) for group in groups], micro_tokens):
        yield pack(groups[part], row_tokens=row_tokens, task=task)


def parts_of(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Where to cut, so that the sizes of each part add up to `most` at the most, or there is one of them alone."""
    start = held = 0
    for place, size in enumerate(sizes):
        if place > start and held + size > most:
            yield slice(start, place)
            start, held = place, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))


@functools.lru_cache(maxsize=2)
def shuffled(count: int, seed: str) -> list[int]:
    """The numbers from 0 to `count` in the order that the seed gives them."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
