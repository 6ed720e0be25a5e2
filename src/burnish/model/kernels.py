"""The few operations that no library has, in Triton. Imported on a GPU only."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 128


@triton.jit
def _turn(source, target, rows, columns, TILE: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.program_id(1) * TILE + tl.arange(0, TILE)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(source + row[:, None].to(tl.int64) * columns + column[None, :], mask=inside)
    tl.store(target + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(tile), mask=tl.trans(inside))


def turn(weight: Tensor) -> Tensor:
    """(M, K) one-byte numbers -> (K, M), contiguous: 2 to 7 times as fast as torch's copy."""
    rows, columns = weight.shape
    out = torch.empty(columns, rows, dtype=weight.dtype, device=weight.device)
    grid = (triton.cdiv(rows, TILE), triton.cdiv(columns, TILE))
    with torch.cuda.device(weight.device):
        _turn[grid](weight.view(torch.uint8), out.view(torch.uint8), rows, columns, TILE=TILE, num_warps=8)
    return out


@triton.jit
def _unpack_e4m3(packed, scales, code, row_scales, target, count, columns, BLOCK: tl.constexpr, SPAN: tl.constexpr):  # type: ignore[no-untyped-def]
    # Of bytes, each of which holds two weights of one row.
    place = tl.program_id(0).to(tl.int64) * SPAN + tl.arange(0, SPAN)
    inside = place < count
    byte = tl.load(packed + place, mask=inside, other=0).to(tl.int32)
    by = tl.load(scales + 2 * place // BLOCK, mask=inside, other=0.0)
    by = by / tl.load(row_scales + 2 * place // columns, mask=inside, other=1.0)
    first, second = tl.load(code + (byte >> 4)) * by, tl.load(code + (byte & 15)) * by
    both = tl.join(first, second).to(tl.float8e4nv)
    out = 2 * place[:, None] + tl.arange(0, 2)[None, :]
    tl.store(target + out, both, mask=inside[:, None])


def unpack_e4m3(packed: Tensor, scales: Tensor, code: Tensor, row_scales: Tensor, columns: int) -> Tensor:
    """(out * in / 2, 1) bytes of 4-bit weights -> (out, in) e4m3 numbers that `row_scales` (out, 1) turn into the weights.

    scales (out * in / 64,): of blocks of 64 weights; code (16,): the values of 4 bits; columns: in, an even number.
    """
    count, block, span = packed.numel(), 2 * packed.numel() // scales.numel(), 1024
    out = torch.empty(2 * count // columns, columns, dtype=torch.float8_e4m3fn, device=packed.device)
    with torch.cuda.device(packed.device):
        _unpack_e4m3[(triton.cdiv(count, span),)](
            packed, scales, code, row_scales, out, count, columns, BLOCK=block, SPAN=span, num_warps=8
        )
    return out
