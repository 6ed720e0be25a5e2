"""Ask a model the held-out questions, score its answers, and compare two models on the very same ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from burnish.core import Group
from burnish.data.render import Chat, question_and_answer
from burnish.data.rows import Row, Text
from burnish.errors import RecipeError
from burnish.evaluate.stats import paired_difference
from burnish.model.likelihood import sequence_logp
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.scoring import Scorer

SHOWN = 24  # examples that the report keeps
BASES = {  # what the tuned model, which answers by writing or by scoring, is compared with
    "writing": "the model before tuning, asked in the same way",
    "scoring": "the model before tuning, prompted to write the label, since it has no head that knows them",
}
SET_WORK = 200_000  # items scored anew for the interval of a figure that only a set has


@dataclass(frozen=True)
class Item:
    """One question of the exam. group: its rendered row, for the likelihood. cluster: items of one cluster are not independent."""

    where: str
    question: str
    reference: str
    prompt: list[int]
    group: Group
    cluster: str


@dataclass(frozen=True)
class Sitting:
    """What one model made of the items, in their order.

    answers: N texts. scores: N dictionaries of figures in 0..1. nll, trained: (N,) summed negative log-likelihood of the reference,
    in nats, and its tokens. by: whether the answers were written, or are the labels that a score head found likeliest; then nll is of
    the label, and each counts as one token.
    """

    answers: list[str]
    scores: list[dict[str, float]]
    nll: np.ndarray
    trained: np.ndarray
    by: Literal["writing", "scoring"] = "writing"

    @property
    def loss(self) -> float:
        """Nats a token of the references."""
        return float(self.nll.sum() / max(self.trained.sum(), 1))

    @property
    def brier(self) -> float | None:
        """The mean Brier score of the answers' probabilities; None where an answer has none of its own."""
        return None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.loss, 700))


@dataclass(frozen=True)
class Exam:
    """Items, a scorer and how to decode: the same for every model that sits it.

    scorer: None for plain text, which has no answers; then the figure is 1 / perplexity of each text.
    """

    items: list[Item]
    scorer: Scorer | None
    max_new_tokens: int
    row_tokens: int

    @property
    def metric(self) -> str:
        return self.scorer.primary if self.scorer else "inverse_perplexity"

    @property
    def manner(self) -> str:
        """How it is answered, in words."""
        return f"answers of up to {self.max_new_tokens} tokens"

    def first(self, count: int) -> Exam:
        """The exam of the first `count` items."""
        return replace(self, items=self.items[:count])

    def sit(self, net: Net, sampler: Sampler, progress: Callable[[int], None] = lambda done: None) -> Sitting:
        """Let a model answer greedily, and measure how likely it finds the references."""
        nll, trained = likelihood(net, [item.group for item in self.items], self.row_tokens)
        if self.scorer is None:
            figures = [{self.metric: math.exp(-n / t) if t else 0.0} for n, t in zip(nll, trained, strict=True)]
            return Sitting([""] * len(self.items), figures, nll, trained)
        with net.autocast():
            completions = sampler.sample(
                [item.prompt for item in self.items], max_new_tokens=self.max_new_tokens, progress=progress
            )
        answers = [samples[0].text for samples in completions]
        scores = [self.scorer.score(answer, item.reference) for answer, item in zip(answers, self.items, strict=True)]
        return Sitting(answers, scores, nll, trained)

    def learning_from(self, validation: Exam, sit: Callable[[Exam], Sitting]) -> Exam:
        """The same exam with what the validation items teach of it; a model that writes has nothing to calibrate."""
        return self

    def details(self, sitting: Sitting) -> dict[str, Any]:
        """What the report tells beyond the figures."""
        return {}

    @property
    def item_metric(self) -> str:
        """The metric as a single item has it: accuracy where the metric, such as macro-F1, is of whole sets only."""
        if self.scorer is None:
            return self.metric
        figures = self.scorer.score("", "")
        return self.metric if self.metric in figures else next(iter(figures))

    def by_task(self, sitting: Sitting) -> dict[str, dict[str, Any]]:
        """Loss, metric and the items' scores of each task, where the exam is one of several tasks."""
        return {}

    def figures(self, sitting: Sitting, items: Sequence[int] | None = None) -> dict[str, float]:
        """The figures of a whole sitting, or of some of its items by number, the main one under the metric's name."""
        chosen = range(len(self.items)) if items is None else items
        if self.scorer is None:
            return {self.metric: float(np.mean([sitting.scores[number][self.metric] for number in chosen]))}
        return self.scorer.summarize([(sitting.answers[number], self.items[number].reference) for number in chosen])


