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


# Attention within sequences so short that the kernels made for long ones mostly wait. One block of tokens of one sequence is a program's.


@triton.jit
def _seen(query_places, key_places, count, window):  # type: ignore[no-untyped-def]
    distance = query_places[:, None] - key_places[None, :]
    near = (distance <= window) | (window < 0)
    return (distance >= 0) & near & (key_places < count)[None, :]


@triton.jit
def _tile(x, start, places, count, head, token_stride, head_stride, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    # (BLOCK, SIZE) of one head; zeros past the sequence's end.
    rows = (start + places).to(tl.int64)[:, None] * token_stride
    at = x + rows + head * head_stride + tl.arange(0, SIZE)[None, :]
    return tl.load(at, mask=(places < count)[:, None], other=0.0)


@triton.jit
def _put(x, tile, start, places, count, head, HEADS: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = ((start + places).to(tl.int64)[:, None] * HEADS + head) * SIZE
    tl.store(x + rows + tl.arange(0, SIZE)[None, :], tile.to(x.dtype.element_ty), mask=(places < count)[:, None])


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    q, k, v, out, sums, edges, total, scale, window, q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, SHARED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block, head = tl.program_id(1), tl.program_id(2)
    start = tl.load(edges + tl.program_id(0))
    count = tl.load(edges + tl.program_id(0) + 1) - start
    if block * BLOCK < count:
        places = block * BLOCK + tl.arange(0, BLOCK)
        queries = _tile(q, start, places, count, head, q_token, q_head, SIZE)
        best = tl.full((BLOCK,), -1e30, tl.float32)
        weight = tl.zeros((BLOCK,), tl.float32)
        found = tl.zeros((BLOCK, SIZE), tl.float32)
        for begin in range(0, (block + 1) * BLOCK, BLOCK):
            others = begin + tl.arange(0, BLOCK)
            keys = _tile(k, start, others, count, head // SHARED, k_token, k_head, SIZE)
            values = _tile(v, start, others, count, head // SHARED, v_token, v_head, SIZE)
            seen = _seen(places, others, count, window)
            scores = tl.where(seen, tl.dot(queries, tl.trans(keys)) * scale, -1e30)
            higher = tl.maximum(best, tl.max(scores, 1))
            shares = tl.where(seen, tl.exp(scores - higher[:, None]), 0.0)
            fade = tl.exp(best - higher)
            weight = weight * fade + tl.sum(shares, 1)
            found = found * fade[:, None] + tl.dot(shares.to(values.dtype), values)
            best = higher
        _put(out, found / weight[:, None], start, places, count, head, HEADS, SIZE)
        at = sums + tl.cast(head, tl.int64) * total + start + places
        tl.store(at, best + tl.log(weight), mask=places < count)


@triton.jit
def _to_scores(  # type: ignore[no-untyped-def]
    queries, keys, values, slopes, outs, sums, at, places, others, count, scale, window
):
    # The shares of a block of scores, and the loss's slope by these scores.
    level = tl.load(sums + at, mask=places < count, other=0.0)
    seen = _seen(places, others, count, window) & (places < count)[:, None]
    shares = tl.where(seen, tl.exp(tl.dot(queries, tl.trans(keys)) * scale - level[:, None]), 0.0)
    mean = tl.sum(slopes.to(tl.float32) * outs.to(tl.float32), 1)
    return shares, shares * (tl.dot(slopes, tl.trans(values)) - mean[:, None]) * scale


@triton.jit
def _attend_back(  # type: ignore[no-untyped-def]
    grad, q, k, v, out, sums, edges, to_q, to_k, to_v, total, scale, window,
    q_token, q_head, k_token, k_head, v_token, v_head,
    HEADS: tl.constexpr, SHARED: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block, shared = tl.program_id(1), tl.program_id(2)
    start = tl.load(edges + tl.program_id(0))
    count = tl.load(edges + tl.program_id(0) + 1) - start
    if block * BLOCK < count:
        mine = block * BLOCK + tl.arange(0, BLOCK)
        # First as keys and values, by all queries from here on that share them.
        keys = _tile(k, start, mine, count, shared, k_token, k_head, SIZE)
        values = _tile(v, start, mine, count, shared, v_token, v_head, SIZE)
        to_keys = tl.zeros((BLOCK, SIZE), tl.float32)
        to_values = tl.zeros((BLOCK, SIZE), tl.float32)
        for head in range(shared * SHARED, (shared + 1) * SHARED):
            for begin in range(block * BLOCK, count, BLOCK):
                places = begin + tl.arange(0, BLOCK)
                queries = _tile(q, start, places, count, head, q_token, q_head, SIZE)
                slopes = _tile(grad, start, places, count, head, HEADS * SIZE, SIZE, SIZE)
                outs = _tile(out, start, places, count, head, HEADS * SIZE, SIZE, SIZE)
                at = tl.cast(head, tl.int64) * total + start + places
                shares, to_scores = _to_scores(
                    queries, keys, values, slopes, outs, sums, at, places, mine, count, scale, window
                )
                to_values += tl.dot(tl.trans(shares.to(slopes.dtype)), slopes)
                to_keys += tl.dot(tl.trans(to_scores.to(queries.dtype)), queries)
        _put(to_k, to_keys, start, mine, count, shared, HEADS // SHARED, SIZE)
        _put(to_v, to_values, start, mine, count, shared, HEADS // SHARED, SIZE)
        # Then as queries, by all keys up to here.
        for head in range(shared * SHARED, (shared + 1) * SHARED):
            queries = _tile(q, start, mine, count, head, q_token, q_head, SIZE)
            slopes = _tile(grad, start, mine, count, head, HEADS * SIZE, SIZE, SIZE)
            outs = _tile(out, start, mine, count, head, HEADS * SIZE, SIZE, SIZE)
            at = tl.cast(head, tl.int64) * total + start + mine
            to_queries = tl.zeros((BLOCK, SIZE), tl.float32)
            for begin in range(0, (block + 1) * BLOCK, BLOCK):
                others = begin + tl.arange(0, BLOCK)
                keys = _tile(k, start, others, count, shared, k_token, k_head, SIZE)
                values = _tile(v, start, others, count, shared, v_token, v_head, SIZE)
                _, to_scores = _to_scores(
                    queries, keys, values, slopes, outs, sums, at, mine, others, count, scale, window
                )
                to_queries += tl.dot(to_scores.to(keys.dtype), keys)
            _put(to_q, to_queries, start, mine, count, head, HEADS, SIZE)


BLOCK = 32  # tokens of a sequence that a program of the attention takes


def attend(
    q: Tensor, k: Tensor, v: Tensor, edges: Tensor, longest: int, scale: float, window: int
) -> tuple[Tensor, Tensor]:
    """What `attention.packed_attention` gives, for sequences of few blocks. Numbers of a head must lie side by side."""
    assert all(x.stride(2) == 1 and x.shape[2] == q.shape[2] for x in (q, k, v)), "heads are apart or of other sizes"
    out, sums = (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(q.shape[1::-1], dtype=torch.float32),
    )
    heads, size = q.shape[1:]
    grid = (len(edges) - 1, triton.cdiv(longest, BLOCK), heads)
    with torch.cuda.device(q.device):
        _attend[grid](
            q, k, v, out, sums, edges, len(q), scale, window, *_strides(q, k, v),
            HEADS=heads, SHARED=heads // k.shape[1], SIZE=size, BLOCK=BLOCK, num_warps=2,
        )  # fmt: skip
    return out, sums


def attend_back(
    grad: Tensor, saved: Sequence[Tensor], longest: int, scale: float, window: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. grad: contiguous; saved: these, what `attend` gave, and the edges."""
    q, k, v, *_, edges = saved
    heads, size = q.shape[1:]
    found = q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)
    grid = (len(edges) - 1, triton.cdiv(longest, BLOCK), k.shape[1])
    with torch.cuda.device(q.device):
        _attend_back[grid](
            grad, *saved, *found, len(q), scale, window, *_strides(q, k, v),
            HEADS=heads, SHARED=heads // k.shape[1], SIZE=size, BLOCK=BLOCK, num_warps=2,
        )  # fmt: skip
    return found


def _strides(*tensors: Tensor) -> list[int]:
    """Of tokens and heads."""
    return [stride for x in tensors for stride in x.stride()[:2]]
