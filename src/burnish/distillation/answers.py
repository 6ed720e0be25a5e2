"""What the teacher writes to the training questions, in place of what was written."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from burnish.data.ledger import Entry, Ledger
from burnish.data.render import Chat, question_and_answer
from burnish.data.rows import Conversation, Labelled, Prompt, Row, Text, Turn, Turns
from burnish.data.split import Guarded
from burnish.endpoint import Answers, Endpoint, Reply
from burnish.errors import EndpointError, ModelError, RowError
from burnish.folder import Run
from burnish.model.sample import Sampler
from burnish.recipe import Recipe
from burnish.scoring import Scorer, scorer_for

if TYPE_CHECKING:
    from burnish.parts import Chosen

MOST_REJECTED = 0.5  # of a teacher's answers; beyond it the teacher is wrong, not its answers
REPEATED = 0.2  # an answer that packs to less than this share of its size repeats itself
LEAST_PACKED = 200  # characters from which on that is asked
WRITTEN_AT_ONCE = 32  # answers of a local teacher, kept together


def ask_teacher(
    run: Run, recipe: Recipe, chosen: Chosen, chat: Chat, guarded: Guarded, ledger: Ledger
) -> tuple[Guarded, list[Reply]]:
    """The rows with the teacher's answers in train, where the recipe learns from what it writes, and its replies."""
    guide = chosen.teacher
    if guide is None or not (recipe.distill.on == "answers" or guide.place is None):
        return guarded, []
    from burnish.parts import read_schema

    task = recipe.task
    labels = task.labels or sorted({row.answer_text() for row in guarded.train})
    scorer = scorer_for(task.kind, task.metric, schema=read_schema(task.json_schema), labels=labels)
    rows, replies = answers_of_teacher(run, recipe, chosen, chat, guarded.train, scorer, ledger)
    return replace(guarded, train=rows), replies


def answers_of_teacher(
    run: Run, recipe: Recipe, chosen: Chosen, chat: Chat, rows: Sequence[Row], scorer: Scorer | None, ledger: Ledger
) -> tuple[list[Row], list[Reply]]:
    """The training rows with what the teacher answers in place of the last answer, and its replies; nonsense is left out.

    Raises ModelError where most of it is nonsense.
    """
    distill = recipe.distill
    asked = [row for row in rows if not isinstance(row, Text)]
    if not asked:
        raise RowError(
            "plain text asks nothing", where="data.train", expected="rows with a question", hint="--on probabilities"
        )
    questions = [row.turns if isinstance(row, Prompt) else question_and_answer(row)[0] for row in asked]
    conversations = [chat.with_system(turns) for turns in questions]
    room = room_for_answers(recipe, chosen, asked)
    answers = Answers(run.folder / "teacher" / "answers.jsonl")
    replies = _ask(run, recipe, chosen, conversations, answers, room)
    kept: list[tuple[Row, Reply]] = []
    reasons: dict[str, int] = {}
    for row, turns, reply in zip(asked, questions, replies, strict=True):
        if reason := nonsense(reply, row.answer_text(), scorer, distill.min_score):
            reasons[reason] = reasons.get(reason, 0) + 1
            ledger.add(
                Entry(row.file, row.line, "dropped", f"the teacher's answer {reason}", row.prompt_text(), reply.text)
            )
            continue
        kept.append((with_answer(row, turns, reply.text.strip()), reply))
        if reply.text.strip() != row.answer_text():
            ledger.add(
                Entry(row.file, row.line, "changed", "answered by the teacher", row.answer_text(), reply.text.strip())
            )
    if len(kept) <= MOST_REJECTED * len(asked):
        worst = max(reasons, key=lambda reason: reasons[reason])
        raise ModelError(
            f"the teacher answers nonsense: {len(asked) - len(kept)} of {len(asked)} answers cannot be learnt; mostly an answer {worst}",
            where=distill.teacher,
            expected="a teacher that can do the task; every answer is kept in teacher/answers.jsonl, with reasons in ledger.jsonl",
            hint=f"--set distill.min_score={distill.min_score / 2:g}   or another --teacher",
        )
    run.parts["teacher"] = {"asked": len(asked), "learnt": len(kept), "rejected": reasons}
    return [row for row, _ in kept], [reply for _, reply in kept]


def room_for_answers(recipe: Recipe, chosen: Chosen, rows: Sequence[Row]) -> int:
    """Tokens that an answer may have: what the recipe says, or twice the longest that was written."""
    written = [row.answer_text() for row in rows]
    longest = max((len(chosen.tokenizer(text)["input_ids"]) for text in written if text), default=0)
    return recipe.task.max_new_tokens or (min(512, 2 * longest + 16) if longest else 256)


