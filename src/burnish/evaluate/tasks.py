"""The exam of several tasks: each is sat and scored as its own, and the figure of all is the mean of theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from burnish.evaluate.runner import SHOWN, Exam, Sitting, compare
from burnish.evaluate.scored import ScoredExam
from burnish.evaluate.stats import paired_difference, stratified_difference
from burnish.model.net import Net
from burnish.model.sample import Sampler

MEAN = "mean_of_tasks"
POINT = 0.01  # a loss of so much is told even where the rows are too few to be sure of it


@dataclass(frozen=True)
class JointSitting(Sitting):
    """The sittings of all tasks, laid end to end. A single score is scaled so that the mean of all is the mean of the tasks' means.

    shares: of each task in the training loss.
    """

    parts: Mapping[str, Sitting] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def loss(self) -> float:
        """The tasks' losses (nats a token, nats a label) by their shares, as training adds them up, so that both can be compared."""
        whole = sum(self.shares[name] for name in self.parts)
        return sum(self.shares[name] * part.loss for name, part in self.parts.items()) / whole


@dataclass(frozen=True)
class JointExam(Exam):
    """The exams of several tasks, as one; items are theirs, end to end. shares: of each task in the training loss."""

    parts: Mapping[str, Exam] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        return MEAN

    @property
    def item_metric(self) -> str:
        return MEAN

    @property
    def manner(self) -> str:
        return "; ".join(f"{name}: {part.metric}, {part.manner}" for name, part in self.parts.items())

    def first(self, count: int) -> Exam:
        """The first items of each task."""
        return together({name: part.first(count) for name, part in self.parts.items()}, self.shares)

    def sit(self, net: Net, sampler: Sampler, progress: Callable[[int], None] = lambda done: None) -> JointSitting:
        parts: dict[str, Sitting] = {}
        for name, part in self.parts.items():
            before = sum(len(one.answers) for one in parts.values())
            parts[name] = part.sit(net, sampler, lambda done, before=before: progress(before + done))  # type: ignore[misc]
        return seated(self, parts)

    def figures(self, sitting: Sitting, items: Sequence[int] | None = None) -> dict[str, float]:
        """The mean of the tasks' metrics, and every figure of each task under its name."""
        assert isinstance(sitting, JointSitting)
        assert items is None, "figures of some items are asked of a task's own exam"
        own = {name: part.figures(sitting.parts[name]) for name, part in self.parts.items()}
        mean = sum(own[name][part.metric] for name, part in self.parts.items()) / len(own)
        return {MEAN: mean} | {f"{name}/{figure}": value for name, one in own.items() for figure, value in one.items()}

    def by_task(self, sitting: Sitting) -> dict[str, dict[str, Any]]:
        assert isinstance(sitting, JointSitting)
        return {
            name: {
                "loss": own.loss,
                "brier": own.brier,
                "metric": part.figures(own)[part.metric],
                "scores": [score[part.item_metric] for score in own.scores],
            }
            for name, part in self.parts.items()
            for own in [sitting.parts[name]]
        }


def together(exams: Mapping[str, Exam], shares: Mapping[str, float]) -> Exam:
    """The exam of all tasks; that of a single one is itself. A task without items is left out of the mean."""
    if len(exams) == 1:
        return next(iter(exams.values()))
    parts = {name: exam for name, exam in exams.items() if exam.items}
    return JointExam(
        [item for exam in parts.values() for item in exam.items],
        None,
        max((exam.max_new_tokens for exam in exams.values()), default=1),
        max((exam.row_tokens for exam in exams.values()), default=1),
        parts=parts,
        shares=shares,
    )


