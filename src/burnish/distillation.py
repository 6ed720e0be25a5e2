"""What a run does with a teacher, called by the steps of the pipeline: find it, cut a student from it, learn from it, stand beside it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from burnish.core import Divergence, Group, Objective, Seq
from burnish.data.classes import Classes
from burnish.data.feed import Feed
from burnish.data.ledger import Entry, Ledger
from burnish.data.render import Chat, Rendered, question_and_answer
from burnish.data.rows import Conversation, Labelled, Prompt, Row, Text, Turn, Turns
from burnish.data.split import Guarded
from burnish.endpoint import Answers, Endpoint, Reply, key_of_question
from burnish.errors import ModelError, RecipeError, RowError
from burnish.evaluate.runner import Exam, Item, Sitting, compare, make_items
from burnish.evaluate.scored import ScoredExam
from burnish.evaluate.timing import promise, summary_of, time_answers
from burnish.folder import Run, key_of
from burnish.model.adapt import parse_layers
from burnish.model.align import ends_of, ends_of_pieces, span_streams, spans
from burnish.model.likelihood import evaluating
from burnish.model.load import Head, load_config, load_tokenizer
from burnish.model.net import Net
from burnish.model.prune import cut_config, keep_evenly, kept_layers, write_student
from burnish.model.sample import Sampler
from burnish.model.teacher import (
    Place,
    as_teacher,
    find_teacher,
    head_of_teacher,
    is_endpoint,
    load_teacher,
    same_vocabulary,
    token_logp,
    write_top_k,
)
from burnish.objectives.distill import Distill
from burnish.objectives.sft import Sft
from burnish.recipe import Recipe
from burnish.scoring import Scorer, scorer_for
from burnish.train.memory import device_of_choice
from burnish.train.onpolicy import OwnAnswers

if TYPE_CHECKING:
    from burnish.parts import Chosen, Tokenized

MOST_REJECTED = 0.5  # of a teacher's answers; beyond it the teacher is wrong, not its answers
REPEATED = 0.2  # an answer that packs to less than this share of its size repeats itself
LEAST_PACKED = 200  # characters from which on that is asked
WRITTEN_AT_ONCE = 32  # answers of a local teacher, kept together


@dataclass(frozen=True)
class Guide:
    """The teacher of a run. place: where it lies; None for an endpoint. head: its labels, where it scores. key: all that it is.

    same: whether it reads the student's very tokens.
    """

    name: str
    place: Place | None
    tokenizer: Any
    head: Head | None
    same: bool
    key: str

    def load(self, recipe: Recipe) -> Net:
        assert self.place is not None
        return load_teacher(
            self.place, device=device_of_choice(), trust_remote_code=recipe.trust_remote_code, head=self.head
        )


# Choose ---------------------------------------------------------------------------------------------------------------


def student_is_cut(recipe: Recipe) -> bool:
    wanted = recipe.distill.student
    return bool(recipe.distill.teacher) and bool(wanted.layers or wanted.keep or wanted.mlp)


def source_of_student(recipe: Recipe) -> str | None:
    """The model that the student is cut from; None where it is a model of its own."""
    if not student_is_cut(recipe):
        return None
    if is_endpoint(recipe.distill.teacher):
        raise RecipeError(
            "no student can be cut from an endpoint", where="distill.student", expected="a teacher on this machine"
        )
    place = find_teacher(recipe.distill.teacher)
    if place.adapter:
        raise RecipeError(
            "the teacher is an adapter, and a student is cut from whole weights",
            where="distill.teacher",
            expected="a run with merged/",
            hint="burnish export RUN --to FOLDER --kind merged",
        )
    return place.source


def find_guide(recipe: Recipe, tokenizer: Any) -> Guide | None:
    """The teacher that the recipe names. Raises a BurnishError where it cannot teach this student in the way that is asked."""
    distill = recipe.distill
    if not distill.teacher:
        if recipe.objective == "distill":
            raise RecipeError(
                "there is nobody to learn from",
                where="distill.teacher",
                hint="burnish distill RECIPE --teacher NAME_OR_URL",
            )
        return None
    if recipe.tasks:
        raise RecipeError(
            "a teacher stands beside several tasks",
            where="distill.teacher",
            expected="one task",
            hint="a recipe of one task for each teacher",
        )
    if recipe.objective not in ("sft", "classify", "distill"):
        raise RecipeError(
            f"the objective {recipe.objective} has no teacher", where="objective", expected="sft or classify"
        )
    if is_endpoint(distill.teacher):
        return _endpoint_guide(recipe)
    place = find_teacher(distill.teacher)
    head = head_of_teacher(place)
    theirs = load_tokenizer(place.tokenizer, trust_remote_code=recipe.trust_remote_code)
    files = [one for folder in (place.source, place.adapter) if folder for one in sorted(Path(folder).glob("*"))]
    made_of = [(str(one), one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    guide = Guide(
        distill.teacher, place, theirs, head, same_vocabulary(tokenizer, theirs), key_of(asdict(place), made_of)
    )
    _check_kinds(recipe, guide)
    return guide


def _endpoint_guide(recipe: Recipe) -> Guide:
    distill = recipe.distill
    if recipe.objective == "classify" or distill.on == "samples":
        what = "scores classes" if recipe.objective == "classify" else "judges the student's samples"
        raise RecipeError(
            f"no endpoint {what}",
            where="distill.teacher",
            expected="a model on this machine",
            hint="distill: {on: answers}",
        )
    if not distill.endpoint_model:
        raise RecipeError(
            "the endpoint has to be told which model to ask",
            where="distill.endpoint_model",
            hint="--set distill.endpoint_model=NAME",
        )
    if distill.on == "probabilities" and (distill.temperature != 1 or distill.divergence != "forward_kl"):
        raise RecipeError(
            "an endpoint gives its probabilities at temperature 1, and only the likeliest",
            where="distill",
            expected="temperature 1 and forward_kl",
        )
    return Guide(distill.teacher, None, None, None, False, key_of(distill.teacher, distill.endpoint_model))


def _check_kinds(recipe: Recipe, guide: Guide) -> None:
    distill, scores = recipe.distill, recipe.objective == "classify"
    if scores != (guide.head is not None):
        does = ("writes", "scores labels") if scores else ("scores labels", "writes")
        raise ModelError(
            f"the teacher {does[0]}, and the student {does[1]}",
            where=distill.teacher,
            expected="a teacher and a student of one kind",
            hint=f"--set objective={'sft' if scores else 'classify'}",
        )
    if scores and distill.on != "probabilities":
        raise RecipeError(
            f"scores are no {distill.on}", where="distill.on", expected="probabilities, with objective: classify"
        )
    if not guide.same and (scores or distill.on == "samples" or distill.top_k):
        raise ModelError(
            "the teacher has another vocabulary than the student",
            where=distill.teacher,
            expected="the same tokenizer, or text alone, or probabilities of aligned spans (no top_k)",
            hint="--on answers   or --on probabilities",
        )
    stored = distill.on == "probabilities" and (distill.top_k or not guide.same)
    if stored and distill.divergence != "forward_kl":
        raise RecipeError(
            f"{distill.divergence} needs all that the teacher thinks", where="distill.divergence", expected="forward_kl"
        )
    if stored and not guide.same and distill.temperature != 1:
        raise RecipeError("spans have no temperature", where="distill.temperature", expected="1")


def taught(objective: Objective, recipe: Recipe, guide: Guide | None) -> Objective:
    """The objective of a recipe with a teacher: the same where the teacher only writes."""
    distill, plain = recipe.distill, cast(Any, Sft())
    if guide is None:
        return objective
    if distill.on == "answers":
        return plain if recipe.objective == "distill" else objective
    source: Any = "live"
    if recipe.objective == "classify":
        source = "scores"
    elif distill.on == "probabilities" and distill.top_k:
        source = "top"
    elif not guide.same:
        source = "spans"
    alpha = 0.0 if distill.on == "samples" else distill.alpha  # there it is a share of the rows
    return cast(Any, Distill(distill.divergence, distill.beta, distill.temperature, alpha, source))


def by_heart(objective: Objective) -> Objective:
    """What the try-out learns by heart: a divergence from a teacher need not come near zero."""
    from burnish.objectives.classify import Classify

    if not isinstance(objective, Distill):
        return objective
    return cast(Any, Classify() if objective.source == "scores" else Sft())


# The teacher's answers -------------------------------------------------------------------------------------------------


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
        figures = max(recipe.distill.top_k or 0, 1) if recipe.distill.on == "probabilities" else None
        messages = [[turn.as_json() for turn in turns] for turns in conversations]
        return endpoint_of(recipe).ask(messages, answers, max_tokens=room, top_logprobs=figures, progress=show)
    keys = [key_of_question(guide.key, room, [turn.as_json() for turn in turns]) for turns in conversations]
    waiting = [n for n, key in enumerate(keys) if key not in answers.kept]
    if waiting:
        chat = Chat(guide.tokenizer)
        net = guide.load(recipe)
        sampler = Sampler(net.model, guide.tokenizer, chat.end_ids)
        for start in range(0, len(waiting), WRITTEN_AT_ONCE):
            part = waiting[start : start + WRITTEN_AT_ONCE]
            found = sampler.sample([chat.prompt(conversations[n]) for n in part], max_new_tokens=room)
            for n, [completion] in zip(part, found, strict=True):
                answers.add(keys[n], Reply(completion.text, completion.stop == "end"))
            show(len(keys) - len(waiting) + start + len(part))
    return [answers.kept[key] for key in keys]


def endpoint_of(recipe: Recipe) -> Endpoint:
    one = recipe.distill
    return Endpoint(one.teacher, one.endpoint_model, one.key_variable, one.timeout, one.retries, one.parallel)


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


# The teacher's probabilities ---------------------------------------------------------------------------------------------


def with_streams(recipe: Recipe, chosen: Chosen, chat: Chat, train: Rendered, replies: Sequence[Reply]) -> Rendered:
    """The training rows with what the teacher thinks of each token written beside them, where the objective reads it."""
    guide, objective = chosen.teacher, chosen.objective
    if guide is None or not objective.reads & {"teacher_ids", "teacher_logp"}:
        return train
    if guide.place is None:
        said = {reply.text.strip(): reply for reply in replies}
        groups = [
            [_with(seq, _streams_of_reply(recipe, chosen, chat, seq, said[row.answer_text()])) for seq in group]
            for row, group in zip(train.rows, train.groups, strict=True)
        ]
        _check_overlap(recipe, groups)
        return replace(train, groups=groups)
    net = guide.load(recipe)
    if "teacher_ids" in objective.reads:
        assert recipe.distill.top_k is not None
        top = write_top_k(net, train.groups, recipe.distill.top_k, recipe.distill.temperature)
        pairs = zip(train.groups, top, strict=True)
        groups = [
            [
                _with(seq, {"teacher_ids": ids, "teacher_shares": shares})
                for seq, (ids, shares) in zip(group, streams, strict=True)
            ]
            for group, streams in pairs
        ]
    else:
        theirs = Chat(guide.tokenizer, system=chat.system, max_length=chat.max_length)
        groups = [
            [_with(seq, _aligned(net, theirs, chat, row, seq)) for seq in group]
            for row, group in zip(train.rows, train.groups, strict=True)
        ]
        _check_overlap(recipe, groups)
    return replace(train, groups=groups)


def _with(seq: Seq, streams: dict[str, np.ndarray]) -> Seq:
    return replace(seq, tokens={**seq.tokens, **streams})


def _last_answer(seq: Seq, end_ids: Any) -> tuple[int, list[int], bool]:
    """Where the last answer of a sequence begins, its tokens, and whether an end token follows."""
    stop = max(place for place, weight in enumerate(seq.weight) if weight) + 1
    first = stop
    while first and seq.weight[first - 1]:
        first -= 1
    ended = seq.ids[stop - 1] in end_ids
    return first, seq.ids[first : stop - ended], ended


def _aligned(net: Net, theirs: Chat, chat: Chat, row: Row, seq: Seq) -> dict[str, np.ndarray]:
    """The streams of one sequence from a teacher with another tokenizer, for its last answer."""
    answer = row.answer_text()
    first, ids, ended = _last_answer(seq, chat.end_ids)
    other = next((one for one in reversed(theirs.render(row)) if one.trained), None)
    if other is None:
        return span_streams(len(seq), [])
    their_first, their_ids, their_ended = _last_answer(other, theirs.end_ids)
    logp = token_logp(net, other.ids, other.weight)[their_first:]
    found = spans(ends_of(chat.tokenizer, ids, answer), ends_of(theirs.tokenizer, their_ids, answer))
    if ended and their_ended:
        found.append((slice(len(ids), len(ids) + 1), slice(len(their_ids), len(their_ids) + 1)))
    return span_streams(len(seq), [(first, found, logp)])


def _streams_of_reply(recipe: Recipe, chosen: Chosen, chat: Chat, seq: Seq, reply: Reply) -> dict[str, np.ndarray]:
    """The streams of one sequence whose last answer an endpoint wrote, from the figures that came with it.

    An endpoint that stopped was certain to stop: it gives no figure for that.
    """
    first, ids, ended = _last_answer(seq, chat.end_ids)
    pieces = [token[0] for token in reply.tokens]
    while pieces and not "".join(pieces).startswith(reply.text):
        pieces = pieces[:-1]  # an end token that is spelled out
    lead = len(reply.text) - len(reply.text.lstrip())
    ends = {end - lead: place for end, place in ends_of_pieces(pieces, reply.text).items() if end > lead}
    found = spans(ends_of(chat.tokenizer, ids, reply.text.strip()), ends)
    if "teacher_ids" in chosen.objective.reads:
        return _top_of_reply(recipe, chat, seq, reply, first, found, (first + len(ids)) if ended else None)
    logp = np.array([token[1] for token in reply.tokens] + [0.0])
    if ended:
        found.append((slice(len(ids), len(ids) + 1), slice(len(reply.tokens), len(reply.tokens) + 1)))
    return span_streams(len(seq), [(first, found, logp)])


def _top_of_reply(
    recipe: Recipe,
    chat: Chat,
    seq: Seq,
    reply: Reply,
    first: int,
    found: Sequence[tuple[slice, slice]],
    end: int | None,
) -> dict[str, np.ndarray]:
    """The likeliest tokens of an endpoint at each place where both have one token for the same text; others hold no share."""
    k = recipe.distill.top_k or 1
    ids, shares = np.tile(np.arange(k, dtype=np.float32), (len(seq), 1)), np.zeros((len(seq), k), np.float32)
    if end is not None:
        ids[end, 0], shares[end, 0] = seq.ids[end], 1.0
        ids[end, 1:] = seq.ids[end]
    for mine, theirs in found:
        if mine.stop - mine.start != 1 or theirs.stop - theirs.start != 1:
            continue
        place, (text, logp, top) = first + mine.start, reply.tokens[theirs.start]
        known = {int(seq.ids[place]): float(np.exp(logp))}
        for other, value in top:
            if other != text and len(token := _one_token(chat.tokenizer, other)) == 1:
                known.setdefault(token[0], float(np.exp(value)))
        best = sorted(known.items(), key=lambda pair: -pair[1])[:k]
        ids[place] = best[0][0]
        for rank, (token_id, share) in enumerate(best):
            ids[place, rank], shares[place, rank] = token_id, share
    total = shares.sum(-1, keepdims=True)
    return {"teacher_ids": ids, "teacher_shares": shares / np.maximum(total, 1.0)}


def _one_token(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


def _check_overlap(recipe: Recipe, groups: Sequence[Group]) -> None:
    """Raise ModelError where the tokens of teacher and student have so little in common that hardly anything would be taught."""
    trained = known = 0
    for group in groups:
        for seq in group:
            weights = np.array(seq.weight) != 0
            trained += int(weights.sum())
            if "teacher_shares" in seq.tokens:
                known += int((weights & (seq.tokens["teacher_shares"].sum(-1) > 0)).sum())
            else:
                ends = (seq.tokens["teacher_logp"] <= 0) & weights
                known += int((weights & ((seq.tokens["span_ahead"] > 0) | ends)).sum())
    if known < MOST_REJECTED * trained:
        raise ModelError(
            f"the teacher has another vocabulary: it speaks of {known} of {trained} trained tokens",
            where=recipe.distill.teacher,
            expected="text that both cut at the same places",
            hint="--on answers" + ("   or leave distill.top_k out" if recipe.distill.top_k else ""),
        )


# Student, net and feed ---------------------------------------------------------------------------------------------------


def cut_student(run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized) -> Chosen:
    """What was chosen, with the student that is cut from the teacher in its place; kept in the run's folder."""
    if not student_is_cut(recipe):
        return chosen
    wanted, folder = recipe.distill.student, run.folder / "student"
    layers = chosen.config.get_text_config().num_hidden_layers
    keep = sorted(parse_layers(wanted.keep, layers, "distill.student.keep"))
    head = chosen.teacher.head if chosen.teacher else None
    key = key_of(chosen.key, wanted.model_dump())
    kept = run.kept("student", key)
    if kept is None or not (folder / "config.json").is_file():
        cut = write_student(
            chosen.source,
            folder,
            chosen.tokenizer,
            tokenized.train.groups,
            keep=keep,
            layers=wanted.layers,
            by=wanted.by,
            mlp=wanted.mlp,
            head=head,
            trust_remote_code=recipe.trust_remote_code,
        )
        kept = run.keep("student", key, cut)
    run.parts["student"] = kept
    run.progress.say(
        f"  the student has layers {', '.join(map(str, kept['layers']))} of {kept['of_layers']} "
        f"and {kept['parameters']:,} of {kept['of_parameters']:,} parameters"
    )
    config = load_config(str(folder), trust_remote_code=recipe.trust_remote_code)
    return replace(chosen, source=str(folder), config=config, key=key)


