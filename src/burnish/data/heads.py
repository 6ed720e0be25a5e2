"""From rows to the texts of which a score head names several labels, a number, or a tag for each word."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from burnish.core import Group, Seq
from burnish.data.classes import Classes
from burnish.data.render import question_and_answer
from burnish.data.rows import Labelled, Row, Tagged, Turns
from burnish.errors import RecipeError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SINGLE = ("value",)  # what the one score of a regression is called


def labels_in(row: Row) -> tuple[str, ...]:
    """The labels of a row with any number of them; a single label is one of one. Raises RecipeError for a number."""
    label = row.label if isinstance(row, Labelled) else ()
    if isinstance(label, float):
        raise RecipeError(f"found the label {label!r}", where=row.where, expected="a list of labels")
    labels = label if isinstance(label, tuple) else (str(label),)
    if comma := next((one for one in labels if "," in one), None):
        raise RecipeError(
            f"found the label {comma!r}",
            where=row.where,
            expected="labels without commas, which stand between labels where they are written out",
        )
    return labels


def number_of(row: Row) -> float:
    """The number that a row is labelled with. Raises RecipeError where it is none."""
    label = row.label if isinstance(row, Labelled) else ""
    try:
        number = math.nan if isinstance(label, tuple) else float(label)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise RecipeError(
            f"found the label {label!r}, which is no number",
            where=row.where,
            expected="a finite number for each text",
            hint="task: {kind: classify}   for classes",
        )
    return number


class MultiLabel(Classes):
    """As `Classes`, for any number of labels: `label.N` is 1 where the label of that number fits, else 0."""

    kind = "multilabel"

    def render(self, row: Row) -> Group:
        """The row as one sequence. Raises RecipeError for a label that the head does not have."""
        having = {self.number(label, row) for label in labels_in(row)}
        values = {f"label.{number}": float(number in having) for number in range(len(self.labels))}
        return [self._sequence_of(row, question_and_answer(row)[0], y=1.0, values=values)]

    def show(self, seq: Seq) -> str:
        found = [label for number, label in enumerate(self.labels) if seq.values[f"label.{number}"]]
        return f"{self.tokenizer.decode(seq.ids)} ⟪{', '.join(found)}⟫"


class Grades(Classes):
    """As `Classes`, for numbers: y is how many spreads (standard deviations of the training labels) one lies above their mean."""

    kind = "regress"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mean: float,
        spread: float,
        *,
        system: str = "",
        max_length: int = 1024,
        frame: str = "plain",
    ) -> None:
        super().__init__(tokenizer, SINGLE, system=system, max_length=max_length, frame=frame)
        self.mean, self.spread = mean, spread

    def render(self, row: Row) -> Group:
        """The row as one sequence. Raises RecipeError for a label that is no number."""
        y = (number_of(row) - self.mean) / self.spread
        return [self._sequence_of(row, question_and_answer(row)[0], y=y)]

    def show(self, seq: Seq) -> str:
        return f"{self.tokenizer.decode(seq.ids)} ⟪{self.mean + self.spread * seq.y:.4g}⟫"


class Tags(Classes):
    """As `Classes`, for a tag of each word: the stream `tag` holds its number plus one at the word's last token.

    The last, since a decoder reads from left to right: at the first token of a word it has not seen the rest of it. Words are joined
    by single spaces and tokenized as that text, so `tokenizer(" ".join(words))` in plain transformers gives the ids that were learnt.
    """

    kind = "tag"

    def render(self, row: Row) -> Group:
        """The row as one sequence. Raises RecipeError for a tag that the head does not have, RowError for other rows than tagged ones."""
        if not isinstance(row, Tagged):
            raise RowError(f"a {row.kind} row has no tags", where=row.where, expected="tokens and tags")
        numbers = [self.number(tag, row) for tag in row.tags]
        ids, places = self.places(row.prompt_text())
        stream = [0.0] * len(ids)
        for place, number in zip(places, numbers, strict=False):
            stream[place] = number + 1.0
        lost = len(numbers) - len(places)  # words
        return [Seq(ids, [0.0] * len(ids), tokens={"tag": stream}, where=row.where, lost=lost)]

    def places(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text, and the last token of each of its words, as far as they are within the length that is read."""
        marked = self._marked(text, self._spelled)
        ids, starts = self._encode(marked)
        ends = [word.end() for word in re.finditer(r"\S+", marked)]
        last = np.searchsorted(np.array(starts), ends) - 1  # the last token that begins before the word's end
        read = self._within([*self._before, *ids, *self._after])
        room = len(read) - len(self._before) - len(self._after)
        return read, [len(self._before) + int(place) for place in last if place < room]

    def prompt(self, turns: Turns, tools: Sequence[object] = ()) -> list[int]:
        return self.places(" ".join(" ".join(turn.content for turn in turns if turn.role != "system").split()))[0]

    def show(self, seq: Seq) -> str:
        pieces = []
        for token, tag in zip(seq.ids, seq.tokens["tag"], strict=True):
            pieces.append(str(self.tokenizer.decode([token])))
            if tag and self.labels[int(tag) - 1] != "O":
                pieces.append(f"⟪{self.labels[int(tag) - 1]}⟫")
        return "".join(pieces)
