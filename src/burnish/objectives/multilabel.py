"""Multi-label classification: a head on the decoder says of each label whether it fits the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from burnish.core import Batch, Loss, Outputs
from burnish.objectives.classify import Weighted, on_device


@dataclass(frozen=True)
class MultiLabel(Weighted):
    """The binary cross-entropy of each label by itself, summed over sequences and labels.

    Groups of one sequence with the values `label.0` to `label.C-1`, 1 or 0 each; y = -1 is a sequence without labels, which counts
    nothing, while one that no label fits is an example like others. Each pair of sequence and label counts once.

    class_weights: what a label counts where it fits, by label; "balanced" is (rows without it) / (rows with it).
    focal_gamma, label_smoothing: as in `classify`, of each label's yes or no.

    Source: Lin et al. 2017 (arXiv 1708.02002) for the focal term. Relatives: `classify`, whose labels exclude each other.
    """

    def balanced(self, labels: Sequence[str], counts: Mapping[str, int]) -> tuple[float, ...]:
        rows = counts[""]  # of all labels
        having = [min(max(counts.get(label, 0), 1), rows - 1) for label in labels]
        return tuple((rows - count) / count for count in having)

    def count(self, batch: Batch) -> Tensor:
        labels = sum(name.startswith("label.") for name in batch.values)
        return (batch.y >= 0).sum().float() * labels  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        assert outputs.score is not None
        scores = outputs.score  # (S,C)
        wanted = torch.stack([batch.values[f"label.{n}"] for n in range(scores.shape[-1])], -1)  # (S,C)
        counted = (batch.y >= 0).float()[:, None]  # (S,1)
        target = wanted * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(scores, target, reduction="none")
        if self.focal_gamma:
            certainty = torch.where(wanted > 0, scores, -scores).sigmoid()
            losses = losses * (1 - certainty) ** self.focal_gamma
        if self.class_weights:
            assert isinstance(self.class_weights, tuple), "fitted first"
            losses = losses * torch.where(wanted > 0, on_device(self.class_weights, scores.device), 1.0)
        loss, count = (losses * counted).sum(), self.count(batch)
        hits = (((scores > 0) == (wanted > 0)) * counted).sum()
        return Loss(loss, {"loss": (loss.detach(), count), "label_accuracy": (hits, count)})


OBJECTIVE = MultiLabel