def planned_student(recipe: Recipe, chosen: Chosen) -> Chosen:
    """What was chosen, with the configuration of the student that would be cut: a plan loads no weights."""
    if not student_is_cut(recipe):
        return chosen
    wanted, config = recipe.distill.student, type(chosen.config).from_dict(chosen.config.to_dict())
    text = config.get_text_config()
    layers = text.num_hidden_layers
    keep = kept_layers(layers, sorted(parse_layers(wanted.keep, layers, "distill.student.keep")), wanted.layers)
    cut_config(text, keep_evenly(layers, wanted.layers or layers) if keep is None else keep, layers)
    if wanted.mlp:
        text.intermediate_size = max(8, round(text.intermediate_size * wanted.mlp / 8) * 8)
    return replace(chosen, config=config)


def seat_teacher(recipe: Recipe, chosen: Chosen, net: Net, labels: Sequence[str]) -> None:
    """Put the teacher beside the student, where the objective asks for one that reads along."""
    distill, guide = recipe.distill, chosen.teacher
    net.temperature = distill.temperature
    if guide is not None and chosen.objective.needs & {"divergence", "teacher_score"}:
        divergence = Divergence(distill.divergence, distill.beta, distill.temperature)
        net.teacher = as_teacher(guide.load(recipe), divergence, labels, guide.head)


