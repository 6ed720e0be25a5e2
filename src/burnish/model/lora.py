"""A linear layer with its low-rank adapter as one operation, in as few passes over the activations as it takes."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


class LoraLinear(Linear):
    """PEFT's LoRA layer, computed at once where nothing speaks against it: same parameters, same names, same files.

    PEFT's own way casts the input to the adapter's float32, keeps that copy for the backward pass and adds a product of the output's
    size twice over; with bf16 weights it takes about half of a step's time. A base layer with a method `low_rank` (the 8-bit and 4-bit
    ones of `quantize`) brings its own products.

    start: A and B as they began, where the base is not the model without them (see `starts`). from_loss: they are still to begin, with
    what the base loses when it is stored in few bits.
    """

    start: tuple[Tensor, Tensor] | None = None
    from_loss = False

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name, base = self._only_adapter(), self.base_layer
        if name is None or args or kwargs or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        a, b, scale = self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
        if hasattr(base, "low_rank"):
            added: Tensor = base.low_rank(x, a, b, scale)  # type: ignore[operator]
            return added
        if x.dtype != base.weight.dtype:
            return super().forward(x)
        out: Tensor = _LowRank.apply(x, base.weight, base.bias, a, b, scale)
        return out

    def _only_adapter(self) -> str | None:
        """The adapter's name where one plain adapter is to be added to plain frozen weights, else None."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        dropped = self.training and not isinstance(self.lora_dropout[active[0]], nn.Identity)
        biased = self.lora_B[active[0]].bias is not None
        base = self.base_layer
        plain = hasattr(base, "low_rank") or (type(base) is nn.Linear and not base.weight.requires_grad)
        return active[0] if plain and not dropped and not biased else None


class _LowRank(torch.autograd.Function):
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


@torch.library.custom_op("burnish::product", mutates_args=())
def product(left: Tensor, right: Tensor) -> Tensor:
    """left (N, r) @ right (r, M) that a compiler adds in the operation that reads it, not in one of its own."""
    return left @ right


@product.register_fake
def _(left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty(left.shape[0], right.shape[1])
