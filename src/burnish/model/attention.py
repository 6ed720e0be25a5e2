"""Attention over packed rows: a token sees only its own sequence, and pairs that do not count cost nothing.

A packed row under one mask computes every pair of its tokens: at 1024 tokens of short sequences that is six times the work on a CPU,
and on a GPU the mask alone took 15% of a step. transformers hands an attention function of ours to every architecture that it knows:
on the CPU one that goes through the sequences, on a GPU one kernel that is told where they begin.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, library
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from burnish.core import LEAST_LONGEST

BY_SEQUENCE, PACKED = "sdpa_by_sequence", "burnish_packed"
# What a configuration has where attention does more than the packed kernel.
OWN = ("attn_logit_softcapping", "attention_chunk_size", "kv_lora_rank")
DROPPING = ("attention_dropout", "attn_pdrop")
WIDEST_DROPPING = 192  # numbers of a head: with more of them not every card's kernel walks back through dropout
HALF = (torch.bfloat16, torch.float16)
LONG = 512  # tokens of a sequence from which on the newest kernel is worth its compilation
# And up to which our own is used, for heads of these sizes: at 17 tokens it takes half the time; at 120, heads of 128 lose a fifth.
SHORT, SHORT_SIZES = LEAST_LONGEST, (64, 128)


def use(model: Any) -> bool:
    """Switch a transformers model on the CPU to attention by sequence where it may be. Returns whether it was, now or before."""
    current = getattr(model.config, "_attn_implementation", None)
    if current == "sdpa" and getattr(model, "_supports_attention_backend", False) and model.device.type == "cpu":
        model.set_attn_implementation(BY_SEQUENCE)
        return True
    return bool(current == BY_SEQUENCE)


def by_edges(model: Any, device: torch.device, precision: str) -> bool:
    """Whether a model attends through the packed kernel: on a GPU, in 16 bits, where that computes what its attention does."""
    return device.type == "cuda" and precision != "fp32" and fits_packed(model)


def fits_packed(model: Any) -> bool:
    """Whether the packed kernel computes what this model's attention does: causal, with or without a window and dropout, and nothing more.

    Capped scores, chunks, sinks, values of another width than the keys, and dropout in wide heads stay with transformers' own attention.
    """
    config = model.config.get_text_config()
    dropping = any(getattr(config, name, None) for name in DROPPING)
    own = any(getattr(config, name, None) for name in OWN) or (dropping and not _narrow(config))
    sinks = any(name.endswith(".sinks") for name, _ in model.named_parameters())
    known = getattr(model, "_supports_attention_backend", False)
    return bool(known and not own and not sinks and model.config._attn_implementation == "sdpa")


def _narrow(config: Any) -> bool:
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(size) <= WIDEST_DROPPING


@contextlib.contextmanager
def packed(decoder: Any) -> Iterator[None]:
    """Within the block the decoder's layers attend by the edges that they are handed, and no mask is made.

    Only there: generation and whatever else calls the model keep transformers' own attention, which knows their masks.
    """
    config = decoder.config
    before = config._attn_implementation
    config._attn_implementation = PACKED
    try:
        yield
    finally:
        config._attn_implementation = before


@torch.compiler.disable  # its lengths differ in each batch: traced, it would be compiled anew each time
def by_sequence(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cu_seq_lens_q: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(R, heads, T, size) -> (R, T, heads, size). The mask's own blocks are used, so that windows and chunks hold as they did."""
    kwargs.pop("max_length_q", None)
    if cu_seq_lens_q is None or attention_mask is None or kwargs.get("position_bias") is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    rows, length = query.shape[0], query.shape[2]
    edges = cu_seq_lens_q.tolist()
    lengths = [end - start for start, end in pairwise(edges)]
    # split, not slices: the gradient of a slice is a tensor of the whole row's size.
    parts = zip(
        *(x.transpose(0, 1).flatten(1, 2)[None].split(lengths, dim=2) for x in (query, key, value)), strict=True
    )
    outs, mask = [], attention_mask.expand(rows, -1, -1, -1)
    for start, size, (q, k, v) in zip(edges, lengths, parts, strict=False):
        row, first = divmod(start, length)
        block = mask[row : row + 1, :, first : first + size, first : first + size]
        outs.append(sdpa_attention_forward(module, q, k, v, block, **kwargs)[0])
    return torch.cat(outs, dim=1).view(rows, length, *outs[0].shape[2:]), None