def feed_of_student(
    run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, net: Net, feed: Feed, key: str
) -> Feed:
    """The feed, with answers that the student writes itself where the recipe says so."""
    distill, chat = recipe.distill, tokenized.chat
    if chosen.teacher is None or distill.on != "samples":
        return feed
    rows = tokenized.train.rows
    if plain := next((row for row in rows if isinstance(row, Text)), None):
        raise RowError(
            "plain text asks nothing", where=plain.where, expected="rows with a question", hint="--on probabilities"
        )
    prompts = [chat.prompt(question_and_answer(row)[0], getattr(row, "tools", ())) for row in rows]
    room = room_for_answers(recipe, chosen, rows)
    sampler = Sampler(net.model, chosen.tokenizer, chat.end_ids)
    end = max(chat.end_ids, key=lambda token: sum(token in seq.ids for group in feed.groups[:50] for seq in group))

    def write(numbers: Sequence[int]) -> list[Group]:
        # torch's own random state, which a checkpoint keeps, must not depend on whether samples were drawn or read
        with torch.random.fork_rng(devices=[net.device] if net.device.type == "cuda" else []):
            torch.manual_seed(int(key_of(key, list(numbers), recipe.train.seed), 16) % 2**31)
            with net.autocast():
                found = sampler.sample(
                    [prompts[n] for n in numbers], max_new_tokens=room, temperature=distill.sample_temperature
                )
        made = []
        for n, [completion] in zip(numbers, found, strict=True):
            answer = completion.ids + ([end] if completion.stop == "end" else [])
            ids = (prompts[n] + answer)[: chat.max_length]
            weight = [0.0] * len(prompts[n]) + [1.0] * len(answer)
            made.append([Seq(ids, weight[: len(ids)], where=rows[n].where)])
        return made

    folder = run.folder / "samples" / key
    return OwnAnswers(feed, write, every=distill.every, share=distill.alpha, folder=folder)


