"""From a labelled row to the text of which a score head names the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from burnish.core import Group, Seq
from burnish.data.render import Chat, question_and_answer, refused
from burnish.data.rows import Labelled, Row, Turn, Turns
from burnish.errors import ModelError, RecipeError, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAID = "\ue002"  # stands for what a user says


class Classes(Chat):
    """A tokenizer for texts that are classified, in place of one for conversations.

    A row becomes its plain text as the tokenizer itself would encode it, with its own opening token where it has one. No template, no
    system prompt and no label stand around it: they would be the same in every row, and a short text would be mostly frame. So
    `tokenizer(text)` in plain transformers gives the very ids that were learnt. Nothing is appended either: the head reads the last
    token that is not padding, and the end token often is the padding.

    frame: "plain" is that. With "chat" a row is what the model would be asked in a conversation: system prompt, turns and the opening of
    an answer, where an instructed model has learnt to gather what it is going to say. Raises RecipeError where that leaves no room for
    a text.
    """

    kind = "classify"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        *,
        system: str = "",
        max_length: int = 1024,
        frame: str = "plain",
    ) -> None:
        super().__init__(tokenizer, system=system, max_length=max_length)
        self.frame = frame
        self.labels = tuple(dict.fromkeys(labels))
        self._number = {label: number for number, label in enumerate(self.labels)}
        self._before, self._after = self._opening() if frame == "chat" else self._own_ends()

    def render(self, row: Row) -> Group:
        """The row as one sequence, y the number of its label.

        Raises RecipeError for a label that the head does not have: dropped, such a row would make the figures better than they are.
        """
        turns, label = question_and_answer(row)
        if isinstance(row, Labelled) and isinstance(row.label, float | tuple):
            raise RecipeError(
                f"found the label {row.label!r}",
                where=row.where,
                expected="one class for each text",
                hint="task: {kind: multilabel}   for several labels, {kind: regress} for numbers",
            )
        return [self._sequence_of(row, turns, y=float(self.number(label, row)))]

    def number(self, label: str, row: Row) -> int:
        """The number of a label. Raises RecipeError for one that the head does not have."""
        if label in self._number:
            return self._number[label]
        raise RecipeError(
            f"found the label {label!r}, which is not among the {len(self.labels)} to choose from",
            where=row.where,
            expected=f"one of: {', '.join(self.labels[:8])}{', ...' if len(self.labels) > 8 else ''}",
            hint="task: {labels: [...]}   names them all; by default they are those of the training rows",
        )

    def _sequence_of(self, row: Row, turns: Turns, *, y: float, values: dict[str, float] | None = None) -> Seq:
        """The text of a row as a sequence. Raises RowError where there is none."""
        text = self._text(turns)
        if not text:
            raise RowError("there is no text to classify", where=row.where, expected="some text before the label")
        try:
            whole = self._framed(text, turns, getattr(row, "tools", ()))
        except ModelError as error:
            raise refused(row, error) from error
        kept = self._within(whole)
        return Seq(kept, [0.0] * len(kept), y=y, values=values or {}, where=row.where, lost=len(whole) - len(kept))

    def prompt(self, turns: Turns, tools: Sequence[Any] = ()) -> list[int]:
        """The ids of what was said, in its frame: the head answers after them."""
        return self._within(self._framed(self._text(turns), turns, tools))

    def teaches(self, seq: Seq) -> bool:
        """Always: what is learnt is the label, and no token of the text."""
        return True

    def show(self, seq: Seq) -> str:
        """The sequence as text and, between double angle marks, its label."""
        return f"{self.tokenizer.decode(seq.ids)} ⟪{self.labels[int(seq.y)]}⟫"

    def _text(self, turns: Turns) -> list[int]:
        """The ids of what was said, without the system's turns."""
        text = "\n".join(turn.content for turn in turns if turn.role != "system")
        return self._encode(self._marked(text, self._spelled))[0]

    def _framed(self, text: list[int], turns: Turns, tools: Sequence[Any]) -> list[int]:
        """The ids of what was said in its frame, however many. text: those of `turns` alone."""
        if self.frame == "chat":
            return self._unpadded(super().prompt(turns, tools))
        return [*self._before, *text, *self._after]

    def _unpadded(self, ids: list[int]) -> list[int]:
        """Without padding at the end, before which transformers looks for the token that a head reads; some pad with the end token."""
        while ids and ids[-1] == self.tokenizer.pad_token_id:
            ids = ids[:-1]
        return ids

    def _within(self, ids: list[int]) -> list[int]:
        """As many as are read: the text loses its end, and what stands behind it stays."""
        room = max(0, self.max_length - len(self._after))
        return ids if len(ids) <= self.max_length else [*ids[:room], *self._after]

    def _opening(self) -> tuple[list[int], list[int]]:
        """The tokens that the chat template puts before and after what a user says, the opening of the answer with them."""
        whole = self._template(self.with_system((Turn("user", SAID),)), (), opened=True)
        before, _, after = whole.rpartition(SAID)
        ends = self._encode(before)[0], self._unpadded(self._encode(after)[0])
        frame = sum(map(len, ends))
        if self.max_length <= frame:
            raise RecipeError(
                f"{self.max_length} tokens leave no room for a text: its frame takes {frame}",
                where="train.max_length",
                hint=f"--set train.max_length={2 * frame}   or --set task.frame=plain",
            )
        return ends

    def _own_ends(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before and after a text; padding at its end is none of it."""
        bare: list[int] = self.tokenizer("a", add_special_tokens=False)["input_ids"]
        whole: list[int] = self.tokenizer("a")["input_ids"]
        start = next(place for place in range(len(whole)) if whole[place : place + len(bare)] == bare)
        after = whole[start + len(bare) :]
        return whole[:start], [token for token in after if token != self.tokenizer.pad_token_id]
