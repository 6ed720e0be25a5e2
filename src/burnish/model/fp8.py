"""The frozen base in 8 bits: half the memory of bf16, and a matrix product that a Hopper card does twice as fast.

Weights and activations become e4m3 numbers with one float32 scale a row; products add up in float32 and come out in bf16. The adapter
stays as it was. One copy of the weight serves both directions: its scales stand by output channel, so in the backward pass they are
multiplied into the incoming gradient before that is rounded, and the tensor cores' wish for another layout is met by turning the
weight around on the way, which takes 2% of a step where a second copy would take as much memory as bf16.

Source: Micikevicius et al. 2022, "FP8 Formats for Deep Learning" (arXiv 2209.05433).
"""

from __future__ import annotations

import torch
from torch import Tensor, library, nn

from burnish.model.frozen import FrozenLinear

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
