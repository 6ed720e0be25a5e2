"""The exam of a model that names labels by a score head: one pass over all texts, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from burnish.data.feed import micro_batches
from burnish.evaluate.runner import Exam, Sitting
from burnish.model.likelihood import as_fits, evaluating
from burnish.model.net import Net
from burnish.model.sample import Sampler


@dataclass(frozen=True)
class ScoredExam(Exam):
    """Items whose sequences have the number of their label as y. labels: in the order of the head's scores, from the
    one numbered `start` on: those of other tasks stand beside them.

    The base model sits the plain `Exam` of the same questions: an untrained head knows nothing, so to compare with it would prove
    nothing. What one has without tuning is the base model prompted to write the label.
    """

    labels: tuple[str, ...] = ()
    start: int = 0

    @property
    def manner(self) -> str:
        return f"one of {len(self.labels)} labels by its score"

    def first(self, count: int) -> Exam:
        """All of it: an answer costs one pass over a short text, so there is no need to look at fewer."""
        return self

    @torch.no_grad()
    def sit(self, net: Net, sampler: Sampler, progress: Callable[[int], None] = lambda done: None) -> Sitting:
        """Let a model name the label with the highest score, and measure how likely it finds the right one."""
        assert self.scorer is not None
        with evaluating(net):
            answers, nll = as_fits(lambda tokens: self._named(net, tokens, progress), net, self.row_tokens)
        scores = [self.scorer.score(answer, item.reference) for answer, item in zip(answers, self.items, strict=True)]
        return Sitting(answers, scores, np.array(nll), np.ones(len(nll)), by="scoring")

    def _named(self, net: Net, tokens: int, progress: Callable[[int], None]) -> tuple[list[str], list[float]]:
        """The likeliest label of each item, and the negative log-likelihood of the right one in nats; so many tokens go through at once."""
        answers: list[str] = []
        nll: list[float] = []
        groups = [item.group for item in self.items]
        for batch in micro_batches(groups, "evaluate", row_tokens=self.row_tokens, micro_tokens=tokens):
            batch = batch.to(net.device)
            score = net(batch, frozenset({"score"})).score
            assert score is not None
            logp = score[:, self.start : self.start + len(self.labels)].log_softmax(-1)  # (S,C)
            answers += [self.labels[number] for number in logp.argmax(-1).tolist()]
            nll += (-logp.gather(-1, batch.y.long()[:, None])[:, 0]).tolist()
            progress(len(answers))
        return answers, nll
