"""A step's passes as CUDA graphs, for models so small that the host cannot launch their kernels as fast as they run.

Each shape of micro-batch is run once as it is, then recorded and from there on replayed: one launch for forward, loss and backward pass
together. The first of a task is watched before, for anything that waits for the GPU. Gradients add up in tensors that stay where they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from burnish.core import Batch, Objective
from burnish.model.net import Net
from burnish.model.recorded import Recording, Unrecordable

Stats = dict[str, tuple[Tensor, Tensor]]
Passes = Callable[[Objective, Batch, Tensor], tuple[Tensor, Stats]]
MOST = 96  # shapes that are recorded; each keeps its inputs, all share the memory of their activations
# Lists of trained places and of edges are padded to multiples of these, so that few shapes are met.
PLACES, EDGES = 256, 64
ROW = 128  # and the row of a batch that has only one to a multiple of this


def forward_backward(net: Net, objective: Objective, batch: Batch, factor: Tensor) -> tuple[Tensor, Stats]:
    """Gradients of factor () times the loss, added to those that are there. Returns () the scaled loss and the statistics."""
    batch, factor = batch.to(net.device), factor.to(net.device)
    loss = objective.loss(net(batch, objective.needs), batch)
    scaled = factor * loss.sum
    if scaled.requires_grad:  # else all that this objective reaches still waits for its turn to be trained
        scaled.backward()
    return scaled.detach(), {name: (value.detach(), count.detach()) for name, (value, count) in loss.stats.items()}


class Replayed:
    """`forward_backward` for one net, recorded by shape. parameters: those that are trained."""

    def __init__(self, net: Net, parameters: Iterable[torch.nn.Parameter]) -> None:
        self.net, self.parameters = net, list(parameters)
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.refused = ""  # why nothing is recorded
        self._shapes: dict[Any, tuple[Batch, Tensor, Recording]] = {}
        on_gpu = net.device.type == "cuda"
        # Autograd adds up on the stream where it first met a gradient.
        self._stream = torch.cuda.Stream() if on_gpu else None
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None

    def __call__(self, objective: Objective, batch: Batch, factor: Tensor) -> tuple[Tensor, Stats]:
        first = self._is_first()
        if self.refused:
            return self._plainly(first, objective, batch, factor)
        batch = padded(batch)
        key = first, _key(batch)
        if key not in self._shapes:
            if len(self._shapes) >= MOST:
                return self._plainly(first, objective, batch, factor)
            self._shapes[key] = self._new(first, objective, batch, factor)
        own, own_factor, recording = self._shapes[key]
        _fill(own, batch)
        own_factor.copy_(factor, non_blocking=True)
        # A watched call may leave its work half done.
        before = [one.clone() for one in self.gradients] if recording.next_is_watched and not first else []
        try:
            scaled, stats = recording()
        except Unrecordable as error:
            self.forget(str(error).splitlines()[0])
            if before:
                torch._foreach_copy_(self.gradients, before)
            return self._plainly(first, objective, batch, factor)
        finally:
            self._attach()
        # What the next replay overwrites is copied out.
        return scaled.clone(), {name: (value.clone(), count.clone()) for name, (value, count) in stats.items()}

    def forget(self, why: str) -> None:
        """Record no more, and let go of the memory of what was recorded."""
        self.refused = why
        self._shapes.clear()

    def _is_first(self) -> bool:
        """Whether gradients begin anew with this micro-batch: the optimiser let them go. Somebody else's are taken over."""
        pairs = list(zip(self.parameters, self.gradients, strict=True))
        if all(parameter.grad is gradient for parameter, gradient in pairs):
            return False
        if all(parameter.grad is None for parameter in self.parameters):
            return True
        for parameter, gradient in pairs:
            gradient.copy_(parameter.grad) if parameter.grad is not None else gradient.zero_()
        self._attach()
        return False

    def _attach(self) -> None:
        """Let the optimiser find the gradients, in the tensors that the recordings know."""
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def _plainly(self, first: bool, *given: Any) -> tuple[Tensor, Stats]:
        if first:
            torch._foreach_zero_(self.gradients)
        self._attach()
        return forward_backward(self.net, *given)

    def _new(self, first: bool, objective: Objective, batch: Batch, factor: Tensor) -> tuple[Batch, Tensor, Recording]:
        device = self.net.device
        own, own_factor = batch.to(device).each(Tensor.clone), factor.to(device, copy=True)

        def step() -> tuple[Tensor, Stats]:
            # Autograd would add each gradient in a launch of its own, to zeros at first.
            for parameter in self.parameters:
                parameter.grad = None
            found = forward_backward(self.net, objective, own, own_factor)
            self._gather(first)
            return found

        # Another longest sequence may be another kernel's.
        known = any(
            other.recorded and (one.task, one.longest) == (batch.task, batch.longest)
            for one, _, other in self._shapes.values()
        )
        return own, own_factor, Recording(step, stream=self._stream, pool=self._pool, known=known)

    def _gather(self, first: bool) -> None:
        """Put the gradients of a micro-batch where they belong, or add them to what is there."""
        pairs = zip(self.gradients, self.parameters, strict=True)
        reached = [(gradient, parameter.grad) for gradient, parameter in pairs if parameter.grad is not None]
        if first and len(reached) < len(self.parameters):
            torch._foreach_zero_(self.gradients)
        if not reached:
            return
        there, fresh = [gradient for gradient, _ in reached], [found for _, found in reached]
        if first:
            torch._foreach_copy_(there, fresh)
        else:
            torch._foreach_add_(there, fresh)


def padded(batch: Batch) -> Batch:
    """The batch with its row, if it is one, and its lists of places filled up to lengths that come again.

    What fills them counts for nothing: a trained place past the end lands in no token; an edge at the end makes an empty sequence.
    """
    batch = _lengthened(batch, -batch.ids.numel() % ROW) if len(batch.ids) == 1 else batch
    trained, edges = batch.trained, batch.edges
    return replace(
        batch,
        trained=torch.cat([trained, trained.new_full((-len(trained) % PLACES,), batch.ids.numel())]),
        edges=torch.cat([edges, edges[-1:].expand(-len(edges) % EDGES)]),
    )


def _lengthened(batch: Batch, more: int) -> Batch:
    """A batch of one row with more padding, a sequence of its own."""
    if not more:
        return batch
    pad = torch.nn.functional.pad
    return replace(
        batch,
        ids=pad(batch.ids, (0, more)),
        pos=torch.cat([batch.pos, torch.arange(more, device=batch.pos.device)[None]], dim=1),
        seq=pad(batch.seq, (0, more), value=-1),
        weight=pad(batch.weight, (0, more)),
        edges=torch.cat([batch.edges, batch.edges[-1:] + more]),
        tokens={name: pad(x, (*(0, 0) * (x.dim() - 2), 0, more)) for name, x in batch.tokens.items()},
    )


def _key(batch: Batch) -> Any:
    return batch.task, batch.longest, tuple((name, tuple(value.shape)) for name, value in _tensors(batch))


def _tensors(batch: Batch) -> list[tuple[str, Tensor]]:
    """Every tensor of a batch by its name."""
    own = [(field.name, getattr(batch, field.name)) for field in fields(batch)]
    streams = [*batch.tokens.items(), *batch.values.items()]
    return [(name, value) for name, value in [*own, *streams] if isinstance(value, Tensor)]


def _fill(target: Batch, source: Batch) -> None:
    for (_, mine), (_, given) in zip(_tensors(target), _tensors(source), strict=True):
        mine.copy_(given, non_blocking=True)
