"""The vocabulary head on trained tokens alone, its gradient taken while the logits exist."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Bend = Callable[[Tensor], Tensor]
LOGITS = {"cpu": 256 * 49152, "cuda": 2**27}  # logits that exist at once: many rows keep a GPU busy, few a CPU's cache
TILE = 128  # rows that a matrix product on a GPU takes together: a few more than a multiple cost as much as the next
KEPT_BYTES = {"cpu": 0, "cuda": 6 * 2**30}  # slopes that a trained head may keep instead of computing its logits twice


def head_logp(head: nn.Module, config: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """(N,d), (N,) -> (N,) float32 log p of the targets.

    d log p_i / d h_i depends on token i alone, so it is known in the forward pass whatever the loss will be: two products over the
    vocabulary instead of three, and nothing of size N x V is kept where the head is frozen.
    """
    bend = logit_curve(config)
    if type(head) is nn.Linear:
        logp: Tensor = _Head.apply(hidden, head.weight, head.bias, targets, bend, _compute_type(head.weight))
        return logp
    parts = [  # an adapted head, or one that somebody wrote: recomputed in the backward pass
        checkpoint(_logp_of, head, bend, hidden[part], targets[part], use_reentrant=False)
        for part in _chunks(len(targets), config.vocab_size, hidden.device)
    ]
    return torch.cat(parts) if parts else hidden.sum(-1).float() * 0


def _logp_of(head: nn.Module, bend: Bend, hidden: Tensor, targets: Tensor) -> Tensor:
    weight = getattr(head, "weight", None)
    logits = bend(head(hidden if weight is None else hidden.to(weight.dtype)).float())
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)  # log_softmax on the CPU is less exact


def _compute_type(weight: Tensor) -> torch.dtype:
    device = weight.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


def _chunks(count: int, vocabulary: int, device: torch.device) -> list[slice]:
    rows = max(1, LOGITS[device.type] // vocabulary)
    rows -= rows % TILE if rows > TILE else 0
    return [slice(start, min(start + rows, count)) for start in range(0, count, rows)]


class _Head(torch.autograd.Function):
    """log p of the targets under the head weight (V,d) and bias (V,) or None, computed in `dtype`."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, bend: Bend, dtype: torch.dtype
    ) -> Tensor:
        ctx.bend, ctx.dtype, wide = bend, dtype, weight.to(dtype)
        trained = any(ctx.needs_input_grad[1:3])
        kept = trained and len(targets) * len(weight) * dtype.itemsize <= KEPT_BYTES[hidden.device.type]
        parts = _chunks(len(targets), len(weight), hidden.device)
        room = max((part.stop - part.start for part in parts), default=0)  # what is not kept makes room for the next
        slopes = wide.new_empty(len(targets) if kept else room, len(weight))
        logps, towards = [], []
        for part in parts:
            slope = slopes[part] if kept else slopes[: part.stop - part.start]
            logps.append(_to_slopes(_logits(hidden[part], wide, bias, slope), targets[part], bend))
            if any(ctx.needs_input_grad[:2]):
                towards.append((slope @ wide).to(hidden.dtype))
        empty = hidden.new_zeros(0, hidden.shape[-1])
        toward = torch.cat(towards) if towards else empty
        ctx.save_for_backward(
            toward, *([hidden, weight, bias, targets] if trained else []), *([slopes] if kept else [])
        )
        return torch.cat(logps) if logps else hidden.new_zeros(0, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None, Tensor | None, None, None, None]:
        toward, *rest = ctx.saved_tensors
        grad = grads[0][:, None]  # (N,1)
        to_hidden = (grad * toward).to(toward.dtype)
        if not rest:
            return to_hidden, None, None, None, None, None
        hidden, weight, bias, targets, *kept = rest
        if kept:
            return to_hidden, *_to_head(kept[0], hidden, grad, weight, bias), None, None, None
        to_weight, to_bias = torch.zeros_like(weight), None if bias is None else torch.zeros_like(bias)
        wide = weight.to(ctx.dtype)
        for part in _chunks(len(targets), len(weight), hidden.device):
            slope = _logits(hidden[part], wide, bias, wide.new_empty(part.stop - part.start, len(weight)))
            _to_slopes(slope, targets[part], ctx.bend)
            more_weight, more_bias = _to_head(slope, hidden[part], grad[part], weight, bias)
            to_weight += more_weight
            if to_bias is not None and more_bias is not None:
                to_bias += more_bias
        return to_hidden, to_weight, to_bias, None, None, None