def make_items(rows: Sequence[Row], chat: Chat, group_by: str | None) -> list[Item]:
    """The rows as questions; plain text becomes an item that is read, not asked."""
    items = []
    for row in rows:
        turns, reference = ((), "") if isinstance(row, Text) else question_and_answer(row)
        prompt = [] if isinstance(row, Text) else chat.prompt(turns, getattr(row, "tools", ()))
        value = row.extra.get(group_by) if group_by else None
        cluster = (
            row.where if value in (None, "") else str(value)
        )  # a row without a value stands alone, as in the split
        items.append(Item(row.where, row.prompt_text(), reference, prompt, chat.render(row), cluster))
    return items


def check_answerable(rows: Sequence[Row]) -> bool:
    """Whether the rows have answers to score. Raises RecipeError where only some do."""
    plain = [row for row in rows if isinstance(row, Text)]
    if plain and len(plain) < len(rows):
        raise RecipeError(
            "some held-out rows are plain text and some have answers", where=plain[0].where, expected="one kind of rows"
        )
    return not plain


def likelihood(net: Net, groups: Sequence[Group], row_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(N,) summed negative log-likelihood in nats of each group's trained tokens, and (N,) how many those are."""
    logp, trained = sequence_logp(net, groups, row_tokens=row_tokens)
    group_of = np.repeat(np.arange(len(groups)), np.array([len(group) for group in groups], dtype=int))  # (S,)
    nll, counts = (np.bincount(group_of, values, minlength=len(groups)) for values in (-logp, trained))
    return nll, counts


def compare(exam: Exam, base: Sitting, tuned: Sitting, *, seed: int) -> dict[str, Any]:
    """The report's `evaluation`: the gain on the same items with its 95% interval, every other figure, and examples side by side."""
    metric, item_metric = exam.metric, exam.item_metric
    clusters = [item.cluster for item in exam.items]
    before, after = exam.figures(base), exam.figures(tuned)
    intervals = _set_intervals(exam, base, tuned, [name for name in after if name not in base.scores[0]], seed)
    for name in base.scores[0]:
        gain = paired_difference(*_columns(base, tuned, name), clusters=clusters, seed=seed)
        intervals[name] = [gain.ci95.low, gain.ci95.high]
        if name == item_metric:
            main = gain
    figures: list[dict[str, Any]] = [
        {
            "name": name,
            "base": before.get(name, 0.0),
            "tuned": after[name],
            "delta": after[name] - before.get(name, 0.0),
            "ci95": intervals[name],
        }
        for name in after
    ]
    chief = next(figure for figure in figures if figure["name"] == metric)
    return {
        "metric": metric,
        "n": main.n,
        **{part: chief[part] for part in ("base", "tuned", "delta", "ci95")},
        "p_value": main.p_value,
        "method": main.method + ("" if metric == item_metric else f" of {item_metric}"),
        "clusters": main.clusters,
        "detectable": main.detectable,
        "figures": [figure for figure in figures if figure["name"] != metric],
        "base_is": BASES[tuned.by],
        "perplexity": {"base": base.perplexity, "tuned": tuned.perplexity} if base.by == tuned.by else None,
        "examples": _examples(exam, base, tuned),
    }


def _set_intervals(
    exam: Exam, base: Sitting, tuned: Sitting, names: Sequence[str], seed: int
) -> dict[str, list[float]]:
    """95% intervals of the change in figures that only a whole set has, such as macro-F1: percentiles over drawn clusters."""
    members: dict[str, list[int]] = {}
    for number, item in enumerate(exam.items):
        members.setdefault(item.cluster, []).append(number)
    groups = list(members.values())
    if not names or len(groups) < 2:
        return {name: [-1.0, 1.0] for name in names}
    rng = np.random.default_rng(seed)
    changes: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(min(1000, max(200, SET_WORK // len(exam.items)))):
        drawn = [number for place in rng.integers(0, len(groups), len(groups)) for number in groups[place]]
        before, after = exam.figures(base, drawn), exam.figures(tuned, drawn)
        for name in names:
            changes[name].append(after.get(name, 0.0) - before.get(name, 0.0))
    return {name: [float(edge) for edge in np.quantile(values, (0.025, 0.975))] for name, values in changes.items()}


def _columns(base: Sitting, tuned: Sitting, name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score[name] for score in base.scores]), np.array([score[name] for score in tuned.scores])


def _examples(exam: Exam, base: Sitting, tuned: Sitting) -> list[dict[str, Any]]:
    """Items with both answers: those that differ most first, gains and losses alike."""
    metric = exam.item_metric
    rows: list[dict[str, Any]] = [
        {
            "where": item.where,
            "prompt": item.question,
            "reference": item.reference,
            "base": base.answers[n],
            "tuned": tuned.answers[n],
            "base_score": base.scores[n][metric],
            "tuned_score": tuned.scores[n][metric],
        }
        for n, item in enumerate(exam.items)
    ]
    rows.sort(key=lambda row: row["tuned_score"] - row["base_score"])
    # Losses matter more than the many gains: the worst third of the places is theirs.
    worst, best = rows[: SHOWN // 3], rows[SHOWN // 3 :][::-1][: SHOWN - SHOWN // 3]
    return best + worst[::-1]
