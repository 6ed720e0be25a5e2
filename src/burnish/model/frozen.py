"""A frozen linear layer whose weight is kept in another form than it computes with, alone or with a low-rank adapter beside it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from burnish.model.low_rank import adapter_gradients


class FrozenLinear(nn.Module):
    """x (..., in) -> x W' + bias (..., out). A kind of storage says how it multiplies, forwards and backwards.

    Nothing but what is stored is kept for the backward pass: a weight that is unpacked for a product is unpacked again.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features, self.bias = linear.in_features, linear.out_features, linear.bias

    def stored(self) -> tuple[Tensor, ...]:
        """The tensors that both products take."""
        raise NotImplementedError

    @staticmethod
    def forward_product(rows: Tensor, *stored: Tensor) -> Tensor:
        """(N, in) -> (N, out)."""
        raise NotImplementedError

    @staticmethod
    def backward_product(slope: Tensor, *stored: Tensor) -> Tensor:
        """(N, out) -> (N, in)."""
        raise NotImplementedError

    def dense(self) -> Tensor:
        """(out, in) the weight that the products compute with, in bf16."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self._with_bias(_Alone.apply(x, type(self), *self.stored()))

    def low_rank(self, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        """The output with that of an adapter, A (r, in) and B (out, r), added: what `LoraLinear` asks for."""
        return self._with_bias(_WithLowRank.apply(x, a, b, scale, type(self), *self.stored()))

    def _with_bias(self, out: Tensor) -> Tensor:
        return out if self.bias is None else out + self.bias

    def plain(self) -> nn.Linear:
        """An ordinary linear layer with the same weight."""
        return linear_of(nn.Parameter(self.dense(), requires_grad=False), self.bias)


def linear_of(weight: Any, bias: Any) -> nn.Linear:
    """An ordinary linear layer of these very parameters, (out, in) and (out,) or None."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight, linear.bias = weight, bias
    return linear


class _Alone(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: type[FrozenLinear], *stored: Tensor) -> Tensor:  # type: ignore[override]
        ctx.kind = kind
        ctx.save_for_backward(*stored)
        return kind.forward_product(x.flatten(0, -2), *stored).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        to_x = ctx.kind.backward_product(grads[0].flatten(0, -2), *ctx.saved_tensors)
        return to_x.view(*grads[0].shape[:-1], -1), None, *(None for _ in ctx.saved_tensors)


class _WithLowRank(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, scale: float, kind: type[FrozenLinear], *stored: Tensor
    ) -> Tensor:
        ctx.adapter_dtype, ctx.scale, ctx.kind = a.dtype, scale, kind
        rows, a, b = x.flatten(0, -2), a.to(x.dtype), (b * scale).to(x.dtype)
        low = rows @ a.T  # (N, r)
        out = kind.forward_product(rows, *stored) + torch.ops.burnish.product(low, b.T)
        ctx.save_for_backward(rows, a, b, low, *stored)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        rows, a, b, low, *stored = ctx.saved_tensors
        slope = grads[0].flatten(0, -2)  # (N, out)
        low_slope = slope @ b  # (N, r)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = ctx.kind.backward_product(slope, *stored) + torch.ops.burnish.product(low_slope, a)
            to_x = to_x.view(*grads[0].shape[:-1], -1)
        to_a, to_b = adapter_gradients(ctx, rows, low, slope, low_slope)
        return to_x, to_a, to_b, None, None, *(None for _ in stored)