def attend_by_edges(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """(R, heads, T, size) -> (R, T, heads, size), all rows laid end to end under the edges of their sequences."""
    rows, _, length, size = query.shape
    half = value.dtype if value.dtype in HALF or not value.is_cuda else torch.bfloat16  # what the kernels take
    q, k, v = (x.transpose(1, 2).flatten(0, 1).to(half) for x in (query, key, value))
    scale = size**-0.5 if scaling is None else scaling
    how = (cu_seq_lens_q, max_length_q, scale, sliding_window - 1 if sliding_window else -1)
    if dropout:
        out = attention_dropping(q, k, v, *how, dropout)
    else:
        out, _ = torch.ops.burnish.packed_attention(q, k, v, *how)
    return out.view(rows, length, -1, size).to(query.dtype), None


def no_mask(*args: Any, **kwargs: Any) -> None:
    """The packed kernel needs none."""


AttentionInterface.register(BY_SEQUENCE, by_sequence)
AttentionMaskInterface.register(BY_SEQUENCE, sdpa_mask)
AttentionInterface.register(PACKED, attend_by_edges)
AttentionMaskInterface.register(PACKED, no_mask)


# The kernel, as one operation that a compiler leaves whole -----------------------------------------------------------------------------
#
# q (N, heads, size), k and v (N, kv heads, size), edges (S+1,) int32, longest: tokens of the longest sequence at the least, scale,
# window: tokens before its own that one sees, -1 for all.


@library.custom_op("burnish::packed_attention", mutates_args=())
def packed_attention(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """(N, heads, size) attention within each sequence, and (heads, N) float32 log-sum-exp of the scores."""
    if not q.is_cuda:
        return _reference(q, k, v, edges, scale, window)
    if _is_short(q, longest):
        from burnish.model import kernels

        return kernels.attend(q, k, v, edges, longest, scale, window)
    if newest := _newest(q, k, longest):
        out, lse, *_ = newest._flash_attn_fwd(
            q, k, v, **_newest_arguments(edges, longest, scale, window), return_lse=True
        )
        return out, lse
    out, lse, _ = _torch_forward(q, k, v, edges, longest, scale, window, 0.0)
    return out, lse


@library.custom_op("burnish::packed_attention_backward", mutates_args=())
def packed_attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    edges: Tensor,
    longest: int,
    scale: float,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    if not q.is_cuda:
        return _reference_backward(grad, q, k, v, edges, scale, window)
    if _is_short(q, longest):
        from burnish.model import kernels

        return kernels.attend_back(grad.contiguous(), (q, k, v, out, lse, edges), longest, scale, window)
    if newest := _newest(q, k, longest):
        arguments = _newest_arguments(edges, longest, scale, window)
        return tuple(newest._flash_attn_bwd(q, k, v, out, grad.contiguous(), lse, **arguments)[:3])  # type: ignore[return-value]
    undrawn = torch.zeros(2, dtype=torch.uint64, device=q.device)
    return _torch_backward(grad, (q, k, v, out, lse, undrawn, edges), longest, scale, window, 0.0)


@packed_attention.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


@packed_attention_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, edges, *ctx.rest = inputs
    ctx.save_for_backward(q, k, v, *output, edges)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    return *torch.ops.burnish.packed_attention_backward(grad, *ctx.saved_tensors, *ctx.rest), None, None, None, None


packed_attention.register_autograd(_backward, setup_context=_keep)


@torch.compiler.disable  # computed again by a compiled backward pass, it would drop something else
def attention_dropping(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scale: float, window: int, dropout: float
) -> Tensor:
    """The same with dropout of the shares, by torch's own kernel on a GPU alone."""
    out: Tensor = _Dropping.apply(q, k, v, edges, longest, scale, window, dropout)
    return out


class _Dropping(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, edges: Tensor, *how: Any) -> Tensor:
        out, lse, state = _torch_forward(q, k, v, edges, *how)
        ctx.save_for_backward(q, k, v, out, lse, state, edges)
        ctx.how = how
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_torch_backward(grad, ctx.saved_tensors, *ctx.how), None, None, None, None, None


# torch's own kernel. how: longest, scale, window and dropout.


def _torch_forward(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The attention, the log-sum-exp and (2,) from where on random numbers were drawn, to draw them again."""
    longest, scale, window, dropout = how
    out, lse, state, *_ = torch.ops.aten._flash_attention_forward(
        *(q, k, v, edges, edges, longest, longest, dropout, True, False), scale=scale, **_of_torch(window)
    )
    return out, lse, state


def _torch_backward(grad: Tensor, saved: Sequence[Tensor], *how: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. saved: these, what the forward pass gave, and the edges."""
    *attended, state, edges = saved
    longest, scale, window, dropout = how
    unused = torch.zeros_like(state)
    given = (grad.contiguous(), *attended, edges, edges, longest, longest, dropout, True, state, unused)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten._flash_attention_backward(
        *given, scale=scale, **_of_torch(window)
    )
    return found


def _of_torch(window: int) -> dict[str, int]:
    return {"window_size_left": window, "window_size_right": 0 if window >= 0 else -1}


def _reference(q: Tensor, k: Tensor, v: Tensor, edges: Tensor, scale: float, window: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch, one sequence after the other: what the kernels are held against, and what a CPU runs."""
    outs, sums = [], []
    for queries, keys, values in _by_sequence(q, k, v, edges):
        scores = _scores(queries, keys, scale, window)
        outs.append((scores.softmax(-1) @ values).transpose(0, 1))
        sums.append(scores.logsumexp(-1))
    return torch.cat(outs).to(q.dtype), torch.cat(sums, dim=1)


def _reference_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, edges: Tensor, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    found = []
    for (queries, keys, values), (slopes, _, _) in zip(
        _by_sequence(q, k, v, edges), _by_sequence(grad, k, v, edges), strict=True
    ):
        shares = _scores(queries, keys, scale, window).softmax(-1)  # (heads, T, T)
        to_shares = slopes @ values.mT
        to_scores = shares * (to_shares - (to_shares * shares).sum(-1, keepdim=True)) * scale
        found.append([to_scores @ keys, to_scores.mT @ queries, shares.mT @ slopes])
    to_q, to_k, to_v = (torch.cat(parts, dim=1).transpose(0, 1) for parts in zip(*found, strict=True))
    to_k, to_v = (x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (to_k, to_v))  # heads that share a key add up
    return to_q.to(q.dtype).contiguous(), to_k.to(k.dtype), to_v.to(v.dtype)


def _by_sequence(q: Tensor, k: Tensor, v: Tensor, edges: Tensor) -> Iterator[list[Tensor]]:
    """(heads, T, size) float32 of each sequence, keys and values repeated for the heads that share them."""
    shared = q.shape[1] // k.shape[1]
    for start, end in pairwise(edges.tolist()):
        queries, keys, values = (x[start:end].transpose(0, 1).float() for x in (q, k, v))
        yield [queries, keys.repeat_interleave(shared, dim=0), values.repeat_interleave(shared, dim=0)]


def _scores(queries: Tensor, keys: Tensor, scale: float, window: int) -> Tensor:
    places = torch.arange(queries.shape[1], device=queries.device)
    distance = places[:, None] - places
    seen = (distance >= 0) & ((distance <= window) | (window < 0))
    return (queries @ keys.mT * scale).masked_fill(~seen, float("-inf"))


def _is_short(q: Tensor, longest: int) -> bool:
    """Whether sequences are so short that the kernels made for long ones mostly wait, and heads of a size that ours takes."""
    return longest <= SHORT and q.shape[2] in SHORT_SIZES


def _newest(q: Tensor, k: Tensor, longest: int) -> Any:
    """FlashAttention 4 where it is there and sequences are long enough to repay the seconds that it takes to get ready."""
    return _flash_attention_4(q.shape[1], k.shape[1], q.shape[2], q.device.index) if longest >= LONG else None


def _newest_arguments(edges: Tensor, longest: int, scale: float, window: int) -> dict[str, Any]:
    windowed = {"window_size_left": window, "window_size_right": 0} if window >= 0 else {}
    lengths = {"max_seqlen_q": longest, "max_seqlen_k": longest}
    causal = {"causal": window < 0, "softmax_scale": scale}
    return {"cu_seqlens_q": edges, "cu_seqlens_k": edges, **lengths, **causal, **windowed}


@lru_cache(maxsize=8)
def _flash_attention_4(heads: int, shared: int, size: int, device: int) -> Any:
    """FlashAttention 4 (arXiv 2603.05451) where it is installed and says what torch's own kernel says; else None.

    Its functions below the public ones are what an operation with a backward of its own needs; they may change with a version, so
    they are tried once, forward and backward, on a small packed input with as many heads.
    """
    try:
        import flash_attn.cute.interface as newest

        generator = torch.Generator().manual_seed(0)
        q, k, v, grad = (torch.randn(192, heads, size, generator=generator) for heads in (heads, shared, shared, heads))
        q, k, v, grad = (x.to(f"cuda:{device}", torch.bfloat16) for x in (q, k, v, grad))
        edges = torch.tensor([0, 70, 128, 192], dtype=torch.int32, device=q.device)
        arguments = _newest_arguments(edges, 128, size**-0.5, -1)
        out, lse, *_ = newest._flash_attn_fwd(q, k, v, **arguments, return_lse=True)
        found = [out, *newest._flash_attn_bwd(q, k, v, out, grad, lse, **arguments)[:3]]
        rest = (edges, size**-0.5, -1)
        wanted = [_reference(q, k, v, *rest)[0], *_reference_backward(grad, q, k, v, *rest)]
        near = all(float((a - b).norm() / b.norm()) < 0.02 for a, b in zip(found, wanted, strict=True))
        return newest if near else None
    except Exception:  # whatever a library under development raises: torch's own kernel is there
        return None
