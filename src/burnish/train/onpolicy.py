"""A feed whose answers the student writes itself, anew every few steps."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from burnish.core import Batch, Group, Seq
from burnish.data.feed import Feed, micro_batches
from burnish.folder import write_text

Write = Callable[[Sequence[int]], list[Group]]  # numbers of groups -> the same questions with the student's own answers


class OwnAnswers(Feed):
    """The groups of a feed, each with an answer that the student sampled at most `every` steps ago.

    share: of the rows of a step that keep their written answer, drawn by the seed (1 - lambda of GKD, arXiv 2306.13649, algorithm 1).
    write: lets the student answer. folder: where samples are kept, so that a run that was stopped goes on with the very same.
    Samples are drawn between two steps, so no step is packed ahead.
    """

    def __init__(self, feed: Feed, write: Write, *, every: int, share: float, folder: Path) -> None:
        vars(self).update(vars(feed))
        self.write, self.every, self.share, self.folder = write, every, share, folder
        self._drawn: tuple[int, dict[int, Group]] = (-1, {})

    def pack_ahead(self) -> None:
        """The next step's answers are not there yet: the student may have to write them with the weights of this one."""

    def _micro(self, step: int) -> list[Batch]:
        own = self._block(step // self.every)
        groups = [own.get(index, self.groups[index]) for index in self._order(step)]
        row = self.row_tokens or max(self.micro_tokens, self.longest)
        return list(micro_batches(groups, self.task, row_tokens=row, micro_tokens=self.micro_tokens))

    def _block(self, number: int) -> dict[int, Group]:
        """The sampled groups of the steps from number * every on, by their index."""
        if self._drawn[0] == number:
            return self._drawn[1]
        path = self.folder / f"block-{number:05d}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            own = {int(index): [Seq(**seq) for seq in group] for index, group in kept.items()}
        else:
            draw = random.Random(f"{self.seed}/own/{number}")
            steps = range(number * self.every, min((number + 1) * self.every, self.total_steps))
            asked = sorted({index for step in steps for index in self._order(step) if draw.random() >= self.share})
            own = dict(zip(asked, self.write(asked), strict=True))
            write_text(path, json.dumps({index: [_as_json(seq) for seq in group] for index, group in own.items()}))
        self._drawn = number, own
        return own


def _as_json(seq: Seq) -> dict[str, Any]:
    return {"ids": seq.ids, "weight": seq.weight, "y": seq.y, "where": seq.where}
