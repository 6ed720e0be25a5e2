"""Adapters that begin from the base's own weights (PiSSA, LoftQ), and what any adapted model was before it was tuned.

PiSSA (Meng et al. 2024, arXiv 2404.02948) begins with the largest singular directions of each weight and takes them out of it, LoftQ (Li et
al. 2023, arXiv 2310.08659) with those of what 4 bits took from it. Either way it is base and start together that are the model as it
was published. The start is kept beside each layer; an exported adapter is the difference to it, a plain LoRA of twice the rank.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def keep_start(model: nn.Module, *, from_loss: bool) -> None:
    """Note what each layer's adapter begins with. from_loss: it is still to begin, with what storing the base in few bits will take."""
    for layer in _layers(model):
        if any(parameter.is_meta for parameter in layer.parameters()):  # a model of which only sizes are asked
            return
        layer.start, layer.from_loss = _matrices(layer), from_loss


def begin_with_loss(layer: Any, loss: Tensor) -> None:
    """Begin with the largest singular directions of what a layer's weight lost, (out, in). The layer's scale goes into them."""
    name = layer.active_adapters[0]
    rank = layer.r[name]
    left, sizes, right = torch.linalg.svd(loss.float(), full_matrices=False)
    roots = (sizes[:rank] / layer.scaling[name]).sqrt()
    _put(layer, (roots[:, None] * right[:rank], left[:, :rank] * roots))
    layer.start, layer.from_loss = _matrices(layer), False


def has_start(model: nn.Module) -> bool:
    return next(_layers(model), None) is not None and any(layer.start for layer in _layers(model))


@contextlib.contextmanager
def before_tuning(model: Any) -> Iterator[Any]:
    """Within the block a `PeftModel`, or the model within it, computes what it did before tuning."""
    if model.active_peft_config.is_prompt_learning:
        yield model.get_base_model()  # which knows nothing of the tokens before its own
    elif has_start(model):
        tuned = [(layer, _matrices(layer)) for layer in _layers(model)]
        try:
            for layer, _ in tuned:
                _put(layer, layer.start or ())
            yield model
        finally:
            for layer, matrices in tuned:
                _put(layer, matrices)
    else:
        with model.disable_adapter():
            yield model


def take_out_start(model: Any) -> None:
    """Make the adapter the difference to its start: [A, A0] and [B, -B0], of twice the rank, for a base that is as it was published."""
    name = model.active_adapters[0]
    for layer in _layers(model):
        assert layer.start, "every layer of such an adapter has a start"
        a, b = layer.lora_A[name], layer.lora_B[name]
        a0, b0 = (one.to(a.weight) for one in layer.start)
        a.weight = nn.Parameter(torch.cat([a.weight.detach(), a0]))
        b.weight = nn.Parameter(torch.cat([b.weight.detach(), -b0], dim=1))
        a.out_features = b.in_features = 2 * layer.r[name]
        layer.r[name] *= 2
        layer.lora_alpha[name] *= 2  # the scale, alpha / r, stays
        layer.start = None
    config = model.peft_config[name]
    config.r, config.lora_alpha, config.init_lora_weights = 2 * config.r, 2 * config.lora_alpha, True


def _layers(model: nn.Module) -> Iterator[Any]:
    if not hasattr(model, "peft_config"):
        return iter(())
    from burnish.model.lora import LoraLinear  # which imports PEFT

    return (layer for layer in model.modules() if isinstance(layer, LoraLinear))


def _matrices(layer: Any) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r), copied to the host."""
    name = layer.active_adapters[0]
    a, b = (part[name].weight.detach().to("cpu", copy=True) for part in (layer.lora_A, layer.lora_B))
    return a, b


@torch.no_grad()
def _put(layer: Any, matrices: tuple[Tensor, ...]) -> None:
    name = layer.active_adapters[0]
    for part, value in zip((layer.lora_A, layer.lora_B), matrices, strict=True):
        part[name].weight.copy_(value)
