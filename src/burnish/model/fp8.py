"""Products in 8 bits, which a Hopper card does twice as fast as those in bf16: with a frozen base, stored so, or with trained weights.

Weights and activations become e4m3 numbers with one float32 scale a row; products add up in float32 and come out in bf16. An adapter
stays as it was; so do trained weights, which are rounded anew for each step, and whose gradient is a product in bf16. One copy of a
weight serves both directions: its scales stand by output channel, so in the backward pass they are multiplied into the incoming gradient
before that is rounded, and the tensor cores' wish for another layout is met by turning the weight around on the way, which takes 2% of
a step where a second copy would take as much memory as bf16.

Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv 2209.05433).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, library, nn

from burnish.model.frozen import FrozenLinear, linear_of

E4M3 = torch.float8_e4m3fn
MULTIPLE = 16  # sides that the tensor cores take


def multiplies(device: torch.device) -> bool:
    """Whether a device multiplies 8-bit numbers: compute capability 8.9 and above."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)


def suits(linear: nn.Module) -> bool:
    """Whether a layer's product can be done in 8 bits."""
    return type(linear) is nn.Linear and linear.in_features % MULTIPLE == 0 and linear.out_features % MULTIPLE == 0


def by_row(x: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> (N, K) e4m3 and (N, 1) float32 scales: each row's largest number becomes the largest that there is."""
    # 448 is the largest e4m3; as a name, a compiler trips on it.
    scale = (x.abs().amax(-1, keepdim=True).float() / 448).clamp(min=1e-12)
    return (x.float() / scale).to(E4M3), scale


class Fp8Linear(FrozenLinear):
    """A frozen linear layer: weight (out, in) e4m3, scale (out, 1) float32, bias as it was or None."""

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear)
        weight, scale = by_row(linear.weight.detach())
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale)

    def stored(self) -> tuple[Tensor, ...]:
        return self.weight, self.scale

    @staticmethod
    def forward_product(rows: Tensor, *stored: Tensor) -> Tensor:
        return forward_product(rows, *stored)

    @staticmethod
    def backward_product(slope: Tensor, *stored: Tensor) -> Tensor:
        weight, scale = stored
        return backward_product(slope, torch.ops.burnish.turned(weight), scale)

    def dense(self) -> Tensor:
        return (self.weight.float() * self.scale).to(torch.bfloat16)


class Fp8Products(nn.Linear):
    """A linear layer that keeps its weight (out, in) float32 and bias, to be trained, and multiplies in 8 bits. Its output is bf16."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = _Trained.apply(x, self.weight)
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def plain(self) -> nn.Linear:
        """An ordinary linear layer of the same parameters."""
        return linear_of(self.weight, self.bias)


class _Trained(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        ctx.dtypes = x.dtype, weight.dtype
        rows, rounded = x.flatten(0, -2).to(torch.bfloat16), by_row(weight)
        ctx.save_for_backward(rows, *rounded)
        return forward_product(rows, *rounded).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, Tensor | None]:
        rows, weight, scale = ctx.saved_tensors
        slope, to_x, to_weight = grads[0].flatten(0, -2), None, None
        if ctx.needs_input_grad[0]:
            to_x = backward_product(slope, torch.ops.burnish.turned(weight), scale)
            to_x = to_x.view(*grads[0].shape[:-1], -1).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            to_weight = (slope.T @ rows).to(ctx.dtypes[1])
        return to_x, to_weight


def forward_product(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """(N, in) @ (out, in)' -> (N, out) in the type of `rows`."""
    rounded, by = by_row(rows)
    return _multiply(rounded, by, weight, scale.T, rows.dtype)


def backward_product(slope: Tensor, turned: Tensor, scale: Tensor) -> Tensor:
    """(N, out) @ (out, in) -> (N, in), from the weight turned around, (in, out); its scales are taken up by the gradient."""
    rounded, by = by_row(slope.float() * scale.T)
    ones = torch.ones(1, turned.shape[0], device=slope.device)
    return _multiply(rounded, by, turned, ones, slope.dtype)


def _multiply(left: Tensor, by_left: Tensor, right: Tensor, by_right: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, K) and (M, K) e4m3 with scales (N, 1) and (1, M) -> (N, M)."""
    if left.is_cuda:
        return torch._scaled_mm(
            left, right.T, scale_a=by_left, scale_b=by_right.contiguous(), out_dtype=dtype, use_fast_accum=True
        )
    return ((left.float() @ right.float().T) * by_left * by_right).to(dtype)


@library.custom_op("burnish::turned", mutates_args=())
def turned(weight: Tensor) -> Tensor:
    """(M, K) one-byte numbers -> (K, M), contiguous."""
    if not weight.is_cuda:
        return weight.T.contiguous()
    from burnish.model.kernels import turn

    return turn(weight)


@turned.register_fake
def _(weight: Tensor) -> Tensor:
    return weight.new_empty(weight.shape[1], weight.shape[0])
