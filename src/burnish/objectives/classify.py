"""Classification: a head on the decoder names the class of a whole text, without a word of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Literal, Self

import torch
from pydantic import Field
from torch import Tensor

from burnish.core import Atom, Batch, Loss, Outputs

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Weighted:
    """What objectives of labels share: their options, and weights that are known once the labels are."""

    rows = frozenset({"labelled"})
    needs = frozenset({"score"})
    reads: frozenset[str] = frozenset()
    atom: Atom = "seq"

    class_weights: Literal["balanced"] | dict[str, Positive] | tuple[Positive, ...] = ()
    focal_gamma: Annotated[float, Field(ge=0)] = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    def fitted(self, labels: Sequence[str], counts: Mapping[str, int]) -> Self:
        """The same with a weight for each label in their order. counts: training items of each label.

        Raises ValueError for weights of a label that there is not, or of some labels only.
        """
        given = self.class_weights
        if given == "balanced":
            return replace(self, class_weights=self.balanced(labels, counts))
        if isinstance(given, dict):
            if strange := sorted(set(given) ^ set(labels)):
                raise ValueError(f"class_weights and the labels differ in {', '.join(strange[:8])}")
            return replace(self, class_weights=tuple(given[label] for label in labels))
        return self

    def balanced(self, labels: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
        """The weight of each label that "balanced" stands for."""
        raise NotImplementedError


@dataclass(frozen=True)
class Classify(Weighted):
    """The cross-entropy between the scores of a sequence and its class, each sequence counted by the weight of its class.

    Groups of one sequence, y = the number of its class; -1 is a sequence without one, which counts nothing. The score is a linear
    map of the hidden state at the last token, the only one that has seen the whole text.

    class_weights: by label; "balanced" is rows / (classes * rows of the class); in the order of the labels once `fitted`.
    focal_gamma: scales the loss of a sequence by (1 - p)^gamma, p the probability of its class, so that what is known already
    counts less (Lin et al. 2017, arXiv 1708.02002, eq. 4). label_smoothing: the share of the target that is spread evenly over all
    classes (Szegedy et al. 2015, arXiv 1512.00567, section 7).

    Source: Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training", eq. 3 and 4, here without the
    auxiliary loss. Relatives: `sft` on labelled rows learns to write the label out, and needs no head.
    """

    def balanced(self, labels: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
        total = sum(counts.values())
        return tuple(total / (len(labels) * max(counts.get(one, 0), 1)) for one in labels)

    def count(self, batch: Batch) -> Tensor:
        return self._weights(self.wanted(batch)).sum()  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        scores, wanted = self.scores(outputs), self.wanted(batch)  # (N,C), (N,)
        logp = scores.log_softmax(-1)
        right = logp.gather(-1, wanted.clamp_min(0)[:, None])[:, 0]  # (N,)
        losses = -right * (1 - right.exp()) ** self.focal_gamma if self.focal_gamma else -right
        if self.label_smoothing:
            losses = (1 - self.label_smoothing) * losses - self.label_smoothing * logp.mean(-1)
        weights, labelled = self._weights(wanted), wanted >= 0
        loss = (losses * weights).sum()  # ()
        hits = ((scores.argmax(-1) == wanted) & labelled).sum()
        return Loss(loss, {"loss": (loss.detach(), weights.sum()), "accuracy": (hits, labelled.sum())})

    def wanted(self, batch: Batch) -> Tensor:
        """(N,) int64 the class of each item, -1 for none."""
        return batch.y.long()

    def scores(self, outputs: Outputs) -> Tensor:
        """(N,C) the scores of each item."""
        assert outputs.score is not None
        return outputs.score

    def _weights(self, wanted: Tensor) -> Tensor:
        """(N,) float32 what each item counts."""
        labelled = (wanted >= 0).float()
        if not self.class_weights:
            return labelled
        assert isinstance(self.class_weights, tuple), "fitted first"
        return on_device(self.class_weights, wanted.device)[wanted.clamp_min(0)] * labelled


@lru_cache(maxsize=16)
def on_device(values: tuple[float, ...], device: torch.device) -> Tensor:
    """The values as a tensor there: kept, since a recorded step may copy nothing from the host."""
    return torch.tensor(values, device=device)


OBJECTIVE = Classify