def _logits(hidden: Tensor, wide: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """(N,d), (V,d), (V,) -> (N,V), written into `out`."""
    torch.mm(hidden.to(wide.dtype), wide.T, out=out)
    return out if bias is None else out.add_(bias)


def _to_head(
    slope: Tensor, hidden: Tensor, grad: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of the weight (V,d) and of the bias (V,), from the slopes (N,V) and the loss by each log p, (N,1)."""
    to_weight = (slope.T @ (grad * hidden).to(slope.dtype)).to(weight.dtype)
    if bias is None:
        return to_weight, None
    to_bias = torch.zeros_like(bias, dtype=torch.float32)
    for part in _chunks(len(slope), slope.shape[1], slope.device):
        to_bias += slope[part].T.float() @ grad[part, 0]
    return to_weight, to_bias.to(bias.dtype)


def _to_slopes(logits: Tensor, targets: Tensor, bend: Bend) -> Tensor:
    """(N,V), (N,) -> (N,) float32 log p of the targets. The logits become its slope by them: onehot - softmax, through the bend."""
    if bend is not _straight:
        return _bent_to_slopes(logits, targets, bend)
    if not logits.is_cuda:
        return _straight_to_slopes(logits, targets)
    torch._dynamo.maybe_mark_dynamic(logits, 0)
    torch._dynamo.maybe_mark_dynamic(targets, 0)
    return _compiled()(logits, targets)


def _straight_to_slopes(logits: Tensor, targets: Tensor) -> Tensor:
    # By hand, with one exponential: log_softmax on the CPU is off by 1e-5 over a wide vocabulary, and gradients show it.
    wide = logits.float()  # the logits themselves, if they are float32
    peak = wide.amax(-1, keepdim=True)  # (N,1)
    chosen = (wide.gather(-1, targets[:, None]) - peak)[:, 0]
    powers = wide.sub_(peak).exp_()
    total = powers.sum(-1, keepdim=True)
    slope = powers.div_(total).neg_()
    slope[torch.arange(len(targets), device=slope.device), targets] += 1
    logits.copy_(slope)
    return chosen - total[:, 0].log()


def _bent_to_slopes(logits: Tensor, targets: Tensor, bend: Bend) -> Tensor:
    with torch.enable_grad():
        leaf = logits.detach().float().requires_grad_()
        bent = bend(leaf)
    slope = bent.detach().clone()
    logp = _straight_to_slopes(slope, targets)
    logits.copy_(torch.autograd.grad(bent, leaf, slope)[0])
    return logp


@cache
def _compiled() -> Callable[[Tensor, Tensor], Tensor]:
    """The same for a GPU, as two passes over the logits."""

    def to_slopes(logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.float()
        total = wide.logsumexp(-1, keepdim=True)
        logp = (wide.gather(-1, targets[:, None]) - total)[:, 0]
        hit = torch.arange(wide.shape[-1], device=wide.device) == targets[:, None]
        logits.copy_(hit.float() - (wide - total).exp())
        return logp

    return torch.compile(to_slopes)


def _straight(logits: Tensor) -> Tensor:
    return logits


def bends(config: Any) -> bool:
    """Whether a model does anything to its logits."""
    return logit_curve(config) is not _straight


def logit_curve(config: Any) -> Bend:
    """What some families do to their logits: Gemma caps them, Granite divides them, Cohere scales them."""
    if cap := getattr(config, "final_logit_softcapping", None):
        return lambda logits: cap * torch.tanh(logits / cap)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
    return _straight if scale == 1 else lambda logits: logits * scale
