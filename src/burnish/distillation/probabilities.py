"""What the teacher thinks of each token, written beside the training rows where the objective reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from burnish.core import Group, Seq
from burnish.data.render import Chat, Rendered
from burnish.data.rows import Row
from burnish.endpoint import Reply
from burnish.errors import ModelError
from burnish.model.align import ends_of, ends_of_pieces, span_streams, spans
from burnish.model.net import Net
from burnish.model.teacher import (
    token_logp,
    write_top_k,
)
from burnish.recipe import Recipe

if TYPE_CHECKING:
    from burnish.parts import Chosen

LEAST_KNOWN = 0.5  # of the trained tokens that the teacher must speak of


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
    if known < LEAST_KNOWN * trained:
        raise ModelError(
            f"the teacher has another vocabulary: it speaks of {known} of {trained} trained tokens",
            where=recipe.distill.teacher,
            expected="text that both cut at the same places",
            hint="--on answers" + ("   or leave distill.top_k out" if recipe.distill.top_k else ""),
        )
