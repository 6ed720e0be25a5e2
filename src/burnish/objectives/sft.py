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

    Source: Wei et al. 2021 (arXiv 2109.01652). Relatives: multi-task and few-shot tuning are this with other rows.
    """

    rows = frozenset({"conversation", "text", "labelled"})
    needs = frozenset({"logp"})
    reads: frozenset[str] = frozenset()
    atom: Atom = "seq"

    def count(self, batch: Batch) -> Tensor:
        return batch.weight.sum()  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.logp is not None
        nll = -(outputs.logp * batch.weight).sum()  # ()
        return Loss(nll, {"loss": (nll.detach(), batch.weight.sum())})


OBJECTIVE = Sft
