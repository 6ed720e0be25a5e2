"""The rows that a data file can hold, typed by what may be learnt from them.

A format of `data/formats/` turns one JSON object into one of these; everything after it (clean, dedup, split, render) sees these
classes alone. Rows are values: nothing changes one in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

Role = Literal["system", "user", "assistant", "tool"]
Label = str | int | float | tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation.

    weight: what its tokens count in the loss; None means the default, 1 for the assistant and 0 for everybody else.
    calls: the tool calls of an assistant, as the OpenAI format writes them. call_id: which call a tool's turn answers.
    """

    role: Role
    content: str
    weight: float | None = None
    calls: tuple[Mapping[str, Any], ...] = ()
    name: str = ""
    call_id: str = ""

    def as_json(self) -> dict[str, Any]:
        message: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.name:
            message["name"] = self.name
        if self.calls:
            message["tool_calls"] = [dict(call) for call in self.calls]
        if self.call_id:
            message["tool_call_id"] = self.call_id
        if self.weight is not None:
            message["weight"] = self.weight
        return message


Turns = tuple[Turn, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What all rows share.

    file, line: where it was read; the line is 1 for the first line of a text file, the row's number elsewhere.
    extra: the columns that the format does not read, kept for `group_by` and for slices.
    """

    kind: ClassVar[str] = ""

    file: str
    line: int
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def where(self) -> str:
        return f"{self.file}:{self.line}"

    def map_texts(self, change: Callable[[str, str], str]) -> Row:
        """The same row with `change(role, text)` put in place of each of its texts, in reading order."""
        raise NotImplementedError

    def prompt_text(self) -> str:
        """What the model is given, as plain text: what `dedup` and the leakage guard compare."""
        raise NotImplementedError

    def answer_text(self) -> str:
        """What the model should learn to say, as plain text; empty where there is none."""
        raise NotImplementedError

    def as_json(self) -> dict[str, Any]:
        """The row in the format that `sources` reads back to an equal row."""
        raise NotImplementedError


def _map_turns(turns: Turns, change: Callable[[str, str], str]) -> Turns:
    return tuple(replace(turn, content=change(turn.role, turn.content)) for turn in turns)


def _join(turns: Turns) -> str:
    return "\n".join(turn.content for turn in turns)


def _messages(turns: Turns) -> list[dict[str, Any]]:
    return [turn.as_json() for turn in turns]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation(Row):
    """A conversation to imitate: each assistant turn is an answer to learn."""

    kind = "conversation"

    turns: Turns
    tools: tuple[Mapping[str, Any], ...] = ()

    def map_texts(self, change: Callable[[str, str], str]) -> Conversation:
        return replace(self, turns=_map_turns(self.turns, change))

    def prompt_text(self) -> str:
        """Everything before the last answer, without system turns: they recur in every row."""
        return _join(tuple(turn for turn in self.turns[: self._last_answer()] if turn.role != "system"))

    def answer_text(self) -> str:
        """The last answer alone: a conversation may end with the user, whose last turn nobody answers."""
        return _join(self.turns[self._last_answer() :][:1])

    def _last_answer(self) -> int:
        """The index of the last assistant turn, or the number of turns where there is none."""
        answers = [index for index, turn in enumerate(self.turns) if turn.role == "assistant"]
        return answers[-1] if answers else len(self.turns)

    def as_json(self) -> dict[str, Any]:
        tools = {"tools": [dict(tool) for tool in self.tools]} if self.tools else {}
        return {**self.extra, "messages": _messages(self.turns), **tools}


@dataclass(frozen=True, slots=True, kw_only=True)
class Text(Row):
    """Plain text, learnt from its first token to its last."""

    kind = "text"

    text: str

    def map_texts(self, change: Callable[[str, str], str]) -> Text:
        return replace(self, text=change("text", self.text))

    def prompt_text(self) -> str:
        return self.text

    def answer_text(self) -> str:
        return ""

    def as_json(self) -> dict[str, Any]:
        return {**self.extra, "text": self.text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt(Row):
    """A prompt without an answer, for whatever lets the model answer by itself."""

    kind = "prompt"

    turns: Turns

    def map_texts(self, change: Callable[[str, str], str]) -> Prompt:
        return replace(self, turns=_map_turns(self.turns, change))

    def prompt_text(self) -> str:
        return _join(self.turns)

    def answer_text(self) -> str:
        return ""

    def as_json(self) -> dict[str, Any]:
        return {**self.extra, "prompt": _messages(self.turns)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled(Row):
    """A text or conversation with its class (text or integer), classes (tuple) or grade (float)."""

    kind = "labelled"

    turns: Turns
    label: Label

    def map_texts(self, change: Callable[[str, str], str]) -> Labelled:
        return replace(self, turns=_map_turns(self.turns, change))

    def prompt_text(self) -> str:
        return _join(self.turns)

    def answer_text(self) -> str:
        return ", ".join(self.label) if isinstance(self.label, tuple) else str(self.label)

    def as_json(self) -> dict[str, Any]:
        label = list(self.label) if isinstance(self.label, tuple) else self.label
        return {**self.extra, "messages": _messages(self.turns), "label": label}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tagged(Row):
    """Words with a tag each, such as the BIO tags of the names in a text."""

    kind = "tagged"

    words: tuple[str, ...]
    tags: tuple[str, ...]

    def map_texts(self, change: Callable[[str, str], str]) -> Tagged:
        """Word by word; one that would vanish, or become several, stays, since each has its tag."""
        changed = [change("user", word) for word in self.words]
        words = tuple(new if len(new.split()) == 1 else word for word, new in zip(self.words, changed, strict=True))
        return replace(self, words=words)

    def prompt_text(self) -> str:
        return " ".join(self.words)

    def answer_text(self) -> str:
        return " ".join(self.tags)

    def as_json(self) -> dict[str, Any]:
        return {**self.extra, "tokens": list(self.words), "tags": list(self.tags)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair(Row):
    """Two answers to one prompt, of which one was preferred, by `margin` where it is known."""

    kind = "pair"

    prompt: Turns
    chosen: Turns
    rejected: Turns
    margin: float | None = None

    def map_texts(self, change: Callable[[str, str], str]) -> Pair:
        prompt, chosen, rejected = (_map_turns(turns, change) for turns in (self.prompt, self.chosen, self.rejected))
        return replace(self, prompt=prompt, chosen=chosen, rejected=rejected)

    def prompt_text(self) -> str:
        return _join(self.prompt)

    def answer_text(self) -> str:
        return _join(self.chosen)

    def as_json(self) -> dict[str, Any]:
        turns = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected}
        margin = {} if self.margin is None else {"margin": self.margin}
        return {**self.extra, **{name: _messages(value) for name, value in turns.items()}, **margin}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged(Row):
    """One answer to a prompt, judged good or bad."""

    kind = "judged"

    prompt: Turns
    completion: Turns
    good: bool

    def map_texts(self, change: Callable[[str, str], str]) -> Judged:
        return replace(self, prompt=_map_turns(self.prompt, change), completion=_map_turns(self.completion, change))

    def prompt_text(self) -> str:
        return _join(self.prompt)

    def answer_text(self) -> str:
        return _join(self.completion)

    def as_json(self) -> dict[str, Any]:
        turns = {"prompt": _messages(self.prompt), "completion": _messages(self.completion)}
        return {**self.extra, **turns, "label": self.good}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking(Row):
    """K answers to one prompt with their grades: a higher grade is better, equal grades are a tie."""

    kind = "ranking"

    prompt: Turns
    answers: tuple[Turns, ...]
    grades: tuple[float, ...]

    def map_texts(self, change: Callable[[str, str], str]) -> Ranking:
        answers = tuple(_map_turns(answer, change) for answer in self.answers)
        return replace(self, prompt=_map_turns(self.prompt, change), answers=answers)

    def prompt_text(self) -> str:
        return _join(self.prompt)

    def answer_text(self) -> str:
        """The best answer, the first of them where several tie."""
        return _join(self.answers[self.grades.index(max(self.grades))])

    def as_json(self) -> dict[str, Any]:
        answers = [_messages(answer) for answer in self.answers]
        return {**self.extra, "prompt": _messages(self.prompt), "answers": answers, "scores": list(self.grades)}
