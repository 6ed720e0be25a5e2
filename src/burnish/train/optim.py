"""AdamW with warm-up, cosine decay and clipping, and the learning rate to begin with."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
EPSILON = 1e-8


def auto_learning_rate(hidden_size: int, method: str, steps: int) -> float:
    """The peak learning rate from the size of the model: 5e-5 * (2000 / hidden)^0.781, times 10 for LoRA, 15 in runs under 100 steps.

    Source: Schulman et al. 2025, "LoRA Without Regret": LoRA's best rate is about ten times that of full fine-tuning, about
    fifteen times in short runs, and nearly free of the rank.
    """
    full = 5e-5 * (2000 / hidden_size) ** 0.781
    if method == "full":
        return full
    return full * (15 if steps < 100 else 10)


def auto_batch_size(rows: int) -> int:
    """Rows in a step: about half the square root of the rows, as a power of two from 4 to 64, so that small sets get enough steps."""
    return int(min(64, max(4, 2 ** round(math.log2(max(math.sqrt(rows) / 2, 1))))))


def rate_at(step: int, total: int, warmup: float) -> float:
    """The share of the peak rate at a step counted from 0: linear warm-up, then a cosine that ends near 0."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class Optim:
    """AdamW (arXiv 1711.05101) over named parameters. Matrices decay; vectors (norms, biases) do not.

    learning_rate: the peak. total: optimiser steps of the whole run, which the schedule needs.
    """

    def __init__(
        self,
        parameters: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        total: int,
        warmup: float = 0.05,
        weight_decay: float = 0.01,
        clip: float = 1.0,
    ) -> None:
        self.parameters = dict(parameters)
        self.learning_rate, self.total, self.warmup, self.clip = learning_rate, total, warmup, clip
        self.steps = 0
        matrices = [p for p in self.parameters.values() if p.dim() > 1]
        vectors = [p for p in self.parameters.values() if p.dim() <= 1]
        groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adam = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=learning_rate, betas=BETAS, eps=EPSILON
        )

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return self.learning_rate * rate_at(self.steps, self.total, self.warmup)

    def gradient_norm(self) -> Tensor:
        """() the norm of all gradients together, before clipping. Gradients are clipped to `clip` in place."""
        return nn.utils.clip_grad_norm_(list(self.parameters.values()), self.clip)

    def step(self) -> None:
        for group in self._adam.param_groups:
            group["lr"] = self.rate
        self._adam.step()
        self.steps += 1

    def zero_grad(self) -> None:
        self._adam.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Adam's moments by "parameter/moment", flat, as a checkpoint keeps them."""
        return {
            f"{name}/{moment}": value
            for name, parameter in self.parameters.items()
            for moment, value in self._adam.state[parameter].items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        self.steps = steps
        for name, parameter in self.parameters.items():
            moments: dict[str, Any] = {}
            for moment in ("step", "exp_avg", "exp_avg_sq"):
                if (value := tensors.get(f"{name}/{moment}")) is not None:
                    moments[moment] = value.clone() if moment == "step" else value.to(parameter)
            self._adam.state[parameter] = moments
