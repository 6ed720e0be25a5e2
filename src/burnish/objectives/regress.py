"""Regression: a head on the decoder names a number for a whole text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from burnish.core import Atom, Batch, Loss, Outputs


@dataclass(frozen=True)
class Regress:
    """The squared error of one score for each sequence, against its number in standard deviations from the mean.

    Groups of one sequence, y = the standardised number; not-a-number is a sequence without one, which counts nothing.
    huber_delta: standard deviations beyond which an error counts linearly (Huber 1964, "Robust Estimation of a Location
    Parameter"), so that a few wild labels do not rule; 0 is the plain squared error.

    Relatives: `classify`, for grades that are few and have no order.
    """

    rows = frozenset({"labelled"})
    needs = frozenset({"score"})
    reads: frozenset[str] = frozenset()
    atom: Atom = "seq"

    huber_delta: Annotated[float, Field(ge=0)] = 0.0

    def count(self, batch: Batch) -> Tensor:
        return batch.y.isfinite().sum().float()  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.score is not None
        known = batch.y.isfinite()  # (S,)
        found = torch.where(known, outputs.score[:, 0], 0.0)
        wanted = torch.where(known, batch.y, 0.0)
        if self.huber_delta:
            loss = F.huber_loss(found, wanted, reduction="sum", delta=self.huber_delta)  # ()
        else:
            loss = F.mse_loss(found, wanted, reduction="sum")  # ()
        return Loss(loss, {"loss": (loss.detach(), self.count(batch))})


OBJECTIVE = Regress
