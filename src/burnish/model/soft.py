"""Figures of the whole distribution of each trained token, computed as `head` computes log p: in chunks, the gradient known at once.

A measure turns the logits of some tokens into one number each. The number of a token depends on its own hidden state alone, so its
slope is known in the forward pass, and nothing of size N x V is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from burnish.core import Divergence, log_softmax
from burnish.model.head import Bend, _chunks, _compute_type, logit_curve

Measure = Callable[[Tensor, slice], Tensor]  # (n,V) float32 logits after their curve, which of the N tokens -> (n,)


def target_logp(targets: Tensor) -> Measure:
    """log p of the targets (N,)."""
    return lambda logits, part: logits.gather(-1, targets[part, None])[:, 0] - logits.logsumexp(-1)


def mean_logp() -> Measure:
    """The mean of log p over the vocabulary: what label smoothing adds (Szegedy et al. 2015, arXiv 1512.00567, section 7)."""
    return lambda logits, part: logits.mean(-1) - logits.logsumexp(-1)


def soft_logp(ids: Tensor, shares: Tensor, temperature: float = 1.0) -> Measure:
    """sum_k q_k log p(k) + r log(1 - sum_k p(k)), r = 1 - sum_k q_k: what the teacher left out is one event of its own.

    ids, shares: (N,K) the teacher's likeliest tokens and their probabilities; a share of 0 fills up a short list, whose ids may then
    repeat. Renormalised shares would teach that whatever is not listed never comes. A token without any share gives 0.
    """

    def measure(logits: Tensor, part: slice) -> Tensor:
        log_p, wanted, share = log_softmax(logits / temperature), ids[part], shares[part]
        rest = (1 - share.sum(-1)).clamp_min(0)
        others = log_p.scatter(-1, wanted, -torch.inf).logsumexp(-1)
        known = (share * log_p.gather(-1, wanted)).sum(-1)
        return torch.where(share.sum(-1) > 0, known + torch.where(rest > 1e-6, rest * others, 0.0), 0.0)

    return measure


def from_teacher(divergence: Divergence, hidden: Tensor, logits_of: Callable[[Tensor], Tensor]) -> Measure:
    """The divergence from a frozen teacher. hidden: (N,d) its states, of which `logits_of` makes logits chunk by chunk."""

    def measure(logits: Tensor, part: slice) -> Tensor:
        with torch.no_grad():
            wanted = logits_of(hidden[part])
        return divergence(logits, wanted)

    return measure


def head_measures(head: nn.Module, config: Any, hidden: Tensor, measures: Sequence[Measure]) -> tuple[Tensor, ...]:
    """(N,d) -> (N,) float32 of each measure, all from one product with the vocabulary head."""
    bend = logit_curve(config)
    if type(head) is nn.Linear:
        dtype = _compute_type(head.weight)
        found: Tensor = _Measured.apply(hidden, head.weight, head.bias, list(measures), bend, dtype)
        return found.unbind()

    def of_part(hidden: Tensor, part: slice) -> Tensor:
        weight = getattr(head, "weight", None)
        logits = bend(head(hidden if weight is None else hidden.to(weight.dtype)).float())
        return torch.stack([measure(logits, part) for measure in measures])

    parts = [
        checkpoint(of_part, hidden[part], part, use_reentrant=False)
        for part in _chunks(len(hidden), config.vocab_size, hidden.device)
    ]
    empty = hidden.sum(-1).float().expand(len(measures), -1) * 0
    return (torch.cat(parts, 1) if parts else empty).unbind()


class _Measured(torch.autograd.Function):
    """(K,N) of K measures under the head weight (V,d) and bias (V,) or None, computed in `dtype`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        measures: list[Measure],
        bend: Bend,
        dtype: torch.dtype,
    ) -> Tensor:
        ctx.measures, ctx.bend, ctx.dtype = measures, bend, dtype
        wide, trained = weight.to(dtype), any(ctx.needs_input_grad[1:3])
        values = hidden.new_zeros(len(measures), len(hidden), dtype=torch.float32)
        toward = hidden.new_zeros(len(measures), *hidden.shape) if ctx.needs_input_grad[0] else None  # (K,N,d)
        for part in _chunks(len(hidden), len(weight), hidden.device):
            logits = F.linear(hidden[part].to(dtype), wide, bias if bias is None else bias.to(dtype))
            for number, measure in enumerate(measures):
                values[number, part], slope = _with_slope(logits, partial(_apply, measure, part), bend)
                if toward is not None:
                    toward[number, part] = (slope.to(dtype) @ wide).to(hidden.dtype)
        ctx.save_for_backward(toward, *([hidden, weight, bias] if trained else []))
        return values

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        toward, *rest = ctx.saved_tensors
        grad = grads[0]  # (K,N)
        to_hidden = None if toward is None else (grad[..., None] * toward).sum(0).to(toward.dtype)
        if not rest:
            return to_hidden, None, None, None, None, None
        hidden, weight, bias = rest
        to_weight, to_bias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        for part in _chunks(len(hidden), len(weight), hidden.device):  # the logits once more: they were not kept
            inner = hidden[part].to(ctx.dtype)
            logits = F.linear(inner, weight.to(ctx.dtype), bias if bias is None else bias.to(ctx.dtype))

            def weighted(bent: Tensor, part: slice = part) -> Tensor:
                every = [grad[number, part] * measure(bent, part) for number, measure in enumerate(ctx.measures)]
                return torch.stack(every).sum(0)

            slope = _with_slope(logits, weighted, ctx.bend)[1]
            to_weight += slope.to(ctx.dtype).T @ inner
            if to_bias is not None:
                to_bias += slope.sum(0)
        return to_hidden, to_weight, to_bias, None, None, None


def _apply(measure: Measure, part: slice, bent: Tensor) -> Tensor:
    return measure(bent, part)


def _with_slope(logits: Tensor, measure: Callable[[Tensor], Tensor], bend: Bend) -> tuple[Tensor, Tensor]:
    """(n,) float32 values and (n,V) float32 their slopes by the logits. A value depends on its own row, so one backward pass gives all."""
    with torch.enable_grad():
        leaf = logits.detach().float().requires_grad_()
        values = measure(bend(leaf))
        slope = torch.autograd.grad(values.sum(), leaf)[0]
    return values.detach(), slope
