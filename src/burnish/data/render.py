"""From a row to token ids and weights, through the model's own chat template."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from burnish.core import Group, Seq
from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Conversation, Labelled, Row, Tagged, Text, Turn, Turns
from burnish.errors import ModelError, RowError

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

LABELS_SPELLED = 25  # as many labels as are listed in a system prompt

Span = tuple[int, int, float]  # first character, end character, weight


class Chat:
    """A tokenizer with its chat template: the one place where text becomes ids.

    system: the system prompt of conversations that bring none. max_length: tokens of a sequence; more are cut off its end.

    What a user wrote never becomes a control token, even where it spells one: such spellings are swapped for marks that
    the template carries through, and the marks are tokenized as plain text. Control tokens are the special ones and those
    that the template writes, such as `<think>`; the latter stay what they are in an answer, where the model is to write them.
    """

    labels: tuple[str, ...] = ()  # what a score head may answer; none for a model that writes
    kind = ""  # of the score head
    mean, spread = 0.0, 1.0  # of the numbers that it names
    frame = "plain"  # of the texts that it reads

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, system: str = "", max_length: int = 1024) -> None:
        self.tokenizer = tokenizer
        self.system = system
        self.max_length = max_length
        added = tokenizer.added_tokens_decoder
        special = [token.content for token in added.values() if token.special]
        # Other added tokens are mostly words, such as the runs of line ends and the HTML tags of Gemma.
        written = [
            text for token in added.values() if (text := token.content).strip() and text in str(tokenizer.chat_template)
        ]
        self._control = sorted({*special, *written}, key=len, reverse=True)
        self._control_ids = frozenset(number for number, token in added.items() if token.content in self._control)
        self._spelled, self._special = _any_of(self._control), _any_of(special)
        self.end_ids = self._find_end_ids()

    @property
    def control_tokens(self) -> list[str]:
        return self._control

    def render(self, row: Row) -> Group:
        """The row as one group of sequences, its answers weighted and all else 0.

        One sequence, as a rule. Where the template rewrites earlier answers (some drop their reasoning), each answer
        gets a sequence of its own, so that every one is learnt under the context it will really have; a long Text
        becomes as many sequences as it needs. Raises RowError where the template refuses the conversation.
        """
        if isinstance(row, Text):
            return self._render_text(row)
        turns, tools = self.with_system(conversation_of(row)), getattr(row, "tools", ())
        answers = [index for index, turn in enumerate(turns) if turn.role == "assistant"]
        whole, spans = self._spans(row, turns, answers, tools)
        if spans is not None:
            return [self._sequence(whole, spans, row.where)]
        group = []
        for index in answers:
            text, last = self._spans(row, turns[: index + 1], [index], tools)
            if last is None:
                raise RowError(
                    "the chat template rewrites the answer itself",
                    where=row.where,
                    expected="an answer as it was given",
                )
            group.append(self._sequence(text, last, row.where))
        return group

    def teaches(self, seq: Seq) -> bool:
        """Whether there is something in a rendered sequence to learn."""
        return seq.trained > 0

    def prompt(self, turns: Turns, tools: Sequence[Any] = ()) -> list[int]:
        """The ids after which the model answers: the conversation so far and the opening of the assistant's turn."""
        return self._encode(self._template(self.with_system(turns), tools, opened=True))[0]

    def show(self, seq: Seq) -> str:
        """The sequence as text, its trained tokens between double angle marks: what `data check` and the smoke step print."""
        pieces, inside = [], False
        for token, weight in zip(seq.ids, seq.weight, strict=True):
            if (weight != 0) != inside:
                inside = weight != 0
                pieces.append("⟪" if inside else "⟫")
            pieces.append(str(self.tokenizer.decode([token])))
        return "".join(pieces) + ("⟫" if inside else "")

    def _render_text(self, row: Text) -> Group:
        ids = self._encode(self._marked(row.text, self._spelled))[0] + [self.tokenizer.eos_token_id]
        if self.tokenizer.bos_token_id not in (None, self.tokenizer.eos_token_id):
            ids.insert(0, self.tokenizer.bos_token_id)
        pieces = [ids[start : start + self.max_length] for start in range(0, len(ids), self.max_length)]
        return [Seq(piece, [1.0] * len(piece), where=row.where) for piece in pieces if len(piece) > 1]

    def with_system(self, turns: Turns) -> Turns:
        """The turns as the model is asked them: after the system prompt, unless they bring their own."""
        if not self.system or any(turn.role == "system" for turn in turns):
            return turns
        return (Turn("system", self.system), *turns)

    def _spans(self, row: Row, turns: Turns, answers: list[int], tools: Sequence[Any]) -> tuple[str, list[Span] | None]:
        """The rendered conversation and where its answers stand in it; None where its prefixes do not stay as they are."""
        try:
            whole = self._template(turns, tools)
            spans: list[Span] = []
            for index in answers:
                opening = self._template(turns[:index], tools, opened=True)
                closed = self._template(turns[: index + 1], tools)
                if not (closed.startswith(opening) and whole.startswith(closed)):
                    return whole, None
                weight = turns[index].weight
                spans.append((len(opening), len(closed), 1.0 if weight is None else weight))
            return whole, spans
        except ModelError as error:
            raise refused(row, error) from error

    def _template(self, turns: Turns, tools: Sequence[Any], *, opened: bool = False) -> str:
        """The conversation as text, control tokens that users spelled out replaced by marks."""
        messages = [self._message(turn) for turn in turns]
        tools = [self._marked(tool, self._spelled) for tool in tools]
        try:
            return self._apply(messages, tools, opened)
        except ModelError:
            if [message["role"] for message in messages[:2]] != ["system", "user"]:
                raise
        # Some templates have no place for a system turn: it goes in front of the first user turn.
        system, user, *rest = messages
        return self._apply([{**user, "content": f"{system['content']}\n\n{user['content']}"}, *rest], tools, opened)

    def _apply(self, messages: list[dict[str, Any]], tools: list[Any], opened: bool) -> str:
        from jinja2.exceptions import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=tools or None, tokenize=False, add_generation_prompt=opened
            )
        except (TemplateError, TypeError, ValueError, LookupError) as error:  # a template is a program: it fails as one
            raise ModelError(str(error), where="chat template") from error
        return str(text)

    def _message(self, turn: Turn) -> dict[str, Any]:
        marked: dict[str, Any] = self._marked(turn.as_json(), self._spelled)
        own = self._special if turn.role == "assistant" else self._spelled
        return marked | {"role": turn.role, "content": self._marked(turn.content, own)}

    def _marked(self, value: Any, spelled: re.Pattern[str]) -> Any:
        """A JSON value with a mark in place of each control token that one of its texts spells."""
        if isinstance(value, str):
            return spelled.sub(self._mark, value)
        if isinstance(value, Mapping):
            return {self._marked(key, spelled): self._marked(inner, spelled) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return [self._marked(inner, spelled) for inner in value]
        return value

    def _mark(self, spelled: re.Match[str]) -> str:
        return f"\ue000{self._control.index(spelled[0])}\ue001"

    def _encode(self, text: str) -> tuple[list[int], list[int]]:
        """Ids and the character each begins at. Marks become the plain text that they stand for."""
        ids: list[int] = []
        starts: list[int] = []
        place = 0
        for piece in re.split("(\ue000\\d+\ue001)", text):
            marked = re.fullmatch("\ue000(\\d+)\ue001", piece)
            if marked and int(marked[1]) < len(self._control):
                plain = self._encode_literally(self._control[int(marked[1])])
                ids += plain
                starts += [place] * len(plain)
            elif piece:
                encoded = self._encoding(piece)
                ids += encoded.ids
                starts += [place + start for start, _ in encoded.offsets]
            place += len(piece)
        return ids, starts

    def _encoding(self, text: str) -> Encoding:
        """What `tokenizer(text, add_special_tokens=False)` gives, asked of the tokenizer inside: that takes a third of the time."""
        inner = self.tokenizer.backend_tokenizer
        if inner.padding or inner.truncation:  # from somebody's call
            inner.no_padding()
            inner.no_truncation()
        if inner.encode_special_tokens != self.tokenizer.split_special_tokens:
            inner.encode_special_tokens = self.tokenizer.split_special_tokens
        return inner.encode(text, add_special_tokens=False)

    def _encode_literally(self, text: str) -> list[int]:
        """The ids of a control token's spelling as ordinary text: cut until no piece is a control token."""
        ids: list[int] = self._encoding(text).ids
        if len(text) < 2 or self._control_ids.isdisjoint(ids):
            return ids
        return self._encode_literally(text[:1]) + self._encode_literally(text[1:])

    def _sequence(self, text: str, spans: Iterable[Span], where: str) -> Seq:
        ids, starts = self._encode(text)
        weights = [0.0] * len(ids)
        for first, end, weight in spans:
            begin, stop = bisect_left(starts, first), bisect_left(starts, end)
            ends = [index for index in range(begin, stop) if ids[index] in self.end_ids]
            stop = ends[-1] + 1 if ends else stop  # what follows the end token is never generated, so it is not learnt
            weights[begin:stop] = [weight] * (stop - begin)
        return self._cut(ids, weights, where)

    def _cut(self, ids: list[int], weights: list[float], where: str) -> Seq:
        lost = sum(weight != 0 for weight in weights[self.max_length :])
        return Seq(ids[: self.max_length], weights[: self.max_length], where=where, lost=lost)

    def _find_end_ids(self) -> frozenset[int]:
        """The tokens that end an answer: the end token, and whatever control token the template closes one with.

        Raises ModelError where the template closes an answer with neither, since the model could never learn to stop.
        """
        ask, answer = (Turn("user", "a"), Turn("assistant", "b"))
        opening, closed = self._template((ask,), (), opened=True), self._template((ask, answer), ())
        tail = self._encode(closed[len(opening) :])[0] if closed.startswith(opening) else self._encode(closed)[0]
        ends = [token for token in tail if token == self.tokenizer.eos_token_id or token in self._control_ids]
        if not ends:
            raise ModelError(
                "its chat template closes an answer without an end token, so a tuned model would never stop",
                where="chat template",
                expected="a template that writes the end token after each answer",
            )
        return frozenset({self.tokenizer.eos_token_id, ends[-1]})


def refused(row: Row, error: ModelError) -> RowError:
    """What a row is told of a chat template that does not take it."""
    return RowError(f"the chat template refuses this conversation: {error.found}", where=row.where)


def _any_of(texts: Sequence[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first; of no texts, nothing."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True))) or r"(?!)")


def conversation_of(row: Row) -> Turns:
    """The turns that `sft` learns: a labelled row becomes a question whose answer is its label."""
    if isinstance(row, Conversation):
        return row.turns
    if isinstance(row, Labelled):
        return (*row.turns, Turn("assistant", row.answer_text()))
    if isinstance(row, Tagged):
        return Turn("user", row.prompt_text()), Turn("assistant", row.answer_text())
    raise RowError(
        f"a {row.kind} row holds no answer to imitate", where=row.where, expected="prompt and completion, or messages"
    )


def system_prompt(goal: str, labels: Sequence[str]) -> str:
    """The system prompt of a task: its goal and, where they are few, the labels to choose from."""
    spelled = f"Answer with one of: {', '.join(labels)}." if 0 < len(labels) <= LABELS_SPELLED else ""
    return " ".join(filter(None, (goal.strip(), spelled)))


def question_and_answer(row: Row) -> tuple[Turns, str]:
    """The turns to hand to the model, and the answer it should give: what evaluation asks and compares with."""
    turns = conversation_of(row)
    last = max(index for index, turn in enumerate(turns) if turn.role == "assistant")
    return turns[:last], turns[last].content


@dataclass
class Rendered:
    """Groups of one split, and what was counted while rendering them."""

    groups: list[Group] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    tokens: int = 0
    trained: int = 0
    truncated: int = 0
    ended: int = 0
    sequences: int = 0
    longest_answer: int = 0

    @property
    def lengths(self) -> list[int]:
        return [len(seq) for group in self.groups for seq in group]


def joined(parts: Sequence[Rendered]) -> Rendered:
    """Several as one: groups and rows one after another, counts added up."""
    summed = ("tokens", "trained", "truncated", "ended", "sequences")
    return Rendered(
        [group for part in parts for group in part.groups],
        [row for part in parts for row in part.rows],
        **{name: sum(getattr(part, name) for part in parts) for name in summed},
        longest_answer=max(part.longest_answer for part in parts),
    )


def render_rows(rows: Iterable[Row], chat: Chat, ledger: Ledger) -> Rendered:
    """Render rows that teach something. One whose answer was cut away whole is dropped, one that was cut is noted."""
    done = Rendered()
    longer = f"--set train.max_length={2 * chat.max_length}"
    for row in rows:
        try:
            group = chat.render(row)
        except RowError as error:
            ledger.add(Entry(row.file, row.line, "dropped", error.found, before=row.prompt_text(), fix=error.expected))
            continue
        kept = [seq for seq in group if chat.teaches(seq)]
        cut = any(seq.lost for seq in group)
        if not kept:
            reason = "the answer is wholly cut off at max_length" if cut else "no token of it is trained"
            fix = longer if cut else "leave the row out, or give an answer of it a weight"
            ledger.add(Entry(row.file, row.line, "dropped", reason, before=row.prompt_text(), fix=fix))
            done.sequences += len(group)
            done.truncated += sum(bool(seq.lost) for seq in group)
            continue
        if cut:
            done.truncated += sum(bool(seq.lost) for seq in kept)
            ledger.add(
                Entry(row.file, row.line, "noted", "cut off at max_length", before=row.answer_text(), fix=longer)
            )
        done.groups.append(kept)
        done.rows.append(row)
        for seq in kept:
            done.sequences += 1
            done.tokens += len(seq)
            done.trained += seq.trained
            goes_on = isinstance(row, Text) and seq is not kept[-1]  # a piece of a long text ends in its last piece
            done.ended += goes_on or any(
                weight and token in chat.end_ids for token, weight in zip(seq.ids, seq.weight, strict=True)
            )
            done.longest_answer = max(done.longest_answer, seq.trained)
    return done
