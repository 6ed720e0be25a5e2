"""Attention over packed rows on the CPU, one sequence after the other.

A packed row under one mask computes every pair of its tokens, though only those within a sequence count: at 1024 tokens of short
sequences that is six times the work. transformers hands an attention function of ours to every architecture that it knows.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "sdpa_by_sequence"


def use(model: Any) -> bool:
    """Switch a transformers model to this attention where it may be. Returns whether it was switched, now or before."""
    current = getattr(model.config, "_attn_implementation", None)
    if current == "sdpa" and getattr(model, "_supports_attention_backend", False) and model.device.type == "cpu":
        model.set_attn_implementation(NAME)
        return True
    return bool(current == NAME)


def boundaries(pos: Tensor) -> Tensor:
    """(R,T) positions that restart -> (S+1,) int32: where the sequences begin in the flattened rows, and where the last ends."""
    starts = (pos == 0).flatten().nonzero()[:, 0]
    return torch.cat([starts, starts.new_tensor([pos.numel()])]).int()


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


AttentionInterface.register(NAME, by_sequence)
AttentionMaskInterface.register(NAME, sdpa_mask)