# Side by side ------------------------------------------------------------------------------------------------------------


def beside_teacher(
    run: Run, recipe: Recipe, chosen: Chosen, tokenized: Tokenized, exam: Exam, student_net: Net, student: Sitting
) -> dict[str, Any]:
    """{"distillation": ...}: quality of teacher and student on the same test rows, paired, and the time that an answer takes each.

    Both answer the same prompts on this machine, one at a time and warm; an endpoint's time holds the network's. {} without a teacher.
    """
    guide = chosen.teacher
    if guide is None:
        return {}
    count = min(recipe.distill.time_prompts, len(exam.items))
    if guide.place is None:
        teacher, theirs = _endpoint_sits(run, recipe, tokenized, exam, count)
    else:
        chat = _chat_of_teacher(recipe, guide, tokenized)
        net = student_net.teacher.net if student_net.teacher else guide.load(recipe)
        own = replace(exam, items=make_items(tokenized.test.rows, chat, recipe.data.group_by))
        if isinstance(own, ScoredExam):
            own = replace(own, head=replace(own.head, labels=chat.labels))
        sampler = Sampler(net.model, guide.tokenizer, chat.end_ids)
        teacher = own.sit(
            net, sampler, lambda done: run.progress.update(f"the teacher: {done} of {len(own.items)} answers")
        )
        theirs = time_answers(_answerer(own, net, sampler), own.items[:count])
    sampler = Sampler(student_net.model, chosen.tokenizer, tokenized.chat.end_ids)
    ours = time_answers(_answerer(exam, student_net, sampler), exam.items[:count])
    compared = compare(exam, teacher, student, seed=recipe.train.seed)
    times = {"teacher": summary_of(theirs), "student": summary_of(ours)}
    quality = {part: compared[part] for part in ("metric", "n", "delta", "ci95", "p_value", "method")}
    found = {
        "teacher": guide.name,
        "on": recipe.distill.on,
        "quality": quality | {"teacher": compared["base"], "student": compared["tuned"]},
        "seconds": times
        | {"prompts": count, "device": str(student_net.device), "over_the_network": guide.place is None},
        **promise(compared, times["teacher"], times["student"]),
    }
    if "student" in run.parts:
        found["cut"] = run.parts["student"]
    return {"distillation": found}


