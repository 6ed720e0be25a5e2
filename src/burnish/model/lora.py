"""A linear layer with its low-rank adapter as one operation, in as few passes over the activations as it takes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import Linear
from torch import Tensor, nn


class LoraLinear(Linear):
    """PEFT's LoRA layer, computed at once where nothing speaks against it: same parameters, same names, same files.

    PEFT's own way casts the input to the adapter's float32, keeps that copy for the backward pass and adds a product of the output's
    size twice over; with bf16 weights it takes about half of a step's time.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        name = self._only_adapter()
        weight, bias = self.base_layer.weight, self.base_layer.bias
        if name is None or args or kwargs or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x, *args, **kwargs)
        a, b = self.lora_A[name].weight, self.lora_B[name].weight
        out: Tensor = _LowRank.apply(x, weight, bias, a, b, self.scaling[name])
        return out

    def _only_adapter(self) -> str | None:
        """The adapter's name where one plain adapter is to be added to plain frozen weights, else None."""
        active = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(active) != 1 or active[0] in self.lora_variant:
            return None
        dropped = self.training and not isinstance(self.lora_dropout[active[0]], nn.Identity)
        biased = self.lora_B[active[0]].bias is not None
        plain = type(self.base_layer) is nn.Linear and not self.base_layer.weight.requires_grad
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
        ctx.scale, ctx.adapter_dtype = scale, a.dtype
        rows, a, b = x.flatten(0, -2), a.to(x.dtype), b.to(x.dtype)
        low = rows @ a.T
        out = F.linear(rows, weight, bias).addmm_(low, b.T, alpha=scale)
        ctx.save_for_backward(rows, weight, a, b, low)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, a, b, low = ctx.saved_tensors
        slope = grads[0].flatten(0, -2)  # (N, out)
        low_slope = (slope @ b).mul_(ctx.scale)  # (N, r)
        to_a, to_b = low_slope.T @ rows, (slope.T @ low).mul_(ctx.scale)
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = (slope @ weight).addmm_(low_slope, a).view(*grads[0].shape[:-1], -1)
        return to_x, None, None, to_a.to(ctx.adapter_dtype), to_b.to(ctx.adapter_dtype), None