def _ask(
    run: Run, recipe: Recipe, chosen: Chosen, conversations: Sequence[Turns], answers: Answers, room: int
) -> list[Reply]:
    guide = chosen.teacher
    assert guide is not None

    def show(done: int) -> None:
        run.progress.update(f"the teacher: {done} of {len(conversations)} answers")

    if guide.place is None:
        figures: dict[str, Any] = {}
        if recipe.distill.on == "probabilities":
            figures = {"logprobs": True, "top_logprobs": max(recipe.distill.top_k or 0, 1)}
        return ask_endpoint(recipe, conversations, answers, room, show, **figures)
    questions = [[guide.key, room, [turn.as_json() for turn in turns]] for turns in conversations]
    found: list[Reply | None] = [answers.get(question) for question in questions]
    waiting = [n for n, reply in enumerate(found) if reply is None]
    if waiting:
        chat = Chat(guide.tokenizer)
        net = guide.load(recipe)
        sampler = Sampler(net.model, guide.tokenizer, chat.end_ids)
        for start in range(0, len(waiting), WRITTEN_AT_ONCE):
            part = waiting[start : start + WRITTEN_AT_ONCE]
            written = sampler.sample([chat.prompt(conversations[n]) for n in part], max_new_tokens=room)
            for n, [completion] in zip(part, written, strict=True):
                found[n] = reply = Reply(completion.text, completion.stop == "end")
                answers.put(questions[n], reply)
            show(len(questions) - len(waiting) + start + len(part))
    return [reply for reply in found if reply is not None]


def ask_endpoint(
    recipe: Recipe,
    conversations: Sequence[Turns],
    answers: Answers,
    room: int,
    progress: Callable[[int], None] = lambda done: None,
    **figures: Any,
) -> list[Reply]:
    """The endpoint's reply to each conversation, greedily decoded. room: tokens that one may have. figures: what else is asked for.

    Raises ModelError where it does not answer after all tries, refuses, or answers what is no reply; what came until then is kept.
    """
    messages = [[turn.as_json() for turn in turns] for turns in conversations]
    endpoint, options = endpoint_of(recipe, answers), {"temperature": 0, "max_tokens": room, **figures}
    with of_the_teacher(recipe):
        found = endpoint.complete_all(messages, every=True, progress=progress, **options)
    return [reply for reply in found if isinstance(reply, Reply)]  # all of them


@contextmanager
def of_the_teacher(recipe: Recipe) -> Iterator[None]:
    """Say of an EndpointError that it is the teacher's, as ModelError, and what to type."""
    key = recipe.distill.key_variable
    try:
        yield
    except EndpointError as error:
        state = "is set" if os.environ.get(key) else "is not set"
        refused = f"export {key}=...   ({state}); distill.key_variable names another"
        hints = {401: refused, 403: refused, 404: "--set distill.endpoint_model=NAME"}
        otherwise = error.hint or "typed again, the run goes on: the answers that came are kept"
        if error.lacks == "logprobs":
            otherwise = "distill: {on: answers}   needs nothing but text"
        raise ModelError(
            f"the teacher fails: {error.found}",
            where=recipe.distill.teacher,
            expected=error.expected or "an OpenAI-compatible endpoint",
            hint=hints.get(error.status, otherwise),
        ) from error


def endpoint_of(recipe: Recipe, answers: Answers | None = None) -> Endpoint:
    """The teacher's. A server on one's own machine needs no key, so the variable may be unset."""
    one = recipe.distill
    key = one.key_variable if os.environ.get(one.key_variable) else ""
    return Endpoint(one.teacher, one.endpoint_model, key, one.timeout, one.retries, one.parallel, answers)


def nonsense(reply: Reply, reference: str, scorer: Scorer | None, min_score: float) -> str:
    """Why an answer is not to be learnt, in words that follow "the teacher's answer"; "" for one that is."""
    text = reply.text.strip()
    if not text:
        return "is empty"
    if not reply.ended:
        return "does not end"
    raw = text.encode()
    if len(text) >= LEAST_PACKED and len(zlib.compress(raw, 9)) < REPEATED * len(raw):
        return "repeats itself"
    if scorer is not None and reference:
        figures = scorer.score(text, reference)
        if figures.get(scorer.primary, next(iter(figures.values()))) < min_score:
            return "fails the task's metric"
    return ""


def with_answer(row: Row, question: Turns, answer: str) -> Row:
    """The row as a conversation that ends in this answer."""
    turns = (*question, Turn("assistant", answer))
    if isinstance(row, Labelled) and not isinstance(row.label, tuple):
        return replace(row, label=answer)
    tools = getattr(row, "tools", ())
    return Conversation(file=row.file, line=row.line, extra=row.extra, turns=turns, tools=tools)
