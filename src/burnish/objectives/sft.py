"""Supervised fine-tuning: make the tokens of the wanted answers more likely."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from burnish.core import Atom, Batch, Loss, Outputs


@dataclass(frozen=True)
class Sft:
    """The negative log-likelihood of the trained tokens, each scaled by its weight.

    Groups of one sequence. The step's sum is divided by the step's sum of weights, so every trained token counts the same
    however rows fall into micro-batches; a mean of means would not (transformers #34191, TRL #6006).

    label_smoothing: the share of a token's target that is spread over the whole vocabulary (Szegedy et al. 2015, arXiv 1512.00567,
    section 7); the statistic `loss` stays the plain one.

    Source: Wei et al. 2021 (arXiv 2109.01652). Relatives: multi-task and few-shot tuning are this with other rows.
    """

    label_smoothing: float = 0.0

    rows = frozenset({"conversation", "text", "labelled"})
    reads: frozenset[str] = frozenset()
    atom: Atom = "seq"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"logp", "mean_logp"} if self.label_smoothing else {"logp"})

    def count(self, batch: Batch) -> Tensor:
        return batch.weight.sum()  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.logp is not None
        nll = -(outputs.logp * batch.weight).sum()  # ()
        loss = nll
        if self.label_smoothing:
            assert outputs.mean_logp is not None
            spread = -(outputs.mean_logp * batch.weight).sum()  # ()
            loss = (1 - self.label_smoothing) * nll + self.label_smoothing * spread
        return Loss(loss, {"loss": (nll.detach(), batch.weight.sum())})


OBJECTIVE = Sft
