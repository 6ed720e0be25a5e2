"""Two tokenizers over one text: the spans at whose ends both cut, so that the probabilities of what stands between can be compared.

A span is as many tokens of the one and of the other as it takes until both end at the same character. What a model thinks of it is the
sum of its tokens' log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

APART = 1.0  # no log-probability: stands where the teacher says nothing


def ends_of(tokenizer: Any, ids: Sequence[int], text: str) -> dict[int, int]:
    """Character of the text at which a token ends -> the token's place in `ids`. A token that ends within a character ends nowhere."""
    ends: dict[int, int] = {}
    for place in range(len(ids)):
        spelled = tokenizer.decode(ids[: place + 1], skip_special_tokens=True, clean_up_tokenization_spaces=False)
        if spelled and text.startswith(spelled):
            ends.setdefault(len(spelled), place)
    return ends


def ends_of_pieces(pieces: Sequence[str], text: str) -> dict[int, int]:
    """The same for tokens that are known by their spelling."""
    ends: dict[int, int] = {}
    spelled = ""
    for place, piece in enumerate(pieces):
        spelled += piece
        if spelled and text.startswith(spelled):
            ends.setdefault(len(spelled), place)
    return ends


def spans(student: Mapping[int, int], teacher: Mapping[int, int]) -> list[tuple[slice, slice]]:
    """The tokens of each span: the student's and the teacher's, from the ends of both."""
    found, before = [], (0, 0)
    for end in sorted(student.keys() & teacher.keys()):
        mine, theirs = student[end] + 1, teacher[end] + 1
        if mine > before[0] and theirs > before[1]:
            found.append((slice(before[0], mine), slice(before[1], theirs)))
            before = mine, theirs
    return found


def span_streams(
    length: int, answers: Sequence[tuple[int, Sequence[tuple[slice, slice]], np.ndarray]]
) -> dict[str, np.ndarray]:
    """The streams `teacher_logp` and `span_ahead` (see `objectives.distill`) of a sequence of `length` tokens.

    answers: for each, the place of its first token, its spans, and (tokens,) the teacher's log-probabilities.
    """
    logp, ahead = np.full(length, APART, np.float32), np.zeros(length, np.float32)
    for first, found, teacher in answers:
        for mine, theirs in found:
            last = first + mine.stop - 1
            if last >= length:
                break
            logp[last] = min(float(teacher[theirs].sum()), 0.0)
            ahead[first + mine.start : last + 1] = np.arange(mine.stop - mine.start)[::-1]
    return {"teacher_logp": logp, "span_ahead": ahead}
