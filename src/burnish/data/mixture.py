"""The feed of several tasks: each optimiser step deals groups of all of them, by their shares."""

from __future__ import annotations

import functools
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from burnish.core import Group
from burnish.data.feed import Feed, shuffled
from burnish.recipe import Mixing


class Mixture(Feed):
    """A `Feed` over the groups of several tasks, of which every micro-batch holds one.

    shares: task -> its share of the groups of a step, 1 in all. An epoch is as many groups as there are in all tasks together, so a task
    whose share is above that of its groups begins its own anew earlier, shuffled anew. What is dealt never strays from the shares by a
    whole group, at whichever step one looks. All of it follows from the seed and the number of the step. sizes: as `Feed` takes them.

    Source: Raffel et al. 2019 (arXiv 1910.10683), section 3.5.2.
    """

    def __init__(self, tasks: Mapping[str, Sequence[Group]], shares: Mapping[str, float], **sizes: Any) -> None:
        super().__init__([group for groups in tasks.values() for group in groups], task="", **sizes)
        self.names, self.shares = list(tasks), [shares[name] for name in tasks]
        self.counts = [len(groups) for groups in tasks.values()]
        self._starts = list(accumulate(self.counts, initial=0))[:-1]
        per_epoch = self.steps_per_epoch
        edges = tuple(step * len(self.groups) // per_epoch for step in range(self.total_steps + 1))
        self._dealt = deal(tuple(self.shares), edges)
        # An order in use and one that follows it, for each task.
        self._shuffled = functools.lru_cache(2 * len(tasks))(shuffled.__wrapped__)

    def seen(self) -> dict[str, int]:
        return dict(zip(self.names, self._dealt[-1], strict=True))

    def _order(self, step: int) -> list[int]:
        """The numbers of a step's groups, task by task."""
        order: list[int] = []
        for place, name in enumerate(self.names):
            count, start = self.counts[place], self._starts[place]
            for number in range(self._dealt[step][place], self._dealt[step + 1][place]):
                epoch, within = divmod(number, count)
                order.append(start + self._shuffled(count, f"{self.seed}/{name}/{epoch}")[within])
        return order

    def _parts(self, order: Sequence[int]) -> Iterator[Sequence[int]]:
        places = [self._place_of(index) for index in order]
        for place in range(len(self.names)):
            yield from super()._parts([index for index, its in zip(order, places, strict=True) if its == place])

    def _task_of(self, index: int) -> str:
        return self.names[self._place_of(index)]

    def _place_of(self, index: int) -> int:
        return bisect_right(self._starts, index) - 1


@functools.lru_cache(maxsize=2)
def deal(shares: tuple[float, ...], edges: tuple[int, ...]) -> list[list[int]]:
    """How many groups of each task are among the first so many of the run. edges: those numbers, ascending; shares: 1 in all.

    One group after another goes to the task that would be the first to lie a whole group behind, of those that would not come to lie one
    ahead: so none ever does either (Tijdeman 1980, "The chairman assignment problem").
    """
    places, had, found = range(len(shares)), [0] * len(shares), []
    for before, after in zip((0, *edges), edges, strict=False):
        for done in range(before + 1, after + 1):
            may = [place for place in places if had[place] < shares[place] * done]
            had[min(may or places, key=lambda place: (had[place] + 1) / shares[place])] += 1
        found.append(list(had))
    return found


def shares_of(sizes: Mapping[str, int], weights: Mapping[str, float], mixing: Mixing) -> dict[str, float]:
    """The share of each task, 1 in all: its weight times its rows (up to `cap`) to the power 1/temperature; or its weight alone."""
    power = {"size": 1.0, "temperature": 1 / mixing.temperature, "weights": 0.0}[mixing.by]
    parts = {name: weights[name] * min(size, mixing.cap or size) ** power for name, size in sizes.items()}
    return {name: part / sum(parts.values()) for name, part in parts.items()}
