"""PEFT's LoRA layer, which computes as one operation. To import this is to import PEFT, which takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from burnish.model.low_rank import LowRank


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
        out: Tensor = LowRank.apply(x, base.weight, base.bias, a, b, scale)
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
