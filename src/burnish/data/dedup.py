"""Rows that are there twice, labels that contradict each other, and rows of one split that stand in another."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from burnish.data.formats import parse
from burnish.data.ledger import Entry, Ledger
from burnish.data.rows import Judged, Labelled, Pair, Ranking, Row, Turns
from burnish.data.similar import Hashes, Index, Numbers, candidates, distinct_pairs, jaccard, shared_runs

NEAR = 0.8  # Jaccard of character 5-grams from which two texts count as one
NEARLY = 0.65  # so low a limit for the candidates that none of the pairs at 0.8 is missed
LIKE = 0.5  # from here on they are told to the user, and nothing is done
SHORT = 50  # characters of an answer below which one letter makes another answer: JSON keys, labels, numbers

MatchKind = Literal["exact", "13-gram", "minhash", "near"]
MATCH_KINDS: tuple[MatchKind, ...] = ("exact", "13-gram", "minhash", "near")


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Item `number` says what item `kept` said before it. exact: they are equal after normalisation."""

    number: int
    kept: int
    jaccard: float
    exact: bool

    @property
    def reason(self) -> str:
        return "exact duplicate" if self.exact else "near-duplicate"


@dataclass(frozen=True, slots=True)
class Match:
    """A training row and a held-out row whose prompts are equal, share 13 words in a row, or are near by MinHash.

    kind: the cheapest test that found it; "near" (Jaccard 0.5 to 0.8) is no leak yet. No kind sees a leak that was said in
    other words (arXiv 2311.04850).
    """

    kind: MatchKind
    jaccard: float
    train: Row
    held_out: Row

    def as_json(self) -> dict[str, Any]:
        rows = {"train": self.train, "held_out": self.held_out}
        sides = {side: {"place": [row.file, row.line], "row": row.as_json()} for side, row in rows.items()}
        return {"kind": self.kind, "jaccard": self.jaccard, **sides}

    @staticmethod
    def restored(record: Mapping[str, Any]) -> Match:
        """The match that `as_json` wrote."""
        train, held_out = (parse(record[side]["row"], *record[side]["place"]) for side in ("train", "held_out"))
        return Match(record["kind"], record["jaccard"], train, held_out)


def whole_answer(row: Row) -> str:
    """All that a row teaches beyond its prompt, so that rows differ where their lessons do."""
    match row:
        case Pair():
            return f"{_said(row.chosen)}\n{_said(row.rejected)}"
        case Judged():
            return f"{_said(row.completion)}\n{row.good}"
        case Ranking():
            return "\n".join(f"{_said(turns)}\n{grade}" for turns, grade in zip(row.answers, row.grades, strict=True))
        case _:
            calls = [dict(call) for turn in getattr(row, "turns", ()) for call in turn.calls]
            return row.answer_text() + (json.dumps(calls, sort_keys=True) if calls else "")


def _said(turns: Turns) -> str:
    return "\n".join(turn.content for turn in turns)


def find_duplicates(index: Index, near: float = NEAR) -> list[Duplicate]:
    """Items of (prompt, answer) that were there before, by number.

    Equal means both texts are; near means that the prompts' likeness and the answers' Jaccard are at least `near`, where
    answers under 50 characters must be equal. No two items that are left over are near each other, but for pairs that
    MinHash misses (see `similar.candidates`).
    """
    _, firsts, place = np.unique(index.digests, return_index=True, return_inverse=True)
    origin = firsts[place]
    repeated = np.flatnonzero(origin != np.arange(len(origin)))
    found = {number: Duplicate(number, int(origin[number]), 1.0, True) for number in repeated.tolist()}
    if near < 1:
        pairs = candidates(index.signatures(), near, among=np.sort(firsts), salt=_short_answers(index))
        for first, second in distinct_pairs(pairs, len(index)):
            if first in found or second in found:
                continue
            likeness = _likeness(index, first, second, near)
            if likeness >= near:
                found[second] = Duplicate(second, first, likeness, False)
    return sorted(found.values(), key=lambda duplicate: duplicate.number)


def _short_answers(index: Index) -> Hashes:
    """(items,) a hash of each answer that must be equal in a duplicate, 0 for the long ones."""
    answers = (index.parts(number)[1] for number in range(len(index)))
    hashes = (hash(answer) if len(answer) < SHORT else 0 for answer in answers)
    return np.fromiter(hashes, np.int64, len(index)).view(np.uint64)


def _likeness(index: Index, first: int, second: int, near: float) -> float:
    """The lower likeness of the prompts and of the answers; 0 where short answers differ."""
    answer, other = index.parts(first)[1], index.parts(second)[1]
    if answer != other and min(len(answer), len(other)) < SHORT:
        return 0.0
    likeness = index.likeness(first, second)
    return min(likeness, jaccard(answer, other)) if likeness >= near else likeness


def find_conflicts(index: Index) -> list[tuple[int, int]]:
    """Items of (prompt, answer) with another answer than an item of the same prompt has, and that item."""
    answers: dict[str, dict[str, int]] = defaultdict(dict)
    shared = _shared_prompts(index)
    members: dict[str, list[int]] = defaultdict(list)
    for number in shared:
        prompt, answer = index.parts(number)
        answers[prompt].setdefault(answer, number)
        members[prompt].append(number)
    conflicts = []
    for prompt, by_answer in answers.items():
        for number in members[prompt]:
            own = index.parts(number)[1]
            other = next((first for answer, first in by_answer.items() if answer != own), None)
            if other is not None:
                conflicts.append((number, other))
    return sorted(conflicts)


