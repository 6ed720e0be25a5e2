"""A linear map with a low-rank adapter as one operation, in as few passes over the activations as it takes. It knows nothing of PEFT."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library


class LowRank(torch.autograd.Function):
    """x (..., in) -> x W' + bias + scale * (x A') B' (..., out), for a frozen W (out, in), A (r, in) and B (out, r).

    The adapter may be float32 beside bf16 activations: it is its small matrices that are cast. Kept for the backward pass are x,
    which the layers that share it keep once, and x A' (..., r).
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        ctx.adapter_dtype, ctx.scale = a.dtype, scale
        rows, a, b = x.flatten(0, -2), a.to(x.dtype), (b * scale).to(x.dtype)
        low = rows @ a.T
        out = _sum_of_products(low, b.T, rows, weight.T)
        ctx.save_for_backward(rows, weight, a, b, low)
        return (out if bias is None else out + bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, a, b, low = ctx.saved_tensors
        slope = grads[0].flatten(0, -2)  # (N, out)
        low_slope = slope @ b  # (N, r)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = _sum_of_products(low_slope, a, slope, weight).view(*grads[0].shape[:-1], -1)
        return to_x, None, None, *adapter_gradients(ctx, rows, low, slope, low_slope), None


def adapter_gradients(ctx: Any, rows: Tensor, low: Tensor, slope: Tensor, low_slope: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of A (r, in) and of B (out, r), in the adapter's own type; B went into the product times ctx.scale."""
    to_a, to_b = low_slope.T @ rows, (slope.T @ low) * ctx.scale
    return to_a.to(ctx.adapter_dtype), to_b.to(ctx.adapter_dtype)


def _sum_of_products(small: Tensor, thin: Tensor, large: Tensor, wide: Tensor) -> Tensor:
    """small (N, r) @ thin (r, M) + large (N, K) @ wide (K, M).

    Run as it stands, the second is added where the first was written, which costs a matrix product next to nothing. A compiler would make
    that a copy of the whole output, 3 to 6% of a step; it adds the first in whatever reads the sum, if it does not know it for a product
    and the sum is not one that it would hand to the other product.
    """
    if torch.compiler.is_compiling():
        return ((large @ wide).float() + torch.ops.burnish.product(small, thin).float()).to(large.dtype)
    return (small @ thin).addmm_(large, wide)


@library.custom_op("burnish::product", mutates_args=())
def product(left: Tensor, right: Tensor) -> Tensor:
    """left (N, r) @ right (r, M) that a compiler adds in the operation that reads it, not in one of its own."""
    return left @ right


@product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])
