"""The exam of a model that answers by a score head: one pass over all texts, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from burnish.core import Batch, Outputs
from burnish.data.feed import micro_batches
from burnish.evaluate.calibrate import by_class, calibrated, errors_of, reliability
from burnish.evaluate.runner import Exam, Item, Sitting
from burnish.model.likelihood import as_fits, evaluating
from burnish.model.load import Head
from burnish.model.net import Net
from burnish.model.sample import Sampler
from burnish.model.scores import answer, brier_score, fitting, negative_log_likelihood

MANNERS = {
    "classify": "one of {n} labels by its score",
    "multilabel": "any of {n} labels by their scores",
    "regress": "a number by its score",
    "tag": "one of {n} tags for each word by its score",
}

NO_HEAD = Head((), 0)  # a default is needed after the fields of `Exam`; it is always given


@dataclass(frozen=True)
class ScoredSitting(Sitting):
    """scores_by_item: what the head made of each item, (C,), or (W,C) of W words. briers: the Brier score of each."""

    scores_by_item: tuple[np.ndarray, ...] = ()
    briers: tuple[float, ...] = ()

    @property
    def brier(self) -> float | None:
        return float(np.mean(self.briers)) if self.briers else None


@dataclass(frozen=True)
class ScoredExam(Exam):
    """Items whose sequences hold what is right as numbers. head: in whose order the scores come, from the score numbered `start` on:
    those of other tasks stand beside them.

    The base model sits the plain `Exam` of the same questions: an untrained head knows nothing, so to compare with it would prove
    nothing. What one has without tuning is the base model prompted to write the label.
    """

    head: Head = NO_HEAD
    start: int = 0

    @property
    def manner(self) -> str:
        return MANNERS[self.head.kind].format(n=len(self.head.labels))

    def first(self, count: int) -> Exam:
        """All of it: an answer costs one pass over a short text, so there is no need to look at fewer."""
        return self

    @torch.no_grad()
    def sit(self, net: Net, sampler: Sampler, progress: Callable[[int], None] = lambda done: None) -> ScoredSitting:
        """Let a model answer by its scores, and measure how likely it finds what is right."""
        assert self.scorer is not None
        with evaluating(net):
            scores = as_fits(lambda tokens: self._scores(net, tokens, progress), net, self.row_tokens)
        answers = [answer(self.head, one) for one in scores]
        figures = [self.scorer.score(said, item.reference) for said, item in zip(answers, self.items, strict=True)]
        right = [right_of(self.head, item) for item in self.items]
        nll = [negative_log_likelihood(self.head, one, own) for one, own in zip(scores, right, strict=True)]
        briers = (
            [brier_score(self.head, one, own) for one, own in zip(scores, right, strict=True)]
            if self.head.kind != "regress"
            else []
        )
        return ScoredSitting(
            answers, figures, np.array(nll), np.ones(len(nll)), "scoring", tuple(scores), tuple(briers)
        )

    def _scores(self, net: Net, tokens: int, progress: Callable[[int], None]) -> list[np.ndarray]:
        """What the head makes of each item; so many tokens go through at once."""
        found: list[np.ndarray] = []
        needs = frozenset({"token_score" if self.head.kind == "tag" else "score"})
        groups = [item.group for item in self.items]
        for batch in micro_batches(groups, "evaluate", row_tokens=self.row_tokens, micro_tokens=tokens):
            batch = batch.to(net.device)
            found += self._own(net(batch, needs), batch)
            progress(len(found))
        return found

    def _own(self, outputs: Outputs, batch: Batch) -> list[np.ndarray]:
        """The scores of this task's labels by item."""
        if outputs.score is not None:
            return list(outputs.score[:, self.start : self.start + len(self.head.labels)].cpu().numpy())
        assert outputs.token_score is not None
        tagged, seq = batch.tokens["tag"].flatten() > 0, batch.seq.flatten()
        scores, owners = outputs.token_score.flatten(0, 1)[tagged].cpu().numpy(), seq[tagged].cpu().numpy()
        return [scores[owners == number] for number in range(batch.sequences)]

    def learning_from(self, validation: Exam, sit: Callable[[Exam], Sitting]) -> ScoredExam:
        """The same exam with the temperature and thresholds that fit the validation items best."""
        if self.head.kind not in ("classify", "multilabel") or not validation.items:
            return self
        sitting = sit(validation)
        assert isinstance(validation, ScoredExam)
        assert isinstance(sitting, ScoredSitting)
        scores = np.stack(sitting.scores_by_item)
        return replace(self, head=calibrated(self.head, scores, validation._wanted()))

    def details(self, sitting: Sitting) -> dict[str, Any]:
        """What the report tells beyond the figures: the head, how its probabilities hold, and each class by itself."""
        assert isinstance(sitting, ScoredSitting)
        head, found = self.head, {"head": asdict(self.head)}
        if head.kind == "tag":
            scores = np.concatenate(sitting.scores_by_item)
            right = np.concatenate([right_of(head, item) for item in self.items]).astype(int)
            return found | {"classes": by_class(head.labels, scores.argmax(-1), right)}
        scores, wanted = np.stack(sitting.scores_by_item), self._wanted()
        if head.kind == "regress":
            return found | {"errors": errors_of(head, scores, wanted)}
        named = (
            scores.argmax(-1)
            if head.kind == "classify"
            else np.array([[label in set(fitting(head, one)) for label in head.labels] for one in scores])
        )
        return found | {
            "calibration": reliability(head, scores, wanted),
            "classes": by_class(head.labels, named, wanted),
        }

    def _wanted(self) -> np.ndarray:
        """(N,) classes or numbers, (N,C) of 1 and 0 for several labels."""
        right = np.array([right_of(self.head, item) for item in self.items])
        if self.head.kind == "multilabel":
            return right
        return right[:, 0].astype(int) if self.head.kind == "classify" else right[:, 0]


def right_of(head: Head, item: Item) -> list[float]:
    """What is right for an item: its class or number, 1 or 0 of each label, or the class of each word."""
    seq = item.group[0]
    if head.kind == "multilabel":
        return [seq.values[f"label.{number}"] for number in range(len(head.labels))]
    if head.kind == "tag":
        return [tag - 1 for tag in seq.tokens["tag"] if tag]
    return [seq.y]
