"""Classification: a head on the decoder names the class of a whole text, without a word of an answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from burnish.core import Atom, Batch, Loss, Outputs


@dataclass(frozen=True)
class Classify:
    """The cross-entropy between the scores of a sequence and its class, each sequence counted once.

    Groups of one sequence, y = the number of its class; -1 is a sequence without one, which counts nothing. The score is a linear
    map of the hidden state at the last token, the only one that has seen the whole text.

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 3 and 4, here without the
    auxiliary loss. Relatives: `sft` on labelled rows learns to write the label out, and needs no head.
    """

    rows = frozenset({"labelled"})
    needs = frozenset({"score"})
    reads: frozenset[str] = frozenset()
    atom: Atom = "seq"

    def count(self, batch: Batch) -> Tensor:
        return (batch.y >= 0).sum().float()  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.score is not None
        wanted = batch.y.long()  # (S,)
        loss = F.cross_entropy(outputs.score, wanted, ignore_index=-1, reduction="sum")  # ()
        right, count = (outputs.score.argmax(-1) == wanted).sum(), self.count(batch)
        return Loss(loss, {"loss": (loss.detach(), count), "accuracy": (right, count)})


OBJECTIVE = Classify