def _chat_of_teacher(recipe: Recipe, guide: Guide, tokenized: Tokenized) -> Chat:
    chat = tokenized.chat
    if guide.head is not None:
        return Classes(guide.tokenizer, guide.head.labels, system=chat.system, max_length=chat.max_length)
    return Chat(guide.tokenizer, system=chat.system, max_length=chat.max_length)


def _answerer(exam: Exam, net: Net, sampler: Sampler) -> Callable[[Item], Any]:
    """What answers one item, as it will be answered in use: by generation to the end token, or by one pass through a score head."""
    if isinstance(exam, ScoredExam):
        return lambda item: _scores(net, item)

    def write(item: Item) -> Any:
        with net.autocast():
            return sampler.sample([item.prompt], max_new_tokens=exam.max_new_tokens)

    return write


@torch.inference_mode()
def _scores(net: Net, item: Item) -> Tensor:
    with torch.compiler.set_stance("force_eager"), evaluating(net.model), net.autocast():
        ids = torch.tensor([item.prompt], device=net.device)
        return net.model(input_ids=ids, use_cache=False).logits.cpu()  # type: ignore[no-any-return]


def _endpoint_sits(
    run: Run, recipe: Recipe, tokenized: Tokenized, exam: Exam, count: int
) -> tuple[Sitting, list[float]]:
    """The endpoint's answers to the test rows, which are kept, and the seconds of some that are asked again for the clock."""
    if exam.scorer is None:
        raise RecipeError("plain text asks nothing", where="data.test", expected="rows with a question")
    endpoint, chat = endpoint_of(recipe), tokenized.chat
    asked = [question_and_answer(row)[0] for row in tokenized.test.rows]
    messages = [[turn.as_json() for turn in chat.with_system(turns)] for turns in asked]
    kept = Answers(run.folder / "teacher" / "answers.jsonl")
    replies = endpoint.ask(messages, kept, max_tokens=exam.max_new_tokens)
    answers = [reply.text for reply in replies]
    scores = [exam.scorer.score(text, item.reference) for text, item in zip(answers, exam.items, strict=True)]
    nothing = np.zeros(len(answers))
    bodies = [endpoint.body(one, exam.max_new_tokens, None) for one in messages[:count]]
    return Sitting(answers, scores, nothing, nothing), time_answers(endpoint.one, bodies)
