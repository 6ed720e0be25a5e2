"""In-context learning: the examples stand in the prompt, as turns before the question (Brown et al. 2020, arXiv 2005.14165)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from burnish.data.draw import ranked_classes
from burnish.data.render import Chat, conversation_of, question_and_answer
from burnish.data.rows import Conversation, Row, Turn, Turns


@dataclass(frozen=True)
class Shots:
    """The examples that stand in the prompt. rows: in their order there. drawn: how many there were to choose from. classes: of them."""

    rows: list[Row]
    drawn: int
    classes: int

    @property
    def note(self) -> str:
        """What did not fit, in words; empty where all did."""
        if len(self.rows) == self.drawn:
            return ""
        each = len(self.rows) // max(self.classes, 1)
        balance = f", {each} of each class" if each and self.classes > 1 else ""
        if self.rows and not each:
            balance = f", one of each of {len(self.rows)} of {self.classes} classes"
        return f"{len(self.rows)} of {self.drawn} examples fit into the prompt{balance}"


def choose_shots(rows: Sequence[Row], k: int, seed: int, chat: Chat, room: int, *, by_label: bool) -> Shots:
    """As many of the k examples (of each class) as `room` tokens hold, in whole rounds of one a class where one round fits.

    The rounds follow the order of the draw, so the examples of a small k are the first of a larger k too; where a larger k does not fit
    either, its prompt is the very same.
    """
    ranked = [numbers[:k] for _, numbers in sorted(ranked_classes(rows, seed, by_label=by_label).items())]
    rounds = [[number for number in one if number is not None] for one in zip_longest(*ranked)]
    if not by_label:  # one class: each example is a round of its own
        rounds = [[number] for numbers in ranked for number in numbers]
    bare = len(chat.prompt((Turn("user", "?"),)))
    kept: list[Row] = []
    for place, numbers in enumerate(rounds):
        random.Random(f"shots/{seed}/{place}").shuffle(numbers)
        costs = [len(chat.prompt((*turns_of(rows[number]), Turn("user", "?")))) - bare for number in numbers]
        fitting = next((n for n in range(len(costs), 0, -1) if sum(costs[:n]) <= room), 0)
        if place and fitting < len(numbers):
            break  # a part of a round would favour some classes
        kept += [rows[number] for number in numbers[:fitting]]
        room -= sum(costs[:fitting])
        if fitting < len(numbers):
            break
    return Shots(kept, sum(map(len, ranked)), len(ranked))


def turns_of(row: Row) -> Turns:
    """An example as turns that are read and not learnt; the system prompt stands once, before all of them."""
    return tuple(replace(turn, weight=0.0) for turn in conversation_of(row) if turn.role != "system")


def with_shots(row: Row, shots: Sequence[Row]) -> Conversation:
    """A question with the examples before it; only its answer is weighed."""
    turns, answer = question_and_answer(row)
    system = tuple(turn for turn in turns if turn.role == "system")
    asked = tuple(
        replace(turn, weight=0.0) if turn.role == "assistant" else turn for turn in turns if turn.role != "system"
    )
    before = tuple(turn for shot in shots for turn in turns_of(shot))
    return Conversation(
        file=row.file,
        line=row.line,
        extra=row.extra,
        turns=(*system, *before, *asked, Turn("assistant", answer)),
        tools=getattr(row, "tools", ()),
    )
