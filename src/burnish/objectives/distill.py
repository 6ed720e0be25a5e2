"""Distillation: a student learns what a teacher would say, token by token or class by class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from burnish.core import Atom, Batch, Divergence, Loss, Outputs


@dataclass(frozen=True)
class Distill:
    """(1 - alpha) T^2 times the divergence from the teacher, and alpha times the plain loss of the wanted answer or class.

    Groups of one sequence. source says what of the teacher is there: `live`, a teacher that reads the batch too, so the divergence is of
    full distributions; `top`, its likeliest tokens as the streams `teacher_ids` and `teacher_shares`, all else as one event;
    `spans`, the probability it gives each piece of text at whose end both tokenizers cut (see below); `scores`, a live teacher with a
    score head. Only the first and the last know a divergence other than forward_kl. beta is of jsd alone. The factor T^2 keeps the
    gradient's size whatever the temperature T.

    A span is some tokens of the student that spell the same text as some tokens of the teacher. With q and p the products of their
    probabilities, its loss is KL between (q, 1 - q) and (p, 1 - p), which is `top` with one event. The stream `span_ahead` says how
    many tokens before its span's last one a token stands, `teacher_logp` holds log q at that last token, and 1 where there is none.

    Source: Hinton et al. 2015 (arXiv 1503.02531); Agarwal et al. 2023 (arXiv 2306.13649) for the divergences, and for the student's own
    samples, which are this with other rows. Relatives: `sft` on what a teacher wrote needs nothing of the teacher but text.
    """

    divergence: Literal["forward_kl", "reverse_kl", "jsd"] = "forward_kl"
    beta: float = 0.5
    temperature: float = 1.0
    alpha: float = 0.0
    source: Literal["live", "top", "spans", "scores"] = "live"

    atom: Atom = "seq"

    @property
    def rows(self) -> frozenset[str]:
        return frozenset({"labelled"} if self.source == "scores" else {"conversation", "text", "labelled"})

    @property
    def needs(self) -> frozenset[str]:
        asked = {
            "live": {"logp", "divergence"},
            "top": {"logp", "soft_logp"},
            "spans": {"logp"},
            "scores": {"score", "teacher_score"},
        }
        return frozenset(asked[self.source])

    @property
    def reads(self) -> frozenset[str]:
        asked = {"top": {"teacher_ids", "teacher_shares"}, "spans": {"teacher_logp", "span_ahead"}}
        return frozenset(asked.get(self.source, ()))

    def count(self, batch: Batch) -> Tensor:
        return (batch.y >= 0).sum().float() if self.source == "scores" else batch.weight.sum()  # ()

    def loss(self, outputs: Outputs, batch: Batch) -> Loss:
        parted, plain = self._of_classes(outputs, batch) if self.source == "scores" else self._of_tokens(outputs, batch)
        count = self.count(batch)
        whole = (1 - self.alpha) * self.temperature**2 * parted + self.alpha * plain
        return Loss(whole, {"divergence": (parted.detach(), count), "loss": (plain.detach(), count)})

    def _of_tokens(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """() the divergence and () the plain negative log-likelihood, both summed over the weights."""
        assert outputs.logp is not None
        if self.source == "spans":
            parted = self._of_spans(outputs.logp, batch)
        elif self.source == "top":
            assert outputs.soft_logp is not None
            parted = _negative_entropy(batch.tokens["teacher_shares"]) - outputs.soft_logp
        else:
            assert outputs.divergence is not None
            parted = outputs.divergence
        return (parted * batch.weight).sum(), -(outputs.logp * batch.weight).sum()

    def _of_spans(self, logp: Tensor, batch: Batch) -> Tensor:
        """(R,T) KL of each span, at its last token, from the log-probabilities of its tokens."""
        trained = batch.weight != 0
        ahead = batch.tokens["span_ahead"].flatten().long()
        ends = torch.arange(logp.numel(), device=logp.device) + ahead  # (RT,)
        log_p = logp.new_zeros(logp.numel()).index_add(0, ends.clamp_max(logp.numel() - 1), (logp * trained).flatten())
        log_q = batch.tokens["teacher_logp"]
        known = trained & (log_q <= 0)
        # A token that is certain has no slope left to give; half a rounding step keeps its logarithm finite.
        log_p = torch.where(known, log_p.view_as(logp), -1.0).clamp_max(-1e-6)
        log_q = torch.where(known, log_q, -1.0).clamp_max(-1e-6)
        q, rest_p, rest_q = log_q.exp(), torch.log(-torch.expm1(log_p)), torch.log(-torch.expm1(log_q))
        return torch.where(known, q * (log_q - log_p) + (1 - q) * (rest_q - rest_p), 0.0)

    def _of_classes(self, outputs: Outputs, batch: Batch) -> tuple[Tensor, Tensor]:
        """() the divergence of the class probabilities and () the plain cross-entropy, over the sequences that have a class."""
        assert outputs.score is not None
        assert outputs.teacher_score is not None
        wanted = batch.y.long()  # (S,)
        plain = F.cross_entropy(outputs.score, wanted, ignore_index=-1, reduction="sum")
        divergence = Divergence(self.divergence, self.beta, self.temperature)
        parted = divergence(outputs.score, outputs.teacher_score)  # (S,)
        return (parted * (batch.y >= 0)).sum(), plain


def _negative_entropy(shares: Tensor) -> Tensor:
    """(R,T,K) -> (R,T) sum q log q over the K tokens and the rest as one event; 0 where there are no shares."""
    total = shares.sum(-1)
    rest = (1 - total).clamp_min(0)
    return torch.where(total > 0, torch.xlogy(shares, shares).sum(-1) + torch.xlogy(rest, rest), 0.0)


OBJECTIVE = Distill