def seated(exam: JointExam, parts: Mapping[str, Sitting]) -> JointSitting:
    """The tasks' sittings as one."""
    count = len(exam.items)
    scores = [
        {MEAN: score[exam.parts[name].item_metric] * count / (len(parts) * len(own.scores))}
        for name, own in parts.items()
        for score in own.scores
    ]
    return JointSitting(
        [answer for own in parts.values() for answer in own.answers],
        scores,
        np.concatenate([own.nll for own in parts.values()]),
        np.concatenate([own.trained for own in parts.values()]),
        parts=parts,
        shares=exam.shares,
    )


def compare_all(exam: Exam, base: Sitting, tuned: Sitting, *, seed: int) -> dict[str, Any]:
    """The report's `evaluation`: `compare` for one task; for several, that of each under `tasks`, and the mean with its interval.

    Items are drawn within their task, so the interval is that of the mean of the tasks, not of whichever has the most rows.
    """
    if not isinstance(exam, JointExam):
        return compare(exam, base, tuned, seed=seed)
    assert isinstance(base, JointSitting)
    assert isinstance(tuned, JointSitting)
    tasks: dict[str, dict[str, Any]] = {}
    columns: list[tuple[Any, Any, list[str]]] = []
    for name, part in exam.parts.items():
        own = compare(part, base.parts[name], tuned.parts[name], seed=seed)
        clusters = [item.cluster for item in part.items]
        before, after = ([score[part.item_metric] for score in sitting.parts[name].scores] for sitting in (base, tuned))
        columns.append((before, after, clusters))
        tasks[name] = own | {"scores": after}
    gain = stratified_difference(columns, seed=seed)
    before, after = (sum(one[who] for one in tasks.values()) / len(tasks) for who in ("base", "tuned"))
    examples = [
        example | {"task": name}
        for name, one in tasks.items()
        for example in some(one.pop("examples"), SHOWN // len(tasks))
    ]
    return {
        "metric": MEAN,
        "n": gain.n,
        "base": before,
        "tuned": after,
        "delta": after - before,
        "ci95": [gain.ci95.low, gain.ci95.high],
        "p_value": gain.p_value,
        "method": gain.method,
        "clusters": gain.clusters,
        "detectable": gain.detectable,
        "figures": [],
        "base_is": "; ".join(f"in {name} {one['base_is']}" for name, one in tasks.items()),
        "perplexity": None,
        "examples": examples,
        "tasks": tasks,
    }


def some(examples: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The first and the last of the examples, which are the best and the worst, the first two thirds of the places to the best."""
    if len(examples) <= count:
        return list(examples)
    worst = max(1, count // 3)
    return [*examples[: count - worst], *examples[-worst:]]


def held_against(mixed: Sequence[float], alone: Sequence[float], clusters: Sequence[str], seed: int) -> dict[str, Any]:
    """What the other tasks do to one: its items' scores by the mixed model and by the model of this task alone, paired.

    "hurts" and "helps" where the whole 95% interval lies on that side of zero; "may hurt" where the loss is above a point and the rows are
    too few to tell.
    """
    found = paired_difference(alone, mixed, clusters=clusters, seed=seed)
    low, high = found.ci95.low, found.ci95.high
    unsure = "may hurt" if found.delta < -POINT else "no difference seen"
    said = "hurts" if high < 0 else "helps" if low > 0 else unsure
    return {
        "alone": found.base,
        "mixed": found.tuned,
        "delta": found.delta,
        "ci95": [low, high],
        "p_value": found.p_value,
        "said": said,
    }


def alone_of(exam: Exam, task: str) -> Exam:
    """The exam of one task for a model of it alone, whose head has no other labels."""
    if not isinstance(exam, JointExam):
        return exam
    own = exam.parts.get(task) or replace(exam, items=[], parts={})
    return replace(own, start=0) if isinstance(own, ScoredExam) else own


def without_scores(evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation as the report has it: what is kept for pairing is left out."""
    tasks = {
        name: {key: value for key, value in one.items() if key != "scores"}
        for name, one in evaluation.get("tasks", {}).items()
    }
    return {**evaluation, **({"tasks": tasks} if tasks else {})}
