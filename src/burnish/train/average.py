"""The average of the weights over the last steps, which is validated and kept in place of the last weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from burnish.train.loop import Step

ITERATE = "iterate"  # what a checkpoint, whose weights are the averaged ones, calls those that training goes on from


class Average:
    """An exponential moving average over steps (Polyak and Juditsky 1992; Morales-Brotons et al. 2024, arXiv 2411.18704).

    decay: what a step keeps of the average, at most (1 + n) / (10 + n) at step n, so that the beginning is soon forgotten; 0 averages
    nothing, and costs nothing.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters) if decay else {}, decay
        self._averaged: dict[str, Tensor] = {}
        self._begin()

    def _begin(self) -> None:
        self._averaged = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def after(self, step: Step) -> str | None:
        if self.parameters:
            kept = min(self.decay, (1 + step.number) / (10 + step.number))
            torch._foreach_lerp_(list(self._averaged.values()), list(self.parameters.values()), 1 - kept)
        return None

    @contextlib.contextmanager
    def held(self) -> Iterator[dict[str, Tensor]]:
        """Within the block the parameters are the averaged ones. Gives those that training goes on from, as a checkpoint keeps them."""
        self._swap()
        try:
            yield {f"{name}/{ITERATE}": value for name, value in self._averaged.items()}
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            there = parameter.detach().clone()
            parameter.copy_(self._averaged[name])
            self._averaged[name].copy_(there)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Begin anew from the parameters as they are, which are a checkpoint's, and go on from its iterates. tensors: of its optimiser."""
        self._begin()
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"{name}/{ITERATE}"])
