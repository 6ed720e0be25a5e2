"""The few operations that no library has, in Triton. Imported on a GPU only."""

from __future__ import annotations

from collections.abc import Sequence

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
def _unpack_e4m3(  # type: ignore[no-untyped-def]
    packed, absmax, nested_absmax, nested_code, offset, code, row_scales, target, rows,
    COLUMNS: tl.constexpr, BLOCK: tl.constexpr, NESTED: tl.constexpr, TURNED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    # One block of weights of each of TILE rows: what the weights of a block share is worked out once.
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = row < rows
    block = row.to(tl.int64) * (COLUMNS // BLOCK) + tl.program_id(1)
    nested = tl.load(nested_code + tl.load(absmax + block, mask=inside, other=0).to(tl.int32))
    by = nested * tl.load(nested_absmax + block // NESTED, mask=inside, other=0.0) + tl.load(offset)
    by = (by / tl.load(row_scales + row, mask=inside, other=1.0))[:, None]
    half = tl.arange(0, BLOCK // 2)
    byte = tl.load(packed + (block * (BLOCK // 2))[:, None] + half[None, :], mask=inside[:, None], other=0).to(tl.int32)
    first, second = tl.load(code + (byte >> 4)) * by, tl.load(code + (byte & 15)) * by
    tile = tl.reshape(tl.join(first, second).to(tl.float8e4nv), (TILE, BLOCK))
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if TURNED:
        tl.store(target + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(tile), mask=inside[None, :])
    else:
        tl.store(target + row[:, None].to(tl.int64) * COLUMNS + column[None, :], tile, mask=inside[:, None])


def unpack_e4m3(stored: Sequence[Tensor], columns: int, block: int, nested_block: int, turned: bool) -> Tensor:
    """What `Nf4Fp8Linear` stores -> (out, in) e4m3 numbers that its row scales turn into the weights; turned: (in, out).

    columns: in, a multiple of `block`, the weights that share a scale; nested_block: the scales that share one.
    """
    packed, absmax, nested_absmax, nested_code, offset, code, row_scales = stored
    rows = 2 * packed.numel() // columns
    sides = (columns, rows) if turned else (rows, columns)
    out = torch.empty(sides, dtype=torch.float8_e4m3fn, device=packed.device)
    with torch.cuda.device(packed.device):
        _unpack_e4m3[(triton.cdiv(rows, TILE), columns // block)](
            packed, absmax, nested_absmax, nested_code, offset, code, row_scales, out, rows,
            COLUMNS=columns, BLOCK=block, NESTED=nested_block, TURNED=turned, TILE=TILE, num_warps=4,
        )  # fmt: skip
    return out