def _shared_prompts(index: Index) -> Iterator[int]:
    """The items whose prompt stands more than once."""
    prompts = np.fromiter((hash(index.parts(number)[0]) for number in range(len(index))), np.int64, len(index))
    _, place, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    return map(int, np.flatnonzero(counts[place] > 1))


def recur(answers: Counter[str]) -> bool:
    """Whether answers are a set of labels: short, and each used five times or more on average."""
    return bool(answers) and max(map(len, answers)) <= SHORT and 5 * len(answers) <= answers.total()


def are_labels(rows: Sequence[Row]) -> bool:
    """Whether these rows are a classification: Labelled with classes, or answers that recur."""
    if any(isinstance(row, Labelled) and isinstance(row.label, float) for row in rows):
        return False
    return all(isinstance(row, Labelled) for row in rows) or recur(Counter(row.answer_text() for row in rows))


def drop_duplicates(rows: Iterable[Row], ledger: Ledger, near: float = NEAR) -> list[Row]:
    """The rows without those that were there before, exactly or nearly; the first one stays.

    near: as in `find_duplicates`; 1 drops equal rows only. Prompts of a classification that carry two labels are noted, both.
    """
    rows = list(rows)
    index = Index()
    for row in rows:
        index.add(row.prompt_text(), whole_answer(row))
    places = [(row.file, row.line) for row in rows]
    duplicates = find_duplicates(index, near)
    report_duplicates(duplicates, places, ledger, lambda number: rows[number].prompt_text())
    if are_labels(rows):
        said = lambda number: f"{rows[number].prompt_text()} -> {whole_answer(rows[number])}"  # noqa: E731
        report_conflicts(find_conflicts(index), places, ledger, said)
    gone = {duplicate.number for duplicate in duplicates}
    return [row for number, row in enumerate(rows) if number not in gone]


def _nothing(number: int) -> str:
    return ""


def report_duplicates(
    duplicates: Iterable[Duplicate],
    places: Sequence[tuple[str, int]],
    ledger: Ledger,
    said: Callable[[int], str] = _nothing,
) -> None:
    """Enter what is dropped as a duplicate. places: file and line of each item. said: what it says, where that is at hand."""
    for one in duplicates:
        file, line = places[one.kept]
        kept = f"{file}:{line} stays (Jaccard {one.jaccard:.2f}): {said(one.kept)}"
        fix = "nothing: the first one stays" if one.exact else "data: {near_duplicates: 1}   keeps those that differ"
        ledger.add(Entry(*places[one.number], "dropped", one.reason, said(one.number), kept, fix))


def report_conflicts(
    conflicts: Iterable[tuple[int, int]],
    places: Sequence[tuple[str, int]],
    ledger: Ledger,
    said: Callable[[int], str] = _nothing,
) -> None:
    """Enter the items of a classification whose prompt stands with another label elsewhere. places, said: as above."""
    for number, other in conflicts:
        file, line = places[other]
        there = f"{file}:{line} has another label: {said(other)}"
        fix = "decide which of the labels is right"
        ledger.add(Entry(*places[number], "noted", "conflicting labels", said(number), there, fix))


def find_matches(*splits: Sequence[Row]) -> list[Match]:
    """Rows of a later split (held out) whose prompt also stands in an earlier one (train), the surest kind first.

    Usually two splits, or train, validation and test; each pair of rows is told once.
    """
    rows = [row for split in splits for row in split]
    sides = np.repeat(np.arange(len(splits)), [len(split) for split in splits])
    index = Index()
    for row in rows:
        index.add(row.prompt_text())
    found: dict[tuple[int, int], tuple[MatchKind, float]] = dict.fromkeys(_equal_across(index, sides), ("exact", 1.0))
    for ones, others in shared_runs(index, sides=sides):
        for pair in zip(ones.tolist(), others.tolist(), strict=True):
            if pair not in found:
                found[pair] = ("13-gram", jaccard(*(index.parts(number)[0] for number in pair)))
    for pair in distinct_pairs(candidates(index.signatures(), LIKE, sides=sides), len(index)):
        if pair not in found and (likeness := index.likeness(*pair)) >= LIKE:
            found[pair] = ("minhash" if likeness >= NEAR else "near", likeness)
    order = sorted(found, key=lambda pair: (MATCH_KINDS.index(found[pair][0]), -found[pair][1], pair[1], pair[0]))
    return [Match(*found[pair], rows[pair[0]], rows[pair[1]]) for pair in order]


def _equal_across(index: Index, sides: Numbers) -> Iterator[tuple[int, int]]:
    """Equal items of several sides: each with the first of a later side and the first of an earlier one, so that none is missed."""
    members: dict[int, list[int]] = defaultdict(list)
    for number, digest in enumerate(index.digests.tolist()):
        members[digest].append(number)
    for equal in members.values():
        for number in equal:
            later = next((other for other in equal if sides[other] > sides[number]), None)
            if later is not None:
                yield number, later
            if sides[number] > sides[equal[0]]:
                yield equal[0], number


def near_pairs(index: Index) -> Iterator[tuple[int, int]]:
    """Items whose prompts are equal, near or share 13 words: what must not be told apart by a split."""
    firsts: dict[int, int] = {}
    for number, digest in enumerate(index.digests.tolist()):
        if (first := firsts.setdefault(digest, number)) != number:
            yield first, number
    for ones, others in shared_runs(index):
        yield from zip(ones.tolist(), others.tolist(), strict=True)
    for one, other in distinct_pairs(candidates(index.signatures(), NEARLY), len(index)):
        if index.likeness(one, other) >= NEAR:
            yield one, other
